"""Many requests at once from threads, a bounded number under way, answered as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

from tensorstash.cached import PerProcess
from tensorstash.threads import Task, Workers

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Window(Generic[Asked, Answer]):
    """Threads of one process, started with the first request; a forked child has its own."""

    def __init__(self, size: int) -> None:
        """At most ``size`` requests are under way."""
        self.size = size
        # A pool without work has no threads.
        self._pools = PerProcess(lambda: Workers(size, "tensorstash-window"))

    def each(
        self, work: Callable[[Asked], Answer], asked: Iterable[Asked]
    ) -> Iterator[tuple[int, Answer]]:
        """``(i, work(the i-th))`` in the order of arrival; taken from ``asked`` as places come
        free. The first error is raised, and what was not begun is dropped."""
        if self.size == 1:
            for i, one in enumerate(asked):
                yield i, work(one)
            return
        pool, under_way = self._pools.here(), dict[int, Task[Answer]]()
        pairs = iter(enumerate(asked))
        done: SimpleQueue[int] = SimpleQueue()

        def ask(i: int, one: Asked) -> Answer:
            try:
                return work(one)
            finally:
                done.put(i)

        try:
            while True:
                while len(under_way) < self.size:
                    pair = next(pairs, None)
                    if pair is None:
                        break
                    call = partial(ask, *pair)
                    task = pool.submit(call)
                    if task is None:
                        task = Task(call)
                        task.do()
                    under_way[pair[0]] = task
                if not under_way:
                    return
                i = done.get()
                yield i, under_way.pop(i).result()
        finally:
            for task in under_way.values():
                task.cancel()

    def close(self) -> None:
        """Let the threads end; the next request starts new ones."""
        self._pools.forget()
