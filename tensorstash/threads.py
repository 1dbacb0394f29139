"""Worker threads for work that releases the GIL: started on first use, forgotten after fork."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from itertools import chain, compress, islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from .cached import PerProcess
from .turn import turn, wait

_Block = TypeVar("_Block")


IO_THREADS = 32
"""The most that wait for round trips at once, in all reads and writes of a process."""

THREAD_BYTES = 64 << 10
"""Tasks below this are not worth handing the GIL over for: on two cores, threading 32 KiB
chunks made a gather 3.6 times slower than the plain loop."""


class _Process:
    """What the threads of one process share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pools: dict[bool, Workers] = {}
        self.stripes = [threading.Lock() for _ in range(256)]


_processes = PerProcess(_Process)
_local = threading.local()


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
    stripes = _processes.here().stripes
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
    with turn(_processes.here().lock):
        change()


def spread(
    blocks: Iterable[_Block],
    make_work: Callable[[], Callable[[_Block], Any]],
    threads: int,
    waits: bool = False,
    leaf: bool = False,
) -> None:
    """Do the work of every block once, on ``threads`` threads, the caller's among them.

    Each thread calls ``make_work`` once and uses what it returns for the blocks it takes. The first
    error stops the rest and is raised here. Called from a worker thread, everything runs in
    that thread: nested use cannot deadlock; not so where ``leaf`` says that the work waits for no
    other. ``waits`` as in :func:`submit`.
    """
    if threads <= 1 or (getattr(_local, "worker", False) and not leaf):
        work = make_work()
        for block in blocks:
            work(block)
        return
    todo = iter(blocks)
    first = [*islice(todo, 1)]  # what makes blocks may have nothing left to do
    if not first:
        return
    todo = chain(first, todo)
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


def nested() -> bool:
    """Whether this is a worker's thread, or one that was told to do its work alone."""
    return bool(getattr(_local, "worker", False))


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
    state = _processes.here()
    if waits not in state.pools:
        with turn(state.lock):
            if waits not in state.pools:
                count = IO_THREADS if waits else max(2, cores())
                state.pools[waits] = Workers(count, "tensorstash")
    return state.pools[waits]


def _marked(work: Callable[[], _Block]) -> _Block:
    _local.worker = True
    return work()


# -- the pool --------------------------------------------------------------------------
#
# ``concurrent.futures`` guards its pools and futures by conditions, whose methods are Python's: a
# Ctrl-C within one leaves its lock held, and then a thread, or the whole pool, waits for ever. Here
# each step that must not be half done is one call of C.


Result = TypeVar("Result")


class Task(Generic[Result]):
    """Work that a worker does once, unless it is called off before."""

    __slots__ = ("_claim", "_done", "_errors", "_value", "_work")

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work: Callable[[], Result] | None = work
        self._value: Result
        self._errors: list[BaseException] = []
        self._claim: dict[str, bool] = {}  # setdefault is one step: who comes first has it
        self._done = threading.Lock()
        self._done.acquire()

    def cancel(self) -> bool:
        """Call it off; whether it had not begun. Then it never does, and has no result. To ask
        again, after an interrupt say, changes nothing."""
        return not self._claim.setdefault("begun", False)

    @property
    def ended(self) -> bool:
        """Whether it was done or called off."""
        return not self._claim.get("begun", True) or not self._done.locked()

    def end(self) -> None:
        """Call it off; where it has begun, wait until it is done."""
        if not self.cancel():
            wait(self._done)

    def result(self) -> Result:
        """What it returned or raised, once it is done; never for one that was called off. An error
        is handed over, once: it would keep this task, and the frames that wait for it."""
        wait(self._done)
        if self._errors:
            raise self._errors.pop()
        return self._value

    def do(self) -> None:
        """Do it, where nobody did or called it off: for workers, whom no signal interrupts."""
        if self._work is None or not self._claim.setdefault("begun", True):
            return
        work, self._work = self._work, None
        try:
            self._value = work()
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._done.release()
            del self, work


class _Crew:
    """What the threads of a pool share. They do not hold the pool: it ends them when it goes."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.idle: deque[None] = deque()
        self.threads: list[threading.Lock] = []
        """A lock for each thread, which holds it until it ends."""


class Workers:
    """Up to ``most`` threads of this process, each started when there is work and none is idle.

    They end when nothing refers to the pool any more, and when the interpreter ends; what was
    submitted is done before. A forked child has none of them: make another pool there."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._crew = _Crew()
        _crews.add(self._crew)
        # Called by C when the pool goes: whatever is no task ends the threads.
        self._gone = weakref.ref(self, self._crew.queue.put)

    def submit(self, work: Callable[[], Result]) -> Task[Result] | None:
        """Have ``work`` done in the background, after what was submitted before; ``None`` where
        that cannot be, as no thread can be started or the interpreter ends."""
        crew, task = self._crew, Task(work)
        if _ending:
            return None
        try:
            crew.idle.pop()
        except IndexError:
            if len(crew.threads) < self._most and not self._start():
                return None
        crew.queue.put(task)
        return task

    def _start(self) -> bool:
        """Start one more thread; whether there is any."""
        crew = self._crew
        with turn(crew.lock):
            if len(crew.threads) < self._most:
                held = threading.Lock()
                held.acquire()
                begun = map(start_new_thread, (_work,), ((crew, held, self._name, self._gone),))
                try:
                    # To start it and to note that it runs is one call of C.
                    any(map(crew.threads.append, compress((held,), begun)))
                except RuntimeError:  # the system has no more
                    return bool(crew.threads)
        return True


def _work(crew: _Crew, held: threading.Lock, name: str, gone: object) -> None:
    """What a thread does. ``gone`` is kept by all of them: it outlives the pool."""
    threading.current_thread().name = name
    # Debuggers and coverage ask for this of threads that ``threading`` starts.
    sys.settrace(threading.gettrace())
    try:
        while isinstance(task := crew.queue.get(), Task):
            task.do()
            del task
            crew.idle.append(None)
        crew.queue.put(task)  # for the next one to end by
    finally:
        held.release()


_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()
_ending: list[bool] = []


def _end_all() -> None:
    """Before the interpreter is taken apart under the threads."""
    _ending.append(True)
    crews = [crew for crew in [*_crews] if crew.pid == os.getpid()]
    for crew in crews:
        crew.queue.put(None)
    for crew in crews:
        for held in [*crew.threads]:
            wait(held)


atexit.register(_end_all)
