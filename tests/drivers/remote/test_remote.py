"""Many writers and readers at once of arrays on S3 and Redis: nothing lost, nothing torn."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import AlreadyExists, Unsupported
from tests.support.oracle import same
from tests.support.races import (
    GROWING,
    LAYOUTS,
    blocks_of,
    finish,
    fork,
    in_processes,
    in_threads,
    spawn,
)
from tests.support.remote import KINDS, Remote, numbers, remote

# Zarr v2 is the same requests, and test_concurrency.py has it.
PLACED = {name: layout for name, layout in LAYOUTS.items() if name != "v2"}
GROWN = {name: layout for name, layout in GROWING.items() if name != "v2"}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Remote:
    return remote(request.param, request.getfixturevalue)


# -- disjoint parts of one object --------------------------------------------------------------

ROWS = np.repeat(np.arange(1, 33), 16).reshape(32, 16)


def write_rows(array: stash.Array, k: int, of: int) -> None:
    for row in range(k, 32, of):
        if row % 3 == 0:
            array[row, ::2] = row + 1
            array[row, 1::2] = row + 1
        else:
            array[row] = row + 1


def open_and_write_rows(barrier: Any, place: Remote, url: str, k: int, of: int) -> None:
    array = place.open(url, "r+")
    barrier.wait()
    write_rows(array, k, of)


@pytest.mark.parametrize("layout", PLACED)
def test_threads_on_one_object(place: Remote, layout: str) -> None:
    url = place.fresh()
    array = place.create((32, 16), "i8", url=url, **PLACED[layout])
    in_threads(6, lambda k: write_rows(array if k % 2 else place.open(url, "r+"), k, 6))
    same(array[...], ROWS)


@pytest.mark.parametrize("layout", PLACED)
def test_processes_on_one_object(place: Remote, layout: str) -> None:
    url = place.fresh()
    array = place.create((32, 16), "i8", url=url, **PLACED[layout])
    in_processes(fork, open_and_write_rows, *[(place, url, k, 4) for k in range(4)])
    same(array[...], ROWS)


def test_spawned_processes_on_one_object(place: Remote) -> None:
    url = place.fresh()
    array = place.create((32, 16), "i8", url=url, **PLACED["shard"])
    in_processes(spawn, open_and_write_rows, *[(place, url, k, 2) for k in range(2)])
    same(array[...], ROWS)


# -- whole and partial writers, and readers ----------------------------------------------------

TURNS = 12


def write_whole(barrier: Any, place: Remote, url: str) -> None:
    array = place.open(url, "r+")
    barrier.wait()
    for turn in range(1, TURNS + 1):
        array[...] = 1000 + turn


def write_cell(barrier: Any, place: Remote, url: str, k: int) -> None:
    array = place.open(url, "r+")
    barrier.wait()
    for turn in range(1, TURNS + 1):
        array[k, k] = 100 * k + turn


def watch(barrier: Any, place: Remote, url: str) -> None:
    array = place.open(url, cache="1MiB")
    barrier.wait()
    for _ in range(2 * TURNS):
        explained(array[...])


def explained(found: np.ndarray) -> None:
    """One whole write, with single cells written after it."""
    others = np.ones(found.shape, bool)
    for k in range(2):
        others[k, k] = False
    assert len(np.unique(found[others])) == 1


@pytest.mark.parametrize("layout", PLACED)
def test_readers_see_whole_chunks_and_no_cell_is_lost(place: Remote, layout: str) -> None:
    url = place.fresh()
    array = place.create((32, 16), "i8", url=url, **PLACED[layout])
    barrier = fork.Barrier(4)
    rows: list[Any] = [(write_whole, ()), (watch, ()), (write_cell, (0,)), (write_cell, (1,))]
    processes = [fork.Process(target=w, args=(barrier, place, url, *more)) for w, more in rows]
    for process in processes:
        process.start()
    finish(*processes)
    found = array[...]
    explained(found)
    assert found[20, 10] == 1000 + TURNS
    assert all(found[k, k] in (1000 + TURNS, 100 * k + TURNS) for k in range(2))


# -- appends -----------------------------------------------------------------------------------


def append_blocks(barrier: Any, place: Remote, url: str, k: int, times: int) -> None:
    array = place.open(url, "r+")
    barrier.wait()
    for turn in range(times):
        block = np.full((10, 3), 1 + k * times + turn)
        block[:, 1] = np.arange(10)
        start = array.append(block)
        assert (array[start : start + 10] == block).all()


def read_while_growing(barrier: Any, place: Remote, url: str, rows: int) -> None:
    array = place.open(url, cache="1MiB")
    barrier.wait()
    while array.refresh().shape[0] < rows:
        blocks_of(array[...])
    assert len(blocks_of(array[...])) == rows // 10


@pytest.mark.parametrize("layout", GROWN)
def test_concurrent_appends_all_land_and_none_is_half_there(place: Remote, layout: str) -> None:
    url = place.fresh()
    array = place.create((0, 3), "i8", url=url, **GROWN[layout])
    barrier = fork.Barrier(5)
    processes = [
        fork.Process(target=append_blocks, args=(barrier, place, url, k, 3)) for k in range(4)
    ]
    processes.append(fork.Process(target=read_while_growing, args=(barrier, place, url, 120)))
    for process in processes:
        process.start()
    finish(*processes)
    assert sorted(blocks_of(array.refresh()[...])) == list(range(1, 13))


def append_for_ever(place: Remote, url: str) -> None:
    array = place.open(url, "r+")
    for turn in itertools.count(1):
        block = np.full((10, 3), turn)
        block[:, 1] = np.arange(10)
        array.append(block)


def test_an_appender_that_is_killed_leaves_whole_blocks_and_no_lock(place: Remote) -> None:
    place = place.having(lease=1.0)
    url = place.fresh()
    array = place.create((0, 3), "i8", url=url, chunks=(7, 3))
    for seconds in (0.1, 0.15):
        before = array.refresh().shape[0]
        process = fork.Process(target=append_for_ever, args=(place, url))
        process.start()
        while place.open(url).shape[0] == before:
            assert process.is_alive()
            time.sleep(0.02)
        time.sleep(seconds)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        blocks_of(array.refresh()[...])
        append_blocks(threading.Barrier(1), place, url, 0, 1)
    blocks_of(array.refresh()[...])


# -- creating, and everything in turn ----------------------------------------------------------


def create_it(barrier: Any, place: Remote, url: str, mode: Any, winners: Any) -> None:
    barrier.wait()
    try:
        array = place.open(url, mode, shape=(8,), dtype="i8", chunks=(8,))
    except AlreadyExists:
        return
    with winners.get_lock():
        winners.value += 1
    array[winners.value] = winners.value


@pytest.mark.parametrize(("mode", "wins"), [("x", 1), ("a", 4)])
def test_of_many_creators_one_wins(place: Remote, mode: str, wins: int) -> None:
    winners, url = fork.Value("i", 0), place.fresh()
    in_processes(fork, create_it, *[(place, url, mode, winners)] * 4)
    assert winners.value == wins
    assert place.open(url).shape == (8,)


@pytest.mark.parametrize("layout", PLACED)
def test_a_group_of_arrays_stays_equal_to_numpy(place: Remote, layout: str) -> None:
    """A random walk through two handles, one of which keeps chunks."""
    rng = np.random.default_rng(5)
    url = place.fresh()
    group = stash.create_group(url, {"of": "two"}, options=place.options)
    model = numbers((40, 20))
    group.create("deep/x", model.shape, "i8", **PLACED[layout])[...] = model
    writer = stash.open_group(url, "r+", options=place.options)["deep/x"]
    reader = place.open(f"{url}/deep/x", cache="1MiB")
    assert isinstance(writer, stash.Array)
    for _ in range(25):
        a, b = sorted(rng.integers(0, len(model) + 1, 2))
        c = int(rng.integers(0, 20))
        match rng.integers(5):
            case 0:
                model[a:b, c:] = writer[a:b, c:] = int(rng.integers(1, 99))
            case 1:
                rows = rng.permutation(len(model))[:5]
                model[rows, c] = c + 1
                writer.oindex[rows, c] = c + 1
            case 2:
                block = numbers((int(rng.integers(1, 9)), 20), int(b))
                assert writer.append(block) == len(model)
                model = np.concatenate([model, block])
            case 3:
                length = max(4, int(a))
                writer.resize((length, 20))
                model = model[:length].copy()
            case 4:
                writer.resize((len(model) + 3, 20))
                model = np.concatenate([model, np.zeros((3, 20), "i8")])
        same(reader.refresh()[...], model)
    assert group.tree().splitlines()[1:] and list(group) == ["deep"]
    assert dict(group.attrs) == {"of": "two"}


# -- drivers that promise less -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zarr", "fsspec"])
def test_threads_on_what_knows_no_conditions(kind: str) -> None:
    """Without ``unsafe`` appends are refused; with it one driver keeps its own threads apart."""
    if kind == "zarr":
        storage = pytest.importorskip("zarr.storage")
        place, unsafe = storage.MemoryStore(), {"unsafe": True}
    else:
        fsspec = pytest.importorskip("fsspec")
        place, unsafe = fsspec.filesystem("memory", skip_instance_cache=True), {"unsafe": True}
        place = place.get_mapper(f"/{kind}-{os.getpid()}")
    plain = stash.create(place, (0, 3), "i8", chunks=(7, 3))
    with pytest.raises(Unsupported):
        plain.append(np.ones((1, 3)))
    array = stash.open(place, "r+", options=unsafe)

    def work(k: int) -> None:
        for turn in range(3):
            block = np.full((10, 3), 1 + k * 3 + turn)
            block[:, 1] = np.arange(10)
            array.append(block)

    in_threads(4, work)
    assert sorted(blocks_of(array.refresh()[...])) == list(range(1, 13))
