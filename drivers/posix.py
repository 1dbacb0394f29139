"""Bytes of open files: reads that go on where the kernel stops early, and maps."""

from __future__ import annotations

import mmap
import os
import sys
from stat import S_ISREG

_CAP = 1 << 30  # below the 0x7ffff000 bytes that one call moves at most


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


def mapped(fd: int) -> memoryview | None:
    """An open file's bytes in shared memory, read-only; ``None`` where it is no regular file. The
    view outlives ``fd``."""
    status = os.fstat(fd)
    if not S_ISREG(status.st_mode):
        return None
    if not status.st_size:
        return memoryview(b"")  # nothing cannot be mapped
    if sys.version_info >= (3, 13):  # before, each map keeps a descriptor of its own
        return memoryview(mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ, trackfd=False))
    return memoryview(mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ))
