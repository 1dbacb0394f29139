"""Batches of a source, epoch after epoch, that threads read ahead of their use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Generic, TypeVar

from ..errors import NoMemory, counted
from ..threads import cores
from .ahead import Stop
from .batches import Batches, Epoch, Reads
from .course import Course, Shuffle, whole
from .dataloader_worker import check_shared_out
from .iteration import Iteration
from .memory import Memory
from .source import Source
from .state import State

Batch = TypeVar("Batch")

_FAR_THREADS = 16


class Feed(Course, Generic[Batch]):
    """The rows of a source in batches, epoch after epoch, read ahead by threads.

    Each iteration is a whole epoch, the next one, or the rest of the one that
    :meth:`load_state_dict` named; one that is broken off is over. Memory for blocks is kept from
    one to the next, and freed with this.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 1,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        lanes: int = 64,
        pool: int | None = None,
        pool_bytes: int | str = "256MiB",
        threads: int | None = None,
        prefetch: int = 4,
        finish: Callable[[Any], Batch] | None = None,
    ) -> None:
        """``shuffle=True`` reads each block once, and is as even as a pool of ``pool`` blocks
        allows: by default four for each row of a global batch, as far as a rank holds no more
        than ``pool_bytes``. ``shuffle="exact"`` is a true shuffle, which reads a block again for
        every batch that has a row of it, unless all of them fit into ``pool_bytes``.

        ``threads`` read blocks (by default 16 where reading mostly waits; else one a processor,
        but one alone where trying shows that more are no faster), and up to ``prefetch`` batches
        are ready before they are asked for; 0: no thread of its own. ``finish`` makes a batch of
        columns, ahead of its use; the default is the source's own ``present``.
        """
        super().__init__(
            source,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            lanes=lanes,
            pool=pool,
            pool_bytes=pool_bytes,
        )
        self.prefetch = whole(prefetch, "prefetch", 0)
        self._asked = None if threads is None else whole(threads, "threads", 1)
        self._finish = finish or source.present
        self._memory = Memory()

    @property
    def threads(self) -> int:
        """How many threads read."""
        if self._asked is not None:
            return self._asked
        if not self.prefetch:
            return 1
        return _FAR_THREADS if self._far else cores()

    @property
    def _far(self) -> bool:
        return bool(getattr(self.source, "far", False))

    def __iter__(self) -> Iteration[Batch]:
        """The next epoch's batches, or the rest of one that was resumed."""
        return Iteration(self._begin(2), self._batches, self.prefetch)

    def quality(self) -> dict[str, Any]:
        """See :meth:`Course.quality`; ``blocks_read`` counts those of the iteration begun last."""
        now = self._epochs.now
        return {**super().quality(), "blocks_read": 0 if now is None else now.reads.blocks}

    def _batches(self, state: State, position: int, reads: Reads, stop: Stop) -> Batches:
        """A method, so that what makes batches holds the feed and not the iteration."""
        check_shared_out(self.rank, self.world_size)  # a fork goes on with what was begun before
        source = self._epochs.of(state)
        order = self._ordering.order(source, state)
        epoch = Epoch(
            source,
            order,
            self._share,
            position,
            self._ordering.slots(source, state, order),
            self._ordering.room.aside(source),
            self.threads,
            # More than there are processors are asked for where reading waits, as on network disks.
            self._far or self.threads > cores(),
            self._far or self._asked is not None,
            self.prefetch,
            self._finish,
            reads,
            self._memory,
        )
        try:
            with closing(epoch.batches(stop)) as batches:
                yield from batches
        except NoMemory:
            raise
        except MemoryError as error:
            raise NoMemory(
                f"no memory for the batches of {counted(len(source), 'row')}: "
                f"{str(error)[:200]}; use smaller "
                "batches, smaller chunks, or fewer fields"
            ) from error
