"""A read carried out by the kernel: chunks, or inner chunks of shards, in files, in memory, or as
they arrive."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...driver import Buffer, Tag
from ...errors import StashError
from ...indexing.selection import Transform
from ...threads import cores, nested
from ..caching.cache import Cache
from ..chunks import SPAN_FROM, Chunks
from ..stats import Meter
from . import library as native
from .arrivals import Arrivals
from .library import ABSENT, DONE, Library
from .steps import Steps, steps
from .tables import Table, chunks_of, groups

CALL_BYTES = 256 << 20  # of chunks, decoded in one call: an interrupt waits for its end
_CALL_TASKS = 1 << 16
_CALL_VIEWS = 64  # files that are mapped at once
_CALL_INDICES = 32 << 20  # bytes of shards' indices that are held for one call
_FEW_INDICES = 1 << 20
_INDICES = 256  # shards whose indices are read together, and the bytes that these may have
_INDEX_BYTES = 4 << 20
THREAD_BYTES = 512 << 10  # of chunks, for which one more thread pays
_PACE = 4  # bytes that are decoded in a nanosecond, about
_THREAD_COPIED = 4 << 20  # the same of what is only copied
_MOST_DIMS = 64  # as in kernel.h

Index = Callable[[str, tuple[int, ...]], tuple[Tag, NDArray[np.int64]] | None]
"""A shard's tag and decoded index, or ``None`` where none is stored."""

Chunk = tuple[int, ...]

Rows = tuple[Chunk, tuple[int, ...], tuple[int, ...]]
"""A shard, and the rows of each group that lie in it, from and to."""


