"""Reading shards of a remote store: their indices first, all at once, then what lies in them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..driver import Buffer, Request, Span, Tag
from ..errors import Conflict, Corrupt
from ..indexing.copying import byte_range
from ..indexing.plan import Part, Plan
from ..sharding import BoundSharding
from ..threads import begin
from .caching.cache import Cache
from .chunks import Chunks
from .local import RETRIES, runs
from .look import Look, answers
from .remote import SPLIT_FROM, Arrival, Stream, with_place
from .stats import Meter

_LEAST = 16  # shards whose indices are asked for together, at least
_INDEX_GAPS = 4  # gaps that are worth a round trip of its own
_WHOLE_BYTES = 64 << 20  # the largest shard (decoded) that is read in one piece

Index = NDArray[np.int64]


@dataclass
class _Shard:
    """One shard of a read: the parts wanted of it, and what is known of it so far."""

    place: tuple[int, ...]
    key: str
    parts: list[Part]
    in_part: bool = False
    """Of an inner chunk that is not compressed only what is wanted is asked for."""

    def start(self) -> None:
        """Nothing is known."""
        self.tag: Tag = None
        self.whole = False
        """It is asked for in one piece, and no index before."""
        self.entries: list[list[int]] = []
        self.spans: dict[int, tuple[int, int]] = {}
        """Of which bytes of its chunk an entry is, where that is not all of them."""
        self.ready: list[tuple[int, NDArray[Any] | None]] = []
        """Parts that need no bytes, with the chunk that is kept of each, if there is one."""
        self.wanted: list[int] = []
        self.confirmed = False
        """What is known is of the stored version."""
        self.changed = False

    def absent(self) -> None:
        """It is not stored."""
        self.ready = [(k, None) for k in range(len(self.parts))]
        self.wanted = []


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
        inner = sharding.inner
        self._in_part = cache is None and inner.raw and inner.spec.nbytes > SPLIT_FROM

    def arrivals(self, todo: Plan, look: Look | None = None) -> Generator[Arrival, None, None]:
        """See :meth:`Stream.arrivals`. While the chunks of some shards come in, the indices of the
        next are asked for."""
        grid, key = self.sharding.grid, self.chunks.key
        in_part = self._in_part and not todo.joint
        shards = (
            _Shard(place, key(place), list(parts), in_part) for place, parts in todo.shards(grid)
        )
        size = max(_LEAST, self.chunks.driver.capabilities.concurrency)
        batches = iter(lambda: list(islice(shards, size)), [])
        batch, following = next(batches, []), next(batches, [])
        self._locate(batch, None if following else look)
        while batch:
            ahead = begin(partial(self._locate, following)) if following else None
            try:
                yield from self._fetch(batch, None if following else look)
            finally:
                if ahead is not None:
                    ahead()
            batch, following = following, next(batches, [])

    def single(self, part: Part, look: Look | None = None) -> Generator[Arrival, None, None]:
        """See :meth:`Stream.single`."""
        pairs = list(map(divmod, part.chunk, self.sharding.grid))
        place = tuple(shard for shard, _ in pairs)
        local = Part(tuple(inner for _, inner in pairs), *part[1:])
        shard = _Shard(place, self.chunks.key(place), [local], self._in_part)
        with self.indices.flight(shard.key):  # of threads in one shard, the first asks
            self._locate([shard], look)
        yield from self._fetch([shard], look)

    # -- where the chunks are -----------------------------------------------------------------

    def _locate(self, shards: list[_Shard], look: Look | None = None) -> None:
        """Find out which bytes of each shard are wanted; of one that comes whole, all. ``look``
        travels along where no bytes will be."""
        asked: list[_Shard] = []
        requests: list[Request] = []
        span = self.sharding.index_span
        for shard in shards:
            shard.start()
            kept = self.indices.peek(shard.key)
            if kept is not None:
                self._adopt(shard, *kept)
                shard.confirmed = self.immutable
                if shard.wanted or self.immutable:
                    continue  # the bytes come with their version
            elif self._is_whole(shard):
                shard.whole = True
                continue
            requests.append(Request(shard.key, span, None if kept is None else kept[0]))
            asked.append(shard)
        # Absent and kept chunks need nothing more; what is to be fetched takes the look along.
        idle = requests and not any(shard.whole or shard.wanted for shard in shards)
        for i, found in answers(self.chunks.driver, requests, look if idle else None):
            shard = asked[i]
            if found is None:
                self.indices.drop(shard.key)
                shard.absent()
            elif requests[i].unless is None or found[1] != requests[i].unless:
                self._adopt(shard, found[1], self._index(shard, *found))
            shard.confirmed = True

    def _is_whole(self, shard: _Shard) -> bool:
        """Whether to fetch it in one piece: what is not wanted of it takes no longer to come than a
        request for its index, which must be answered before the next is sent."""
        sharding = self.sharding
        inside = (
            min(g, n - s * g)
            for g, n, s in zip(sharding.grid, self._counts, shard.place, strict=True)
        )
        unwanted = math.prod(inside) - len(shard.parts)
        gap = _INDEX_GAPS * self.chunks.driver.capabilities.gap_bytes
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
        cache = self.cache
        ids = self.sharding.positions(part.chunk for part in shard.parts)
        shard.tag, shard.entries = tag, index[ids].tolist()
        shard.ready, shard.wanted, shard.spans = [], [], {}
        for k, part in enumerate(shard.parts):
            chunk = None
            if shard.entries[k][1] >= 0:
                if cache is not None:
                    chunk = cache.get((shard.key, part.chunk), tag)
                if chunk is None:
                    shard.wanted.append(k)
                    if shard.in_part:
                        self._narrow(shard, k)
                    continue
            shard.ready.append((k, chunk))

    def _narrow(self, shard: _Shard, k: int) -> None:
        """Want no more of an inner chunk than from its first wanted byte to its last."""
        spec, (offset, size) = self.sharding.inner.spec, shard.entries[k]
        span = byte_range(shard.parts[k].inside, spec) if size == spec.nbytes else None
        if span is not None:  # another size: its decoder says what is wrong
            shard.entries[k] = [offset + span[0], span[1] - span[0]]
            shard.spans[k] = span

    # -- their bytes --------------------------------------------------------------------------

    def _fetch(self, shards: list[_Shard], look: Look | None) -> Iterator[Arrival]:
        """All arrivals of located shards, those that change meanwhile located again."""
        for _ in range(RETRIES):
            yield from self._fetch_once(shards, look)
            shards = [shard for shard in shards if shard.changed]
            if not shards:
                return
            if look is not None:
                look.again()
            self._locate(shards)
        place, key = shards[0].place, shards[0].key
        raise Conflict(f"shard {place} at key {key!r} changes faster than it can be read", key=key)

    def _fetch_once(self, shards: list[_Shard], look: Look | None) -> Iterator[Arrival]:
        asked: dict[int, tuple[_Shard, Span | None, list[int]]] = {}
        gap = self.chunks.driver.capabilities.gap_bytes
        count = itertools.count()

        def requests() -> Iterator[Request]:
            for shard in shards:
                if shard.whole:
                    asked[next(count)] = shard, None, []
                    yield Request(shard.key, most=self.sharding.most)
                    continue
                for spans, members in runs(shard.entries, shard.wanted, gap):
                    for span, inside in zip(spans, members, strict=True):
                        asked[next(count)] = shard, span, inside
                        yield Request(shard.key, span)

        for shard in shards:
            if shard.confirmed:
                yield from self._ready(shard)
        for i, found in with_place(self.chunks, answers(self.chunks.driver, requests(), look)):
            shard, span, inside = asked.pop(i)
            if span is None:
                yield from self._split(shard, found)
                continue
            if found is None or found[1] != shard.tag:
                shard.changed = True
                self.indices.drop(shard.key)
                continue
            yield from self._ready(shard)
            view = memoryview(found[0])
            for k in inside:
                offset, size = shard.entries[k]
                at = offset - span.start
                yield self._arrival(shard, k, view[at : at + size])

    def _ready(self, shard: _Shard) -> Iterator[Arrival]:
        """What needs no bytes, once: absent parts and kept ones."""
        ready, shard.ready = shard.ready, []
        for k, chunk in ready:
            part = shard.parts[k]
            yield Arrival(
                part, shard.key, self.sharding.inner_index(shard.place, part.chunk), chunk
            )

    def _split(self, shard: _Shard, found: tuple[Buffer, Tag] | None) -> Iterator[Arrival]:
        """The chunks of a shard that was asked for whole."""
        if found is None:
            shard.absent()
        else:
            view = memoryview(found[0])
            start, stop = self.sharding.index_span.resolve(len(view))
            self._adopt(shard, found[1], self._index(shard, view[start:stop], found[1]))
        yield from self._ready(shard)
        for k in shard.wanted:
            offset, size = shard.entries[k]
            yield self._arrival(shard, k, view[offset : offset + size])

    def _arrival(self, shard: _Shard, k: int, data: Buffer) -> Arrival:
        part = shard.parts[k]
        place, name = self.sharding.inner_index(shard.place, part.chunk), (shard.key, part.chunk)
        inner = self.sharding.inner
        span = shard.spans.get(k)
        if span is not None and len(data) != span[1] - span[0]:
            span = None  # it ends early, as its decoder says
        return Arrival(part, shard.key, place, None, data, inner, name, shard.tag, span)
