"""Work that a thread may do in the background, and who needs it does where none has begun to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from ..threads import alone, submit

Answer = TypeVar("Answer")


class Task(Generic[Answer]):
    """One call of ``work``, each in one thread; ``waits``: it mostly waits for round trips."""

    def __init__(self, work: Callable[[], Answer], waits: bool) -> None:
        self._work = partial(alone, work)
        self._waits = waits
        self._future: Future[Any] | None = None

    def begin(self) -> None:
        """Have a thread do it."""
        self._future = submit(self._work, waits=self._waits)

    @property
    def running(self) -> bool:
        """Whether it was begun and is not done."""
        return self._future is not None and not self._future.done()

    def answer(self) -> Answer:
        """What the work answers or raises, waited for or done now."""
        if self._future is None or self._future.cancel():
            return self._work()
        answer: Answer = self._future.result()
        return answer

    def settle(self) -> None:
        """Nobody is at it any more; where nobody was yet, nobody will be."""
        if self._future is not None and not self._future.cancel():
            self._future.exception()
