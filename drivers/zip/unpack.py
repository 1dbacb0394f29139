"""Reading a member: as it lies there, or inflated, in no more memory than its value takes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence

from tensorstash.driver import Buffer, Span
from tensorstash.drivers.zip.inflate import Inflated
from tensorstash.drivers.zip.records import Member, read_bytes
from tensorstash.errors import Corrupt, Unsupported, counted

_STORED, _DEFLATED = 0, 8
_EXPANDS = 1040
"""No deflated byte makes more."""
_LARGE = 256 << 20
_RATIO = 100
"""A value above this size, and this many times what it takes in the file, is read only where
the caller said that it can have as many bytes."""


def read(
    fd: int, member: Member, spans: Sequence[Span], path: str, most: int | None = None
) -> list[Buffer]:
    """Bytes ``spans`` of a value; a whole one is compared with its checksum."""
    if member.method == _STORED and any(span != Span(0) for span in spans):
        if member.stored != member.size:
            raise _damaged(member, path)
        places = (span.resolve(member.size) for span in spans)
        return [read_bytes(fd, stop - start, member.begin + start) for start, stop in places]
    if member.method == _STORED:
        data = read_bytes(fd, member.stored, member.begin)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise _damaged(member, path)
        return [data for _ in spans]
    _check(member, path, most)
    ranges = [span.resolve(member.size) for span in spans]
    parts = [bytearray() for _ in ranges]
    for at, piece in _inflated(fd, member, path):
        for part, (start, stop) in zip(parts, ranges, strict=True):
            part += piece[max(start - at, 0) : max(stop - at, 0)]
    return [*parts]


def read_into(fd: int, member: Member, out: memoryview, path: str) -> None:
    """The whole value, into ``out``, which has its size."""
    if member.method == _STORED:
        at = 0
        while at < len(out) and (done := os.preadv(fd, [out[at:]], member.begin + at)):
            at += done
        if at != member.size or member.stored != at or zlib.crc32(out) != member.crc:
            raise _damaged(member, path)
        return
    _check(member, path, len(out))
    for at, piece in _inflated(fd, member, path):
        out[at : at + len(piece)] = piece


def _check(member: Member, path: str, most: int | None) -> None:
    if member.method != _DEFLATED:
        raise Unsupported(
            f"{member.name!r} in zip://{path} is encrypted or compressed by a method other than "
            "deflate; store it anew without"
        )
    if member.size > _EXPANDS * (member.stored + 1):
        raise _damaged(member, path)
    if member.size > max(_LARGE, _RATIO * member.stored) and (most or 0) < member.size:
        raise Corrupt(
            f"{member.name!r} in zip://{path} would be {counted(member.size, 'byte')}, of "
            f"{member.stored} "
            "in the file; unpack the file, if you trust it",
            key=member.name,
        )


def _inflated(fd: int, member: Member, path: str) -> Iterator[tuple[int, bytes]]:
    """``(offset, bytes)`` of the value, piece by piece; its checksum is compared at the end."""
    stop = member.begin + member.stored
    pieces, size, crc = Inflated(fd, member.begin, stop), 0, 0
    try:
        for piece in pieces:
            if size + len(piece) > member.size:
                raise _damaged(member, path)
            yield size, piece
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    except zlib.error as error:
        raise _damaged(member, path) from error
    if (pieces.end, size, crc) != (stop, member.size, member.crc):
        raise _damaged(member, path)


def _damaged(member: Member, path: str) -> Corrupt:
    return Corrupt(
        f"{member.name!r} in zip://{path} is not what was stored, by its checksum; restore a copy",
        key=member.name,
    )
