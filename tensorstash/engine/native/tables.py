"""A transform split along a regular grid, as arrays for the kernel: :mod:`...indexing.plan` without
a Python object a chunk.

A **group** is one axis of the array, or all axes that are indexed pointwise, together: for each of
its rows the chunk along its axes, and seven numbers: elements, and where they begin and how far
apart they lie in the chunk and in the output, in bytes, by steps or by lists of offsets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...indexing.axis import points_of
from ...indexing.plan import joint_axes
from ...indexing.selection import Point, Stride, Take, Transform, dims_of

_MOST_ROWS = 1 << 17  # of one group: more are planned in pieces, by Python

_MOST_POINTS = 1 << 20

Ints = NDArray[np.int64]

Run = tuple[tuple[int, ...], int, int]
"""A shard along some axes, and its rows from and to."""


class Group(NamedTuple):
    """The rows of some axes: ``chunks`` of shape ``(rows, axes)``, ``rows`` of ``(rows, 7)``, and
    offsets in the chunk and in the output, one behind the other, that rows point into."""

    axes: tuple[int, ...]
    chunks: Ints
    rows: Ints
    lists: Ints | None

    @property
    def many(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def chunks_of(self, rows: Any) -> Ints:
        """The chunks of some rows, along the group's axes."""
        found: Ints = self.chunks[rows]
        return found

    def runs(self, ratios: Sequence[int]) -> list[Run]:
        """The shards along its axes, each with its rows from and to."""
        return _runs(self.chunks // np.array([ratios[k] for k in self.axes]))

    def hull(self) -> int | None:
        """Bytes from the first to the last element of a row in its chunk, where that is known."""
        return None

    def numbers(self) -> dict[Any, int]:
        """The row of each chunk, which is a number where there is one axis."""
        flat = self.chunks.tolist()
        names = [chunk[0] for chunk in flat] if len(self.axes) == 1 else map(tuple, flat)
        return dict(zip(names, range(len(flat)), strict=True))


class Span(NamedTuple):
    """The rows of an axis of which ``n`` elements are taken from ``start`` on, ``by`` apart: the
    kernel itself makes them. ``step``, ``out``: between neighbours in a chunk of ``edge``, and in
    the output, in bytes."""

    axis: int
    start: int
    n: int
    by: int
    edge: int
    step: int
    out: int

    @property
    def axes(self) -> tuple[int, ...]:
        """The one axis."""
        return (self.axis,)

    @property
    def many(self) -> int:
        """How many rows there are: each chunk that is reached has one."""
        last = self.start + (self.n - 1) * self.by
        return min(self.n, abs(last // self.edge - self.start // self.edge) + 1)

    def chunks_of(self, rows: Any) -> Ints:
        """See :meth:`Group.chunks_of`."""
        at = np.asarray(rows, np.int64)
        if abs(self.by) > self.edge:
            return ((self.start + at * self.by) // self.edge)[:, None]
        return (self.start // self.edge + (at if self.by > 0 else -at))[:, None]

    def runs(self, ratios: Sequence[int]) -> list[Run]:
        """See :meth:`Group.runs`."""
        ratio = ratios[self.axis]
        if abs(self.by) > self.edge:
            return _runs(self.chunks_of(np.arange(self.many)) // ratio)
        low, way = self.start // self.edge, 1 if self.by > 0 else -1
        last = low + way * (self.many - 1)
        found: list[Run] = []
        row = 0
        for shard in range(low // ratio, last // ratio + way, way):
            end = min(last, (shard + 1) * ratio - 1) if way > 0 else max(last, shard * ratio)
            end = (end - low) * way + 1
            found.append(((shard,), row, end))
            row = end
        return found

    def hull(self) -> int | None:
        """See :meth:`Group.hull`: of the first."""
        inside, by = self.start % self.edge, self.by
        few = (self.edge - 1 - inside) // by if by > 0 else inside // -by
        return min(self.n - 1, few) * abs(by) * self.step

    def numbers(self) -> dict[Any, int]:
        """See :meth:`Group.numbers`."""
        rows = range(self.many)
        return dict(zip(self.chunks_of(rows)[:, 0].tolist(), rows, strict=True))


Table = tuple[Group | Span, ...]


def groups(
    transform: Transform,
    edges: Sequence[int],
    inside: Sequence[int],
    outside: Sequence[int],
    ratios: Sequence[int],
) -> Table | None:
    """The groups of ``transform``, whose product are its parts, each chunk once, in the order of
    :func:`~tensorstash.indexing.plan.plan`.

    Args:
        transform: Of an array whose chunks have ``edges``.
        edges: The edges of a chunk.
        inside: Strides of a chunk, in bytes.
        outside: Strides of the output.
        ratios: Chunks in a shard along each axis; the rows of one shard lie together.

    Returns:
        ``None`` where there are too many rows to be held, or the output has dimensions that repeat.
    """
    maps = transform.maps
    used = {dim for axis_map in maps for dim in dims_of(axis_map)}
    if any(n > 1 for dim, n in enumerate(transform.shape) if dim not in used):
        return None
    joint = joint_axes(maps) if Take in map(type, maps) else ()
    found: list[Group | Span] = []
    if joint:
        size = math.prod(transform.shape[d] for d in {d for k in joint for d in dims_of(maps[k])})
        if size > _MOST_POINTS:
            return None
        found.append(_joint(transform, joint, edges, inside, outside, ratios))
    for k, axis_map in enumerate(maps):
        if k in joint:
            continue
        edge, step = edges[k], inside[k]
        if isinstance(axis_map, Point):
            found.append(Span(k, axis_map.at, 1, 1, edge, step, 0))
        elif isinstance(axis_map, Stride):
            dim, start, by = axis_map
            span = Span(k, start, transform.shape[dim], by, edge, step, outside[dim])
            if span.many > _MOST_ROWS:
                return None
            found.append(span)
        else:
            found.append(_taken(k, axis_map.array, edge, step, outside[axis_map.dims[0]]))
    return tuple(found)


def chunks_of(
    table: Table, tasks: Any, low: tuple[int, ...], high: tuple[int, ...]
) -> list[list[int]]:
    """The indices of the chunks of ``tasks``, by their numbers in the product of the rows ``low``
    to ``high`` of each group."""
    extent = [b - a for a, b in zip(low, high, strict=True)]
    rows = np.unravel_index(np.asarray(tasks, np.intp), extent)
    parts = [group.chunks_of(at + a) for group, at, a in zip(table, rows, low, strict=True)]
    axes = [axis for group in table for axis in group.axes]
    found: list[list[int]] = np.concatenate(parts, axis=1)[:, np.argsort(axes)].tolist()
    return found


def _taken(axis: int, array: NDArray[np.intp], edge: int, step: int, out: int) -> Group:
    n = len(array)
    where = np.arange(n, dtype=np.int64)
    if n > 1 and bool((array[1:] < array[:-1]).any()):
        where = np.argsort(array, kind="stable")
        array = array[where]
    chunks = array // edge
    starts = np.flatnonzero(np.concatenate(([True], chunks[1:] != chunks[:-1])))
    lists = np.concatenate(((array - chunks * edge) * step, where * out))
    return Group((axis,), chunks[starts][:, None], _listed(starts, n), lists)


def _listed(starts: NDArray[np.intp], n: int) -> Ints:
    """Rows that are runs of lists, from each of ``starts`` to the next."""
    rows = np.zeros((len(starts), 7), np.int64)
    rows[:, 0] = np.diff(starts, append=n)
    rows[:, 5] = rows[:, 6] = starts
    return rows


def _joint(
    transform: Transform,
    joint: tuple[int, ...],
    edges: Sequence[int],
    inside: Sequence[int],
    outside: Sequence[int],
    ratios: Sequence[int],
) -> Group:
    maps, shape = transform.maps, transform.shape
    dims = sorted({dim for k in joint for dim in dims_of(maps[k])})
    extent = tuple(shape[dim] for dim in dims)
    at = [points_of(maps[k], dims, extent, shape) for k in joint]
    places: Any = np.zeros((), np.int64)
    for d, dim in enumerate(dims):
        along = np.arange(extent[d], dtype=np.int64) * outside[dim]
        places = places + along.reshape([-1 if k == d else 1 for k in range(len(dims))])
    chunks = np.stack([p // edges[k] for p, k in zip(at, joint, strict=True)], axis=1)
    shards = chunks // np.array([ratios[k] for k in joint])
    order = np.lexsort([*chunks.T[::-1], *shards.T[::-1]])
    chunks = np.ascontiguousarray(chunks[order], np.int64)
    offsets = np.zeros(len(order), np.int64)
    for p, k in zip(at, joint, strict=True):
        offsets += (p % edges[k]) * inside[k]
    changed = (chunks[1:] != chunks[:-1]).any(axis=1)
    starts = np.flatnonzero(np.concatenate(([True], changed)))
    lists = np.concatenate((offsets[order], np.broadcast_to(places, extent).reshape(-1)[order]))
    return Group(joint, np.ascontiguousarray(chunks[starts]), _listed(starts, len(order)), lists)


def _runs(shards: Ints) -> list[Run]:
    """Of rows with the shards of each, one shard's rows lying together."""
    starts = np.flatnonzero(np.concatenate(([True], (shards[1:] != shards[:-1]).any(axis=1))))
    stops = [*starts[1:].tolist(), len(shards)]
    return [
        (tuple(shard), low, high)
        for shard, low, high in zip(shards[starts].tolist(), starts.tolist(), stops, strict=True)
    ]
