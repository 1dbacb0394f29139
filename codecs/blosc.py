"""Codec ``blosc``."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numcodecs import blosc

from tensorstash.codec import ANY, Buffer, BytesCodec, ChunkSpec, Codec, lenient, short, take
from tensorstash.codecs.streams import check_claim
from tensorstash.errors import Invalid, Unsupported, counted

# The engine runs codecs in threads of its own; zarr-python sets the same.
blosc.use_threads = False

_NAMES = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
_HEADER = struct.Struct("<4B3I")  # version, versionlz, flags, typesize; nbytes, blocksize, cbytes
_STORED = 2  # flag: the bytes are not compressed
_LEAST = 128  # bytes, of fewer Blosc compresses none
_SNAPPY = 2  # the format in a header's flags
_MOST: int = 2**31 - 1 - blosc.MAX_OVERHEAD


def _as_block(buffer: Buffer, stays: bool) -> bytes | memoryview:
    """The one block of a buffer, as it stands among others."""
    if not stays:
        return memoryview(buffer)[_HEADER.size + 4 :]
    data = memoryview(buffer)[_HEADER.size :]
    return b"".join((len(data).to_bytes(4, "little"), data))


@cache
def _compressors() -> tuple[str, ...]:
    return tuple(blosc.list_compressors())


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes; v2's numbers for ``shuffle`` are read too, and
    whatever reading does not need, which is all."""
    known = dict.fromkeys(("cname", "clevel", "shuffle", "typesize", "blocksize"), ANY)
    return lenient(Blosc, take(name, configuration, **known))


