"""Whole chunks and whole shards of a write, encoded by the kernel before they are put."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...driver import Buffer
from ...indexing.plan import Plan
from ...indexing.selection import Transform
from ...threads import cores, nested
from ..chunks import Chunks
from . import library as native
from .library import Library
from .steps import Encoding, encoding
from .tables import Ints, groups

_BATCH_BYTES = 8 << 20  # of chunks that are encoded before the first of them is put
_FIRST = 4  # chunks of the first batch: nothing is put before it is encoded
_CALL_BYTES = 64 << 20  # of chunks, in one call, for an interrupt waits for its end
_CALL_TASKS = 1 << 16
_THREAD_BYTES = 256 << 10  # of chunks, for which one more thread pays
_MOST_DIMS = 64  # as in kernel.h
_ALIGNED = 64

Chunk = tuple[int, ...]
Item = TypeVar("Item")
Stored = tuple[str, Buffer | None]
"""A key, and what shall be stored there."""


class Encoder:
    """Encodes chunks of the array at ``chunks`` as ``how`` says, in at most so many ``threads``."""

    def __init__(
        self, chunks: Chunks, library: Library, how: Encoding, threads: int | None
    ) -> None:
        self.chunks = chunks
        self.how = how
        self._library = library
        self._threads = threads
        self._fill = chunks.spec.fill.tobytes()

    def ahead(
        self,
        todo: Plan,
        value: NDArray[Any],
        place: Callable[[Item], Chunk],
        covers: Callable[[Item], bool],
        whole: Callable[[Item], Stored | None],
        stays: Callable[[Chunk], bool],
        keep: bool,
        grown: bool,
    ) -> Ahead[Item] | None:
        """What encodes the items of one write of ``value``; ``None`` where the kernel cannot, or
        they are too few."""
        sharding = self.chunks.sharding
        if todo.joint or todo.count < (2 if sharding is None else sharding.count):
            return None
        tables = self.tables(todo.transform, value)
        if tables is None:
            return None
        return Ahead(self, tables, place, covers, whole, stays, keep, grown)

    def tables(self, transform: Transform, value: NDArray[Any]) -> Tables | None:
        """Where the chunks that ``transform`` selects lie in ``value``; ``None`` where the kernel
        cannot gather them."""
        chunks, steps = self.chunks, self.how.decoding
        edges = chunks.grid.chunks
        if not native.enabled or edges is None or value.dtype != chunks.spec.dtype:
            return None
        found = groups(transform, edges, steps.strides, value.strides, (1,) * len(edges))
        # Of positions that are listed some may come twice.
        if found is None or any(group.lists is not None for group in found):
            return None
        return Tables(found, edges, value.view(np.dtype(("V", steps.itemsize))))

    def encode(self, tables: Tables, tasks: Ints, out: NDArray[np.uint8], keep: bool) -> Ints:
        """Sizes of what each of ``tasks`` made, in ``out``; below 0: as of
        :meth:`.library.Library.encode`."""
        how, library, count = self.how, self._library, len(tasks)
        sizes = np.full(count, -2, np.int64)
        threads = self.threads_for(count)
        try:
            done = library.encode(
                *(how.chain, tables.groups, tasks, tables.source, self._fill, out, sizes),
                axes=len(tables.edges),
                keep=keep,
                threads=threads,
                grain=max(1, min(64, count // (8 * threads))),
            )
        except (ValueError, BufferError):  # refused before it began: all are left to Python
            return sizes
        if done:
            library.count(how.decoding.kinds, done, "encoded ")
        return sizes

    def threads_for(self, count: int) -> int:
        """For so many chunks."""
        if nested():
            return 1
        most = cores() if self._threads is None else self._threads
        return max(1, min(most, count, count * self.how.decoding.nbytes // _THREAD_BYTES))

    def pack(self, out: NDArray[np.uint8], sizes: Ints, start: int, slot: int) -> int:
        """Move chunks of ``sizes``, each ``slot`` behind the one before, together from ``start``
        on; returns where they end."""
        assert self._library.kernel is not None
        end: int = self._library.kernel.pack(out, sizes, start, slot)
        return end


class Tables:
    """The tables of one write: for each axis the rows by chunk, and which are of whole chunks."""

    def __init__(self, table: Any, edges: Chunk, source: NDArray[Any]) -> None:
        self.groups = table
        self.edges = edges
        self.source = source
        self._chunks: list[Ints] = []
        self._order: list[NDArray[np.intp]] = []
        for group in table:
            along = group.chunks[:, 0]
            order = np.argsort(along, kind="stable")
            self._order.append(order)
            self._chunks.append(along[order])

    def rows(self, axis: int, chunks: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """The rows of ``chunks`` along an axis, and which of these take all that a chunk has."""
        at = np.minimum(np.searchsorted(self._chunks[axis], chunks), len(self._chunks[axis]) - 1)
        rows = self._order[axis][at]
        there = self._chunks[axis][at] == chunks
        whole = there & (self.groups[axis].rows[rows, 0] == self.edges[axis])
        return rows, whole


class Ahead(Generic[Item]):
    """Encodes items of one write before they are asked for, a batch in one call.

    Args:
        encoder: What encodes.
        tables: Of this write.
        place: An item's index in the array's own grid.
        covers: Whether nothing is wanted of what is stored of it.
        whole: What is stored of an item, encoded in Python: where the kernel has not done it.
        stays: Whether an object is stored though it is nothing but fill.
        keep: Whether chunks, and inner chunks, of nothing but fill are stored.
        grown: Whether what a chunk has beyond the array is to be fill.
    """

    def __init__(
        self,
        encoder: Encoder,
        tables: Tables,
        place: Callable[[Item], Chunk],
        covers: Callable[[Item], bool],
        whole: Callable[[Item], Stored | None],
        stays: Callable[[Chunk], bool],
        keep: bool,
        grown: bool,
    ) -> None:
        self._encoder = encoder
        self._tables = tables
        self._place = place
        self._covers = covers
        self._whole = whole
        self._stays = stays
        self._keep = keep
        self._grown = grown
        self._made: dict[Chunk, Stored] = {}

    def whole(self, item: Item) -> Stored | None:
        """What is stored of an item, once."""
        return self._made.pop(self._place(item), None) or self._whole(item)

    def items(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, the next of which are encoded already."""
        encoder = self._encoder
        sharding, nbytes = encoder.chunks.sharding, encoder.how.decoding.nbytes
        each = nbytes if sharding is None else nbytes * sharding.count
        most = max(encoder.threads_for(_CALL_TASKS), _BATCH_BYTES // each, 1)
        size = min(_FIRST, most)
        items = iter(items)
        while some := [*islice(items, size)]:
            wanted = [self._place(item) for item in some if self._covers(item)]
            try:
                if sharding is not None:
                    self._encode_shards(wanted)
                elif len(wanted) > 1:
                    self._encode_chunks(wanted)
            except MemoryError:
                self._made.clear()  # one after another, in Python
            yield from some
            size = min(2 * size, most)

    def _encode_chunks(self, places: list[Chunk]) -> None:
        tables, encoder = self._tables, self._encoder
        along = np.array(places, np.int64).T
        found = [tables.rows(axis, along[axis]) for axis in range(len(along))]
        whole = np.logical_and.reduce([some for _, some in found])
        picked = range(len(places)) if self._grown else np.flatnonzero(whole).tolist()
        slot = -(-encoder.how.capacity // _ALIGNED) * _ALIGNED
        tasks = np.empty((len(picked), 1 + len(found)), np.int64)
        tasks[:, 0] = np.arange(len(picked)) * slot
        for axis, (rows, _) in enumerate(found):
            tasks[:, 1 + axis] = rows[picked]
        out = np.empty(len(picked) * slot, np.uint8)
        sizes = encoder.encode(tables, tasks, out, self._keep).tolist()
        view = out.data.toreadonly()
        for k, at, size in zip(picked, tasks[:, 0].tolist(), sizes, strict=True):
            place = places[k]
            if size >= 0:
                self._made[place] = encoder.chunks.key(place), view[at : at + size]
            elif size == -1 and not self._stays(place):
                self._made[place] = encoder.chunks.key(place), None

    def _encode_shards(self, places: list[Chunk]) -> None:
        for place in places:
            found = self._shard(place)
            if found is not None:
                self._made[place] = found

    def _shard(self, place: Chunk) -> Stored | None:
        """A shard whose inner chunks are all covered; ``None`` where Python is to make it."""
        tables, encoder = self._tables, self._encoder
        sharding = encoder.chunks.sharding
        assert sharding is not None
        along: list[Ints] = []
        for axis, (k, ratio) in enumerate(zip(place, sharding.grid, strict=True)):
            rows, whole = tables.rows(axis, np.arange(k * ratio, (k + 1) * ratio))
            if not self._grown and not whole.all():
                return None
            along.append(rows)
        slot, nbytes = encoder.how.capacity, encoder.how.decoding.nbytes
        start, count = sharding.body_at, sharding.count
        out = np.empty(sharding.index_nbytes + count * slot, np.uint8)
        sizes = np.empty(count, np.int64)
        most = max(1, min(_CALL_TASKS, _CALL_BYTES // nbytes))
        for first in range(0, count, most):
            at = np.arange(first, min(first + most, count))
            tasks = np.empty((len(at), 1 + len(along)), np.int64)
            tasks[:, 0] = start + at * slot
            for axis, inside in enumerate(np.unravel_index(at, sharding.grid)):
                tasks[:, 1 + axis] = along[axis][inside]
            sizes[first : first + len(at)] = encoder.encode(tables, tasks, out, self._keep)
            if bool((sizes[first : first + len(at)] < -1).any()):
                return None
        key = encoder.chunks.key(place)
        if bool((sizes == -1).all()):
            return key, sharding.empty() if self._stays(place) else None
        end = encoder.pack(out, sizes, start, slot)
        index = sharding.encode_index(sizes)
        if end - start > sharding.most:
            return None  # Python says so
        view = out.data
        if start:
            view[:start] = index
        else:
            view[end : end + len(index)] = index
            end += len(index)
        return key, view[:end].toreadonly()


def encoder(chunks: Chunks, threads: int | None) -> Encoder | None:
    """What encodes chunks of the array at ``chunks``; ``None`` where the kernel cannot."""
    library, pipeline = native.library, chunks.pipeline
    if library.kernel is None or pipeline is None or not chunks.plain:
        return None
    if not 0 < chunks.spec.ndim < _MOST_DIMS:
        return None
    how = encoding(pipeline, library)
    return None if how is None else Encoder(chunks, library, how, threads)
