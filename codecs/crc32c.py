"""Codec ``crc32c``: four bytes that notice damage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import google_crc32c
import numpy as np

from tensorstash.codec import Buffer, BytesCodec, Codec, take
from tensorstash.errors import counted

_SIZE = 4


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    take(name, configuration)
    return Crc32c()


class Crc32c(BytesCodec):
    """Appends the CRC-32C of the data, four bytes little-endian, and checks it when decoding
    (Zarr v3 codec ``crc32c``; RFC 3720)."""

    name: ClassVar[str] = "crc32c"
    step: ClassVar[str | None] = "crc32c"

    def encode(self, data: Buffer) -> Buffer:
        """``data`` and its checksum."""
        return b"".join((data, _checksum(data, len(data)).to_bytes(_SIZE, "little")))

    def within(self, encoded: Buffer) -> Buffer:
        """All but the checksum."""
        return memoryview(encoded)[:-_SIZE]

    def decode(self, data: Buffer, limit: int, out: memoryview | None = None) -> Buffer:
        """A view of ``data`` without its checksum; ``ValueError`` when that does not match."""
        size = len(data) - _SIZE
        if size < 0:
            raise ValueError(
                f"{counted(len(data), 'byte is', 'bytes are')} too few to end in a checksum"
            )
        if size > limit or (out is not None and size != len(out)):
            expected = limit if out is None else len(out)
            raise ValueError(f"{counted(size, 'byte')} where {expected} were expected")
        view = memoryview(data)
        stored = int.from_bytes(view[size:], "little")
        computed = _checksum(data, size)
        if stored != computed:
            raise ValueError(f"stored checksum 0x{stored:08x}, computed 0x{computed:08x}")
        if out is None:
            return view[:size]
        out[:] = view[:size]
        return out

    def step_options(self, nbytes: int) -> tuple[int, ...]:
        """None are needed."""
        return ()

    def encoded_nbytes(self, nbytes: int) -> int:
        """Four bytes more."""
        return nbytes + _SIZE

    def encoded_limit(self, nbytes: int) -> int:
        """As :meth:`encoded_nbytes`."""
        return nbytes + _SIZE


def _checksum(data: Buffer, size: int) -> int:
    # The C extension takes bytes and arrays, not memoryviews.
    if size:
        return int(google_crc32c.value(np.frombuffer(data, np.uint8, size)))
    return int(google_crc32c.value(b""))
