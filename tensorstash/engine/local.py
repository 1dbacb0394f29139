"""From stored bytes to decoded chunks: one fetcher for plain chunks, one for shards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..codec import Pipeline
from ..driver import Buffer, Changed, Request, Span, Tag, get_at_most
from ..errors import Conflict, Corrupt, counted
from ..indexing.plan import Part, Plan
from ..sharding import BoundSharding
from .caching.cache import Cache
from .chunks import Chunks, empty
from .stats import Meter

Memory: TypeAlias = tuple[NDArray[Any] | None, memoryview | None, tuple[int, int] | None]
"""An array for a decoded chunk, its bytes, and which of them are wanted (``None``: all)."""

Target: TypeAlias = Callable[[Part], Memory]
"""Memory for a part's decoded chunk; nothing but ``None`` to let the codec choose."""

Fetched: TypeAlias = tuple[Part, NDArray[Any] | None]
"""A part with its decoded chunk, which is valid until the next one is asked for."""

_RUN_BYTES = 16 << 20  # the most bytes of one shard held at once
_BLOCK = 1024  # the most parts in a block
RETRIES = 100


class Fetcher(ABC):
    """Decoded chunks for the parts of a plan, each fetched and decoded once.

    Parts come in blocks, which threads may share out. Where there is a cache, :meth:`kept`
    answers what it can from a block, and :meth:`fetch` puts what it decodes of the rest into
    the cache. ``immutable``: what is kept is not compared with the stored version.
    """

    def __init__(self, chunks: Chunks, cache: Cache | None, immutable: bool, meter: Meter) -> None:
        self.chunks = chunks
        self.cache = cache
        self.immutable = immutable
        self.meter = meter

    @abstractmethod
    def blocks(self, plan: Plan, pieces: int) -> Iterator[Any]:
        """The plan's parts in about ``pieces`` blocks or more."""

    @abstractmethod
    def block(self, part: Part) -> Any:
        """A block of one part."""

    @abstractmethod
    def only(self, blocks: Iterator[Any], left: set[tuple[int, ...]]) -> Iterator[Any]:
        """Of blocks, the parts of those chunks (by their index in the array)."""

    @abstractmethod
    def cut(self, block: Any, pieces: int) -> Iterator[Any]:
        """A block in about ``pieces`` smaller ones."""

    @abstractmethod
    def kept(self, block: Any, cache: Cache) -> tuple[list[Fetched], Any | None]:
        """The parts that need no decoding, and a block of the others."""

    @abstractmethod
    def fetch(self, block: Any, target: Target) -> Iterator[Fetched]:
        """Every part of a block with its chunk; ``None`` where nothing is stored."""


def owned(pipeline: Pipeline, data: Buffer) -> NDArray[Any]:
    """A decoded chunk in read-only memory of its own, to be kept."""
    if pipeline.direct and pipeline.ordered:
        memory = empty(pipeline.spec)
        chunk = pipeline.decode(data, memory, memory.reshape(-1).view(np.uint8).data)
    else:
        chunk = pipeline.decode(data)
    if chunk.base is not None:
        chunk = chunk.copy()
    chunk.flags.writeable = False
    return chunk


