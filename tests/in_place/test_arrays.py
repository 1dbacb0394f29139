"""Arrays written in place behave as NumPy's, through any handle, and stay plain Zarr."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings

import tensorstash as stash
from tensorstash import dtype as dtypes
from tensorstash.drivers.shm import ShmDriver
from tensorstash.engine.native import library
from tests.in_place.steps import step
from tests.support.layouts import EXAMPLES
from tests.support.oracle import numpy_index, outer_of, same, shapes

KINDS: list[Any] = [*("b1", "u1", "i2", "f4", "c16", "M8[ns]", "S5", "V7"), "bfloat16"]
RECORD = np.dtype([("a", "u1"), ("b", "<f4"), ("c", "<i2")])
NUMBERS = ["b1", "u1", "i2", "f4", "c16"]


@pytest.fixture(params=["native", "python"], autouse=True)
def _both(request: Any) -> Any:
    before = library.enabled
    library.enabled = request.param == "native"
    yield
    library.enabled = before


@pytest.fixture(params=["file", "shm"])
def place(request: Any, tmp_path: Path) -> Any:
    if request.param == "file":
        yield str(tmp_path / "a")
        return
    driver = ShmDriver(f"test-{uuid.uuid4().hex}")
    yield driver
    driver.close()


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_every_selection_is_numpys_through_every_handle(data: Any) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=7, min_dims=1))
    dtype = np.dtype(data.draw(st.sampled_from(NUMBERS)))
    fill = data.draw(st.sampled_from([0, 1]))
    chunks = tuple(data.draw(st.integers(1, 8)) for _ in shape)
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {"chunks": chunks, "fill_value": fill, "in_place": True}
        first = stash.create(folder, shape, dtype, **how)
        other = stash.open(folder, "r+", cache="1MiB", threads=1)
        reader = stash.open(folder, cache="1MiB")
        model = np.full(shape, fill, dtype)
        for _ in range(data.draw(st.integers(1, 4))):
            handle = data.draw(st.sampled_from([first, other]))
            model = step(data, handle, model, fill, (first, other, reader))
            same(reader[...], model)
            index = data.draw(numpy_index(model.shape))
            same(other[index], model[index])
        same(zarr.open_array(folder)[...], model)


def test_outer_and_pointwise_selections(place: Any) -> None:
    model = np.arange(7 * 5 * 4).reshape(7, 5, 4)
    a = stash.create(place, model.shape, "i8", chunks=(3, 2, 4), in_place=True)
    a[...] = model
    rows, columns = [5, 0, 3], [4, 1]
    a.oindex[rows, :, [2, 0]] = -1
    model[np.ix_(rows, range(5), [2, 0])] = -1
    a.vindex[[1, 6], [0, 4]] = 99
    model[[1, 6], [0, 4]] = 99
    a.lazy[1:6][::-2, 2][...] = 7
    model[1:6][::-2, 2] = 7
    a[[2, 2, 2], 0, 0] = [1, 2, 3]
    model[2, 0, 0] = 3
    a.blocks[1, 0] = 5
    model[3:6, 0:2] = 5
    same(a[...], model)
    same(a.oindex[rows, columns], outer_of(model, (rows, columns)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_fixed_type_row_by_row(kind: Any, place: Any) -> None:
    dtype = dtypes.parse(kind)
    rng = np.random.default_rng(1)
    model = rng.integers(0, 256, (9, 3, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        model &= 1
    model = model.view(dtype)[..., 0]
    a = stash.create(place, (9, 3), kind, chunks=(4, 3), in_place=True)
    put = a.setter()
    for i in (3, 0, 8, 7, 4, 1, 2, 5, -3):
        put(i, model[i])
    assert a[...].tobytes() == model.tobytes()
    a[[7, 2], 1] = model[[0, 1], 0]
    model[[7, 2], 1] = model[[0, 1], 0]
    assert stash.open(place).read().tobytes() == model.tobytes()
    assert a.info().stored_chunks == 3


def test_fields_of_records_are_written_alone(place: Any) -> None:
    model = np.zeros((7, 3), RECORD)
    a = stash.create(place, (7, 3), RECORD, chunks=(2, 3), in_place=True)
    a["b", 1:6:2] = 1.5
    model["b"][1:6:2] = 1.5
    a[["c", "a"], [6, 0], 2] = np.array([(1, 3), (4, 6)], [("c", "i2"), ("a", "u1")])
    model["c"][[6, 0], 2] = [1, 4]
    model["a"][[6, 0], 2] = [3, 6]
    assert a[...].tobytes() == model.tobytes()
    assert np.array_equal(a["c", :, 1], model["c"][:, 1])


def test_a_chunk_is_one_file_of_full_size_and_stays_though_it_is_fill(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (10, 4), "f4", chunks=(4, 4), fill_value=2.5, in_place=True)
    file = tmp_path / "a/c/2/0"
    a[9] = 1
    assert file.stat().st_size == 4 * 4 * 4
    assert np.fromfile(file, "f4").reshape(4, 4)[[0, 2, 3]].tolist() == [[2.5] * 4] * 3
    inode = file.stat().st_ino
    a[9] = 2.5
    a[...] = 2.5
    a[8:] = 2.5
    assert file.stat().st_ino == inode
    assert a.info().stored_chunks == 3


def test_others_read_it_and_keep_that_it_is_in_place(tmp_path: Path) -> None:
    model = np.arange(60, dtype="i4").reshape(20, 3)
    a = stash.create(tmp_path / "a", (20, 3), "i4", chunks=(8, 3), in_place=True)
    a[::-1] = model[::-1]
    theirs = zarr.open_array(tmp_path / "a", mode="r+")
    same(theirs[...], model)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    same(tensorstore.open(spec).result().read().result(), model)
    theirs.attrs["unit"] = "mm"  # rewrites the document
    again = stash.open(tmp_path / "a", "r+")
    assert again.in_place and dict(again.attrs) == {"unit": "mm"}
    again[3] = 0
    a[4] = 0
    model[3:5] = 0
    same(zarr.open_array(tmp_path / "a")[...], model)
    theirs[8:16] = -1  # replaces the file
    a[9] = 5
    model[8:16] = -1
    model[9] = 5
    same(a[...], model)
    same(again[...], model)


def test_a_handle_opened_before_reads_what_is_written_in_place(place: Any) -> None:
    a = stash.create(place, (8, 2), "i4", chunks=(4, 2), in_place=True)
    before = stash.open(place, cache="1MiB")
    immutable = stash.open(place, cache="1MiB", immutable=True)
    for k in range(5):
        a[3] = k
        for reader in (before, immutable):
            assert reader[3].tolist() == [k, k]
            assert reader[[1, 3], 0].tolist() == [0, k]
            assert reader[...][3, 1] == k
    shown = before.mmap(slice(0, 4))
    a[3] = 77
    assert shown[3, 0] == 77


def test_new_chunks_are_whole_rows_of_some_megabytes() -> None:
    spec = stash.create({}, (100, 84, 84), "u1", in_place=False).spec
    assert not spec.in_place
    with tempfile.TemporaryDirectory() as folder:
        a = stash.create(folder + "/a", (10_000, 84, 84), "u1", in_place=True)
        assert a.chunks == ((8 << 20) // (84 * 84), 84, 84)
        assert stash.create(folder + "/b", 0, "f8", in_place=True).chunks == ((8 << 20) // 8,)
        assert stash.create(folder + "/c", (5, 3), "f8", in_place=True).chunks == (5, 3)
        assert stash.create(folder + "/d", (), "f8", in_place=True).read().tolist() == 0


def test_copies(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (9, 2), "i4", chunks=(4, 2), in_place=True, fill_value=3)
    a[5] = 8
    for changes, stays in (({}, True), ({"chunks": 3}, True), ({"codecs": "zstd"}, False)):
        made = stash.copy(a, tmp_path / f"b{len(changes)}{stays}", overwrite=True, **changes)
        assert made.in_place is stays
        same(made[...], a[...])
    made = stash.copy(a, {})
    assert not made.in_place and "tensorstash_in_place" not in made.attrs
    same(made[...], a[...])
