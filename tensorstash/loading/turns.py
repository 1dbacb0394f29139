"""Lanes of unequal lengths that take turns: one row of each, the shorter dropping out."""

from __future__ import annotations

import numpy as np

from .cuts import Numbers


class Turns:
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