class Batches:
    """Reads of the array at ``chunks``. Where it is stored in files or in memory, :meth:`read`
    places what the kernel can read, and returns the chunks that are left to Python; of a remote
    store :meth:`arrivals` does. ``index``: of shards, kept
    in ``indices``."""

    def __init__(
        self,
        chunks: Chunks,
        library: Library,
        steps: Steps,
        meter: Meter,
        threads: int | None,
        index: Index | None,
        indices: Cache | None,
    ) -> None:
        self._chunks = chunks
        self._library = library
        self._steps = steps
        self._meter = meter
        self._threads = threads
        self._index = index
        self._indices = indices
        edges = chunks.grid.chunks
        assert edges is not None
        self._edges = edges
        sharding = chunks.sharding
        self._ratios = (1,) * len(edges) if sharding is None else sharding.grid
        self._strides = (0,) * len(edges) if sharding is None else sharding.strides
        self._views = chunks.spec.in_place and chunks.driver.capabilities.in_place
        self._spans = steps.plain and steps.nbytes > SPAN_FROM
        fills = chunks.missing == "fill"
        self._fill = chunks.spec.fill.tobytes() if fills else None
        self._raw = np.dtype(("V", steps.itemsize))
        self.pace = 0
        """Nanoseconds that it took to decode the part of a chunk that was wanted, of late."""

    def arrivals(
        self, transform: Transform, out: NDArray[Any], cache: Cache | None
    ) -> Arrivals | None:
        """What places the chunks of a remote store in ``out`` as they arrive; ``None`` where
        Python is to."""
        chunks, pipeline = self._chunks, self._chunks.pipeline
        if not native.enabled or out.dtype != chunks.spec.dtype:
            return None
        if cache is not None and (pipeline is None or not pipeline.ordered):
            return None
        table = groups(transform, self._edges, self._steps.strides, out.strides, self._ratios)
        if table is None:
            return None
        rest = table, out.view(self._raw), self._fill, cache, self._meter
        return Arrivals(chunks, self._library, self._steps, *rest)

    def _most(self) -> int:
        """Tasks of one call."""
        most = _CALL_VIEWS if self._views else min(_CALL_TASKS, CALL_BYTES // self._steps.nbytes)
        return max(1, most)

    def _can(self) -> bool:
        """Whether chunks as they are decoded will do."""
        return True

    def read(
        self,
        transform: Transform,
        out: NDArray[Any],
        most: int | None = None,
        places: NDArray[np.int64] | None = None,
    ) -> set[Chunk] | None:
        """Fill ``out``, or the ``places`` along its first dimension, by ``most`` threads at most
        (or, to be kept, chunks at a time):
        returns the chunks, by their index, whose part of it is not filled yet; ``None`` where
        nothing was begun."""
        chunks = self._chunks
        if not native.enabled or out.dtype != chunks.spec.dtype or not self._can():
            return None
        files = None if self._views else chunks.driver.local_path(chunks.path)
        if files is None and not self._views and chunks.driver.in_memory(()) is None:
            return None
        inside, outside = self._steps.strides, out.strides
        table = groups(transform, self._edges, inside, outside, self._ratios, places)
        if table is None:
            return None
        spans = self._spans and not any(len(group.axes) > 1 for group in table)
        call = Call(self, table, out.view(self._raw), spans, most)
        if self._index is not None:
            self._read_shards(call, files, self._index)
        elif not self._read_chunks(call, files):
            return None
        return call.left

    def _read_chunks(self, call: Call, files: str | None) -> bool:
        chunks, fill = self._chunks, self._fill
        low, high, count = call.low, call.high, call.count
        path = b"" if files is None else file_path(files + chunks.spec.keys.prefix)
        if path is None:
            return False
        most = self._most()
        known: dict[str, bool] = {}
        for first in range(0, count, most):
            many = min(most, count - first)
            if files is None:
                names = map(chunks.key, map(tuple, call.chunks(range(first, first + many))))
                values = self._values([*names])
                if values is None:
                    call.leave(range(first, first + many))
                    continue
                done = call.run([(path, None, None, [*values], low, high)], first, many)
            else:
                done = call.run([(path, None, None, None, low, high)], first, many)
            if done is not None:
                rest = np.flatnonzero(done != DONE)
                found = call.chunks(rest + first)
                for task, chunk in zip(rest.tolist(), map(tuple, found), strict=True):
                    absent = done[task] == ABSENT and fill is not None
                    if not absent or not (files is None or self._is_absent(chunk, known)):
                        call.left.add(chunk)
        return True

    def _values(self, keys: list[str]) -> Sequence[Buffer | None] | None:
        """Chunks as they lie in memory; ``None`` where Python is to look."""
        if not self._views:
            return self._chunks.driver.in_memory(keys)
        try:
            return [self._chunks.driver.view(key) for key in keys]
        except StashError:  # Python says so again
            return None

    def _is_absent(self, chunk: Chunk, known: dict[str, bool]) -> bool:
        """Whether a file that is not there is an absent chunk for sure."""
        folder = self._chunks.key(chunk).rpartition("/")[0]
        found = known.get(folder)
        if found is None:
            found = known[folder] = self._chunks.driver.plain_folder(folder)
        return found

    def _read_shards(self, call: Call, files: str | None, index: Index) -> None:
        most = self._most()
        jobs: list[Any] = []
        tasks = held = 0
        for shard, low, high in self._known(self._shards(call.table), files):
            count = tasks_of(low, high)
            job = self._job(shard, files, index)
            if job is None:
                call.leave(range(count), low, high)
                continue
            if tasks and (tasks + count > most or held > call.indices):
                self._run_shards(call, jobs, tasks, most)
                jobs, tasks, held = [], 0, 0
            jobs.append((*job, low, high))
            tasks += count
            held += job[1].nbytes
        if tasks:
            self._run_shards(call, jobs, tasks, most)

    def _known(self, shards: Iterator[Rows], files: str | None) -> Iterator[Rows]:
        """``shards``, whose indices the kernel has read ahead, some at a time."""
        sharding, indices = self._chunks.sharding, self._indices
        steps = None if sharding is None else sharding.index_steps
        if files is None or indices is None or sharding is None or steps is None:
            yield from shards
            return
        key_of, prefix = self._chunks.key, self._chunks.path
        size = max(1, min(_INDICES, _INDEX_BYTES // sharding.index_nbytes))
        while some := [*islice(shards, size)]:
            keys = [key for shard, *_ in some if indices.peek(key := key_of(shard)) is None]
            named = [file_path(files + key.removeprefix(prefix)) for key in keys]
            paths = [path for path in named if path is not None]
            if len(keys) > 1 and len(paths) == len(keys):
                end = sharding.index_location == "end"
                how = sharding.count, sharding.inner.most, bool(steps), end
                for key, found in zip(keys, self._library.indices(paths, *how), strict=True):
                    if found is not None:
                        indices.put(key, *found, found[1].nbytes)
            yield from some

    def _job(self, shard: Chunk, files: str | None, index: Index) -> tuple[Any, ...] | None:
        """Where a shard's bytes are and its index; ``None`` where Python is to look."""
        driver, key = self._chunks.driver, self._chunks.key(shard)
        try:
            found = index(key, shard)
        except StashError:  # Python says so again, of the first that is damaged
            return None
        if found is None:
            return None
        tag, entries = found[0], np.ascontiguousarray(found[1])
        if files is None:
            held = driver.get_tagged(key)
            if held is None or held[1] != tag:
                return None
            return b"", entries, tag, [held[0]]
        path = file_path(files + key.removeprefix(self._chunks.path))
        return (path, entries, tag, None) if path is not None and _is_version(tag) else None

    def _run_shards(self, call: Call, jobs: list[Any], tasks: int, most: int) -> None:
        """Read ``tasks`` of ``jobs``, ``most`` in one call, also where one shard has more."""
        rest: list[NDArray[np.intp]] = []
        for first in range(0, tasks, most):
            status = call.run(jobs, first, min(most, tasks - first))
            if status is not None:
                done = (status == DONE) | (status == (ABSENT if self._fill is not None else DONE))
                rest.append(np.flatnonzero(~done) + first)
        left = np.concatenate(rest) if rest else np.empty(0, np.intp)
        first = 0
        for *_, low, high in jobs if len(left) else ():
            count = tasks_of(low, high)
            here = left[(left >= first) & (left < first + count)]
            call.leave(here - first, low, high)
            first += count

    def _shards(self, table: Table) -> Iterator[tuple[Chunk, tuple[int, ...], tuple[int, ...]]]:
        """Every shard, and the rows of each group that lie in it."""
        axes = [axis for group in table for axis in group.axes]
        order = sorted(range(len(axes)), key=axes.__getitem__)
        for some in product(*(group.runs(self._ratios) for group in table)):
            flat = [part for shard, _, _ in some for part in shard]
            low = tuple(low for _, low, _ in some)
            yield tuple(flat[k] for k in order), low, tuple(high for _, _, high in some)


def batches(
    chunks: Chunks,
    meter: Meter,
    threads: int | None,
    index: Index | None,
    indices: Cache | None,
    kind: Callable[..., Batches] = Batches,
) -> Batches | None:
    """What reads the array at ``chunks``, of a ``kind``; ``None`` where the kernel is not there, or
    cannot."""
    library, pipeline = native.library, chunks.pipeline
    if library.kernel is None or pipeline is None or not chunks.plain:
        return None
    if not 0 < chunks.spec.ndim < _MOST_DIMS:  # of one element there are no tables
        return None
    driver = chunks.driver
    near = driver.local_path(chunks.path) is not None or driver.in_memory(()) is not None
    if driver.capabilities.local and not near:
        return None
    found = steps(pipeline, library.kinds)
    if found is None:
        return None
    return kind(chunks, library, found, meter, threads, index, indices)


def tasks_of(low: Chunk, high: Chunk) -> int:
    """How many the rows ``low`` to ``high`` of each group make."""
    return math.prod(b - a for a, b in zip(low, high, strict=True))


def _is_version(tag: Any) -> bool:
    """Whether the kernel can compare a version with a file's."""
    return len(tag) == 3 and all(0 <= number < 1 << 63 for number in tag)


class Call:
    """One read under way: its tables, its output, and the chunks that are ``left``."""

    def __init__(
        self,
        batches: Batches,
        table: Table,
        out: NDArray[Any],
        spans: bool,
        most: int | None,
    ) -> None:
        self.table = table
        self.out = out
        self.most = most
        self.left: set[Chunk] = set()
        self.high = tuple(group.many for group in table)
        self.low = (0,) * len(table)
        self.count = math.prod(self.high)
        self._batches = batches
        self._spans = spans
        # Where there is a limit on memory, few indices are held at a time.
        self.indices = _CALL_INDICES if most is None else _FEW_INDICES
        # Bytes of a chunk that are read or decoded, about: of little that is wanted not much more,
        # unless it has large blocks, which is known once some were decoded.
        self._work = batches._steps.nbytes
        self._partly = False
        hulls = [group.hull() for group in table]
        if None not in hulls:
            hull = sum(filter(None, hulls))
            if hull * 4 <= self._work:
                self._partly = True
                self._work = min(
                    self._work, max(hull + batches._steps.itemsize, batches.pace * _PACE)
                )
        self._each = THREAD_BYTES
        if batches._views:  # copied from memory: a second thread pays later
            self._work = out.nbytes // max(1, self.count)
            self._each = _THREAD_COPIED

    def run(self, jobs: list[Any], first: int, count: int) -> NDArray[np.uint8] | None:
        """What became of ``count`` tasks of ``jobs`` from ``first`` on; ``None``: all are done."""
        batches = self._batches
        steps, library = batches._steps, batches._library
        status = np.zeros(count, np.uint8)
        threads = self.threads(count, self._work, self._each)
        try:
            done, _, nbytes, nanoseconds = library.run(
                *(steps.chain, self.table, jobs, self.out, batches._fill, status),
                *(batches._ratios, batches._strides),
                separator=batches._chunks.spec.keys.separator,
                spans=self._spans,
                threads=threads,
                first=first,
                grain=max(1, min(64, count // (8 * threads))),
            )
        except (ValueError, BufferError):  # refused before it began: all are left to Python
            return status
        if done:
            batches._meter.decoded(nbytes, nanoseconds / 1e9, done)
            library.count(steps.kinds, done)
            if self._partly:
                batches.pace = nanoseconds // done
        return None if done == count else status

    def threads(self, count: int, work: int, each: int = THREAD_BYTES) -> int:
        """How many threads pay for ``count`` tasks of ``work`` bytes, ``each`` for one more."""
        if count < 2 or nested():
            return 1
        most = self._batches._threads or cores()
        most = most if self.most is None else min(most, self.most)
        return max(1, min(most, count, count * work // each))

    def leave(
        self, tasks: Any, low: tuple[int, ...] | None = None, high: tuple[int, ...] | None = None
    ) -> None:
        """Leave ``tasks`` of the rows ``low`` to ``high`` (all) of each group to Python."""
        self.left.update(map(tuple, self.chunks(tasks, low, high)))

    def chunks(
        self, tasks: Any, low: tuple[int, ...] | None = None, high: tuple[int, ...] | None = None
    ) -> list[list[int]]:
        """The indices of the chunks of such tasks."""
        return chunks_of(self.table, tasks, low or self.low, high or self.high)


def file_path(text: str) -> bytes | None:
    """As files are named; ``None`` where none can have that name."""
    try:
        return None if "\0" in text else os.fsencode(text)
    except UnicodeError:
        return None
