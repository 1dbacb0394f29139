"""The batches of an epoch: what to read for them and when, one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, TypeVar

from .ahead import Stop
from .cuts import Numbers
from .memory import Memory
from .order import Order
from .pace import Pace
from .pool import Pool
from .readers import Job, Readers
from .share import Share
from .source import Columns, Source

_Item = TypeVar("_Item")

Batches = Generator[tuple[Any, int], None, None]
"""Batches, each with the position that the epoch has reached when it is done."""


@dataclass
class Reads:
    """What one rank has read of an epoch so far."""

    blocks: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Epoch:
    """An epoch of ``source`` from position ``start`` on, as one rank has it.

    ``slots``: how many blocks to make room for; 0: none, every batch is read by itself.
    ``aside``: how many may be on their way that are not wanted yet. ``threads`` read at once, and
    mostly wait if ``far``; unless that is ``decided``, only where it helps. ``ahead`` is how many
    batches may be read at once. ``finish`` makes a batch of columns.
    """

    source: Source
    order: Order
    share: Share
    start: int
    slots: int
    aside: int
    threads: int
    far: bool
    decided: bool
    ahead: int
    finish: Callable[[Columns], Any]
    reads: Reads
    memory: Memory

    def batches(self, stop: Stop) -> Batches:
        """Every batch of the rest of the epoch."""
        return self._pooled(stop) if self.slots else self._direct(stop)

    def _pooled(self, stop: Stop) -> Batches:
        """Batches of rows of blocks that are read once and held while rows of them come."""
        order, reads = self.order, self.reads
        pool = Pool(
            self.source,
            order.blocks,
            order.ends(),
            self.slots,
            self.aside,
            Pace(self.threads, self.decided),
            # Where reading does not wait, this thread reads what it would wait for.
            Readers(self.threads if self.far else self.threads - 1, self.far),
            stop,
            self.memory,
        )

        def planned() -> Iterator[tuple[Numbers, Numbers, list[int], list[int]]]:
            for positions, bounds, after in self.share.windows(order, self.start):
                block, within = order.places(positions)
                pool.plan(block)
                yield block, within, bounds, after

        try:
            # One window further is planned, that its first blocks be read in time.
            for block, within, bounds, after in _one_ahead(planned()):
                for (a, b), position in zip(pairwise(bounds), after, strict=True):
                    stop.check()
                    columns = pool.take(block[a:b], within[a:b])
                    pool.release(position)
                    reads.rows += b - a
                    reads.blocks = pool.loaded
                    yield self.finish(columns), position
        finally:
            pool.close()

    def _direct(self, stop: Stop) -> Batches:
        """Batches each of which is one read of its rows, some of them at once where that pays."""
        pace = Pace(self.threads, self.decided)
        readers = Readers(self.threads, self.far)
        take = self.source.take

        def reads() -> Iterator[tuple[Job[Columns], int, int]]:
            for positions, bounds, after in self.share.windows(self.order, self.start):
                rows = self.order.rows(positions)
                for (a, b), position in zip(pairwise(bounds), after, strict=True):
                    yield Job(partial(take, rows[a:b])), b - a, position

        coming = reads()
        begun: deque[tuple[Job[Columns], int, int]] = deque()
        try:
            while True:
                stop.check()
                most = max(1, min(self.threads, self.ahead)) if pace.together else 1
                for read in islice(coming, max(0, most - len(begun))):
                    begun.append(read)
                    readers.add(read[0])
                if most > 1:
                    readers.go()
                if not begun:
                    return
                job, size, position = begun.popleft()
                columns = readers.finish(job)
                pace.took(job.seconds)
                self.reads.rows += size
                yield self.finish(columns), position
        finally:
            readers.hold()


def _one_ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    held: list[_Item] = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.pop(0)
    yield from held
