"""Shared memory is there while a process holds it, and gone after: however its holders end."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.drivers.shm import ShmDriver, hold
from tensorstash.drivers.shm import driver as shm
from tensorstash.errors import Closed, NotFound
from tests.support.races import TRIALS, finish, fork, spawn
from tests.support.shm_names import child, fresh, left


@pytest.fixture
def name() -> Iterator[str]:
    yield from fresh()


def test_the_last_to_let_go_removes_the_store(name: str) -> None:
    first = stash.create(f"shm://{name}/a", (4,), "i4")
    second = stash.open(f"shm://{name}/a", "r+")
    second[...] = 3
    del first
    gc.collect()
    assert second[...].tolist() == [3] * 4
    second.driver.close()
    assert left(name) == []
    with pytest.raises(Closed, match="was closed, and is gone as nobody else held it"):
        second[...]
    assert left(name) == []
    with pytest.raises(NotFound):
        stash.open(f"shm://{name}/a")


def test_a_closed_driver_connects_again_while_another_holds(name: str) -> None:
    driver, other = ShmDriver(name), ShmDriver(f"{name}/inner")
    driver.put("inner/k", b"1")
    for _ in range(2):
        driver.close()
        assert other.get("k") == b"1" and driver.get("inner/k") == b"1"
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        driver.colour  # noqa: B018


def hold_and_wait(pipe: Any, name: str) -> None:
    driver = ShmDriver(name)
    pipe.send([*driver.list()])
    pipe.recv()
    driver.put("mine", b"1")


@pytest.mark.parametrize("context", [fork, spawn], ids=["fork", "spawn"])
def test_the_last_process_to_end_removes_the_store(name: str, context: Any) -> None:
    driver = ShmDriver(name)
    driver.put("k", b"1")
    process, pipe = child(context, hold_and_wait, name)
    assert pipe.recv() == ["k"]
    del driver
    assert left(name), "the child holds it still"
    pipe.send("go on")
    finish(process)
    assert left(name) == []


def use_and_wait(pipe: Any, driver: ShmDriver) -> None:
    pipe.recv()
    assert driver.get("k") == b"1"
    pipe.send("seen")
    pipe.recv()


def test_a_forked_child_holds_what_its_parent_held(name: str) -> None:
    driver = ShmDriver(name)
    driver.put("k", b"1")
    process, pipe = child(fork, use_and_wait, driver)
    driver.close()
    assert left(name)
    pipe.send("look")
    assert pipe.recv() == "seen"
    pipe.send("end")
    finish(process)
    assert left(name) == []


def test_a_forked_child_that_ends_takes_nothing_away(name: str) -> None:
    driver = ShmDriver(name)
    driver.put("k", b"1")
    for how in ("close", "exit", "_exit"):
        pid = os.fork()
        if pid == 0:
            if how == "close":
                driver.close()
            if how == "exit":
                hold._end_unarranged()
            os._exit(0)
        os.waitpid(pid, 0)
        assert driver.get("k") == b"1" and ShmDriver(name).get("k") == b"1"


ENDS = """
import os, sys
import multiprocessing
from tensorstash.drivers.shm import ShmDriver
driver = ShmDriver(sys.argv[1])
driver.put("k", b"1")
def wait():
    import time
    time.sleep(0.3)
    assert driver.get("k") == b"1"
if sys.argv[2] == "child":
    process = multiprocessing.get_context("fork").Process(target=wait)
    process.start()
elif sys.argv[2] == "fork" and os.fork() == 0:
    wait()
elif sys.argv[2] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["", "child", "fork", "raise"])
def test_nothing_is_left_when_a_program_ends(name: str, how: str) -> None:
    subprocess.run([sys.executable, "-c", ENDS, name, how], check=how != "raise")
    end = time.monotonic() + 60
    while left(name) and time.monotonic() < end:  # a plain fork is waited for by nobody
        time.sleep(0.01)
    assert left(name) == []


# -- killed --------------------------------------------------------------------------------------


def put_and_wait(pipe: Any, name: str) -> None:
    array = stash.create(f"shm://{name}/a", (4,), "i4", codecs=None)
    array[...] = 1
    pipe.send("put")
    time.sleep(60)


def test_what_a_killed_process_leaves_is_removed_by_whoever_comes_next(name: str) -> None:
    process, pipe = child(fork, put_and_wait, name)
    assert pipe.recv() == "put"
    assert left(name)
    process.kill()
    process.join()
    other = ShmDriver(f"other-{name}")
    assert left(name) == [f"tensorstash-{os.geteuid()}-other-{name}"]
    del other


