"""A read carried out by the kernel: chunks in files, or inner chunks of shards in files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...driver import Tag
from ...errors import StashError
from ...indexing.selection import Transform
from ...threads import cores, nested
from ..chunks import Chunks
from ..stats import Meter
from . import library as native
from .library import ABSENT, DONE, Library
from .steps import Steps, steps
from .tables import Group, groups, runs

_CALL_BYTES = 256 << 20  # of chunks, decoded in one call: an interrupt waits for its end
_CALL_TASKS = 1 << 16
_THREAD_BYTES = 512 << 10  # of chunks, for which one more thread pays
_SPAN_FROM = 16 << 10  # as in read.py

Index = Callable[[str, tuple[int, ...]], tuple[Tag, NDArray[np.int64]] | None]
"""A shard's tag and decoded index, or ``None`` where none is stored."""

Chunk = tuple[int, ...]


class Batches:
    """Reads of the array at ``chunks`` whose stored chunks are files: :meth:`read` places all that
    the kernel can read, and returns the chunks that are left for Python. ``index``: of shards."""

    def __init__(
        self,
        chunks: Chunks,
        library: Library,
        steps: Steps,
        meter: Meter,
        threads: int | None,
        index: Index | None,
    ) -> None:
        self._chunks = chunks
        self._library = library
        self._steps = steps
        self._meter = meter
        self._threads = threads
        self._index = index
        edges = chunks.grid.chunks
        assert edges is not None
        self._edges = edges
        sharding = chunks.sharding
        self._ratios = (1,) * len(edges) if sharding is None else sharding.grid
        self._strides = (0,) * len(edges) if sharding is None else sharding.strides
        self._spans = steps.plain and sharding is None and steps.nbytes > _SPAN_FROM
        fills = chunks.missing == "fill"
        self._fill = chunks.spec.fill.tobytes() if fills else None
        self._raw = np.dtype(("V", steps.itemsize))

    def read(self, transform: Transform, out: NDArray[Any]) -> set[Chunk] | None:
        """Fill ``out``: returns the chunks, by their index, whose part of it is not filled yet, and
        ``None`` where none is and nothing was begun."""
        chunks = self._chunks
        files = chunks.driver.files(chunks.path)
        if files is None or out.dtype != chunks.spec.dtype:
            return None
        table = groups(transform, self._edges, self._steps.strides, out.strides, self._ratios)
        if table is None:
            return None
        prefix = chunks.spec.keys.prefix if self._edges else chunks.spec.keys.key(())
        spans = self._spans and not any(len(group.axes) > 1 for group in table)
        call = _Call(self, table, out.view(self._raw), spans)
        if self._index is None:
            self._read_chunks(call, files, prefix)
        else:
            self._read_shards(call, files, self._index)
        return call.left

    def _read_chunks(self, call: _Call, files: str, prefix: str) -> None:
        sizes = [len(group.rows) for group in call.table]
        count = math.prod(sizes)
        path = _path(files + prefix)
        if path is None:
            call.leave(range(count), (0,) * len(sizes), tuple(sizes))
            return
        job = (path, None, None, None, (0,) * len(sizes), tuple(sizes))
        most = max(1, min(_CALL_TASKS, _CALL_BYTES // self._steps.nbytes))
        known: dict[str, bool] = {}
        for first in range(0, count, most):
            status = call.run([job], first, min(most, count - first))
            for task in np.flatnonzero(status != DONE).tolist():
                chunk = call.chunk(first + task, job[4], job[5])
                if (
                    status[task] != ABSENT
                    or self._fill is None
                    or not self._is_absent(chunk, known)
                ):
                    call.left.add(chunk)

    def _is_absent(self, chunk: Chunk, known: dict[str, bool]) -> bool:
        """Whether a file that is not there is an absent chunk for sure."""
        folder = self._chunks.key(chunk).rpartition("/")[0]
        found = known.get(folder)
        if found is None:
            found = known[folder] = self._chunks.driver.is_plain(folder)
        return found

    def _read_shards(self, call: _Call, files: str, index: Index) -> None:
        most = max(1, min(_CALL_TASKS, _CALL_BYTES // self._steps.nbytes))
        jobs: list[Any] = []
        tasks = 0
        for shard, low, high in self._shards(call.table):
            count = math.prod(b - a for a, b in zip(low, high, strict=True))
            key = self._chunks.key(shard)
            try:
                found = index(key, shard)
            except StashError:  # Python says so again, of the first that is damaged
                found = None
            path = _path(files + key.removeprefix(self._chunks.path))
            if found is None or path is None or not _is_version(found[0]):
                call.leave(range(count), low, high)
                continue
            if tasks and tasks + count > most:
                self._run_shards(call, jobs, tasks)
                jobs, tasks = [], 0
            jobs.append((path, found[1], found[0], None, low, high))
            tasks += count
        if tasks:
            self._run_shards(call, jobs, tasks)

    def _run_shards(self, call: _Call, jobs: list[Any], tasks: int) -> None:
        status = call.run(jobs, 0, tasks)
        done = (status == DONE) | (status == (ABSENT if self._fill is not None else DONE))
        if done.all():
            return
        first = 0
        for *_, low, high in jobs:
            count = math.prod(b - a for a, b in zip(low, high, strict=True))
            call.leave(np.flatnonzero(~done[first : first + count]).tolist(), low, high)
            first += count

    def _shards(
        self, table: tuple[Group, ...]
    ) -> Iterator[tuple[Chunk, tuple[int, ...], tuple[int, ...]]]:
        """Every shard, and the rows of each group that lie in it."""
        order = np.argsort([axis for group in table for axis in group.axes]).tolist()
        for some in product(*(runs(group, self._ratios) for group in table)):
            flat = [part for shard, _, _ in some for part in shard]
            low = tuple(low for _, low, _ in some)
            yield tuple(flat[k] for k in order), low, tuple(high for _, _, high in some)


def batches(
    chunks: Chunks, meter: Meter, threads: int | None, index: Index | None
) -> Batches | None:
    """What reads the array at ``chunks``; ``None`` where the kernel is not there, or cannot."""
    library, pipeline = native.library, chunks.pipeline
    if not native.enabled or library.kernel is None or pipeline is None or not chunks.plain:
        return None
    if chunks.driver.files(chunks.path) is None:
        return None
    found = steps(pipeline, library.kinds)
    return None if found is None else Batches(chunks, library, found, meter, threads, index)


def _is_version(tag: Any) -> bool:
    """Whether the kernel can compare a version with a file's."""
    return len(tag) == 3 and all(0 <= number < 1 << 63 for number in tag)


class _Call:
    """One read under way: its tables, its output, and the chunks that are ``left``."""

    def __init__(
        self, batches: Batches, table: tuple[Group, ...], out: NDArray[Any], spans: bool
    ) -> None:
        self.table = table
        self.left: set[Chunk] = set()
        self._batches = batches
        self._out = out
        self._spans = spans
        # Bytes of a chunk that are read or decoded, about: of little that is wanted not much more.
        hull = sum(abs(int(row[2])) * (int(row[0]) - 1) for row in (g.rows[0] for g in table))
        lists = any(group.lists is not None for group in table)
        nbytes = batches._steps.nbytes
        self._work = nbytes if lists or hull * 4 > nbytes else hull + batches._steps.itemsize
        self._order = np.argsort([axis for group in table for axis in group.axes]).tolist()

    def run(self, jobs: list[Any], first: int, count: int) -> NDArray[np.uint8]:
        """What became of ``count`` tasks of ``jobs`` from ``first`` on."""
        batches = self._batches
        steps, library = batches._steps, batches._library
        status = np.zeros(count, np.uint8)
        threads = 1
        if count > 1 and not nested():
            most = cores() if batches._threads is None else batches._threads
            threads = max(1, min(most, count, count * self._work // _THREAD_BYTES))
        done, _, nbytes, nanoseconds = library.run(
            *(steps.chain, self.table, jobs, self._out, batches._fill, status),
            *(batches._ratios, batches._strides),
            separator=batches._chunks.spec.keys.separator,
            spans=self._spans,
            threads=threads,
            first=first,
            grain=max(1, min(64, count // (8 * threads))),
        )
        if done:
            batches._meter.decoded(nbytes, nanoseconds / 1e9, done)
            library.count(steps.kinds, done)
        return status

    def leave(self, tasks: Any, low: tuple[int, ...], high: tuple[int, ...]) -> None:
        """Leave ``tasks`` of the rows ``low`` to ``high`` to Python."""
        self.left.update(self.chunk(task, low, high) for task in tasks)

    def chunk(self, task: int, low: tuple[int, ...], high: tuple[int, ...]) -> Chunk:
        """The index of a task's chunk."""
        flat: list[int] = []
        for group, a, b in zip(self.table[::-1], low[::-1], high[::-1], strict=True):
            task, at = divmod(task, b - a)
            flat[:0] = group.chunks[a + at].tolist()
        return tuple(flat[k] for k in self._order)


def _path(text: str) -> bytes | None:
    """As files are named; ``None`` where none can have that name."""
    try:
        return None if "\0" in text else os.fsencode(text)
    except UnicodeError:
        return None
