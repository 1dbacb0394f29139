"""One file of the disk cache: bytes of one version of one value, with checksums.

::

    "tsc1"  crc32c of the head from here on (u32)  len(name) (u32)  len(tag) (u32)  len(body) (u64)
    name    whose bytes these are: url, key and span
    tag     the version, as a Python literal
    a crc32c (u32) for each 256 KiB of the body, so that a part can be checked alone
    body

All little-endian.
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from functools import lru_cache
from stat import S_ISREG
from struct import Struct
from typing import Any

import google_crc32c
import numpy as np

from tensorstash.driver import Buffer, Span, Tag
from tensorstash.errors import counted

SMALL = 256 << 10
"""Bodies up to here are read along with the head: one call instead of three."""

_HEAD = Struct("<4sIIIQ")
_CHECKED = 8  # the head's checksum covers what follows it
_MAGIC = b"tsc1"
_BLOCK = 256 << 10
_PEEK = 4096
_CAP = 1 << 30  # below what one read or write moves at most
_NOT_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a cache file holds: the version and, unless it was left for later, the bytes."""

    tag: Tag
    body: Buffer | None
    used: float
    """When it was last used, in seconds since 1970, to the minute or so."""


def tag_text(tag: Tag) -> bytes | None:
    """``tag`` as a literal that gives it back in any process; ``None`` when it has none."""
    try:
        text = repr(tag)
        if tag is None or ast.literal_eval(text) != tag:
            return None
        return text.encode()
    except _NOT_LITERAL:
        return None


def head(name: bytes, tag: bytes, body: Buffer) -> bytes:
    """What stands before ``body`` in its file."""
    view = memoryview(body).cast("B")
    sums = b"".join(_crc(view[at : at + _BLOCK]) for at in range(0, len(view), _BLOCK))
    fixed = _HEAD.pack(_MAGIC, 0, len(name), len(tag), len(view))
    checked = b"".join((fixed[_CHECKED:], name, tag, sums))
    return b"".join((_MAGIC, _crc(checked), checked))


def write(fd: int, *parts: Buffer) -> None:
    """All of ``parts``, in as many calls as it takes."""
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            view = view[os.write(fd, view[:_CAP]) :]


def read(fd: int, name: bytes, span: Span | None, most: int) -> Entry:
    """The entry in an open file, with bytes ``span`` of its body where no more than ``most``
    have to be read for them. ``ValueError`` when the file is damaged, or not that of ``name``."""
    status = os.fstat(fd)
    size = status.st_size
    if not S_ISREG(status.st_mode):
        raise ValueError("it is not a file")
    data = _pread(fd, 0, size if size <= most + _PEEK else _PEEK)
    if len(data) < _HEAD.size:
        raise ValueError(f"its {counted(len(data), 'byte is', 'bytes are')} too few")
    magic, checksum, names, tags, nbytes = _HEAD.unpack_from(data)
    at = _HEAD.size + names
    sums = at + tags
    body = sums + 4 * -(-nbytes // _BLOCK)
    if magic != _MAGIC or body + nbytes != size:
        raise ValueError(f"its {counted(size, 'byte does', 'bytes do')} not fit its head")
    if body > len(data):
        data += _pread(fd, len(data), body)
    if _crc(data, _CHECKED, body) != checksum.to_bytes(4, "little"):
        raise ValueError("the checksum of its head does not match")
    if data[_HEAD.size : at] != name:
        raise ValueError("it holds another value")
    tag = _literal(data[at:sums])
    start, stop = (0, nbytes) if span is None else span.resolve(nbytes)
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    lower, upper = first * _BLOCK, min(last * _BLOCK, nbytes)
    if start < stop and upper - lower > most:
        return Entry(tag, None, status.st_mtime)
    if body + upper <= len(data):
        found, shift = data, body
    else:
        found, shift = _pread(fd, body + lower, body + upper), -lower
    for block in range(first, last if start < stop else first):
        left, right = block * _BLOCK, min((block + 1) * _BLOCK, nbytes)
        if right + shift > len(found):
            raise ValueError("it was cut while it was read")
        at = sums + 4 * block
        if _crc(found, left + shift, right + shift) != data[at : at + 4]:
            raise ValueError(f"the checksum of its bytes {left} to {right} does not match")
    return Entry(tag, memoryview(found)[start + shift : stop + shift], status.st_mtime)


def name_in(fd: int) -> bytes:
    """The name in an open file, unchecked; ``ValueError`` when there can be none."""
    data = _pread(fd, 0, _PEEK)
    if len(data) < _HEAD.size:
        raise ValueError(f"its {counted(len(data), 'byte is', 'bytes are')} too few")
    stop = _HEAD.size + int(_HEAD.unpack_from(data)[2])
    return data[_HEAD.size : stop] if stop <= len(data) else _pread(fd, _HEAD.size, stop)


@lru_cache(4096)
def _literal(text: bytes) -> Any:
    try:
        return ast.literal_eval(text.decode())
    except _NOT_LITERAL as error:
        raise ValueError("its tag is not a literal") from error


def _crc(data: Buffer, start: int = 0, stop: int | None = None) -> bytes:
    stop = len(data) if stop is None else stop
    # The C extension takes bytes and arrays, not memoryviews.
    part = np.frombuffer(data, np.uint8, stop - start, start) if stop > start else b""
    return int(google_crc32c.value(part)).to_bytes(4, "little")


def _pread(fd: int, start: int, stop: int) -> bytes:
    """Bytes ``start:stop``, fewer only where the file ends."""
    value = os.pread(fd, min(stop - start, _CAP), start)
    if len(value) == stop - start:
        return value
    parts = [value]
    while value and (start := start + len(value)) < stop:
        value = os.pread(fd, min(stop - start, _CAP), start)
        parts.append(value)
    return b"".join(parts)
