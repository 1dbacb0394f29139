"""What is read from the memory that chunks lie in, or of remote ones in runs of bytes."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import count, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...driver import Buffer, OpenFile, Request, Span
from ...errors import Corrupt, StashError
from ...indexing.plan import Part, Plan
from ...indexing.selection import Stride, Take, Transform
from ..chunks import Chunks
from ..local import ChunkFetcher, Fetched, Target
from ..look import Look, answers
from ..native import library as native
from ..native.library import library
from ..remote import Arrival, ChunkStream, with_place
from .writing import is_in_place, places, strides_of, summed

MAPPED_BYTES = 64 << 20  # of rows that lie in maps; of more, threads copy parts
MAPPED_FILES = 128  # of all fields that are read in one step, which the driver keeps open
_FAR_BYTES = 8 << 20  # of those in a remote store
_FEW_CHUNKS = 64  # files that are mapped at once, as in patch.c
_LOOKS = 3  # files may be replaced meanwhile


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
                found = places(part.inside, edges, steps, len(joint))
                spans = _spans(*found, spec.dtype.itemsize, spec.nbytes, gap)
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
    where = np.unique(summed(first, steps).reshape(-1)) * itemsize
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


class MappedRows:
    """Rows of an array that lie in maps of its files, for who copies a few at a time."""

    def __init__(self, chunks: Chunks) -> None:
        """Of an array of which :meth:`fits` is true."""
        spec, shape = chunks.spec, chunks.spec.grid.chunks
        assert shape is not None
        self.shape, self.dtype = spec.shape[1:], spec.dtype
        self._chunks = chunks
        self._per = shape[0]
        self.nbytes = spec.dtype.itemsize * math.prod(self.shape)
        self._fill = spec.fill.tobytes() if chunks.missing == "fill" else None
        # Of others, as of times, there is no buffer.
        self.plain = spec.dtype.kind in "biufc" and spec.dtype.type.__module__ == "numpy"
        # By the chunk's number an open file, or the path of what is not there; of files, their
        # owner, for they are closed as soon as the driver does not keep them.
        self._known: dict[int, OpenFile | bytes] = {}
        self._owners: dict[int, weakref.ref[Any]] = {}

    @staticmethod
    def fits(chunks: Chunks) -> bool:
        """Whether rows of this array are one piece each, of files that the kernel can compare."""
        shape = chunks.spec.grid.chunks
        if not shape or 0 in shape or shape[1:] != chunks.spec.shape[1:]:
            return False
        if not is_in_place(chunks):
            return False
        local = chunks.driver.capabilities.local
        return local and chunks.driver.local_path(chunks.path) is not None

    def job(self, out: NDArray[Any]) -> tuple[Any, ...]:
        """What the kernel is told of this array and of where its rows go."""
        data = out if self.plain else out.reshape(-1).view(np.uint8)
        return self._known, self._per, self.nbytes, self._fill, data

    def files(self, start: int, stop: int) -> int:
        """Of how many files rows from ``start`` to ``stop`` are."""
        return max(0, (stop - 1) // self._per - start // self._per + 1)

    def look(self, number: int) -> bool:
        """Look what is there of a chunk; ``False``: another way has to say what is wrong."""
        known, owners, key = self._known, self._owners, self._key(number)
        if len(known) >= 2 * _FEW_CHUNKS:
            known.clear()
            owners.clear()
        driver = self._chunks.driver
        try:
            found = driver.opened(key, self._per * self.nbytes, None)
            if found is not None:
                owners[number] = weakref.ref(found[1], lambda _: known.pop(number, None))
                known[number] = found[0]
                return True
            root = driver.local_path("")
            if root is None or driver.get(key) is not None:
                return False
        except StashError:  # another chunk may be the first that is to be told of
            return False
        path = root + key
        while not os.path.exists(folder := os.path.dirname(path)):
            path = folder  # of what is not there the first, which may become a link
        known[number] = os.fsencode(path)
        return True

    def _key(self, number: int) -> str:
        return self._chunks.key((number,) + (0,) * (self._chunks.spec.ndim - 1))


def gather_mapped(
    look: tuple[bytes, int, int, int] | None,
    arrays: Sequence[MappedRows],
    rows: NDArray[np.int64],
    count: int,
    outs: Sequence[NDArray[Any]],
) -> bool:
    """Fill ``outs`` with ``rows`` of some arrays that have ``count`` (negative ones count from the
    end), in one call of the kernel: each file that is touched is compared with what is at its
    path, then copied from; then the document is (:meth:`Driver.local_path`, and its tag). ``False``
    where another way has to do it, or has to say what is wrong."""
    kernel = library.kernel
    if kernel is None or not native.enabled:
        return False
    jobs = [array.job(out) for array, out in zip(arrays, outs, strict=True)]
    for _ in range(_LOOKS):
        done = kernel.gather(look, jobs, rows, count)
        if done is True or done is False:
            return bool(done)
        if not all(arrays[k].look(number) for k, number in done):
            return False
    return False


def gathered(
    chunks: Chunks,
    mapped: MappedRows | None,
    transform: Transform,
    out: NDArray[Any],
    look: Look | None,
) -> bool:
    """Fill ``out`` with a few whole rows, in one step of the kernel or of a server, as a plan for
    them costs more than to copy them; ``False`` where that cannot be, or another way has to say
    what is wrong. ``look`` travels along."""
    local = chunks.driver.capabilities.local
    rows = _whole_rows(chunks, transform, out)
    if rows is None or out.nbytes > (MAPPED_BYTES if local else _FAR_BYTES):
        return False
    if not local:
        return _gather_far(chunks, rows, out, look)
    return mapped is not None and gather_mapped(None, [mapped], rows, chunks.spec.shape[0], [out])


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
    if out.dtype != spec.dtype or not out.flags.c_contiguous:
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