class ChunkFetcher(Fetcher):
    """Chunks that are stored one an object."""

    def blocks(self, plan: Plan, pieces: int) -> Iterator[list[Part]]:
        """Runs of parts."""
        return _cut(plan.parts(), len(plan), pieces)

    def block(self, part: Part) -> list[Part]:
        """See :meth:`Fetcher.block`."""
        return [part]

    def only(
        self, blocks: Iterator[list[Part]], left: set[tuple[int, ...]]
    ) -> Iterator[list[Part]]:
        """See :meth:`Fetcher.only`."""
        found = ([part for part in block if part.chunk in left] for block in blocks)
        return filter(None, found)

    def cut(self, block: list[Part], pieces: int) -> Iterator[list[Part]]:
        """See :meth:`Fetcher.cut`."""
        return _cut(iter(block), len(block), pieces)

    def kept(self, block: list[Part], cache: Cache) -> tuple[list[Fetched], list[Part] | None]:
        """See :meth:`Fetcher.kept`."""
        chunks = self.chunks
        key, tag_of, immutable = chunks.key, chunks.driver.tag, self.immutable
        found: list[Fetched] = []
        rest: list[Part] = []
        for part in block:
            name = key(part.chunk)
            if immutable:
                held = cache.peek(name)
                chunk = None if held is None else held[1]
            else:
                tag = tag_of(name)
                if tag is None:
                    chunks.absent(name, part.chunk)
                    found.append((part, None))
                    continue
                chunk = cache.get(name, tag)
            if chunk is None:
                rest.append(part)
            else:
                found.append((part, chunk))
                self.meter.hit()
        return found, rest or None

    def fetch(self, block: list[Part], target: Target) -> Iterator[Fetched]:
        """See :meth:`Fetcher.fetch`."""
        if self.cache is not None:
            return self._fetch_owned(block, self.cache)
        pipeline = self.chunks.pipeline
        if pipeline is not None and pipeline.raw:
            return self._fetch_raw(block, target, pipeline)
        return self._fetch_encoded(block, target)

    def _fetch_encoded(self, block: list[Part], target: Target) -> Iterator[Fetched]:
        chunks = self.chunks
        key, one = chunks.key, chunks.pipeline
        if one is not None:
            most = one.most
            requests = [Request(key(part.chunk), None, None, most) for part in block]
        else:
            requests = [
                Request(key(part.chunk), None, None, chunks.most(part.chunk)) for part in block
            ]
        try:
            for i, data in chunks.driver.get_many(requests):
                part = block[i]
                if data is None:
                    chunks.absent(requests[i].key, part.chunk)
                    yield part, None
                    continue
                pipeline = one or chunks.pipeline_of(part.chunk)
                began = perf_counter()
                chunk = pipeline.decode(data, *target(part))
                self.meter.decoded(len(data), perf_counter() - began)
                yield part, chunk
        except Corrupt as error:
            if error.key:
                raise chunks.oversized(error) from error.__cause__
            raise chunks.damaged(error, requests[i].key, part.chunk) from error.__cause__

    def _fetch_raw(
        self, block: list[Part], target: Target, pipeline: Pipeline
    ) -> Iterator[Fetched]:
        """Uncompressed chunks are read straight to where they are wanted, and of a chunk that
        little is wanted of, only the bytes from its first wanted element to its last."""
        chunks = self.chunks
        key, driver = chunks.key, chunks.driver
        nbytes = pipeline.spec.nbytes
        for part in block:
            name = key(part.chunk)
            try:
                array, view, span = target(part)
            except MemoryError:
                if driver.tag(name) is not None:
                    raise
                chunks.absent(name, part.chunk)
                yield part, None
                continue
            assert view is not None
            if span is not None:
                data = driver.get(name, Span(*span))
                if data is not None and len(data) == span[1] - span[0]:
                    view[slice(*span)] = data
                    self.meter.decoded(len(data), 0.0)
                    yield part, array
                    continue
            found = driver.get_into(name, view)
            if found is None:
                chunks.absent(name, part.chunk)
                yield part, None
            elif found != nbytes:
                error = Corrupt(
                    f"{counted(found, 'byte is', 'bytes are')} stored, {nbytes} make a chunk",
                    codec="bytes",
                )
                raise chunks.damaged(error, name, part.chunk)
            else:
                self.meter.decoded(nbytes, 0.0)
                yield part, array

    def _fetch_owned(self, block: list[Part], cache: Cache) -> Iterator[Fetched]:
        """For the cache. A chunk that another thread is fetching already is waited for."""
        for part in block:
            with cache.flight(self.chunks.key(part.chunk)):
                chunk = self._load(part, cache)
            yield part, chunk

    def _load(self, part: Part, cache: Cache) -> NDArray[Any] | None:
        chunks = self.chunks
        key = chunks.key(part.chunk)
        held = cache.peek(key)
        # Whoever fetched it while we waited may have seen an older version than we must.
        if held is not None and (self.immutable or held[0] == chunks.driver.tag(key)):
            kept: NDArray[Any] = held[1]
            return kept
        try:
            found = get_at_most(chunks.driver, key, chunks.most(part.chunk))
            if found is None:
                chunks.absent(key, part.chunk)
                return None
            began = perf_counter()
            chunk = owned(chunks.pipeline_of(part.chunk), found[0])
        except Corrupt as error:
            raise chunks.damaged(error, key, part.chunk) from error.__cause__
        self.meter.decoded(len(found[0]), perf_counter() - began)
        cache.put(key, found[1], chunk, chunk.nbytes)
        return chunk


