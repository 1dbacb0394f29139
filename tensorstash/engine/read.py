"""Reading: a transform carried out into a buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec import ChunkSpec, Pipeline
from ..columns import Placed
from ..errors import Corrupt, NoMemory
from ..indexing.axis import Index
from ..indexing.copying import byte_range, core, gather, joint_first, repeat_core, scatter
from ..indexing.fields import Fields
from ..indexing.plan import Part, Plan, plan, portions
from ..indexing.selection import Point, Stride, Take, Transform, dims_of, select
from ..memory import PROCESS, Budget
from ..memory.reads import ReadRoom
from ..threads import THREAD_BYTES, count_for, spread
from .caching.cache import Cache
from .caching.kept import Kept
from .caching.readahead import ReadAhead
from .chunks import SPAN_FROM, Chunks, scratch
from .in_place.reading import MappedFetcher, MappedRows, RunStream, gathered
from .in_place.writing import is_in_place
from .local import ChunkFetcher, Fetched, Fetcher, Memory, ShardFetcher
from .look import Look
from .native import available
from .native.batch import Batches, batches
from .native.direct import Small
from .native.keeping import KeepingBatches
from .native.kept import KeptBatches
from .remote import Arrival, ChunkStream, Stream
from .remote_shards import ShardStream
from .stats import Meter

Rows = NDArray[np.int64]

_THREAD_TOTAL = 512 << 10  # bytes to decode in all before a second thread is asked
_INDEX_BYTES = 64 << 20
_RUN = 4  # rows, on average, from which runs are read one by one
_KEPT_TOGETHER = 64  # chunks that are decoded in one call, to be kept, under a limit on memory
_NATIVE_FROM = 4  # chunks of a remote store for which the kernel's tables pay


class Reader:
    """Reads any selection of an array. ``cache`` keeps decoded chunks, which ``immutable`` says
    need not be compared with what is stored; ``threads`` is the most threads one read may use
    (``None``: as many as there are processors). What ``budget`` has no room for is done in smaller
    steps."""

    def __init__(
        self,
        chunks: Chunks,
        cache: Cache | None = None,
        threads: int | None = None,
        immutable: bool = False,
        meter: Meter | None = None,
        budget: Budget = PROCESS,
    ):
        self.chunks = chunks
        self.cache = cache
        self.threads = 1 if chunks.driver.capabilities.one_thread else threads
        meter = meter or Meter()
        in_place = is_in_place(chunks)
        self._gathers = in_place
        self._mapped = MappedRows(chunks) if in_place and MappedRows.fits(chunks) else None
        if in_place:
            cache = self.cache = None
        sharding, local = chunks.sharding, chunks.driver.capabilities.local
        indices = None if sharding is None else Cache(_INDEX_BYTES, budget)
        self._fetcher = _fetcher(chunks, cache, immutable, meter, indices) if local else None
        self._stream = None if local else _stream(chunks, cache, immutable, meter, indices)
        self._meter = meter
        self._budget = budget
        nbytes = chunks.room_bytes(cache is not None)
        self._room = ReadRoom(budget, nbytes, chunks.driver, chunks.path)
        self._native: Batches | bool | None = True
        self._immutable = immutable
        self._kept: KeptBatches | None = None
        if cache is not None and sharding is None and chunks.plain and (local or immutable):
            held = Kept(chunks, cache, immutable, meter)
            self._kept = KeptBatches(chunks, held, self.threads, budget)
        self._edges = chunks.grid.chunks
        self._ahead: ReadAhead | None = None
        if cache is not None and chunks.spec.ndim:
            limit = cache.limit // (2 * max(1, chunks.spec.dtype.itemsize))
            self._ahead = ReadAhead(chunks.grid, chunks.spec.shape, limit)
        last = None if self._ahead is None else self._ahead.last
        own = chunks, cache, immutable, meter, self.threads, indices, last
        self.small = Small(None if in_place else own, budget)
        pipeline = chunks.pipeline
        self._memory = pipeline.stored if pipeline is not None and pipeline.direct else None
        self._partial = pipeline is not None and _partial(pipeline)
        # One chunk that is not to be decoded, or that may be kept, Python reads sooner.
        self._plain = pipeline is None or pipeline.raw or (local and cache is not None)
        # Elements of a chunk that may be decoded straight into where it is wanted.
        straight = pipeline is not None and pipeline.direct and pipeline.ordered
        self._whole = pipeline.spec.count if pipeline is not None and straight else -1

    def follow(self, selection: Any) -> None:
        """What was taken began where the last read had ended."""
        if self._ahead is not None:
            self._ahead.note(select(selection, self.chunks.spec.shape), self.warm)

    def read(
        self,
        transform: Transform,
        out: NDArray[Any] | Placed,
        fields: Fields | None = None,
        look: Look | None = None,
    ) -> None:
        """``out`` (of the transform's shape and the array's dtype, any strides) is filled, or the
        places of it that rows go to; with ``fields``, of records of nothing but these. ``look``: in
        a remote store, what travels along."""
        try:
            self._read(transform, out, fields, look)
        except NoMemory:
            if isinstance(out, Placed):
                raise
            todo = plan(transform, self.chunks.grid, self.chunks.spec.shape)
            if self._room.fits or not _filled(self.chunks, todo, self._sink(todo, out, fields)):
                raise
            repeat_core(todo, out)

    def _read(
        self,
        transform: Transform,
        out: NDArray[Any] | Placed,
        fields: Fields | None,
        look: Look | None,
    ) -> None:
        if 0 in transform.shape:
            return
        if isinstance(out, Placed):
            _read_placed(self, transform, out, look)
            return
        if self._ahead is not None and self._stream is not None:
            self._ahead.wait(transform)
        kept = self._kept is not None and fields is None and self._kept.read(transform, out)
        one = None if kept or not self._plain else _single(transform, self._edges)
        done = kept or (one is None and self._read_natively(transform, out, fields, look))
        if not done and not self._plain:
            one = _single(transform, self._edges)
        if done:
            pass
        elif one is None:
            todo = plan(transform, self.chunks.grid, self.chunks.spec.shape)
            if self._stream is not None:
                self._read_far(self._stream, todo, out, fields, look)
            elif self._fetcher is not None:
                self._read_near(self._fetcher, todo, out, fields)
            repeat_core(todo, out)
        elif self._stream is not None:
            # Of threads that want one chunk, the first fetches it.
            flight = nullcontext() if self.cache is None else self.cache.flight(one.chunk)
            with self._room.one(), flight:
                for arrival in self._stream.single(one, look):
                    self._put_single(self._stream.settle(arrival, self._target), out, fields)
        elif self._fetcher is not None:
            self._read_single(self._fetcher, one, out, fields)
        if self._ahead is not None:
            self._ahead.note(transform, self.warm)

    def _read_natively(
        self, transform: Transform, out: NDArray[Any], fields: Fields | None, look: Look | None
    ) -> bool:
        """Whether it is read without a plan: a few rows where they lie, or chunks by the kernel."""
        rows = self._mapped
        if self._gathers and fields is None and gathered(self.chunks, rows, transform, out, look):
            return True
        return self._read_native(transform, out, fields)

    def _read_native(self, transform: Transform, out: NDArray[Any], fields: Fields | None) -> bool:
        """Have the kernel read what it can, and Python the rest; ``False``: nothing was done."""
        fetcher = self._fetcher
        native = None if fields is not None or fetcher is None else self._batches()
        if native is None or fetcher is None:
            return False
        left = self._run(native, transform, out)
        if left:
            todo = plan(transform, self.chunks.grid, self.chunks.spec.shape)
            self._read_near(fetcher, todo, out, None, left)
        return left is not None

    def _run(
        self, native: Batches, transform: Transform, out: NDArray[Any], places: Rows | None = None
    ) -> set[tuple[int, ...]] | None:
        if not self._budget.limited:
            return native.read(transform, out, None, places)
        # For what is kept a chunk each, of as many as are worth a call.
        wanted = self.threads if self.cache is None else _KEPT_TOGETHER
        with self._room.threads(wanted) as most:
            return native.read(transform, out, most, places)

    def _batches(self) -> Batches | None:
        """The kernel's part in the reads of this handle, looked for on first use."""
        native, fetcher = self._native, self._fetcher
        if native is True and available():
            shards = fetcher if isinstance(fetcher, ShardFetcher) else None
            index, indices = (None, None) if shards is None else (shards.index, shards.indices)
            kind: Callable[..., Batches] = Batches
            if self._fetcher is not None and self.cache is not None:
                kind = partial(KeepingBatches, self.cache, self._immutable)
            native = self._native = batches(
                self.chunks, self._meter, self.threads, index, indices, kind
            )
        return native if isinstance(native, Batches) else None

    def warm(self, transform: Transform) -> None:
        """Bring the chunks of a transform into the cache."""
        if self.cache is None:
            return
        todo = plan(transform, self.chunks.grid, self.chunks.spec.shape)
        with self._room.spare(len(todo)) as free:
            if free and self._stream is not None:
                for arrival in self._stream.arrivals(todo):
                    self._stream.settle(arrival, _no_memory)
            elif free and self._fetcher is not None:
                for block in self._fetcher.blocks(todo, 1):
                    _, rest = self._fetcher.kept(block, self.cache)
                    if rest is not None:
                        for _ in self._fetcher.fetch(rest, _no_memory):
                            pass

    def _sink(self, todo: Plan, out: NDArray[Any], fields: Fields | None) -> Sink:
        if fields is None:
            return Sink(self.chunks, todo, out)
        return FieldSink(self.chunks, todo, out, fields)

    def _read_near(
        self,
        fetcher: Fetcher,
        todo: Plan,
        out: NDArray[Any],
        fields: Fields | None,
        left: set[tuple[int, ...]] | None = None,
    ) -> None:
        """Where requests cost no round trip: threads fetch and decode blocks of parts. ``left``:
        the only chunks that are wanted."""

        def work() -> Callable[[Any], None]:
            sink = self._sink(todo, out, fields)
            sink.prepare()

            def fill(block: Any) -> None:
                for part, chunk in fetcher.fetch(block, sink.target):
                    sink.put(part, chunk)

            return fill

        def blocks(pieces: int) -> Iterator[Any]:
            found = fetcher.blocks(todo, pieces)
            return found if left is None else fetcher.only(found, left)

        if self.cache is None:
            self._spread(todo, blocks, work)
            return
        sink = self._sink(todo, out, fields)
        for block in blocks(1):
            found, rest = fetcher.kept(block, self.cache)
            while found:  # what the cache drops meanwhile is not held here
                sink.put(*found.pop())
            if rest is not None:
                self._spread(todo, partial(fetcher.cut, rest), work)

    def _spread(
        self, todo: Plan, blocks: Callable[[int], Iterator[Any]], work: Callable[[], Any]
    ) -> None:
        """Have threads do the work of ``blocks(pieces)``."""
        threads, joined = _threads(self, todo), self.chunks.sharding is not None
        with self._room.blocks(len(todo), threads, joined) as (threads, pieces):
            spread(blocks(pieces), work, threads)

    def _read_far(
        self,
        stream: Stream,
        todo: Plan,
        out: NDArray[Any],
        fields: Fields | None,
        look: Look | None,
    ) -> None:
        """Where they do: one window of requests, whose answers threads decode as they come."""

        def work() -> Callable[[list[Arrival]], None]:
            sink = self._sink(todo, out, fields)
            sink.prepare()

            def fill(some: list[Arrival]) -> None:
                for arrival in some if native is None else native.place(some):
                    sink.put(*stream.settle(arrival, sink.target))

            return fill

        batches = self._batches() if fields is None and len(todo) >= _NATIVE_FROM else None
        native = None if batches is None else batches.arrivals(todo.transform, out, self.cache)
        threads, sharding = _threads(self, todo), self.chunks.sharding
        ratios = None if sharding is None else sharding.grid
        with self._room.window(len(todo), threads, sharding is not None) as (threads, most):
            for portion, last in portions(todo, most, ratios):
                with closing(stream.arrivals(portion, look if last else None)) as arrivals:
                    each = ([arrival] for arrival in arrivals)
                    some = each if native is None else native.batches(arrivals)
                    spread(some, work, threads)

    def _read_single(
        self, fetcher: Fetcher, part: Part, out: NDArray[Any], fields: Fields | None
    ) -> None:
        block = fetcher.block(part)
        if self.cache is not None:
            found, rest = fetcher.kept(block, self.cache)
            if rest is None:
                self._put_single(found[0], out, fields)
                return
        elif out.size == self._whole and fields is None and out.flags.c_contiguous:
            memory = out, out.reshape(-1).view(np.uint8).data, None
            with self._room.one():
                for fetched in fetcher.fetch(block, lambda part: memory):
                    if fetched[1] is not out:  # absent, or of a chain that needs no memory
                        self._put_single(fetched, out, None)
            return
        with self._room.one():
            for fetched in fetcher.fetch(block, self._target):
                self._put_single(fetched, out, fields)

    def _target(self, part: Part) -> Memory:
        """Memory for the one chunk of a small read."""
        memory = self._memory
        if memory is None:
            return None, None, None
        return *scratch(memory), byte_range(part.inside, memory) if self._partial else None

    def _put_single(self, fetched: Fetched, out: NDArray[Any], fields: Fields | None) -> None:
        part, chunk = fetched
        if fields is not None:
            records = fields.of(self.chunks.spec.fill if chunk is None else chunk)
            where = () if chunk is None else part.inside
            for name in fields.names:
                out[name] = records[name][where]
            return
        inside: Any = part.inside
        if out.dtype.kind == "O":  # of objects that are arrays: not what is in it
            inside = (*inside, ...)
        out[...] = self.chunks.spec.fill if chunk is None else chunk[inside]


