"""A transform split along a chunk grid: which chunks, which part of each, where it goes.

Pure arithmetic. A plan is per-axis tables whose product is the parts, so planning costs the
sum of the axes' chunks and huge plans are never held as one list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, islice, product
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


@dataclass(frozen=True, slots=True)
class Table:
    """The chunks along one axis, or the tuples of chunks along the joint axes (whose insides
    and outsides are tuples too), as parallel lists. ``outsides`` is ``None`` where a single
    point drops the axis."""

    chunks: list[Any]
    insides: list[Any]
    outsides: list[Any] | None
    wholes: list[bool]

    @property
    def count(self) -> int:
        """Chunks in the table."""
        return len(self.chunks)

    def pieces(self) -> Iterator[Table]:
        """The table in bounded pieces: it is held already, so as it is."""
        yield self

    def part(self, low: int, high: int, chunks: list[Any]) -> Table:
        """Rows ``low:high``, with their chunks renamed."""
        outsides = None if self.outsides is None else self.outsides[low:high]
        return Table(chunks, self.insides[low:high], outsides, self.wholes[low:high])


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
    tables: tuple[Table | StrideTable, ...]
    joint: tuple[int, ...]
    axes: tuple[int, ...]
    dims: tuple[int, ...]
    joint_dims: int
    arrays: bool

    def __len__(self) -> int:
        """Chunks touched (each counted once)."""
        return math.prod(table.count for table in self.tables)

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
            shard = self._array_order(tuple(shard for shard, _ in combination))
            yield shard, self._product([table for _, table in combination])

    def _product(self, tables: Sequence[Table | StrideTable]) -> Iterator[Part]:
        """The product of the tables at the speed of :mod:`itertools`, in bounded memory."""
        for k, table in enumerate(tables):
            if table.count > _HELD:
                return chain.from_iterable(
                    self._product([*tables[:k], piece, *tables[k + 1 :]])
                    for piece in table.pieces()
                )
            if not table.count:
                return iter(())
        held = [next(table.pieces()) for table in tables]
        parts = zip(
            product(*[table.chunks for table in held]),
            product(*[table.insides for table in held]),
            product(*[table.outsides for table in held if table.outsides is not None]),
            product(*[table.wholes for table in held]),
            strict=True,
        )
        return self._flat(parts) if self.joint else map(Part._make, parts)

    def _flat(self, parts: Iterator[tuple[Any, ...]]) -> Iterator[Part]:
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


def plan(transform: Transform, grid: Grid, shape: Sequence[int]) -> Plan:
    """The parts of ``transform`` over an array of ``shape`` cut by ``grid``; each touched
    chunk appears exactly once."""
    maps = transform.maps
    joint = _joint_axes(maps) if any(type(m) is Take for m in maps) else ()
    axes = tuple(k for k in range(len(maps)) if k not in joint)
    tables: list[Table | StrideTable] = []
    dims: list[int] = []
    arrays = False
    if joint:
        table, dims = _joint_table(
            [maps[k] for k in joint], [grid.axes[k] for k in joint], transform.shape
        )
        tables.append(table)
    joint_dims = len(dims)
    for k in axes:
        axis_map, axis, n = maps[k], grid.axes[k], shape[k]
        if isinstance(axis_map, Point):
            tables.append(_point_table(axis_map.at, axis, n))
        elif isinstance(axis_map, Stride):
            tables.append(StrideTable(axis_map, transform.shape[axis_map.dim], axis, n))
            dims.append(axis_map.dim)
        else:
            tables.append(_take_table(axis_map.array, axis, n))
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


def _point_table(index: int, axis: AxisGrid, n: int) -> Table:
    chunk = axis.of(index)
    return Table([chunk], [index - axis.start(chunk)], None, [_extent(chunk, axis, n) == 1])


class StrideTable:
    """The chunks of a strided axis, made as they are asked for: there may be very many."""

    def __init__(self, axis_map: Stride, length: int, axis: AxisGrid, n: int) -> None:
        """``length`` steps of ``axis_map`` along an axis of ``n`` elements."""
        self._map = axis_map
        self._length = length
        self._axis = axis
        self._n = n
        self.count = self._count()

    def _count(self) -> int:
        if not self._length:
            return 0
        axis, step = self._axis, self._map.step
        first = self._map.start
        last = first + (self._length - 1) * step
        spanned = abs(axis.of(last) - axis.of(first)) + 1
        if isinstance(axis, RegularAxis):
            return spanned if abs(step) <= axis.edge else self._length
        return spanned if abs(step) == 1 else sum(piece.count for piece in self.pieces())

    def pieces(self) -> Iterator[Table]:
        """The table in pieces of at most a bounded number of chunks."""
        start, axis = self._map.start, self._axis
        if self._map.step == 1 and isinstance(axis, RegularAxis):
            stop = start + self._length
            last = (stop - 1) // axis.edge
            for chunk in range(start // axis.edge, last + 1, _HELD):
                yield _run(start, stop, axis.edge, self._n, chunk, min(chunk + _HELD - 1, last))
            return
        rows = self._rows()
        while piece := list(islice(rows, _HELD)):
            chunks, insides, outsides, wholes = map(list, zip(*piece, strict=True))
            yield Table(chunks, insides, outsides, wholes)

    def _rows(self) -> Iterator[tuple[int, slice, slice, bool]]:
        start, step, axis = self._map.start, self._map.step, self._axis
        k = 0
        while k < self._length:
            position = start + k * step
            chunk = axis.of(position)
            low = axis.start(chunk)
            room = low + axis.size(chunk) - 1 - position if step > 0 else position - low
            n = min(room // abs(step) + 1, self._length - k)
            first = position - low
            last = first + (n - 1) * step
            end = last + (1 if step > 0 else -1)
            inside = slice(first, None if end < 0 else end, step)
            yield chunk, inside, slice(k, k + n), n == _extent(chunk, axis, self._n)
            k += n


def _run(start: int, stop: int, edge: int, n: int, first: int, last: int) -> Table:
    """Chunks ``first`` to ``last`` of ``start:stop`` over regular chunks. All but the outermost
    are alike, and made without a Python statement each."""
    low = max(first * edge, start)
    high = min((last + 1) * edge, stop)
    cuts = range((first + 1) * edge, (last + 1) * edge, edge)
    begins = [low - start, *(c - start for c in cuts)]
    ends = [*begins[1:], high - start]
    insides = [slice(0, edge)] * (last - first + 1)
    wholes = [True] * len(insides)
    for chunk, k in ((first, 0), (last, -1)):
        at = chunk * edge
        a, b = max(start - at, 0), min(edge, stop - at)
        insides[k] = slice(a, b)
        wholes[k] = a == 0 and b == min(edge, n - at)
    return Table(list(range(first, last + 1)), insides, list(map(slice, begins, ends)), wholes)


def _take_table(array: NDArray[np.intp], axis: AxisGrid, length: int) -> Table:
    """A row a touched chunk; repeats and any order allowed. Ascending input needs no sort."""
    n = len(array)
    table = Table([], [], [], [])
    if n == 0:
        return table
    order: NDArray[np.intp] | None = None
    if n > 1 and bool((array[1:] < array[:-1]).any()):
        order = np.argsort(array, kind="stable")  # stable: the last of equals still wins
        array = array[order]
    chunks = axis.of_many(array)
    cuts = np.flatnonzero(chunks[1:] != chunks[:-1]) + 1
    starts = [0, *cuts.tolist()]
    stops = [*cuts.tolist(), n]
    for a, b in zip(starts, stops, strict=True):
        chunk = int(chunks[a])
        inside = _compact(array[a:b] - axis.start(chunk))
        outside: Index = slice(a, b) if order is None else _compact(order[a:b])
        whole = isinstance(inside, slice) and b - a == _extent(chunk, axis, length)
        _add(table, chunk, inside, outside, whole)
    return table


def _add(table: Table, chunk: Any, inside: Any, outside: Any, whole: bool) -> None:
    table.chunks.append(chunk)
    table.insides.append(inside)
    if table.outsides is not None:
        table.outsides.append(outside)
    table.wholes.append(whole)


def _compact(array: NDArray[np.intp]) -> Index:
    """A run of consecutive indices as a slice: basic indexing is several times faster."""
    n = len(array)
    first = int(array[0])
    if n == 1:
        return slice(first, first + 1)
    if int(array[-1]) - first == n - 1 and bool((np.diff(array) == 1).all()):
        return slice(first, first + n)
    return array


def _joint_table(
    maps: Sequence[AxisMap], axes: Sequence[AxisGrid], shape: tuple[int, ...]
) -> tuple[Table, list[int]]:
    """Pointwise axes: points sorted by chunk, one row for each touched chunk."""
    dims = sorted({dim for axis_map in maps for dim in _dims(axis_map)})
    extent = tuple(shape[dim] for dim in dims)
    points = [_points(axis_map, dims, extent, shape) for axis_map in maps]
    n = math.prod(extent)
    table = Table([], [], [], [])
    if n == 0:
        return table, dims
    chunks = [axis.of_many(p) for axis, p in zip(axes, points, strict=True)]
    order = np.lexsort(chunks[::-1])  # stable, like every sort here
    chunks = [c[order] for c in chunks]
    changed = np.zeros(n - 1, dtype=bool)
    for c in chunks:
        changed |= c[1:] != c[:-1]
    cuts = (np.flatnonzero(changed) + 1).tolist()
    for a, b in zip([0, *cuts], [*cuts, n], strict=True):
        chunk = tuple(int(c[a]) for c in chunks)
        at = order[a:b]
        inside = tuple(
            p[at] - axis.start(i) for p, axis, i in zip(points, axes, chunk, strict=True)
        )
        outside = (at,) if len(dims) == 1 else np.unravel_index(at, extent)
        _add(table, chunk, inside, tuple(outside), False)
    return table, dims


def _points(
    axis_map: AxisMap, dims: Sequence[int], extent: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.intp]:
    """The axis' element for every joint output position, flattened."""
    if isinstance(axis_map, Take):
        values = axis_map.array
    elif isinstance(axis_map, Stride):
        values = axis_map.start + axis_map.step * np.arange(shape[axis_map.dim], dtype=np.intp)
    else:
        values = np.array(axis_map.at, dtype=np.intp)
    mine = _dims(axis_map)
    spread = values.reshape([values.shape[mine.index(d)] if d in mine else 1 for d in dims])
    return np.broadcast_to(spread, extent).reshape(-1)