class ShardFetcher(Fetcher):
    """Inner chunks of shards: the index first (kept, and checked against the shard's version),
    then only the bytes wanted, neighbours in one request."""

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

    def blocks(self, plan: Plan, pieces: int) -> Iterator[tuple[tuple[int, ...], list[Part]]]:
        """Parts of one shard, or runs of them where the shards are few."""
        size = max(1, -(-len(plan) // pieces))
        for shard, parts in plan.shards(self.sharding.grid):
            while block := list(islice(parts, size)):
                yield shard, block

    def block(self, part: Part) -> tuple[tuple[int, ...], list[Part]]:
        """See :meth:`Fetcher.block`."""
        pairs = list(map(divmod, part.chunk, self.sharding.grid))
        local = Part(tuple(place for _, place in pairs), *part[1:])
        return tuple(shard for shard, _ in pairs), [local]

    def only(
        self, blocks: Iterator[tuple[tuple[int, ...], list[Part]]], left: set[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], list[Part]]]:
        """See :meth:`Fetcher.only`."""
        place = self.sharding.inner_index
        for shard, parts in blocks:
            block = [part for part in parts if place(shard, part.chunk) in left]
            if block:
                yield shard, block

    def cut(
        self, block: tuple[tuple[int, ...], list[Part]], pieces: int
    ) -> Iterator[tuple[tuple[int, ...], list[Part]]]:
        """See :meth:`Fetcher.cut`."""
        shard, parts = block
        return ((shard, piece) for piece in _cut(iter(parts), len(parts), pieces))

    def kept(
        self, block: tuple[tuple[int, ...], list[Part]], cache: Cache
    ) -> tuple[list[Fetched], tuple[tuple[int, ...], list[Part]] | None]:
        """See :meth:`Fetcher.kept`."""
        shard, parts = block
        key = self.chunks.key(shard)
        version = self.indices.peek(key)
        if version is None:
            return [], block
        tag = version[0]
        if not self.immutable and self.chunks.driver.tag(key) != tag:
            self.indices.drop(key)
            return [], block
        found: list[Fetched] = []
        rest: list[Part] = []
        for part in parts:
            chunk = cache.get((key, part.chunk), tag)
            if chunk is None:
                rest.append(part)
            else:
                found.append((part, chunk))
                self.meter.hit()
        return found, (shard, rest) if rest else None

    def fetch(self, block: tuple[tuple[int, ...], list[Part]], target: Target) -> Iterator[Fetched]:
        """See :meth:`Fetcher.fetch`."""
        shard, parts = block
        key = self.chunks.key(shard)
        for _ in range(RETRIES):
            try:
                yield from self._fetch_version(key, shard, parts, target)
                return
            except Changed:  # replaced while we read: take every part from the new version
                self.indices.drop(key)
        raise Conflict(f"shard {shard} at key {key!r} changes faster than it can be read", key=key)

    def _fetch_version(
        self, key: str, shard: tuple[int, ...], parts: list[Part], target: Target
    ) -> Iterator[Fetched]:
        chunks, cache = self.chunks, self.cache
        version = self.index(key, shard)
        if version is None:
            for part in parts:
                chunks.absent(key, self.sharding.inner_index(shard, part.chunk))
                yield part, None
            return
        tag, index = version
        ids = self.sharding.positions(part.chunk for part in parts)
        entries = index[ids].tolist()
        wanted = [k for k, (_, size) in enumerate(entries) if size >= 0]
        if len(wanted) < len(parts):
            # Reading bytes compares versions too, but what is absent reads none.
            if chunks.driver.tag(key) != tag:
                raise Changed(key)
            for part, (_, size) in zip(parts, entries, strict=True):
                if size < 0:
                    chunks.absent(key, self.sharding.inner_index(shard, part.chunk))
                    yield part, None
        inner = self.sharding.inner
        for k, data in self._bytes(key, tag, entries, wanted):
            part = parts[k]
            began = perf_counter()
            try:
                if cache is None:
                    chunk = inner.decode(data, *target(part))
                else:
                    chunk = owned(inner, data)
                    cache.put((key, part.chunk), tag, chunk, chunk.nbytes)
            except Corrupt as error:
                place = self.sharding.inner_index(shard, part.chunk)
                raise chunks.damaged(error, key, place) from error.__cause__
            self.meter.decoded(len(data), perf_counter() - began)
            yield part, chunk

    def index(self, key: str, shard: tuple[int, ...]) -> tuple[Tag, NDArray[np.int64]] | None:
        """The shard's tag and decoded index, kept from an earlier read where there was one."""
        kept = self.indices.peek(key)
        if kept is not None:
            return kept
        found = self.chunks.driver.get_ranges(key, [self.sharding.index_span])
        if found is None:
            return None
        (data,), tag = found
        try:
            index = self.sharding.decode_index(data)
        except Corrupt as error:
            raise self.chunks.damaged(error, key, shard, "shard") from error.__cause__
        self.indices.put(key, tag, index, index.nbytes)
        return tag, index

    def _bytes(
        self, key: str, tag: Tag, entries: list[list[int]], wanted: list[int]
    ) -> Iterator[tuple[int, Buffer]]:
        """The bytes of the wanted entries, nearby ones fetched together."""
        driver = self.chunks.driver
        for spans, members in runs(entries, wanted, driver.capabilities.gap_bytes):
            found = driver.get_ranges(key, spans, tag)
            if found is None:
                raise Changed(key)
            for data, span, inside in zip(found[0], spans, members, strict=True):
                if len(inside) == 1:
                    yield inside[0], data
                    continue
                view = memoryview(data)
                for k in inside:
                    offset, size = entries[k]
                    at = offset - span.start
                    yield k, view[at : at + size]


def _cut(parts: Iterator[Part], count: int, pieces: int) -> Iterator[list[Part]]:
    size = max(1, min(-(-count // pieces), _BLOCK))
    while block := list(islice(parts, size)):
        yield block


def runs(
    entries: list[list[int]], wanted: Sequence[int], gap: int
) -> Iterator[tuple[list[Span], list[list[int]]]]:
    """The ``wanted`` of ``(offset, size)`` entries as spans that bridge gaps of up to ``gap``
    bytes, with the entries that lie in each; spans are answered in groups of bounded size."""
    spans: list[Span] = []
    members: list[list[int]] = []
    held = 0
    start = end = -1
    inside: list[int] = []
    for k in sorted(wanted, key=lambda k: entries[k]):
        offset, size = entries[k]
        if inside and offset - end <= gap and end - start < _RUN_BYTES:
            inside.append(k)
            end = max(end, offset + size)
            continue
        if inside:
            spans.append(Span(start, end))
            members.append(inside)
            held += end - start
            if held >= _RUN_BYTES:
                yield spans, members
                spans, members, held = [], [], 0
        start, end, inside = offset, offset + size, [k]
    if inside:
        yield [*spans, Span(start, end)], [*members, inside]
