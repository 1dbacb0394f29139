"""Plans: every chunk once, every element where it belongs, in bounded memory."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import islice, product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tensorstash.indexing.axis import HELD
from tensorstash.indexing.copying import core, gather, joint_first, repeat_core, scatter
from tensorstash.indexing.grid import Grid, RectilinearAxis, RegularAxis, cut
from tensorstash.indexing.plan import Part, Plan, plan
from tensorstash.indexing.selection import (
    Stride,
    Transform,
    compose,
    identity,
    outer,
    point,
    select,
)
from tests.support.oracle import numpy_index, outer_index, point_index, positions, shapes

EXAMPLES = settings.default.max_examples  # the "long" profile soaks

# -- carrying a plan out, in memory ------------------------------------------------------------


def chunk_of(array: np.ndarray, grid: Grid, index: tuple[int, ...]) -> np.ndarray:
    """The part of a chunk that lies in the array, as a view."""
    low, size = grid.origin(index), grid.chunk_shape(index)
    return array[(*(slice(a, a + n) for a, n in zip(low, size, strict=True)), ...)]


def read(array: np.ndarray, transform: Transform, grid: Grid) -> np.ndarray:
    todo = plan(transform, grid, array.shape)
    out = np.full(transform.shape, -1, array.dtype)
    if 0 in transform.shape:
        return out
    view = core(todo, out, 0)
    for part in todo.parts():
        chunk = joint_first(todo, chunk_of(array, grid, part.chunk))
        scatter(view, part.outside, gather(chunk, part.inside, len(todo.joint)), todo.joint_dims)
    repeat_core(todo, out)
    return out


def write(array: np.ndarray, transform: Transform, grid: Grid, value: np.ndarray) -> None:
    todo = plan(transform, grid, array.shape)
    if 0 in transform.shape:
        return
    view = core(todo, np.broadcast_to(value, transform.shape), -1)
    for part in todo.parts():
        chunk = joint_first(todo, chunk_of(array, grid, part.chunk))
        scatter(chunk, part.inside, gather(view, part.outside, todo.joint_dims), len(todo.joint))


def touched(transform: Transform, grid: Grid, shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The chunks that hold any selected element, found element by element."""
    flat = np.unique(positions(transform, shape))
    if not shape:
        return {()} if flat.size else set()
    axes = np.unravel_index(flat, shape) if flat.size else [np.array([], int)] * len(shape)
    columns = [axis.of_many(np.asarray(at)) for axis, at in zip(grid.axes, axes, strict=True)]
    return set(zip(*(column.tolist() for column in columns), strict=True))


# -- strategies --------------------------------------------------------------------------------


@st.composite
def grids(draw: Any, shape: tuple[int, ...]) -> Grid:
    axes: list[Any] = []
    for n in shape:
        if draw(st.integers(0, 3)):
            axes.append(RegularAxis(draw(st.integers(1, 9))))
            continue
        edges = []
        while sum(edges) < max(n, 1):
            edges.append(draw(st.integers(1, 4)))
        axes.append(RectilinearAxis(tuple(edges)))
    return Grid(tuple(axes))


@st.composite
def transforms(draw: Any, shape: tuple[int, ...]) -> Transform:
    """One to three selections in a row, by any rule."""
    transform = identity(shape)
    for _ in range(draw(st.integers(1, 3))):
        rule, index = draw(
            st.one_of(
                st.tuples(st.just(select), numpy_index(transform.shape)),
                st.tuples(st.just(select), numpy_index(transform.shape)),
                st.tuples(st.just(outer), outer_index(transform.shape)),
                st.tuples(st.just(point), point_index(transform.shape)),
            )
        )
        transform = compose(rule(index, transform.shape), transform)
    return transform


@st.composite
def cases(draw: Any) -> tuple[tuple[int, ...], Grid, Transform]:
    shape = draw(shapes())
    return shape, draw(grids(shape)), draw(transforms(shape))


# -- what a plan does --------------------------------------------------------------------------


@settings(max_examples=2 * EXAMPLES)
@given(cases())
def test_a_plan_reads_what_its_transform_selects(case: Any) -> None:
    shape, grid, transform = case
    array = np.arange(math.prod(shape)).reshape(shape)
    found = read(array, transform, grid)
    wanted = array.reshape(-1)[positions(transform, shape)]
    assert found.shape == wanted.shape
    assert (found == wanted).all()


@settings(max_examples=EXAMPLES)
@given(cases())
def test_a_plan_writes_in_order_and_the_last_stays(case: Any) -> None:
    shape, grid, transform = case
    array, wanted = np.zeros(shape, int), np.zeros(math.prod(shape), int)
    value = np.arange(1, math.prod(transform.shape) + 1).reshape(transform.shape)
    write(array, transform, grid, value)
    for at, v in zip(positions(transform, shape).flat, value.flat, strict=True):
        wanted[at] = v
    assert array.reshape(-1).tolist() == wanted.tolist()


