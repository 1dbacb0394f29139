"""How much of a read is under way at once, so that it stays within what memory there may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from ..driver import Driver, located
from ..threads import cores
from .budget import Budget

_AHEAD = 4  # the part of a limit, one in so many, that is read ahead at most
_ROUND_BYTES = 32 << 20  # that a driver may have asked for, whatever it has under way
_nothing: AbstractContextManager[Any] = nullcontext()


class ReadRoom:
    """Memory for the reads of one array, whose chunks take ``each`` bytes beside the result."""

    def __init__(self, budget: Budget, nbytes: tuple[int, int], driver: Driver, path: str) -> None:
        """``nbytes``: what reading a chunk takes, and what there must be room for at once. The
        array is at ``path`` below ``driver``."""
        self._budget = budget
        self._each, self._chunk = nbytes
        self._concurrency = driver.capabilities.concurrency
        self._place = partial(located, driver, path)

    @property
    def fits(self) -> bool:
        """Whether there is room for one chunk, by the limit of now."""
        least = self._budget.least
        return least is None or self._chunk <= least

    def one(self) -> AbstractContextManager[Any]:
        """For one chunk."""
        budget = self._budget
        if not budget.limited:
            return _nothing
        return budget.share("native", self._each, 1, self._chunk, self._place)

    def threads(self, most: int | None) -> AbstractContextManager[int]:
        """For a chunk a thread of the kernel, of ``most`` threads (``None``: one a processor)."""
        wanted = cores() if most is None else most
        return self._budget.share("native", self._each, wanted, self._chunk, self._place)

    def spare(self, count: int) -> AbstractContextManager[int]:
        """For one chunk after another of ``count`` that nobody waits for, if that can be had at
        once: whoever wants them then may have what this would wait for."""
        least = self._budget.least
        if least is None:
            return nullcontext(1)
        if count * self._chunk > least // _AHEAD:
            return nullcontext(0)
        return self._budget.share("native", self._each, 1, self._chunk, self._place, wait=False)

    @contextmanager
    def blocks(self, count: int, threads: int, joined: bool) -> Iterator[tuple[int, int]]:
        """For ``count`` chunks that threads read in blocks: threads, and blocks. ``joined``: those
        of a block are read in one piece."""
        # Some more blocks than threads, so that none waits long at the end.
        pieces = threads * 4 if threads > 1 else 1
        if not self._budget.limited:
            yield threads, pieces
            return
        most = count if joined else threads
        with self._budget.share("native", self._each, most, self._chunk, self._place) as units:
            threads = min(threads, units)
            if joined:
                pieces = max(pieces, -(-count * threads // units))
            yield threads, pieces

    @contextmanager
    def window(self, count: int, threads: int, joined: bool) -> Iterator[tuple[int, int]]:
        """For ``count`` chunks of a remote store: threads, and chunks that are asked for together.
        ``joined``: several may come in one piece."""
        if not self._budget.limited:
            yield threads, count
            return
        most = max(self._concurrency + threads, _ROUND_BYTES // max(1, self._each))
        most = count if joined else min(most, count)
        with self._budget.share("in_flight", self._each, most, self._chunk, self._place) as units:
            # Of chunks that come one by one, no more are under way in any case.
            yield min(threads, units), count if units == most else units
