"""Selections as transforms: NumPy's rules, composed, without any storage."""

from __future__ import annotations

from itertools import product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tensorstash.errors import Invalid, InvalidSelection
from tensorstash.indexing.selection import (
    Point,
    Stride,
    Take,
    compose,
    has_ellipsis,
    identity,
    outer,
    point,
    select,
    spans,
)
from tests.support.oracle import (
    advanced_index,
    numpy_index,
    outer_index,
    outer_of,
    point_index,
    point_of,
    positions,
    result_of,
    shapes,
)

EXAMPLES = settings.default.max_examples  # the "long" profile soaks


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """Every element is its own flat position."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape)


@st.composite
def chosen(draw: Any, rule: Any) -> tuple[tuple[int, ...], Any]:
    shape = draw(shapes())
    return shape, draw(rule(shape))


@settings(max_examples=3 * EXAMPLES)
@given(chosen(numpy_index))
def test_select_is_numpys_indexing(case: Any) -> None:
    shape, index = case
    wanted = np.asarray(numbered(shape)[index])
    found = positions(select(index, shape), shape)
    assert found.shape == wanted.shape
    assert (found == wanted).all()


@settings(max_examples=2 * EXAMPLES)
@given(chosen(outer_index))
def test_outer_takes_one_axis_after_the_other(case: Any) -> None:
    shape, index = case
    wanted = outer_of(numbered(shape), index)
    found = positions(outer(index, shape), shape)
    assert found.shape == np.shape(wanted)
    assert (found == wanted).all()


@settings(max_examples=2 * EXAMPLES)
@given(chosen(point_index))
def test_point_puts_the_arrays_first(case: Any) -> None:
    shape, index = case
    wanted = point_of(numbered(shape), index)
    found = positions(point(index, shape), shape)
    assert found.shape == np.shape(wanted)
    assert (found == wanted).all()


@st.composite
def chains(draw: Any) -> tuple[tuple[int, ...], list[tuple[Any, Any, Any]]]:
    """A shape, and two or three selections, each made for what the one before leaves."""
    shape = draw(shapes())
    array = numbered(shape)
    rules = [
        (numpy_index, select, lambda a, i: a[i]),
        (outer_index, outer, outer_of),
        (point_index, point, point_of),
    ]
    steps = []
    for _ in range(draw(st.integers(2, 3))):
        strategy, ours, theirs = draw(st.sampled_from(rules))
        index = draw(strategy(array.shape))
        steps.append((index, ours, theirs))
        array = np.asarray(theirs(array, index))
    return shape, steps


@settings(max_examples=3 * EXAMPLES)
@given(chains())
def test_composed_selections_are_selections_of_selections(case: Any) -> None:
    shape, steps = case
    transform, wanted = identity(shape), numbered(shape)
    for index, ours, theirs in steps:
        transform = compose(ours(index, transform.shape), transform)
        wanted = np.asarray(theirs(wanted, index))
    found = positions(transform, shape)
    assert found.shape == wanted.shape
    assert (found == wanted).all()


@settings(max_examples=4 * EXAMPLES)
@given(chosen(lambda shape: advanced_index(shape, wrong=True)))
def test_errors_are_numpys(case: Any) -> None:
    shape, index = case
    wanted = result_of(lambda: numbered(shape)[index], IndexError)
    found = result_of(lambda: select(index, shape), InvalidSelection)
    if wanted is IndexError:
        assert found is InvalidSelection, (index, shape)
    else:
        assert found is not InvalidSelection, (index, shape)
        assert (positions(found, shape) == wanted).all()


POOL: list[Any] = [
    0,
    -1,
    2,
    slice(None),
    slice(1, None),
    slice(None, None, -2),
    slice(0, 0),
    None,
    Ellipsis,
    True,
    False,
    [0],
    [1, 0, 1],
    [],
    [[0], [1]],
    np.array([True, False]),
    np.array([False, True, True]),
    np.array([[True, False, True], [False, True, True]]),
    np.array(1),
]


def test_every_short_index_of_a_small_array() -> None:
    array = numbered((2, 3))
    raised = 0
    for count in range(4):
        for index in product(POOL, repeat=count):
            wanted = result_of(lambda: array[index], IndexError)  # noqa: B023
            found = result_of(lambda: select(index, (2, 3)), InvalidSelection)  # noqa: B023
            if wanted is IndexError:
                raised += 1
                assert found is InvalidSelection, index
                continue
            assert found is not InvalidSelection, index
            assert found.shape == np.shape(wanted), index
            assert (positions(found, (2, 3)) == wanted).all(), index
    assert 1000 < raised < 7000  # both kinds are well represented


def test_every_slice_of_short_axes() -> None:
    bounds = [None, *range(-6, 7), 2**70, -(2**70)]
    for n in range(5):
        array = np.arange(n)
        for start, stop, step in product(bounds, bounds, [None, 1, 2, 3, -1, -2, -7, 2**70]):
            wanted = array[start:stop:step]
            found = positions(select(slice(start, stop, step), (n,)), (n,))
            assert found.tolist() == wanted.tolist(), (n, start, stop, step)


@pytest.mark.parametrize(
    "index",
    [
        (..., ...),
        (0, 0, 0),
        5,
        -3,
        [[0, 1], [2]],
        ([0, 1], [0, 1, 2]),
        np.zeros((2, 2), bool),
        np.array([0.0]),
        np.array([], float),
        1.0,
        "a",
        2**100,
        [2**100],
        (None,) * 70,
        object(),
        [slice(0, 1)],
        np.array([2**63], "u8"),
        np.datetime64("2020"),
    ],
    ids=lambda index: "object" if type(index) is object else repr(index)[:30],
)
def test_refused_as_by_numpy(index: Any) -> None:
    with pytest.raises((IndexError, ValueError)) as theirs:
        numbered((2, 3))[index]
    with pytest.raises(InvalidSelection) as ours:
        select(index, (2, 3))
    assert isinstance(ours.value, theirs.type)
    assert "\n" not in str(ours.value)


def test_a_zero_step_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="step cannot be zero"):
        select(slice(None, None, 0), (3,))


def test_bounds_are_not_asked_where_arrays_broadcast_to_nothing() -> None:
    # A quirk of NumPy's that callers meet with empty batches.
    assert np.zeros((4, 3))[[], [5]].shape == (0,)
    assert select(([], [5]), (4, 3)).shape == (0,)


def test_integers_like_and_unsigned() -> None:
    class Two:
        def __index__(self) -> int:
            return 2

    for two in (2, np.int8(2), np.uint64(2), Two(), np.array(2), np.array(2, "u1")):
        assert select(two, (3,)).maps == (Point(2),)
    index = np.array([0, 2], "u8")
    assert positions(select(index, (3,)), (3,)).tolist() == [0, 2]


def test_small_forms() -> None:
    assert identity((2, 3)).maps == (Stride(0, 0, 1), Stride(1, 0, 1))
    assert select((1, slice(None, None, -1)), (2, 3)).maps == (Point(1), Stride(0, 2, -1))
    # One index is a point wherever it comes from; an axis it leaves repeats that point.
    assert select([1], (2,)).maps == (Point(1),)
    assert select([1], (2,)).shape == (1,)
    (taken,) = select([1, 0], (2,)).maps
    assert isinstance(taken, Take)
    assert taken.dims == (0,)


def test_ix_arrays_stay_independent_axes() -> None:
    maps = select(np.ix_([0, 1], [2, 0, 1]), (2, 3)).maps
    assert [m.dims for m in maps if isinstance(m, Take)] == [(0,), (1,)]
    assert [m.array.ndim for m in maps if isinstance(m, Take)] == [1, 1]


@pytest.mark.parametrize(
    ("rule", "index", "says"),
    [
        (outer, ([[0, 1]],), "1-D"),
        (outer, (None,), "takes no None"),
        (outer, (np.ones((2, 3), bool),), "1-D"),
        (outer, ([3],), "out of bounds for axis 0"),
        (outer, (0, 0, 0), "too many"),
        (point, (None, [0]), "takes no None"),
        (point, ([0, 1], [0, 1, 2]), "broadcast"),
        (point, ([0], [3]), "out of bounds for axis 1"),
    ],
)
def test_refused_by_outer_and_point(rule: Any, index: Any, says: str) -> None:
    with pytest.raises(InvalidSelection, match=says):
        rule(index, (2, 3))


def test_spans_take_integers_and_forward_slices() -> None:
    assert spans(select((slice(1, 4), 2), (5, 6))) == [(1, 4), (2, 3)]
    assert spans(select((), ())) == []
    assert spans(select(slice(4, 2), (5,)))[0] in [(4, 4), (4, 2)]
    for index in (slice(None, None, 2), slice(None, None, -1), [0, 1]):
        with pytest.raises(InvalidSelection, match="axis 0"):
            spans(select(index, (5,)))


def test_views_of_nothing_ask_no_bounds_either() -> None:
    base = select([3, 1, 2, 0], (4,))
    found = compose(select(([9], []), (4, 3)), compose(select(..., (4, 3)), identity((4, 3))))
    assert found.shape == (0,)
    view = compose(select([3, 1, 2, 0], (4, 3)), identity((4, 3)))
    assert compose(select(([9], []), view.shape), view).shape == (0,)
    assert compose(select([], base.shape), base).shape == (0,)


def test_has_ellipsis_looks_at_the_top_only() -> None:
    array = np.array([1, 2])
    assert has_ellipsis(...)
    assert has_ellipsis((0, ...))
    assert not has_ellipsis((array, 0))
    assert not has_ellipsis(array)


def test_invalid_selection_is_invalid_and_an_index_error() -> None:
    assert issubclass(InvalidSelection, Invalid)
    assert issubclass(InvalidSelection, IndexError)


def test_transforms_of_huge_arrays_are_small() -> None:
    shape = (10**15, 10**15)
    transform = select((slice(None, None, 7), -1), shape)
    assert transform.shape == (-(-(10**15) // 7),)
    again = compose(select(slice(10, 20, 3), transform.shape), transform)
    assert again.maps == (Stride(0, 70, 21), Point(10**15 - 1))
