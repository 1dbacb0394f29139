"""Records written in place: rows as a plain model has them, whatever writes them."""

from __future__ import annotations

import pickle
import tempfile
import threading
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.engine import native
from tensorstash.engine.in_place.single import Slot
from tensorstash.engine.native import library
from tensorstash.errors import Closed, Conflict, Invalid, InvalidSelection, NotFound, ReadOnly
from tensorstash.records import table
from tests.support.layouts import EXAMPLES
from tests.support.oracle import same

FIELDS: dict[str, Any] = {
    "obs": ((3, 2), "uint8"),
    "x": "float32",
    "next": {"k": ((2,), "int64")},
    "flag": "bool",
}
DTYPE = [("obs", "u1", (3, 2)), ("x", "f4"), ("next/k", "i8", (2,)), ("flag", "?")]


def random_rows(seed: int, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.integers(0, 255, (count, 3, 2)).astype("u1"),
        "x": rng.integers(0, 99, count).astype("f4"),
        "next/k": rng.integers(0, 99, (count, 2)),
        "flag": rng.integers(0, 2, count).astype(bool),
    }


def one(rows: dict[str, np.ndarray], i: int) -> dict[str, Any]:
    return {name: column[i] for name, column in rows.items()}


def check(records: stash.Records, model: dict[str, np.ndarray]) -> None:
    found = records[:]
    for name, column in model.items():
        value = found["next"]["k"] if name == "next/k" else found[name]
        same(value, column)


@pytest.fixture(scope="module", params=["native", "python"])
def _path(request: Any) -> Any:
    before = library.enabled
    library.enabled = request.param == "native"
    yield
    library.enabled = before


