"""A transform split along a chunk grid: which chunks, which part of each, where it goes.

Pure arithmetic. A plan is per-axis tables whose product is the parts, so planning costs the
sum of the axes' chunks and huge plans are never held as one list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice, product, repeat
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .grid import AxisGrid, Grid, RegularAxis
from .index import AxisMap, Point, Stride, Take, Transform

Index: TypeAlias = int | slice | NDArray[np.intp]
"""What a part asks of one axis."""

_HELD = 1 << 14  # table rows held at once; a longer table is walked in pieces of this many


class Part(NamedTuple):
    """A selection's share of one chunk: ``out[outside] = chunk[inside]`` in the plan's layout.

    ``inside`` and ``outside`` are orthogonal: an array acts on its own axis. The joint axes of
    the plan, when there are any, come first and act pointwise, together. The part covers all
    the chunk has within the array when ``False not in wholes``.
    """

    chunk: tuple[int, ...]
    inside: tuple[Index, ...]
    outside: tuple[Index, ...]
    wholes: tuple[bool, ...]


class Row(NamedTuple):
    """One chunk along one axis, or one tuple of chunks along the joint axes (whose ``inside``
    and ``outside`` are tuples too). ``outside`` is ``None`` where the axis is dropped."""

    chunk: Any
    inside: Any
    outside: Any
    whole: bool


Table: TypeAlias = "Sequence[Row] | _StrideRows"


@dataclass(frozen=True)
class Plan:
    """The parts of a transform over a grid.

    ``joint`` axes of the array are indexed pointwise and together, and run over the first
    ``joint_dims`` of ``dims``; ``axes`` are the other array axes in order. A part's ``inside``
    indexes the chunk with its axes in the order ``joint + axes``; its ``outside`` indexes the
    output with its dimensions in the order ``dims``. ``arrays`` says whether any part may hold
    an index array outside the joint axes.
    """

    transform: Transform
    tables: tuple[Table, ...]
    joint: tuple[int, ...]
    axes: tuple[int, ...]
    dims: tuple[int, ...]
    joint_dims: int
    arrays: bool

    def __len__(self) -> int:
        """Chunks touched (each counted once)."""
        return math.prod(len(table) for table in self.tables)

    def parts(self) -> Iterator[Part]:
        """Every part, once."""
        return self._product(self.tables)

    def shards(self, ratios: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Iterator[Part]]]:
        """Parts grouped by the shard that holds them, for a grid of inner chunks of which
        ``ratios[k]`` lie in a shard along axis ``k``. A part's ``chunk`` is then the inner
        chunk's place within its shard."""
        scales: list[Any] = [ratios[axis] for axis in self.axes]
        if self.joint:
            scales.insert(0, tuple(ratios[axis] for axis in self.joint))
        groups = [_grouped(t, s) for t, s in zip(self.tables, scales, strict=True)]
        for combination in product(*groups):
            shard = self._array_order(tuple(group.chunk for group in combination))
            yield shard, self._product([group.rows for group in combination])

    def _product(self, tables: Sequence[Table]) -> Iterator[Part]:
        """The product of the tables at the speed of :mod:`itertools`, in bounded memory."""
        for k, table in enumerate(tables):
            if len(table) > _HELD:
                rows = iter(table)
                while piece := list(islice(rows, _HELD)):
                    yield from self._product([*tables[:k], piece, *tables[k + 1 :]])
                return
        held = [list(table) for table in tables]
        parts = zip(
            product(*([row.chunk for row in rows] for rows in held)),
            product(*([row.inside for row in rows] for rows in held)),
            product(*([row.outside for row in rows] for rows in held if _kept(rows))),
            product(*([row.whole for row in rows] for rows in held)),
            strict=True,
        )
        if not self.joint:
            yield from map(Part._make, parts)
            return
        for chunks, insides, outsides, wholes in parts:
            inside = (*insides[0], *insides[1:])
            outside = (*outsides[0], *outsides[1:])
            yield Part(self._array_order(chunks), inside, outside, wholes)

    def _array_order(self, chunks: tuple[Any, ...]) -> tuple[int, ...]:
        """A chunk's index in array order, from joint-first order."""
        if not self.joint:
            return chunks
        flat = (*chunks[0], *chunks[1:])
        return tuple(flat[k] for k in self._order)

    @cached_property
    def _order(self) -> list[int]:
        return [int(k) for k in np.argsort(self.joint + self.axes)]


def _kept(rows: Sequence[Row]) -> bool:
    """Whether the axis appears in the output; only a single point drops it."""
    return not (len(rows) == 1 and rows[0].outside is None)


