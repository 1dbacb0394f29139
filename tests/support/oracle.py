"""What NumPy says: index strategies, oracles for the indexing rules NumPy lacks, comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from tensorstash.codec import Pipeline
from tensorstash.engine.native import library
from tensorstash.indexing.selection import Point, Stride, Transform

# -- comparing ---------------------------------------------------------------------------------


def same(found: Any, wanted: Any) -> None:
    """Equal in type, shape, dtype and every bit; text and objects by ``==``."""
    assert type(found) is type(wanted), (type(found), type(wanted))
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    assert found.dtype == wanted.dtype, (found.dtype, wanted.dtype)
    if found.dtype.kind in "TO":
        assert found.tolist() == wanted.tolist()
    elif found.tobytes() != wanted.tobytes():
        np.testing.assert_array_equal(found, wanted)
        raise AssertionError("equal by value, but not by bits")


def result_of(call: Callable[[], Any], *errors: type[BaseException]) -> Any:
    """What ``call`` answers, or the class in ``errors`` that it raised."""
    try:
        return call()
    except errors as error:
        return next(cls for cls in errors if isinstance(error, cls))


def count_decodes(patch: pytest.MonkeyPatch) -> list[int]:
    """Wherever a pipeline decodes from now on, the size of what it decodes is noted. The kernel,
    which decodes without one, is off."""
    patch.setattr(library, "enabled", False)
    seen: list[int] = []
    decode = Pipeline.decode

    def counted(self: Pipeline, data: Any, *rest: Any) -> Any:
        seen.append(len(data))
        return decode(self, data, *rest)

    patch.setattr(Pipeline, "decode", counted)
    return seen


# -- the rules ---------------------------------------------------------------------------------


def positions(transform: Transform, shape: Sequence[int]) -> np.ndarray:
    """For every output position, the flat position in an array of ``shape``: a transform's
    meaning, spelled out without plans or chunks."""
    flat = np.zeros(transform.shape, np.intp)
    at: Any
    dims: tuple[int, ...]
    for axis_map, n in zip(transform.maps, shape, strict=True):
        if isinstance(axis_map, Point):
            at, dims = axis_map.at, ()
        elif isinstance(axis_map, Stride):
            at = axis_map.start + axis_map.step * np.arange(transform.shape[axis_map.dim])
            dims = (axis_map.dim,)
        else:
            at, dims = axis_map.array, axis_map.dims
        spread = [transform.shape[d] if d in dims else 1 for d in range(len(transform.shape))]
        at = np.asarray(at).reshape(spread)
        if flat.size:
            assert at.min() >= 0
            assert at.max() < n
        flat = np.asarray(flat * n + at)
    return flat


def outer_of(array: np.ndarray, selection: tuple[Any, ...]) -> np.ndarray:
    """``array.oindex[selection]``, by its definition: one axis after the other."""
    axis = 0
    for item in spelled(selection, array.ndim):
        if isinstance(item, list | np.ndarray):
            array = array[(slice(None),) * axis + (np.asarray(item, int_or_bool(item)),)]
        else:
            array = array[(slice(None),) * axis + (item,)]
        axis += not isinstance(item, int)
    return array


def point_of(array: np.ndarray, selection: tuple[Any, ...]) -> np.ndarray:
    """``array.vindex[selection]``, by its definition: the axes with arrays and integers moved
    to the front, then indexed together; slices follow in order."""
    items = spelled(selection, array.ndim, masks=True)
    if not any(isinstance(item, list | np.ndarray) for item in items):
        return array[tuple(items)]
    pointed: list[Any] = []
    front: list[int] = []
    rest: list[int] = []
    slices: list[slice] = []
    axis = 0
    for item in items:
        if isinstance(item, slice):
            rest.append(axis)
            slices.append(item)
            axis += 1
            continue
        if isinstance(item, np.ndarray) and item.dtype == bool:
            found = item.nonzero()
        else:
            found = (np.asarray(item, np.intp),)
        pointed += found
        front += range(axis, axis + len(found))
        axis += len(found)
    moved = array.transpose(front + rest)
    return moved[(slice(None),) * len(front) + tuple(slices)][tuple(pointed)]


def spelled(selection: Any, ndim: int, masks: bool = False) -> list[Any]:
    """The selection with its ellipsis written out."""
    items = list(selection) if isinstance(selection, tuple) else [selection]
    used = sum(
        item.ndim if masks and isinstance(item, np.ndarray) and item.dtype == bool else 1
        for item in items
        if item is not Ellipsis
    )
    at = next((k for k, item in enumerate(items) if item is Ellipsis), None)
    if at is None:
        return items + [slice(None)] * (ndim - used)
    return items[:at] + [slice(None)] * (ndim - used) + items[at + 1 :]


def int_or_bool(item: Any) -> Any:
    return None if isinstance(item, np.ndarray) else (np.intp if len(item) == 0 else None)


# -- strategies --------------------------------------------------------------------------------


def shapes(max_dims: int = 4, max_side: int = 7, min_dims: int = 0) -> st.SearchStrategy[Any]:
    """Mostly without empty axes: those leave nothing to compare."""
    full = hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=1, max_side=max_side)
    some = hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=0, max_side=max_side)
    return st.one_of(full, full, full, some)


def numpy_index(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Any index NumPy takes for an array of ``shape``."""
    some = np.broadcast_to(np.int8(0), shape)
    return st.one_of(
        hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True),
        # Masks and arrays do not always broadcast together.
        advanced_index(shape).filter(
            lambda i: result_of(lambda: some[i], IndexError) is not IndexError
        ),
    )


