"""A pool of threads that no interrupt leaves half locked.

``concurrent.futures`` guards its pools and futures by conditions, whose methods are Python's: a
Ctrl-C within one leaves its lock held, and then a thread, or the whole pool, waits for ever. Here
each step that must not be half done is one call of C.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable
from itertools import compress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from .turn import turn, wait

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
