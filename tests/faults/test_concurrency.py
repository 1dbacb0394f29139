"""Many writers and readers at once, threads and processes: nothing lost, nothing torn."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import AlreadyExists
from tests.support.oracle import same
from tests.support.races import (
    GROWING,
    LAYOUTS,
    TRIALS,
    append_blocks,
    blocks_of,
    finish,
    fork,
    in_processes,
    in_threads,
    spawn,
)

# -- disjoint parts of one object --------------------------------------------------------------


def write_rows(array: stash.Array, k: int, of: int) -> None:
    for row in range(k, 32, of):
        if row % 3 == 0:
            array[row] = row + 1
        elif row % 3 == 1:
            array[row, ::2] = row + 1
            array[row, 1::2] = row + 1
        else:
            with array.writer() as writer:
                writer[row] = row + 1


def open_and_write_rows(barrier: Any, path: Path, k: int, of: int) -> None:
    array = stash.open(path, "r+")
    barrier.wait()
    write_rows(array, k, of)


def all_rows_are_there(array: stash.Array) -> None:
    same(array[...], np.repeat(np.arange(1, 33), 16).reshape(32, 16))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shared", [True, False], ids=["one handle", "a handle each"])
def test_threads_on_one_object(tmp_path: Path, layout: str, shared: bool) -> None:
    for trial in range(TRIALS):
        for place in (tmp_path / str(trial), {}):
            array = stash.create(place, (32, 16), "i8", **LAYOUTS[layout])

            def work(k: int) -> None:
                handle = array if shared else stash.open(place, "r+")  # noqa: B023
                write_rows(handle, k, 8)

            in_threads(8, work)
            all_rows_are_there(array)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_on_one_object(tmp_path: Path, layout: str) -> None:
    for trial in range(TRIALS):
        path = tmp_path / str(trial)
        array = stash.create(path, (32, 16), "i8", **LAYOUTS[layout])
        in_processes(fork, open_and_write_rows, *[(path, k, 4) for k in range(4)])
        all_rows_are_there(array)


def test_spawned_processes_on_one_object(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (32, 16), "i8", **LAYOUTS["shard"])
    in_processes(spawn, open_and_write_rows, *[(tmp_path / "a", k, 4) for k in range(4)])
    all_rows_are_there(array)


# -- whole and partial writers -----------------------------------------------------------------


def write_whole(barrier: Any, path: Path) -> None:
    array = stash.open(path, "r+")
    barrier.wait()
    for turn in range(1, 41):
        array[...] = 1000 + turn


def write_cell(barrier: Any, path: Path, k: int) -> None:
    array = stash.open(path, "r+")
    barrier.wait()
    for turn in range(1, 41):
        array[k, k] = 100 * k + turn


def watch(barrier: Any, path: Path) -> None:
    array = stash.open(path)
    barrier.wait()
    for _ in range(80):
        explained(array[...])


def explained(found: np.ndarray) -> None:
    """One whole write, with single cells written after it."""
    others = np.ones(found.shape, bool)
    for k in range(3):
        others[k, k] = False
        assert found[k, k] in {*range(1000, 1041), 0, *range(100 * k + 1, 100 * k + 41)}
    assert len(np.unique(found[others])) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_and_partial_writers(tmp_path: Path, layout: str) -> None:
    for trial in range(TRIALS):
        path = tmp_path / str(trial)
        array = stash.create(path, (32, 16), "i8", **LAYOUTS[layout])
        barrier = fork.Barrier(5)
        rows: list[Any] = [(write_whole, ()), (watch, ())]
        rows += [(write_cell, (k,)) for k in range(3)]
        processes = [fork.Process(target=w, args=(barrier, path, *more)) for w, more in rows]
        for process in processes:
            process.start()
        finish(*processes)
        found = array[...]
        explained(found)
        # The last of each writer stays, unless the last of the other came after it.
        assert found[20, 10] == 1040
        assert all(found[k, k] in (1040, 100 * k + 40) for k in range(3))


# -- appends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", GROWING)
@pytest.mark.parametrize("buffered", [False, True])
def test_concurrent_appends_all_land(tmp_path: Path, layout: str, buffered: bool) -> None:
    for trial in range(TRIALS):
        path = tmp_path / str(trial)
        array = stash.create(path, (0, 3), "i8", **GROWING[layout])
        in_processes(fork, append_blocks, *[(path, k, 5, buffered) for k in range(4)])
        assert array.refresh().shape == (200, 3)
        assert sorted(blocks_of(array[...])) == list(range(1, 21))


def test_threads_append_too() -> None:
    array = stash.create({}, (0, 3), "i8", chunks=(7, 3))

    def work(k: int) -> None:
        handle = stash.open(array.driver, "r+") if k % 2 else array
        for turn in range(3):
            block = np.full((10, 3), 1 + k * 3 + turn)
            block[:, 1] = np.arange(10)
            handle.append(block)

    in_threads(6, work)
    assert sorted(blocks_of(stash.load(array.driver))) == list(range(1, 19))


def read_while_growing(barrier: Any, path: Path, rows: int, cache: Any) -> None:
    array = stash.open(path, cache=cache)
    barrier.wait()
    while array.refresh().shape[0] < rows:
        blocks_of(array[...])
    assert len(blocks_of(array[...])) == rows // 10


def write_at_the_edge(barrier: Any, path: Path, rows: int) -> None:
    """By handles that know only the first block, which they write again as it is."""
    array = stash.open(path, "r+")
    first = array[:10]
    barrier.wait()
    while stash.open(path).shape[0] < rows:
        array[0:10] = first
        array[9] = first[9]
        array[5:10, 2] = first[5:, 2]


@pytest.mark.parametrize("layout", GROWING)
def test_readers_and_stale_writers_while_it_grows(tmp_path: Path, layout: str) -> None:
    for trial in range(TRIALS):
        path = tmp_path / str(trial)
        stash.create(path, (0, 3), "i8", **GROWING[layout])
        append_blocks(threading.Barrier(1), path, 0, 1, False)
        barrier = fork.Barrier(5)
        processes = [
            fork.Process(target=read_while_growing, args=(barrier, path, 310, 0)),
            fork.Process(target=read_while_growing, args=(barrier, path, 310, "1MiB")),
            fork.Process(target=write_at_the_edge, args=(barrier, path, 310)),
            fork.Process(target=append_blocks, args=(barrier, path, 1, 15, False)),
            fork.Process(target=append_blocks, args=(barrier, path, 2, 15, True)),
        ]
        for process in processes:
            process.start()
        finish(*processes)
        assert len(blocks_of(stash.load(path))) == 31


def change_attributes(barrier: Any, path: Path, k: int) -> None:
    array = stash.open(path, "r+")
    barrier.wait()
    for turn in range(5):
        array.attrs[f"{k}-{turn}"] = turn
        array.append([k])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_attributes_and_appends_of_many_processes(tmp_path: Path, zarr_format: Any) -> None:
    stash.create(tmp_path / "a", (0,), "i8", chunks=(3,), zarr_format=zarr_format)
    in_processes(fork, change_attributes, *[(tmp_path / "a", k) for k in range(4)])
    array = stash.open(tmp_path / "a")
    assert len(array.attrs) == 20
    assert sorted(array[...].tolist()) == sorted(list(range(4)) * 5)


def test_one_handle_in_many_threads(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (0, 3), "i8", chunks=(7, 3), cache="1MiB")
    stop = threading.Event()

    def work(k: int) -> None:
        if k < 2:
            for turn in range(12):
                block = np.full((10, 3), 1 + 12 * k + turn)
                block[:, 1] = np.arange(10)
                array.append(block)
            if k == 0:
                stop.set()
        while not stop.is_set():
            blocks_of(array[...])
            array.refresh()

    in_threads(4, work)
    assert sorted(blocks_of(stash.load(tmp_path / "a"))) == list(range(1, 25))


# -- creating ----------------------------------------------------------------------------------


def create_it(barrier: Any, path: Path, mode: Any, winners: Any) -> None:
    barrier.wait()
    try:
        array = stash.open(path, mode, shape=(8,), dtype="i8", chunks=(8,))
    except AlreadyExists:
        return
    with winners.get_lock():
        winners.value += 1
    index = winners.value
    array[index] = index


@pytest.mark.parametrize(("mode", "wins"), [("x", 1), ("a", 4)])
def test_of_many_creators_one_wins(tmp_path: Path, mode: str, wins: int) -> None:
    for trial in range(TRIALS):
        winners = fork.Value("i", 0)
        path = tmp_path / str(trial)
        in_processes(fork, create_it, *[(path, mode, winners)] * 4)
        assert winners.value == wins
        assert stash.open(path).shape == (8,)