def plan(transform: Transform, grid: Grid, shape: Sequence[int]) -> Plan:
    """The parts of ``transform`` over an array of ``shape`` cut by ``grid``; each touched
    chunk appears exactly once."""
    maps = transform.maps
    joint = _joint_axes(maps)
    axes = tuple(k for k in range(len(maps)) if k not in joint)
    tables: list[Table] = []
    dims: list[int] = []
    arrays = False
    if joint:
        table, dims = _joint_rows(
            [maps[k] for k in joint], [grid.axes[k] for k in joint], transform.shape
        )
        tables.append(table)
    joint_dims = len(dims)
    for k in axes:
        axis_map, axis, n = maps[k], grid.axes[k], shape[k]
        if isinstance(axis_map, Point):
            tables.append(_point_rows(axis_map.index, axis, n))
        elif isinstance(axis_map, Stride):
            tables.append(_StrideRows(axis_map, transform.shape[axis_map.dim], axis, n))
            dims.append(axis_map.dim)
        else:
            tables.append(_take_rows(axis_map.array, axis, n))
            dims.append(axis_map.dims[0])
            arrays = True
    return Plan(transform, tuple(tables), joint, axes, tuple(dims), joint_dims, arrays)


def _joint_axes(maps: Sequence[AxisMap]) -> tuple[int, ...]:
    """Axes whose index arrays cannot be taken one axis at a time: they share a dimension with
    another axis, or run over several. All such axes are planned as one group."""
    uses: dict[int, int] = {}
    for axis_map in maps:
        for dim in _dims(axis_map):
            uses[dim] = uses.get(dim, 0) + 1
    return tuple(
        k
        for k, axis_map in enumerate(maps)
        if (len(_dims(axis_map)) > 1 or any(uses[dim] > 1 for dim in _dims(axis_map)))
    )


def _dims(axis_map: AxisMap) -> tuple[int, ...]:
    if isinstance(axis_map, Point):
        return ()
    return (axis_map.dim,) if isinstance(axis_map, Stride) else axis_map.dims


# -- tables: one per axis -----------------------------------------------------------------


def _extent(chunk: int, axis: AxisGrid, n: int) -> int:
    """Elements of ``chunk`` that lie within an axis of ``n`` elements."""
    return min(axis.size(chunk), n - axis.start(chunk))


def _point_rows(index: int, axis: AxisGrid, n: int) -> list[Row]:
    chunk = axis.of(index)
    return [Row(chunk, index - axis.start(chunk), None, _extent(chunk, axis, n) == 1)]


