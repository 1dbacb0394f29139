"""Shards: many inner chunks in one stored object, found by an index inside it.

Zarr v3 codec ``sharding_indexed``, version 1.0. The index is a uint64 array of
``chunks_per_shard + (2,)``: offset and size of each inner chunk from the start of the shard,
both 2^64-1 for an absent one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import add, mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cached import Cached
from .codec import ChunkSpec, Codec, Pipeline, Serializer, split
from .driver import Buffer, Span
from .errors import Corrupt, Invalid, StashError, Unsupported, counted, short
from .fill import is_fill
from .limits import HUGE, INDEX, SHARD_CHUNKS, SLACK
from .registry import make_codec, parse_codecs

_EMPTY = (1 << 64) - 1
_INDEX_DTYPE = np.dtype("uint64")
_EXACT = frozenset(("bytes", "crc32c", "transpose", "reshape"))
_PROBE = (2**64 - 1, 0, 1, 2**63 + 12345, 4097, 255, 2**53 + 1)
"""Numbers of an index, among them the mark of an absent chunk."""


class Sharding(Serializer):
    """Inner chunks of ``chunk_shape``, each through ``codecs``, behind an index that goes
    through ``index_codecs`` (which must keep its size fixed) at the shard's end or start."""

    name = "sharding_indexed"

    def __init__(
        self,
        chunk_shape: Sequence[int],
        codecs: Sequence[Codec],
        index_codecs: Sequence[Codec] | None = None,
        index_location: str = "end",
    ) -> None:
        self.chunk_shape = tuple(int(n) for n in chunk_shape)
        self.codecs = tuple(codecs)
        self.index_codecs = tuple(
            (make_codec("bytes", {"endian": "little"}), make_codec("crc32c"))
            if index_codecs is None
            else index_codecs
        )
        if index_location not in ("start", "end"):
            raise Invalid(f"index_location is 'start' or 'end', not {short(index_location)}")
        if any(n < 1 for n in self.chunk_shape):
            raise Invalid(f"inner chunk shape {self.chunk_shape} has an edge below 1")
        _check_fixed(self.index_codecs)
        self.index_location = index_location

    def configuration(self) -> dict[str, Any]:
        """As in the specification, every key written."""
        return {
            "chunk_shape": list(self.chunk_shape),
            "codecs": [codec.document() for codec in self.codecs],
            "index_codecs": [codec.document() for codec in self.index_codecs],
            "index_location": self.index_location,
        }

    def bind(self, spec: ChunkSpec) -> BoundSharding:
        """The layout of shards like ``spec``."""
        return BoundSharding(self, spec)

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """Only a bound layout encodes."""
        fill = np.zeros((), chunk.dtype)
        return self.bind(ChunkSpec(chunk.shape, chunk.dtype, fill)).encode(chunk)

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """A whole shard."""
        return self.bind(spec).decode(data, spec)


