"""The zip format as far as a dataset needs it: members one after the other, a directory behind."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_UTF8 = 0x800
_EPOCH = 33  # 1 January 1980: members carry no time of their own
_BIG = 0xFFFFFFFF
LARGEST = _BIG - 1
"""Bytes of a value, at most."""


@dataclass(frozen=True, slots=True)
class Member:
    """A value in the archive: where its local header begins, and what the directory says."""

    name: str
    offset: int
    stored: int
    size: int
    crc: int
    method: int

    def local(self) -> bytes:
        """The header before its bytes."""
        name = self.name.encode()
        sizes = (self.crc, self.stored, self.size, len(name), 0)
        return _LOCAL.pack(b"PK\3\4", 20, _UTF8, self.method, 0, _EPOCH, *sizes) + name

    def central(self) -> bytes:
        """Its entry in the directory."""
        name, extra, offset = self.name.encode(), b"", self.offset
        if offset >= _BIG:
            extra, offset = struct.pack("<HHQ", 1, 8, offset), _BIG
        version = 45 if extra else 20
        head = (b"PK\1\2", version, 3, version, 0, _UTF8, self.method, 0, _EPOCH)
        sizes = (self.crc, self.stored, self.size, len(name), len(extra), 0, 0, 0)
        return _CENTRAL.pack(*head, *sizes, 0o644 << 16, offset) + name + extra


@dataclass(frozen=True, slots=True)
class Directory:
    """What an archive holds, as of one state of its file."""

    members: Mapping[str, Member]
    end: int
    """Where the last member ends: the next one goes there."""
    whole: bool = True
    """Not recovered from a file whose directory was lost."""


def read(fd: int) -> Directory:
    """The directory of an open archive; where it was lost, what can be found of the members."""
    if os.fstat(fd).st_size == 0:
        return Directory({}, 0)
    try:
        with io.FileIO(fd, closefd=False) as raw, zipfile.ZipFile(raw) as archive:
            members = {
                entry.filename: Member(
                    entry.filename,
                    entry.header_offset,
                    entry.compress_size,
                    entry.file_size,
                    entry.CRC,
                    entry.compress_type if not entry.flag_bits & 1 else -1,
                )
                for entry in archive.infolist()
                if not entry.is_dir()
            }
            return Directory(members, archive.start_dir)
    except zipfile.BadZipFile:
        return _recovered(fd)


def tail(members: Mapping[str, Member], at: int) -> bytes:
    """The directory of ``members`` and its end records, to stand at ``at``."""
    entries = b"".join(member.central() for member in members.values())
    count, size = len(members), len(entries)
    extra = b""
    if count >= 0xFFFF or at + size >= _BIG:
        extra = _END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, at)
        extra += _LOCATOR.pack(b"PK\6\7", 0, at + size, 1)
    few, start = min(count, 0xFFFF), min(at, _BIG)
    return entries + extra + _END.pack(b"PK\5\6", 0, 0, few, few, min(size, _BIG), start, 0)


def begins(fd: int, member: Member) -> int:
    """Where the bytes of a member begin."""
    head = os.pread(fd, _LOCAL.size, member.offset)
    if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(member.name)
    name, extra = _LOCAL.unpack(head)[-2:]
    return int(member.offset + _LOCAL.size + name + extra)


def _recovered(fd: int) -> Directory:
    """Members from the beginning as long as each is whole by its checksum."""
    members: dict[str, Member] = {}
    at = 0
    while len(head := os.pread(fd, _LOCAL.size, at)) == _LOCAL.size and head[:4] == b"PK\3\4":
        _, _, flags, method, _, _, crc, stored, size, name_size, extra = _LOCAL.unpack(head)
        name = os.pread(fd, name_size, at + _LOCAL.size)
        begin = at + _LOCAL.size + name_size + extra
        data = os.pread(fd, stored, begin)
        if flags & 8 or len(data) < stored:
            break
        with_crc = data if method == 0 else zlib.decompressobj(-15).decompress(data)
        if zlib.crc32(with_crc) != crc:
            break
        text = name.decode(errors="replace")
        members[text] = Member(text, at, stored, size, crc, method)
        at = begin + stored
    return Directory(members, at, whole=False)
