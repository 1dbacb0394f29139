"""Which rows of each batch are one rank's, and how many blocks a rank may hold for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .order import Numbers, Order
from .source import Blocks, Source

_ROWS = 4096  # to find the places of fewer at once costs more for each
_POSITIONS = 1 << 18  # of all ranks, at once
_BATCHES = 4  # blocks in the pool for each row of a global batch: 12 % inflation at the worst
_ASIDE = 8  # the part of the memory, one in so many, that is left to blocks on their way


class Window(NamedTuple):
    """Some batches in a row: the ``positions`` of this rank's rows, batch ``k`` those from
    ``bounds[k]`` to ``bounds[k + 1]``; ``after[k]`` is how far the epoch is when it is done."""

    positions: Numbers
    bounds: list[int]
    after: list[int]


@dataclass(frozen=True)
class RankBatches:
    """What is rank ``rank``'s of every global batch, ``batch_size`` rows for each of ``world``.

    Which rows make a global batch is the order's alone. Ranks have as many batches each, and as
    many rows of each batch: what is left at the end is dropped (``drop_last``), or filled up with
    the epoch's first rows until ranks can divide it.
    """

    batch_size: int
    rank: int = 0
    world: int = 1
    drop_last: bool = False

    @property
    def whole(self) -> int:
        """Rows of a global batch."""
        return self.batch_size * self.world

    def batches(self, count: int) -> int:
        """How many batches ``count`` rows make."""
        return count // self.whole if self.drop_last else -(-count // self.whole)

    def dropped(self, count: int) -> int:
        """How many of ``count`` rows no rank gets."""
        return count % self.whole if self.drop_last else 0

    def padded(self, count: int) -> int:
        """How many rows come once more, at the end of ``count``."""
        return 0 if self.drop_last else -(count % self.whole) % self.world

    def windows(self, order: Order, start: int) -> Iterator[Window]:
        """The batches of the epoch from position ``start`` on."""
        whole, size = self.whole, self.batch_size
        full = max(0, order.count - start) // whole
        step = max(1, min(_ROWS // size, _POSITIONS // whole))
        for first in range(0, full, step):
            some = min(step, full - first)
            at = start + first * whole
            positions = np.arange(at, at + some * whole).reshape(some, whole)
            yield Window(
                self._own(order, positions, size).reshape(-1),
                list(range(0, some * size + 1, size)),
                list(range(at + whole, at + some * whole + 1, whole)),
            )
        at = start + full * whole
        rest = order.count - at
        if rest > 0 and not self.drop_last:
            pad = np.arange(-rest % self.world) % order.count
            positions = np.concatenate([np.arange(at, order.count), pad])[None]
            each = positions.size // self.world
            yield Window(self._own(order, positions, each).reshape(-1), [0, each], [order.count])

    def positions(self, order: Order, start: int) -> Numbers:
        """Positions of every row that is this rank's."""
        own = [window.positions for window in self.windows(order, start)]
        return np.concatenate([np.empty(0, np.int64), *own])

    def _own(self, order: Order, positions: Numbers, size: int) -> Numbers:
        """This rank's of the positions of several global batches, one a line."""
        if self.world == 1:
            return positions
        mine = slice(self.rank * size, (self.rank + 1) * size)
        lanes = order.lanes(positions.reshape(-1))
        if lanes is None:
            return positions[:, mine]
        # A run of lanes, for few blocks; but in the order of the stream, in which lanes take
        # turns, so that any part of the batch is as mixed as it is.
        chosen = np.argsort(lanes.reshape(positions.shape), axis=1, kind="stable")[:, mine]
        return np.take_along_axis(positions, np.sort(chosen, axis=1), axis=1)


@dataclass(frozen=True)
class PoolBudget:
    """What the user allows: ``lanes`` at most, and a ``pool`` of so many blocks, or one that fits
    in ``limit`` bytes a rank with all that is held beside it.

    What comes of it depends on nothing of one machine, such as its processors: all ranks must
    come to the same.
    """

    lanes: int
    pool: int | None
    limit: int

    def wanted(self, blocks: Blocks, ranks: RankBatches) -> int:
        """The pool that was asked for, or would be good enough."""
        wanted = _BATCHES * ranks.whole if self.pool is None else self.pool
        return max(1, min(wanted, len(blocks)))

    def pooled(self, source: Source, ranks: RankBatches) -> tuple[int, int]:
        """The lanes and the pool of a chunk-aware shuffle."""
        blocks = source.blocks
        pool = self.wanted(blocks, ranks)
        if self.pool is None:
            # All ranks together, for each holds its own lanes.
            held = self.limit // mean_bytes(source, blocks) * ranks.world
            if held < len(blocks):
                begun = ranks.whole * len(blocks) // max(1, int(blocks.bounds[-1])) + 1
                held = max(1, held - held // _ASIDE - begun)
                # Beside the pool, a block for each lane: that of which it has begun some rows.
                pool = max(1, min(pool, max(held - self.lanes, held // 2)))
        return max(1, min(self.lanes, pool, len(blocks))), pool

    def prefetch_blocks(self, source: Source) -> int:
        """How many blocks may be on their way that are not wanted yet."""
        return max(1, self.limit // _ASIDE // mean_bytes(source, source.blocks))

    def fits(self, source: Source) -> bool:
        """Whether a rank may hold every block."""
        blocks = source.blocks
        return len(blocks) * mean_bytes(source, blocks) <= self.limit


class EpochPlan(NamedTuple):
    """An epoch as one rank reads it: the rows, their order, and this rank's batches of them.

    ``slots``: how many blocks to make room for; 0: none, every batch is read by itself.
    ``prefetch_blocks``: how many may be on their way that are not wanted yet.
    """

    source: Source
    order: Order
    ranks: RankBatches
    slots: int
    prefetch_blocks: int


def mean_bytes(source: Source, blocks: Blocks) -> int:
    """Of a block."""
    rows = int(blocks.bounds[-1])
    return max(1, source.row_bytes * -(-rows // max(1, len(blocks))))
