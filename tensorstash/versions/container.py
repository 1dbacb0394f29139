"""The envelope of pages and commits: what it is, of which repository, whole or damaged.

::

    TSTASHV  format u8  kind u8  repo 16 bytes  raw length u64  crc32c u32  zstd frame

All numbers are little-endian. The checksum is of all that stands before it and of the frame. The
first eight bytes mean the same in every format to come.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import google_crc32c
import zstandard

from ..driver import REPAIR, Buffer
from ..errors import Conflict, Corrupt, Invalid, Unsupported, counted

MAGIC = b"TSTASHV"
FORMAT = 1
LEVEL = 3
"""Of zstd. More saves nothing: what is left of references are random sizes."""

_HEADER = struct.Struct("<7sBB16sQ")
_CHECK = struct.Struct("<I")
_BEGIN = _HEADER.size + _CHECK.size
_FORMAT_AT = len(MAGIC)


class Kind(IntEnum):
    """What an object holds."""

    COMMIT = 1
    TREE = 2
    VALUE = 3
    REFS = 4
    CHANGES = 5
    DEAD = 6
    LOG = 7


def pack(kind: Kind, repo: bytes, raw: Buffer, most: int) -> bytes:
    """The object to store. Invalid for more than ``most`` bytes: nobody could read it again."""
    if len(raw) > most:
        raise Invalid(
            f"a {kind.name.lower()} page of {counted(len(raw), 'byte')} cannot be stored, the most "
            f"is {most}; commit less at once"
        )
    header = _HEADER.pack(MAGIC, FORMAT, kind, repo, len(raw))
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(raw)
    return b"".join((header, _CHECK.pack(_checksum(header, frame)), frame))


def kind_of(data: Buffer) -> int:
    """What kind of object ``data``, which :func:`pack` made, is."""
    return int(data[_FORMAT_AT + 1])


def packed_nbytes(raw: Buffer) -> int:
    """Bytes that :func:`pack` makes of ``raw``."""
    return _BEGIN + len(zstandard.ZstdCompressor(level=LEVEL).compress(raw))


def unpack(data: Buffer, kind: Kind, repo: bytes, what: str, most: int) -> bytes:
    """The raw bytes of a stored object.

    Args:
        data: what is stored.
        kind: what it must be.
        repo: the repository's 16 bytes.
        what: the object's key, for messages.
        most: bytes that it may have at most; no more is allocated, whatever it claims.

    Raises:
        Corrupt: it is damaged, cut short, too large, or of another kind.
        Conflict: it belongs to another repository.
        Unsupported: a newer version of tensorstash stored it.
    """
    if len(data) < _BEGIN:
        raise _corrupt(what, f"has {counted(len(data), 'byte')}, less than its header")
    header = bytes(data[: _HEADER.size])
    magic, form, found, owner, nbytes = _HEADER.unpack(header)
    if magic != MAGIC:
        raise _corrupt(what, "does not begin as what tensorstash stores")
    frame = bytes(data[_BEGIN:])
    (stored,) = _CHECK.unpack(data[_HEADER.size : _BEGIN])
    if form != FORMAT and stored != _checksum(_of_this_format(header), frame):
        raise Unsupported(
            f"{what} has format {form}, this version of tensorstash reads format {FORMAT}; use a "
            "newer tensorstash"
        )
    computed = _checksum(header, frame)
    if stored != computed:
        raise _corrupt(what, f"has checksum 0x{stored:08x}, its bytes 0x{computed:08x}")
    if owner != repo:
        raise Conflict(
            f"{what} belongs to repository {owner.hex()}, not to {repo.hex()}: the repository was "
            "made anew; open it again",
            key=what,
        )
    if found != kind:
        raise _corrupt(what, f"is of kind {found}, where {kind.name.lower()} ({kind}) must be")
    if nbytes > most:
        raise _corrupt(what, f"claims {counted(nbytes, 'byte')}, the most is {most}")
    try:
        # The frame says how much is allocated, so it is asked before.
        claimed = zstandard.frame_content_size(frame)
        if claimed != nbytes:
            raise _corrupt(what, f"claims {counted(nbytes, 'byte')}, its frame {claimed}")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _corrupt(what, f"cannot be decompressed ({error})") from error


def _of_this_format(header: bytes) -> bytes:
    """Whether a format is new or its byte was damaged, only the checksum tells."""
    return header[:_FORMAT_AT] + bytes((FORMAT,)) + header[_FORMAT_AT + 1 :]


def _checksum(header: bytes, frame: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(header), frame))


def _corrupt(what: str, why: str) -> Corrupt:
    return Corrupt(f"{what} {why}{REPAIR}", key=what)
