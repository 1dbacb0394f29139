"""The order of a mixture's epoch: sources take turns, each in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..cached import Cached
from ..loading.cuts import Numbers
from ..loading.order import Lanes, Order
from ..loading.source import Blocks
from .schedule import Schedule

_LANES = 1 << 16  # more than an order has


class MixedOrder(Order):
    """Positions dealt to sources by a :class:`~tensorstash.sources.schedule.Schedule`; the turns
    of each put in order by an order of its own, over the blocks that are the source's."""

    def __init__(self, schedule: Schedule, blocks: Blocks, orders: Sequence[Order]) -> None:
        """``blocks`` are those of ``orders``, one after another."""
        super().__init__(blocks)
        self._schedule = schedule
        self._orders = list(orders)
        counts = [len(order.blocks) for order in orders]
        self._first = np.cumsum([0, *counts[:-1]])

    def places(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.places`."""
        source, turn = self._schedule.find(positions)
        block, within = np.empty_like(turn), np.empty_like(turn)
        for k in np.unique(source).tolist():
            mine = source == k
            at, within[mine] = self._orders[k].places(turn[mine])
            block[mine] = at + self._first[k]
        return block, within

    def lanes(self, positions: Numbers) -> Lanes | None:
        """See :meth:`Order.lanes`: those of one source after those of another."""
        source, turn = self._schedule.find(positions)
        found = np.empty(len(positions), np.uint16)
        for k, (order, first) in enumerate(zip(self._orders, self._lane, strict=True)):
            mine = source == k
            lanes = order.lanes(turn[mine])
            if lanes is None:
                return None
            found[mine] = lanes + np.uint16(first)
        return found

    @Cached
    def _lane(self) -> list[int]:
        """The first lane of each source; every lane has a row among a source's first ones."""
        first = [0]
        for order in self._orders:
            lanes = order.lanes(np.arange(min(order.count, _LANES)))
            first.append(first[-1] + (0 if lanes is None else int(lanes.max(initial=0)) + 1))
        return first[:-1]

    def ends(self) -> Numbers:
        """See :meth:`Order.ends`."""
        found = []
        for k, order in enumerate(self._orders):
            last = np.maximum(order.ends(), 1) - 1
            found.append(self._schedule.position(k, last) + 1)
        return np.concatenate(found)


class InSources:
    """A mixture's rows source after source, each source's in the order of its turns: what
    ``Blocks.order`` is, found where it is indexed instead of kept."""

    def __init__(self, schedule: Schedule, counts: Sequence[int]) -> None:
        """``counts``: rows of each source."""
        self._schedule = schedule
        self._bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, places: Any) -> Numbers:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        source = np.searchsorted(self._bounds, places, side="right") - 1
        found = np.empty_like(places)
        for k in np.unique(source).tolist():
            mine = source == k
            found[mine] = self._schedule.position(k, places[mine] - self._bounds[k])
        return found  # type: ignore[no-any-return]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Numbers:
        return self[:].astype(dtype or np.int64, copy=False)
