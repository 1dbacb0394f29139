"""What can be found of a zip that has no directory: members, one after the other.

Nothing is taken for more than it is. Where members end before the file does, or where it was
cut, the names that came after are not known, and none may be called absent.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tensorstash.drivers.zip import names
from tensorstash.drivers.zip.inflate import Inflated
from tensorstash.drivers.zip.records import (
    CENTRAL,
    LOCAL,
    MARKED,
    central,
    descriptors,
    read_bytes,
    sizes64,
)

_PIECE = 1 << 20
_MOST = 256 << 20
"""Bytes that are unpacked to find where members end, beside those of the file."""
_LARGEST_ENTRY = CENTRAL.size + 3 * 0xFFFF + 1
_SIGNATURES = (b"PK\7\x08", b"PK\3\4", b"PK\1\2")


@dataclass(frozen=True, slots=True)
class Walk:
    """Entries for a directory, the end of the last member, and what is not known."""

    entries: list[bytes]
    end: int
    cut: dict[str, str]
    """Names that are there, whose values are not whole."""
    lost: str = ""
    fixed: str = ""
    stop: int | None = None
    """Where what is understood ends, if the file does not end there."""


class _Spent(Exception):
    """More would have to be unpacked than a file of this size is worth."""


class _Budget:
    def __init__(self, nbytes: int) -> None:
        self.left = nbytes

    def spend(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise _Spent


def walk(fd: int, size: int) -> Walk:
    """The members from the beginning of the file, of which ``size`` bytes count."""
    found: dict[int, tuple[str, bytes]] = {}
    cut: dict[str, str] = {}
    at, budget = 0, _Budget(_MOST + 2 * size)
    while len(head := os.pread(fd, LOCAL.size, at)) == LOCAL.size and head[:4] == b"PK\3\4":
        _, _, flags, method, time, date, crc, stored, full, length, more = LOCAL.unpack(head)
        begin = at + LOCAL.size + length + more
        raw = read_bytes(fd, length, at + LOCAL.size)
        extra = read_bytes(fd, more, begin - more)
        key = names.key_of(raw, flags, extra)[0]
        full, stored = sizes64(extra, (full, stored))
        stop: int | None = begin + stored
        if flags & 8:
            try:
                end = _streamed(fd, begin, size, method, budget)
            except _Spent:
                end = None
            stop = None if end is None else end[0]
            if end is not None:
                crc, stored, full = end[1:]
        if stop is None or not _borders(fd, stop, size):
            cut[key.rstrip("/")] = "was cut, or is not whole"
            break
        # What the directory says of a folder is lost; that its name ends in "/" is enough.
        spelled = names.spelling(extra)
        entry = central(raw, flags, method, (time, date), crc, stored, full, at, spelled)
        found[at] = key, entry
        at = stop
    return _explained(fd, found, cut, at, size)


def _explained(
    fd: int, found: dict[int, tuple[str, bytes]], cut: dict[str, str], at: int, size: int
) -> Walk:
    """What the rest of the file says of the members that were found."""
    entries = {begin: entry for begin, (_, entry) in found.items()}
    if cut or os.pread(fd, 4, at) != b"PK\1\2":
        lost = f"its directory is lost, and what was stored behind byte {at}"
        return Walk([*entries.values()], at, cut, lost, lost)
    shown = [*_seen(fd, at, size)]
    begins = [begin for begin, _ in shown]
    # One whose name is not its member's may have swallowed those of others: then nothing that is
    # left out was surely deleted.
    if not entries.keys() >= {*begins} or any(
        _name(entry) != _name(entries[begin]) for begin, entry in shown
    ):
        lost = f"its directory at byte {at} is of other members"
        return Walk([*entries.values()], at, cut, lost, lost)
    if begins == sorted(begins):
        # Entries stand in the order of their members: what is left out before was deleted.
        last = max(begins, default=-1)
        entries = {begin: entry for begin, entry in entries.items() if begin > last}
    entries = {**entries, **dict(shown)}
    place = at + sum(len(entry) for _, entry in shown)
    rest = read_bytes(fd, min(size - place, _LARGEST_ENTRY), place)
    whole, stop = place + len(rest) == size, size
    if (copy := rest.find(MARKED)) >= 0:
        # Of a writer that was killed before it had repaired this.
        rest, whole = rest[:copy].rstrip(b"\0"), True
        stop = place + len(rest)
    whole &= _is_cut(rest)
    fixed = "" if whole else f"its directory at byte {at} is damaged"
    return Walk([*entries.values()], at, cut, "", fixed, stop)


def _borders(fd: int, at: int, size: int) -> bool:
    """Whether a member may end here: before another, before the directory, where the file ends."""
    if at > size:
        return False
    begins = os.pread(fd, min(4, size - at), at)
    return any(sign.startswith(begins) for sign in _SIGNATURES[1:])


def _seen(fd: int, at: int, size: int) -> Iterator[tuple[int, bytes]]:
    """``(offset, entry)`` of each whole entry of the directory at ``at``."""
    while True:
        head = os.pread(fd, CENTRAL.size, at)
        if len(head) < CENTRAL.size or head[:4] != b"PK\1\2":
            return
        fixed = CENTRAL.unpack(head)
        more = fixed[12] + fixed[13] + fixed[14]
        if at + CENTRAL.size + more > size:
            return
        entry = head + read_bytes(fd, more, at + CENTRAL.size)
        extra = entry[CENTRAL.size + fixed[12] : CENTRAL.size + fixed[12] + fixed[13]]
        yield sizes64(extra, (fixed[11], fixed[10], fixed[18]))[2], entry
        at += len(entry)


def _name(entry: bytes) -> bytes:
    return entry[CENTRAL.size : CENTRAL.size + CENTRAL.unpack_from(entry)[12]]


def _is_cut(rest: bytes) -> bool:
    """Whether these bytes are the beginning of an entry or of the end of a directory."""
    if rest[:4] == b"PK\1\2":
        return len(rest) < CENTRAL.size or len(rest) < CENTRAL.size + sum(
            CENTRAL.unpack_from(rest)[12:15]
        )
    if rest[:4] == b"PK\6\6":
        return len(rest) < 56 + 20 + 22
    if rest[:4] == b"PK\5\6":
        return len(rest) < 22 or len(rest) < 22 + int.from_bytes(rest[20:22], "little")
    return any(sign.startswith(rest) for sign in (b"PK\1\2", b"PK\5\6", b"PK\6\6"))


# -- members whose sizes stand behind them --------------------------------------------


def _streamed(
    fd: int, begin: int, size: int, method: int, budget: _Budget
) -> tuple[int, int, int, int] | None:
    """``(end, checksum, stored size, size)`` of a streamed member, its descriptor included;
    ``None`` where it is not whole."""
    if method == 8:
        whole = _inflated(fd, begin, size, budget)
        if whole is None:
            return None
        packed, full, crc = whole
        for told, end in descriptors(fd, begin + packed, size, packed, full):
            if told == crc:
                return end, crc, packed, full
        return None
    if method == 0:
        for at in _ends(fd, begin, size):
            nbytes = at - begin
            for told, end in descriptors(fd, at, size, nbytes, nbytes):
                budget.spend(nbytes)
                if _checksum(fd, begin, nbytes) == told:
                    return end, told, nbytes, nbytes
    return None


def _inflated(fd: int, begin: int, size: int, budget: _Budget) -> tuple[int, int, int] | None:
    """Bytes that a deflated member takes and makes, and their checksum."""
    pieces, full, crc = Inflated(fd, begin, size), 0, 0
    try:
        for data in pieces:
            full, crc = full + len(data), zlib.crc32(data, crc)
            budget.spend(len(data))
    except zlib.error:
        return None
    return None if pieces.end is None else (pieces.end - begin, full, crc)


def _ends(fd: int, begin: int, size: int) -> Iterator[int]:
    """Where a stored member of unknown size may end: before a descriptor with a signature, or
    before one without, behind which the next header begins."""
    at, kept = begin, b""
    while at < size:
        data = kept + os.pread(fd, min(_PIECE, size - at), at)
        origin = at - len(kept)
        at = origin + len(data)
        place = data.find(b"PK")
        while 0 <= place <= len(data) - 4:
            sign = data[place : place + 4]
            if sign == _SIGNATURES[0]:
                yield origin + place
            elif sign in _SIGNATURES:
                yield from (p for p in (origin + place - 12, origin + place - 20) if p >= begin)
            place = data.find(b"PK", place + 1)
        kept = data[-3:]
        if len(data) == len(kept):
            return


def _checksum(fd: int, begin: int, nbytes: int) -> int:
    crc, at, stop = 0, begin, begin + nbytes
    while at < stop and (data := os.pread(fd, min(_PIECE, stop - at), at)):
        crc, at = zlib.crc32(data, crc), at + len(data)
    return crc
