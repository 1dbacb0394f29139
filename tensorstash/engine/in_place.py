"""Arrays whose chunks are written in place: what is assigned is written within stored chunks, and
read from the memory that they lie in.

Nothing is decoded, merged or replaced, so writers of different elements need no conditions. A chunk
that is stored stays, also where all of it becomes fill. What is read is never kept: a version of a
file says little of what is written within it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count, pairwise
from mmap import ACCESS_WRITE, mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..driver import Buffer, Check, Driver, OpenFile, Parts, Request, Span, held
from ..errors import Corrupt, Unsupported
from ..indexing.copying import core, gather
from ..indexing.fields import Fields
from ..indexing.plan import Part, Plan, plan
from ..indexing.selection import Stride, Take, Transform
from ..memory import PROCESS, Budget
from ..metadata.spec import ArraySpec
from .chunks import Chunks, beyond, blank
from .local import ChunkFetcher, Fetched, Target
from .look import Look, answers
from .native import library as native
from .native.library import library
from .remote import Arrival, ChunkStream, with_place
from .update import Guess, Masked
from .write import Change, Writer

_FEW_BYTES = 8 << 20  # of rows; of more, threads copy parts
_FEW_CHUNKS = 64  # files that are mapped at once
_OPEN_FILES = 32  # of an array, that are kept for who stores single rows


def is_in_place(chunks: Chunks) -> bool:
    """Whether the driver writes the chunks of this array in place; elsewhere they are chunks like
    any others, which only a copy can have brought there."""
    return chunks.spec.in_place and chunks.driver.capabilities.in_place


def check_in_place(driver: Driver, spec: ArraySpec) -> None:
    """:class:`~tensorstash.errors.Unsupported` where a new array asks for what the driver cannot
    do."""
    if spec.in_place and not driver.capabilities.in_place:
        raise Unsupported(
            f"driver {driver.scheme!r} writes nothing in place; leave in_place out, or keep the "
            "array in file://, shm:// or redis://"
        )


def _cells(chunk: NDArray[Any]) -> NDArray[np.uint8]:
    """A copy of the bytes of every element."""
    flat = np.frombuffer(chunk.tobytes(), np.uint8)
    return flat.reshape(chunk.size, chunk.dtype.itemsize)


def writer_of(
    chunks: Chunks,
    threads: int | None = None,
    write_fill: bool = False,
    grown_from: tuple[int, ...] | None = None,
    check: Check = held,
    guess: Guess | None = None,
    fields: Fields | None = None,
    budget: Budget = PROCESS,
) -> Writer:
    """What writes to an array: in place, or by replacing chunks."""
    kind = InPlaceWriter if is_in_place(chunks) else Writer
    return kind(chunks, threads, write_fill, grown_from, check, guess, fields, budget)


class InPlaceWriter(Writer):
    """As a :class:`Writer`, within stored chunks: of elements that are not assigned, no byte is
    read or written. Beyond the edge of the array whatever is there stays: who grows the array along
    an axis writes all that shows then, and who resizes it clears it (:meth:`merge_chunk`)."""

    def write(self, transform: Transform, value: NDArray[Any], look: Look | None = None) -> None:
        """See :meth:`Writer.write`."""
        if self.fence is not None:  # under a lease every put is conditional
            super().write(transform, value, look)
            return
        if 0 in transform.shape:
            return
        chunks = self.chunks
        todo = plan(transform, chunks.spec.grid, chunks.spec.shape)
        source = core(todo, value, -1)
        if look is not None:
            look.done()
        self._send(self._parts(todo, source, part) for part in todo.parts())

    def put_chunk(self, index: tuple[int, ...], chunk: NDArray[Any]) -> None:
        """See :meth:`Writer.put_chunk`."""
        data = np.ascontiguousarray(chunk, self.chunks.spec.dtype)
        self._send([self._within(index, [(0, _bytes(data))])])

    def merge_chunk(self, index: tuple[int, ...], change: Change) -> None:
        """Write what ``change`` assigns, and fill beyond the edge that the array grows from.
        Where it does not say what it assigns, that is what becomes different by it."""
        spec = self.chunks.spec
        if isinstance(change, Masked):
            chunk, mask = change.values, change.mask
        else:
            chunk = blank(spec.chunk_spec(self._shape))
            stored = self.chunks.driver.get(self.chunks.key(index))
            if stored is not None and len(stored) == chunk.nbytes:
                chunk[...] = np.frombuffer(stored, chunk.dtype).reshape(chunk.shape)
            before = _cells(chunk)
            change(chunk)
            mask = (_cells(chunk) != before).any(axis=1).reshape(self._shape)
            for cells in (chunk, mask):
                beyond_it = beyond(cells, spec.grid.origin(index), self.grown_from or ())
                for part in beyond_it:
                    part[...] = True if cells is mask else spec.fill
        where = np.flatnonzero(mask)
        if len(where):
            values = chunk.reshape(-1)[where]
            self._send([self._within(index, list(self._runs(where, values, 1)))])

    # -- within -------------------------------------------------------------------

    @Cached
    def _shape(self) -> tuple[int, ...]:
        shape = self.chunks.spec.grid.chunks
        assert shape is not None
        return shape

    @Cached
    def _strides(self) -> tuple[int, ...]:
        return strides_of(self._shape)

    @Cached
    def _fill(self) -> bytes:
        return self.chunks.spec.fill.tobytes()

    @Cached
    def _nbytes(self) -> int:
        return self.chunks.spec.chunk_spec(self._shape).nbytes

    def _within(self, index: tuple[int, ...], parts: list[tuple[int, Buffer]]) -> Parts:
        return Parts(self.chunks.key(index), self._nbytes, self._fill, parts)

    def _send(self, values: Iterable[Parts]) -> None:
        self.check()
        try:
            self.chunks.driver.put_parts(values)
        except Corrupt as error:
            raise self.chunks.oversized(error) from error.__cause__

    def _parts(self, todo: Plan, source: NDArray[Any], part: Part) -> Parts:
        """A part's new values, and where in the chunk they go."""
        spec = self.chunks.spec
        piece = gather(source, part.outside, todo.joint_dims)
        order = todo.joint + todo.axes if todo.joint else todo.axes
        shape = [self._shape[k] for k in order]
        strides = [self._strides[k] for k in order]
        first, run, steps = _places(part.inside, shape, strides, len(todo.joint))
        if self.fields is None:
            where = _summed(first, steps)
            values = np.ascontiguousarray(piece, spec.dtype)
            found = list(self._runs(where.reshape(-1), values, run))
        else:
            where = _summed(first, steps)[..., None] + np.arange(run)
            found = []
            for name in self.fields.names:
                field, at = self.fields.stored.fields[name][:2]  # type: ignore[index]
                values = np.ascontiguousarray(piece[name])
                found += self._runs(where.reshape(-1), values, 1, at, field.itemsize)
        return self._within(part.chunk, found)

    def _runs(
        self,
        where: NDArray[np.int64],
        values: NDArray[Any],
        run: int,
        at: int = 0,
        size: int | None = None,
    ) -> Iterator[tuple[int, Buffer]]:
        """``values`` as bytes to be written from each element of ``where`` on, ``run`` elements
        each, of which ``size`` bytes from ``at`` on are written; neighbours in one piece."""
        itemsize = self.chunks.spec.dtype.itemsize
        data = _bytes(values)
        step = run * itemsize if size is None else size
        if len(where) == 1:
            yield int(where[0]) * itemsize + at, data
            return
        starts = [0]
        if size is None:
            starts += (np.flatnonzero(np.diff(where) != run) + 1).tolist()
        else:
            starts += range(1, len(where))
        begins = (where[starts] * itemsize + at).tolist()
        for begin, low, high in zip(begins, starts, [*starts[1:], len(where)], strict=True):
            yield begin, data[low * step : high * step]


