"""One axis of a plan: which chunks a selection touches, which part of each, where it goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice, pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .grid import AxisGrid, RegularAxis
from .selection import AxisMap, Stride, Take, dims_of

Index: TypeAlias = int | slice | NDArray[np.intp]
"""What a part asks of one axis."""

HELD = 1 << 10  # table rows held at once; a longer table is walked in pieces of this many


class Table:
    """The chunks along one axis, or the tuples of chunks along the joint axes (whose insides
    and outsides are tuples too), as parallel lists, and their ``count``. ``outsides`` is ``None``
    where a single point drops the axis."""

    __slots__ = ("chunks", "count", "insides", "outsides", "wholes")

    def __init__(
        self,
        chunks: list[Any],
        insides: list[Any],
        outsides: list[Any] | None,
        wholes: list[bool],
    ) -> None:
        self.chunks = chunks
        self.insides = insides
        self.outsides = outsides
        self.wholes = wholes
        self.count = len(chunks)

    def pieces(self) -> Iterator[Table]:
        """The table in bounded pieces: it is held already, so as it is."""
        yield self

    def part(self, low: int, high: int, chunks: list[Any]) -> Table:
        """Rows ``low:high``, with their chunks renamed."""
        outsides = None if self.outsides is None else self.outsides[low:high]
        return Table(chunks, self.insides[low:high], outsides, self.wholes[low:high])


def _extent(chunk: int, axis: AxisGrid, n: int) -> int:
    """Elements of ``chunk`` that lie within an axis of ``n`` elements."""
    return min(axis.size(chunk), n - axis.start(chunk))


def point_table(index: int, axis: AxisGrid, n: int) -> Table:
    """The one chunk of a point, which drops the axis."""
    chunk = axis.of(index)
    return Table([chunk], [index - axis.start(chunk)], None, [_extent(chunk, axis, n) == 1])


def stride_table(axis_map: Stride, length: int, axis: AxisGrid, n: int) -> Table | StrideTable:
    """``length`` steps of ``axis_map`` along an axis of ``n`` elements, held when it is small."""
    start = axis_map.start
    if axis_map.step == 1 and isinstance(axis, RegularAxis) and length:
        first, last = start // axis.edge, (start + length - 1) // axis.edge
        if last - first < HELD:
            return _run(start, start + length, axis.edge, n, first, last)
    return StrideTable(axis_map, length, axis, n)


Group: TypeAlias = tuple[Any, Table]
"""A shard along one axis (or along the joint axes), and what a plan asks of it."""


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
            for chunk in range(start // axis.edge, last + 1, HELD):
                yield _run(start, stop, axis.edge, self._n, chunk, min(chunk + HELD - 1, last))
            return
        rows = self._rows()
        while piece := list(islice(rows, HELD)):
            yield _of_rows(piece)

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
    if first == last:
        at = first * edge
        a, b = max(start - at, 0), min(edge, stop - at)
        out = slice(at + a - start, at + b - start)
        return Table([first], [slice(a, b)], [out], [a == 0 and b == min(edge, n - at)])
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


def take_table(array: NDArray[np.intp], axis: AxisGrid, length: int) -> Table | TakeTable:
    """A row a touched chunk; repeats and any order allowed. Ascending input needs no sort."""
    if not len(array):
        return Table([], [], [], [])
    table = TakeTable(array, axis, length)
    return table if table.count > HELD else next(table.pieces())


class TakeTable:
    """The chunks of listed positions, made as they are asked for."""

    def __init__(self, array: NDArray[np.intp], axis: AxisGrid, length: int) -> None:
        """Positions ``array``, one at least, along an axis of ``length`` elements."""
        n = len(array)
        order: NDArray[np.intp] | None = None
        if n > 1 and bool((array[1:] < array[:-1]).any()):
            order = np.argsort(array, kind="stable")  # stable: the last of equals still wins
            array = array[order]
        chunks = axis.of_many(array)
        cuts = np.flatnonzero(chunks[1:] != chunks[:-1]) + 1
        self._bounds = np.concatenate([[0], cuts, [n]])
        self._array = array
        self._order = order
        self._axis = axis
        self._length = length
        self.count = len(cuts) + 1

    def pieces(self) -> Iterator[Table]:
        """The table in pieces of at most a bounded number of chunks."""
        for first in range(0, self.count, HELD):
            yield _of_rows([*self._rows(self._bounds[first : first + HELD + 1])])

    def _rows(self, bounds: NDArray[np.intp]) -> Iterator[tuple[int, Index, Index, bool]]:
        axis, start, edges = self._axis, int(bounds[0]), bounds.tolist()
        array = self._array[start : edges[-1]]
        order = None if self._order is None else self._order[start : edges[-1]]
        run = _runs(array, bounds - start)
        lands = run if order is None else _runs(order, bounds - start)
        chunks = axis.of_many(array[bounds[:-1] - start]).tolist()
        for k, (a, b) in enumerate(pairwise(edges)):
            low = axis.start(chunks[k])
            at = a - start
            first = int(array[at]) - low
            inside: Index = slice(first, first + b - a) if run[k] else array[at : b - start] - low
            if order is None:
                outside: Index = slice(a, b)
            else:
                to = int(order[at])
                outside = slice(to, to + b - a) if lands[k] else order[at : b - start]
            whole = run[k] and b - a == _extent(chunks[k], axis, self._length)
            yield chunks[k], inside, outside, whole


AnyTable: TypeAlias = Table | StrideTable | TakeTable
"""Held, or walked in pieces."""


def _of_rows(rows: Sequence[tuple[Any, ...]]) -> Table:
    """A table of at least one row: chunk, inside, outside, whether it is the whole chunk."""
    chunks, insides, outsides, wholes = map(list, zip(*rows, strict=True))
    return Table(chunks, insides, outsides, wholes)


def _runs(array: NDArray[np.intp], bounds: NDArray[np.intp]) -> list[bool]:
    """Whether each part of ``array`` counts up one by one: indexing by a slice is several times
    faster."""
    steps = np.zeros(len(array), np.intp)
    np.cumsum(array[1:] - array[:-1] == 1, out=steps[1:])
    found: list[bool] = (steps[bounds[1:] - 1] - steps[bounds[:-1]] == np.diff(bounds) - 1).tolist()
    return found


def joint_table(
    maps: Sequence[AxisMap], axes: Sequence[AxisGrid], shape: tuple[int, ...]
) -> tuple[Table, list[int]]:
    """Pointwise axes: points sorted by chunk, one row for each touched chunk."""
    dims = sorted({dim for axis_map in maps for dim in dims_of(axis_map)})
    extent = tuple(shape[dim] for dim in dims)
    points = [points_of(axis_map, dims, extent, shape) for axis_map in maps]
    n = math.prod(extent)
    if n == 0:
        return Table([], [], [], []), dims
    chunks = [axis.of_many(p) for axis, p in zip(axes, points, strict=True)]
    order = np.lexsort(chunks[::-1])  # stable, like every sort here
    chunks = [c[order] for c in chunks]
    changed = np.zeros(n - 1, dtype=bool)
    for c in chunks:
        changed |= c[1:] != c[:-1]
    cuts = (np.flatnonzero(changed) + 1).tolist()
    rows: list[tuple[Any, ...]] = []
    for a, b in zip([0, *cuts], [*cuts, n], strict=True):
        chunk = tuple(int(c[a]) for c in chunks)
        at = order[a:b]
        inside = tuple(
            p[at] - axis.start(i) for p, axis, i in zip(points, axes, chunk, strict=True)
        )
        outside = (at,) if len(dims) == 1 else np.unravel_index(at, extent)
        rows.append((chunk, inside, tuple(outside), False))
    return _of_rows(rows), dims


def points_of(
    axis_map: AxisMap, dims: Sequence[int], extent: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.intp]:
    """The axis' element for every joint output position, flattened."""
    if isinstance(axis_map, Take):
        values = axis_map.array
    elif isinstance(axis_map, Stride):
        values = axis_map.start + axis_map.step * np.arange(shape[axis_map.dim], dtype=np.intp)
    else:
        values = np.array(axis_map.at, dtype=np.intp)
    mine = dims_of(axis_map)
    spread = values.reshape([values.shape[mine.index(d)] if d in mine else 1 for d in dims])
    return np.broadcast_to(spread, extent).reshape(-1)


def grouped(table: AnyTable, scale: Any) -> Iterator[Group]:
    """The table cut by shard, its chunks made local to it. Chunks of one shard are neighbours
    already, but for joint axes, whose order is by inner chunk."""
    if isinstance(scale, int) and isinstance(table, Table) and table.chunks:
        chunks = table.chunks
        shard = chunks[0] // scale
        if shard == chunks[-1] // scale and shard == chunks[len(chunks) // 2] // scale:
            base = shard * scale
            yield shard, table.part(0, len(chunks), [chunk - base for chunk in chunks])
            return
    last: Group | None = None
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
            if last is not None and last[0] == shard:
                last = (shard, _joined(last[1], part))  # pieces are cut without regard to shards
            else:
                if last is not None:
                    yield last
                last = (shard, part)
            low = high
    if last is not None:
        yield last


def _joined(one: Table, other: Table) -> Table:
    return Table(
        one.chunks + other.chunks,
        one.insides + other.insides,
        None if one.outsides is None else one.outsides + (other.outsides or []),
        one.wholes + other.wholes,
    )
