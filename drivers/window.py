"""Many requests at once from threads, a bounded number under way, answered as they arrive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Window(Generic[Asked, Answer]):
    """Threads of one process, started with the first request; a forked child has its own."""

    def __init__(self, size: int) -> None:
        """At most ``size`` requests are under way."""
        self.size = size
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def each(
        self, work: Callable[[Asked], Answer], asked: Iterable[Asked]
    ) -> Iterator[tuple[int, Answer]]:
        """``(i, work(the i-th))`` in the order of arrival; taken from ``asked`` as places come
        free. The first error is raised, and what was not begun is dropped."""
        if self.size == 1:
            for i, one in enumerate(asked):
                yield i, work(one)
            return
        pool, under_way = self._pool(), dict[Future[Answer], int]()
        pairs = iter(enumerate(asked))
        try:
            while True:
                while len(under_way) < self.size:
                    pair = next(pairs, None)
                    if pair is None:
                        break
                    under_way[pool.submit(work, pair[1])] = pair[0]
                if not under_way:
                    return
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(done), done.result()
        finally:
            for future in under_way:
                future.cancel()

    def _pool(self) -> ThreadPoolExecutor:
        pid = os.getpid()
        # setdefault is atomic, and a pool without work has no threads: two first users agree.
        return self._pools.get(pid) or self._pools.setdefault(
            pid, ThreadPoolExecutor(self.size, "tensorstash-window")
        )

    def close(self) -> None:
        """Let the threads end; the next request starts new ones."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.shutdown(wait=False)
