"""A queue of tasks that threads work off, and whether more threads than one pay."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, Generic, TypeVar

from ..threads import Task as Drain
from ..threads import alone, submit
from ..turn import wait

Result = TypeVar("Result")
_SOME = 8  # tasks, by one thread alone and then by each of several
_EACH = 2  # tasks of each thread, however large
_WORTH = 0.8  # of the time: less gain than that is not worth the processors it takes


class Task(Generic[Result]):
    """One call of ``work``, by one thread; ``seconds`` is how long it took."""

    __slots__ = ("_done", "_error", "_result", "_work", "seconds")

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._result: Result
        self._error: BaseException | None = None
        self.seconds = 0.0
        self._done = threading.Lock()
        self._done.acquire()

    def do(self) -> None:
        """Do it; whoever took it from the line must."""
        began = perf_counter()
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self.seconds = perf_counter() - began
            self._done.release()

    def wait(self) -> None:
        """Until it is done."""
        wait(self._done)

    def result(self) -> Result:
        """What it returned or raised; it is done. An error is handed over: it would keep this, and
        its traceback the frames that wait for it, which keep the source."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._result


class WorkQueue:
    """Up to ``threads`` threads of the pool, which do tasks one after another for as long as there
    are any: to hand every task over by itself would cost more than small ones take. ``waits``:
    the tasks mostly wait for round trips. For one thread to use.
    """

    def __init__(self, threads: int, waits: bool) -> None:
        self.threads = threads
        self._waits = waits
        self._waiting: deque[Task[Any]] = deque()
        self._at_work: list[Drain[None]] = []

    def add(self, *tasks: Task[Any]) -> None:
        """Have them done after those that were added before."""
        self._waiting.extend(tasks)

    def go(self) -> None:
        """Have threads come, where there are tasks for more."""
        self._at_work = [task for task in self._at_work if not task.ended]
        for _ in range(min(self.threads - len(self._at_work), len(self._waiting))):
            task = submit(self._drain, self._waits)
            if task is not None:
                self._at_work.append(task)

    def finish(self, task: Task[Result]) -> Result:
        """Have it done now; what it returned or raised."""
        try:
            self._waiting.remove(task)
        except ValueError:
            task.wait()
        else:
            alone(task.do)
        return task.result()

    def hold(self) -> list[Task[Any]]:
        """Take those that none has come to from the line, and wait for the others."""
        held: list[Task[Any]] = []
        try:
            while True:
                held.append(self._waiting.popleft())
        except IndexError:
            pass
        for task in self._at_work:
            task.end()
        self._at_work.clear()
        return held

    def _drain(self) -> None:
        line = self._waiting
        try:
            while True:
                line.popleft().do()
        except IndexError:
            pass


class ThreadTuner:
    """Times some tasks done by one thread, and some by ``threads`` at once, and decides.

    Threads hand Python's lock to each other several times for every chunk. Where decoding is
    cheap that takes longer than decoding, by how much depends on the machine and on who else
    wants the lock, and one thread is as fast with half the work; where it is dear, or files come
    from a disk, threads win. ``decided`` says so without trying. For one thread to use.
    """

    def __init__(self, threads: int, decided: bool) -> None:
        self.together = decided and threads > 1
        self._threads = threads
        self._alone: list[float] = []
        self._others: list[float] = []
        self._tasks = 0
        self._open = not decided and threads > 1

    def took(self, seconds: float, parts: int = 1) -> None:
        """A task of so many parts took so long, done as :attr:`together` had it. A few large tasks
        tell as much as many small ones."""
        if not self._open:
            return
        some = [seconds / parts] * parts
        if not self.together:
            self._alone += some
            self.together = len(self._alone) >= _SOME
            return
        self._tasks += 1
        self._others += some
        if self._tasks >= _EACH * self._threads and len(self._others) >= _SOME * self._threads:
            # The first ones were begun while the threads were, and the middle bears a few such.
            each = median(self._others) / self._threads
            self.together = each < _WORTH * median(self._alone)
            self._open = False
