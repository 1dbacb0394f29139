"""The epochs of a source, divided into batches and among ranks: all of a loader but the reading."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np

from ..coerce import parse_bytes, parse_whole
from ..errors import Invalid, counted, short
from .cuts import Numbers
from .dataloader_worker import check_shared_out
from .epochs import Epochs, Progress
from .order import Order
from .ordering import Kind, Ordering
from .pool import together
from .quality import amplification, evenness
from .room import Room
from .share import Share
from .source import Source
from .state import MOST_LANES
from .touched import repetition, scattered

Shuffle: TypeAlias = bool | Literal["exact"]


class Course:
    """Epochs of which each has every row of a source once, in an order that depends on ``seed``
    and the epoch's number alone, and which are resumed exactly from a state of under 250 bytes
    with any number of ranks, batch size and threads."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: Shuffle,
        seed: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        lanes: int,
        pool: int | None,
        pool_bytes: int | str,
    ) -> None:
        self.source = source
        self.batch_size = whole(batch_size, "batch_size", 1)
        self.rank = whole(rank, "rank", 0)
        self.world_size = whole(world_size, "world_size", 1)
        if self.rank >= self.world_size:
            raise Invalid(
                f"rank {self.rank} of {self.world_size}: ranks are counted from 0 and are fewer "
                "than world_size"
            )
        self._share = Share(self.batch_size, self.rank, self.world_size, bool(drop_last))
        room = Room(
            parse_whole(lanes, "lanes is", 1, MOST_LANES),
            None if pool is None else whole(pool, "pool", 1),
            parse_bytes(pool_bytes),
        )
        self._ordering = Ordering(_kind(shuffle), self._share, room)
        self._epochs = Epochs(source, self._ordering, parse_whole(seed, "seed is"))
        self._warned = 0

    def __len__(self) -> int:
        """Batches of the epoch that is next, for this rank as for every other: after
        :meth:`load_state_dict` those that are left of it. While one is under way, of that one."""
        return self._share.batches(self._epochs.rows(over=False))

    def __repr__(self) -> str:
        ranks = f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
        order = {"pooled": "shuffled", "exact": "shuffled exactly"}.get(self._ordering.kind)
        batches = f"batches of {self.batch_size}, {order or 'in order'}{ranks}"
        return f"<tensorstash.{type(self).__name__} {batches}, of {self.source!r}>"

    @property
    def dropped(self) -> int:
        """Rows that the epoch leaves out: what is left at its end, with ``drop_last``. Of the
        epoch begun last or, where one was loaded or named since, of what is left of that."""
        return self._share.dropped(self._epochs.rows(over=True))

    @property
    def padded(self) -> int:
        """Rows that come a second time at the epoch's end, that all ranks have as many; of the
        same epoch as :attr:`dropped`."""
        return self._share.padded(self._epochs.rows(over=True))

    @property
    def epoch(self) -> int:
        """The epoch that iterating will begin or go on with, where that was said, else the one
        begun last."""
        return self._epochs.epoch

    def set_epoch(self, epoch: int) -> None:
        """Iterating next begins this epoch; where :meth:`load_state_dict` named the same one, it
        goes on with it."""
        self._epochs.set(whole(epoch, "an epoch", 0))

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is that was begun last: numbers and short strings, under 250 bytes of
        JSON. Rows that were read ahead and not yielded are not counted."""
        return self._epochs.state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Iterating next yields what is left of the epoch that ``state`` tells of, each row once,
        whatever the number of ranks, the batch size and the threads were and are. After the
        state of an epoch's end it begins the next, unless :meth:`set_epoch` names that one. Rows
        that were added since the epoch began come in the next one, where the source is records
        (all of them) or arrays; of windows, patches and mixtures take those of the first rows.

        :class:`~tensorstash.errors.Invalid` for a state of other rows or another ``shuffle``.
        """
        self._epochs.load(state)

    def quality(self) -> dict[str, Any]:
        """How even the order is, and what it costs to read, found without reading anything.

        ``inflation`` is the spread of batch means over that of a true shuffle where the rows of
        a block are all alike (1.0: as even); ``blocks_per_batch`` how many blocks a global batch
        has rows of, on average and at least, beside a true shuffle's; ``read_amplification`` how
        many chunks this rank decodes over its part of them all, estimated from how rows lie: of
        ragged rows as if all had the mean length, end to end as they were added. ``pool`` is in
        blocks, and ``cut_by_budget`` where ``pool_bytes`` made it smaller than ``pool_wanted``.
        """
        state = self._epochs.state
        source = self._epochs.of(state)
        order = self._ordering.order(source, state)
        found: dict[str, Any] = {"order": state.order, "blocks": len(order.blocks)}
        if state.pool:
            wanted = self._ordering.room.wanted(source.blocks, self._share)
            found |= {"lanes": state.lanes, "pool": state.pool, "pool_wanted": wanted}
            found["cut_by_budget"] = state.pool < wanted
        found |= evenness(order, self._share)
        held = self._ordering.slots(source, state, order) > 0
        found["read_amplification"] = round(self._amplification(source, order, held), 2)
        return found

    def _amplification(self, source: Source, order: Order, held: bool) -> float:
        """Chunks decoded over those there are. Where a block has but a part of some chunks, these
        are decoded again for others, though every block is read once."""
        share, blocks = self._share, order.blocks
        by_blocks = amplification(order, share, held)
        if not held:
            window = next(share.windows(order, 0), None)
            if window is None:
                return by_blocks
            rows = order.rows(window.positions)
            batches = [rows[a:b] for a, b in pairwise(window.bounds)]
            count = share.batches(order.count) * share.world
            found = scattered(source, blocks, batches, count)
            return by_blocks if found is None else found
        in_order = self._ordering.kind == "in order"
        if in_order and getattr(source, "goes_on", False):
            return by_blocks

        def wanted(rows: int) -> Numbers:
            own: list[Numbers] = []
            for window in share.windows(order, 0):
                own.append(order.places(window.positions)[0])
                if sum(map(len, own)) >= rows:
                    break
            return np.concatenate([np.empty(0, np.int64), *own])

        size = together(source, blocks)
        return by_blocks * repetition(source, blocks, wanted, size, in_order)

    def _begin(self, level: int, rest: bool = False) -> Progress:
        """As :meth:`Epochs.next`; ``level``: how far up the stack the loop is."""
        check_shared_out(self.rank, self.world_size)
        rows = self._epochs.coming_rows(rest)
        padded = self._share.padded(rows)
        if padded and padded != self._warned:
            self._warned = padded
            what = "an epoch" if rows == len(self.source) else "the rest of the epoch"
            warnings.warn(
                f"{padded} of {counted(rows, 'row')} {'comes' if padded == 1 else 'come'} twice in "
                f"{what}, that {counted(self.world_size, 'rank has', 'ranks have')} as many; "
                f"drop_last=True drops {rows % self._share.whole} instead",
                stacklevel=level + 1,
            )
        return self._epochs.next(rest)


def _kind(shuffle: Any) -> Kind:
    if shuffle is True or shuffle is False:
        return "pooled" if shuffle else "in order"
    if shuffle == "exact":
        return "exact"
    raise Invalid(f"shuffle is False, True or 'exact', not {short(shuffle)}")


def whole(value: Any, what: str, least: int) -> int:
    """A whole number that arithmetic of positions can take."""
    return parse_whole(value, f"{what} is", least, 1 << 62)