class _StrideRows:
    """The rows of a strided axis, made as they are asked for."""

    def __init__(self, axis_map: Stride, length: int, axis: AxisGrid, n: int) -> None:
        self._map = axis_map
        self._length = length
        self._axis = axis
        self._n = n

    def __len__(self) -> int:
        if not self._length:
            return 0
        axis, step = self._axis, self._map.step
        first = self._map.start
        last = first + (self._length - 1) * step
        spanned = abs(axis.of(last) - axis.of(first)) + 1
        if isinstance(axis, RegularAxis):
            return spanned if abs(step) <= axis.edge else self._length
        return spanned if abs(step) == 1 else sum(1 for _ in self)

    def __iter__(self) -> Iterator[Row]:
        start, step, length, axis = self._map.start, self._map.step, self._length, self._axis
        if step == 1 and isinstance(axis, RegularAxis) and length:
            yield from _runs(start, start + length, axis.edge, self._n)
            return
        k = 0
        while k < length:
            position = start + k * step
            chunk = axis.of(position)
            low = axis.start(chunk)
            size = axis.size(chunk)
            room = low + size - 1 - position if step > 0 else position - low
            n = min(room // abs(step) + 1, length - k)
            first = position - low
            last = first + (n - 1) * step
            end = last + (1 if step > 0 else -1)
            inside = slice(first, None if end < 0 else end, step)
            whole = n == _extent(chunk, axis, self._n)
            yield Row(chunk, inside, slice(k, k + n), whole)
            k += n


def _runs(start: int, stop: int, edge: int, n: int) -> Iterator[Row]:
    """The rows of ``start:stop`` over regular chunks; all but the first and last are alike, and
    made without a Python statement each."""
    first, last = start // edge, (stop - 1) // edge
    for chunk in (first, last):
        low = chunk * edge
        a, b = max(start - low, 0), min(edge, stop - low)
        whole = a == 0 and b == min(edge, n - low)
        yield Row(chunk, slice(a, b), slice(low - start + a, low - start + b), whole)
        if chunk == last:
            return
        inner = range((first + 1) * edge - start, last * edge - start, edge)
        ends = range((first + 2) * edge - start, last * edge - start + 1, edge)
        rows = zip(
            range(first + 1, last), repeat(slice(0, edge)), map(slice, inner, ends), repeat(True)
        )
        yield from map(Row._make, rows)


def _take_rows(array: NDArray[np.intp], axis: AxisGrid, length: int) -> list[Row]:
    """One row a touched chunk; repeats and any order allowed. Ascending input needs no sort."""
    n = len(array)
    if n == 0:
        return []
    order: NDArray[np.intp] | None = None
    if n > 1 and bool((array[1:] < array[:-1]).any()):
        order = np.argsort(array, kind="stable")  # stable: the last of equals still wins
        array = array[order]
    chunks = axis.of_many(array)
    cuts = np.flatnonzero(chunks[1:] != chunks[:-1]) + 1
    starts = [0, *cuts.tolist()]
    stops = [*cuts.tolist(), n]
    rows = []
    for a, b in zip(starts, stops, strict=True):
        chunk = int(chunks[a])
        inside = _compact(array[a:b] - axis.start(chunk))
        outside: Index = slice(a, b) if order is None else _compact(order[a:b])
        whole = isinstance(inside, slice) and b - a == _extent(chunk, axis, length)
        rows.append(Row(chunk, inside, outside, whole))
    return rows


def _compact(array: NDArray[np.intp]) -> Index:
    """A run of consecutive indices as a slice: basic indexing is several times faster."""
    n = len(array)
    first = int(array[0])
    if n == 1:
        return slice(first, first + 1)
    if int(array[-1]) - first == n - 1 and bool((np.diff(array) == 1).all()):
        return slice(first, first + n)
    return array


def _joint_rows(
    maps: Sequence[AxisMap], axes: Sequence[AxisGrid], shape: tuple[int, ...]
) -> tuple[list[Row], list[int]]:
    """Pointwise axes: points sorted by chunk, one row a touched chunk."""
    dims = sorted({dim for axis_map in maps for dim in _dims(axis_map)})
    extent = tuple(shape[dim] for dim in dims)
    points = [_points(axis_map, dims, extent, shape) for axis_map in maps]
    n = math.prod(extent)
    if n == 0:
        return [], dims
    chunks = [axis.of_many(p) for axis, p in zip(axes, points, strict=True)]
    order = np.lexsort(chunks[::-1])  # stable, like every sort here
    chunks = [c[order] for c in chunks]
    changed = np.zeros(n - 1, dtype=bool)
    for c in chunks:
        changed |= c[1:] != c[:-1]
    cuts = (np.flatnonzero(changed) + 1).tolist()
    rows = []
    for a, b in zip([0, *cuts], [*cuts, n], strict=True):
        chunk = tuple(int(c[a]) for c in chunks)
        at = order[a:b]
        inside = tuple(
            p[at] - axis.start(i) for p, axis, i in zip(points, axes, chunk, strict=True)
        )
        outside = (at,) if len(dims) == 1 else np.unravel_index(at, extent)
        rows.append(Row(chunk, inside, tuple(outside), False))
    return rows, dims


def _points(
    axis_map: AxisMap, dims: Sequence[int], extent: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.intp]:
    """The axis' element for every joint output position, flattened."""
    if isinstance(axis_map, Take):
        values = axis_map.array
    elif isinstance(axis_map, Stride):
        values = axis_map.start + axis_map.step * np.arange(shape[axis_map.dim], dtype=np.intp)
    else:
        values = np.array(axis_map.index, dtype=np.intp)
    mine = _dims(axis_map)
    spread = values.reshape([values.shape[mine.index(d)] if d in mine else 1 for d in dims])
    return np.broadcast_to(spread, extent).reshape(-1)


# -- shards ----------------------------------------------------------------------------------


class _Group(NamedTuple):
    chunk: Any
    rows: list[Row]


def _grouped(table: Table, scale: Any) -> list[_Group]:
    """Rows gathered by the shard that holds them, their ``chunk`` made local to it. Rows of one
    shard are neighbours already, but for joint axes, whose order is by inner chunk."""
    if isinstance(scale, int):
        placed = [(row.chunk // scale, row._replace(chunk=row.chunk % scale)) for row in table]
    else:
        placed = [
            (
                tuple(c // s for c, s in zip(row.chunk, scale, strict=True)),
                row._replace(chunk=tuple(c % s for c, s in zip(row.chunk, scale, strict=True))),
            )
            for row in table
        ]
        placed.sort(key=itemgetter(0))
    return [
        _Group(shard, [row for _, row in rows]) for shard, rows in groupby(placed, itemgetter(0))
    ]
