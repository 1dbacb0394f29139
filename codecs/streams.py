"""Decompression in bounded pieces: no claim in a header decides how much memory is taken.

Shared by the codecs; not one itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from tensorstash.codec import Buffer
from tensorstash.errors import counted

PIECE = 1 << 18
"""Bytes in and out of a decompressor at a time."""

EXPANSION = 1 << 15
"""No format here makes more bytes than this of one: zstd's shortest block, 4 bytes, holds at
most 128 KiB (RFC 8878, 3.1.1.2)."""

GZIP = 31
"""zlib's ``wbits`` for the gzip format; 15 is its own."""


class Decompressor(Protocol):
    """The shape of ``bz2.BZ2Decompressor`` and ``lzma.LZMADecompressor``."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether nothing more comes out before more goes in."""

    @property
    def unused_data(self) -> bytes:
        """Input beyond the end of the stream."""

    def decompress(self, data: Buffer, max_length: int = -1, /) -> bytes:
        """At most ``max_length`` bytes more."""


def pour(pieces: Iterable[Buffer], limit: int, out: memoryview | None) -> Buffer:
    """``pieces`` joined, or written to ``out``, which they must fill exactly.

    ``ValueError`` as soon as there are more than ``limit`` bytes, or than ``out`` holds.
    """
    limit = limit if out is None else len(out)
    size = 0
    kept = []
    for piece in pieces:
        start, size = size, size + len(piece)
        if size > limit:
            raise ValueError(f"more than the {counted(limit, 'byte')} expected")
        if out is None:
            kept.append(piece)
        else:
            out[start:size] = piece
    if out is None:
        return b"".join(kept) if len(kept) != 1 else kept[0]
    if size != limit:
        raise ValueError(f"{counted(size, 'byte')} where {limit} were expected")
    return out


def inflate(data: Buffer, wbits: int) -> Iterator[bytes]:
    """The content of a zlib stream, or of the members of a gzip file (RFC 1952, 2.2)."""
    view = memoryview(data)
    at = 0
    while True:
        stream = zlib.decompressobj(wbits)
        while not stream.eof:
            piece = view[at : at + PIECE]
            try:
                result = stream.decompress(piece, PIECE)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            at += len(piece) - len(stream.unconsumed_tail) - len(stream.unused_data)
            if not piece and not result and not stream.eof:
                raise ValueError("the compressed stream is cut short")
            yield result
        if at == len(view):
            return
        if wbits != GZIP:
            raise ValueError(
                f"{counted(len(view) - at, 'byte follows', 'bytes follow')} the compressed stream"
            )


def expand(start: Callable[[], Decompressor], data: Buffer) -> Iterator[bytes]:
    """The content of the streams in ``data``, each read by a new decompressor of ``start``."""
    view = memoryview(data)
    at = 0
    while True:
        stream = start()
        while not stream.eof:
            piece = view[at : at + PIECE] if stream.needs_input else b""
            if stream.needs_input and not piece:
                raise ValueError("the compressed stream is cut short")
            at += len(piece)
            yield stream.decompress(piece, PIECE)
        at -= len(stream.unused_data)
        if at == len(view):
            return


def check_claim(claim: int, given: int, limit: int, out: memoryview | None) -> None:
    """``ValueError`` unless ``given`` bytes can hold the ``claim`` bytes their header speaks of,
    and those fit ``limit`` and ``out``."""
    if claim > limit or claim > given * EXPANSION:
        raise ValueError(
            f"its header claims {counted(claim, 'byte')}, the most possible is {limit}"
        )
    if out is not None and claim != len(out):
        raise ValueError(
            f"its header claims {counted(claim, 'byte')} where {len(out)} were expected"
        )
