"""Reading from a remote store: all that a read needs is asked for at once, and taken as it comes.

Where every request costs a round trip, chunks are not fetched block by block (``local.py``)
but through one window of requests, :meth:`Driver.get_many_tagged`. What is kept from earlier
reads is compared in the same request that would replace it.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray

from ..codec import Pipeline
from ..driver import Buffer, Request, Span, Tag
from ..errors import Corrupt
from ..indexing.copying import byte_range
from ..indexing.plan import Part, Plan
from .caching.cache import Cache
from .chunks import Chunks
from .local import Fetched, Target, owned
from .look import Look, answers
from .stats import Meter

Item = TypeVar("Item")

SPLIT_FROM = 64 << 10
"""Bytes of a chunk up to which a part of it is not asked for alone: a round trip costs more."""


class Arrival(NamedTuple):
    """What came for a part: its decoded ``chunk``, or the ``data`` to decode it from, or neither,
    where nothing is stored. ``key`` and ``place`` are for messages; ``name`` and ``tag`` are
    what the chunk is kept under. ``span``: ``data`` are these bytes of an uncompressed chunk;
    ``pieces``: where several such begin, and what they are."""

    part: Part
    key: str
    place: tuple[int, ...]
    chunk: NDArray[Any] | None = None
    data: Buffer | None = None
    pipeline: Pipeline | None = None
    name: Any = None
    tag: Tag = None
    span: tuple[int, int] | None = None
    pieces: Sequence[tuple[int, Buffer]] = ()


class Stream(ABC):
    """The arrivals for the parts of a plan. ``immutable``: what is kept is not compared with
    the stored version."""

    def __init__(self, chunks: Chunks, cache: Cache | None, immutable: bool, meter: Meter) -> None:
        self.chunks = chunks
        self.cache = cache
        self.immutable = immutable
        self.meter = meter

    @abstractmethod
    def arrivals(self, todo: Plan, look: Look | None = None) -> Generator[Arrival, None, None]:
        """Every part of ``todo``, in order of arrival. A part may come twice, when its shard
        changed meanwhile: the later one counts. ``look`` travels with the last of them."""

    @abstractmethod
    def single(self, part: Part, look: Look | None = None) -> Iterator[Arrival]:
        """As :meth:`arrivals`, for one part with its chunk's index in the whole array."""

    def settle(self, arrival: Arrival, target: Target) -> Fetched:
        """The part with its chunk, decoded into ``target``'s memory, or to be kept."""
        part, data, pipeline = arrival.part, arrival.data, arrival.pipeline
        if data is None or pipeline is None:
            if arrival.chunk is None:
                self.chunks.absent(arrival.key, arrival.place)
            else:
                self.meter.hit()
            return part, arrival.chunk
        began = perf_counter()
        try:
            if self.cache is not None:
                chunk = owned(pipeline, data)
                self.cache.put(arrival.name, arrival.tag, chunk, chunk.nbytes)
            elif arrival.span is not None:
                array, view, _ = target(part)
                assert array is not None and view is not None
                view[slice(*arrival.span)] = data
                chunk = array
            else:
                chunk = pipeline.decode(data, *target(part))
        except Corrupt as error:
            located = self.chunks.damaged(error, arrival.key, arrival.place)
            raise located from error.__cause__
        self.meter.decoded(len(data), perf_counter() - began)
        return part, chunk


def with_place(chunks: Chunks, found: Iterator[Item]) -> Iterator[Item]:
    """What the driver ``found``, with the place of a chunk or shard that has too many bytes."""
    try:
        yield from found
    except Corrupt as error:
        raise chunks.oversized(error) from error.__cause__


class _Asked(NamedTuple):
    part: Part
    key: str
    held: NDArray[Any] | None
    tag: Tag
    span: tuple[int, int] | None


class ChunkStream(Stream):
    """Chunks that are stored one an object: a request each. Of a large uncompressed chunk of
    which little is wanted, only the bytes from its first wanted element to its last."""

    def arrivals(self, todo: Plan, look: Look | None = None) -> Generator[Arrival, None, None]:
        """See :meth:`Stream.arrivals`."""
        return self._arrivals(todo.parts(), not todo.joint, look)

    def single(self, part: Part, look: Look | None = None) -> Iterator[Arrival]:
        """See :meth:`Stream.single`."""
        return self._arrivals(iter([part]), True, look)

    def _arrivals(
        self, parts: Iterator[Part], in_part: bool, look: Look | None
    ) -> Generator[Arrival, None, None]:
        chunks, cache = self.chunks, self.cache
        key_of, one = chunks.key, chunks.pipeline
        in_part = in_part and one is not None and one.raw and one.spec.nbytes > SPLIT_FROM
        ready: deque[Arrival] = deque()
        asked: dict[int, _Asked] = {}
        short: list[Part] = []
        count = itertools.count()

        def requests() -> Iterator[Request]:
            for part in parts:
                key, tag, held, span = key_of(part.chunk), None, None, None
                if cache is not None:
                    tag, held = cache.peek(key) or (None, None)
                    if held is not None and self.immutable:
                        ready.append(Arrival(part, key, part.chunk, held))
                        continue
                elif in_part and one is not None:
                    span = byte_range(part.inside, one.spec)
                asked[next(count)] = _Asked(part, key, held, tag, span)
                most = one.most if one is not None else chunks.most(part.chunk)
                yield Request(key, None if span is None else Span(*span), tag, most)

        for i, found in with_place(chunks, answers(chunks.driver, requests(), look)):
            while ready:
                yield ready.popleft()
            part, key, held, old, span = asked.pop(i)
            if found is None:
                if cache is not None:
                    cache.drop(key)
                yield Arrival(part, key, part.chunk)
                continue
            data, tag = found
            if held is not None and tag == old:  # nothing else was sent
                yield Arrival(part, key, part.chunk, held)
            elif span is not None and len(data) != span[1] - span[0]:
                short.append(part)
            else:
                pipeline = one or chunks.pipeline_of(part.chunk)
                yield Arrival(part, key, part.chunk, None, data, pipeline, key, tag, span)
        yield from ready
        if short:  # smaller than a chunk: read whole, so that its decoder says what is wrong
            if look is not None:
                look.again()
            yield from self._arrivals(iter(short), False, look)
