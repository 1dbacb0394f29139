"""Changing an archive: members behind the last one, a directory behind them, no room wasted."""

from __future__ import annotations

import os
import time
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress

from tensorstash.driver import Buffer
from tensorstash.drivers.descriptor import opened
from tensorstash.drivers.zip import archive
from tensorstash.drivers.zip.archive import Directory, Member
from tensorstash.errors import Invalid

_WASTE_BYTES = 1 << 20
"""Dead bytes that are never worth writing an archive anew for."""


def change(
    fd: int, known: Directory, items: Iterable[tuple[str, Buffer]], gone: Iterable[str]
) -> Directory:
    """Append ``items`` and leave out what is ``gone``. The file is whole again when this
    returns, and as it was where it raises ``OSError``."""
    members, end = dict(known.members), known.end
    pieces: list[Buffer] = []
    for name in gone:
        members.pop(name, None)
    for name, value in items:
        size = len(value)
        if size > archive.LARGEST:
            raise Invalid(f"{name!r} has {size} bytes, more than a zip takes; use smaller chunks")
        member = Member(name, end, size, size, zlib.crc32(value), zipfile.ZIP_STORED)
        head = member.local()
        pieces += (head, value)
        end += len(head) + size
        members.pop(name, None)
        members[name] = member
    before = os.fstat(fd).st_mtime_ns
    try:
        _write(fd, [*pieces, archive.tail(members, end)], known.end)
    except BaseException:
        with suppress(OSError):
            _write(fd, [archive.tail(known.members, known.end)], known.end)
        raise
    # Another time than the one before, also within one tick of the clock: readers go by it.
    now = max(time.time_ns(), before + 1)
    os.utime(fd, ns=(now, now))
    return Directory(members, end)


def compact(fd: int, path: str, known: Directory) -> tuple[Directory, tuple[int, ...]] | None:
    """Where more than half of the archive is dead, put one without in its place; answers its
    directory and stamp. What a reader has open stays as it is."""
    live = sum(len(member.local()) + member.stored for member in known.members.values())
    if known.end - live < max(live, _WASTE_BYTES):
        return None
    fresh = f"{path}.{os.getpid()}.part"
    try:
        with opened(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC) as file:
            new = file.fileno()
            os.fchmod(new, 0o600)
            members, end = {}, 0
            for old in known.members.values():
                size = old.stored
                member = Member(old.name, end, size, old.size, old.crc, old.method)
                data = read_bytes(fd, size, archive.begins(fd, old))
                head = member.local()
                _write(new, [head, data], end)
                end += len(head) + size
                members[old.name] = member
            _write(new, [archive.tail(members, end)], end)
            os.fchmod(new, os.fstat(fd).st_mode & 0o777)
            os.rename(fresh, path)
            return Directory(members, end), stamp(new)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(fresh)
        raise


def stamp(fd: int) -> tuple[int, ...]:
    """Tells the states of an archive apart; its inode first."""
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_bytes(fd: int, nbytes: int, at: int) -> bytes:
    """Up to ``nbytes`` from ``at``; the system may answer them in parts."""
    parts: list[bytes] = []
    while nbytes and (part := os.pread(fd, nbytes, at)):
        parts.append(part)
        nbytes, at = nbytes - len(part), at + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write(fd: int, pieces: Iterable[Buffer], at: int) -> None:
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done
    os.ftruncate(fd, at)
