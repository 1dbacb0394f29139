"""Many writers and readers at once: how to start them, and what they agree on.

``TENSORSTASH_TRIALS`` says how often each race is run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.testing.counting import Call, FailingDriver

TRIALS = int(os.environ.get("TENSORSTASH_TRIALS", "3"))

fork = multiprocessing.get_context("fork")
spawn = multiprocessing.get_context("spawn")

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
        os.kill(process.pid, signal.SIGABRT)  # pytest's faulthandler prints where its threads are
        process.join(10)
        process.kill()
        process.join()
    assert not hung, f"{len(hung)} of {len(processes)} processes hang; stderr tells where"
    assert [process.exitcode for process in processes] == [0] * len(processes)


def in_threads(count: int, work: Callable[[int], Any], seconds: float = 90) -> None:
    """Run ``work(k)`` in threads at once, which must end within ``seconds``."""
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
        thread.join(seconds)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


class Dying(FailingDriver):
    """Ends its process at a call."""

    def __init__(self, driver: Driver, number: int) -> None:
        def when(call: Call) -> None:
            if call.number == number:
                os._exit(9)

        super().__init__(driver, when)


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