@pytest.mark.usefixtures("_path")
@settings(max_examples=max(10, EXAMPLES // 2))
@given(st.data())
def test_rows_are_those_of_a_model(data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        count = data.draw(st.integers(0, 9))
        step = data.draw(st.sampled_from([None, 1, 3]))
        first = stash.create_records(folder, FIELDS, count, in_place=True, rows_per_chunk=step)
        other = stash.open_records(folder, "r+", cache="1MiB")
        model = {n: np.zeros_like(v) for n, v in random_rows(0, count).items()}
        puts = {id(each): each.setter() for each in (first, other)}
        for seed in range(data.draw(st.integers(1, 6))):
            handle = data.draw(st.sampled_from([first, other]))
            n = len(handle)
            kinds = ["extend", "append", "writer"]
            kinds += ["put", "row", "list", "mask", "slice", "field", "view", "assigned"] * bool(n)
            kind = data.draw(st.sampled_from(kinds))
            if kind in ("extend", "append", "writer"):
                rows = random_rows(seed, 1 if kind == "append" else data.draw(st.integers(0, 7)))
                if kind == "append":
                    assert handle.append(one(rows, 0)) == n
                elif kind == "extend":
                    assert handle.extend(rows) == n
                else:
                    with handle.writer() as writer:
                        writer.extend(rows)
                model = {k: np.concatenate([v, rows[k]]) for k, v in model.items()}
                first.refresh()
                other.refresh()
            else:
                where: Any = data.draw(st.integers(-n, n - 1))
                if kind == "list":
                    where = data.draw(st.lists(st.integers(-n, n - 1), max_size=6, unique=True))
                elif kind == "mask":
                    where = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
                elif kind == "slice":
                    where = data.draw(st.slices(n))
                chosen = np.arange(n)[where if kind in ("list", "mask", "slice") else [where]]
                rows = random_rows(seed, len(chosen))
                if kind == "put":
                    puts[id(handle)](where, one(rows, 0))
                elif kind == "row":
                    handle[where] = one(rows, 0)
                elif kind == "assigned":
                    with handle.writer() as writer:
                        writer[where] = one(rows, 0)
                elif kind == "field":
                    handle["x"][where] = rows["x"][0]
                    rows = {"x": rows["x"]}
                elif kind == "view":
                    view = handle.select("x", "next").where(chosen)
                    view[0] = {"x": rows["x"][0], "next": {"k": rows["next/k"][0]}}
                    rows = {k: rows[k] for k in ("x", "next/k")}
                else:
                    handle[where] = rows
                for name, column in rows.items():
                    model[name][chosen] = column
            check(first, model)
            check(other, model)
        check(stash.open_records(folder), model)


def test_a_setter_takes_what_an_assignment_takes(tmp_path: Path) -> None:
    r = stash.create_records(tmp_path / "r", FIELDS, 6, in_place=True)
    put = r.setter()
    put(2, {"obs": [[1, 2], [3, 4], [5, 6]], "x": 1, "next": {"k": [7, 8]}, "flag": True})
    put(np.int64(3), {"obs": r[2]["obs"], "x": 2.5, "next/k": [9, 9], "flag": False})
    put(-1, {"obs": np.ones((3, 2), ">i4"), "x": np.float64(4), "next/k": (1, 2), "flag": 0 == 0})
    assert r["x"][:].tolist() == [0, 0, 1, 2.5, 0, 4]
    assert r[2]["next"]["k"].tolist() == [7, 8] and r[5]["obs"].sum() == 6
    good = one(random_rows(1, 1), 0)
    before = r[:]
    for row in (6, -7, 2**70):
        with pytest.raises(InvalidSelection):
            put(row, good)
    wrong = [
        {**good, "x": [1, 2]},
        {**good, "obs": np.zeros((2, 2), "u1")},
        {**good, "obs": np.full((3, 2), 256)},
        {k: v for k, v in good.items() if k != "x"},
        {**good, "more": 1},
        {**{k: v for k, v in good.items() if k != "x"}, "more": 1},
    ]
    for row in wrong:
        with pytest.raises(Invalid):
            put(1, row)
    same(r[:]["x"], before["x"])
    same(r[:]["obs"], before["obs"])
    with pytest.raises(Invalid, match=r"setter\(\) is for all rows"):
        r.select("x").setter()
    with pytest.raises(ReadOnly):
        stash.open_records(tmp_path / "r").setter()
    r.close()
    with pytest.raises(Closed):
        put(1, good)


def test_a_setter_follows_its_records(tmp_path: Path) -> None:
    r = stash.create_records(tmp_path / "r", {"x": "i4"}, 2, in_place=True)
    put = r.setter()
    r.extend({"x": [5, 6]})
    put(3, {"x": 7})
    assert r["x"][:].tolist() == [0, 0, 5, 7]
    r.add_field("y", "i2")
    assert all(spec.in_place for spec in r.source.table.catalog.specs.values())
    with pytest.raises(Invalid):
        put(0, {"x": 1})
    put(0, {"x": 1, "y": 2})
    assert r[0]["y"] == 2
    r.rename_field("y", "z")
    put(1, {"x": 3, "z": 4})
    assert r["z"][:].tolist() == [2, 4, 0, 0] and r["z"].in_place
    r.drop_field("z")
    put(1, {"x": 9})
    stash.create_records(tmp_path / "r", {"x": "i4"}, 4, in_place=True, overwrite=True)
    with pytest.raises(Conflict):
        put(1, {"x": 9})
    assert stash.open_records(tmp_path / "r")["x"][:].tolist() == [0, 0, 0, 0]


def test_ordinary_records_and_arrays_have_setters_too(tmp_path: Path) -> None:
    r = stash.create_records({}, {"x": "i4", "t": str}, 3)
    r.setter()(1, {"x": 5, "t": "a"})
    assert r[1]["t"] == "a"
    a = stash.create({}, (3, 2), "i4")
    a.setter()(-1, [1, 2])
    assert a[2].tolist() == [1, 2]
    wide = stash.create(tmp_path / "w", (4, 6), "i4", chunks=(2, 3), in_place=True)
    put = wide.setter()
    put(3, range(6))
    put(1, 8)
    assert wide[[1, 3]].tolist() == [[8] * 6, [*range(6)]]
    grown = stash.create(tmp_path / "g", (1, 2), "i4", chunks=(4, 2), in_place=True)
    put = grown.setter()
    grown.append([[1, 2]])
    put(1, [3, 4])
    put(1, [5, 6])
    with pytest.raises(InvalidSelection):
        put(2, [3, 4])
    assert grown[...].tolist() == [[0, 0], [5, 6]]


def test_others_read_the_fields(tmp_path: Path) -> None:
    r = stash.create_records(tmp_path / "r", {"x": "i4", "y": ((2,), "f8")}, 5, in_place=True)
    r[3] = {"x": 7, "y": [1, 2]}
    group = zarr.open_group(tmp_path / "r")
    assert group["x"][:].tolist() == [0, 0, 0, 7, 0] and group["y"][3].tolist() == [1, 2]
    alone = stash.open(tmp_path / "r/x", "r+")
    assert alone.in_place
    alone[4] = 8
    assert r["x"][:].tolist() == [0, 0, 0, 7, 8]
    group["x"].attrs["unit"] = "mm"
    assert stash.open(tmp_path / "r/x").in_place
    assert stash.open_records(tmp_path / "r")["x"].in_place
    assert {**r.attrs} == {}


def test_single_assignments_are_those_of_a_setter(tmp_path: Path) -> None:
    r = stash.create_records(tmp_path / "r", FIELDS, 4, in_place=True)
    rows = random_rows(1, 4)
    for i in (0, 3, -3, -2):
        r[i] = one(rows, i)
    check(r, rows)
    for wrong in (4, -5):
        with pytest.raises(InvalidSelection):
            r[wrong] = one(rows, 0)
    with pytest.raises(Invalid):
        r[0] = {"x": 1}
    again = pickle.loads(pickle.dumps(r))
    again[1] = one(rows, 0)
    assert same(r[1]["obs"], rows["obs"][0]) is None
    r.select("x")[1] = {"x": 3.0}
    r.where([2, 3])[0] = one(rows, 3)
    assert r[1]["x"] == 3.0 and r[2]["x"] == rows["x"][3]
    other = stash.open_records(tmp_path / "r", "r+")
    other.drop_field("flag")
    with pytest.raises(NotFound):
        r[0] = one(rows, 0)
    r.refresh()
    r[0] = {k: v for k, v in one(rows, 1).items() if k != "flag"}
    assert r[0]["x"] == rows["x"][1]
    row = {k: v for k, v in one(rows, 0).items() if k != "flag"}
    with pytest.raises(ReadOnly):
        stash.open_records(tmp_path / "r")[0] = row
    r.close()
    with pytest.raises(Closed):
        r[0] = row


def test_what_is_deleted_is_held_by_no_handle(tmp_path: Path) -> None:
    stash.create_group(tmp_path)
    r = stash.create_records(tmp_path / "r", FIELDS, 4, in_place=True)
    put = r.setter()
    r[0] = one(random_rows(0, 1), 0)
    put(1, one(random_rows(0, 1), 0))
    assert r[np.array([0, 1])]["x"][0] == r[0]["x"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no list of maps")
    assert f"{tmp_path}/r/x/c" in maps.read_text()
    del stash.open_group(tmp_path, "r+")["r"]
    assert str(tmp_path) not in maps.read_text()


def test_threads_share_a_setter_that_is_bound_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = stash.create_records(str(tmp_path), {"x": "int32"}, 4, in_place=True)
    records[0] = {"x": 1}
    records.add_field("y", "int32", in_place=True)
    fits, binding, go = Slot.fits, threading.Event(), threading.Event()

    def slowly(chunks: Any) -> bool:
        if threading.current_thread() is thread:
            binding.set()
            go.wait(30)
        return fits(chunks)

    monkeypatch.setattr(Slot, "fits", staticmethod(slowly))
    thread = threading.Thread(target=records.__setitem__, args=(0, {"x": 2, "y": 2}))
    thread.start()
    assert binding.wait(30)
    try:
        with pytest.raises(Invalid, match="no value for 'y'"):
            records[1] = {"x": 3}
        records[1] = {"x": 4, "y": 4}
    finally:
        go.set()
        thread.join()
    assert records["x"][:2].tolist() == records["y"][:2].tolist() == [2, 4]


@pytest.mark.skipif(not native.available(), reason="no kernel")
def test_rows_of_more_files_than_are_kept_open_are_not_tried_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "enabled", True)
    fields: Any = dict.fromkeys("abc", ((2048,), "int32"))
    records = stash.create_records(str(tmp_path), fields, 60, in_place=True, rows_per_chunk=4)
    numbers = np.repeat(np.arange(60, dtype=np.int32), 2048).reshape(60, 2048)
    records[:] = dict.fromkeys(fields, numbers)
    steps = []

    def counted(*given: Any) -> bool:
        steps.append(gather(*given))
        return bool(steps[-1])

    gather = table.gather_mapped
    monkeypatch.setattr(table, "gather_mapped", counted)
    monkeypatch.setattr(table, "MAPPED_FILES", 12)
    for rows in ([0, 15], [3, -1, 59, 31], [*range(20)], [*range(16)], [-1], [-1, 1, 2, 3, 4]):
        found = records[np.array(rows)]
        for name in fields:
            same(found[name], numbers[rows])
    same(records[np.array([], int)]["b"], numbers[:0])
    assert steps == [True] * 4
