"""Changing an archive, such that it is whole at each instant.

No byte that counts is written over. First a copy of the directory goes behind the file, as far
as is needed; then members and the new directory are written to where the old one was; then the
file is cut behind them, and in that one step the new directory takes the place of the copy.
Whoever is killed in between leaves an archive that ends with the copy, which any program reads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from tensorstash.driver import Buffer
from tensorstash.drivers.zip import records
from tensorstash.drivers.zip.records import Directory
from tensorstash.errors import Invalid, counted

_JOINED = 1 << 16
"""Bytes up to which what stands side by side is copied together, to be written at once."""


def change(
    fd: int, known: Directory, items: Sequence[tuple[str, Buffer]], gone: Iterable[str]
) -> Directory:
    """Append ``items`` and leave out what is ``gone``. Where it raises ``OSError`` the archive
    holds what it held."""
    fresh, pieces = _planned(known, items, {*gone})
    before = os.fstat(fd)
    size = before.st_size
    if size == 0:
        # So that a killed first put leaves an empty archive, rather than a part of one.
        empty = records.tail(known, 0)
        write(fd, [empty], 0)
        size = len(empty)
        known = replace(known, start=0, stop=size)
    if size > known.stop:
        os.ftruncate(fd, known.stop)  # an unfinished copy of a writer that was killed
        size = known.stop
    old = records.tail(known, known.end)
    pieces.append(records.tail(fresh, fresh.end))
    room = fresh.end + len(pieces[-1])
    fresh = replace(fresh, stop=room)
    if known.start is None or known.start < max(room, known.end + len(old)):
        _copy_ahead(fd, known, size, max(room, known.end + len(old)))
    if sum(map(len, pieces)) <= _JOINED:
        pieces = [b"".join(pieces)]
    try:
        write(fd, pieces, known.end)
        os.ftruncate(fd, room)
    except BaseException:
        with suppress(OSError):
            write(fd, [old], known.end)
            os.ftruncate(fd, known.end + len(old))
        raise
    # Another time than the one before, also within one tick of the clock: readers go by it.
    # Who may write to the file but does not own it may not set its time.
    now = max(time.time_ns(), before.st_mtime_ns + 1)
    with suppress(OSError):
        os.utime(fd, ns=(now, now))
    return fresh


def stamp(fd: int) -> tuple[int, ...]:
    """Tells the states of an archive apart; its inode first."""
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _planned(
    known: Directory, items: Sequence[tuple[str, Buffer]], gone: set[str]
) -> tuple[Directory, list[Buffer]]:
    """The directory after a change, and the bytes of the new members."""
    gone |= {name for name, _ in items}
    members, end = dict(known.members), known.end
    dropped = [members.pop(name) for name in gone if name in members]
    dropped += [entry for entry in known.others if entry.name in gone]
    live = known.live - sum(old.begin - old.offset + old.stored for old in dropped)
    pieces: list[Buffer] = []
    for name, value in items:
        if len(value) > records.LARGEST:
            raise Invalid(
                f"{name!r} has {counted(len(value), 'byte')}, more than a zip takes; use "
                f"smaller chunks"
            )
        member, head = records.made(name, name.encode(), end, known.base, value)
        pieces += (head, value) if len(value) > _JOINED else (b"".join((head, value)),)
        end = member.begin + member.stored
        members.pop(name, None)  # where it is put twice, the second is the one that counts
        members[name] = member
    live += sum(m.begin - m.offset + m.stored for m in {n: members[n] for n, _ in items}.values())
    others = [entry for entry in known.others if entry.name not in gone]
    fresh = replace(known, members=members, others=others, start=end, end=end, live=live)
    return fresh, pieces


def _copy_ahead(fd: int, known: Directory, size: int, room: int) -> None:
    """Write the directory once more, behind the file and behind ``room``."""
    at, copy = records.ahead(known, max(size, room))
    try:
        write(fd, [copy], at)
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, size)
        raise


def write(fd: int, pieces: Iterable[Buffer], at: int) -> None:
    """All of ``pieces``, one behind the other, from ``at``."""
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view:
            done = os.pwrite(fd, view, at)
            view, at = view[done:], at + done
