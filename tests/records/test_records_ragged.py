"""Ragged fields: rows of any shape, rewritten in place or moved, and never mixed up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.columns import Ragged
from tensorstash.errors import Invalid, InvalidSelection
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tests.support.oracle import same
from tests.support.ragged_rows import ROWS, holds, made


def rows_of(rng: np.random.Generator, count: int, ndim: int, most: int = 6) -> list[np.ndarray]:
    shapes = [tuple(int(n) for n in rng.integers(0, most, ndim)) for _ in range(count)]
    return [rng.integers(-(2**31), 2**31, shape).astype("i4") for shape in shapes]


# -- rewriting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_rows_are_rewritten_in_place_or_moved(ndim: int, data: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = made(ndim)
    wanted = [np.zeros((0,) * ndim, "i4") for _ in range(ROWS)]
    other = stash.open_records(records.driver, "r+")
    for _ in range(data.draw(st.integers(1, 6))):
        writer = data.draw(st.sampled_from([records, other]))
        chosen = data.draw(st.lists(st.integers(-ROWS, ROWS - 1), max_size=12))
        rows = rows_of(rng, len(chosen), ndim, data.draw(st.sampled_from([2, 6, 9])))
        form = data.draw(st.sampled_from(["list", "ragged", "series"]))
        if form == "series":
            writer["t"][np.array(chosen, int)] = rows
        elif form == "ragged":
            given_rows = Ragged.of(rows, np.dtype("i4"), ndim)
            writer[np.array(chosen, int)] = {"t": given_rows}
        else:
            writer[np.array(chosen, int)] = {"t": rows}
        for row, value in zip(chosen, rows, strict=True):
            wanted[row] = value
        holds(records, wanted)
        holds(other, wanted)
    holds(stash.open_records(records.driver), wanted)


def test_a_row_of_the_same_shape_is_rewritten_where_it_lies() -> None:
    driver = CountingDriver(made(2).driver)
    records = stash.open_records(driver, "r+")
    records[2] = {"t": np.arange(6).reshape(2, 3)}
    records[3] = {"t": [[8]]}
    values = records.source.table.columns["t"].arrays[0]
    for row, moves in [
        (np.arange(6, 12).reshape(2, 3), False),
        (np.arange(6).reshape(3, 2), True),
        (np.arange(6, 12).reshape(3, 2), False),
        ([[7]], True),
        (np.zeros((0, 2), "i4"), False),
        (np.zeros((0, 3), "i4"), False),
        (np.arange(6).reshape(3, 2), True),
    ]:
        size = len(values.refresh())
        driver.reset()
        records[2] = {"t": row}
        if not moves:
            assert driver.writes.calls == 1
            assert driver.counts["lock"].calls == 0
        assert len(values.refresh()) == size + moves * np.size(row)
        assert np.array_equal(records[2]["t"], row)
        assert records[3]["t"].tolist() == [[8]]


def test_nobody_sees_half_of_a_row() -> None:
    # A reader that looks at every step of a row's replacement finds the old one or the new one,
    # also where it is as long as several chunks; so does whoever comes after a kill.
    long = np.arange(150_000, dtype="i4")
    rows = [np.ones(4, "i4"), [2, 2], [3] * 6, [], [4] * 6, long, long[::-1], [5]]
    for old, new in pairwise(rows):
        inner = made(1, 3).driver
        records = stash.open_records(inner, "r+")
        records[0:2] = {"t": [[9, 9], old]}
        seen = []

        def look(call: Call, inner: Any = inner, seen: Any = seen) -> Fault | None:
            seen.append(stash.open_records(inner)["t"][1].tolist())
            return None

        stash.open_records(FailingDriver(inner, look), "r+")[1] = {"t": new}
        seen.append(stash.open_records(inner)["t"][1].tolist())
        steps = [step for step, _ in groupby(seen)]
        assert steps == [np.asarray(old).tolist(), np.asarray(new).tolist()]
        assert stash.open_records(inner)[0]["t"].tolist() == [9, 9]


def test_the_last_of_several_values_for_a_row_stays() -> None:
    records = made()
    records[[1, 5, 1, -8, 5]] = {"t": [[1], [2, 2], [3, 3, 3], [4], []]}
    assert [row.tolist() for row in records["t"]][1:6] == [[4], [], [], [], []]
    records.where([0, 0, 0])[:] = {"t": [[1, 2, 3], [4], [5, 6]]}
    assert records[0]["t"].tolist() == [5, 6]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_empty_rows(ndim: int) -> None:
    records = made(ndim, 1)
    empty = np.zeros((2, 0, 3)[:ndim] if ndim > 1 else (0,), "i4")
    records.append({"t": empty})
    records.append({"t": []})
    records.extend({"t": [empty, np.ones((1,) * ndim, "i4"), []]})
    nothing = np.zeros((0,) * ndim, "i4")
    holds(records, [nothing, empty, nothing, empty, np.ones((1,) * ndim, "i4"), nothing])
    records[3] = {"t": np.ones((2,) * ndim, "i4")}
    records[4] = {"t": empty}
    holds(records, [nothing, empty, nothing, np.ones((2,) * ndim, "i4"), empty, nothing])


def test_one_array_for_several_rows() -> None:
    records = made(2, 4)
    records[1:3] = {"t": np.arange(6).reshape(2, 3)}
    records["t"][3] = np.ones((1, 1), "i4")
    holds(
        records,
        [np.zeros((0, 0), "i4"), *[np.arange(6, dtype="i4").reshape(2, 3)] * 2,
         np.ones((1, 1), "i4")],
    )  # fmt: skip


# -- shown -------------------------------------------------------------------------------------


def test_padded_and_jagged() -> None:
    records = made(2, 0)
    rows = [np.ones((1, 3), "i4"), np.zeros((0, 2), "i4"), np.full((2, 1), 5, "i4")]
    records.extend({"t": rows})
    padded = records.ragged_as("padded")[:]["t"]
    assert padded.tolist() == [[[1, 1, 1], [0, 0, 0]], [[0] * 3] * 2, [[5, 0, 0], [5, 0, 0]]]
    jagged = records.ragged_as("jagged")[[2, 0]]["t"]
    assert isinstance(jagged, Ragged)
    assert jagged == Ragged.of([rows[2], rows[0]], np.dtype("i4"), 2)
    assert records.ragged_as("padded")["t"][1:].shape == (2, 2, 2)
    same(records.ragged_as("jagged")["t"][0], rows[0])
    with pytest.raises(Invalid, match="there are: list, padded, jagged"):
        records.ragged_as("stacked")  # type: ignore[arg-type]


def test_lengths_read_no_values() -> None:
    for ndim in (1, 3):
        driver = CountingDriver(made(ndim, 0).driver)
        records = stash.open_records(driver, "r+")
        rows = rows_of(np.random.default_rng(0), 30, ndim)
        records.extend({"t": rows})
        values: list[str] = []

        def noted(call: Call, values: list[str] = values) -> Fault | None:
            values += [call.key] if "values" in call.key else []
            return None

        watched = stash.open_records(FailingDriver(driver, noted))
        assert watched.lengths("t").tolist() == [len(row) for row in rows]
        assert watched["t"].lengths().tolist() == [len(row) for row in rows]
        view = watched.where([5, 5, 29, 0])
        assert view.lengths("t").tolist() == [len(rows[i]) for i in (5, 5, 29, 0)]
        assert values == []
    with pytest.raises(Invalid, match="'n' is not a ragged field; those are: none"):
        stash.create_records({}, {"n": "i4"}).lengths("n")


def test_values_of_rows_are_read_once_a_chunk() -> None:
    driver = CountingDriver(made(1, 0).driver)
    records = stash.open_records(driver, "r+")
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 9, 40_000).astype("i4") for _ in range(16)]  # 10 chunks of values
    records.extend({"t": rows})
    for chosen in (slice(None), rng.permutation(16), [3, 3, 15, 0, 3], slice(5, 9)):
        driver.reset()
        found = records[chosen]["t"]
        numbers = np.arange(16)[chosen]
        for row, i in zip(found, numbers, strict=True):
            same(row, rows[i])
        chunks = {at // 65536 for i in numbers for at in (40_000 * i, 40_000 * i + 39_999)}
        places = {i // records.source.table.catalog.chunk_rows("t") for i in numbers}
        assert len(chunks) <= driver.reads.keys <= len(chunks) + len(places)  # places are kept
        assert driver.counts["list"].calls == 0


# -- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (5, "axes"),
        ([[1, 2]], "2 axes where 1"),
        ([1.5], "lose"),
        ([2**31], "out of range"),
        (["a"], "lose"),
        ("abc", "1 axis a row"),
        (None, "1 axis a row"),
        ([[1], [2, 3]], "inhomogeneous"),
        (np.ones((1, 1, 1), "i4"), "3 axes where 1"),
    ],
    ids=repr,
)
def test_rows_that_do_not_fit(value: Any, match: str) -> None:
    records = made(1, 2)
    before = dict(records.driver._mapping)  # type: ignore[attr-defined]
    for call in (
        lambda: records.append({"t": value}),
        lambda: records.extend([{"t": value}]),
        lambda: records.__setitem__(1, {"t": value}),
        lambda: records["t"].__setitem__(0, value),
    ):
        with pytest.raises(Invalid, match=f"field 't'.*{match}") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "1 axis a row" in str(caught.value)
    assert dict(records.driver._mapping) == before  # type: ignore[attr-defined]


def test_a_ragged_that_contradicts_itself_is_refused() -> None:
    values, one = np.arange(6, dtype="i4"), np.array([[3], [3]])
    two = np.array([[3, 1], [1, 3]])
    odd: list[tuple[int, Callable[[], Ragged]]] = [
        (1, lambda: Ragged(values, np.array([0, 3, 7]))),
        (1, lambda: Ragged(values, np.array([-1, 2, 6]))),
        (1, lambda: Ragged(values, np.array([0, 4, 3]))),
        (1, lambda: Ragged(values, np.array([0, 3, 6]), one[:1])),
        (1, lambda: Ragged(values, np.array([0.0, 3, 6]))),
        (1, lambda: Ragged(values.reshape(2, 3), np.array([0, 1, 2]))),
        (2, lambda: Ragged(values, np.array([0, 3, 6]), two + 1)),
        (2, lambda: Ragged(values, np.array([0, 3, 6]), -two)),
        (2, lambda: Ragged(values[:0], np.array([0, 0]), np.array([[2**32, 2**32]]))),
        (1, lambda: Ragged(values, np.array([0, 3, 6]), two)),
    ]
    for ndim, make in odd:
        records = made(ndim, 2)
        ragged = make()
        for call in (
            lambda: records.extend({"t": ragged}),  # noqa: B023
            lambda: records.__setitem__(slice(0, 2), {"t": ragged}),  # noqa: B023
        ):
            with pytest.raises(Invalid, match="field 't'"):
                call()
        assert records[:]["t"][0].size == 0


def test_parts_of_a_ragged_are_stored_alone() -> None:
    whole = Ragged(np.arange(10, dtype="i8"), np.array([2, 4, 4, 9]))
    records = made(1, 0)
    records.extend({"t": whole})
    records.extend({"t": whole[1:]})
    records.extend({"t": whole[::-1]})
    with records.writer() as writer:
        writer.extend({"t": whole})
        writer.extend({"t": whole})
    first = [[2, 3], [], [4, 5, 6, 7, 8]]
    wanted = [*first, *first[1:], *first[::-1], *first, *first]
    assert [row.tolist() for row in records["t"]] == wanted
    assert len(records.source.table.columns["t"].arrays[0]) == sum(map(len, wanted))


def test_ragged_in_memory_is_indexed_as_numpy_is() -> None:
    rows = rows_of(np.random.default_rng(1), 7, 2)
    ragged = Ragged.of(rows, np.dtype("i4"), 2)
    for chosen in (slice(2, 5), slice(5, 2), slice(None, None, -2), [0, 0, -1], np.arange(7) > 3):
        found = ragged[chosen]
        for a, i in zip(found, np.arange(7)[chosen], strict=True):
            same(a, rows[i])
    for wrong in (7, -8, [7], np.ones(6, bool)):
        with pytest.raises(InvalidSelection):
            ragged[wrong]


@pytest.mark.parametrize("ndim", [1, 2])
def test_runs_of_rows_in_any_order_are_read_once_a_chunk(ndim: int) -> None:
    rng = np.random.default_rng(5)
    rows = rows_of(rng, 400, ndim, 40)
    records = stash.create_records({}, {"t": stash.ragged("int32", ndim)}, rows_per_chunk=16)
    records.extend({"t": rows})
    for _ in range(20):
        starts = rng.integers(0, 380, 5)
        chosen = np.concatenate([np.arange(at, at + rng.integers(1, 20)) for at in starts])
        chosen = rng.permutation(chosen) if rng.random() < 0.5 else chosen
        for found, wanted in zip(records[chosen]["t"], chosen, strict=True):
            same(found, rows[wanted])
