"""Mapped chunks: equal to NumPy's views, or refused with a reason; never copied or changed."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash import dtype as dtypes
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Closed, Corrupt, InvalidSelection, NotFound, Unsupported
from tensorstash.testing.counting import Count, CountingDriver
from tests.support.documents import BYTES, v3
from tests.support.layouts import EXAMPLES, NUMBERS, layouts
from tests.support.oracle import numpy_index, same
from tests.support.record_layouts import NESTED, PLAIN, random_records

BFLOAT = dtypes.parse("bfloat16")
BIG = [{"name": "bytes", "configuration": {"endian": "big"}}]


def is_basic(index: Any) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return all(item is None or item is ... or isinstance(item, (int, slice)) for item in items)


def chunk_ids(shape: tuple[int, ...], chunks: tuple[int, ...]) -> np.ndarray:
    """The number of the chunk in which each element lies."""
    found = np.zeros(shape, int)
    for axis, (n, edge) in enumerate(zip(shape, chunks, strict=True)):
        line = np.arange(n) // edge
        found = found * 100 + line.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return found


# -- against NumPy -----------------------------------------------------------------------------


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_views_are_numpys_or_refused(data: Any) -> None:
    layout = data.draw(layouts(dtypes=[*NUMBERS, BFLOAT]))
    raw = data.draw(st.booleans())
    big = np.dtype(layout.dtype).itemsize > 1 and data.draw(st.booleans())
    how = dict(layout.how)
    nested = isinstance(how["codecs"], list)
    if raw and not nested:
        how["codecs"] = BIG if big and how.get("zarr_format") != 2 and "order" not in how else None
    with tempfile.TemporaryDirectory() as folder:
        array = stash.create(layout.place(folder), layout.shape, layout.dtype, **how)
        model = np.full(layout.shape, how["fill_value"], layout.dtype)
        if data.draw(st.booleans()):
            model[...] = np.random.default_rng(1).integers(0, 2, layout.shape)
            array[...] = model
        ids = chunk_ids(layout.shape, array.chunks or ())
        for _ in range(3):
            index = data.draw(numpy_index(layout.shape))
            wanted = np.asarray(model[index])
            there = layout.where != "far" and how["codecs"] in (None, BIG)
            swapped = how["codecs"] == BIG and layout.dtype == BFLOAT
            fits = np.unique(ids[index]).size == 1 and is_basic(index) and there and not swapped
            try:
                found = array.mmap(index)
            except Unsupported as error:
                assert wanted.size and not fits, error
                assert str(error).endswith("a[...] reads a copy")
                continue
            assert not found.flags.writeable
            assert found.shape == wanted.shape
            same(found.astype(wanted.dtype), wanted)


@pytest.mark.parametrize("place", ["file", "memory"])
@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (4, 6)},
        {"chunks": (4, 6), "order": "F"},
        {"chunks": (4, 6), "zarr_format": 2},
        {"chunks": (4, 6), "codecs": BIG},
        {"chunks": (2, 3), "shards": (8, 6)},
    ],
    ids=["plain", "F", "v2", "big", "shards"],
)
def test_nothing_is_copied_or_read(place: str, how: Any, tmp_path: Path) -> None:
    driver = CountingDriver(FileDriver(tmp_path) if place == "file" else MemoryDriver())
    model = np.arange(48, dtype="i4").reshape(8, 6)
    array = stash.save(driver, model, **{"codecs": None, **how}).refresh()
    driver.reset()
    views = [array.mmap(np.s_[4:6, 5:2:-1]), array.mmap((5, 4)), array.mmap((None, 4, ..., 3))]
    assert driver.reads == Count() and driver.counts["map"].calls == 3
    for view, index in zip(views, (np.s_[4:6, 5:2:-1], (5, 4), (None, 4, ..., 3)), strict=True):
        assert np.array_equal(view, model[index]) and np.shape(view) == np.shape(model[index])
        base = view
        while isinstance(base, np.ndarray):
            assert not base.flags.owndata
            base = base.base
        assert isinstance(base, (bytes, mmap.mmap))
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    if place == "memory" and "shards" not in how:
        key = next(key for key in driver.list() if key.endswith(("1/0", "1.0")))
        value = driver.get(key)
        assert value is not None and np.shares_memory(views[0], np.frombuffer(value, "u1"))
    assert views[0].dtype == (">i4" if how.get("codecs") else "i4")


@pytest.mark.parametrize("dtype", [PLAIN, NESTED, "U3", "S4", "M8[s]", "c16", "V5"], ids=str)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_dtype_of_fixed_size(dtype: Any, order: str) -> None:
    if isinstance(dtype, np.dtype):
        model = random_records(1, (3, 4), dtype)
    else:
        model = np.arange(12).reshape(3, 4).astype("S4" if dtype == "V5" else dtype)
        model = np.resize(np.frombuffer(os.urandom(60), "V5"), (3, 4)) if dtype == "V5" else model
    array = stash.create({}, (3, 4), model.dtype, chunks=(3, 4), codecs=None)
    if order == ">":
        array = stash.create({}, (3, 4), model.dtype.newbyteorder(">"), chunks=(3, 4), codecs=None)
    array[...] = model
    found = array.mmap()
    same(found.astype(model.dtype), model)
    if isinstance(dtype, np.dtype):
        name = model.dtype.names[0] if model.dtype.names else ""
        assert np.array_equal(found[name], model[name])


# -- what stands in the way --------------------------------------------------------------------


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    model = np.arange(24.0).reshape(4, 6)
    cases: list[tuple[stash.Array, Any, str]] = [
        (
            stash.save(tmp_path / "a", model),
            ...,
            "encoded by bytes, blosc, crc32c, and only codecs",
        ),
        (stash.save(tmp_path / "b", model, codecs="crc32c"), ..., "encoded by bytes, crc32c"),
        (stash.save(tmp_path / "c", np.array(["a", "b"])), ..., "encoded by vlen-utf8"),
    ]
    raw = stash.save(tmp_path / "d", model, chunks=(2, 4), codecs=None)
    cases += [
        (raw, ..., "elements 0 to 3 of axis 0 lie in several chunks, this one ends at 2"),
        (raw, np.s_[0, 5:2:-1], "elements 3 to 5 of axis 1 lie in several chunks"),
        (raw, [0, 1], r"an index array selects a copy \(axis 0\)"),
        (raw, model > 3, "an index array selects a copy"),
        (
            stash.save(f"zip://{tmp_path}/e.zip", model, codecs=None),
            0,
            "driver 'zip' has no memory",
        ),
    ]
    for array, selection, why in cases:
        with pytest.raises(Unsupported, match=rf"cannot be mapped: .*{why}.*a\[\.\.\.\] reads a c"):
            array.mmap(selection)
    with pytest.raises(InvalidSelection):
        raw.mmap(4)
    raw.close()
    with pytest.raises(Closed):
        raw.mmap(0)


def test_absent_chunks_are_the_fill_value() -> None:
    array = stash.create({}, (6, 4), "i4", chunks=(3, 4), fill_value=7, codecs=BIG)
    array[:3] = 1
    view = array.mmap(np.s_[3:, ::2])
    assert view.tolist() == [[7, 7]] * 3 and view.dtype == ">i4"
    assert not view.flags.writeable and view.strides == (0, 0)
    sharded = stash.create({}, (6,), "i4", chunks=(2,), shards=(6,), fill_value=7, codecs=None)
    assert sharded.mmap(1).shape == () and sharded.mmap(1) == 7
    sharded[0] = 1
    assert (sharded.mmap(1), sharded.mmap(5)) == (7, 7)
    told = stash.open(array.driver, missing="raise")
    with pytest.raises(NotFound, match=r"chunk \(1, 0\) is not stored"):
        told.mmap(5)
    assert told.mmap(0).tolist() == [1] * 4


def test_irregular_chunks() -> None:
    grid = {"kind": "inline", "chunk_shapes": [[2, 5, 3]]}
    document = v3(
        shape=[10],
        data_type="int32",
        fill_value=0,
        chunk_grid={"name": "rectilinear", "configuration": grid},
        codecs=[BYTES],
        dimension_names=...,
    )
    array = stash.open({"zarr.json": json.dumps(document).encode()}, "r+")
    array[...] = np.arange(10)
    assert array.mmap(np.s_[2:7]).tolist() == [2, 3, 4, 5, 6]
    with pytest.raises(Unsupported, match="this one ends at 7"):
        array.mmap(np.s_[2:8])


@pytest.mark.parametrize("shards", [None, (8,)])
@pytest.mark.parametrize("change", [b"", b"x", None])
def test_damage_is_noticed_before_a_look(tmp_path: Path, shards: Any, change: Any) -> None:
    array = stash.save(tmp_path / "a", np.arange(16), chunks=(4,), shards=shards, codecs=None)
    (path,) = [p for p in (tmp_path / "a").rglob("1") if p.is_file()]
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] if change is None else change)
    place = 8 if shards else 4
    with pytest.raises(Corrupt) as caught:
        array.mmap(place)
    assert caught.value.chunk == (1,) and caught.value.key == "c/1"
    assert "is damaged" in str(caught.value)


def test_a_shard_that_points_beyond_its_end(tmp_path: Path) -> None:
    array = stash.save(tmp_path / "a", np.arange(16), chunks=(4,), shards=(16,), codecs=None)
    path = tmp_path / "a" / "c" / "0"
    path.write_bytes(path.read_bytes()[100:])  # the index is whole, and last
    assert array.mmap(np.s_[:2]).shape == (2,)
    with pytest.raises(Corrupt, match="points at bytes"):
        array.mmap(15)


# -- what others do meanwhile ------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "memory"])
def test_a_view_stays_what_it_was(place: str, tmp_path: Path) -> None:
    location: Any = tmp_path / "a" if place == "file" else {}
    array = stash.save(location, np.arange(100), chunks=(50,), codecs=None)
    view = array.mmap(np.s_[10:20])
    array[...] = -1
    array[15] = 7
    assert view.tolist() == [*range(10, 20)]
    assert array.mmap(np.s_[14:16]).tolist() == [-1, 7]
    array.driver.delete_prefix("")
    del array
    assert view.tolist() == [*range(10, 20)]


def look(view: np.ndarray, wanted: list[int]) -> None:
    assert view.tolist() == wanted


def test_views_work_in_a_forked_child_and_pickle_as_copies(tmp_path: Path) -> None:
    array = stash.save(tmp_path / "a", np.arange(100), chunks=(100,), codecs=None)
    view = array.mmap(np.s_[10:20])
    child = multiprocessing.get_context("fork").Process(target=look, args=(view, [*range(10, 20)]))
    child.start()
    child.join()
    assert child.exitcode == 0
    copy = pickle.loads(pickle.dumps(view))
    assert copy.flags.owndata and copy.tolist() == view.tolist()
    assert pickle.loads(pickle.dumps(array)).mmap(3) == 3


MAPS = """
import sys
import numpy as np
import tensorstash as stash

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

