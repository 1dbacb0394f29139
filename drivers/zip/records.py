"""The records of the zip format: members one after the other, a directory behind."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tensorstash.driver import Buffer
from tensorstash.drivers.zip import names

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s4B4H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
MARK = struct.Struct("<16sQL")
MARKED = b"PK\0\0tensorstash\n"
_VERSION = struct.pack("<2H", 0x7453, 8)  # an extra field; others pass over it
_PAGE = 4096
_PIECE = 1 << 20
_UTF8 = 0x800
_EPOCH = 33  # 1 January 1980: members carry no time of their own
BIG = 0xFFFFFFFF
LARGEST = BIG - 1
"""Bytes of a value, at most."""
LONGEST = 0xFFFF
"""Bytes of a name, at most."""


class Member(NamedTuple):
    """A value in the archive: where it lies, and its entry in the directory as it stands there."""

    name: str
    offset: int
    begin: int
    stored: int
    size: int
    crc: int
    method: int
    """-1 where it is encrypted."""
    raw: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """What an archive holds, as of one state of its file."""

    members: Mapping[str, Member]
    end: int
    """Behind every byte that a member has or had: the next one goes there."""
    start: int | None = None
    """Where the directory begins; ``None`` where the file has none."""
    stop: int = 0
    """Where the directory and its end record end; where there is none, what was looked through."""
    others: Sequence[Member] = ()
    """Entries that are no keys, folders or what an archive's maker replaced; they are kept."""
    base: int = 0
    """Bytes before the archive, from whose end it counts."""
    comment: bytes = b""
    doubtful: Mapping[str, str] = field(default_factory=dict)
    """Names that may be stored, and why they cannot be read."""
    lost: str = ""
    """Why any other name may have been stored too."""
    fixed: str = ""
    """Why nothing may be written."""
    live: int = 0
    """Bytes that are in use, the directory aside."""


def made(name: str, raw: bytes, at: int, base: int, value: Buffer) -> tuple[Member, bytes]:
    """The member of ``value``, to stand at ``at``, and the header before its bytes."""
    size, crc = len(value), zlib.crc32(value)
    head = header(crc, size, len(raw)) + raw
    version = _VERSION + os.urandom(8)
    entry = central(raw, _UTF8, 0, (0, _EPOCH), crc, size, size, at - base, version)
    return Member(name, at, at + len(head), size, size, crc, 0, entry), head


def version(member: Member) -> bytes | None:
    """What tells this value from every other one that was ever stored under its name."""
    return member.raw[-8:] if member.raw[-12:-8] == _VERSION else None


def header(crc: int, size: int, length: int) -> bytes:
    """What stands before a member of ours and its name."""
    return LOCAL.pack(b"PK\3\4", 20, _UTF8, 0, 0, _EPOCH, crc, size, size, length, 0)


def central(
    raw: bytes,
    flags: int,
    method: int,
    when: tuple[int, int],
    crc: int,
    stored: int,
    size: int,
    offset: int,
    more: bytes = b"",
) -> bytes:
    """An entry of the directory; ``more`` goes to its extra fields."""
    large = [n for n in (size, stored, offset) if n >= BIG]
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    version = 45 if extra else 20
    extra += more
    numbers = (crc, min(stored, BIG), min(size, BIG), len(raw), len(extra), 0, 0, 0)
    head = (b"PK\1\2", version, 3, version, 0, flags, method, *when, *numbers)
    return CENTRAL.pack(*head, 0o644 << 16, min(offset, BIG)) + raw + extra


def moved(entry: bytes, offset: int) -> bytes:
    """An entry for a member that now begins at ``offset``, nearer than before."""
    if offset < BIG:
        return entry[:42] + struct.pack("<L", offset) + entry[46:]
    fixed = CENTRAL.unpack_from(entry)
    at = CENTRAL.size + fixed[12]
    for kind, content in names.fields(entry[at : at + fixed[13]]):
        at += 4
        if kind == 1:
            at += 8 * sum(n == BIG for n in (fixed[10], fixed[11]))
            return entry[:at] + struct.pack("<Q", offset) + entry[at + 8 :]
        at += len(content)
    raise ValueError("an offset that large stands in an extra field")


