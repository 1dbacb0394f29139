"""Reading shards from afar: their indices first, all at once, then what lies in them."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import mul

import numpy as np
from numpy.typing import NDArray

from .cache import Cache
from .chunks import Chunks
from .driver import Buffer, Request, Span, Tag
from .errors import Conflict, Corrupt
from .fetch import RETRIES, runs
from .plan import Part, Plan
from .shard import BoundSharding
from .stats import Meter
from .stream import Arrival, Stream

_BATCH = 256  # shards whose indices are held at once
_WHOLE_BYTES = 64 << 20  # the largest shard (decoded) that is read in one piece

Index = NDArray[np.int64]


@dataclass
class _Shard:
    """One shard of a read: the parts wanted of it, and what is known of it so far."""

    place: tuple[int, ...]
    key: str
    parts: list[Part]
    tag: Tag = None
    entries: list[list[int]] = field(default_factory=list)
    ready: list[Arrival] = field(default_factory=list)
    """Arrivals that only wait for the version to be confirmed."""
    wanted: list[int] = field(default_factory=list)
    changed: bool = False


class ShardStream(Stream):
    """Inner chunks of shards. A shard whose index is not known costs one request for it, then
    one for every run of wanted chunks; one that is wanted whole comes in a single request. Every
    answer carries the shard's tag: one that changed meanwhile is read again, all of it."""

    def __init__(
        self,
        chunks: Chunks,
        cache: Cache | None,
        immutable: bool,
        meter: Meter,
        sharding: BoundSharding,
        indices: Cache,
    ) -> None:
        super().__init__(chunks, cache, immutable, meter)
        self.sharding = sharding
        self.indices = indices
        self._counts = chunks.grid.counts(chunks.spec.shape)

    def arrivals(self, todo: Plan) -> Generator[Arrival, None, None]:
        """See :meth:`Stream.arrivals`."""
        grid, key = self.sharding.grid, self.chunks.key
        shards = (_Shard(place, key(place), list(parts)) for place, parts in todo.shards(grid))
        while batch := list(islice(shards, _BATCH)):
            yield from self._batch(batch)

    def single(self, part: Part) -> Iterator[Arrival]:
        """See :meth:`Stream.single`."""
        pairs = list(map(divmod, part.chunk, self.sharding.grid))
        place = tuple(shard for shard, _ in pairs)
        local = Part(tuple(inner for _, inner in pairs), *part[1:])
        return self._batch([_Shard(place, self.chunks.key(place), [local])])

    def _batch(self, shards: list[_Shard]) -> Iterator[Arrival]:
        for _ in range(RETRIES):
            located = yield from self._locate(shards)
            yield from self._fetch(located)
            shards = [shard for shard in located if shard.changed]
            if not shards:
                return
        place, key = shards[0].place, shards[0].key
        raise Conflict(f"shard {place} at key {key!r} changes faster than it can be read", key=key)

    # -- where the chunks are -----------------------------------------------------------------

    def _locate(self, shards: list[_Shard]) -> Generator[Arrival, None, list[_Shard]]:
        """Answers the shards of which bytes are still to be fetched; yields what is known to be
        right without."""
        located: list[_Shard] = []
        asked: list[_Shard] = []
        requests: list[Request] = []
        for shard in shards:
            kept = self.indices.peek(shard.key)
            if kept is None:
                whole = self._is_whole(shard)
                requests.append(Request(shard.key, None if whole else self.sharding.index_span))
                asked.append(shard)
                continue
            self._adopt(shard, *kept)
            if shard.wanted:
                located.append(shard)  # the bytes come with their version
            elif self.immutable:
                yield from shard.ready
            else:
                requests.append(Request(shard.key, self.sharding.index_span, kept[0]))
                asked.append(shard)
        for i, found in self.chunks.driver.get_many_tagged(requests):
            shard, request = asked[i], requests[i]
            if found is None:
                self.indices.drop(shard.key)
                for part in shard.parts:
                    yield Arrival(part, shard.key, self._global(shard, part))
                continue
            data, tag = found
            if request.unless is not None and tag == request.unless:
                yield from shard.ready
            elif request.span is None:
                yield from self._split(shard, data, tag)
            else:
                self._adopt(shard, tag, self._index(shard, data, tag))
                if shard.wanted:
                    located.append(shard)
                else:
                    yield from shard.ready
        return located

    def _is_whole(self, shard: _Shard) -> bool:
        """Whether to fetch it in one piece: what is not wanted of it is no more than a gap that
        would be bridged anyhow."""
        sharding = self.sharding
        inside = (
            min(g, n - s * g)
            for g, n, s in zip(sharding.grid, self._counts, shard.place, strict=True)
        )
        unwanted = math.prod(inside) - len(shard.parts)
        gap = self.chunks.driver.capabilities.gap_bytes
        return unwanted * sharding.inner.spec.nbytes <= gap and sharding.spec.nbytes <= _WHOLE_BYTES

    def _index(self, shard: _Shard, data: Buffer, tag: Tag) -> Index:
        try:
            index = self.sharding.decode_index(data)
        except Corrupt as error:
            located = self.chunks.damaged(error, shard.key, shard.place, "shard")
            raise located from error.__cause__
        self.indices.put(shard.key, tag, index, index.nbytes)
        return index

    def _adopt(self, shard: _Shard, tag: Tag, index: Index) -> None:
        """Take ``index`` for the shard's: some parts are absent, some kept, some wanted."""
        strides, cache = self.sharding.strides, self.cache
        ids = [sum(map(mul, part.chunk, strides)) for part in shard.parts]
        shard.tag, shard.entries, shard.changed = tag, index[ids].tolist(), False
        shard.ready, shard.wanted = [], []
        for k, part in enumerate(shard.parts):
            chunk = None
            if shard.entries[k][1] >= 0:
                if cache is not None:
                    chunk = cache.get((shard.key, part.chunk), tag)
                if chunk is None:
                    shard.wanted.append(k)
                    continue
            shard.ready.append(Arrival(part, shard.key, self._global(shard, part), chunk))

    # -- their bytes --------------------------------------------------------------------------

    def _split(self, shard: _Shard, data: Buffer, tag: Tag) -> Iterator[Arrival]:
        """The chunks of a shard that came whole."""
        start, stop = self.sharding.index_span.resolve(len(data))
        index = self._index(shard, memoryview(data)[start:stop], tag)
        self._adopt(shard, tag, index)
        yield from shard.ready
        for k in shard.wanted:
            offset, size = shard.entries[k]
            yield self._arrival(shard, k, memoryview(data)[offset : offset + size])

    def _fetch(self, shards: list[_Shard]) -> Iterator[Arrival]:
        """The wanted bytes of located shards; those found changed are marked."""
        asked: list[tuple[_Shard, Span, list[int]]] = []
        gap = self.chunks.driver.capabilities.gap_bytes

        def requests() -> Iterator[Request]:
            for shard in shards:
                for spans, members in runs(shard.entries, shard.wanted, gap):
                    for span, inside in zip(spans, members, strict=True):
                        asked.append((shard, span, inside))
                        yield Request(shard.key, span)

        for i, found in self.chunks.driver.get_many_tagged(requests()):
            shard, span, inside = asked[i]
            if found is None or found[1] != shard.tag:
                shard.changed = True
                self.indices.drop(shard.key)
                continue
            ready, shard.ready = shard.ready, []
            yield from ready
            view = memoryview(found[0])
            for k in inside:
                offset, size = shard.entries[k]
                at = offset - span.start
                yield self._arrival(shard, k, view[at : at + size])

    def _arrival(self, shard: _Shard, k: int, data: Buffer) -> Arrival:
        part = shard.parts[k]
        place, name = self._global(shard, part), (shard.key, part.chunk)
        inner = self.sharding.inner
        return Arrival(part, shard.key, place, None, data, inner, name, shard.tag)

    def _global(self, shard: _Shard, part: Part) -> tuple[int, ...]:
        """The inner chunk's index in the whole array."""
        places = zip(shard.place, self.sharding.grid, part.chunk, strict=True)
        return tuple(s * g + c for s, g, c in places)
