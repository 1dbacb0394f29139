"""Batches of a source, epoch after epoch, that threads read ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, Generic, TypeVar, Unpack

from ..columns import Columns
from ..errors import NoMemory, counted
from ..memory import Budget, budget_of
from ..threads import cores
from .dataloader_worker import check_shared_out
from .order import Numbers
from .pool import NoRoom, Pool, SlotBuffers
from .prefetch import Held, Prefetcher, Stop
from .ranks import EpochPlan
from .sampler import (
    EpochOptions,
    EpochPosition,
    EpochSampler,
    check_options,
    shows_epoch_options,
    whole,
)
from .source import Source
from .workers import Task, ThreadTuner, WorkQueue

Batch = TypeVar("Batch")
_Item = TypeVar("_Item")

Batches = Generator[tuple[Any, int], None, None]
"""Batches, each with the position that the epoch has reached when it is done."""

_REMOTE_THREADS = 16


@dataclass(frozen=True)
class Reading:
    """How a loader reads: ``threads`` at once, which mostly wait if ``waits``; unless that is
    ``decided``, only where it helps. ``ahead`` is how many batches may be read at once.
    ``finish`` makes a batch of columns, and ``buffers`` is where memory for blocks is kept."""

    threads: int
    waits: bool
    decided: bool
    ahead: int
    finish: Callable[[Columns], Any]
    buffers: SlotBuffers
    budget: Budget

    def together(self, nbytes: int) -> int:
        """How many batches of ``nbytes`` are read at once, at most."""
        most = max(1, min(self.threads, self.ahead))
        room = self.budget.room() if self.budget.limited else None
        return most if room is None else max(1, min(most, room // max(1, nbytes)))

    def tuner(self) -> ThreadTuner:
        """Which finds out whether threads help."""
        return ThreadTuner(self.threads, self.decided)


class BatchReader:
    """The batches of an epoch from ``start`` on, as one rank has them: what to read for them and
    when, one after another."""

    def __init__(
        self, plan: EpochPlan, how: Reading, position: EpochPosition, start: int, stop: Stop
    ) -> None:
        """What is read is noted in ``position``, of which nothing else is used; ``stop`` ends it
        before its time."""
        self._plan = plan
        self._how = how
        self._position = position
        self._start = start
        self._stop = stop

    def batches(self) -> Batches:
        """Every batch of the rest of the epoch. Where there is no memory for the blocks of a batch,
        it and all others are read by themselves, which are the same."""
        if self._plan.slots:
            try:
                yield from self._pooled()
            except NoRoom:
                pass
            else:
                return
        yield from self._direct()

    def _pooled(self) -> Batches:
        """Batches of rows of blocks that are read once and held while rows of them come."""
        how, order, stop = self._how, self._plan.order, self._stop
        # Where reading does not wait, this thread reads what it would wait for.
        queue = WorkQueue(how.threads if how.waits else how.threads - 1, how.waits)
        pool = Pool(self._plan, how.tuner(), queue, stop, how.buffers)

        def planned() -> Iterator[tuple[Numbers, Numbers, list[int], list[int]]]:
            for positions, bounds, after in self._plan.ranks.windows(order, self._start):
                block, within = order.locate(positions)
                pool.plan(block)
                yield block, within, bounds, after

        try:
            # One window further is planned, that its first blocks be read in time.
            for block, within, bounds, after in _one_ahead(planned()):
                for (a, b), position in zip(pairwise(bounds), after, strict=True):
                    stop.check()
                    columns = pool.take(block[a:b], within[a:b])
                    pool.release(position)
                    self._position.blocks_read = pool.loaded
                    self._start = position
                    yield how.finish(columns), position
        finally:
            pool.close()

    def _direct(self) -> Batches:
        """Batches each of which is one read of its rows, some of them at once where that pays."""
        how = self._how
        tuner = how.tuner()
        queue = WorkQueue(how.threads, how.waits)
        coming = self._reads()
        nbytes = self._plan.ranks.batch_size * self._plan.source.row_bytes
        begun: deque[tuple[Task[Columns], int]] = deque()
        try:
            while True:
                self._stop.check()
                most = how.together(nbytes) if tuner.together else 1
                for read in islice(coming, max(0, most - len(begun))):
                    begun.append(read)
                    queue.add(read[0])
                if most > 1:
                    queue.go()
                if not begun:
                    return
                task, position = begun.popleft()
                columns = queue.finish(task)
                tuner.took(task.seconds)
                yield how.finish(columns), position
        finally:
            queue.hold()

    def _reads(self) -> Iterator[tuple[Task[Columns], int]]:
        order, take = self._plan.order, self._plan.source.take
        for positions, bounds, after in self._plan.ranks.windows(order, self._start):
            rows = order.rows(positions)
            for (a, b), position in zip(pairwise(bounds), after, strict=True):
                yield Task(partial(take, rows[a:b])), position


def _one_ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    held: list[_Item] = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.pop(0)
    yield from held


Make = Callable[[EpochPosition, int, Stop], Batches]
"""The batches of an epoch from a position on."""


class Iteration(Iterator[Batch], Generic[Batch]):
    """The batches of one epoch, or of the rest of one, made ahead by a thread that ends with this.

    In a forked child it goes on, by itself, from where it was.
    """

    def __init__(
        self,
        position: EpochPosition,
        make: Make,
        prefetch: int,
        held: Callable[[], Held],
        anywhere: bool,
    ) -> None:
        """``position`` is kept up to date; with ``prefetch`` 0 there is no thread. ``held``: makes
        what notes the batches that are ready. ``anywhere``: batches may be made by this thread."""
        self._make_held = held
        self._anywhere = anywhere
        self._position = position
        self._make = make
        self._prefetch = prefetch
        self._open = True
        self._begin()

    def _begin(self) -> None:
        make = partial(self._make, self._position, self._position.position)
        self._pid = os.getpid()
        self._items: Prefetcher[tuple[Any, int]] | Batches
        if self._prefetch:
            self._items = Prefetcher(make, self._prefetch, self._make_held(), self._anywhere)
        else:
            self._items = make(Stop())

    def __next__(self) -> Batch:
        if self._pid != os.getpid() and self._open:
            self._begin()
        try:
            batch, self._position.position = next(self._items)
        except StopIteration:
            if self._open:
                self._position.position = self._position.state.rows
                self._end()
            raise
        except BaseException:
            self._end()
            raise
        return batch  # type: ignore[no-any-return]

    def close(self) -> None:
        """End it here: there are no more batches, and nothing is read any more."""
        self._end()
        if self._pid == os.getpid():
            self._items.close()

    def _end(self) -> None:
        self._open, self._position.over = False, True

    def __del__(self) -> None:
        if hasattr(self, "_position"):  # else an interrupt came before the first line of it all
            self._position.over = True  # one that was broken off


class BatchLoader(Generic[Batch]):
    """The rows of a source in batches, epoch after epoch, read ahead by threads.

    Each iteration is a whole epoch, the next one, or the rest of the one that
    :meth:`load_state_dict` named; one that is broken off is over. Memory for blocks is kept from
    one to the next, and freed with this. Which rows come when is its :attr:`sampler`'s to say.
    """

    @shows_epoch_options()
    def __init__(
        self,
        source: Any,
        batch_size: int = 1,
        *,
        threads: int | None = None,
        prefetch: int = 4,
        finish: Callable[[Any], Batch] | None = None,
        memory_limit: int | str | None = None,
        **options: Unpack[EpochOptions],
    ) -> None:
        """A loader, at the beginning of epoch 0.

        Args:
            source: a source, or an object that has the members of one.
            batch_size: rows of a batch, for each rank.
            threads: how many read blocks at once; if left out, 16 where reading mostly waits, else
                one a processor, but one alone where trying shows that more are no faster.
            prefetch: batches that are ready before they are asked for, at most; 0: no thread of its
                own. None is where the loop does next to nothing with a batch, as to hand it over
                would take longer.
            finish: makes a batch of columns, ahead of its use; if left out, the source's own
                ``present``.
            memory_limit: bytes that blocks and batches of this loader take together; what reading
                takes is within the limits of the handles and of the process.
            options: which rows come when: see :class:`~tensorstash.loading.sampler.EpochSampler`.
        """
        check_options(options, self)
        self.sampler = EpochSampler(source, batch_size, **options)
        self.prefetch = whole(prefetch, "prefetch", 0)
        self._asked = None if threads is None else whole(threads, "threads", 1)
        self._finish = finish or self.sampler.source.present
        self._presents = finish is None
        self._budget = budget_of(memory_limit)
        self._buffers = SlotBuffers(self._budget)

    def __len__(self) -> int:
        """Batches of the epoch that is next, for this rank as for every other: after
        :meth:`load_state_dict` those that are left of it. While one is under way, of that one."""
        return len(self.sampler)

    def __repr__(self) -> str:
        return self.sampler.described(type(self).__name__)

    def __iter__(self) -> Iteration[Batch]:
        """The next epoch's batches, or the rest of one that was resumed."""
        held = partial(Held, self._budget, lambda: self.batch_size * self.source.row_bytes)
        # What a user makes of batches, as by `transform`, is made in the background alone.
        plain = self._presents or getattr(self._finish, "anywhere", False)
        anywhere = plain and self.source.in_any_thread
        return Iteration(self.sampler.begin(2), self._batches, self.prefetch, held, anywhere)

    @property
    def source(self) -> Source:
        """What the rows are of."""
        return self.sampler.source

    @property
    def batch_size(self) -> int:
        """Rows of a batch, of each rank."""
        return self.sampler.batch_size

    @property
    def rank(self) -> int:
        """Which rank this is, from 0 on."""
        return self.sampler.rank

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        return self.sampler.world_size

    @property
    def dropped(self) -> int:
        """Rows that the epoch leaves out; see :attr:`EpochSampler.dropped`."""
        return self.sampler.dropped

    @property
    def padded(self) -> int:
        """Rows that come a second time at the epoch's end; see :attr:`EpochSampler.padded`."""
        return self.sampler.padded

    @property
    def epoch(self) -> int:
        """The epoch that iterating will begin or go on with, where that was said, else the one
        begun last."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Iterating next begins this epoch; where :meth:`load_state_dict` named the same one, it
        goes on with it."""
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is that was begun last: numbers and short strings, under 250 bytes of
        JSON. Rows that were read ahead and not yielded are not counted."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Iterating next yields what is left of the epoch that ``state`` tells of, each row once,
        whatever the number of ranks, the batch size and the threads were and are; see
        :meth:`EpochSampler.load_state_dict`.

        :class:`~tensorstash.errors.Invalid` for a state of other rows or another ``shuffle``.
        """
        self.sampler.load_state_dict(state)

    def quality(self) -> dict[str, Any]:
        """How even the order is, and what it costs to read, found without reading anything; see
        :meth:`EpochSampler.quality`. ``blocks_read`` counts those of the iteration begun last."""
        now = self.sampler.position
        room = self._buffers.account.room() if self._budget.limited else None
        found = self.sampler.quality(room)
        return {**found, "blocks_read": 0 if now is None else now.blocks_read}

    @property
    def threads(self) -> int:
        """How many threads read."""
        if self._asked is not None:
            return self._asked
        if not self.prefetch:
            return 1
        return _REMOTE_THREADS if self.source.remote else cores()

    def _batches(self, position: EpochPosition, start: int, stop: Stop) -> Batches:
        """A method, so that what makes batches holds the loader and not the iteration."""
        # A fork goes on with what was begun before.
        check_shared_out(self.rank, self.world_size)
        try:
            yield from self._read(position, start, stop)
        except NoMemory:
            raise
        except MemoryError as error:
            raise NoMemory(
                f"no memory for the batches of {counted(len(self.source), 'row')}: "
                f"{str(error)[:200]}; use smaller "
                "batches, smaller chunks, or fewer fields"
            ) from error

    def _read(self, position: EpochPosition, start: int, stop: Stop) -> Batches:
        plan = self.sampler.plan(position.state)
        threads, remote = self.threads, self.source.remote
        how = Reading(
            threads,
            # More than there are processors are asked for where reading waits, as on network disks.
            remote or threads > cores(),
            remote or self._asked is not None,
            self.prefetch,
            self._finish,
            self._buffers,
            self._budget,
        )
        reader = BatchReader(plan, how, position, start, stop)
        with closing(reader.batches()) as batches:
            yield from batches
