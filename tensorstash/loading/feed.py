"""Batches of a source, epoch after epoch: read ahead by threads, resumable, the same for ever."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Generic, Literal, TypeVar

from ..dtype import short
from ..errors import Invalid
from ..threads import cores
from ..values import parse_bytes
from .ahead import Stop
from .batches import Batches, Epoch, Reads
from .epochs import Epochs
from .iteration import Iteration
from .ordering import Kind, Ordering
from .quality import amplification, evenness
from .room import Room
from .share import Share
from .source import Source
from .state import State

Batch = TypeVar("Batch")

_FAR_THREADS = 16


class Feed(Generic[Batch]):
    """The rows of a source in batches, epoch after epoch.

    Every epoch has every row once, in an order that depends on ``seed`` and the epoch's number
    alone; :meth:`state_dict` says in about 150 bytes how far it is, and is resumed exactly with
    any number of ranks, batch size and threads. Each iteration is a whole epoch, the next one, or
    the rest of the one that :meth:`load_state_dict` named; one that is broken off is over.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 1,
        *,
        shuffle: bool | Literal["exact"] = False,
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

        ``threads`` read blocks (by default one a processor; 16 where reading mostly waits), and
        up to ``prefetch`` batches are ready before they are asked for; 0: no thread of its own.
        ``finish`` makes a batch of columns, ahead of its use; the default is the source's own
        ``present``.
        """
        self.source = source
        self.batch_size = whole(batch_size, "batch_size", 1)
        self.rank = whole(rank, "rank", 0)
        self.world_size = whole(world_size, "world_size", 1)
        if self.rank >= self.world_size:
            raise Invalid(
                f"rank {self.rank} of {self.world_size}: ranks are counted from 0 and are fewer "
                "than world_size"
            )
        self.prefetch = whole(prefetch, "prefetch", 0)
        self._far = bool(getattr(source, "far", False))
        most = (_FAR_THREADS if self._far else cores()) if self.prefetch else 1
        self.threads = most if threads is None else whole(threads, "threads", 1)
        self._share = Share(self.batch_size, self.rank, self.world_size, bool(drop_last))
        room = Room(
            whole(lanes, "lanes", 1, 1 << 16),
            None if pool is None else whole(pool, "pool", 1),
            parse_bytes(pool_bytes),
        )
        ordering = Ordering(_kind(shuffle), self._share, room)
        self._epochs = Epochs(source, ordering, whole(seed, "seed", None))
        self._finish = finish or source.present
        self._warned = False

    def __len__(self) -> int:
        """Batches of a whole epoch, for this rank as for every other."""
        return self._share.batches(len(self.source))

    @property
    def dropped(self) -> int:
        """Rows that an epoch leaves out: what is left at the end, with ``drop_last``."""
        return self._share.dropped(len(self.source))

    @property
    def padded(self) -> int:
        """Rows that come a second time at an epoch's end, that all ranks have as many."""
        return self._share.padded(len(self.source))

    @property
    def epoch(self) -> int:
        """The epoch that iterating will begin or go on with, where that was said, else the one
        begun last."""
        return self._epochs.state.epoch

    def set_epoch(self, epoch: int) -> None:
        """Iterating next begins this epoch; where :meth:`load_state_dict` named the same one, it
        goes on with it."""
        self._epochs.set(whole(epoch, "an epoch", 0))

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is that was begun last: numbers and short strings, under 200 bytes of
        JSON. Rows that were read ahead and not yielded are not counted."""
        return self._epochs.state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Iterating next yields what is left of the epoch that ``state`` tells of, each row once,
        whatever the number of ranks, the batch size and the threads were and are. After the
        state of an epoch's end it begins the next, unless :meth:`set_epoch` names that one.

        :class:`~tensorstash.errors.Invalid` for a state of other rows or another ``shuffle``.
        """
        self._epochs.load(state)

    def __iter__(self) -> Iteration[Batch]:
        """The next epoch's batches, or the rest of one that was resumed."""
        if self.padded and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.padded} of {len(self.source)} rows come twice in an epoch, that "
                f"{self.world_size} ranks have as many; drop_last=True drops "
                f"{len(self.source) % self._share.whole} instead",
                stacklevel=2,
            )
        return Iteration(self._epochs.next(), self._batches, self.prefetch)

    def quality(self) -> dict[str, Any]:
        """How even the order is, and what it costs to read, found without reading anything.

        ``inflation`` is the spread of batch means over that of a true shuffle where the rows of
        a block are all alike (1.0: as even); ``blocks_per_batch`` how many blocks a global batch
        has rows of, on average and at least, beside a true shuffle's; ``read_amplification`` how
        many blocks this rank reads over its part of them all. ``pool`` is in blocks, and
        ``cut_by_budget`` where ``pool_bytes`` made it smaller than ``pool_wanted``.
        ``blocks_read`` counts those of the iteration begun last.
        """
        epochs, ordering = self._epochs, self._epochs.ordering
        state, now = epochs.state, epochs.now
        source = epochs.at(state.epoch)
        order = ordering.order(source, state)
        found: dict[str, Any] = {"order": state.order, "blocks": len(order.blocks)}
        if state.pool:
            wanted = ordering.room.wanted(source.blocks, self._share)
            found |= {"lanes": state.lanes, "pool": state.pool, "pool_wanted": wanted}
            found["cut_by_budget"] = state.pool < wanted
        found |= evenness(order, self._share)
        held = ordering.slots(source, state, order) > 0
        found["read_amplification"] = amplification(order, self._share, held)
        found["blocks_read"] = 0 if now is None else now.reads.blocks
        return found

    def _batches(self, state: State, position: int, reads: Reads, stop: Stop) -> Batches:
        """A method, so that what makes batches holds the feed and not the iteration."""
        ordering = self._epochs.ordering
        source = self._epochs.at(state.epoch)
        order = ordering.order(source, state)
        epoch = Epoch(
            source,
            order,
            self._share,
            position,
            ordering.slots(source, state, order),
            self.threads,
            self._far,
            self.prefetch,
            self._finish,
            reads,
        )
        with closing(epoch.batches(stop)) as batches:
            yield from batches


def _kind(shuffle: Any) -> Kind:
    if shuffle is True or shuffle is False:
        return "pooled" if shuffle else "in order"
    if shuffle == "exact":
        return "exact"
    raise Invalid(f"shuffle is False, True or 'exact', not {short(shuffle)}")


def whole(value: Any, what: str, least: int | None, most: int = 1 << 62) -> int:
    """A whole number, checked."""
    try:
        number = operator.index(value)
        if isinstance(value, bool) or (least is not None and not least <= number <= most):
            raise TypeError
    except TypeError:
        some = "a whole number" if least is None else f"a whole number from {least} on"
        raise Invalid(f"{what} is {some}, not {short(value)}") from None
    return number