def _threads(reader: Reader, todo: Plan) -> int:
    """As many as there is work for: handing the interpreter's lock over costs more than
    small work gains."""
    pipeline = reader.chunks.pipeline
    parts = len(todo)
    if parts < 2 or not reader.chunks.plain or pipeline is None:
        return 1
    work = pipeline.spec.nbytes
    if work < THREAD_BYTES or work * parts < _THREAD_TOTAL:
        return 1
    if pipeline.spans and reader._partial and not todo.joint:
        span = byte_range(next(todo.parts()).inside, pipeline.spec)
        if span is not None:  # not much more than this is decoded of a chunk
            work = span[1] - span[0]
    if work * parts < _THREAD_TOTAL:
        return 1
    return count_for(parts, work, reader.threads)


def _fetcher(
    chunks: Chunks, cache: Cache | None, immutable: bool, meter: Meter, indices: Cache | None
) -> Fetcher:
    """What fetches from a local store; ``indices`` of shards are kept."""
    if chunks.sharding is not None and indices is not None:
        return ShardFetcher(chunks, cache, immutable, meter, chunks.sharding, indices)
    if is_in_place(chunks):
        return MappedFetcher(chunks, cache, immutable, meter)
    return ChunkFetcher(chunks, cache, immutable, meter)


def _stream(
    chunks: Chunks, cache: Cache | None, immutable: bool, meter: Meter, indices: Cache | None
) -> Stream:
    """What chunks arrive by from a remote store; ``indices`` of shards are kept."""
    if chunks.sharding is not None and indices is not None:
        return ShardStream(chunks, cache, immutable, meter, chunks.sharding, indices)
    kind = RunStream if is_in_place(chunks) else ChunkStream
    return kind(chunks, cache, immutable, meter)


