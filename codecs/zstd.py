"""Codec ``zstd``."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import zstandard
from numcodecs import zstd as numcodecs_zstd

from tensorstash.codec import ANY, Buffer, BytesCodec, Codec, lenient, short, take
from tensorstash.codecs.streams import check_claim, pour
from tensorstash.errors import Invalid

SMALL = 1 << 16
"""Up to this many bytes ``zstandard`` with a reused context is the faster binding (4 KiB: 4 us
against 20); above, numcodecs, which decodes straight into given memory."""

_BLOCK = 1 << 17
"""Zstandard decodes block by block, each at most this large (RFC 8878, 3.1.1.2.4)."""

_STEP = 512
"""Compressed bytes fed at a time where the size is unknown: they make at most 16 MiB."""


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes, whatever its level: reading needs none."""
    return lenient(Zstd, take(name, configuration, level=ANY, checksum=ANY))


@dataclass(frozen=True, eq=False, repr=False)
class Zstd(BytesCodec):
    """Compresses with Zstandard (registered Zarr v3 codec ``zstd``; RFC 8878).

    ``level`` is -131072 (fastest) to 22 (smallest), 0 meaning 3; ``checksum`` adds Zstandard's
    own. Frames with and without a content size are read, and several in a row.
    """

    name: ClassVar[str] = "zstd"
    step: ClassVar[str | None] = "zstd"
    level: int = 3
    checksum: bool = False

    def __post_init__(self) -> None:
        if type(self.level) is not int or not -131072 <= self.level <= 22:
            raise Invalid(f"codec 'zstd' level is an integer up to 22, not {short(self.level)}")
        if type(self.checksum) is not bool:
            raise Invalid(f"codec 'zstd' checksum is True or False, not {short(self.checksum)}")

    def configuration(self) -> dict[str, Any]:
        """``{"level": ...}``; ``checksum`` only when on: TensorStore refuses it otherwise."""
        extra = {"checksum": True} if self.checksum else {}
        return {"level": self.level, **extra}

    def encode(self, data: Buffer) -> Buffer:
        """One frame that states its content size."""
        if len(data) > SMALL:
            return numcodecs_zstd.compress(data, self.level, self.checksum)  # type: ignore[no-any-return]
        kind = (self.level, self.checksum)
        if _contexts.kind != kind:
            _contexts.compressor = zstandard.ZstdCompressor(
                level=self.level, write_checksum=self.checksum, write_content_size=True
            )
            _contexts.kind = kind
        assert _contexts.compressor is not None
        return _contexts.compressor.compress(data)

    def step_options(self, nbytes: int) -> tuple[int, ...]:
        """Level, checksum, and whether it is ``zstandard``'s library that encodes."""
        return self.level, int(self.checksum), int(nbytes <= SMALL)

    def decode(self, data: Buffer, limit: int, out: memoryview | None = None) -> Buffer:
        """The content of every frame."""
        try:
            size = zstandard.frame_content_size(data)
        except zstandard.ZstdError as error:
            raise ValueError("not a zstd frame") from error
        check_claim(size, len(data), limit, None)
        if size > 0 and (out is None or size == len(out)):
            try:
                return _frame(data, size, out)
            except (zstandard.ZstdError, RuntimeError, ValueError):
                # Several frames, or damage: frame by frame we find out which.
                pass
        try:
            return pour(_frames(data), limit, out)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error

    def decode_span(self, data: Buffer, limit: int, start: int, stop: int, out: memoryview) -> bool:
        """A frame is decoded from its beginning, so what comes after ``stop`` can be left out."""
        size = len(out)
        if size <= 2 * _BLOCK or 5 * stop > 3 * size:
            return False
        try:
            if zstandard.frame_content_size(data) != size:
                return False
            with _decompressor().stream_reader(data, read_size=len(data)) as frame:
                filled = 0
                while filled < stop and (more := frame.readinto(out[filled:stop])):
                    filled += more
        except zstandard.ZstdError:
            return False  # decoding all of it says what is wrong
        return filled == stop


def _frame(data: Buffer, size: int, out: memoryview | None) -> Buffer:
    """The content of ``data``, when it is one frame of ``size`` bytes."""
    if size > SMALL:
        target = np.empty(size, np.uint8).data if out is None else out
        numcodecs_zstd.decompress(data, target)
        return target
    content = _decompressor().decompress(data, allow_extra_data=False)
    if out is None:
        return content
    out[:] = content
    return out


def _decompressor() -> zstandard.ZstdDecompressor:
    if _contexts.decompressor is None:
        _contexts.decompressor = zstandard.ZstdDecompressor()
    return _contexts.decompressor


def _frames(data: Buffer) -> Iterator[bytes]:
    view = memoryview(data)
    at = 0
    while at < len(view):
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            piece = view[at : at + _STEP]
            if not piece:
                raise ValueError("the zstd frame is cut short")
            at += len(piece)
            yield frame.decompress(piece)
        at -= len(frame.unused_data)


class _Contexts(threading.local):
    """What one thread reuses: a context must not serve two threads at once."""

    kind: tuple[int, bool] | None = None
    compressor: zstandard.ZstdCompressor | None = None
    decompressor: zstandard.ZstdDecompressor | None = None


_contexts = _Contexts()


def _forget() -> None:
    global _contexts
    _contexts = _Contexts()


if hasattr(os, "register_at_fork"):
    # The parent may have forked while another of its threads was inside a context.
    os.register_at_fork(after_in_child=_forget)
