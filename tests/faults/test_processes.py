"""Processes: killed at any step, started by any method, following each other's writes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash import threads as workers
from tensorstash.cached import Cached
from tests.support.races import (
    GROWING,
    LAYOUTS,
    TRIALS,
    append_blocks,
    blocks_of,
    finish,
    fork,
    in_threads,
)

# -- killed ------------------------------------------------------------------------------------


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


# -- caches ------------------------------------------------------------------------------------


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


# -- starting processes ------------------------------------------------------------------------


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
            held.enter_context(workers._processes.here().lock)
            for lock in {id(x): x for x in workers._processes.here().stripes}.values():
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


class Slow:
    """Its property takes until it is told."""

    def __init__(self, told: threading.Event) -> None:
        self.told = told

    @Cached
    def value(self) -> list[int]:
        """Something new each time it is worked out."""
        assert self.told.wait(30)
        return [1]


def use_at_once(thing: Slow) -> None:
    told = threading.Event()
    told.set()
    assert Slow(told).value == [1]


def test_properties_that_are_kept_are_not_locked_in_children() -> None:
    # functools.cached_property has a lock a class until Python 3.12, which a child inherits.
    thing = Slow(threading.Event())
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(thing.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    child = fork.Process(target=use_at_once, args=(thing,))
    child.start()
    finish(child, seconds=20)
    thing.told.set()
    for thread in threads:
        thread.join()
    assert all(value is thing.value for value in found)
    root = Path(stash.__file__).parent
    for path in [
        *root.rglob("*.py"),
        *(root / "drivers").glob("*.py"),
        *(root / "codecs").glob("*.py"),
    ]:
        assert "import cached_property" not in path.read_text(), path


def threads_first(array: stash.Array) -> None:
    """The first use in a child, by many threads at once."""
    in_threads(8, lambda k: use(array, k % 4))


def test_a_child_whose_threads_all_come_first(tmp_path: Path) -> None:
    array = stash.create(
        tmp_path / "a", (32, 2048), "f8", chunks=(4, 2048), cache="64MiB", threads=2
    )
    array[:4] = 1
    array[...]
    with array._cache._lock, workers._processes.here().lock:  # type: ignore[union-attr]
        children = [fork.Process(target=threads_first, args=(array,)) for _ in range(3)]
        for child in children:
            child.start()
        finish(*children)