def _read_placed(reader: Reader, transform: Transform, placed: Placed, look: Look | None) -> None:
    """Rows each to its place: what the kernel reads at once, else run by run, or all of them aside,
    as those that a cache keeps."""
    out, places = placed
    near = reader._fetcher is not None and out.dtype == reader.chunks.spec.dtype
    native = reader._batches() if near and len(places) > 1 and not reader._gathers else None
    if native is not None:
        with suppress(NoMemory):  # where a chunk that is not stored needs none, reads say so below
            left = reader._run(native, transform, out, places)
            if left is not None and not left:
                return
    if near and reader.cache is None:
        runs = list(even_runs(transform, places))
        if runs and len(runs) * _RUN <= len(places):
            for run, place in runs:
                reader.read(run, out[place])
            return
    rows = np.empty(transform.shape, out.dtype)
    reader.read(transform, rows, look=look)
    out[places] = rows


def even_runs(transform: Transform, places: NDArray[np.int64]) -> Iterator[tuple[Transform, slice]]:
    """The pieces of ``transform`` whose rows follow each other, as do their places."""
    axes = [k for k, axis_map in enumerate(transform.maps) if 0 in dims_of(axis_map)]
    axis_map = transform.maps[axes[0]] if len(axes) == 1 else None
    if isinstance(axis_map, Stride) and axis_map.step == 1:
        rows = axis_map.start + np.arange(len(places))
    elif isinstance(axis_map, Take) and axis_map.dims == (0,):
        rows = axis_map.array
    else:
        return
    apart = (np.diff(rows) != 1) | (np.diff(places) != 1)
    cuts = (np.flatnonzero(apart) + 1).tolist()
    for a, b in zip([0, *cuts], [*cuts, len(places)], strict=True):
        maps = list(transform.maps)
        maps[axes[0]] = Stride(0, int(rows[a]), 1)
        first = int(places[a])
        yield Transform((b - a, *transform.shape[1:]), tuple(maps)), slice(first, first + b - a)


