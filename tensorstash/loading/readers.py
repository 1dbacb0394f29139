"""Threads that do what stands in a line, and who needs it done where none has come to it yet."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Generic, TypeVar

from ..threads import Task, alone, submit
from ..turn import wait

Answer = TypeVar("Answer")


class Job(Generic[Answer]):
    """One call of ``work``, by one thread; ``seconds`` is how long it took."""

    __slots__ = ("_answer", "_done", "_error", "_work", "seconds")

    def __init__(self, work: Callable[[], Answer]) -> None:
        self._work = work
        self._answer: Answer
        self._error: BaseException | None = None
        self.seconds = 0.0
        self._done = threading.Lock()
        self._done.acquire()

    def do(self) -> None:
        """Do it; whoever took it from the line must."""
        began = perf_counter()
        try:
            self._answer = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self.seconds = perf_counter() - began
            self._done.release()

    def wait(self) -> None:
        """Until it is done."""
        wait(self._done)

    def result(self) -> Answer:
        """What it answered or raised; it is done. An error is handed over: it would keep this, and
        its traceback the frames that wait for it, which keep the source."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._answer


class Readers:
    """Up to ``threads`` threads of the pool, which do jobs one after another for as long as there
    are any: to hand every job over by itself would cost more than small ones take. ``waits``: the
    jobs mostly wait for round trips. For one thread to use.
    """

    def __init__(self, threads: int, waits: bool) -> None:
        self.threads = threads
        self._waits = waits
        self._line: deque[Job[Any]] = deque()
        self._at_work: list[Task[None]] = []

    def add(self, *jobs: Job[Any]) -> None:
        """Have them done after those that were added before."""
        self._line.extend(jobs)

    def go(self) -> None:
        """Have threads come, where there are jobs for more."""
        self._at_work = [task for task in self._at_work if not task.ended]
        for _ in range(min(self.threads - len(self._at_work), len(self._line))):
            task = submit(self._drain, self._waits)
            if task is not None:
                self._at_work.append(task)

    def finish(self, job: Job[Answer]) -> Answer:
        """Have it done now; what it answered or raised."""
        try:
            self._line.remove(job)
        except ValueError:
            job.wait()
        else:
            alone(job.do)
        return job.result()

    def hold(self) -> list[Job[Any]]:
        """Take those that none has come to from the line, and wait for the others."""
        held: list[Job[Any]] = []
        try:
            while True:
                held.append(self._line.popleft())
        except IndexError:
            pass
        for task in self._at_work:
            task.end()
        self._at_work.clear()
        return held

    def _drain(self) -> None:
        line = self._line
        try:
            while True:
                line.popleft().do()
        except IndexError:
            pass
