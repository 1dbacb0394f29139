"""The chunk-aware shuffle: as even as its pool of blocks is large, and every block read once."""

from __future__ import annotations

import numpy as np

from .cuts import Cuts, Numbers
from .order import Lanes, Order
from .permutation import derived, key_of, permute
from .source import Blocks
from .turns import Turns

_BLOCKS, _GROUPS, _END = range(3)  # what a key is for


class Pooled(Order):
    """A shuffle by ``(seed, epoch)`` that needs about ``pool + lanes`` blocks at a time.

    Blocks are shuffled and divided into ``lanes`` of about one length. The rows of a lane are
    shuffled within groups, ``pool / lanes`` blocks long; the stream takes one row of each lane in
    turn, so that a batch of as many rows has rows of as many blocks. Lanes begin new groups at
    different times, so that blocks are needed one after another and not in bursts. The last rows
    are shuffled across lanes as well: some lanes are a block longer, and the last batches would
    have rows of these alone.
    """

    def __init__(self, blocks: Blocks, seed: int, epoch: int, lanes: int, pool: int) -> None:
        """Of rows that lie in ``blocks``. There are never more ``lanes`` than blocks or
        ``pool``."""
        super().__init__(blocks)
        count, rows = len(blocks), self.count
        self._key, self._group_key, self._end_key = (key_of(seed, epoch, use) for use in range(3))
        self._dealt = permute(np.arange(count), max(1, count), self._key)
        sizes = np.diff(blocks.bounds)[self._dealt]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._cuts = Cuts(self._starts)
        self._first = _lanes(self._starts, max(1, min(lanes, pool, count)))
        self._length = np.diff(self._first)
        self._turns = turns = Turns(self._length)
        lanes = len(self._length)
        self._group = max(1, pool * _typical(sizes) // lanes)
        # Multiples of the golden ratio spread any run of lanes, and so any rank's, over phases.
        weyl = np.arange(1, lanes + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        phase = 1 + ((weyl >> np.uint64(40)).astype(np.int64) * self._group >> 24)
        # A lane that fits into one group is shuffled as a whole.
        self._phase = np.where(self._length <= self._group, self._group, phase)
        uneven = rows - lanes * turns.shared + lanes * turns.uneven
        self._end = rows - min(rows, uneven, lanes * self._group)

    def places(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.places`."""
        lane, row = self._turns.find(self._ended(positions))
        number, start, stop = self._group_of(lane, row)
        key = derived(self._group_key, (lane << 40) + number)
        row = start + permute(row - start, stop - start, key)
        turn, within = self._cuts.find(self._first[lane] + row)
        return self._dealt[turn], within

    @property
    def lane_count(self) -> int:
        """See :meth:`Order.lane_count`."""
        return len(self._length)

    def lanes(self, positions: Numbers) -> Lanes:
        """See :meth:`Order.lanes`."""
        return self._turns.find(self._ended(positions))[0].astype(np.uint16)

    def ends(self) -> Numbers:
        """See :meth:`Order.ends`."""
        last = np.maximum(self._starts[1:] - 1, self._starts[:-1])
        lane = np.minimum(np.searchsorted(self._first, last, "right"), len(self._length)) - 1
        _, _, stop = self._group_of(lane, last - self._first[lane])
        after = self._turns.position(lane, stop - 1) + 1
        ends = np.empty(len(self.blocks), np.int64)
        ends[self._dealt] = np.where(after > self._end, self.count, after)
        return ends

    def _group_of(self, lane: Numbers, row: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """The group of a lane's row: its number, its first row and the one after its last."""
        phase = self._phase[lane]
        number = (row + (self._group - phase)) // self._group
        stop = phase + number * self._group
        start = np.maximum(stop - self._group, 0)
        return number, start, np.minimum(stop, self._length[lane])

    def _ended(self, positions: Numbers) -> Numbers:
        """Positions, the last ones shuffled."""
        if not len(positions) or positions.max() < self._end:
            return positions
        found = positions.copy()
        late = positions >= self._end
        length = max(1, self.count - self._end)
        found[late] = self._end + permute(positions[late] - self._end, length, self._end_key)
        return found


def _lanes(starts: Numbers, lanes: int) -> Numbers:
    """Where each lane begins among the rows of all blocks, and the end of the last: a block
    belongs to the lane in which its middle is, were all lanes of one length."""
    middles = (starts[:-1] + starts[1:]) * lanes // max(1, 2 * int(starts[-1]))
    found: Numbers = starts[np.searchsorted(middles, np.arange(lanes + 1))]
    return found


def _typical(sizes: Numbers) -> int:
    """Rows of a block: their mean, but for the smallest, which may be the last one cut short."""
    if len(sizes) < 2:
        return int(sizes.sum())
    return max(1, int(sizes.sum() - sizes.min()) // (len(sizes) - 1))