def _single(transform: Transform, edges: tuple[int, ...] | None) -> Part | None:
    """The part of a basic, forward selection that lies in one chunk: an element, a row, a
    patch. Worth recognising, for planning would cost more than reading it."""
    maps = transform.maps
    if edges is None:
        return None
    chunk: list[int] = []
    inside: list[Index] = []
    dims = 0
    for axis_map, edge in zip(maps, edges, strict=True):
        if isinstance(axis_map, Point):
            at, within = divmod(axis_map.at, edge)
            inside.append(within)
        elif isinstance(axis_map, Stride) and axis_map.step == 1 and axis_map.dim == dims:
            at, within = divmod(axis_map.start, edge)
            end = within + transform.shape[dims]
            if end > edge:
                return None
            inside.append(slice(within, end))
            dims += 1
        else:
            return None
        chunk.append(at)
    if dims != len(transform.shape):
        return None
    return Part(tuple(chunk), tuple(inside), (), (False,))


class Sink:
    """Where the parts of one read go, for one thread."""

    def __init__(self, chunks: Chunks, todo: Plan, out: NDArray[Any]) -> None:
        self._plan = todo
        self._out = core(todo, out, 0)
        self._fill = chunks.spec.fill
        self._simple = not todo.joint and not todo.arrays
        self._joint = len(todo.joint)
        self._placed: NDArray[Any] | None = None
        self._scratch: Memory = (None, None, None)
        self._memory: ChunkSpec | None = None
        self._spec: ChunkSpec | None = None
        self._whole: tuple[int, ...] | None = None
        self._chunks = chunks

    def prepare(self) -> None:
        """Find out what :meth:`target` may give."""
        todo, pipeline = self._plan, self._chunks.pipeline
        if pipeline is None or not pipeline.direct:
            return
        self._memory = pipeline.stored
        if _partial(pipeline) and not todo.joint:
            self._spec = pipeline.spec
        if pipeline.ordered:
            self._whole = _contiguous(todo, self._out, pipeline.spec.shape)

    def target(self, part: Part) -> Memory:
        """The output itself where the chunk lands in one piece, else scratch memory."""
        if self._whole is not None and _is_run(part):
            place = self._out[(*part.outside, ...)]  # "..." keeps a 0-d place a view
            if place.shape == self._whole:
                self._placed = place
                return place, place.reshape(-1).view(np.uint8).data, None
        if self._scratch[0] is None and self._memory is not None:
            self._scratch = (*scratch(self._memory), None)
        if self._spec is not None:
            return self._scratch[0], self._scratch[1], byte_range(part.inside, self._spec)
        return self._scratch

    def put(self, part: Part, chunk: NDArray[Any] | None) -> None:
        """Bring a decoded chunk to its place; an absent one is the fill value."""
        placed, self._placed = self._placed, None
        if chunk is not None and chunk is placed:
            return
        if self._simple:
            self._out[part.outside] = self._fill if chunk is None else chunk[part.inside]
            return
        if chunk is None:
            dims = self._plan.joint_dims
            shape = gather(self._out, part.outside, dims).shape
            piece: NDArray[Any] = np.broadcast_to(self._fill, shape)
        else:
            piece = gather(joint_first(self._plan, chunk), part.inside, self._joint)
        scatter(self._out, part.outside, piece, self._plan.joint_dims)


