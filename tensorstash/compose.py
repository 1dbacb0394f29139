"""The composition of selections: a view of a view is one transform."""

from __future__ import annotations

from typing import Any

import numpy as np

from .index import AxisMap, Point, Stride, Take, Transform, dims_of, taken


def compose(inner: Transform, base: Transform) -> Transform:
    """The transform of ``view[selection]`` onto the array, where ``base`` is the view and
    ``inner`` the selection, made for ``base.shape``."""
    if 0 in inner.shape:  # nothing is selected, and no bounds were checked: do not look them up
        return Transform(inner.shape, (Point(0),) * len(base.maps))
    return Transform(inner.shape, tuple(_compose_map(m, inner) for m in base.maps))


def _compose_map(outer_map: AxisMap, inner: Transform) -> AxisMap:
    if isinstance(outer_map, Point):
        return outer_map
    if isinstance(outer_map, Stride):
        via = inner.maps[outer_map.dim]
        start, step = outer_map.start, outer_map.step
        if isinstance(via, Point):
            return Point(start + step * via.at)
        if isinstance(via, Stride):
            return Stride(via.dim, start + step * via.start, step * via.step)
        return Take(via.dims, start + step * via.array)
    vias = [inner.maps[dim] for dim in outer_map.dims]
    # Each dimension of the index array is itself indexed: spread what the new selection asks
    # of it over the new output dimensions, and let NumPy broadcast.
    dims = tuple(sorted({d for via in vias for d in dims_of(via)}))
    where = tuple(_spread(via, dims, inner.shape) for via in vias)
    array = outer_map.array[where]
    return taken(array, dims) if dims else Point(int(array))


def _spread(via: AxisMap, dims: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """``via`` as an integer array that broadcasts over ``dims``."""
    if isinstance(via, Point):
        return np.intp(via.at)
    if isinstance(via, Stride):
        values = via.start + via.step * np.arange(shape[via.dim], dtype=np.intp)
    else:
        values = via.array
    mine = dims_of(via)
    return values.reshape([values.shape[mine.index(d)] if d in mine else 1 for d in dims])
