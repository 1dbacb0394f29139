"""A transform split along a chunk grid: which chunks, which part of each, where it goes.

Pure arithmetic. A plan is per-axis tables whose product is the parts, so planning costs the
sum of the axes' chunks and huge plans are never held as one list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice, product
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from ..cached import Cached
from .axis import (
    HELD,
    AnyTable,
    Group,
    Index,
    Table,
    grouped,
    joint_table,
    point_table,
    stride_table,
    take_table,
)
from .grid import Grid
from .selection import AxisMap, Point, Stride, Take, Transform, dims_of

_count = attrgetter("count")


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
    tables: tuple[AnyTable, ...]
    joint: tuple[int, ...]
    axes: tuple[int, ...]
    dims: tuple[int, ...]
    joint_dims: int
    arrays: bool
    count: int
    """Chunks touched, each counted once; may be more than ``len`` can return."""

    def __len__(self) -> int:
        return self.count

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
        for combination in _shard_product(list(zip(self.tables, scales, strict=True))):
            shard = self._array_order(tuple(shard for shard, _ in combination))
            yield shard, self._product([table for _, table in combination])

    def _product(self, tables: Sequence[AnyTable]) -> Iterator[Part]:
        """The product of the tables at the speed of :mod:`itertools`, in bounded memory."""
        for k, table in enumerate(tables):
            if table.count > HELD and not isinstance(table, Table):  # those are held anyway
                return chain.from_iterable(
                    self._product([*tables[:k], piece, *tables[k + 1 :]])
                    for piece in table.pieces()
                )
            if not table.count:
                return iter(())
        chunks, insides, outsides, wholes = [], [], [], []
        for table in tables:
            held = table if isinstance(table, Table) else next(table.pieces())
            chunks.append(held.chunks)
            insides.append(held.insides)
            wholes.append(held.wholes)
            if held.outsides is not None:
                outsides.append(held.outsides)
        parts = zip(
            product(*chunks), product(*insides), product(*outsides), product(*wholes), strict=True
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

    @Cached
    def _order(self) -> list[int]:
        return [int(k) for k in np.argsort(self.joint + self.axes)]


@dataclass(frozen=True)
class Portion(Plan):
    """A few parts of a plan, listed; where they are grouped, with the shard that holds them."""

    groups: tuple[tuple[tuple[int, ...], list[Part]], ...] = ()

    def parts(self) -> Iterator[Part]:
        """Every part of the portion."""
        return chain.from_iterable(parts for _, parts in self.groups)

    def shards(self, ratios: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Iterator[Part]]]:
        """See :meth:`Plan.shards`."""
        return ((shard, iter(parts)) for shard, parts in self.groups)


def portions(
    todo: Plan, most: int, ratios: Sequence[int] | None = None
) -> Iterator[tuple[Plan, bool]]:
    """``todo`` in portions of at most ``most`` parts, each with whether it is the last; with
    ``ratios``, those of its shards."""
    if todo.count <= most:
        yield todo, True
        return
    left = todo.count
    each = {field.name: getattr(todo, field.name) for field in fields(Plan)}
    held: list[tuple[tuple[int, ...], list[Part]]] = []
    count = 0
    for shard, parts in [((), todo.parts())] if ratios is None else todo.shards(ratios):
        while some := list(islice(parts, most - count)):
            held.append((shard, some))
            count += len(some)
            if count in (most, left):
                left -= count
                yield Portion(**{**each, "count": count}, groups=tuple(held)), not left
                held, count = [], 0


def _shard_product(
    axes: list[tuple[AnyTable, Any]],
) -> Iterator[tuple[Group, ...]]:
    """Every combination of the axes' shards; an axis of very many is walked, not held."""
    for k, (table, scale) in enumerate(axes):
        if table.count > HELD and not isinstance(table, Table):
            for group in grouped(table, scale):
                for rest in _shard_product(axes[:k] + axes[k + 1 :]):
                    yield (*rest[:k], group, *rest[k:])
            return
    yield from product(*(list(grouped(table, scale)) for table, scale in axes))


def plan(transform: Transform, grid: Grid, shape: Sequence[int]) -> Plan:
    """The parts of ``transform`` over an array of ``shape`` cut by ``grid``; each touched
    chunk appears exactly once."""
    maps = transform.maps
    joint = joint_axes(maps) if Take in map(type, maps) else ()
    axes = tuple(range(len(maps)))
    if joint:
        axes = tuple(k for k in axes if k not in joint)
    tables: list[AnyTable] = []
    dims: list[int] = []
    arrays = False
    if joint:
        table, dims = joint_table(
            [maps[k] for k in joint], [grid.axes[k] for k in joint], transform.shape
        )
        tables.append(table)
    joint_dims = len(dims)
    for k in axes:
        axis_map, axis, n = maps[k], grid.axes[k], shape[k]
        if isinstance(axis_map, Point):
            tables.append(point_table(axis_map.at, axis, n))
        elif isinstance(axis_map, Stride):
            tables.append(stride_table(axis_map, transform.shape[axis_map.dim], axis, n))
            dims.append(axis_map.dim)
        else:
            tables.append(take_table(axis_map.array, axis, n))
            dims.append(axis_map.dims[0])
            arrays = True
    count = math.prod(map(_count, tables))
    return Plan(transform, tuple(tables), joint, axes, tuple(dims), joint_dims, arrays, count)


def joint_axes(maps: Sequence[AxisMap]) -> tuple[int, ...]:
    """Axes whose index arrays cannot be taken one axis at a time: they share a dimension with
    another axis, or run over several. All such axes are planned as one group."""
    uses: dict[int, int] = {}
    for axis_map in maps:
        for dim in dims_of(axis_map):
            uses[dim] = uses.get(dim, 0) + 1
    return tuple(
        k
        for k, axis_map in enumerate(maps)
        if (len(dims_of(axis_map)) > 1 or any(uses[dim] > 1 for dim in dims_of(axis_map)))
    )
