"""Reads that go on where the kernel stops early."""

from __future__ import annotations

import os

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
