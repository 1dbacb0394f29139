"""NumPy selections as coordinate maps, and their composition. Pure arithmetic.

A :class:`Transform` says, for every axis of an array, which element an output position
refers to. Any NumPy selection becomes one (:func:`select`, :func:`outer`, :func:`point`),
and two compose into one (:func:`compose`), so that views of views cost nothing until read.
The idea of composable index maps is TensorStore's "index transform"; the rules are NumPy's.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidSelection, counted, short

_MOST_DIMS = 64  # NumPy's own limit


class Point(NamedTuple):
    """The axis stays at ``at``."""

    at: int


class Stride(NamedTuple):
    """Output position ``i`` along ``dim`` is element ``start + i * step``; ``step`` is not 0."""

    dim: int
    start: int
    step: int


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """Output position ``(i, j)`` along the ascending ``dims`` is element ``array[i, j]``."""

    dims: tuple[int, ...]
    array: NDArray[np.intp]


AxisMap = Point | Stride | Take


def dims_of(axis_map: AxisMap) -> tuple[int, ...]:
    """The output dimensions that a map depends on."""
    if isinstance(axis_map, Point):
        return ()
    return (axis_map.dim,) if isinstance(axis_map, Stride) else axis_map.dims


class Transform(NamedTuple):
    """A result of ``shape`` whose elements come from an array with one :data:`AxisMap` an axis.

    An output dimension that no map depends on repeats its one element.
    """

    shape: tuple[int, ...]
    maps: tuple[AxisMap, ...]


def identity(shape: Sequence[int]) -> Transform:
    """The whole of an array of ``shape``."""
    return Transform(tuple(shape), tuple(Stride(dim, 0, 1) for dim in range(len(shape))))


def select(selection: Any, shape: Sequence[int]) -> Transform:
    """``array[selection]`` by NumPy's rules: ints, slices, ``...``, ``None``, integer and
    boolean arrays, mixed as NumPy allows. Raises
    :class:`~tensorstash.errors.InvalidSelection` wherever NumPy raises ``IndexError``."""
    basic = _basic(selection, shape)
    if basic is not None:
        return basic
    items, gap = _expand(selection, shape)
    if any(isinstance(item, _Array) for item in items):
        return _advanced(items, shape, gap)
    plain = _basic(tuple(items), shape)
    assert plain is not None
    return plain


def leading(rows: slice | NDArray[np.intp], shape: Sequence[int]) -> Transform:
    """``array[rows]`` for rows that are known to be one slice or one integer array, which saves
    most of what it costs to find that out."""
    if isinstance(rows, slice):
        mapped, length = _stride(rows, shape[0], 0)
        first: AxisMap = mapped
    else:
        length = len(rows)
        first = taken(_wrap(rows, 0, shape), (0,))
    rest = (Stride(k, 0, 1) for k in range(1, len(shape)))
    return Transform((length, *shape[1:]), (first, *rest))


def _basic(selection: Any, shape: Sequence[int]) -> Transform | None:
    """A selection of nothing but Python ints, slices and ``None``: the everyday case, without
    the care that the others need. ``None`` where there is anything else."""
    given = selection if type(selection) is tuple else (selection,)
    out: list[int] = []
    maps: list[AxisMap] = []
    axis = 0
    ndim = len(shape)
    for item in given:
        kind = type(item)
        if item is None:
            out.append(1)
            continue
        if axis == ndim or (kind is not int and kind is not slice):
            return None
        size = shape[axis]
        if kind is int:
            if not -size <= item < size:
                raise InvalidSelection(
                    f"index {item} is out of bounds for axis {axis} with size {size}"
                )
            maps.append(Point(item + size if item < 0 else item))
        else:
            mapped, length = _stride(item, size, len(out))
            maps.append(mapped)
            out.append(length)
        axis += 1
    for size in shape[axis:]:
        maps.append(Stride(len(out), 0, 1))
        out.append(size)
    return Transform(_checked(out), tuple(maps))


def _checked(out: list[int]) -> tuple[int, ...]:
    if len(out) > _MOST_DIMS:
        raise InvalidSelection(
            f"the result would have {counted(len(out), 'dimension')}; arrays have at most "
            f"{_MOST_DIMS}"
        )
    return tuple(out)


def outer(selection: Any, shape: Sequence[int]) -> Transform:
    """Orthogonal selection (``oindex``): every item acts on its own axis. Integers drop the
    axis; 1-D integer or boolean arrays keep it."""
    out: list[int] = []
    maps: list[AxisMap] = []
    for item in _expand(selection, shape)[0]:
        axis = len(maps)
        if item is None:
            raise InvalidSelection("oindex takes no None; add the axis to the result instead")
        if isinstance(item, int):
            maps.append(_point(item, axis, shape))
        elif isinstance(item, slice):
            mapped, length = _stride(item, shape[axis], len(out))
            maps.append(mapped)
            out.append(length)
        else:
            if len(item.arrays) != 1 or item.arrays[0].ndim != 1:
                raise InvalidSelection(
                    f"oindex takes one 1-D integer or boolean array an axis; axis {axis} got "
                    f"shape {item.mask or item.shape} (vindex takes arrays that broadcast)"
                )
            maps.append(Take((len(out),), _wrap(item.arrays[0], axis, shape)))
            out.append(len(item.arrays[0]))
    return Transform(tuple(out), tuple(maps))


def point(selection: Any, shape: Sequence[int]) -> Transform:
    """Pointwise selection (``vindex``): arrays and integers broadcast together, and their
    dimensions come first in the result; slices follow."""
    items, _ = _expand(selection, shape)
    if any(item is None for item in items):
        raise InvalidSelection("vindex takes no None; add the axis to the result instead")
    if not any(isinstance(item, _Array) for item in items):
        return select(selection, shape)
    return _advanced(items, shape, None)


def spans(transform: Transform) -> list[tuple[int, int]]:
    """``(start, stop)`` along every axis of a selection made of integers and slices of step 1;
    others raise :class:`~tensorstash.errors.InvalidSelection`."""
    found = []
    for axis, axis_map in enumerate(transform.maps):
        if isinstance(axis_map, Point):
            found.append((axis_map.at, axis_map.at + 1))
        elif isinstance(axis_map, Stride) and axis_map.step == 1:
            found.append((axis_map.start, axis_map.start + transform.shape[axis_map.dim]))
        else:
            raise InvalidSelection(
                f"axis {axis} takes an integer or a slice of step 1: blocks are whole"
            )
    return found


def has_ellipsis(selection: Any) -> bool:
    """Whether ``...`` stands in a selection, which keeps NumPy from returning a scalar."""
    if isinstance(selection, tuple):
        return EllipsisType in map(type, selection)
    return selection is Ellipsis


# -- expansion ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Array:
    """One array item: the integer arrays it stands for (one for each axis it consumes: a mask
    of n dimensions gives n, a bare True or False none) and the shape it broadcasts with."""

    arrays: tuple[NDArray[np.intp], ...]
    shape: tuple[int, ...]
    mask: tuple[int, ...] | None = None


def _expand(selection: Any, shape: Sequence[int]) -> tuple[list[Any], int]:
    """The selection as ints, slices, ``None``s and :class:`_Array`s that together consume
    every axis: the ellipsis spelled out, masks checked against the axes they cover. Also
    where an ellipsis of no width stood (-1: nowhere), which NumPy takes for a separator."""
    given = selection if isinstance(selection, tuple) else (selection,)
    items: list[Any] = []
    used = 0
    ellipsis = -1
    for entry in given:
        if entry is None:
            items.append(None)
        elif entry is Ellipsis:
            if ellipsis >= 0:
                raise InvalidSelection("an index can only have a single ellipsis ('...')")
            ellipsis = len(items)
        else:
            item = entry if type(entry) is int or type(entry) is slice else _item(entry)
            items.append(item)
            used += len(item.arrays) if isinstance(item, _Array) else 1
    missing = len(shape) - used
    if missing < 0:
        raise InvalidSelection(
            f"too many indices: the array has {counted(len(shape), 'dimension')}, {used} "
            f"were indexed"
        )
    at = len(items) if ellipsis < 0 else ellipsis
    items[at:at] = [slice(None)] * missing
    axis = 0
    for item in items:
        if isinstance(item, _Array):
            wanted = tuple(shape[axis : axis + len(item.arrays)])
            # NumPy lets a mask of length 0 stand for an axis of any length.
            if item.mask is not None and any(
                m not in (0, n) for m, n in zip(item.mask, wanted, strict=True)
            ):
                raise InvalidSelection(
                    f"a boolean index of shape {item.mask} does not match the axes it stands "
                    f"for, {axis} onwards, of shape {wanted}"
                )
            axis += len(item.arrays)
        elif item is not None:
            axis += 1
    return items, ellipsis if missing == 0 else -1


def _item(entry: Any) -> Any:
    """One index as NumPy understands it: an int, a slice or an array item."""
    if isinstance(entry, (bool, np.bool_)):
        return _Array((), (int(entry),))
    if isinstance(entry, slice):
        return entry
    try:
        return operator.index(entry)
    except TypeError:
        pass
    try:
        array = np.asarray(entry)
    except ValueError as error:
        raise InvalidSelection(f"an index cannot be a ragged list: {error}") from error
    if array.dtype == bool:
        if array.ndim == 0:
            return _Array((), (int(array),))
        arrays = array.nonzero()
        return _Array(arrays, arrays[0].shape, array.shape)
    if array.size == 0 and not isinstance(entry, np.ndarray):
        array = array.astype(np.intp)
    if array.dtype.kind == "U":
        raise InvalidSelection(
            f"{short(entry)} is not an index; fields are named in a[...] and a.lazy[...], "
            "of arrays that have fields"
        )
    if array.dtype.kind not in "iu":
        what = repr(entry) if array.ndim == 0 else f"an array of {array.dtype}"
        raise InvalidSelection(
            "an index must be an integer, a slice, ..., None, or an integer or boolean array, "
            f"not {what}"
        )
    if array.ndim == 0:
        return int(array)
    return _Array((array.astype(np.intp, copy=False),), array.shape)


def _point(index: int, axis: int, shape: Sequence[int]) -> Point:
    size = shape[axis]
    if not -size <= index < size:
        raise InvalidSelection(f"index {index} is out of bounds for axis {axis} with size {size}")
    return Point(index + size if index < 0 else index)


def _stride(item: slice, size: int, dim: int) -> tuple[Stride, int]:
    try:
        start, stop, step = item.indices(size)
    except TypeError:
        raise InvalidSelection(f"slice indices must be integers or None, not {item}") from None
    except ValueError:
        raise InvalidSelection(f"slice step cannot be zero in {item}") from None
    if step == 1:
        return Stride(dim, start, 1), max(0, stop - start)
    length = len(range(start, stop, step))
    # The step of a lone element says nothing, and may be larger than an index can be.
    return Stride(dim, start, step if length > 1 else 1), length


def _wrap(array: NDArray[np.intp], axis: int, shape: Sequence[int]) -> NDArray[np.intp]:
    """Indices checked against the axis, negative ones counted from its end."""
    size = shape[axis]
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < -size or high >= size:
            wrong = low if low < -size else high
            raise InvalidSelection(
                f"index {wrong} is out of bounds for axis {axis} with size {size}"
            )
        if low < 0:
            return np.where(array < 0, array + size, array)
    return array


# -- NumPy's advanced indexing ----------------------------------------------------------


def _advanced(items: list[Any], shape: Sequence[int], gap: int | None) -> Transform:
    """At least one array item: all arrays and ints broadcast to one block of dimensions. It
    stands where the first of them stood, or in front when they are not neighbours
    (NumPy, "Combining advanced and basic indexing"), or always when ``gap`` is ``None``."""
    try:
        block = np.broadcast_shapes(*(i.shape for i in items if isinstance(i, _Array)))
    except ValueError:
        shapes = " ".join(str(i.shape) for i in items if isinstance(i, _Array))
        raise InvalidSelection(f"index arrays do not broadcast together: {shapes}") from None
    places = [k for k, item in enumerate(items) if isinstance(item, (int, _Array))]
    together = places[-1] - places[0] == len(places) - 1
    if gap is None or places[0] < gap <= places[-1]:
        together = False
    at = places[0] if together else 0

    out: list[int] = []
    maps: list[AxisMap] = []
    pending: list[tuple[int, NDArray[np.intp]]] = []
    first = 0  # the block's first output dimension
    for k, item in enumerate(items):
        if k == at:
            first = len(out)
            out.extend(block)
        if item is None:
            out.append(1)
        elif isinstance(item, slice):
            mapped, length = _stride(item, shape[len(maps)], len(out))
            maps.append(mapped)
            out.append(length)
        elif isinstance(item, int):
            maps.append(_point(item, len(maps), shape))
        else:
            for array in item.arrays:
                # NumPy checks no bounds where nothing is selected.
                checked = array if 0 in block else _wrap(array, len(maps), shape)
                pending.append((len(maps), checked))
                maps.append(Point(0))  # replaced below, once the block's place is known
    for axis, array in pending:
        maps[axis] = taken(array, range(first + len(block) - array.ndim, first + len(block)))
    return Transform(_checked(out), tuple(maps))


def taken(array: NDArray[np.intp], dims: Sequence[int]) -> AxisMap:
    """``array`` as a map over ``dims``, free of the dimensions it only broadcasts along, so
    that ``np.ix_`` style arrays are recognised as independent axes."""
    if array.size == 1:
        return Point(int(array.reshape(())))
    kept = tuple(dim for dim, n in zip(dims, array.shape, strict=True) if n != 1)
    return Take(kept, array.reshape([n for n in array.shape if n != 1]))


# -- composition -----------------------------------------------------------------------


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
