"""The order of an epoch: a pure function from positions to rows, of any position at any time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from .permutation import derived, key_of, permute
from .source import Blocks

Numbers = NDArray[np.int64]
Lanes = NDArray[np.uint16]
_BLOCKS, _GROUPS, _END = range(3)  # what a key is for


class PieceOffsets:
    """A line cut at ``bounds``: piece ``k`` is ``bounds[k]`` to ``bounds[k + 1]``.

    Where all pieces but one are of one size, as chunks are, offsets are divided, which costs a
    tenth of a search.
    """

    def __init__(self, bounds: Numbers) -> None:
        """``bounds`` from 0 on, in order."""
        self._bounds = bounds
        sizes = np.diff(bounds)
        self._size = int(sizes.max()) if len(sizes) else 1
        odd = np.flatnonzero(sizes != self._size)
        self._regular = len(odd) <= 1
        self._from = int(bounds[odd[0] + 1]) if len(odd) else int(bounds[-1])
        self._short = self._size - int(sizes[odd[0]]) if len(odd) else 0

    def find(self, offsets: Numbers) -> tuple[Numbers, Numbers]:
        """The piece of each offset, and the offset within it."""
        if not self._regular:
            piece = np.searchsorted(self._bounds, offsets, "right") - 1
            return piece, offsets - self._bounds[piece]
        whole = offsets
        if self._short:
            whole = offsets + np.where(offsets >= self._from, self._short, 0)
        piece = whole // self._size
        return piece, whole - piece * self._size


class RoundRobin:
    """The stream that takes one row of each lane in turn until all lanes are used up.

    Tables are as long as there are lanes; a position of the stream is found by arithmetic.
    """

    def __init__(self, lengths: Numbers) -> None:
        """Rows of each lane."""
        # The longest first: those that are still there are always the first so many.
        self._order = np.argsort(-lengths, kind="stable")
        self._rank = np.argsort(self._order)
        ends = np.sort(lengths)
        count = len(lengths)
        # Before its round number `ends[j]` begins, lanes have given `breaks[j + 1]` rows.
        gone = np.concatenate([[0], np.cumsum(ends)])
        self._ends = np.concatenate([[0], ends])
        self._breaks = np.concatenate([[0], gone[:-1] + ends * np.arange(count, 0, -1)])
        self._gone = gone
        self._count = count

    @property
    def shared(self) -> int:
        """Rounds in which every lane takes part."""
        return int(self._ends[1])

    @property
    def uneven(self) -> int:
        """Rounds in which only some do."""
        return int(self._ends[-1] - self._ends[1])

    def find(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """The lane that gives the row at each position, and the row's number in the lane."""
        if not len(positions) or positions.max() < self._breaks[1]:
            turn, place = np.divmod(positions, self._count)
            return self._order[place], turn
        done = np.searchsorted(self._breaks[1:], positions, "right")
        turn, place = np.divmod(positions - self._breaks[done], self._count - done)
        return self._order[place], turn + self._ends[done]

    def position(self, lanes: Numbers, rows: Numbers) -> Numbers:
        """Where the stream has these rows of these lanes: what :meth:`find` undoes."""
        done = np.searchsorted(self._ends[1:], rows, "right")
        before: Numbers = self._gone[done] + rows * (self._count - done) + self._rank[lanes]
        return before


class Order(ABC):
    """Every row once, at the positions 0 to :attr:`count`.

    Nothing in it grows with the rows, at most with the blocks; how a stretch of positions is cut
    to be asked for changes nothing.
    """

    def __init__(self, blocks: Blocks) -> None:
        """``blocks``: what :meth:`locate` refers to."""
        self.blocks = blocks
        self.count = int(blocks.bounds[-1])

    @abstractmethod
    def locate(self, positions: Numbers) -> tuple[Numbers, Numbers]:
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
    def last_use(self) -> Numbers:
        """For each block, a position by which all of its rows are over."""

    def rows(self, positions: Numbers) -> Numbers:
        """The row at each position."""
        block, within = self.locate(positions)
        found: Numbers = self.blocks.bounds[block] + within
        return found if self.blocks.order is None else self.blocks.order[found]


class InOrder(Order):
    """Row after row."""

    def __init__(self, blocks: Blocks) -> None:
        """Of rows that lie in ``blocks``."""
        super().__init__(in_runs(blocks))
        self._cuts = PieceOffsets(self.blocks.bounds)

    def locate(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.locate`."""
        return self._cuts.find(positions)

    def last_use(self) -> Numbers:
        """See :meth:`Order.last_use`."""
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
        self._cuts = PieceOffsets(self.blocks.bounds)
        self._key = key_of(seed, epoch)

    def locate(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.locate`."""
        return self._cuts.find(self.rows(positions))

    def last_use(self) -> Numbers:
        """See :meth:`Order.last_use`."""
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


class BlockShuffle(Order):
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
        self._cuts = PieceOffsets(self._starts)
        self._first = _lanes(self._starts, max(1, min(lanes, pool, count)))
        self._length = np.diff(self._first)
        self._turns = turns = RoundRobin(self._length)
        lanes = len(self._length)
        self._group = max(1, pool * _typical(sizes) // lanes)
        # Multiples of the golden ratio spread any run of lanes, and so any rank's, over phases.
        weyl = np.arange(1, lanes + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        phase = 1 + ((weyl >> np.uint64(40)).astype(np.int64) * self._group >> 24)
        # A lane that fits into one group is shuffled as a whole.
        self._phase = np.where(self._length <= self._group, self._group, phase)
        uneven = rows - lanes * turns.shared + lanes * turns.uneven
        self._end = rows - min(rows, uneven, lanes * self._group)

    def locate(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """See :meth:`Order.locate`."""
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

    def last_use(self) -> Numbers:
        """See :meth:`Order.last_use`."""
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