class BoundSharding(Sharding):
    """Sharding of shards of one shape and dtype: ``grid`` inner chunks a shard, through the
    pipeline ``inner``, behind an index of ``index_nbytes``. ``most``: bytes that a shard can
    have."""

    def __init__(self, sharding: Sharding, spec: ChunkSpec) -> None:
        super().__init__(
            sharding.chunk_shape,
            sharding.codecs,
            sharding.index_codecs,
            sharding.index_location,
        )
        fits = len(spec.shape) == len(self.chunk_shape) and not any(
            n % c for n, c in zip(spec.shape, self.chunk_shape, strict=True)
        )
        if not fits:
            raise Invalid(
                f"inner chunks {self.chunk_shape} do not divide the shard shape {spec.shape}"
            )
        self.spec = spec
        self.inner = Pipeline(self.codecs, replace(spec, shape=self.chunk_shape))
        self.codecs = self.inner.codecs
        self.grid = tuple(n // c for n, c in zip(spec.shape, self.chunk_shape, strict=True))
        self.count = math.prod(self.grid)
        index = _index_spec(self.grid)
        if index.nbytes > INDEX:
            raise Unsupported(
                f"a shard of {counted(self.count, 'inner chunk')} has an index of "
                f"{counted(index.nbytes, 'byte')}; the "
                f"most is {INDEX}, larger inner chunks need less"
            )
        self._index = Pipeline(self.index_codecs, index)
        if self._index.nbytes is None:
            raise _not_fixed(self.index_codecs)
        _check_exact(self._index)
        self.index_nbytes = self._index.nbytes
        # Writers may leave holes, of chunks that were replaced.
        chunks = 2 * self.count if self.inner.sized else SHARD_CHUNKS
        self.most = min(self.index_nbytes + chunks * self.inner.most + SLACK, HUGE)
        self.strides = tuple(math.prod(self.grid[k + 1 :]) for k in range(len(self.grid)))

    @Cached
    def index_steps(self) -> tuple[str, ...] | None:
        """What is done to an index that is stored as little-endian numbers in their order: its
        checksum, or nothing; ``None`` where it is stored otherwise."""
        first, *rest = self._index.codecs
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        names = tuple(codec.name for codec in rest)
        return names if first.document() == little and names in ((), ("crc32c",)) else None

    def overfull(self, spec: ChunkSpec) -> str | None:
        """What the inner chunks' codecs say."""
        return self.inner.unfit

    def positions(self, places: Iterable[Sequence[int]]) -> list[int]:
        """Where in the index the inner chunks at these places in a shard stand."""
        return [sum(map(mul, place, self.strides)) for place in places]

    def inner_index(self, shard: Sequence[int], place: Sequence[int]) -> tuple[int, ...]:
        """An inner chunk's index in the whole array, from its shard's and its place there."""
        return tuple(map(add, map(mul, shard, self.grid), place))

    @property
    def index_span(self) -> Span:
        """Where in a shard its index stands."""
        return (
            Span(-self.index_nbytes) if self.index_location == "end" else Span(0, self.index_nbytes)
        )

    def decode_index(self, data: Buffer) -> NDArray[np.int64]:
        """The index as ``(count, 2)`` offsets and sizes; absent chunks have size -1."""
        if len(data) != self.index_nbytes:
            raise Corrupt(
                f"a shard index of {counted(self.index_nbytes, 'byte')} was expected, "
                f"{len(data)} are there",
                codec=self.name,
            )
        entries = self._index.decode(data).reshape(self.count, 2)
        absent = (entries == _EMPTY).all(axis=1)
        if bool((entries[~absent] >= 1 << 62).any()):
            raise Corrupt("the shard index points beyond any file", codec=self.name)
        limit = self.inner.most
        if bool((entries[~absent, 1] > limit).any()):
            raise Corrupt(
                f"the shard index claims an inner chunk of more than "
                f"{counted(limit, 'byte')}, the most "
                "that one can have",
                codec=self.name,
            )
        result = entries.astype(np.int64)
        result[absent] = (0, -1)
        return result

    def split(self, data: Buffer) -> list[Buffer | None]:
        """The encoded inner chunks of a whole shard, in index order."""
        view = memoryview(data)
        start, stop = self.index_span.resolve(len(view))
        index = self.decode_index(view[start:stop]).tolist()
        return [self._slice(view, offset, size) for offset, size in index]

    def part(self, data: Buffer, position: int) -> Buffer | None:
        """One encoded inner chunk of a whole shard, by its place in the index."""
        view = memoryview(data)
        start, stop = self.index_span.resolve(len(view))
        offset, size = self.decode_index(view[start:stop])[position].tolist()
        return self._slice(view, offset, size)

    def _slice(self, shard: memoryview, offset: int, size: int) -> Buffer | None:
        if size < 0:
            return None
        if offset + size > len(shard):
            raise Corrupt(
                f"the shard index points at bytes {offset}:{offset + size} of {len(shard)}",
                codec=self.name,
            )
        return shard[offset : offset + size]

    def join(self, parts: Sequence[Buffer | None]) -> Buffer | None:
        """The shard that holds ``parts`` (index order); ``None`` when all are absent, for such
        a shard is not stored."""
        if all(part is None for part in parts):
            return None
        size = sum(len(part) for part in parts if part is not None)
        if size > self.most:
            raise Invalid(
                f"a shard of {counted(size, 'byte')}, the most that is read of one is "
                f"{self.most}; use "
                'smaller shards, or open it with limits={"chunk": ...}, wherever it is read too'
            )
        index = self._encode_index(parts)
        body = [part for part in parts if part is not None]
        return b"".join([index, *body] if self.index_location == "start" else [*body, index])

    def _encode_index(self, parts: Sequence[Buffer | None]) -> Buffer:
        return self.encode_index(np.array([-1 if part is None else len(part) for part in parts]))

    @property
    def body_at(self) -> int:
        """Where in a shard its first inner chunk stands."""
        return self.index_nbytes if self.index_location == "start" else 0

    def encode_index(self, sizes: NDArray[np.int64]) -> Buffer:
        """The index of inner chunks of ``sizes`` (-1: absent) one behind the other."""
        entries = np.full((self.count, 2), _EMPTY, dtype="uint64")
        there = sizes >= 0
        stored = sizes[there]
        entries[there, 0] = self.body_at + np.cumsum(stored) - stored
        entries[there, 1] = stored
        return self._index.encode(entries.reshape(*self.grid, 2))

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """A whole shard; inner chunks that are all fill are left out."""
        parts = [self.encode_inner(piece) for piece in self.pieces(chunk)]
        shard = self.join(parts)
        return self.empty() if shard is None else shard

    def empty(self) -> Buffer:
        """A shard without chunks. Stored only where absence cannot say it: inside another
        shard or codec, or under a condition."""
        return self._encode_index([None] * self.count)

    def encode_inner(self, piece: NDArray[Any]) -> Buffer | None:
        """One inner chunk; ``None`` when it is nothing but fill."""
        return None if is_fill(piece, self.spec.fill) else self.inner.encode(piece)

    def encoded_limit(self, spec: ChunkSpec) -> int | None:
        """As :attr:`most`, where elements have a size."""
        return self.most if self.inner.sized else None

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """A whole shard as one array."""
        result = np.empty(self.spec.shape, self.spec.dtype)
        for piece, part in zip(self.pieces(result), self.split(data), strict=True):
            piece[...] = self.spec.fill if part is None else self.inner.decode(part)
        return result

    def pieces(self, chunk: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Views of the inner chunks of a whole shard, in index order."""
        for index in np.ndindex(*self.grid):
            starts = [i * n for i, n in zip(index, self.chunk_shape, strict=True)]
            where = [slice(a, a + n) for a, n in zip(starts, self.chunk_shape, strict=True)]
            index_of: tuple[Any, ...] = (*where, ...)
            yield chunk[index_of]


def _index_spec(grid: Sequence[int]) -> ChunkSpec:
    return ChunkSpec((*grid, 2), _INDEX_DTYPE, np.zeros((), _INDEX_DTYPE))


def _check_fixed(index_codecs: Sequence[Codec]) -> None:
    """An index must be found without being read: its codecs encode to a size that follows from
    the number of chunks alone (Zarr v3 codec ``sharding_indexed``, "Index")."""
    _, serializer, tail = split(index_codecs)
    size = serializer.encoded_nbytes(_index_spec((1,)))
    if size is None or any(step.encoded_nbytes(size) is None for step in tail):
        raise _not_fixed(index_codecs)


def _check_exact(index: Pipeline) -> None:
    """Offsets and the mark of an absent chunk must come back to the bit, as from codecs that round,
    cast or leave out bits they do not."""
    if all(codec.name in _EXACT for codec in index.codecs):
        return
    numbers = np.array(_PROBE, _INDEX_DTYPE)
    turns = range(len(numbers) if index.spec.count < len(numbers) else 1)
    probes = [np.resize(np.roll(numbers, turn), index.spec.shape) for turn in turns]
    try:
        kept = all(np.array_equal(index.decode(index.encode(probe)), probe) for probe in probes)
    except StashError:
        kept = False
    if not kept:
        names = ", ".join(codec.name for codec in index.codecs)
        raise Invalid(f"index_codecs must keep every number of 64 bits, which {names} do not")


def _not_fixed(index_codecs: Sequence[Codec]) -> Invalid:
    names = ", ".join(codec.name for codec in index_codecs)
    return Invalid(f"index_codecs must encode to a fixed size: bytes, crc32c; not {names}")


def make(name: str, configuration: Mapping[str, Any]) -> Sharding:
    """From the ``configuration`` of a metadata document."""
    known = ("chunk_shape", "codecs", "index_codecs", "index_location")
    for key in configuration:
        if key not in known:
            raise Invalid(f"codec {name!r} has no option {short(key)}; it takes {', '.join(known)}")
    shape = configuration.get("chunk_shape")
    if not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise Invalid(f"codec {name!r} needs a chunk_shape, a list of integers, not {short(shape)}")
    index = configuration.get("index_codecs")
    return Sharding(
        shape,
        parse_codecs(configuration.get("codecs")),
        None if index is None else parse_codecs(index),
        configuration.get("index_location", "end"),
    )