@dataclass(frozen=True, eq=False, repr=False)
class Blosc(BytesCodec):
    """Shuffles and compresses with Blosc 1 (Zarr v3 codec ``blosc``).

    ``cname`` is the compressor (``"blosclz"``, ``"lz4"``, ``"lz4hc"``, ``"zlib"``, ``"zstd"``),
    ``clevel`` 0 to 9, ``shuffle`` ``"noshuffle"``, ``"shuffle"`` or ``"bitshuffle"`` (or v2's
    0, 1, 2), ``blocksize`` in bytes with 0 for automatic. A missing ``typesize`` becomes the
    element's size when bound, and a missing ``shuffle`` (or -1) bits for one-byte elements and
    bytes for others, as zarr-python has it.
    """

    name: ClassVar[str] = "blosc"
    step: ClassVar[str | None] = "blosc"
    cname: str = "lz4"
    clevel: int = 5
    shuffle: str | int | None = None
    typesize: int | None = None
    blocksize: int = 0

    def __post_init__(self) -> None:
        if self.cname not in _NAMES:
            raise Invalid(f"codec 'blosc' cname {short(self.cname)} is none of {', '.join(_NAMES)}")
        if type(self.clevel) is not int or not 0 <= self.clevel <= 9:
            raise Invalid(
                f"codec 'blosc' clevel is an integer from 0 to 9, not {short(self.clevel)}"
            )
        if type(self.blocksize) is not int or not 0 <= self.blocksize <= _MOST:
            raise Invalid(f"codec 'blosc' blocksize cannot be {short(self.blocksize)} bytes")
        if self.typesize is not None and (type(self.typesize) is not int or self.typesize < 1):
            raise Invalid(
                f"codec 'blosc' typesize is a positive integer, not {short(self.typesize)}"
            )
        if type(self.shuffle) is int and -1 <= self.shuffle <= 2:
            object.__setattr__(self, "shuffle", (*_SHUFFLES, None)[self.shuffle])
        if self.shuffle is not None and self.shuffle not in _SHUFFLES:
            raise Invalid(
                f"codec 'blosc' shuffle {short(self.shuffle)} is none of {', '.join(_SHUFFLES)}"
            )

    def configuration(self) -> dict[str, Any]:
        """Every option that is known; all of them once bound."""
        options = {
            "cname": self.cname,
            "clevel": self.clevel,
            "shuffle": self.shuffle,
            "typesize": self.typesize,
            "blocksize": self.blocksize,
        }
        return {key: value for key, value in options.items() if value is not None}

    @property
    def unfit(self) -> str | None:
        """Also where this build of numcodecs has not the compressor; chunks name their own."""
        known = _compressors()
        if super().unfit is not None or self.cname in known:
            return super().unfit
        return (
            f"codec 'blosc' cname {self.cname!r} is not in this build of numcodecs, which has "
            f"{', '.join(known)}"
        )

    @property
    def capacity(self) -> int:
        """What Blosc's header can count."""
        return _MOST

    def bind(self, spec: ChunkSpec) -> Blosc:
        """With ``typesize`` and ``shuffle`` filled in for elements of ``spec.dtype``."""
        if spec.sized and (overfull := self.overfull(spec.nbytes)):
            raise Invalid(overfull)
        sized = not spec.dtype.hasobject and spec.dtype.kind != "T"
        # Blosc's header has one byte for it, and Blosc treats larger elements as bytes.
        natural = spec.dtype.itemsize if sized and 1 <= spec.dtype.itemsize <= 255 else 1
        size = self.typesize or natural
        shuffle = ("bitshuffle" if size == 1 else "shuffle") if self.shuffle is None else None
        return replace(self, typesize=size, shuffle=shuffle or self.shuffle)

    def encode(self, data: Buffer) -> Buffer:
        """One Blosc buffer."""
        if overfull := self.overfull(len(data)):
            raise Invalid(overfull)
        shuffle = blosc.AUTOSHUFFLE if self.shuffle is None else _SHUFFLES.index(str(self.shuffle))
        return blosc.compress(  # type: ignore[no-any-return]
            data, self.cname.encode(), self.clevel, shuffle, self.blocksize, self.typesize or 1
        )

    def encode_change(self, data: Buffer, before: Buffer, start: int, stop: int) -> Buffer | None:
        """Only the blocks that hold what changed are compressed, each as a buffer of its own.
        Where no block was, as they came to more than ``data``, and none of these can be, it stays
        so; where all were, theirs take the place of those before."""
        *head, flags, typesize, size, block, stored = _HEADER.unpack_from(before)
        if size != len(data) or stored != len(before) or not block or not start < stop <= size:
            return None
        count = -(-size // block)
        first, last = start // block, -(-stop // block)
        if typesize != (self.typesize or 1) or 2 * (last - first) > count:
            return None
        if last * block > size and (typesize > 1 or size % block < _LEAST):
            return None  # a last, shorter block is laid out differently
        view = memoryview(data)
        made = [self.encode(view[k * block : (k + 1) * block]) for k in range(first, last)]
        if any(_HEADER.unpack_from(each)[4] != _HEADER.unpack_from(each)[5] for each in made):
            return None
        stays = [bool(each[2] & _STORED) for each in made]
        if flags & _STORED:
            return b"".join((before[: _HEADER.size], data)) if all(stays) else None
        if any(each[2] | _STORED != flags | _STORED for each in made):
            return None
        if any(stays) and (typesize > 1 or self.shuffle != "noshuffle"):
            return None  # it would stay as it is shuffled
        starts = np.frombuffer(before, "<u4", count, _HEADER.size).astype(np.int64)
        ends = np.append(starts[1:], stored)
        begins_well = int(starts[0]) == _HEADER.size + 4 * count
        if not begins_well or not (starts < ends).all():
            return None  # blocks out of order: written by several threads
        pieces = [_as_block(*each) for each in zip(made, stays, strict=True)]
        lengths = ends - starts
        lengths[first:last] = [len(each) for each in pieces]
        total = int(starts[0] + lengths.sum())
        if total > size + blosc.MAX_OVERHEAD:
            return None
        table = starts[0] + np.append(0, np.cumsum(lengths[:-1]))
        low, high = int(starts[first]), int(ends[last - 1])
        header = _HEADER.pack(*head, flags, typesize, size, block, total)
        old = memoryview(before)
        body = (old[int(starts[0]) : low], *pieces, old[high:])
        return b"".join((header, table.astype("<u4").tobytes(), *body))

    def step_options(self, nbytes: int) -> tuple[int, ...] | None:
        """Compressor, level, shuffle, and the bytes of a block and of an element."""
        if self.shuffle is None:
            return None
        shuffle = _SHUFFLES.index(str(self.shuffle))
        return (
            _NAMES.index(self.cname),
            self.clevel,
            shuffle,
            self.blocksize,
            self.typesize or 1,
        )

    def decode(self, data: Buffer, limit: int, out: memoryview | None = None) -> Buffer:
        """What the buffer holds; its header is checked first, whatever the configuration."""
        if len(data) < _HEADER.size:
            raise ValueError(
                f"{counted(len(data), 'byte is', 'bytes are')} too few for a blosc header"
            )
        size, _, stored = _HEADER.unpack_from(data)[4:]
        if stored != len(data):
            raise ValueError(
                f"its blosc header claims {counted(stored, 'stored byte')}, there are {len(data)}"
            )
        check_claim(size, len(data), limit, out)
        if not size:
            return b"" if out is None else out
        flags = data[2]
        if flags >> 5 == _SNAPPY and not flags & _STORED and "snappy" not in _compressors():
            told = "the chunk is compressed with snappy, which this build of numcodecs has not"
            raise Unsupported(told) if self.cname == "snappy" else ValueError(told)
        target = np.empty(size, np.uint8).data if out is None else out
        try:
            blosc.decompress(data, target)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return target

    def decode_span(self, data: Buffer, limit: int, start: int, stop: int, out: memoryview) -> bool:
        """Blosc cuts its input into blocks that are compressed one by one: those that hold
        ``start:stop``, with a header of their own, are a Blosc buffer themselves."""
        if len(data) < _HEADER.size:
            return False
        *head, flags, typesize, size, block, stored = _HEADER.unpack_from(data)
        if stored != len(data) or size != len(out) or not block:
            return False
        count = -(-size // block)
        first, last = start // block, -(-stop // block)
        if first == count - 1 and size % block:
            first -= 1  # a last, shorter block is laid out differently and cannot stand alone
        if (
            first < 0
            or flags & _STORED
            or 2 * (last - first) > count
            or stored < _HEADER.size + 4 * count
        ):
            return False
        at = _HEADER.size + 4 * first
        wanted = last - first + (last < count)
        starts = [*struct.unpack_from(f"<{wanted}I", data, at), stored][: last - first + 1]
        if starts[0] < _HEADER.size + 4 * count or sorted(set(starts)) != starts:
            return False  # blocks out of order: written by several threads, or damaged
        if starts[-1] > stored:
            return False
        shift = _HEADER.size + 4 * (last - first) - starts[0]
        low, high = first * block, min(last * block, size)
        header = _HEADER.pack(*head, flags, typesize, high - low, block, starts[-1] + shift)
        table = struct.pack(f"<{last - first}I", *(at + shift for at in starts[:-1]))
        body = memoryview(data)[starts[0] : starts[-1]]
        try:
            self.decode(b"".join((header, table, body)), high - low, out[low:high])
        except ValueError:
            return False  # decoding all of it says what is wrong
        return True
