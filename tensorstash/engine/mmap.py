"""Arrays over the memory that a stored chunk lies in: nothing is read, nothing is copied."""

from __future__ import annotations

from operator import floordiv, mod
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from ..codec import Buffer
from ..driver import Driver, located
from ..errors import Corrupt, Unsupported
from ..indexing.selection import Point, Stride, Transform
from .chunks import Chunks

_AXIS = slice(None)

_views: dict[str, WeakSet[Any]] = {}
"""Of arrays that are written in place: the maps that this process handed out and still uses."""


def mapped(chunks: Chunks, transform: Transform) -> NDArray[Any]:
    """A read-only view, of the transform's shape, of one chunk as it is stored now; of the fill
    value where none is. :class:`~tensorstash.errors.Unsupported` says what is in the way."""
    if 0 in transform.shape:
        return np.broadcast_to(chunks.spec.fill, transform.shape)
    index, inside = _place(chunks, transform)
    pipeline = chunks.pipeline_of(index)
    dtype = pipeline.memory_dtype
    if dtype is None:
        names = ", ".join(codec.name for codec in pipeline.codecs)
        raise _refused(
            chunks, f"its chunks are encoded by {names}, and only codecs=None stores plain memory"
        )
    if not chunks.driver.capabilities.maps:
        raise _refused(chunks, f"driver {chunks.driver.scheme!r} has no memory to share")
    key, data = _stored(chunks, index)
    if data is None:
        chunks.absent(key, index)
        return np.broadcast_to(chunks.spec.fill.astype(dtype), transform.shape)
    try:
        chunk = pipeline.over(data)
    except Corrupt as error:
        raise chunks.damaged(error, key, index) from error.__cause__
    view = chunk[(*inside, ...)]  # "..." keeps an array where every item is an integer
    if view.ndim < len(transform.shape):
        dims = {axis_map.dim for axis_map in transform.maps if isinstance(axis_map, Stride)}
        new = tuple(_AXIS if dim in dims else None for dim in range(len(transform.shape)))
        view = np.broadcast_to(view[new], transform.shape)
    return view


def check_unmapped(driver: Driver, path: str) -> None:
    """:class:`~tensorstash.errors.Unsupported` where this process still looks at chunks of the
    array that is written in place at ``path``, which is about to be cut."""
    where = located(driver, path)
    if _views.get(where):
        raise Unsupported(
            f"{where} is mapped by this process, and what it shows would be cut off; let go of "
            "what mmap() returned, then resize"
        )


def _place(chunks: Chunks, transform: Transform) -> tuple[tuple[int, ...], tuple[int | slice, ...]]:
    """The one chunk that a basic selection lies in, and where in it."""
    index: list[int] = []
    inside: list[int | slice] = []
    for axis, (axis_map, grid) in enumerate(zip(transform.maps, chunks.grid.axes, strict=True)):
        if isinstance(axis_map, Point):
            at = grid.of(axis_map.at)
            inside.append(axis_map.at - grid.start(at))
        elif isinstance(axis_map, Stride):
            first, step = axis_map.start, axis_map.step
            last = first + (transform.shape[axis_map.dim] - 1) * step
            at = grid.of(first)
            if grid.of(last) != at:
                raise _refused(
                    chunks,
                    f"elements {min(first, last)} to {max(first, last)} of axis {axis} lie in "
                    f"several chunks, this one ends at {grid.start(at) + grid.size(at)}",
                )
            origin = grid.start(at)
            stop = last - origin + (1 if step > 0 else -1)
            inside.append(slice(first - origin, None if stop < 0 else stop, step))
        else:
            raise _refused(chunks, f"an index array selects a copy (axis {axis})")
        index.append(at)
    return tuple(index), tuple(inside)


def _stored(chunks: Chunks, index: tuple[int, ...]) -> tuple[str, Buffer | None]:
    """The key of the object that holds a chunk, and the chunk's bytes in it."""
    sharding = chunks.sharding
    if sharding is None:
        key = chunks.key(index)
        data = chunks.driver.map(key)
        written = chunks.spec.in_place and chunks.driver.capabilities.in_place
        if written and data is not None and data.nbytes:
            _views.setdefault(located(chunks.driver, chunks.path), WeakSet()).add(data.obj)
        return key, data
    shard = tuple(map(floordiv, index, sharding.grid))
    key = chunks.key(shard)
    data = chunks.driver.map(key)
    if data is None:
        return key, None
    (position,) = sharding.positions([tuple(map(mod, index, sharding.grid))])
    try:
        return key, sharding.part(data, position)
    except Corrupt as error:
        raise chunks.damaged(error, key, shard, "shard") from error.__cause__


def _refused(chunks: Chunks, why: str) -> Unsupported:
    where = located(chunks.driver, chunks.path)
    return Unsupported(f"{where} cannot be mapped: {why}; a[...] reads a copy")