def _bytes(values: NDArray[Any]) -> memoryview:
    """The memory of contiguous values; a memoryview takes not every dtype."""
    return values.reshape(-1).view(np.uint8).data if values.size else memoryview(b"")


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In elements, of each axis of a chunk."""
    found = [1] * len(shape)
    for k in range(len(found) - 1, 0, -1):
        found[k - 1] = found[k] * shape[k]
    return tuple(found)


def _places(
    inside: tuple[Any, ...], shape: list[int], strides: list[int], joint: int
) -> tuple[int, int, list[NDArray[np.int64]]]:
    """Where an orthogonal ``inside`` lies in a chunk: elements that follow each other, ``run`` at a
    time, from ``first`` on plus one of each of the steps, in the order of its dimensions. The first
    ``joint`` items act pointwise, and make one dimension."""
    first, run = 0, 1
    steps: list[NDArray[np.int64]] = []
    joined = True  # while all behind is one run
    for k in range(len(inside) - 1, joint - 1, -1):
        item, edge, stride = inside[k], shape[k], strides[k]
        if isinstance(item, int):
            first += item * stride
            joined = joined and edge == 1
        elif isinstance(item, slice):
            taken = range(*item.indices(edge))
            if joined and stride == run and taken.step == 1:
                first += taken.start * stride
                run *= len(taken)
                joined = len(taken) == edge
            else:
                steps.append(np.asarray(taken, np.int64) * stride)
                joined = False
        else:
            steps.append(np.asarray(item, np.int64) * stride)
            joined = False
    if joint:
        pairs = zip(inside[:joint], strides[:joint], strict=True)
        steps.append(sum(np.asarray(item, np.int64) * stride for item, stride in pairs))  # type: ignore[arg-type]
    return first, run, steps[::-1]


def _summed(first: int, steps: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """``first`` plus one of each of the steps: an axis for each."""
    found = np.full((1,) * len(steps), first, np.int64)
    for k, step in enumerate(steps):
        found = found + step.reshape([-1 if d == k else 1 for d in range(len(steps))])
    return found


class Slot:
    """Where single rows of an array lie, for who stores many: all of a row is one piece of one
    chunk."""

    def __init__(self, chunks: Chunks) -> None:
        """Of an array of which :meth:`fits` is true."""
        spec = chunks.spec
        writer = InPlaceWriter(chunks)
        self._chunks = chunks
        self._nbytes, self._fill = writer._nbytes, writer._fill
        self._rows = writer._shape[0]
        self._step = self._nbytes // self._rows
        self._files: dict[int, tuple[OpenFile, Any, Any]] = {}
        self.shape = spec.shape[1:]
        self.dtype = spec.dtype
        # Of others, as of records with times in them, there is no buffer.
        self._memory = spec.dtype.kind in "biufc" and spec.dtype.type.__module__ == "numpy"

    @staticmethod
    def fits(chunks: Chunks) -> bool:
        """Whether rows of this array lie so."""
        shape = chunks.spec.grid.chunks
        return bool(shape) and shape is not None and shape[1:] == chunks.spec.shape[1:]

    def plain(self, value: Any) -> Any:
        """The memory of ``value``, where that is a row as it is stored; else ``None``."""
        if type(value) is not np.ndarray:
            return None
        if value.dtype != self.dtype or value.shape != self.shape or not value.flags.c_contiguous:
            return None
        return value if self._memory else _bytes(value)

    def put(self, row: int, data: Any) -> None:
        """Store what :meth:`plain` returned as row ``row``."""
        number, within = divmod(row, self._rows)
        data = _bytes(data) if isinstance(data, np.ndarray) else data
        part = Parts(self._key(number), self._nbytes, self._fill, ((within * self._step, data),))
        try:
            self._chunks.driver.put_parts((part,))
        except Corrupt as error:
            raise self._chunks.oversized(error) from error.__cause__

    def job(self, row: int, data: Any) -> tuple[tuple[OpenFile, int, Any], Any] | None:
        """The same as the kernel takes it, and what keeps its file open, whose last is to be called
        after it; ``None`` where rows are written by :meth:`put` alone."""
        number = row // self._rows
        held = self._files.get(number)
        if held is None:
            held = self._opened(number)
            if held is None:
                return None
        return (held[0], row % self._rows * self._step, data), held

    def _opened(self, number: int) -> tuple[OpenFile, Any, Any] | None:
        try:
            held = self._chunks.driver.opened(self._key(number), self._nbytes, self._fill)
        except Corrupt as error:
            raise self._chunks.oversized(error) from error.__cause__
        if held is None:
            return None
        file = held[0]
        whole = os.fstat(file.descriptor).st_blocks * 512 >= file.size  # a hole may find no room
        if whole and library.kernel is not None and library.kernel.reserves(file.descriptor):
            with suppress(OSError, ValueError):  # no memory is left to map it, say
                memory = mmap(file.descriptor, file.size, access=ACCESS_WRITE)
                held = (file._replace(memory=memory), *held[1:])
        if len(self._files) >= _OPEN_FILES:
            self._files.clear()
        self._files[number] = held
        return held

    def holds(self, row: int) -> bool:
        """Whether the file of a row is open."""
        return row // self._rows in self._files

    def close(self) -> None:
        """Keep no file open: one is another by now."""
        self._files.clear()

    def _key(self, number: int) -> str:
        return self._chunks.key((number,) + (0,) * (self._chunks.spec.ndim - 1))


def put_row(
    look: tuple[bytes, int, int, int] | None,
    check: Callable[[], object],
    ready: Sequence[tuple[Slot, Any]],
    row: int,
) -> None:
    """Store row ``row`` of some arrays, of what :meth:`Slot.plain` returned for each, after
    ``check``; by the kernel where it is built, which does without ``check`` while ``look`` tells
    that the document (:meth:`Driver.local_path`, and its tag) is the one that is known."""
    patch = library.kernel and library.kernel.patch if native.enabled else None
    if patch is None:
        check()
        for slot, data in ready:
            slot.put(row, data)
        return
    if look is None or not all(slot.holds(row) for slot, _ in ready):
        check()  # before a file is made
    jobs, after = [], []
    for slot, data in ready:
        job = slot.job(row, data)
        if job is None:
            break
        jobs.append(job[0])
        after.append(job[1])
    done = patch(look, jobs) if len(jobs) == len(ready) else 0
    for written in after if done == len(ready) else after[: max(0, done)]:
        written[2](None)
    if done == len(ready):
        return
    if done <= 0 and look is not None:
        check()
    for slot, data in ready[max(0, done) :]:
        slot.close()
        slot.put(row, data)


class RunStream(ChunkStream):
    """Of chunks in a remote store only what is wanted: a request for each run of elements, which
    are not of one moment."""

    def arrivals(self, todo: Plan, look: Look | None = None) -> Generator[Arrival, None, None]:
        """See :meth:`Stream.arrivals`."""
        return self._arrive(todo.parts(), todo.joint, todo.axes, look)

    def single(self, part: Part, look: Look | None = None) -> Iterator[Arrival]:
        """See :meth:`Stream.single`."""
        return self._arrive(iter([part]), (), tuple(range(len(part.inside))), look)

    def settle(self, arrival: Arrival, target: Target) -> Fetched:
        """See :meth:`Stream.settle`. Where nothing was asked for, memory is left as it is."""
        if not arrival.pieces:
            return super().settle(arrival, target)
        array, view, _ = target(arrival.part)
        assert array is not None and view is not None
        for start, data in arrival.pieces:
            view[start : start + len(data)] = data
            self.meter.decoded(len(data), 0.0, 0)
        self.meter.decoded(0, 0.0)
        return arrival.part, array

    def _arrive(
        self,
        parts: Iterator[Part],
        joint: tuple[int, ...],
        axes: tuple[int, ...],
        look: Look | None,
    ) -> Generator[Arrival, None, None]:
        chunks = self.chunks
        pipeline = chunks.pipeline
        assert pipeline is not None
        spec, gap = pipeline.spec, chunks.driver.capabilities.gap_bytes
        strides = strides_of(spec.shape)
        order = joint + axes
        edges, steps = [spec.shape[k] for k in order], [strides[k] for k in order]
        asked: dict[int, tuple[_Wanted, Span]] = {}
        numbers = count()
        doubtful: list[Part] = []

        def requests() -> Iterator[Request]:
            for part in parts:
                places = _places(part.inside, edges, steps, len(joint))
                spans = _spans(*places, spec.dtype.itemsize, spec.nbytes, gap)
                wanted = _Wanted(part, chunks.key(part.chunk), len(spans))
                for span in spans:
                    asked[next(numbers)] = wanted, span
                    whole = span.start == 0 and span.stop == spec.nbytes  # its size is looked at
                    yield Request(wanted.key, None if whole else span, None, pipeline.most)

        for i, found in with_place(chunks, answers(chunks.driver, requests(), look, loose=True)):
            wanted, span = asked.pop(i)
            part = wanted.part
            if found is not None:
                wanted.pieces.append((span.start, found[0]))
                wanted.short |= len(found[0]) != (span.stop or 0) - span.start
            wanted.left -= 1
            if wanted.left:
                continue
            if not wanted.pieces:
                yield Arrival(part, wanted.key, part.chunk)
            elif wanted.short or len(wanted.pieces) < wanted.count:
                doubtful.append(part)
            else:
                yield Arrival(
                    part, wanted.key, part.chunk, None, None, pipeline, pieces=wanted.pieces
                )
        if doubtful:  # of another size, or stored just now: whole, so that a decoder says which
            if look is not None:
                look.again()
            yield from self._arrivals(iter(doubtful), False, look)


class _Wanted:
    """A part of which ``count`` runs were asked for, and what came of them so far."""

    def __init__(self, part: Part, key: str, count: int) -> None:
        self.part, self.key, self.count, self.left = part, key, count, count
        self.pieces: list[tuple[int, Buffer]] = []
        self.short = False


def _spans(
    first: int,
    run: int,
    steps: list[NDArray[np.int64]],
    itemsize: int,
    nbytes: int,
    gap: int,
) -> list[Span]:
    """The bytes of a chunk of ``nbytes`` that hold such elements (:func:`_places`), neighbours
    together; all of it where that is not much more."""
    where = np.unique(_summed(first, steps).reshape(-1)) * itemsize
    ends = where + run * itemsize
    starts = np.concatenate([[0], np.flatnonzero(where[1:] - ends[:-1] > gap) + 1])
    lows, highs = where[starts], ends[np.concatenate([starts[1:] - 1, [len(where) - 1]])]
    if 2 * int((highs - lows).sum()) > nbytes:
        return [Span(0, nbytes)]
    return list(map(Span, lows.tolist(), highs.tolist()))


class MappedFetcher(ChunkFetcher):
    """Chunks where they lie, in memory that their writers share."""

    def fetch(self, block: list[Part], target: Target) -> Iterator[Fetched]:
        """See :meth:`Fetcher.fetch`. Nothing goes to ``target``: it is copied from where it is."""
        chunks = self.chunks
        view: Callable[[str], memoryview | None] = chunks.driver.view
        for part in block:
            key = chunks.key(part.chunk)
            data = view(key)
            if data is None:
                chunks.absent(key, part.chunk)
                yield part, None
                continue
            try:
                chunk = chunks.pipeline_of(part.chunk).over(data)
            except Corrupt as error:
                raise chunks.damaged(error, key, part.chunk) from error.__cause__
            self.meter.decoded(0, 0.0)
            yield part, chunk


def gathered(chunks: Chunks, transform: Transform, out: NDArray[Any], look: Look | None) -> bool:
    """Fill ``out`` with a few whole rows, in one step of the kernel or of a server, as a plan for
    them costs more than to copy them; ``False`` where that cannot be, or another way has to say
    what is wrong. ``look`` travels along."""
    rows = _whole_rows(chunks, transform, out)
    if rows is None:
        return False
    if not chunks.driver.capabilities.local:
        return _gather_far(chunks, rows, out, look)
    kernel = library.kernel
    if kernel is None or kernel.gather is None or not native.enabled:
        return False
    spec, per = chunks.spec, chunks.spec.grid.chunk_shape((0,) * chunks.spec.ndim)[0]
    numbers = rows // per
    low, high = int(numbers.min()), int(numbers.max())
    if high - low >= _FEW_CHUNKS:
        return False
    zeros = (0,) * (spec.ndim - 1)
    touched = np.bincount(numbers - low, minlength=high - low + 1).tolist()
    view, key = chunks.driver.view, chunks.key
    views = [view(key((low + k, *zeros))) if some else None for k, some in enumerate(touched)]
    fill = spec.fill.tobytes() if chunks.missing == "fill" else None
    width = out.nbytes // len(rows)
    data = out.reshape(-1).view(np.uint8)
    return bool(kernel.gather(views, low, rows, per, width, fill, data))


def _whole_rows(
    chunks: Chunks, transform: Transform, out: NDArray[Any]
) -> NDArray[np.int64] | None:
    """The rows that a transform is of, where it is of rows by number and ``out`` takes a few of
    them as they are stored; each lies in one piece of one chunk."""
    spec, shape = chunks.spec, chunks.spec.grid.chunks
    if not transform.maps or shape is None or len(transform.shape) != len(transform.maps):
        return None  # a dimension of no map repeats
    first, *rest = transform.maps
    if not isinstance(first, Take) or first.dims != (0,):
        return None
    if out.dtype != spec.dtype or not out.flags.c_contiguous or out.nbytes > _FEW_BYTES:
        return None
    for k, item in enumerate(rest, 1):
        whole = isinstance(item, Stride) and (item.dim, item.start, item.step) == (k, 0, 1)
        if not whole or not transform.shape[k] == shape[k] == spec.shape[k]:
            return None
    return np.ascontiguousarray(first.array, np.int64)


def _gather_far(
    chunks: Chunks, rows: NDArray[np.int64], out: NDArray[Any], look: Look | None
) -> bool:
    spec, per = chunks.spec, chunks.spec.grid.chunk_shape((0,) * chunks.spec.ndim)[0]
    width = out.nbytes // len(rows)
    order = np.argsort(rows, kind="stable")
    numbers, within = np.divmod(rows[order], per)
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
    zeros = (0,) * (spec.ndim - 1)
    starts = (within * width).tolist()
    wanted = [
        (chunks.key((int(numbers[low]), *zeros)), starts[low:high]) for low, high in pairwise(edges)
    ]
    asked = None if look is None else look.request()
    try:
        found, beside = chunks.driver.gather(wanted, width, asked)
        if look is not None and asked is not None:
            look.settle(beside)
    finally:
        if look is not None and asked is not None:
            look.forget()
    for (low, high), data in zip(pairwise(edges), found, strict=True):
        here = order[low:high]
        if data is None and chunks.missing == "fill":
            out[here] = spec.fill
        elif data is not None and len(data) == (high - low) * width:
            out[here] = np.ndarray((high - low, *out.shape[1:]), spec.dtype, data)
        else:
            if look is not None:
                look.again()
            return False
    return True
