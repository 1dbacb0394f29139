"""Fields that are added, dropped and renamed: one step for every reader, also where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Conflict, Invalid, NotFound, StashError
from tensorstash.testing.counting import CountingDriver
from tests.support.records_model import EVERY, Model, absent, column, holds, value

KINDS = [*Model(EVERY).fields.items()]


def made(rows: int = 7, schema: Any = EVERY, place: Any = None) -> tuple[stash.Records, Model]:
    records = stash.create_records({} if place is None else place, schema, rows_per_chunk=3)
    model = Model(schema)
    block = model.block(np.random.default_rng(0), rows)
    records.extend(block)
    model.extend(block)
    return records, model


def keys(records: stash.Records) -> list[str]:
    return sorted(records.driver.list())


def documents(records: stash.Records) -> list[str]:
    return [key for key in keys(records) if key.endswith("zarr.json")]


# -- adding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "field"), KINDS)
@pytest.mark.parametrize(
    ("given", "name"), [(False, "new"), (True, "next/new"), (True, "deep/er/new")]
)
def test_a_field_of_every_kind(kind: str, field: Any, given: bool, name: str) -> None:
    records, model = made(5)
    values = [value(np.random.default_rng(i), field) if given else absent(field) for i in range(5)]
    records.add_field(name, field, column(field, values) if given else None)
    model.fields[name] = field
    model.columns[name] = values
    holds(records, model)
    holds(stash.open_records(records.driver), model)
    block = model.block(np.random.default_rng(9), 3)
    records.extend(block)
    model.extend(block)
    row = model.row(np.random.default_rng(10))
    records[1] = row
    model.put([1], {p: [v] for p, v in row.items()})
    holds(stash.open_records(records.driver), model)
    assert f"{name}/zarr.json" in keys(records)


def test_how_a_field_is_added() -> None:
    records, _ = made(5, {"a": "i4"})
    records.add_field(("c", "d"), "i1", [1, 2, 3, 4, 5])
    records.add_field("e", stash.ragged("i4"), [[1]] * 5)
    records.add_field("f", str, ["a", "b", "c", "x", "y"])
    records.add_field("b", ((2,), "f4"), fill_value=1.5, codecs="gzip", rows_per_chunk={"b": 2})
    assert records["b"][...].tolist() == [[1.5, 1.5]] * 5
    assert records["b"].chunks == (2, 2)
    assert records["c/d"][...].tolist() == [1, 2, 3, 4, 5]
    # Chunks of as many rows as the others have, or powers of two times as many.
    step = records["a"].chunks[0]
    assert records["c/d"].chunks[0] in [step * 2**k for k in range(20)]
    with pytest.raises(Invalid, match="no option 'nope'"):
        records.add_field("g", "i4", nope=1)


@pytest.mark.parametrize(
    ("name", "field", "values", "error", "match"),
    [
        ("n", "i4", None, AlreadyExists, "has a field 'n'; drop it"),
        ("n/x", "i4", None, Invalid, "'n' is a field, and cannot hold 'n/x'"),
        ("next", "i4", None, Invalid, "'next' is a field, and cannot hold"),
        ("tok/values", "i4", None, Invalid, "'tok' is a field"),
        ("zarr.json", "i4", None, Invalid, "cannot name a field"),
        ("..", "i4", None, Invalid, "cannot name a field"),
        ("", "i4", None, Invalid, "cannot name a field"),
        (3, "i4", None, Invalid, "named by text"),
        ("new", {"x": "i4"}, None, Invalid, "one by one, as 'new/x'"),
        ("new", "nope", None, Invalid, "field 'new'"),
        ("new", object, None, Invalid, "allow_pickle"),
        ("new", "i4", [1, 2], Invalid, "field 'new': shape"),
        ("new", "i4", 5, Invalid, "field 'new': shape"),
        ("new", "i4", [1.5] * 7, Invalid, "field 'new'.*lose"),
        ("new", "i4", ["x"] * 7, Invalid, "field 'new'"),
        ("new", stash.ragged("i4"), [[1]] * 6, Invalid, "field 'new': values of 6 rows for 7"),
        ("new", stash.ragged("i4"), [[[1]]] * 7, Invalid, "field 'new'.*axes"),
        ("new", stash.json, [float("nan")] * 7, Invalid, "field 'new'.*JSON"),
        ("new", str, [1] * 7, Invalid, "field 'new'.*not text"),
    ],
)
def test_fields_that_are_refused(
    name: Any, field: Any, values: Any, error: type[StashError], match: str
) -> None:
    records, model = made()
    before = dict(records.driver._mapping)  # type: ignore[attr-defined]
    with pytest.raises(error, match=match) as caught:
        records.add_field(name, field, values)
    assert "\n" not in str(caught.value)
    assert dict(records.driver._mapping) == before  # type: ignore[attr-defined]
    holds(records, model)


def test_what_is_no_field_of_the_records_is_not_replaced() -> None:
    records, model = made()
    group = stash.open_group(records.driver, "r+")
    group.create("mine", (3,), "i4")[...] = 5
    group.create("nest/inner", (3,), "i4")[...] = 6
    for call in (
        lambda: records.add_field("mine", "i4"),
        lambda: records.add_field("nest", "i4"),
        lambda: records.rename_field("n", "mine"),
        lambda: records.rename_field("n", "nest"),
    ):
        with pytest.raises(AlreadyExists, match="not a field of the records; choose another name"):
            call()
    for call in (
        lambda: records.add_field("mine/x", "i4"),
        lambda: records.rename_field("n", "mine/x"),
    ):
        with pytest.raises(AlreadyExists, match="holds an array 'mine'"):
            call()
    records.add_field("nest/new", "i1")
    records.drop_field("nest/new")
    records.rename_field("next", "nest/next")
    records.rename_field("nest/next", "next")
    records.drop_field("next")
    assert group["mine"][...].tolist() == [5] * 3
    assert group["nest/inner"][...].tolist() == [6] * 3
    assert len(stash.open_records(records.driver)) == model.rows


# -- dropping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "tok", "cap", "next/x", "next/deep", "next", "rec"])
def test_dropping(name: str) -> None:
    records, model = made()
    reader = stash.open_records(records.driver)
    records.drop_field(name)
    for path in [*model.fields]:
        if path == name or path.startswith(name + "/"):
            del model.fields[path], model.columns[path]
    holds(records, model)
    holds(stash.open_records(records.driver), model)
    assert not [key for key in keys(records) if key.startswith(name + "/")]
    with pytest.raises(Invalid, match="no field"):
        records.drop_field(name)
    # The name is free again, for anything.
    records.add_field(name, str)
    assert records[name][...].tolist() == [""] * 7
    assert reader.names != records.names
    assert name in reader.refresh().names


def test_groups_that_hold_nothing_go_with_their_last_field() -> None:
    records, _ = made(3, {"a": "i4", "b": {"c": {"d": "i4", "e": "i4"}}})
    records.drop_field("b/c/d")
    assert documents(records) == [
        "a/zarr.json", "b/c/e/zarr.json", "b/c/zarr.json", "b/zarr.json", "zarr.json"
    ]  # fmt: skip
    records.drop_field("b/c/e")
    assert documents(records) == ["a/zarr.json", "zarr.json"]
    records.add_field("b", "f4")
    records.rename_field("b", "b2")
    records.rename_field("b2", "x/y/b")
    records.rename_field("x", "b")
    assert documents(records) == [
        "a/zarr.json", "b/y/b/zarr.json", "b/y/zarr.json", "b/zarr.json", "zarr.json"
    ]  # fmt: skip


def test_the_last_field_stays() -> None:
    records, _ = made(3, {"a": "i4", "b": {"c": "i4"}})
    records.drop_field("a")
    for name in ("b", "b/c"):
        with pytest.raises(Invalid, match="left without a field"):
            records.drop_field(name)
    assert len(records) == 3


# -- renaming ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [("x", "y"), ("tok", "a/b/tok"), ("next/x", "x2"), ("next", "after"), ("next", "o/next"),
     ("cap", "next/cap"), ("next/half", "half"), ("rec", "values"), ("img", "漢")],
)  # fmt: skip
def test_renaming(tmp_path: Path, old: str, new: str) -> None:
    records, model = made(place=tmp_path / "r")
    records.rename_field(old, new)
    for path in [*model.fields]:
        if path == old or path.startswith(old + "/"):
            name = new + path[len(old) :]
            model.fields[name] = model.fields.pop(path)
            model.columns[name] = model.columns.pop(path)
    holds(records, model)
    holds(stash.open_records(tmp_path / "r"), model)
    assert not [*(tmp_path / "r" / old).rglob("*.json")]
    block = model.block(np.random.default_rng(1), 3)
    records.extend(block)
    model.extend(block)
    holds(stash.open_records(tmp_path / "r"), model)
    if "half" not in old and "rec" not in old:  # those zarr does not know
        zarr.open_group(str(tmp_path / "r"), mode="r", use_consolidated=False)[new]


def test_renaming_keeps_the_order_and_the_attributes_of_fields() -> None:
    records, model = made()
    records["n"].attrs["unit"] = "K"
    stash.open_records(records.driver, "r+")
    records.rename_field("n", "number")
    assert records.names == tuple("number" if n == "n" else n for n in model.fields)
    assert records["number"].attrs["unit"] == "K"
    assert stash.open_group(records.driver, "r+")["number"].attrs["unit"] == "K"


@pytest.mark.parametrize(
    ("old", "new", "error", "match"),
    [
        ("nope", "x2", Invalid, "no field 'nope'"),
        ("x", "n", AlreadyExists, "has a field 'n' already"),
        ("x", "x", Invalid, "third name"),
        ("x", "x/y", Invalid, "third name"),
        ("next", "next/inner", Invalid, "third name"),
        ("next/x", "next", Invalid, "third name"),
        ("x", "n/x", Invalid, "'n' is a field, and cannot hold"),
        ("x", "next", Invalid, "'next' is a field, and cannot hold"),
        ("x", "zarr.json", Invalid, "cannot name a field"),
        ("x", "__x", Invalid, "cannot name a field"),
        ("x", 5, Invalid, "named by text"),
    ],
)
def test_names_that_are_refused(old: Any, new: Any, error: type[StashError], match: str) -> None:
    records, model = made()
    before = dict(records.driver._mapping)  # type: ignore[attr-defined]
    with pytest.raises(error, match=match):
        records.rename_field(old, new)
    assert dict(records.driver._mapping) == before  # type: ignore[attr-defined]
    holds(records, model)


# -- views and other handles -------------------------------------------------------------------


def test_views_and_handles_made_before() -> None:
    records, model = made()
    view, both = records.select("x"), records.select("n", "x").where([1, 2])
    series, other = records.where([0])["x"], stash.open_records(records.driver, "r+")
    everything = records.where([1])
    records.rename_field("x", "y")
    for call in (
        lambda: view[0],
        lambda: view[:],
        lambda: both[0],
        lambda: both.fields,
        lambda: both.source.blocks,
        lambda: list(view),
        lambda: series[0],
        lambda: series.__setitem__(0, [1, 2]),
        lambda: view.__setitem__(0, {"x": [1, 2]}),
        lambda: both.select("x"),
    ):
        with pytest.raises(NotFound, match=r"has no field 'x' any more; there are: .*'y'"):
            call()
    assert "y" in everything[0]
    assert records.select("n")[0]["n"] == model.columns["n"][0]
    for call in (lambda: other.rename_field("x", "z"), lambda: other.append(records[0])):
        with pytest.raises((NotFound, Conflict, Invalid)):
            call()
    with pytest.raises(Conflict):
        other.append({p: c[0] for p, c in model.columns.items()})
    assert "y" in other.refresh().names
    records.add_field("x", "i1")
    assert view[0]["x"] == 0  # a view names its fields: this is another of that name


def test_dropping_what_another_has_dropped() -> None:
    records, _ = made()
    other = stash.open_records(records.driver, "r+")
    records.drop_field("x")
    other.drop_field("x")
    assert other.names == records.names
    with pytest.raises(AlreadyExists):
        records.add_field("n", "i4")
    other.add_field("x", "i4")
    with pytest.raises(AlreadyExists):
        records.add_field("x", "i4")


def test_a_cache_knows_when_a_field_is_another() -> None:
    records, _ = made(4, {"a": "i4", "b": "i4"})
    reader = stash.open_records(records.driver, cache="1MiB")
    records["a"][...] = [1, 2, 3, 4]
    assert reader["a"][...].tolist() == [1, 2, 3, 4]
    records.drop_field("a")
    records.add_field("a", "i4", [5, 6, 7, 8])
    with pytest.raises(Conflict, match="replaced"):
        reader["a"][...]
    assert reader.refresh()["a"][...].tolist() == [5, 6, 7, 8]
    records.extend({"a": [9], "b": [1]})
    assert reader["a"][...].tolist() == [5, 6, 7, 8]
    assert reader.refresh()["a"][...].tolist() == [5, 6, 7, 8, 9]


def test_adding_an_absent_field_costs_no_chunks() -> None:
    driver = CountingDriver(MemoryDriver())
    records = stash.create_records(driver, {"a": "i4"}, 10**9)
    driver.reset()
    records.add_field("wide", ((1000, 1000), "f8"))
    assert driver.writes.keys <= 3
    assert driver.writes.nbytes < 10_000
    assert records[10**9 - 1]["wide"].sum() == 0