@pytest.mark.parametrize("held", [HELD, 2])
@given(cases())
def test_laws(held: int, case: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("plan", "axis"):
            patch.setattr(f"tensorstash.indexing.{module}.HELD", held)
        check_laws(*case)


def check_laws(shape: tuple[int, ...], grid: Grid, transform: Transform) -> None:
    todo = plan(transform, grid, shape)
    if 0 in transform.shape:
        return
    parts = list(todo.parts())
    chunks = [part.chunk for part in parts]
    # Each touched chunk once, and their number known beforehand.
    assert len(set(chunks)) == len(chunks) == len(todo)
    assert set(chunks) == touched(transform, grid, shape)
    written = np.zeros(transform.shape, int)
    view = core(todo, written, 0)
    for part in parts:
        check_part(todo, part, grid, shape)
        view_before = gather(view, part.outside, todo.joint_dims)
        scatter(view, part.outside, view_before + 1, todo.joint_dims)
    # Each output position once; those that only repeat are left to repeat_core.
    assert (view == 1).all()
    repeat_core(todo, written)
    assert (written == 1).all()


def check_part(todo: Plan, part: Part, grid: Grid, shape: tuple[int, ...]) -> None:
    size = grid.chunk_shape(part.chunk)
    low = grid.origin(part.chunk)
    within = [min(s, n - a) for s, a, n in zip(size, low, shape, strict=True)]
    order = todo.joint + todo.axes
    assert sorted(order) == list(range(len(shape)))
    assert len(part.inside) == len(shape)
    for item, axis in zip(part.inside, order, strict=True):
        marks = np.zeros(within[axis], int)
        if isinstance(item, slice):
            assert item.start >= 0
            assert item.stop is None or item.stop <= within[axis]
        else:
            assert np.min(item) >= 0  # IndexError above the end, below
        marks[item] += 1
        assert marks.any()
    # A part that says it covers its chunk does; and none that does fails to say so, except
    # where repeated or pointwise indices make it hard to tell.
    cells = np.zeros([within[axis] for axis in order], int)
    joint = len(todo.joint)
    scatter(cells, part.inside, gather(cells, part.inside, joint) + 1, joint)
    covers = bool((cells > 0).all())
    says = False not in part.wholes
    if says or not (todo.joint or todo.arrays):
        assert says == covers
    else:
        assert covers or not says


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_shards_group_the_parts(data: Any) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=9))
    inner = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    ratios = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    transform = data.draw(transforms(shape))
    if 0 in transform.shape:
        return
    todo = plan(transform, Grid.regular(inner), shape)

    def named(part: Part, chunk: tuple[int, ...]) -> str:
        return repr((chunk, part.inside, part.outside, part.wholes))

    wanted = Counter(named(part, part.chunk) for part in todo.parts())
    found: Counter[str] = Counter()
    seen = []
    for shard, parts in todo.shards(ratios):
        seen.append(shard)
        for part in parts:
            assert all(0 <= c < r for c, r in zip(part.chunk, ratios, strict=True))
            place = (s * r + c for s, r, c in zip(shard, ratios, part.chunk, strict=True))
            found[named(part, tuple(place))] += 1
    assert found == wanted
    assert len(set(seen)) == len(seen)


# -- small sizes, all of them ------------------------------------------------------------------


