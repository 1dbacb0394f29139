"""Reading the directory of a zip.

What is read here is believed only as far as it agrees with itself: the directory with its end
record, each entry with the header before its member, each size with the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from stat import S_ISREG

from tensorstash.drivers.zip import names, recover
from tensorstash.drivers.zip.records import (
    BIG,
    CENTRAL,
    END,
    END64,
    LARGEST,
    LOCAL,
    LOCATOR,
    MARKED,
    Directory,
    Entry,
    Member,
    data_from,
    free,
    is_remnant,
    read_bytes,
    sizes64,
)
from tensorstash.errors import Corrupt, Invalid, Unsupported, counted

_MOST = 256 << 20
"""Bytes of a directory, at most."""
_REACH = END.size + 0xFFFF
"""Bytes at the end of a file in which programs look for the end record."""
_PIECE = 1 << 20


class Broken(Exception):
    """There is no directory where one was looked for."""


def read(fd: int, path: str, before: Directory | None = None) -> Directory:
    """The directory of an open archive; where it was lost, what can be found of the members.
    Entries that are those of ``before``, an earlier state of the same file, are not compared
    with their members again."""
    status = os.fstat(fd)
    if not S_ISREG(status.st_mode):
        raise Invalid(f"{path!r} is not a file, and so not a zip; give the path of a zip file")
    size = status.st_size
    if size == 0:
        return Directory({}, 0)
    begins = os.pread(fd, 4, 0)
    stop, exact = _last_end(fd, path, size)
    if stop == 0:
        return _recovered(fd, path, size, before)
    try:
        found = _ending(fd, path, stop, before)
    except Broken as error:
        if begins == b"PK\3\4":
            return _recovered(fd, path, size, before)
        raise Corrupt(f"{path!r} is a damaged zip: {error}; restore a copy") from None
    if exact or is_remnant(fd, found, size):
        return found
    padded = not read_bytes(fd, min(size - stop, _REACH), stop).strip(b"\0")
    if begins == b"PK\3\4" and not padded:
        # This may be the end of a zip within the one that was cut.
        return _recovered(fd, path, size, before)
    why = f"{counted(size - stop, 'byte follows', 'bytes follow')} its directory that are of no zip"
    return replace(found, fixed=found.fixed or why, lost="" if padded else why)


# -- where the directory is -----------------------------------------------------------


def _last_end(fd: int, path: str, size: int) -> tuple[int, bool]:
    """Where the last end record stops, or 0; whether that is the end of the file, surely."""
    reach = min(size, _REACH)
    data, origin = read_bytes(fd, reach, size - reach), size - reach
    stops = _stops(data)
    if stops.count(len(data)) > 1:
        raise Corrupt(f"{path!r} has two ends as a zip; unpack it, and make it anew")
    if len(data) in stops:
        return size, True
    if stops:
        return origin + max(stops), False
    # A copy of a directory that was not finished, behind a gap as large as a value? Else the
    # file has no end record that any program would find.
    least = max(0, size - _MOST - LARGEST - _REACH)
    while origin > least:
        if data == bytes(len(data)):
            origin = _before_hole(fd, least, origin)
        elif MARKED[:4] not in data and b"PK\1\2" not in data:
            break
        reach = min(origin - least, _PIECE)
        data = read_bytes(fd, reach + _REACH, origin - reach)
        origin -= reach
        if stops := _stops(data):
            return origin + max(stops), False
    return 0, False


def _before_hole(fd: int, least: int, stop: int) -> int:
    """About where the hole begins that ends at ``stop``; not before ``least``."""
    while stop - least > _PIECE:
        middle = (least + stop) // 2
        if data_from(fd, middle, stop) < stop:
            least = middle
        else:
            stop = middle
    return stop


def _stops(data: bytes) -> list[int]:
    """Where the end records in ``data`` stop, their comments included."""
    found, at = [], len(data)
    while (at := data.rfind(b"PK\5\6", 0, at)) >= 0:
        stop = at + END.size
        if stop <= len(data):
            stop += int.from_bytes(data[stop - 2 : stop], "little")
            found += [stop] * (stop <= len(data))
    return found


def _ending(fd: int, path: str, stop: int, before: Directory | None) -> Directory:
    """The directory whose end record, with the comment, ends at ``stop``."""
    reach = min(stop, _REACH)
    data, origin = read_bytes(fd, reach, stop - reach), stop - reach
    at = len(data)
    while (at := data.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + END.size <= len(data):
            _, disk, first, here, count, nbytes, start, more = END.unpack_from(data, at)
            if at + END.size + more == len(data):
                break
    else:
        raise Broken("it has no end record")
    comment, record, fixed = data[at + END.size :], origin + at, ""
    wide = os.pread(fd, LOCATOR.size, max(record - LOCATOR.size, 0))
    if len(wide) == LOCATOR.size and wide[:4] == b"PK\6\7" and record >= LOCATOR.size:
        record, values, fixed = _end64(fd, record - LOCATOR.size, wide)
        narrow = (disk, first, here, count, nbytes, start)
        full = (0xFFFF,) * 4 + (BIG,) * 2
        if any(n not in (most, v) for n, most, v in zip(narrow, full, values, strict=True)):
            raise Broken("its end records differ")
        disk, first, here, count, nbytes, start = values
    if disk or first or here != count:
        raise Unsupported(f"{path!r} is one part of a zip in several; join them first")
    place = record - nbytes
    if place < 0 or place - start < 0:
        raise Broken("its end record counts more bytes than there are")
    if nbytes > _MOST:
        raise Corrupt(
            f"the directory of {path!r} has {counted(nbytes, 'byte')}, more than the "
            f"{_MOST} it can have; "
            "use fewer and larger members"
        )
    base = place - start
    if base and os.pread(fd, 4, 0) == b"PK\3\4":
        raise Corrupt(
            f"{path!r} is a zip behind another, or its end record is damaged; take them apart"
        )
    entries = read_bytes(fd, nbytes, place)
    found = _entries(entries, base, path)
    if found is None or found[1] != len(entries) or len(found[0]) & 0xFFFF != count & 0xFFFF:
        raise Broken("its directory is not what its end record says")
    end = free(fd, place)
    return _compared(
        fd, found[0], end=end, start=place, stop=stop, base=base, comment=comment, fixed=fixed,
        before=before,
    )  # fmt: skip


def _end64(fd: int, at: int, wide: bytes) -> tuple[int, tuple[int, ...], str]:
    """Where the large end record begins, its numbers, and why the archive is not changed."""
    _, _, offset, parts = LOCATOR.unpack(wide)
    for place in (at - END64.size, offset):
        if not 0 <= place <= at - END64.size:
            continue
        data = os.pread(fd, END64.size, place)
        if len(data) == END64.size and data[:4] == b"PK\6\6":
            _, size, _, _, *values = END64.unpack(data)
            if place + 12 + size == at:
                more = "its end record has parts that only its maker knows" if size > 44 else ""
                return place, (max(values[0], parts - 1 if parts else 0), *values[1:]), more
    raise Broken("its end records are not where they say")


# -- what the directory says ----------------------------------------------------------


def _entries(data: bytes, base: int, path: str) -> tuple[list[Entry], int] | None:
    """The entries at the beginning of ``data``, and where they end."""
    found, at = [], 0
    while len(data) - at >= CENTRAL.size and data[at : at + 4] == b"PK\1\2":
        fixed = CENTRAL.unpack_from(data, at)
        flags, method, crc, stored, size = fixed[5], fixed[6], *fixed[9:12]
        middle = at + CENTRAL.size + fixed[12]
        stop = middle + fixed[13] + fixed[14]
        if stop > len(data):
            break
        if flags & 0x2000:
            raise Unsupported(f"the directory of {path!r} is encrypted; store it anew without")
        extra = data[middle : middle + fixed[13]]
        offset = fixed[18]
        if extra and BIG in (size, stored, offset):
            size, stored, offset = sizes64(extra, (size, stored, offset))
        name = data[at + CENTRAL.size : middle]
        if fixed[15] not in (0, 0xFFFF):
            return None
        found.append(
            Entry(offset + base, data[at:stop], name, flags, method, crc, stored, size, extra)
        )
        at = stop
    return found, at


def _compared(
    fd: int,
    entries: Sequence[Entry],
    *,
    end: int,
    start: int | None,
    stop: int,
    base: int,
    comment: bytes = b"",
    fixed: str = "",
    lost: str = "",
    cut: Mapping[str, str] | None = None,
    before: Directory | None,
) -> Directory:
    """The directory, each of its entries compared with the header before its member."""
    old = {} if before is None or before.base != base else before.members
    members: dict[str, Member] = {}
    others: list[Member] = []
    doubtful: dict[str, str] = {}
    odd: dict[str, bool] = {}
    clashes: list[str] = []
    ends = dict(_ends([entry.offset for entry in entries], end))
    live, damaged = base, ""
    for entry in entries:
        key, wrong = names.key_of(entry.name, entry.flags, entry.extra)
        member, other = old.get(key), ""
        if member is None or member.raw != entry.raw:
            begin, differs, other = _local(fd, entry)
            numbers = (entry.stored, entry.size, entry.crc)
            method = -1 if entry.flags & 1 else entry.method
            member = Member(key, entry.offset, begin, *numbers, method, entry.raw)
        else:
            differs = ""
        live += member.begin - entry.offset + entry.stored
        if not differs and member.begin + entry.stored > ends[entry.offset]:
            differs = "reaches into what follows it"
        if differs:
            damaged = damaged or f"{key!r} {differs}"
            if not other and member.begin == entry.offset:
                lost = lost or damaged  # whatever its name was
            doubtful[other] = f"is {key!r} in the directory, and another at the member"
        wrong = differs or wrong
        if key[-1:] in ("", "/") and not wrong:
            wrong = "has the name of a folder, and bytes" if entry.size else ""
        elif not wrong:
            if odd.setdefault(key, key.encode() != entry.name) != (key.encode() != entry.name):
                clashes.append(key)
            if key in members:
                others.append(members.pop(key))
            members[key] = member
            continue
        if wrong:
            doubtful[key.rstrip("/")] = wrong
        others.append(member)
    # A damaged entry says nothing of a name that another entry and its member agree on.
    doubtful = {name: why for name, why in doubtful.items() if name and name not in members}
    doubtful.update(cut or {})
    doubtful.update((key, "is stored under two names that mean the same") for key in clashes)
    for name in doubtful:
        if name in members:
            others.append(members.pop(name))
    return Directory(
        members, end, start, stop, others, base, comment, doubtful, lost, fixed or damaged, live
    )


def _ends(offsets: Sequence[int], end: int) -> Iterable[tuple[int, int]]:
    """For each offset the next one, at which a member there must have ended."""
    ordered = [*sorted(offsets), end]
    return pairwise(ordered)


def _local(fd: int, entry: Entry) -> tuple[int, str, str]:
    """Where the bytes of a member begin, how its header differs from its entry, and the name
    that it bears there."""
    # An offset of 2^62 and more is no place in a file.
    inside = 0 <= entry.offset < 1 << 62
    names_end = LOCAL.size + len(entry.name)
    head = os.pread(fd, names_end + len(entry.extra), entry.offset) if inside else b""
    if len(head) < LOCAL.size or head[:4] != b"PK\3\4":
        return entry.offset, "is not where the directory says", ""
    _, _, flags, method, _, _, crc, stored, size, length, more = LOCAL.unpack_from(head)
    begin = entry.offset + LOCAL.size + length + more
    raw, extra = head[LOCAL.size : names_end], head[names_end:][:more]
    if raw != entry.name or length != len(entry.name):
        head = read_bytes(fd, length + more, entry.offset + LOCAL.size)
        other = names.key_of(head[:length], flags, head[length:])[0].rstrip("/")
        return begin, _renamed(other), other
    if len(extra) < more:
        extra = read_bytes(fd, more, begin - more)
    if (extra or entry.extra) and not flags & entry.flags & names.UTF8:
        # An extra field may hold another spelling of the name, which counts.
        other = names.key_of(raw, flags, extra)[0]
        if other != names.key_of(entry.name, entry.flags, entry.extra)[0]:
            return begin, _renamed(other), other.rstrip("/")
    if more and BIG in (size, stored):
        size, stored = sizes64(extra, (size, stored))
    here, there = (crc, stored, size), (entry.crc, entry.stored, entry.size)
    if here != there:
        # The sizes of a streamed member stand behind it, and not in its header.
        blank = (0, BIG) if flags & 8 else ()
        pairs = zip(here, there, strict=True)
        if any(one != other and one not in blank for one, other in pairs):
            return begin, "has another size or checksum at the member", ""
    if method != entry.method or (flags ^ entry.flags) & 1:
        return begin, "has another method at the member", ""
    return begin, "", ""


def _renamed(other: str) -> str:
    return f"is {other[:200]!r} at the member, and not so in the directory"


def _recovered(fd: int, path: str, size: int, before: Directory | None) -> Directory:
    found = recover.walk(fd, size)
    if not found.entries and not found.cut:
        raise Invalid(
            f"{path!r} is not a zip, and is left as it is; give another path, or remove the file"
        )
    data = b"".join(found.entries)
    entries = _entries(data, 0, path)
    if entries is None:
        raise Corrupt(f"{path!r} is a damaged zip, without a directory; restore a copy")
    return _compared(
        fd, entries[0], end=found.end, start=None, stop=found.stop or size, base=0, before=before,
        lost=found.lost, fixed=found.fixed, cut=found.cut,
    )  # fmt: skip
