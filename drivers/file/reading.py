"""Bytes of open files: reads that go on where the kernel stops early, and maps."""

from __future__ import annotations

import mmap
import os
import sys
from stat import S_ISDIR, S_ISREG

from tensorstash.drivers.file.errors import check_regular

_CAP = 1 << 30  # below the 0x7ffff000 bytes that one call moves at most

_SPARE = bytearray(1)  # takes the byte past the end of a caller's buffer; never looked at


def is_value(status: os.stat_result, at: int | str) -> bool:
    """Whether this is a file whose bytes are a value; ``False`` where it is a directory that holds
    something, for then it stands for other keys. ``OSError`` for all else; so too for an empty
    directory, which may have taken a value's place. ``at``: where it is, or a descriptor."""
    if S_ISDIR(status.st_mode):
        with os.scandir(at) as entries:
            if next(entries, None) is not None:
                return False
    check_regular(status.st_mode)
    return True


def read(fd: int, start: int, stop: int) -> bytes:
    """Bytes ``start:stop`` of an open file, fewer only where it ends."""
    size = stop - start
    value = os.pread(fd, min(size, _CAP), start) if size else b""
    if len(value) == size:
        return value
    # A read stops early at the kernel's cap, a signal or a bad sector: go on from there.
    parts = [value]
    while value and (start := start + len(value)) < stop:
        value = os.pread(fd, min(stop - start, _CAP), start)
        parts.append(value)
    return b"".join(parts)


def read_attempt(fd: int, out: memoryview) -> int:
    """Read into ``out`` from whatever is open: at most one byte more than it holds, which tells a
    value that fills it from a longer one in one call. Of what is no file, nothing or an error."""
    try:
        return os.readv(fd, (out, _SPARE))
    except OSError:
        if S_ISREG(os.fstat(fd).st_mode):
            raise
        return 0


def end(fd: int) -> int:
    """Where an open file ends; -1 of what has no end that is known. Cheaper than to ask for all
    that is known of it."""
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    except OSError:
        return -1


def read_into(fd: int, out: memoryview) -> int:
    """Fill ``out`` from an open file; how much there was, less only where the file ends."""
    done = 0
    while done < len(out) and (more := os.readv(fd, (out[done:],))):
        done += more
    return done


def mapped(fd: int, size: int) -> memoryview:
    """The ``size`` bytes of an open file in shared memory, read-only. The view outlives ``fd``."""
    if not size:
        return memoryview(b"")  # nothing cannot be mapped
    if sys.version_info >= (3, 13):  # before, each map keeps a descriptor of its own
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ, trackfd=False))
    return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