@st.composite
def advanced_index(draw: Any, shape: tuple[int, ...], wrong: bool = False) -> Any:
    """Everything at once. Valid unless ``wrong``: then bounds, shapes and counts may be off."""
    slack = 2 if wrong else 0
    least = 0 if draw(st.booleans()) else 1
    block = draw(hnp.array_shapes(min_dims=1, max_dims=2, min_side=least, max_side=4))
    items: list[Any] = []
    ellipsis = False
    axis = 0
    kinds = ["int", "slice", "array", "mask", "none", "...", "array", "stop", "bool", "masks"]
    while axis < len(shape) + (1 if wrong else 0):
        kind = draw(st.sampled_from([*kinds, "odd"] if wrong else kinds))
        n = shape[axis] if axis < len(shape) else 3
        m = n + draw(st.integers(0, slack)) if slack else n
        if kind == "int" and m:
            items.append(draw(st.integers(-m, m - 1)))
            axis += 1
        elif kind == "slice":
            items.append(draw(st.slices(m)))
            axis += 1
        elif kind == "array" and m:
            sides = draw(st.sampled_from([block, block[-1:], (1,), (1,) * len(block)]))
            if wrong and draw(st.integers(0, 3)) == 0:
                sides = (draw(st.integers(0, 5)),)
            kinds = [np.intp, np.int32, *([np.int8] if m <= 127 else [])]
            kind_of = draw(st.sampled_from(kinds))
            items.append(draw(hnp.arrays(kind_of, sides, elements=st.integers(-m, m - 1))))
            if draw(st.integers(0, 3)) == 0:
                items[-1] = items[-1].tolist()
            axis += 1
        elif kind == "mask":
            items.append(draw(hnp.arrays(bool, (m,))))
            axis += 1
        elif kind == "masks" and axis + 1 < len(shape):
            count = draw(st.integers(2, len(shape) - axis))
            items.append(draw(hnp.arrays(bool, (m, *shape[axis + 1 : axis + count]))))
            axis += count
        elif kind == "none":
            items.append(None)
        elif kind == "bool" and draw(st.integers(0, 4)) == 0:
            items.append(draw(st.sampled_from([True, False, np.True_, np.array(False)])))
        elif kind == "..." and (wrong or not ellipsis):
            items.append(Ellipsis)
            ellipsis = True
            axis += draw(st.integers(0, max(0, len(shape) - axis)))
        elif kind == "odd":
            odd = [1.5, "x", np.array([0.5]), [None], np.array(["a"]), 2**70, 1j, object()]
            items.append(draw(st.sampled_from(odd)))
            axis += 1
        elif kind == "stop":
            break
    return tuple(items) if len(items) != 1 or draw(st.booleans()) else items[0]


@st.composite
def outer_index(draw: Any, shape: tuple[int, ...]) -> Any:
    """What ``oindex`` takes."""
    items: list[Any] = []
    for n in shape:
        items.append(draw(_axis_item(n)))
    return _shortened(draw, items)


@st.composite
def point_index(draw: Any, shape: tuple[int, ...]) -> Any:
    """What ``vindex`` takes: arrays that broadcast, integers, masks, slices."""
    block = draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=4))
    items: list[Any] = []
    axis = 0
    count = math.prod(block)
    while axis < len(shape):
        n = shape[axis]
        kind = draw(st.sampled_from(["array", "array", "slice", "int", "mask"]))
        if kind == "array" and n:
            sides = draw(st.sampled_from([block, block[-1:], (1,)]))
            items.append(draw(hnp.arrays(np.intp, sides, elements=st.integers(-n, n - 1))))
        elif kind == "int" and n:
            items.append(draw(st.integers(-n, n - 1)))
        elif kind == "mask" and len(block) == 1 and n >= count:
            mask = np.zeros(n, bool)
            mask[draw(st.permutations(range(n)))[:count]] = True
            items.append(mask)
        else:
            items.append(draw(st.slices(n)))
        axis += 1
    return _shortened(draw, items)


def _axis_item(n: int) -> st.SearchStrategy[Any]:
    choices: list[st.SearchStrategy[Any]] = [st.slices(n), hnp.arrays(bool, (n,))]
    if n:
        number = st.integers(-n, n - 1)
        choices += [number, hnp.arrays(np.intp, st.integers(0, 6), elements=number)]
        choices += [st.lists(number, max_size=5)]
    return st.one_of(choices)


def _shortened(draw: Any, items: list[Any]) -> tuple[Any, ...]:
    """Trailing or inner items left out, with an ellipsis where it is needed."""
    if items and draw(st.booleans()):
        at = draw(st.integers(0, len(items) - 1))
        return (*items[:at], Ellipsis, *items[at + 1 :])
    return tuple(items[: draw(st.integers(0, len(items)))]) if draw(st.booleans()) else tuple(items)
