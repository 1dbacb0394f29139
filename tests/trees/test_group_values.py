"""Values given to a group: ``g.create(name, data=values)`` and ``g["x"] = values``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import (
    AlreadyExists,
    Closed,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    ReadOnly,
    StashError,
    Unsupported,
)
from tensorstash.testing.counting import CountingDriver
from tests.support.every_place import KINDS, place, stored
from tests.support.oracle import same

DATA = np.arange(24, dtype="int32").reshape(4, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_on_every_driver(kind: str, zarr_format: Any, tmp_path: Path, request: Any) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        group = stash.create_group(driver, zarr_format=zarr_format)
        same(group.create("raw/x", data=DATA)[...], DATA)
        group["raw/my y"] = DATA * 2
        group["raw/x"] = DATA[:2] * 3
        group["z"] = group["raw/my y"]
        group["w"] = group["raw/my y"].lazy[1:3, ::2]
        again = stash.open_group(driver)
        for name, wanted in (
            ("raw/x", DATA[:2] * 3), ("raw/my y", DATA * 2), ("z", DATA * 2),
            ("w", DATA[1:3, ::2] * 2),
        ):  # fmt: skip
            same(again[name][...], wanted)
            assert again[name].spec.zarr_format == zarr_format
        assert again.keys() == ["raw", "w", "z"]


@given(
    hnp.arrays(
        st.sampled_from(["i1", ">u2", "f4", "bool", "c8", "M8[ms]", "S3", "U4"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    ),
    st.sampled_from([2, 3]),
    st.booleans(),
)
def test_any_array_is_read_as_it_was_given(values: Any, zarr_format: Any, assigned: bool) -> None:
    group = stash.create_group({}, zarr_format=zarr_format)
    if assigned:
        group["x"] = values
        found = group["x"][...]
    else:
        found = group.create("x", data=values)[...]
    assert found.shape == values.shape
    assert np.array_equal(found, values.astype(found.dtype), equal_nan=values.dtype.kind in "fcM")


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (3, "int64", ()),
        (2.5, "float64", ()),
        (np.float32(2), "float32", ()),
        ([1, 2], "int64", (2,)),
        ([[1.5], [2]], "float64", (2, 1)),
        ([True, False], "bool", (2,)),
        (["a", "bc"], np.dtypes.StringDType(), (2,)),
        ("text", np.dtypes.StringDType(), ()),
        (torch.ones(2, 3, dtype=torch.bfloat16), ml_dtypes.bfloat16, (2, 3)),
        (torch.arange(3), "int64", (3,)),
        (range(3), "int64", (3,)),
        (np.ma.masked_array([1, 2], [False, False]), "int64", (2,)),
        (np.zeros((0, 3), "u1"), "uint8", (0, 3)),
    ],
)
def test_values_of_all_kinds(value: Any, dtype: Any, shape: Any) -> None:
    group = stash.create_group({})
    group["x"] = value
    for made in (group["x"], group.create("y", data=value)):
        assert (made.dtype, made.shape) == (np.dtype(dtype), shape)
        wanted = value.float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        assert (made.read() == wanted.astype(made.dtype)).all()


def test_options_shape_and_dtype_are_those_given() -> None:
    group = stash.create_group({})
    made = group.create("x", data=DATA, dtype="float32", chunks=2, attributes={"k": 1})
    assert (made.dtype, made.chunks, dict(made.attrs)) == (np.dtype("f4"), (2, 2), {"k": 1})
    same(made[...], DATA.astype("f4"))
    same(group.create("y", (2, 4, 6), data=DATA)[...], np.broadcast_to(DATA, (2, 4, 6)))
    same(group.create("z", (3,), "int8", data=7)[...], np.full(3, 7, "int8"))
    same(group.create("x", data=[1], overwrite=True)[...], np.array([1]))
    with pytest.raises(AlreadyExists):
        group.create("x", data=DATA)
    with pytest.raises(AlreadyExists):
        group.create("x", 3, "int8")
    before = stored(group.driver)
    for how in (
        {"data": DATA, "shape": (3,)},
        {"data": DATA, "chunk": 3},
        {"data": DATA, "dtype": "nonsense"},
        {"data": "text", "dtype": "int8"},
        {"data": 300, "dtype": "uint8"},
        {"data": DATA, "zarr_format": 2},
        {"shape": (3,)},
    ):
        with pytest.raises(Invalid):
            group.create("new", **how)  # type: ignore[arg-type]
    assert stored(group.driver) == before


def test_what_is_no_array_is_told_where_it_belongs() -> None:
    group = stash.create_group({})
    sub = group.create_group("sub")
    records = stash.save_records({}, {"t": [[1], [1, 2]], "n": [1, 2]}, {"t": stash.ragged("i4")})
    before = stored(group.driver)
    jagged = records.ragged_as("jagged")["t"][:]
    assert isinstance(jagged, stash.Ragged)
    for value, said in (
        (jagged, "not Ragged; store rows.*save_records"),
        ({"a": 1}, "not dict; store rows.*save_records"),
        ([[1], [1, 2]], "cannot make list into an array"),
        (sub, "copy"),
        (group, "copy"),
        (records, "rows of several fields"),
        (records["t"], "is not a plain array"),
        (None, "object"),
        (np.array([1, "a"], object), "object"),
        (np.ma.masked_array([1, 2], [True, False]), "masked"),
        (["a", "\ud800"], "cannot make list into an array"),
        (object(), "object"),
    ):
        with pytest.raises((Invalid, Unsupported), match=said) as caught:
            group["x"] = value
        assert "\n" not in str(caught.value)
        if value is not None and not isinstance(value, stash.Group):
            with pytest.raises((Invalid, Unsupported), match=said):
                group.create("x", data=value)
    assert stored(group.driver) == before


def test_a_handle_keeps_its_layout(tmp_path: Path) -> None:
    source = stash.save(
        {}, DATA, chunks=(2, 3), codecs="zstd", fill_value=7, attributes={"unit": "K"},
        dimension_names=["y", "x"],
    )  # fmt: skip
    group = stash.create_group(tmp_path)
    group["x"] = source
    made = group["x"]
    assert (made.chunks, made.codecs, made.fill_value) == ((2, 3), source.codecs, 7)
    assert (dict(made.attrs), made.dimension_names) == ({"unit": "K"}, ("y", "x"))
    assert made.spec.identity != source.spec.identity
    same(made[...], DATA)
    group["y"] = source.lazy[1:]  # a view is its values
    assert (group["y"].shape, dict(group["y"].attrs)) == ((3, 6), {})
    older = stash.create_group({}, zarr_format=2)
    older["x"] = source
    assert (older["x"].spec.zarr_format, older["x"].chunks) == (2, (2, 3))
    same(older["x"][...], DATA)
    group["x"] = older["x"]
    assert group["x"].spec.zarr_format == 3


def test_a_handle_is_not_copied_over_itself(tmp_path: Path) -> None:
    group = stash.create_group(tmp_path)
    group["raw/x"] = DATA
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(Invalid, match="over itself"):
        group["raw/x"] = group["raw/x"]
    with pytest.raises(Invalid, match="over itself"):
        group["raw/x"] = stash.open(tmp_path / "raw/x")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    group["raw/x"] = group["raw/x"].lazy[::-1]  # read before anything is replaced
    same(group["raw/x"][...], DATA[::-1])


def test_a_field_of_records_is_a_source_like_any_other() -> None:
    records = stash.save_records({}, {"n": [1, 2, 3], "s": ["a", "b", "c"]})
    group = stash.create_group({})
    group["n"] = records["n"]
    group["s"] = records["s"][:]
    same(group["n"][...], np.array([1, 2, 3]))
    assert group["s"][...].tolist() == ["a", "b", "c"]
    group["n"] = [4]  # no field of records any more
    assert group["n"][...].tolist() == [4]


# -- what is not replaced ----------------------------------------------------------------------


def test_groups_and_records_are_not_replaced_by_an_assignment(zarr_format: Any) -> None:
    driver = MemoryDriver({})
    group = stash.create_group(driver, zarr_format=zarr_format)
    group["raw/x"] = DATA
    if zarr_format == 3:
        stash.save_records(driver, {"n": [1]}, path="runs")
    before = stored(driver)
    for name in ("raw", "runs") if zarr_format == 3 else ("raw",):
        for value in (DATA, stash.save({}, DATA)):
            with pytest.raises(AlreadyExists, match=rf"{name} is a group.*del group\['{name}'\]"):
                group[name] = value
    for name in ("raw/x/y", "raw/x/y/z"):
        with pytest.raises(Invalid, match="raw/x is an array and cannot hold"):
            group[name] = DATA
    assert stored(driver) == before


def test_records_take_fields_and_no_members() -> None:
    driver = MemoryDriver({})
    stash.save_records(driver, {"n": [1, 2], "next": {"obs": [3, 4]}}, path="runs")
    before = stored(driver)
    outer, inner = stash.open_group(driver, "r+"), stash.open_group(driver, "r+", path="runs")
    for group, name in (
        (inner, "n"), (inner, "new"), (inner, "next/obs"), (inner, "next/new"),
        (outer["runs"], "new"), (outer["runs/next"], "obs"), (outer["runs"]["next"], "new"),
        (outer, "runs/n"), (outer, "runs/new"), (outer, "runs/next/new"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match="add_field"):
            group[name] = DATA
    assert stored(driver) == before


def test_files_of_others_stay(tmp_path: Path) -> None:
    group = stash.create_group(tmp_path)
    group["x"] = DATA
    (tmp_path / "x" / "notes.txt").write_text("mine")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "notes.txt").write_text("mine")
    for name in ("x", "y"):
        with pytest.raises(AlreadyExists, match=r"notes\.txt"):
            group[name] = DATA[:1]
    same(group["x"][...], DATA)
    assert (tmp_path / "y" / "notes.txt").read_text() == "mine"


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    stash.save(tmp_path / "elsewhere", DATA)
    group = stash.create_group(tmp_path / "g")
    os.symlink(tmp_path / "elsewhere", tmp_path / "g" / "x")
    group["x"] = DATA[:1]
    same(group["x"][...], DATA[:1])
    same(stash.load(tmp_path / "elsewhere"), DATA)


@pytest.mark.parametrize("name", ["", "/", "..", "a//b", "__x", "zarr.json", "a\\b", 3, None])
def test_names_that_cannot_be(name: Any) -> None:
    group = stash.create_group({})
    with pytest.raises(Invalid, match="member"):
        group[name] = DATA
    with pytest.raises(Invalid, match="member"):
        group.create(name, data=DATA)
    assert group.keys() == []


def test_who_may_not_write_is_told() -> None:
    place: dict[str, Any] = {}
    stash.create_group(place)["x"] = DATA
    reader = stash.open_group(place)
    with pytest.raises(ReadOnly):
        reader["x"] = DATA
    with pytest.raises(ReadOnly):
        reader.create("y", data=DATA)
    writer = stash.open_group(place, "r+")
    writer.close()
    with pytest.raises(Closed):
        writer["x"] = DATA


# -- in the middle -----------------------------------------------------------------------------


class Stop(Exception):
    """The process ends here."""


class Stopping(CountingDriver):
    """Nothing works any more after so many changes, as after a kill."""

    left = 1 << 30

    def _step(self) -> None:
        if self.left == 0:
            raise Stop
        self.left -= 1

    def put(self, key: str, value: Any, **conditions: Any) -> Any:
        self._step()
        return super().put(key, value, **conditions)

    def delete(self, key: str) -> None:
        self._step()
        super().delete(key)

    def delete_many(self, keys: Any) -> None:
        self._step()
        super().delete_many(keys)


@pytest.mark.parametrize("kind", ["values", "handle", "data", "save"])
@pytest.mark.parametrize("there", [False, True])
def test_killed_at_any_step_it_is_the_old_the_new_or_refused(
    kind: str, there: bool, zarr_format: Any
) -> None:
    new = DATA + 100
    source = stash.save({}, new, chunks=(2, 3))

    def change(driver: Any) -> None:
        group = stash.open_group(driver, "r+")
        if kind == "values":
            group["a/x"] = new
        elif kind == "handle":
            group["a/x"] = source
        elif kind == "data":
            group.create("a/x", data=new, overwrite=there, chunks=(2, 3))
        else:
            stash.save(driver, new, path="a/x", chunks=(2, 3))

    seen = set()
    for steps in range(100):
        driver = Stopping(MemoryDriver({}))
        group = stash.create_group(driver, zarr_format=zarr_format)
        if there:
            group.create("a/x", data=DATA, chunks=2)
        driver.left = steps
        try:
            change(driver)
        except Stop:
            done = False
        else:
            done = True
        driver.left = 1 << 30
        try:
            found = stash.load(driver, path="a/x")
        except NotFound:
            assert not there
            seen.add("nothing")
        except Corrupt as error:
            assert "unfinished" in str(error)
            seen.add("refused")
        else:
            assert np.array_equal(found, new) or (there and np.array_equal(found, DATA)), steps
            seen.add("new" if np.array_equal(found, new) else "old")
        if not done:  # again, and all is well
            group = stash.open_group(driver, "r+")
            group["a/x"] = new
        same(stash.load(driver, path="a/x"), new)
        names = {key.partition("/")[0] for key in driver.list()}
        assert "a" in names
        if done:
            break
    assert seen == {"refused", "new", "old" if there else "nothing"}


def test_what_a_codec_refuses_is_told_and_no_reader_takes_it_for_an_array() -> None:
    driver = MemoryDriver({})
    group = stash.create_group(driver)
    group["x"] = DATA
    narrow = {"name": "cast_value", "configuration": {"data_type": "int8"}}
    with pytest.raises(Invalid, match=r"1000 is not within int8.*x is now what was being replaced"):
        group.create("x", data=[1, 1000], codecs=[narrow, "bytes"], overwrite=True)
    with pytest.raises(Corrupt, match="unfinished"):
        stash.load(driver, path="x")
    group["x"] = DATA
    same(group["x"][...], DATA)


def test_a_handle_on_what_was_replaced_says_so() -> None:
    driver = MemoryDriver({})
    group = stash.create_group(driver)
    group["x"] = DATA
    reader, writer = group["x"], stash.open(driver, "r+", path="x")
    group["x"] = DATA
    with pytest.raises(Conflict, match="replaced"):
        reader[0]
    with pytest.raises(Conflict, match="replaced"):
        writer[0] = 1
    same(group["x"][...], DATA)


def test_two_at_once_leave_one_of_both(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    stash.create_group(tmp_path)

    def assign(k: int) -> None:
        group = stash.open_group(tmp_path, "r+")
        try:
            group["x"] = np.full((50, 50), k)
        except StashError as error:
            assert isinstance(error, Conflict), error

    for _ in range(5):
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(assign, range(6)))
        found = stash.load(tmp_path, path="x")
        assert (found == found[0, 0]).all()


def test_values_larger_than_a_step_are_stored_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tensorstash.create"], "_BYTES", 100)
    for shape, chunks in (((23, 6), (2, 3)), ((3,), 2), ((0, 4), 2), ((5, 0), 2), ((), None)):
        values = np.arange(int(np.prod(shape)), dtype="i4").reshape(shape)
        same(stash.save({}, values, chunks=chunks)[...], values)


def test_other_programs_read_it(tmp_path: Path, zarr_format: Any) -> None:
    group = stash.create_group(tmp_path, zarr_format=zarr_format)
    group["raw/x"] = DATA
    group["raw/x"] = DATA * 2
    found = zarr.open_group(tmp_path, mode="r")["raw/x"]
    assert np.array_equal(np.asarray(found), DATA * 2)
