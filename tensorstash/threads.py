"""Worker threads for work that releases the GIL: started on first use, forgotten after fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from .turn import turn, wait
from .workers import Task, Workers

_Block = TypeVar("_Block")


IO_THREADS = 32
"""The most that wait for round trips at once, in all reads and writes of a process."""

THREAD_BYTES = 64 << 10
"""Tasks below this are not worth handing the GIL over for: on two cores, threading 32 KiB
chunks made a gather 3.6 times slower than the plain loop."""


class _Process:
    """Per-process state. A forked child has none of its parent's threads and may have
    inherited locks that nobody will release, so it starts afresh."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pools: dict[bool, Workers] = {}
        self.stripes = [threading.Lock() for _ in range(256)]


_processes: dict[int, _Process] = {}
_local = threading.local()


def _state() -> _Process:
    pid = os.getpid()
    # setdefault is atomic: two threads that come first agree on one.
    return _processes.get(pid) or _processes.setdefault(pid, _Process())


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_for(tasks: int, task_bytes: int, most: int | None) -> int:
    """Threads worth having for ``tasks`` that each handle ``task_bytes`` of decoded data: one
    where handing the interpreter's lock over costs more than it gains, else at most ``most``
    (``None``: as many as there are processors)."""
    if tasks < 2 or task_bytes < THREAD_BYTES:
        return 1
    return min(tasks, cores() if most is None else most)


def key_lock(*names: str) -> threading.Lock:
    """The lock that this process' threads share for a key. Different keys may share one, so
    never hold two."""
    stripes = _state().stripes
    return stripes[hash(names) % len(stripes)]


def submit(work: Callable[[], _Block], waits: bool = False) -> Task[_Block] | None:
    """Run ``work`` on the pool, in the background, as the caller would (``np.errstate`` is part
    of that); ``None`` where no thread can be started. ``waits``: it mostly waits for round trips,
    and goes to the pool of many threads."""
    return _pool(waits).submit(partial(copy_context().run, _marked, work))


def begin(work: Callable[[], _Block]) -> Callable[[], _Block]:
    """Have ``work``, which mostly waits, done in the background; returns a function that waits
    for what it returns, and does it itself where no thread has begun to."""
    task = submit(work, waits=True)
    if task is None:
        return work
    return lambda: work() if task.cancel() else task.result()


def once(change: Callable[[], None]) -> None:
    """Run ``change`` while no other thread of this process does."""
    with turn(_state().lock):
        change()


def spread(
    blocks: Iterable[_Block],
    make_work: Callable[[], Callable[[_Block], Any]],
    threads: int,
    waits: bool = False,
) -> None:
    """Do the work of every block once, on ``threads`` threads, the caller's among them.

    Each thread calls ``make_work`` once and uses its answer for the blocks it takes. The first
    error stops the rest and is raised here. Called from a worker thread, everything runs in
    that thread: nested use cannot deadlock. ``waits`` as in :func:`submit`.
    """
    if threads <= 1 or getattr(_local, "worker", False):
        work = make_work()
        for block in blocks:
            work(block)
        return
    todo = iter(blocks)
    lock = threading.Lock()
    stopped = False
    asked: list[Task[None] | None] = []
    begun: list[threading.Lock] = []
    errors: list[BaseException] = []

    def drain() -> None:
        nonlocal stopped
        work: Callable[[_Block], Any] | None = None
        try:
            while not stopped:
                with turn(lock):
                    block = next(todo, todo)  # the iterator itself marks the end
                if block is todo:
                    return
                work = work or make_work()
                work(block)  # type: ignore[arg-type]
        except BaseException:
            stopped = True
            raise

    def help_drain() -> None:
        done = threading.Lock()
        done.acquire()
        begun.append(done)
        try:
            drain()
        except BaseException as error:
            errors.append(error)
        finally:
            done.release()

    def finish() -> None:
        # One that has not begun has nothing left to do: do not wait for a busy pool.
        nonlocal stopped
        stopped = True
        for helper in asked:
            if helper is not None:
                helper.cancel()
        for done in begun:
            wait(done)

    try:
        for _ in range(threads - 1):
            asked.append(submit(help_drain, waits))
        drain()
        finish()
        if errors:
            raise errors[0]
    except BaseException:
        finish()  # again, where that was interrupted: nothing goes on behind the caller's back
        errors.clear()  # the frames that their tracebacks keep, this one too, keep the list
        raise


def alone(work: Callable[[], _Block]) -> _Block:
    """Run ``work`` in this thread, and in it all that it would spread over threads."""
    before = getattr(_local, "worker", False)
    _local.worker = True
    try:
        return work()
    finally:
        _local.worker = before


class Shared(Iterator[_Block]):
    """An iterator that several threads take from."""

    def __init__(self, items: Iterable[_Block]) -> None:
        self._items: Iterator[_Block] = iter(items)
        self._lock = threading.Lock()

    def __next__(self) -> _Block:
        with turn(self._lock):
            return next(self._items)

    def stop(self) -> None:
        """Nothing more is to be taken."""
        self._items = iter(())


def _pool(waits: bool) -> Workers:
    state = _state()
    if waits not in state.pools:
        with turn(state.lock):
            if waits not in state.pools:
                count = IO_THREADS if waits else max(2, cores())
                state.pools[waits] = Workers(count, "tensorstash")
    return state.pools[waits]


def _marked(work: Callable[[], _Block]) -> _Block:
    _local.worker = True
    return work()
