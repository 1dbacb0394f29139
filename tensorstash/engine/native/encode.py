"""Whole chunks and whole shards of a write, encoded by the kernel before they are put, and chunks
put by it where they become files on no condition."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...driver import Buffer
from ...indexing.plan import Plan
from ...indexing.selection import Stride, Transform
from ...threads import cores, nested, spread
from ..chunks import Chunks
from . import library as native
from .library import Library
from .steps import Encoding, encoding
from .tables import Group, Ints, groups

_FEWEST = 32  # chunks of a write, for which a call pays
_FEWEST_PUT = 4  # where the call puts them too
_FEWEST_INNER = 12  # and inner chunks of one shard
_BATCH_BYTES = 8 << 20  # of chunks, encoded in one call before the first of them is put
_PUT_BYTES = 64 << 20  # of chunks, put in one call unless time ends it before
_PUT_TASKS = 1 << 12
_FIRST = 4  # chunks of the first call: nothing is put before it ends
_FIRST_BYTES = 1 << 20  # of the inner chunks of the first call of a shard
_CALL_TASKS = 1 << 14
_SECONDS = 0.05  # of one call, for an interrupt waits for its end
_PLAIN = 128 << 10  # bytes of a chunk, of which nothing is to be made, that Python copies as fast
_GRAIN_BYTES = 256 << 10  # of chunks, that a thread takes at a time, at most
_THREAD_BYTES = 256 << 10  # of chunks, for which one more thread pays
_MOST_DIMS = 64  # as in kernel.h
_ALIGNED = 64
_FAILED, _WAITS = -2, -3  # of a size: Python is to look; it was not begun

Chunk = tuple[int, ...]
Item = TypeVar("Item")
Stored = tuple[str, Buffer | None]
"""A key, and what shall be stored there."""


LocalPuts = tuple[str, str, Callable[[int], int]]
"""As of :meth:`.Driver.local_puts`."""


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
        self._copies = not how.steps and how.decoding.nbytes > _PLAIN and chunks.sharding is None
        aligned = -(-how.capacity // _ALIGNED) * _ALIGNED
        self.slot = aligned if chunks.sharding is None else how.capacity
        """Bytes for a chunk, or inner chunk, that is encoded."""

    @property
    def encoded(self) -> int:
        """Bytes that a stored object has at most, where it is encoded here."""
        sharding = self.chunks.sharding
        return self.slot if sharding is None else sharding.index_nbytes + sharding.count * self.slot

    def fit(self, room: int, puts: bool) -> tuple[int, int]:
        """Threads, and chunks that a call encodes ahead, in ``room`` bytes."""
        slot, most = self.slot, self.threads
        if self.chunks.sharding is not None:  # what a thread compresses is gathered before
            return min(most, (room - self.encoded) // slot), _CALL_TASKS
        if puts:  # gathered, and encoded: nothing is left when the call ends
            return min(most, room // (2 * slot)), _PUT_TASKS
        threads = min(most, room // (4 * slot))
        # All are copied once they are encoded: one that is on its way must not keep the others.
        return threads, (room - threads * slot) // (2 * slot)

    @property
    def threads(self) -> int:
        """The most that a call from this thread may have."""
        if nested():
            return 1
        return cores() if self._threads is None else self._threads

    def of_plan(
        self, todo: Plan, value: NDArray[Any], how: Keeping, free: bool, room: int | None
    ) -> Whole | None:
        """What encodes the whole chunks that ``value`` brings where ``todo`` says; ``None`` where
        the kernel cannot, they are too few, or a call does not fit into ``room`` bytes. ``free``:
        it may put them as well."""
        sharding, puts = self.chunks.sharding, None
        if sharding is not None:
            fewest = sharding.count
        else:
            puts = self.chunks.driver.local_puts() if free else None
            fewest = _FEWEST if puts is None else _FEWEST_PUT
        if todo.joint or todo.count < fewest or (self._copies and puts is None):
            return None
        fit = None if room is None else self.fit(room, puts is not None)
        if fit is not None and (fit[0] < 1 or fit[1] < _FEWEST_PUT):
            return None
        tables = self.tables(todo.transform, value)
        return None if tables is None else Whole(self, tables, how, puts, fit)

    def shard(
        self, place: Chunk, values: NDArray[Any], how: Keeping, room: int | None
    ) -> Stored | None:
        """The shard of all ``values``; ``None`` where the kernel cannot, in ``room`` bytes."""
        fit = None if room is None else self.fit(room, False)
        if fit is not None and fit[0] < 1:
            return None
        origin = self.chunks.spec.grid.origin(place)
        maps = tuple(Stride(axis, start, 1) for axis, start in enumerate(origin))
        tables = self.tables(Transform(values.shape, maps), values)
        try:
            return None if tables is None else Whole(self, tables, how, None, fit).shard(place)
        except MemoryError:
            return None

    def tables(self, transform: Transform, value: NDArray[Any]) -> Tables | None:
        """Where the chunks that ``transform`` selects lie in ``value``; ``None`` where the kernel
        cannot gather them."""
        chunks, steps = self.chunks, self.how.decoding
        edges = chunks.grid.chunks
        if not native.enabled or edges is None or value.dtype != chunks.spec.dtype:
            return None
        found = groups(transform, edges, steps.strides, value.strides, (1,) * len(edges))
        # Of positions that are listed some may come twice.
        if found is None or any(
            isinstance(group, Group) and group.lists is not None for group in found
        ):
            return None
        return Tables(found, edges, value.view(np.dtype(("V", steps.itemsize))))

    def encode(
        self,
        tables: Tables,
        tasks: Ints,
        out: NDArray[np.uint8],
        keep: bool,
        most: int,
        files: Files | None = None,
    ) -> Ints:
        """Sizes of what each of ``tasks`` made, in ``out`` or as ``files``; below 0: as of
        :meth:`.library.Library.encode`. ``most``: threads."""
        how, library, count = self.how, self._library, len(tasks)
        sizes = np.full(count, _FAILED if files is None else _WAITS, np.int64)
        threads = max(1, min(most, count, count * how.decoding.nbytes // _THREAD_BYTES))
        following = np.zeros(1, np.int64)
        done: list[int] = []

        def share(_: int) -> None:
            each = library.encode(
                *(how.chain, tables.groups, tasks, tables.source, self._fill, out, sizes),
                axes=len(tables.edges),
                keep=keep,
                grain=max(1, min(64, count // (8 * threads), _GRAIN_BYTES // how.decoding.nbytes)),
                following=following,
                puts=files,
            )
            done.append(each)

        try:
            # Threads that wait already: new ones may begin when there is nothing left to do.
            spread(range(threads), lambda: share, threads, leaf=True)
        except (ValueError, BufferError):  # refused before it began: all are left to Python
            sizes[:] = _FAILED
            return sizes
        if any(done):
            library.count(how.decoding.kinds, sum(done), "encoded ")
            library.done["put tasks"] += sum(done) if files is not None else 0
        return sizes

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
            along = group.chunks_of(np.arange(group.many))[:, 0]
            order = np.argsort(along, kind="stable")
            self._order.append(order)
            self._chunks.append(along[order])

    def rows(self, axis: int, chunks: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """The rows of ``chunks`` along an axis, and which of these take all that a chunk has."""
        at = np.minimum(np.searchsorted(self._chunks[axis], chunks), len(self._chunks[axis]) - 1)
        rows = self._order[axis][at]
        there = self._chunks[axis][at] == chunks
        return rows, there & self._whole(axis, chunks)

    def _whole(self, axis: int, chunks: Ints) -> Any:
        group, edge = self.groups[axis], self.edges[axis]
        if isinstance(group, Group):  # a single point
            return edge == 1
        if abs(group.by) > 1:
            return edge == 1
        low = group.start if group.by > 0 else group.start - group.n + 1
        return (chunks * edge >= low) & ((chunks + 1) * edge <= low + group.n)


class Keeping(NamedTuple):
    """What a write stores of chunks: ``stays``: whether an object is stored though it is nothing
    but fill; ``keeps``: whether chunks, and inner chunks, of nothing but fill are encoded;
    ``grown``: whether what a chunk has beyond the array becomes fill."""

    stays: Callable[[Chunk], bool]
    keeps: bool
    grown: bool


class Files(NamedTuple):
    """What tasks become, as :meth:`.library.Library.encode` wants it."""

    folders: list[bytes]
    names: list[bytes]
    writer: bytes
    stamp: int
    nanoseconds: int = int(_SECONDS * 1e9)


class Whole:
    """Encodes the whole chunks of one write, whose tables are ``tables``, for one thread; and puts
    them by ``puts``. ``fit``: as of :meth:`Encoder.fit`, where there is a limit on memory."""

    def __init__(
        self,
        encoder: Encoder,
        tables: Tables,
        how: Keeping,
        puts: LocalPuts | None = None,
        fit: tuple[int, int] | None = None,
    ) -> None:
        self.puts = puts
        self._encoder = encoder
        self._tables = tables
        self._how = how
        nbytes, sharding = encoder.how.decoding.nbytes, encoder.chunks.sharding
        self.sharded = sharding is not None
        # Asked here: a worker that puts what is encoded may be the one who has the next encoded.
        self._threads = encoder.threads if fit is None else fit[0]
        self._most = max(self._threads, min(_CALL_TASKS, _BATCH_BYTES // nbytes))
        self._apart = fit is not None
        if fit is not None:
            self._most = min(self._most, fit[1])
        first = _FIRST if sharding is None else max(self._threads, _FIRST_BYTES // nbytes)
        self.size = min(first, self._most)
        if puts is not None:
            self.size = max(self._threads, min(_PUT_TASKS, _PUT_BYTES // nbytes))
        """Chunks for the next call."""

    def key(self, place: Chunk) -> str:
        """Where a chunk, or shard, is stored."""
        return self._encoder.chunks.key(place)

    def _encode(self, tasks: Ints, out: NDArray[np.uint8]) -> Ints:
        began = monotonic()
        sizes = self._encoder.encode(self._tables, tasks, out, self._how.keeps, self._threads)
        slow = monotonic() - began > _SECONDS
        self.size = max(self._threads, self.size // 2) if slow else min(2 * self.size, self._most)
        return sizes

    def chunks(self, places: list[Chunk]) -> Iterator[tuple[Chunk, Stored]]:
        """Those of ``places`` that need no Python, with what is stored there."""
        encoder = self._encoder
        places, tasks = self._tasks(places)
        slot = encoder.slot
        tasks[:, 0] = np.arange(len(places)) * slot
        out = np.empty(len(places) * slot, np.uint8)
        sizes = self._encode(tasks, out).tolist()
        view = out.data.toreadonly()
        for place, at, size in zip(places, tasks[:, 0].tolist(), sizes, strict=True):
            if size >= 0:
                data = view[at : at + size]
                yield place, (self.key(place), bytes(data) if self._apart else data)
            elif size == -1 and not self._how.stays(place):
                yield place, (self.key(place), None)

    def _tasks(self, places: list[Chunk]) -> tuple[list[Chunk], Ints]:
        """Those of ``places`` need no Python, and their tasks."""
        along = np.array(places, np.int64).T
        found = [self._tables.rows(axis, along[axis]) for axis in range(len(along))]
        whole = np.logical_and.reduce([some for _, some in found])
        all_of_them = np.arange(len(places))
        picked = all_of_them if self._how.grown else np.flatnonzero(whole)
        tasks = np.empty((len(picked), 1 + len(found)), np.int64)
        for axis, (rows, _) in enumerate(found):
            tasks[:, 1 + axis] = rows[picked]
        return [places[k] for k in picked.tolist()], tasks

    def put(self, places: list[Chunk]) -> tuple[list[Chunk], list[Chunk], list[Chunk]]:
        """Put those of ``places`` that need no Python, for a moment.

        Returns:
            Those that are put, those of nothing but fill, and those for another call.
        """
        encoder, puts = self._encoder, self.puts
        assert puts is not None
        base, writer, stamps = puts
        places, tasks, folders, names = self._named(*self._tasks(places))
        if not places:
            return [], [], []
        try:
            # A link in the place of the root itself is followed.
            paths = [os.fsencode(f"{base}{folder or '.'}") for folder in folders]
        except UnicodeError:  # whoever puts is told
            return [], [], []
        files = Files(paths, names, writer.encode(), stamps(len(names)))
        keep = self._how.keeps
        out = np.empty(0, np.uint8)
        sizes = encoder.encode(self._tables, tasks, out, keep, self._threads, files).tolist()
        done, fill, waiting = [], [], []
        for place, size in zip(places, sizes, strict=True):
            if size >= 0:
                done.append(place)
            elif size == _WAITS:
                waiting.append(place)
            elif size == -1 and not self._how.stays(place):
                fill.append(place)
        return done, fill, waiting

    def _named(
        self, places: list[Chunk], tasks: Ints
    ) -> tuple[list[Chunk], Ints, dict[str, int], list[bytes]]:
        """Those of ``places`` that may be put, their tasks, the folders that these say now, by
        their numbers, and a name for each."""
        chunks = self._encoder.chunks
        folders: dict[str, int] = {}
        linked: set[str] = set()
        able: list[int] = []
        names: list[bytes] = []
        for at, place in enumerate(places):
            folder, _, name = chunks.key(place).rpartition("/")
            number = folders.get(folder)
            if number is None:
                if name[0] == "." or folder in linked or not chunks.driver.plain_folder(folder):
                    linked.add(folder)
                    continue
                number = folders[folder] = len(folders)
            tasks[at, 0] = number
            able.append(at)
            names.append(name.encode())
        if len(able) < len(places):
            places, tasks = [places[at] for at in able], tasks[able]
        return places, tasks, folders, names

    def shard(self, place: Chunk) -> Stored | None:
        """A shard whose inner chunks are all covered; ``None`` where Python is to make it."""
        tables, encoder = self._tables, self._encoder
        sharding = encoder.chunks.sharding
        assert sharding is not None
        along: list[Ints] = []
        for axis, (k, ratio) in enumerate(zip(place, sharding.grid, strict=True)):
            rows, whole = tables.rows(axis, np.arange(k * ratio, (k + 1) * ratio))
            if not self._how.grown and not whole.all():
                return None
            along.append(rows)
        slot, start, count = encoder.slot, sharding.body_at, sharding.count
        out = np.empty(sharding.index_nbytes + count * slot, np.uint8)
        sizes = np.empty(count, np.int64)
        first = 0
        while first < count:
            at = np.arange(first, min(first + self.size, count))
            tasks = np.empty((len(at), 1 + len(along)), np.int64)
            tasks[:, 0] = start + at * slot
            for axis, inside in enumerate(np.unravel_index(at, sharding.grid)):
                tasks[:, 1 + axis] = along[axis][inside]
            some = self._encode(tasks, out)
            if bool((some < -1).any()):
                return None
            sizes[first : first + len(at)] = some
            first += len(at)
        key = self.key(place)
        if bool((sizes == -1).all()):
            return key, sharding.empty() if self._how.stays(place) else None
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


class Ahead(Generic[Item]):
    """Encodes items of one write before they are asked for, the next few in one call.

    Args:
        whole: What encodes.
        place: An item's index in the array's own grid.
        covers: Whether nothing is wanted of what is stored of it.
        python: What is stored of an item, where the kernel has not encoded it.
    """

    def __init__(
        self,
        whole: Whole,
        place: Callable[[Item], Chunk],
        covers: Callable[[Item], bool],
        python: Callable[[Item], Stored | None],
    ) -> None:
        self._encodes = whole
        self._place = place
        self._covers = covers
        self._python = python
        self._made: dict[Chunk, Stored] = {}

    def whole(self, item: Item) -> Stored | None:
        """What is stored of an item, once."""
        return self._made.pop(self._place(item), None) or self._python(item)

    def items(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, the next of which are encoded already; without those that are put."""
        whole = self._encodes
        while some := [*islice(items, 1 if whole.sharded else whole.size)]:
            if whole.puts is not None:
                yield from self._put(some)
                continue
            wanted = [self._place(item) for item in some if self._covers(item)]
            try:
                if whole.sharded:
                    for place in wanted:
                        found = whole.shard(place)
                        if found is not None:
                            self._made[place] = found
                elif len(wanted) > 1:
                    self._made.update(whole.chunks(wanted))
            except MemoryError:
                pass  # one after another, in Python
            yield from some

    def _put(self, some: list[Item]) -> Iterable[Item]:
        """Those of ``some`` that Python is to put."""
        left = {self._place(item): item for item in some}
        waiting = [place for place, item in left.items() if self._covers(item)]
        if len(waiting) < _FEWEST_PUT:
            return some
        try:
            while waiting:
                done, fill, waiting = self._encodes.put(waiting)
                for place in done:
                    del left[place]
                self._made.update((place, (self._encodes.key(place), None)) for place in fill)
        except MemoryError:
            pass
        return left.values()


def encoder(chunks: Chunks, threads: int | None) -> Encoder | None:
    """What encodes chunks of the array at ``chunks``; ``None`` where the kernel cannot."""
    library, pipeline = native.library, chunks.pipeline
    if not native.enabled or library.kernel is None or pipeline is None or not chunks.plain:
        return None
    if not 0 < chunks.spec.ndim < _MOST_DIMS:
        return None
    how = encoding(pipeline, library)
    sharding = chunks.sharding
    if how is None or (sharding is not None and sharding.count < _FEWEST_INNER):
        return None
    return Encoder(chunks, library, how, threads)
