"""The order of an epoch: a pure function from positions to rows, of any position at any time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from .cuts import Cuts, Numbers
from .permutation import key_of, permute
from .source import Blocks

Lanes = NDArray[np.uint16]


class Order(ABC):
    """Every row once, at the positions 0 to :attr:`count`.

    Nothing in it grows with the rows, at most with the blocks; how a stretch of positions is cut
    to be asked for changes nothing.
    """

    def __init__(self, blocks: Blocks) -> None:
        """``blocks``: what :meth:`places` refers to."""
        self.blocks = blocks
        self.count = int(blocks.bounds[-1])

    @abstractmethod
    def places(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """The block of the row at each position, and the row's number within the block."""

    @property
    def lane_count(self) -> int:
        """How many lanes there are."""
        return 1

    def lanes(self, positions: Numbers) -> Lanes | None:
        """What rows are divided among ranks by, so that ranks touch few of the same blocks;
        ``None``: by position."""
        return None

    @abstractmethod
    def ends(self) -> Numbers:
        """For each block, a position by which all of its rows are over."""

    def rows(self, positions: Numbers) -> Numbers:
        """The row at each position."""
        block, within = self.places(positions)
        found: Numbers = self.blocks.bounds[block] + within
        return found if self.blocks.order is None else self.blocks.order[found]


class InOrder(Order):
    """Row after row."""

    def __init__(self, blocks: Blocks) -> None:
        """Of rows that lie in ``blocks``."""
        super().__init__(in_runs(blocks))
        self._cuts = Cuts(self.blocks.bounds)

    def places(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.places`."""
        return self._cuts.find(positions)

    def ends(self) -> Numbers:
        """See :meth:`Order.ends`."""
        return self.blocks.bounds[1:]

    def rows(self, positions: Numbers) -> Numbers:
        """See :meth:`Order.rows`."""
        return positions


class Exact(Order):
    """A true shuffle by ``(seed, epoch)``: every row may come anywhere, so every block may be
    needed at any time."""

    def __init__(self, blocks: Blocks, seed: int, epoch: int) -> None:
        """Of rows that lie in ``blocks``."""
        super().__init__(in_runs(blocks))
        self._cuts = Cuts(self.blocks.bounds)
        self._key = key_of(seed, epoch)

    def places(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.places`."""
        return self._cuts.find(self.rows(positions))

    def ends(self) -> Numbers:
        """See :meth:`Order.ends`."""
        return np.full(len(self.blocks), self.count)

    def rows(self, positions: Numbers) -> Numbers:
        """See :meth:`Order.rows`."""
        return permute(positions, max(1, self.count), self._key)


def in_runs(blocks: Blocks) -> Blocks:
    """``blocks`` where they are runs of rows, else runs about as long: to find the block of a
    row among others would take a table of all rows."""
    if blocks.order is None:
        return blocks
    rows = int(blocks.bounds[-1])
    return Blocks.regular(rows, max(1, -(-rows // max(1, len(blocks)))))
