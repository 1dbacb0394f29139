"""What reading and writing named fields costs, and what is kept of what others write."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Corrupt
from tensorstash.testing.counting import Count, CountingDriver
from tests.support.oracle import same
from tests.support.races import TRIALS, fork, in_processes, in_threads, spawn
from tests.support.record_layouts import PLAIN, random_records

# -- cost --------------------------------------------------------------------------------------


def counted(shape: Any, **how: Any) -> tuple[stash.Array, CountingDriver, np.ndarray]:
    driver = CountingDriver(MemoryDriver())
    array = stash.create(driver, shape, PLAIN, **how)
    model = random_records(1, shape, PLAIN)
    array[...] = model
    driver.reset()
    return array, driver, model


@pytest.mark.parametrize("shards", [None, (8, 8)])
def test_a_field_is_written_in_one_pass_a_chunk(shards: Any) -> None:
    array, driver, model = counted((16, 8), chunks=(4, 4), shards=shards)
    objects = 2 if shards else 8
    array["x"] = 5
    assert (driver.reads.calls, driver.writes.calls) == (objects, objects)
    assert driver.counts["tag"].calls == 1  # whether the array is still the one it was
    driver.reset()
    array[["z", "y"], 3] = np.array([(1, 2)] * 8, [("z", "u1"), ("y", "i4")])
    row = 1 if shards else 2
    assert (driver.reads.calls, driver.writes.calls) == (row, row)
    model["x"] = 5
    model["z"][3], model["y"][3] = 1, 2
    same(array[...], model)


def test_a_field_is_read_once_a_chunk() -> None:
    array, driver, _ = counted((16, 8), chunks=(4, 4))
    assert array["x", 3:9, ::-1].shape == (6, 8)
    assert driver.reads.keys == 6
    driver.reset()
    assert array[["x", "z"]].shape == (16, 8)
    assert driver.reads.keys == 8
    assert driver.writes == Count()


def test_all_fields_by_name_are_whole_records() -> None:
    array, driver, model = counted((8,), chunks=(4,))
    array[["x", "y", "z"]] = model[::-1]
    assert driver.reads == Count()
    same(array[["x", "y", "z"]], model[::-1].copy())
    driver.reset()
    array[["z", "y", "x"]] = model[["z", "y", "x"]]
    assert driver.reads.calls == driver.writes.calls == 2
    same(array[...], model)


def test_a_read_holds_no_records_beyond_a_chunk() -> None:
    wide = np.dtype([("x", "f4"), ("rest", "V1020")])
    array = stash.create({}, (64, 1024), wide, chunks=(1, 1024))  # 64 MiB in chunks of 1 MiB
    array["x"] = np.arange(64 * 1024, dtype="f4").reshape(64, 1024)
    threads = stash.open(array.driver, threads=1)
    assert threads["x", 0, 0] == 0
    for selection in ("x", ("x", slice(None, None, -1)), ("x", [5, 3, 60])):
        tracemalloc.start()
        try:
            threads[selection]
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert most < 4 << 20, f"{most} bytes for {selection!r}"


def test_explain_takes_names() -> None:
    array, _, _ = counted((16, 8), chunks=(4, 4))
    assert array.explain(np.s_["x", 3]).chunks == array.explain(3).chunks == 2


# -- other writers, damage ---------------------------------------------------------------------

WIDE = np.dtype([(f"f{k}", "i8") for k in range(6)])


def write_field(barrier: Any, where: str, k: int) -> None:
    array = stash.open(where, "r+")
    barrier.wait()
    for turn in range(10):
        array[f"f{k}", turn % 2 :: 2] = np.arange(turn % 2, 60, 2) + 100 * k


@pytest.mark.parametrize("shards", [None, (30,)])
@pytest.mark.parametrize("context", [fork, spawn], ids=["fork", "spawn"])
def test_processes_that_write_different_fields_all_land(
    tmp_path: Path, context: Any, shards: Any
) -> None:
    for trial in range(1 if context is spawn else TRIALS):
        where = str(tmp_path / f"{trial}")
        array = stash.create(where, (60,), WIDE, chunks=(15,), shards=shards)
        in_processes(context, write_field, *((where, k) for k in range(6)))
        for k in range(6):
            same(array[f"f{k}"], np.arange(60) + 100 * k)


@pytest.mark.parametrize("driver", ["memory", "file"])
def test_threads_that_write_different_fields_all_land(tmp_path: Path, driver: str) -> None:
    place: Any = FileDriver(tmp_path) if driver == "file" else {}
    array = stash.create(place, (60,), WIDE, chunks=(15,))
    barrier = threading.Barrier(6)

    def work(k: int) -> None:
        barrier.wait()
        for turn in range(10):
            array[f"f{k}", turn % 2 :: 2] = np.arange(turn % 2, 60, 2) + 100 * k

    in_threads(6, work)
    for k in range(6):
        same(array[f"f{k}"], np.arange(60) + 100 * k)


def test_damage_is_not_written_over_by_some_fields() -> None:
    stored: dict[str, bytes] = {}
    array = stash.save(stored, random_records(1, (8,), PLAIN), chunks=(4,))
    stored["c/1"] = stored["c/1"][:-3]
    before = dict(stored)
    with pytest.raises(Corrupt, match=r"chunk \(1,\)"):
        array["x", 4:] = 1
    with pytest.raises(Corrupt):
        array["x", 4:]
    assert stored == before
    array[4:] = np.zeros(4, PLAIN)
    assert array["x", 4:].tolist() == [0] * 4


def test_fill_is_not_stored_and_absent_chunks_keep_their_fill() -> None:
    stored: dict[str, bytes] = {}
    array = stash.create(stored, (8,), PLAIN, chunks=(4,), fill_value=(1.5, 2, 3))
    array["x"] = 1.5
    assert [*stored] == ["zarr.json"]
    array["y", :2] = 7
    assert array[["x", "y", "z"], 0].tolist() == (1.5, 7, 3)
    assert "c/1" not in stored