def test_a_store_whose_holders_were_killed_begins_empty(name: str) -> None:
    for _ in range(2):
        process, pipe = child(fork, put_and_wait, name)
        assert pipe.recv() == "put"
        process.kill()
        process.join()
        driver = ShmDriver(name)
        assert [*driver.list()] == []
        del driver


def test_a_dead_store_is_not_taken_over_by_one_that_missed_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, pipe = child(fork, put_and_wait, name)
    assert pipe.recv() == "put"
    monkeypatch.setattr(hold, "_sweep", lambda *_: process.kill() or process.join())
    assert [*ShmDriver(name).list()] == []


def test_a_folder_that_is_removed_before_it_is_locked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = hold._lock, []

    def late(fd: int, mode: int) -> bool:
        calls.append(mode)
        if len(calls) == 1:  # as another process may: it finds an empty folder that nobody holds
            hold._remove_unheld(str(folder))
        return lock(fd, mode)

    folder = Path(shm._memory(), f"tensorstash-{os.geteuid()}-{name}")
    monkeypatch.setattr(hold, "_lock", late)
    driver = ShmDriver(name)
    assert driver._hold is not None and driver._hold.inode == folder.stat().st_ino
    driver.put("k", b"1")
    ShmDriver(f"other-{name}").close()
    assert driver.get("k") == b"1"


def test_one_of_two_holders_is_killed(name: str) -> None:
    process, pipe = child(fork, put_and_wait, name)
    assert pipe.recv() == "put"
    array = stash.open(f"shm://{name}/a")
    process.kill()
    process.join()
    another = ShmDriver(f"other-{name}")
    assert array[...].tolist() == [1] * 4
    del another


def write_for_ever(pipe: Any, name: str) -> None:
    driver = ShmDriver(name)
    pipe.send("started")
    for turn in range(10**9):
        driver.put("k", bytes([turn % 256]) * 50_000)
        driver.put("k", bytes([turn % 256]) * 60_000, if_tag=driver.tag("k"))


def test_a_killed_writer_leaves_whole_values(name: str) -> None:
    driver = ShmDriver(name)
    for _ in range(5):
        process, pipe = child(fork, write_for_ever, name)
        assert pipe.recv() == "started"
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        value = driver.get("k")
        assert value is None or (len(value) in (50_000, 60_000) and len({*value}) == 1)
        assert {*driver.list()} <= {"k"}


def come_and_go(barrier: Any, names: list[str], seed: int) -> None:
    """Every store is held or empty: what one put is there for as long as it holds the store."""
    draw = random.Random(seed)
    barrier.wait()
    for turn in range(60):
        driver = ShmDriver(draw.choice(names))
        key = f"{seed}-{turn}"
        assert not any(known.startswith(f"{seed}-") for known in driver.list()), "nobody held it"
        driver.put(key, b"1")
        assert driver.get(key) == b"1"
        if draw.random() < 0.2:
            time.sleep(0.001)
        assert driver.get(key) == b"1" and os.path.exists(driver.root)
        driver.delete(key)
        if seed % 4 == 3 and turn == 30:
            driver.put(key, b"1")
            os.kill(os.getpid(), signal.SIGKILL)


def test_processes_that_come_and_go_lose_nothing(name: str) -> None:
    for _ in range(TRIALS):
        keeper = ShmDriver(f"kept-{name}")
        keeper.put("kept", b"1")
        names = [f"{name}-{k}" for k in range(3)]
        barrier = fork.Barrier(6)
        processes = [
            fork.Process(target=come_and_go, args=(barrier, names, seed), daemon=True)
            for seed in range(6)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(90)
        assert [p.exitcode for p in processes] == [0, 0, 0, -signal.SIGKILL, 0, 0]
        assert keeper.get("kept") == b"1"
        ShmDriver(f"swept-{name}").close()
        del keeper
        assert left(name) == []


def test_threads_that_come_and_go(name: str) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for turn in range(100):
                driver = ShmDriver(name)
                driver.put(f"{threading.get_ident()}", b"1")
                assert driver.get(f"{threading.get_ident()}") == b"1"
                if turn % 3 == 0:
                    driver.close()
                del driver
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert left(name) == []


def test_one_descriptor_a_name(name: str) -> None:
    before = len(os.listdir("/dev/fd"))
    drivers = [ShmDriver(f"{name}/{k}") for k in range(50)]
    assert len(os.listdir("/dev/fd")) == before + 1
    del drivers
