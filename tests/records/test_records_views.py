"""Views of records: composed as NumPy composes, lazy, small in pickles, and without secrets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.errors import Closed, Invalid, InvalidSelection, ReadOnly
from tensorstash.testing.counting import CountingDriver
from tests.support.oracle import same

ROWS = 97


def made(rows: int = ROWS, place: Any = None) -> stash.Records:
    records = stash.create_records(
        {} if place is None else place,
        {"n": "int64", "t": stash.ragged("int32"), "s": str, "in": {"x": ((2,), "float32")}},
        rows_per_chunk=8,
    )
    records.extend(
        {
            "n": np.arange(rows),
            "t": [np.arange(i % 4) + i for i in range(rows)],
            "s": [str(i) for i in range(rows)],
            "in": {"x": np.arange(2 * rows).reshape(rows, 2)},
        }
    )
    return records


@pytest.fixture(scope="module")
def there() -> stash.Records:
    return made()


# -- rows --------------------------------------------------------------------------------------


@st.composite
def narrowings(draw: Any, n: int) -> Any:
    number = st.integers(-n, n - 1) if n else st.nothing()
    choices = [st.slices(n), st.lists(st.booleans(), min_size=n, max_size=n).map(np.array)]
    if n:
        choices.append(st.lists(number, max_size=2 * n).map(lambda rows: np.array(rows, int)))
    return draw(st.one_of(choices))


@settings(max_examples=60)
@given(data=st.data())
def test_views_of_views(there: stash.Records, data: Any) -> None:
    view, rows = there, np.arange(ROWS)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            chosen = data.draw(narrowings(len(rows)))
            if isinstance(chosen, np.ndarray) and not chosen.size:
                chosen = chosen.astype(bool if len(rows) == 0 else int)
            view, rows = view.where(chosen), rows[chosen]
        else:
            seed = data.draw(st.integers(-5, 2**64))
            parts = view.split({"a": 0.5, "b": 0.3, "c": 0.2}, seed)
            found = {
                name: np.array([int(n) for n in part["n"]], int) for name, part in parts.items()
            }
            whole = np.concatenate([*found.values()])
            assert sorted(whole.tolist()) == sorted(rows.tolist())
            name = data.draw(st.sampled_from(["a", "b", "c"]))
            view, rows = parts[name], found[name]
        view = view.select("n", "in") if data.draw(st.booleans()) else view
    assert len(view) == len(rows)
    same(view[:]["n"], rows)
    same(view[:]["in"]["x"][:, 0], rows.astype("f4") * 2)
    assert [int(row["n"]) for row in view] == rows.tolist()
    blocks = view.source.blocks
    seen = np.concatenate([blocks.rows(k) for k in range(len(blocks))] or [rows[:0]])
    assert sorted(seen.tolist()) == list(range(len(rows)))
    same(pickle.loads(pickle.dumps(view))[:]["n"], rows)


def test_a_view_of_one_row_is_no_view(there: stash.Records) -> None:
    for row in (3, -1, np.int64(0)):
        with pytest.raises(InvalidSelection, match="where takes a mask, a list or a slice"):
            there.where(row)
    for wrong in ([97], np.ones(5, bool), 1.5, [[0]]):
        with pytest.raises(InvalidSelection):
            there.where(wrong)


def test_a_query_or_rows_behind_a_name_are_refused_with_what_to_write(there: stash.Records) -> None:
    for query in ("n > 3", lambda row: row["n"] > 3):
        with pytest.raises(
            InvalidSelection, match=r"not .*: .*as r\.where\(r\['x'\]\[\.\.\.\] > 3\)$"
        ):
            there.where(query)
    for key, written in (
        (("n", 3), "r['n'][3]"),
        (("in", "x", 3, 0), "r['in/x'][3, 0]"),
        (("n", slice(2)), "r['n'][rows]"),
    ):
        with pytest.raises(Invalid) as caught:
            there[key]
        assert str(caught.value).endswith(f"; for rows of a field write {written}")


def test_a_view_keeps_its_rows_when_others_are_added() -> None:
    records = made()
    views = {
        "run": records.where(slice(10, None, 3)),
        "chosen": records.where([96, 0]),
        **records.split({"train": 0.9, "val": 0.1}),
    }
    before = {name: view["n"][:].tolist() for name, view in views.items()}
    records.extend(made(5)[:])
    for name, view in views.items():
        assert view["n"][:].tolist() == before[name]
    assert len(records.select("n")) == ROWS + 5
    assert len(records.with_format("numpy")) == ROWS + 5


# -- splits ------------------------------------------------------------------------------------


def test_a_split_is_a_partition_and_a_function_of_its_seed(there: stash.Records) -> None:
    fractions = {"train": 0.8, "val": 0.1, "test": 0.1}
    parts = there.split(fractions, seed=3)
    assert [len(part) for part in parts.values()] == [78, 9, 10]
    rows = [part["n"][:].tolist() for part in parts.values()]
    assert sorted(row for part in rows for row in part) == list(range(ROWS))
    assert rows[0] != sorted(rows[0])
    again = made().split(fractions, seed=3)
    assert [part["n"][:].tolist() for part in again.values()] == rows
    assert there.split(fractions, seed=4)["train"]["n"][:].tolist() != rows[0]
    half = there.split({"a": 0.5})
    assert len(half["a"]) == 48
    assert [len(p) for p in there.split({"all": 1, "none": 0}).values()] == [97, 0]
    assert [len(p) for p in there.split({str(k): 0.1 for k in range(10)}).values()].count(0) == 0
    thirds = there.split({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert sum(map(len, thirds.values())) == ROWS


@pytest.mark.parametrize(
    "fractions",
    [{}, [0.5, 0.5], {"a": 0.6, "b": 0.6}, {"a": -0.1}, {"a": float("nan")}, {"a": "x"}],
)
def test_fractions_that_make_no_sense(there: stash.Records, fractions: Any) -> None:
    with pytest.raises(Invalid, match="fractions"):
        there.split(fractions)
    with pytest.raises(Invalid, match="seed"):
        there.split({"a": 1}, seed=1.5)  # type: ignore[arg-type]


# -- fields ------------------------------------------------------------------------------------


def test_names(there: stash.Records) -> None:
    assert there.select("s", "n").names == ("s", "n")
    assert there.select(["in", "n"], "n").names == ("in/x", "n")
    assert there.select(("in", "x")).schema == {"in": {"x": there.fields["in/x"]}}
    assert list(there.select("s")[0]) == ["s"]
    assert there["in"].names == ("in/x",)
    view = there.select("n", "in").where([3, 4])
    assert view.select("in").names == ("in/x",)
    assert repr(view) == "<tensorstash.Records 2 rows of n, in/x at memory://>"
    for wrong in ("nope", "in/y", ("in", "y"), "i"):
        with pytest.raises(Invalid, match=r"no field '.*'; there are: 'n', 't', 's', 'in/x'"):
            there.select(wrong)
        with pytest.raises(Invalid, match="no field"):
            there[wrong]
    with pytest.raises(Invalid, match="no field 't'; there are: 'n', 'in/x'"):
        view["t"]
    with pytest.raises(Invalid, match="names of fields"):
        there.select()
    with pytest.raises(Invalid):
        there.select(3)


def test_what_is_not_selected_is_never_read() -> None:
    records = made()
    asked: list[str] = []

    class Watched(CountingDriver):
        def get_many_tagged(self, requests: Any) -> Any:
            requests = list(requests)
            asked.extend(request.key for request in requests)
            return super().get_many_tagged(requests)

        def get_tagged(self, key: str, span: Any = None) -> Any:
            asked.append(key)
            return super().get_tagged(key, span)

        def get_into(self, key: str, out: memoryview) -> int | None:
            asked.append(key)
            return super().get_into(key, out)

        def get_many(self, requests: Any) -> Any:
            requests = list(requests)
            asked.extend(request.key for request in requests)
            return super().get_many(requests)

    reader = stash.open_records(Watched(records.driver))
    view = reader.select("n", "in")
    asked.clear()
    view[3], view[::5], view.where([1, 2])[:], list(view), list(view["n"])
    view.with_transform(lambda batch: batch)[4]
    assert {key.split("/")[0] for key in asked} == {"n", "in"}
    asked.clear()
    reader["s"][4], reader.lengths("t")
    assert {key.split("/c/")[0] for key in asked} == {"s", "t/offsets"}


def test_views_read_nothing() -> None:
    driver = CountingDriver(made().driver)
    reader = stash.open_records(driver)
    driver.reset()
    view = reader.select("n").where(slice(5, 50)).where([3, 1]).with_transform(len)
    for part in view.split({"a": 0.5, "b": 0.5}).values():
        part.with_format("numpy", "padded").ragged_as("jagged")
        pickle.dumps(part)
    reader["n"], reader["t"], reader["in"], len(view), repr(view), reader.schema
    assert driver.counts == {}


# -- transforms --------------------------------------------------------------------------------


def test_a_transform_gets_a_batch_once(there: stash.Records) -> None:
    calls: list[int] = []

    def doubled(batch: Any) -> Any:
        calls.append(len(batch["n"]))
        return {"n": batch["n"] * 2, "s": [s + "!" for s in batch["s"]]}

    view = there.with_transform(doubled)
    same(view[3:6]["n"], np.array([6, 8, 10]))
    assert view[4] == {"n": 8, "s": "4!"}
    assert [row["s"] for row in view.where([1, 0])] == ["1!", "0!"]
    assert calls == [3, 1, 2]
    assert "s" in view.with_transform(None)[0]
    with pytest.raises(Invalid, match="a transform is a function"):
        there.with_transform("upper")  # type: ignore[arg-type]


# -- what views may not ------------------------------------------------------------------------


def test_what_is_for_all_rows_and_fields(there: stash.Records) -> None:
    records = made(3)
    row = records[0]
    for view in (records.select("n"), records.where([0]), records.split({"a": 1})["a"]):
        for name, call in {
            "append": lambda: view.append(row),  # noqa: B023
            "extend": lambda: view.extend([row]),  # noqa: B023
            "writer": lambda: view.writer(),  # noqa: B023
            "add_field": lambda: view.add_field("q", "i4"),  # noqa: B023
            "drop_field": lambda: view.drop_field("n"),  # noqa: B023
            "rename_field": lambda: view.rename_field("n", "m"),  # noqa: B023
        }.items():
            with pytest.raises(Invalid, match=rf"{name}\(\) is for all rows and fields"):
                call()
    assert records.with_format("python").append(row) == 3


def test_closed_and_read_only(tmp_path: Path) -> None:
    made(5, tmp_path / "r")
    reader = stash.open_records(tmp_path / "r")
    row = reader[0]
    for call in (
        lambda: reader.append(row),
        lambda: reader.extend([row]),
        lambda: reader.__setitem__(0, row),
        lambda: reader["s"].__setitem__(0, "x"),
        lambda: reader["t"].__setitem__(0, [1]),
        lambda: reader.writer(),
        lambda: reader.add_field("q", "i4"),
        lambda: reader.drop_field("n"),
        lambda: reader.rename_field("n", "m"),
        lambda: reader.attrs.update(a=1),
    ):
        with pytest.raises(ReadOnly, match="r\\+"):
            call()
    view, series, array = reader.where([1]), reader["t"], reader["n"]
    with reader as same_one:
        assert same_one is reader
    for call in (
        lambda: reader[0],
        lambda: view[:],
        lambda: series[0],
        lambda: list(series),
        lambda: series.lengths(),
        lambda: array[0],
        lambda: reader["n"],
        lambda: reader.lengths("t"),
        lambda: list(reader),
        lambda: reader.refresh(),
        lambda: pickle.loads(pickle.dumps(reader))[0],
        lambda: reader.attrs.update(a=1),
    ):
        with pytest.raises(Closed, match="open it again"):
            call()
    assert len(stash.open_records(tmp_path / "r")) == 5


def test_views_of_as_many_other_rows_are_told_apart() -> None:
    records = stash.create_records({}, {"x": "int8"}, 100)
    halves = [records.split({"a": 0.5}, seed=seed)["a"] for seed in (0, 1)]
    rows = [np.arange(50), np.arange(1, 51), np.arange(0, 100, 2)]
    views = [records, *halves, *(records.where(chosen) for chosen in rows)]
    assert len({view.source.fingerprint for view in views}) == len(views)
    assert records.split({"a": 0.5}, seed=0)["a"].source.fingerprint == halves[0].source.fingerprint


@pytest.mark.parametrize("step", [1 << 63, (1 << 64) + 1, -(1 << 70)])
def test_steps_beyond_every_row(step: int) -> None:
    records = stash.save_records({}, {"x": np.arange(10)})
    views = (
        records,
        records.where([1, 3, 5]),
        records.where(slice(2, 9)),
        records.split({"a": 0.5})["a"],
    )
    for view in views:
        wanted = view["x"][...][::step]
        assert view.where(slice(None, None, step))["x"][...].tolist() == wanted.tolist()
        assert view[::step]["x"].tolist() == wanted.tolist()