class FieldSink(Sink):
    """Where the ``fields`` of the parts of one read go: each field on its own, which NumPy copies
    several times faster than records."""

    def __init__(self, chunks: Chunks, todo: Plan, out: NDArray[Any], fields: Fields) -> None:
        super().__init__(chunks, todo, out)
        fill = fields.of(self._fill)
        self._fields = fields
        self._columns = [(name, self._out[name], fill[name]) for name in fields.names]

    def prepare(self) -> None:
        """As for whole records, which are never decoded straight into the output."""
        super().prepare()
        self._whole = None

    def put(self, part: Part, chunk: NDArray[Any] | None) -> None:
        """Bring these fields of a decoded chunk to their places."""
        records = None if chunk is None else self._fields.of(joint_first(self._plan, chunk))
        for name, out, fill in self._columns:
            piece = fill if records is None else gather(records[name], part.inside, self._joint)
            scatter(out, part.outside, piece, self._plan.joint_dims)


def _filled(chunks: Chunks, todo: Plan, sink: Sink) -> bool:
    """Where a chunk is too large for the limit: whether none that is wanted is stored, so that no
    memory is needed."""
    sharding = chunks.sharding
    ratios = (1,) * chunks.spec.ndim if sharding is None else sharding.grid
    for place, parts in todo.shards(ratios):
        try:
            stored = chunks.stored(place)
        except Corrupt as error:
            raise chunks.damaged(error, chunks.key(place), place, "shard") from error.__cause__
        for part in parts:
            if stored is not None and stored(part.chunk):
                return False
            inner = place if sharding is None else sharding.inner_index(place, part.chunk)
            chunks.absent(chunks.key(place), inner)
            sink.put(part, None)
    return True


