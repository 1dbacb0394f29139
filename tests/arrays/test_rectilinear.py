"""Arrays with chunks of listed lengths grow and shrink, in metadata of constant size."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.errors import Conflict, Unsupported
from tests.support.layouts import EXAMPLES
from tests.support.oracle import same
from tests.support.rectilinear import listed, lists_of

RUNS = st.lists(
    st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 3)).map(list)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_growing_and_shrinking_are_numpys(data: Any) -> None:
    inner = data.draw(st.sampled_from([None, (1, 1), (2, 3)]))
    shape = tuple(data.draw(st.integers(0, 9)) for _ in range(2))
    axes = [data.draw(st.one_of(RUNS, st.integers(1, 4))) for _ in shape]
    if inner:
        axes = [scaled(axis, n) for axis, n in zip(axes, inner, strict=True)]
    array = listed(shape, axes, inner, fill_value=-1)
    model = np.random.default_rng(1).integers(0, 99, shape).astype("i4")
    array[...] = model
    stale = stash.open(array.driver, "r+")
    known = stale.shape
    for turn in range(data.draw(st.integers(1, 6))):
        axis = data.draw(st.integers(0, 1))
        if data.draw(st.booleans()):
            wanted = list(model.shape)
            wanted[axis] = data.draw(st.integers(0, 5))
            rows = np.full(wanted, turn, "i4")
            assert array.append(rows, axis) == model.shape[axis]
            model = np.concatenate([model, rows], axis)
        else:
            wanted = [data.draw(st.integers(0, 14)) for _ in shape]
            array.resize(wanted)
            kept = tuple(slice(min(a, b)) for a, b in zip(wanted, model.shape, strict=True))
            resized = np.full(wanted, -1, "i4")
            resized[kept] = model[kept]
            model = resized
        same(array[...], model)
        same(stash.load(array.driver), model)
    if all(n <= m for n, m in zip(known, model.shape, strict=True)):
        same(stale[...], model[: known[0], : known[1]])
        stale[1:] = 5
        model[1 : known[0], : known[1]] = 5
        same(stash.load(array.driver), model)
        same(stale.refresh()[...], model)


def scaled(axis: Any, by: int) -> Any:
    if isinstance(axis, int):
        return axis * by
    return [[run[0] * by, run[1]] if isinstance(run, list) else run * by for run in axis]


def test_growth_goes_on_in_chunks_as_long_as_the_longest() -> None:
    array = listed((7,), [[2, 4, 1]])
    array.append([1])  # is in no chunk of the list
    assert lists_of(array) == [[2, 4, 1, 4]]
    array.append([2] * 3)
    assert lists_of(array) == [[2, 4, 1, 4]]
    array.resize(3)
    array.append([3] * 4)
    assert lists_of(array) == [[2, 4, 1, 4]]
    for _ in range(50):
        array.append([4] * 7)
    assert lists_of(array) == [[2, 4, 1, [4, 88]]]
    with array.writer() as writer:
        for k in range(40):
            writer.append([k])
    assert array.shape == (397,) and array[-40:].tolist() == [*range(40)]
    assert array.oindex[[0, 396]].tolist() == [0, 39]


def test_what_a_killed_append_left_is_not_shown_however_the_next_one_grows() -> None:
    array = listed((3,), [[2, 3]], fill_value=-1)
    before = bytes(array.driver.get("zarr.json") or b"")
    array.append([7] * 20)
    array.driver.put("zarr.json", before)  # as if it was killed before its last step
    array = stash.open(array.driver, "r+")
    array.append([1])
    array.resize(9)
    assert array[3:].tolist() == [1] + [-1] * 5
    array.resize(40)
    assert (array[4:] == -1).all()


def test_a_list_that_would_be_too_long_is_refused_before_anything_is_stored() -> None:
    array = listed((2,), [[1, 1]])
    keys = [*array.driver.list()]
    with pytest.raises(Unsupported, match="more than 4194304 chunks"):
        array.resize(1 << 23)
    with pytest.raises(Unsupported, match="more than 4194304 chunks"):
        array.append(np.zeros(1 << 22, "i4"))
    far = listed((2,), [[1 << 62]])
    with pytest.raises(Unsupported, match="add up to more"):
        far.resize((1 << 63) - 1)
    assert array.shape == (2,) and [*array.driver.list()] == keys


def test_a_handle_that_knows_other_chunks_is_told() -> None:
    array = listed((4,), [[2, 2]])
    other = stash.open(array.driver, "r+")
    document = json.loads(bytes(array.driver.get("zarr.json") or b""))
    document["chunk_grid"]["configuration"]["chunk_shapes"] = [[1, 3]]
    array.driver.put("zarr.json", json.dumps(document).encode())
    with pytest.raises(Conflict, match="chunks of differing shapes"):
        other.append([1])
    with pytest.raises(Conflict):
        other.refresh()


def appended(url: str, mark: int) -> None:
    array = stash.open(url, "r+")
    for _ in range(12):
        array.append(np.full(3, mark, "i4"))


def test_appends_of_several_processes_all_land(tmp_path: Path) -> None:
    made = listed((3,), [[2, 5]])
    made[...] = 0
    for key in [*made.driver.list()]:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(made.driver.get(key) or b""))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=appended, args=(str(tmp_path), k)) for k in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found = stash.load(str(tmp_path))
    assert found[:3].tolist() == [0, 0, 0]
    rows = found[3:].reshape(-1, 3)
    assert (rows == rows[:, :1]).all()
    assert np.bincount(rows[:, 0]).tolist() == [0, 12, 12, 12]


@pytest.mark.skipif(
    tuple(map(int, zarr.__version__.split(".")[:2])) < (3, 2), reason="zarr reads no such grids"
)
def test_zarr_python_and_we_grow_one_array_in_turn(tmp_path: Path) -> None:
    with zarr.config.set({"array.rectilinear_chunks": True}):
        theirs = zarr.create_array(str(tmp_path), shape=(6,), chunks=[[2, 4]], dtype="i4")
        theirs[...] = 1
        ours = stash.open(str(tmp_path), "r+")
        wanted = [1] * 6
        for count in (5, 1, 9, 2):
            theirs = zarr.open_array(str(tmp_path))
            theirs.append(np.full(count, 2, "i4"))
            ours.append(np.full(count, 3, "i4"))
            wanted += [2] * count + [3] * count
            assert stash.load(str(tmp_path)).tolist() == wanted
            assert zarr.open_array(str(tmp_path))[...].tolist() == wanted
        theirs = zarr.open_array(str(tmp_path))
        theirs.resize((4,))
        ours.refresh().resize(30)
        assert zarr.open_array(str(tmp_path))[...].tolist() == [1] * 4 + [0] * 26