# -- shards ----------------------------------------------------------------------------------


def _grouped(table: Table | StrideTable, scale: Any) -> list[tuple[Any, Table]]:
    """The table cut by shard, its chunks made local to it. Chunks of one shard are neighbours
    already, but for joint axes, whose order is by inner chunk."""
    groups: list[tuple[Any, Table]] = []
    for piece in table.pieces():
        if isinstance(scale, int):
            shards: list[Any] = [chunk // scale for chunk in piece.chunks]
            local: list[Any] = [chunk % scale for chunk in piece.chunks]
        else:
            pairs = [list(map(divmod, chunk, scale)) for chunk in piece.chunks]
            shards = [tuple(pair[0] for pair in pairs_of) for pairs_of in pairs]
            local = [tuple(pair[1] for pair in pairs_of) for pairs_of in pairs]
            order = sorted(range(len(shards)), key=shards.__getitem__)
            shards = [shards[k] for k in order]
            local = [local[k] for k in order]
            piece = Table(
                piece.chunks,
                [piece.insides[k] for k in order],
                [(piece.outsides or [])[k] for k in order],
                [piece.wholes[k] for k in order],
            )
        low = 0
        for shard, members in groupby(shards):
            high = low + sum(1 for _ in members)
            part = piece.part(low, high, local[low:high])
            if groups and groups[-1][0] == shard:  # pieces are cut without regard to shards
                groups[-1] = (shard, _joined(groups[-1][1], part))
            else:
                groups.append((shard, part))
            low = high
    return groups


def _joined(one: Table, other: Table) -> Table:
    return Table(
        one.chunks + other.chunks,
        one.insides + other.insides,
        None if one.outsides is None else one.outsides + (other.outsides or []),
        one.wholes + other.wholes,
    )
