"""Stored arrays, and slices of them, read by rows, runs of rows and boxes, straight into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ..cached import Cached
from ..columns import Placed, Ragged
from ..errors import Invalid, NoMemory, counted, short
from ..handle import Handle
from ..indexing.fields import Fields
from ..indexing.grid import AxisGrid, RegularAxis
from ..indexing.selection import AxisMap, Stride, Take, Transform, dims_of, identity
from ..limits import HUGE
from ..loading.dataloader_worker import in_worker
from ..threads import IO_THREADS, THREAD_BYTES, count_for, spread
from ..view import View

Rows = NDArray[np.int64]

_SPARSE = (
    8  # rows between the ends of a group for each that is wanted, beyond which single rows are read
)
_THREAD_TOTAL = 512 << 10  # bytes to decode in all before a second thread is asked


@dataclass(frozen=True, slots=True)
class Edges:
    """Where chunks meet along one dimension of a slice: position ``i`` of ``length`` is element
    ``start + i`` of an axis cut by ``axis``."""

    axis: AxisGrid
    start: int
    length: int

    def of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The chunk that holds each of ``positions``."""
        return self.axis.of_many(positions + self.start if self.start else positions)

    def starts(self, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each of ``chunks`` begins; beyond the slice it may be."""
        return self.axis.starts(chunks) - self.start

    def span(self, chunk: int) -> tuple[int, int]:
        """Where a chunk begins and ends; beyond the slice it may be."""
        first = self.axis.start(chunk) - self.start
        return first, first + self.axis.size(chunk)

    @property
    def bounds(self) -> NDArray[np.int64]:
        """The positions at which a chunk begins, from 0 on, and the end."""
        if not self.length:
            return np.zeros(1, np.int64)
        first, last = self.axis.of(self.start), self.axis.of(self.start + self.length - 1)
        try:
            if last + 2 - first > HUGE:  # which NumPy would take for few
                raise MemoryError
            found = self.starts(np.arange(first, last + 2))
        except (MemoryError, ValueError) as error:  # NumPy refuses the largest by ValueError
            raise NoMemory(
                f"no memory to order {counted(last + 1 - first, 'chunk')}; use larger "
                f"chunks, or a slice"
            ) from error
        found[0], found[-1] = 0, self.length
        return found


class Sliced:
    """An array, or a view of one by slices, to be read by rows or by boxes.

    Pickles as the array's handle and the slices. Its shape is that of when it was made, so that
    every process sees the same rows, whatever is appended meanwhile.
    """

    fields: Fields | None = None

    def __init__(self, array: Any, what: str = "this") -> None:
        """``array``: a handle or a view; ``what`` names it in errors."""
        view = View(array, identity(array.shape)) if isinstance(array, Handle) else array
        if not isinstance(view, View):
            raise Invalid(
                f"{what} must be a stored array or a lazy view of one, not {short(array)}"
            )
        self.array: Handle = view.array
        self.what = what
        self.transform = view.transform
        self.fields = view.fields
        self.shape = view.shape

    def first(self, rows: int) -> Sliced:
        """The same for the first so many positions along the first dimension."""
        return Sliced(View(self.array, self.transform, self.fields)[:rows], self.what)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type: of a view of some fields, theirs."""
        return self.array.dtype if self.fields is None else self.fields.dtype

    @property
    def plain(self) -> bool:
        """Whether elements are plain memory, so that they can be read into a given array."""
        return self.dtype.kind not in "OT"

    @property
    def item_bytes(self) -> int:
        """Bytes of an element; for text, a guess."""
        return self.dtype.itemsize if self.plain else 64

    @property
    def row_bytes(self) -> int:
        """Bytes of what one position along the first dimension has."""
        return math.prod(self.shape[1:]) * self.item_bytes

    # -- how it is cut ------------------------------------------------------------------------

    @Cached
    def raw(self) -> bool:
        """Whether chunks are stored as they are in memory, so that parts of them can be read."""
        return [codec.name for codec in self.array.codecs] == ["bytes"]

    @Cached
    def slab_bytes(self) -> int:
        """About how many bytes are decoded for a row: those of a chunk's rows."""
        bounds = self.edges(0).bounds
        return self.row_bytes * int(np.diff(bounds).max(initial=1))

    @Cached
    def chunk_bytes(self) -> int:
        """About how many bytes a decoded chunk has."""
        sizes = [np.diff(self.edges(dim).bounds).max(initial=1) for dim in range(len(self.shape))]
        return math.prod(map(int, sizes)) * self.item_bytes

    @property
    def kept(self) -> float:
        """The part of what is decoded that the array's cache holds."""
        total = math.prod(self.shape) * self.item_bytes
        return min(1.0, self.array.settings.cache_bytes / max(1, total))

    def edges(self, dim: int) -> Edges:
        """Where that which is decoded at once meets along a dimension."""
        return Edges(self._cuts[self._place(dim)[0]], self._place(dim)[1], self.shape[dim])

    def stored_edges(self, dim: int) -> Edges:
        """Where stored objects meet: shards, where there are shards."""
        axis, start = self._place(dim)
        return Edges(self.array.spec.grid.axes[axis], start, self.shape[dim])

    @Cached
    def _cuts(self) -> tuple[AxisGrid, ...]:
        inner = self.array.chunks
        return self.array.spec.grid.axes if inner is None else tuple(map(RegularAxis, inner))

    @Cached
    def _places(self) -> tuple[tuple[int, int] | None, ...]:
        maps = self.transform.maps
        found: list[tuple[int, int] | None] = []
        for dim in range(len(self.shape)):
            axes = [axis for axis, axis_map in enumerate(maps) if dim in dims_of(axis_map)]
            axis_map = maps[axes[0]] if len(axes) == 1 else None
            plain = isinstance(axis_map, Stride) and axis_map.step == 1
            found.append((axes[0], axis_map.start) if plain else None)  # type: ignore[union-attr]
        return tuple(found)

    def _place(self, dim: int) -> tuple[int, int]:
        """The array's axis along a dimension, and where on it the slice begins."""
        place = self._places[dim]
        if place is None:
            raise Invalid(f"{self.what} must be sliced without steps along dimension {dim}")
        return place

    # -- reading ------------------------------------------------------------------------------

    def rows(self, rows: NDArray[np.int64]) -> Transform:
        """Any rows along the first dimension."""
        shape, maps = self.transform
        axis, start = self._place(0)
        changed: list[AxisMap] = list(maps)
        changed[axis] = Take((0,), rows + start if start else rows)
        return Transform((len(rows), *shape[1:]), tuple(changed))

    def run(self, start: int, stop: int) -> Transform:
        """The rows from ``start`` to ``stop``: :meth:`box`, in a fraction of its time."""
        first, before, after, tail = self._first
        lead = Stride(0, first + start, 1)
        return Transform((stop - start, *tail), (*before, lead, *after))

    @Cached
    def _first(self) -> tuple[int, tuple[AxisMap, ...], tuple[AxisMap, ...], tuple[int, ...]]:
        axis, first = self._place(0)
        shape, maps = self.transform
        return first, maps[:axis], maps[axis + 1 :], shape[1:]

    def box(self, bounds: Mapping[int, tuple[int, int]]) -> Transform:
        """What lies from ``start`` to ``stop`` along some dimensions, and all along the others."""
        shape, maps = self.transform
        lengths, changed = list(shape), list(maps)
        for dim, (start, stop) in bounds.items():
            axis, first = self._place(dim)
            lengths[dim] = stop - start
            changed[axis] = Stride(dim, first + start, 1)
        return Transform(tuple(lengths), tuple(changed))

    def read(self, transform: Transform, out: NDArray[Any] | Placed | None = None) -> NDArray[Any]:
        """Read what :meth:`run`, :meth:`rows` or :meth:`box` has made."""
        if isinstance(out, Placed) and self.fields is not None:
            out.array[out.rows] = self.read(transform)
            return out.array
        return self.array.read_transform(transform, out, self.fields)

    @Cached
    def local(self) -> bool:
        """Whether requests cost no round trip."""
        return bool(self.array.driver.capabilities.local)

    def threads(self, reads: int, read_bytes: int) -> int:
        """Threads worth having for so many reads of separate chunks, each of which decodes about
        ``read_bytes``: in a remote store all that wait at once, else as many as there is work
        for."""
        if not self.local:
            return min(reads, IO_THREADS)
        if read_bytes < THREAD_BYTES or reads * read_bytes < _THREAD_TOTAL or not self.plain:
            return 1
        if self.array.driver.capabilities.one_thread:
            return 1
        return count_for(reads, read_bytes, self.array.settings.threads)

    def settle(self) -> None:
        """Called before reads: in a worker of a ``DataLoader``, of which several fill the
        processors, each uses one thread, by a handle of its own."""
        if self.array.settings.threads != 1 and in_worker():
            self.array = one_threaded(self.array)

    def __getstate__(self) -> dict[str, Any]:
        names = ["array", "what", "transform", "shape"]
        if self.fields is not None:
            names.append("fields")
        return {name: self.__dict__[name] for name in names}


def one_threaded(array: Handle) -> Handle:
    """Another handle on the same array, with its cache, that reads with the caller's thread alone;
    the user's own is left as it is."""
    made: Handle = object.__new__(type(array))
    made.__dict__ |= array.__dict__
    made.settings = replace(array.settings, threads=1)
    made.refresh()  # which makes a reader for these settings
    return made


class _Group(NamedTuple):
    """Runs that share chunks, and the rows from their first to their last."""

    start: int
    stop: int
    members: Rows


def read_runs(sliced: Sliced, starts: Rows, out: NDArray[Any]) -> None:
    """``out[i]`` becomes the rows from ``starts[i]`` on, as many as it holds; each chunk is
    decoded once. Of uncompressed chunks no more than the runs is read."""
    count, length = out.shape[:2]
    if not count or not length:
        return
    if not sliced.local:  # one window of requests for all
        _read_rows(sliced, starts, out)
        return
    groups = list(_groups(sliced, starts, length))

    def make() -> Callable[[_Group], None]:
        return lambda group: _read_group(sliced, starts, out, group)

    work = length * sliced.row_bytes if sliced.raw else sliced.slab_bytes
    spread(groups, make, sliced.threads(len(groups), work))


def cut_runs(column: Any, offsets: Rows, length: int, out: NDArray[Any] | None = None) -> Any:
    """The ``length`` rows of ``column`` from each of ``offsets`` on, in memory of their own:
    an array, or a list where rows are no plain array."""
    if isinstance(column, Ragged):
        return [column[np.arange(start, start + length)] for start in offsets]
    if not isinstance(column, np.ndarray):
        return [column[start : start + length] for start in offsets.tolist()]
    if out is None:
        out = np.empty((len(offsets), length, *column.shape[1:]), column.dtype)
    steps = np.diff(offsets)
    if len(steps) and steps[0] >= 0 and (steps == steps[0]).all() and plain(column):
        out[...] = strided_runs(column[int(offsets[0]) :], int(steps[0]), out.shape)
        return out
    for place, start in zip(out, offsets.tolist(), strict=True):
        place[...] = column[start : start + length]
    return out


def plain(column: Any) -> bool:
    """Whether :func:`strided_runs` can be had of a column: an array of plain memory."""
    return isinstance(column, np.ndarray) and column.dtype.kind not in "TO"


def strided_runs(column: NDArray[Any], step: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """A read-only view of ``column``, of ``shape``: runs that begin ``step`` rows apart."""
    row, *rest = column.strides
    return as_strided(column, shape, (step * row, row, *rest), writeable=False)


def _groups(sliced: Sliced, starts: Rows, length: int) -> Iterator[_Group]:
    order = np.argsort(starts, kind="stable")
    first = starts[order]
    last = first + (length - 1)
    # All runs are of one length: the latest to begin is the latest to end.
    if sliced.raw:
        parted = first[1:] > last[:-1]
    else:
        edges = sliced.edges(0)
        parted = edges.of(first[1:]) > edges.of(last[:-1])
    cuts = (np.flatnonzero(parted) + 1).tolist()
    for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True):
        yield _Group(int(first[a]), int(last[b - 1]) + 1, order[a:b])


def _read_group(sliced: Sliced, starts: Rows, out: NDArray[Any], group: _Group) -> None:
    members, length = group.members, out.shape[1]
    if len(members) == 1:
        sliced.read(sliced.run(group.start, group.stop), out[int(members[0])])
        return
    if group.stop - group.start > _SPARSE * len(members) * length:
        piece = np.empty((len(members), *out.shape[1:]), out.dtype)
        _read_rows(sliced, starts[members], piece)
        out[members] = piece
        return
    run = sliced.read(sliced.run(group.start, group.stop))
    for i, start in zip(members.tolist(), (starts[members] - group.start).tolist(), strict=True):
        out[i] = run[start : start + length]


def _read_rows(sliced: Sliced, starts: Rows, out: NDArray[Any]) -> None:
    count, length, *element = out.shape
    rows = (starts[:, None] + np.arange(length)).reshape(-1)
    flat = out.reshape(count * length, *element)  # a view, unless a caller's memory has gaps
    sliced.read(sliced.rows(rows), flat)
    if not np.may_share_memory(flat, out):
        out[...] = flat.reshape(out.shape)