def test_every_stride_over_every_small_grid() -> None:
    for n in range(1, 8):
        array = np.arange(n)
        grids = [RegularAxis(edge) for edge in range(1, 9)]
        more: list[Any] = [RectilinearAxis(edges) for edges in compositions(n)] if n < 6 else []
        starts = range(n)
        for axis in [*grids, *more]:
            for start, step in product(starts, [1, 2, 3, -1, -2, -5, 7]):
                longest = len(array[start::step])
                for length in {1, longest, longest // 2 + 1} & set(range(1, longest + 1)):
                    transform = Transform((length,), (Stride(0, start, step),))
                    grid = Grid((axis,))
                    wanted = array[start::step][:length]
                    assert read(array, transform, grid).tolist() == wanted.tolist()
                    todo = plan(transform, grid, (n,))
                    parts = list(todo.parts())
                    assert len(todo) == len(parts)
                    assert {p.chunk for p in parts} == touched(transform, grid, (n,))
                    for part in parts:
                        check_part(todo, part, grid, (n,))


def compositions(n: int) -> list[tuple[int, ...]]:
    """All ways to cut ``n`` (or one more) into positive parts."""
    if n <= 0:
        return [()]
    return [(k, *rest) for k in range(1, n + 1) for rest in compositions(n - k)]


def test_every_short_list_over_every_small_grid() -> None:
    for n in range(1, 5):
        array = np.arange(n)
        for edge, count in product(range(1, 4), range(1, 5)):
            grid = Grid.regular((edge,))
            for index in product(range(n), repeat=count):
                transform = outer(list(index), (n,))
                assert read(array, transform, grid).tolist() == list(index)
                assert len(plan(transform, grid, (n,))) == len({i // edge for i in index})


# -- counts, memory ----------------------------------------------------------------------------


def test_a_plan_costs_the_sum_of_the_axes_chunks() -> None:
    shape, grid = (1000, 2000, 3000), Grid.regular((1, 2, 3))
    todo = plan(identity(shape), grid, shape)
    assert [table.count for table in todo.tables] == [1000, 1000, 1000]
    assert len(todo) == 10**9
    todo = plan(select((5, slice(None, None, 4), [7, 7, 0]), shape), grid, shape)
    assert sorted(table.count for table in todo.tables) == [1, 2, 500]


def test_sorted_lists_are_planned_without_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, grid = (10**6,), Grid.regular((100,))
    for name in ("argsort", "sort", "lexsort", "unique"):
        monkeypatch.setattr(np, name, None)
    todo = plan(select(np.arange(0, 10**6, 50), shape), grid, shape)
    assert len(todo) == 10**4
    part = next(iter(todo.parts()))
    assert part.outside == (slice(0, 2),)


def test_consecutive_indices_become_slices() -> None:
    grid = Grid.regular((4,))
    (part,) = plan(select([5, 6, 7], (8,)), grid, (8,)).parts()
    assert part.inside == (slice(1, 4),)
    (part,) = plan(select([7, 4, 6, 5], (8,)), grid, (8,)).parts()
    assert part.inside == (slice(0, 4),)
    assert part.wholes == (True,)
    (part,) = plan(select([4, 5, 6, 6, 7], (8,)), grid, (8,)).parts()
    assert isinstance(part.inside[0], np.ndarray)


@pytest.mark.parametrize(
    ("shape", "chunks", "index"),
    [
        ((10**7,), (1,), ...),
        ((10**4, 10**4), (1, 10), ...),
        ((10, 10**8), (1, 100), ...),
        ((3 * 10**7,), (2,), slice(None, None, 3)),
        ((10**7,), (1,), slice(None, None, -1)),
        ((2, 10**7), (1, 1), (slice(None), slice(None, None, -1))),
    ],
)
def test_a_huge_plan_is_never_held(
    shape: tuple[int, ...], chunks: tuple[int, ...], index: Any
) -> None:
    # Only slices of step 1 are planned without a Python statement a chunk.
    walked = 10**5 if index is ... else 2 * 10**4
    tracemalloc.start()
    try:
        todo = plan(select(index, shape), Grid.regular(chunks), shape)
        assert len(todo) >= 10**7
        assert sum(1 for _ in islice(todo.parts(), walked)) == walked
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20  # a part held is about 400 bytes: ten million are gigabytes


def test_index_arrays_that_touch_very_many_chunks() -> None:
    # More than are held of a slice: these once recursed until the interpreter crashed.
    shape, grid = (60_000, 3), Grid.regular((2, 2))
    rows = np.arange(0, 60_000, 3)
    array = np.arange(180_000).reshape(shape)
    columns = rows % 3
    for transform, wanted in (
        (select(rows, shape), array[rows]),
        (select(rows[::-1], shape), array[rows[::-1]]),
        (select((rows, columns), shape), array[rows, columns]),
    ):
        assert plan(transform, grid, shape).count > HELD
        assert (read(array, transform, grid) == wanted).all()
        todo = plan(transform, grid, shape)
        assert sum(1 for _, parts in todo.shards((5, 1)) for _ in parts) == len(todo)


@pytest.mark.parametrize("shape", [(10**7,), (10**5, 10**5)])
def test_the_shards_of_a_huge_plan_are_never_held(shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    try:
        todo = plan(identity(shape), Grid.regular((1,) * len(shape)), shape)
        seen = []
        for shard, parts in islice(todo.shards((50,) * len(shape)), 20):
            seen.append(shard)
            assert sum(1 for _ in parts) == 50 ** len(shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(seen)) == 20
    assert peak < 24 << 20


def test_shards_that_are_walked_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstash.indexing.plan.HELD", 4)
    monkeypatch.setattr("tensorstash.indexing.axis.HELD", 4)
    shape = (37, 3, 29)
    for index in [..., (slice(None, None, -1), 1), (slice(3, 31), [2, 0], slice(28, 2, -3))]:
        todo = plan(select(index, shape), Grid.regular((2, 1, 2)), shape)
        found: Counter[tuple[int, ...]] = Counter()
        shards = []
        for shard, parts in todo.shards((3, 2, 5)):
            shards.append(shard)
            for part in parts:
                place = zip(shard, (3, 2, 5), part.chunk, strict=True)
                found[tuple(s * r + c for s, r, c in place)] += 1
        assert len(set(shards)) == len(shards)
        assert found == Counter(part.chunk for part in todo.parts())
        assert len(todo) == sum(found.values())


def test_counting_a_huge_plan_walks_nothing() -> None:
    shape = (10**12, 10**4)
    assert len(plan(identity(shape), Grid.regular((10, 10)), shape)) == 10**14


def test_cut_meets_the_chunks() -> None:
    assert list(cut(RegularAxis(4), 3, 9)) == [slice(3, 4), slice(4, 8), slice(8, 9)]
    axis = RectilinearAxis((2, 5, 1))
    assert list(cut(axis, 0, 8)) == [slice(0, 2), slice(2, 7), slice(7, 8)]
    assert list(cut(axis, 4, 4)) == []
