"""Many writers and readers at once: threads, processes, killed ones; nothing lost, nothing torn.

``TENSORSTASH_TRIALS`` says how often the races are run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash import threads as workers
from tensorstash.errors import AlreadyExists
from tests.oracle import same

TRIALS = int(os.environ.get("TENSORSTASH_TRIALS", "3"))

fork = multiprocessing.get_context("fork")
spawn = multiprocessing.get_context("spawn")
forkserver = multiprocessing.get_context("forkserver")

LAYOUTS: dict[str, dict[str, Any]] = {
    "chunk": {"chunks": (32, 16)},
    "shard": {"chunks": (4, 16), "shards": (32, 16)},
    "v2": {"chunks": (32, 16), "zarr_format": 2},
}


def in_processes(context: Any, work: Callable[..., None], *rows: tuple[Any, ...]) -> None:
    """``work(barrier, *row)`` for every row, each in a process of its own; all must end well.
    They begin together where they wait for the barrier."""
    barrier = context.Barrier(len(rows))
    processes = [context.Process(target=work, args=(barrier, *row)) for row in rows]
    for process in processes:
        process.start()
    finish(*processes)


def finish(*processes: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hung = [process for process in processes if process.exitcode is None]
    for process in hung:
        process.kill()
        process.join()
    assert not hung, "a process hangs"
    assert [process.exitcode for process in processes] == [0] * len(processes)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(k: int) -> None:
        barrier.wait()
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


# -- disjoint parts of one object ---------------------------------------------------------------------


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


# -- whole and partial writers ---------------------------------------------------------------------------


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


# -- appends -----------------------------------------------------------------------------------------------

GROWING: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (7, 3)},
    "shards": {"chunks": (4, 3), "shards": (12, 3)},
    "v2": {"chunks": (7, 3), "zarr_format": 2},
}


def append_blocks(barrier: Any, path: Path, k: int, times: int, buffered: bool) -> None:
    array = stash.open(path, "r+")
    barrier.wait()
    for turn in range(times):
        block = np.full((10, 3), 1 + k * times + turn)
        block[:, 1] = np.arange(10)
        if buffered:
            with array.writer() as writer:
                writer.append(block[:4])
                writer.append(block[4:])
        else:
            start = array.append(block)
            assert (array[start : start + 10] == block).all()


def blocks_of(found: np.ndarray) -> list[int]:
    """The blocks that an array is made of, each whole."""
    assert len(found) % 10 == 0
    blocks = found.reshape(-1, 10, found.shape[1])
    assert (blocks[:, :, 1] == np.arange(10)).all()
    assert (blocks[:, :, ::2] == blocks[:, :1, :1]).all()
    return blocks[:, 0, 0].tolist()  # type: ignore[no-any-return]


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
    barrier = threading.Barrier(1)

    def work(k: int) -> None:
        handle = stash.open(array.driver, "r+") if k % 2 else array
        for turn in range(3):
            block = np.full((10, 3), 1 + k * 3 + turn)
            block[:, 1] = np.arange(10)
            handle.append(block)

    assert barrier.parties == 1
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


# -- creating ------------------------------------------------------------------------------------------------


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


# -- killed ------------------------------------------------------------------------------------------------------


def die_at(call: str, number: int) -> None:
    """From here on, the ``number``-th use of an ``os`` function kills this process."""
    true = getattr(os, call)
    left = [number]

    def counted(*args: Any, **options: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return true(*args, **options)

    setattr(os, call, counted)


def append_and_die(path: Path, call: str, number: int) -> None:
    array = stash.open(path, "r+")
    die_at(call, number)
    block = np.full((10, 3), 99)
    block[:, 1] = np.arange(10)
    array.append(block)


@pytest.mark.parametrize("layout", GROWING)
@pytest.mark.parametrize("call", ["write", "link", "rename", "utime", "close"])
def test_an_append_killed_at_any_step(tmp_path: Path, layout: str, call: str) -> None:
    deaths = 0
    for number in range(100):
        path = tmp_path / str(number)
        stash.create(path, (0, 3), "i8", **GROWING[layout])
        append_blocks(threading.Barrier(1), path, 0, 1, False)
        child = fork.Process(target=append_and_die, args=(path, call, number))
        child.start()
        child.join(30)
        assert child.exitcode in (0, -signal.SIGKILL)
        array = stash.open(path, "r+")
        before = blocks_of(array[...])
        assert before in ([1], [1, 99])
        array.append(np.column_stack([np.full(10, 7), np.arange(10), np.full(10, 7)]))
        assert blocks_of(array[...]) == [*before, 7]
        array.resize((60, 3))
        assert not array[len(before) * 10 + 10 :].any()
        if child.exitcode == 0:
            break
        deaths += 1
    assert deaths < 99
    assert deaths >= (0 if call in ("link", "rename") else 2)


def write_for_ever(path: Path, grown: Path, pipe: Any) -> None:
    array, growing = stash.open(path, "r+"), stash.open(grown, "r+")
    pipe.send("started")
    turn = 0
    while True:
        turn += 1
        array[...] = turn
        array[0] = turn
        array[3:20, 2:9] = turn
        block = np.full((10, 3), turn)
        block[:, 1] = np.arange(10)
        growing.append(block)


@pytest.mark.parametrize("layout", ["chunks", "shards"])
def test_killed_writers_leave_whole_chunks_and_whole_appends(tmp_path: Path, layout: str) -> None:
    path, grown = tmp_path / "a", tmp_path / "b"
    array = stash.create(
        path, (32, 16), "i8", **LAYOUTS["chunk" if layout == "chunks" else "shard"]
    )
    growing = stash.create(grown, (0, 3), "i8", **GROWING[layout])
    blocks: list[int] = []
    for trial in range(4 * TRIALS):
        mine, theirs = fork.Pipe()
        child = fork.Process(target=write_for_ever, args=(path, grown, theirs))
        child.start()
        mine.recv()
        time.sleep(0.002 + 0.0031 * trial)
        child.kill()
        child.join()
        mine.close()
        theirs.close()
        found = array[...]
        # A whole write, or one with the parts of the same turn or not yet: two turns at most.
        assert len(np.unique(found)) <= 2
        assert np.ptp(found) <= 1
        now = blocks_of(growing.refresh()[...])
        assert now[: len(blocks)] == blocks
        growing.append(np.column_stack([np.full(10, -trial), np.arange(10), np.full(10, -trial)]))
        blocks = blocks_of(growing[...])
        assert blocks == [*now, -trial]
        array[1, 1] = found[1, 1]
    leftovers = [p for p in tmp_path.rglob(".*") if p.name.endswith((".partial", ".lock"))]
    list(array.driver.list())
    list(growing.driver.list())
    assert all(not p.exists() for p in leftovers)


# -- caches ------------------------------------------------------------------------------------------------------


def follow(path: Path, pipe: Any) -> None:
    array = stash.open(path, cache="1MiB")
    while (wanted := pipe.recv()) is not None:
        found = array[...]
        pipe.send(bool((found == wanted).all()) and bool((array[3:9, 2] == wanted[3:9, 2]).all()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cache_sees_what_other_processes_write(tmp_path: Path, layout: str) -> None:
    array = stash.create(tmp_path / "a", (32, 16), "i8", **LAYOUTS[layout])
    mine, theirs = fork.Pipe()
    reader = fork.Process(target=follow, args=(tmp_path / "a", theirs))
    reader.start()
    model = np.zeros((32, 16), int)
    for turn in range(1, 40):
        index: Any = [(turn % 32, turn % 16), slice(0, turn), (slice(None), turn % 16)][turn % 3]
        array[index] = turn
        model[index] = turn
        mine.send(model)
        assert mine.poll(30)
        assert mine.recv(), turn
    mine.send(None)
    finish(reader)


# -- starting processes ---------------------------------------------------------------------------------------------


def use(array: stash.Array, first: int) -> None:
    """Reads and writes, with threads and cache, as the only one or among others."""
    assert (array[:4] == 1).all()
    assert array[0, 0] == 1
    array[8 + first] = first
    assert (array[8 + first] == first).all()
    whole = np.full((4, 2048), 7.0)
    array[4:8] = whole
    assert (array[4:8] == whole).all()
    array.attrs[str(first)] = first


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("shards", [None, (8, 2048)])
def test_children_work_whatever_the_parent_did(
    tmp_path: Path, method: str, touched: bool, shards: Any
) -> None:
    # Chunks of 64 KiB: large enough for threads.
    how: dict[str, Any] = {"chunks": (4, 2048), "shards": shards, "cache": "64MiB", "threads": 2}
    array = stash.create(tmp_path / "a", (32, 2048), "f8", **how)
    array[:4] = 1
    array = stash.open(tmp_path / "a", "r+", cache="64MiB", threads=2)
    with ExitStack() as held:
        if touched:
            for _ in range(2):
                array[...]
            array[0:4], array[4:8], array[8:12]
            for _ in range(2):
                array[16] = 1
            # What another thread may hold at the moment of the fork.
            assert array._cache is not None
            held.enter_context(array._cache._lock)
            held.enter_context(workers._state().lock)
            for lock in {id(x): x for x in workers._state().stripes}.values():
                held.enter_context(lock)
        context: Any = multiprocessing.get_context(method)  # type: ignore[arg-type]
        children = [context.Process(target=use, args=(array, k)) for k in range(2)]
        for child in children:
            child.start()
        finish(*children)
    use(array, 2)
    assert [array[8 + k, 5] for k in range(3)] == [0, 1, 2]
    assert len(array.refresh().attrs) == 3


def test_forks_while_threads_are_at_work(tmp_path: Path) -> None:
    array = stash.create(
        tmp_path / "a", (32, 2048), "f8", chunks=(4, 2048), cache="64MiB", threads=2
    )
    array[:4] = 1
    stop = threading.Event()

    def busy(row: int) -> None:
        while not stop.is_set():
            array[row, :100] = row
            array[...]
            array[0:4], array[4:8]

    threads = [threading.Thread(target=busy, args=(row,), daemon=True) for row in (20, 21, 25)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(6 * TRIALS):
            child = fork.Process(target=use, args=(array, turn % 4))
            child.start()
            finish(child, seconds=30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert [array[8 + k, 5] for k in range(4)] == [0, 1, 2, 3]


def threads_first(array: stash.Array) -> None:
    """The first use in a child, by many threads at once."""
    in_threads(8, lambda k: use(array, k % 4))


def test_a_child_whose_threads_all_come_first(tmp_path: Path) -> None:
    array = stash.create(
        tmp_path / "a", (32, 2048), "f8", chunks=(4, 2048), cache="64MiB", threads=2
    )
    array[:4] = 1
    array[...]
    with array._cache._lock, workers._state().lock:  # type: ignore[union-attr]
        children = [fork.Process(target=threads_first, args=(array,)) for _ in range(3)]
        for child in children:
            child.start()
        finish(*children)


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
