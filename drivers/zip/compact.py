"""Writing an archive anew without its dead bytes, beside its place, and renaming it."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from tensorstash.drivers.posix import partial
from tensorstash.drivers.posix.descriptor import opened
from tensorstash.drivers.zip import records, writer
from tensorstash.drivers.zip.records import LOCAL, Directory, Member

_WASTE = 1 << 20
"""Dead bytes that are never worth writing an archive anew for."""
_PIECE = 4 << 20


def compact(fd: int, path: str, known: Directory) -> tuple[Directory, tuple[int, ...]] | None:
    """Where more than half of the archive is dead, put one without in its place; returns its
    directory and stamp. What a reader has open stays as it is.

    Only members that this driver wrote, and replaced or deleted, are dead. All else stays as it
    is, byte for byte: what precedes the archive, and what others left between its members.
    """
    if known.end - known.live < max(known.live, _WASTE):
        return None
    dead = [*_dead(fd, known)]
    size = sum(stop - start for start, stop in dead)
    status = os.fstat(fd)
    if size < max(known.end - size, _WASTE) or status.st_nlink > 1:
        # The rest is not ours: it counts as in use from now on.
        return replace(known, live=known.end - size), writer.stamp(fd)
    name = partial.name(os.path.basename(path), time.time_ns())
    beside = os.path.join(os.path.dirname(path), name)
    try:
        with opened(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC) as file:
            new = file.fileno()
            os.fchmod(new, 0o600)
            fresh = _copied(fd, new, known, dead)
            with suppress(PermissionError):
                os.fchown(new, status.st_uid, status.st_gid)
            os.fchmod(new, status.st_mode & 0o7777)
            os.fsync(new)
            os.rename(beside, path)
            return fresh, writer.stamp(new)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise


def sweep(path: str) -> None:
    """Remove what killed processes left beside the archive while they wrote it anew."""
    folder, name = os.path.split(path)
    begin = f".{name[:32]}."
    with suppress(OSError), opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as home:
        for found in os.listdir(folder):
            if found.startswith(begin):
                partial.sweep(home.fileno(), found)


def _dead(fd: int, known: Directory) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of what lies between members and is nothing but members of ours."""
    at = known.base
    places = sorted((*known.others, *known.members.values()), key=lambda m: m.offset)
    for begin, member in [*((m.offset, m) for m in places), (known.end, None)]:
        if at < begin and _is_ours(fd, at, begin):
            yield at, begin
        if member is not None and (stop := member.begin + member.stored) >= at:
            told = records.descriptors(fd, stop, known.end, member.stored, member.size)
            at = next((end for crc, end in told if crc == member.crc), stop)


def _is_ours(fd: int, at: int, stop: int) -> bool:
    while at < stop:
        head = os.pread(fd, LOCAL.size, at)
        if len(head) < LOCAL.size:
            return False
        *_, crc, size, _, length, _ = LOCAL.unpack(head)
        if head != records.header(crc, size, length):
            return False
        at += LOCAL.size + length + size
    return at == stop


def _copied(fd: int, new: int, known: Directory, dead: list[tuple[int, int]]) -> Directory:
    end, at = 0, 0
    begins, shifts = [], []
    for start, stop in [*dead, (known.end, known.end)]:
        begins.append(at)
        shifts.append(at - end)
        end, at = _copy(fd, at, start, new, end), stop

    def moved(old: Member) -> Member:
        by = shifts[bisect_right(begins, old.offset) - 1]
        raw = records.moved(old.raw, old.offset - by - known.base)
        return old._replace(offset=old.offset - by, begin=old.begin - by, raw=raw)

    members = {name: moved(old) for name, old in known.members.items()}
    others = [moved(old) for old in known.others]
    fresh = replace(known, members=members, others=others, start=end, end=end, live=end)
    directory = records.tail(fresh, end)
    writer.write(new, [directory], end)
    return replace(fresh, stop=end + len(directory))


def _copy(fd: int, at: int, stop: int, new: int, to: int) -> int:
    """Copy bytes ``at:stop``; returns where they end in the new file."""
    while at < stop:
        data = os.pread(fd, min(_PIECE, stop - at), at)
        if not data:
            raise OSError("the archive is shorter than it was")
        writer.write(new, [data], to)
        at, to = at + len(data), to + len(data)
    return to