def tail(known: Directory, at: int) -> bytes:
    """The directory of ``known`` and its end records, to stand at ``at``."""
    entries = b"".join([m.raw for m in (*known.others, *known.members.values())])
    count, size, start = len(known.others) + len(known.members), len(entries), at - known.base
    extra = b""
    if count >= 0xFFFF or start + size >= BIG:
        extra = END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
        extra += LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
    few, comment = min(count, 0xFFFF), known.comment
    numbers = (few, few, min(size, BIG), min(start, BIG), len(comment))
    return entries + extra + END.pack(b"PK\5\6", 0, 0, *numbers) + comment


def ahead(known: Directory, at: int) -> tuple[int, bytes]:
    """A copy of the directory to stand behind the archive while that is changed, at ``at`` or a
    little behind. A mark before it says that all from ``known.end`` to it is free."""
    left = _PAGE - at % _PAGE
    if left < MARK.size:
        at += left  # in one page: the system writes all of the mark or nothing
    mark = struct.pack("<16sQ", MARKED, known.end)
    mark += struct.pack("<L", zlib.crc32(mark))
    return at, mark + tail(known, at + MARK.size)


def free(fd: int, start: int) -> int:
    """Where the next member goes before a directory at ``start``."""
    data = os.pread(fd, MARK.size, start - MARK.size) if start >= MARK.size else b""
    if len(data) == MARK.size and data[:16] == MARKED:
        _, end, crc = MARK.unpack(data)
        if end <= start and crc == zlib.crc32(data[:-4]):
            return int(end)
    return start


def is_remnant(fd: int, known: Directory, size: int) -> bool:
    """Whether what follows the directory to the end of the file is but a gap and the beginning
    of a copy of that directory: what a writer leaves that was killed before it wrote more."""
    assert known.start is not None
    at, rest = data_from(fd, known.stop, size), b""
    while at < size and not (rest := os.pread(fd, _PIECE, at).lstrip(b"\0")):
        at = data_from(fd, at + _PIECE, size)
    left = min(size, at + _PIECE) - len(rest)
    whole = b"".join((MARKED, struct.pack("<Q", known.end)))
    copy = ahead(known, left)
    if not rest or copy[0] != left or not rest.startswith(whole[: len(rest)]):
        return False
    shown = read_bytes(fd, min(size - left, len(copy[1])), left)
    return left + len(shown) == size and copy[1].startswith(shown)


def descriptors(fd: int, at: int, size: int, stored: int, full: int) -> Iterator[tuple[int, int]]:
    """``(checksum, end)`` of what may be the descriptor at ``at`` of a member of that size:
    with a signature or without, of short numbers or long ones."""
    data = os.pread(fd, 24, at)
    for sign in (b"PK\7\x08", b""):
        for form in ("<L2L", "<L2Q"):
            stop = len(sign) + struct.calcsize(form)
            if len(data) < stop or not data.startswith(sign) or at + stop > size:
                continue
            crc, *sizes = struct.unpack(form, data[len(sign) : stop])
            if sizes == [stored, full]:
                yield crc, at + stop


class Entry(NamedTuple):
    """An entry as read, not yet compared with anything."""

    offset: int
    raw: bytes
    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    extra: bytes


def read_bytes(fd: int, nbytes: int, at: int) -> bytes:
    """Up to ``nbytes`` from ``at``; the system may return them in parts."""
    parts: list[bytes] = []
    while nbytes and (part := os.pread(fd, nbytes, at)):
        parts.append(part)
        nbytes, at = nbytes - len(part), at + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def data_from(fd: int, at: int, stop: int) -> int:
    """Where bytes are stored, at ``at`` or behind the hole there; at most ``stop``. Where the
    system does not tell holes from zeros, ``at``."""
    try:
        return min(os.lseek(fd, at, os.SEEK_DATA), stop)
    except OSError as error:
        return stop if error.errno == errno.ENXIO else at


def sizes64(extra: bytes, numbers: Sequence[int]) -> list[int]:
    """``numbers`` (size, stored size, offset), where they are too large for their places in
    the header from the extra field."""
    if BIG not in numbers:
        return [*numbers]
    wide = next((content for kind, content in names.fields(extra) if kind == 1), b"")
    found, at = [], 0
    for number in numbers:
        if number == BIG and at + 8 <= len(wide):
            (number,) = struct.unpack_from("<Q", wide, at)
            at += 8
        found.append(number)
    return found