array = stash.open(sys.argv[1])
array.mmap(0)
before = resident()
view = array.mmap()
grown = resident() - before
assert view.nbytes == 1 << 30, view.nbytes
assert grown < 1 << 20, grown
view[-1], view[1 << 29]  # two pages of it
assert resident() - before < 8 << 20
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_chunk_costs_no_memory(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (1 << 30,), "u1", chunks=(1 << 30,), codecs=None)
    array.driver.put("c/0", b"")
    os.truncate(tmp_path / "a" / "c" / "0", 1 << 30)  # sparse: no block is on the disk
    subprocess.run([sys.executable, "-c", MAPS, str(tmp_path / "a")], check=True)


def test_many_views_of_one_chunk(tmp_path: Path) -> None:
    array = stash.save(tmp_path / "a", np.arange(100), chunks=(100,), codecs=None)
    before = len(os.listdir("/dev/fd"))
    for k in range(3000):
        assert array.mmap(k % 100) == k % 100
    assert len(os.listdir("/dev/fd")) <= before + 2


def test_as_a_tensor(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    array = stash.save(tmp_path / "a", np.arange(6.0), codecs=None)
    with pytest.warns(UserWarning, match="not writable"):
        tensor = torch.from_numpy(array.mmap())
    assert tensor.tolist() == array.torch[...].tolist()
