"""A source gone through again and again, its blocks in another order each time. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..loading.permutation import key_of, permute
from ..loading.source import Blocks

Numbers = NDArray[np.int64]

_KEPT = 8  # tables of passes


class Passes:
    """The endless stream of a source's rows: every row once in each pass, those of a block next
    to each other, the blocks of a pass in an order of its own by ``seed``; without one, as they
    are stored."""

    def __init__(self, blocks: Blocks, seed: int | None, which: int) -> None:
        """``which`` tells sources of one seed apart."""
        self._blocks = blocks
        self._seed = seed
        self._which = which
        self.rows_each = int(blocks.bounds[-1])
        self._tables: dict[int, tuple[Numbers, Numbers]] = {}

    def rows(self, numbers: Numbers) -> Numbers:
        """The row at each number of the stream."""
        turn, within = np.divmod(numbers, self.rows_each)
        found = np.empty_like(numbers)
        for one in np.unique(turn).tolist():
            mine = turn == one
            dealt, starts = self._table(one)
            slot = np.searchsorted(starts, within[mine], side="right") - 1
            found[mine] = self._blocks.bounds[dealt[slot]] + within[mine] - starts[slot]
        order = self._blocks.order
        return found if order is None else order[found]

    def bounds(self, start: int, stop: int) -> Numbers:
        """Where blocks meet from number ``start`` to ``stop`` of the stream, both included."""
        each = self.rows_each
        pieces = [
            starts[:-1] + turn * each
            for turn in range(start // each, -(-stop // each))
            for starts in [self._table(turn)[1]]
        ]
        ends = np.array([start, stop], np.int64)
        return np.unique(np.clip(np.concatenate([*pieces, ends]), start, stop))

    def _table(self, turn: int) -> tuple[Numbers, Numbers]:
        """The blocks of a pass in order, and where each begins."""
        found = self._tables.get(turn)
        if found is None:
            count = len(self._blocks)
            dealt = np.arange(count)
            if self._seed is not None:
                dealt = permute(dealt, count, key_of(self._seed, self._which, turn))
            sizes = np.diff(self._blocks.bounds)[dealt]
            found = dealt, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
            kept = [*self._tables.items()][-_KEPT + 1 :]
            self._tables = dict([*kept, (turn, found)])
        return found
