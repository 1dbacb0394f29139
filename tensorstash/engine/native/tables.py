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
_FEW = 16  # rows that are made one by one

Ints = NDArray[np.int64]


class Group(NamedTuple):
    """The rows of some axes: ``chunks`` of shape ``(rows, axes)``, ``rows`` of ``(rows, 7)``, and
    offsets in the chunk and in the output, one behind the other, that rows point into."""

    axes: tuple[int, ...]
    chunks: Ints
    rows: Ints
    lists: Ints | None


def groups(
    transform: Transform,
    edges: Sequence[int],
    inside: Sequence[int],
    outside: Sequence[int],
    ratios: Sequence[int],
) -> tuple[Group, ...] | None:
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
    found: list[Group] = []
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
            chunk, at = divmod(axis_map.at, edge)
            row = _ints([1, at * step, 0, 0, 0, -1, -1], 7)
            found.append(Group((k,), _ints([chunk], 1), row, None))
            continue
        if isinstance(axis_map, Stride):
            length = transform.shape[axis_map.dim]
            span = abs((length - 1) * axis_map.step) // edge + 2
            if min(length, span) > _MOST_ROWS:
                return None
            found.append(_strided(k, axis_map, length, edge, step, outside[axis_map.dim]))
        else:
            found.append(_taken(k, axis_map.array, edge, step, outside[axis_map.dims[0]]))
    return tuple(found)


def _strided(axis: int, axis_map: Stride, n: int, edge: int, step: int, out: int) -> Group:
    start, by = axis_map.start, axis_map.step
    if by == 1 and (start + n - 1) // edge - start // edge < _FEW:
        return _run(axis, start, n, edge, step, out)
    if abs(by) > edge:
        first = np.arange(n, dtype=np.int64)  # position of each row's first element
        chunks = (start + first * by) // edge
        last = first + 1
    else:
        low, high = start // edge, (start + (n - 1) * by) // edge
        way = 1 if by > 0 else -1
        chunks = np.arange(low, high + way, way, dtype=np.int64)
        # The first element of a chunk that is reached, and of the one after it.
        bound = chunks * edge if by > 0 else start - ((chunks + 1) * edge - 1)
        first = -((start - bound) // by) if by > 0 else -(-bound // -by)
        first = np.maximum(first, 0)
        last = np.append(first[1:], n)
    rows = np.empty((len(chunks), 7), np.int64)
    rows[:, 0] = last - first
    rows[:, 1] = (start + first * by - chunks * edge) * step
    rows[:, 2] = by * step
    rows[:, 3] = first * out
    rows[:, 4] = out
    rows[:, 5:] = -1
    return Group((axis,), chunks[:, None], rows, None)


def _run(axis: int, start: int, n: int, edge: int, step: int, out: int) -> Group:
    """:func:`_strided` of neighbours in few chunks, which takes less time without arrays."""
    chunks = range(start // edge, (start + n - 1) // edge + 1)
    rows: list[int] = []
    at = start
    for chunk in chunks:
        end = min((chunk + 1) * edge, start + n)
        rows += (end - at, (at - chunk * edge) * step, step, (at - start) * out, out, -1, -1)
        at = end
    return Group((axis,), _ints([*chunks], 1), _ints(rows, 7), None)


def _ints(numbers: list[int], columns: int) -> Ints:
    return np.array(numbers, np.int64).reshape(-1, columns)


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


def runs(group: Group, ratios: Sequence[int]) -> list[tuple[tuple[int, ...], int, int]]:
    """The shards along a group's axes, each with its rows from and to."""
    shards = group.chunks // np.array([ratios[k] for k in group.axes])
    starts = np.flatnonzero(np.concatenate(([True], (shards[1:] != shards[:-1]).any(axis=1))))
    stops = [*starts[1:].tolist(), len(shards)]
    return [
        (tuple(shard), low, high)
        for shard, low, high in zip(shards[starts].tolist(), starts.tolist(), stops, strict=True)
    ]