def _no_memory(part: Part) -> Memory:
    """For what is decoded to be kept."""
    return None, None, None


def _partial(pipeline: Pipeline) -> bool:
    """Whether part of a chunk may be had for less than all of it."""
    return pipeline.direct and pipeline.ordered and pipeline.spec.nbytes > SPAN_FROM


_SLICE = {slice}


def _is_run(part: Part) -> bool:
    """Whether a part's elements come as they lie, along every axis."""
    return {*map(type, part.inside), *map(type, part.outside)} <= _SLICE


def _contiguous(todo: Plan, out: NDArray[Any], chunk: tuple[int, ...]) -> tuple[int, ...] | None:
    """The chunk shape when a whole chunk can be one run of the output's memory: the output is
    contiguous, axes keep their order, and from the first axis with more than one element a
    chunk, chunks are as wide as the output. Index arrays may pick whole chunks in any order."""
    if not out.flags.c_contiguous or out.ndim != len(chunk) or todo.joint:
        return None
    for k, axis_map in enumerate(todo.transform.maps):
        if isinstance(axis_map, Take):
            if axis_map.dims != (k,):
                return None
        elif not (isinstance(axis_map, Stride) and axis_map.step == 1 and axis_map.dim == k):
            return None
    wide = [k for k, n in enumerate(chunk) if n > 1]
    if wide and any(chunk[k] != out.shape[k] for k in range(wide[0] + 1, len(chunk))):
        return None
    return chunk
