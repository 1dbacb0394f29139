"""Where windows along an axis begin, found by arithmetic. Pure."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Invalid, counted

Rows = NDArray[np.int64]


class Starts:
    """Windows of ``length`` rows that begin ``stride`` rows apart, from the first row of every
    episode on; only those that end in it. Window ``i`` costs the same to find whatever the
    number of rows and of windows; memory is a few numbers an episode."""

    def __init__(self, rows: int, length: int, stride: int, ends: Rows | None = None) -> None:
        """Over ``rows`` rows that are one episode, or are cut where ``ends`` say; rows beyond
        the last end are one more."""
        self.rows = rows
        self.length = length
        self.stride = stride
        inner = np.empty(0, np.int64) if ends is None else ends
        begins = np.concatenate([np.zeros(1, np.int64), inner, np.array([rows], np.int64)])
        counts = np.maximum(0, (np.diff(begins) - length) // stride + 1)
        used = np.flatnonzero(counts)
        self._begins: Rows = begins[:-1][used]
        self._counts: Rows = counts[used]
        self._before: Rows = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._counts)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def at(self, windows: Rows) -> Rows:
        """The row at which each of ``windows`` begins."""
        if len(self._begins) == 1:
            first = int(self._begins[0])
            return windows * self.stride + first if first else windows * self.stride
        episode = np.searchsorted(self._before, windows, side="right") - 1
        return self._begins[episode] + (windows - self._before[episode]) * self.stride

    def before(self, rows: Rows) -> Rows:
        """How many windows begin before each of ``rows``."""
        if not len(self._begins):
            return np.zeros(len(rows), np.int64)
        episode = np.maximum(np.searchsorted(self._begins, rows, side="left") - 1, 0)
        inside = -(-(rows - self._begins[episode]) // self.stride)
        found: Rows = self._before[episode] + np.clip(inside, 0, self._counts[episode])
        return found

    @property
    def unused(self) -> int:
        """How many rows are in no window: those that a whole one does not fit into, and those
        between windows that lie further apart than they are long."""
        covered = (self._counts - 1) * min(self.stride, self.length) + self.length
        return self.rows - int(covered.sum())


def parse_ends(boundaries: Any, rows: int) -> Rows:
    """Episode ends as ascending offsets within ``rows``: from offsets (the one after an
    episode's last row; a leading 0 says nothing), or from a mask that is true in the last row
    of every episode."""
    given = np.asarray(boundaries)
    if given.ndim != 1 or (given.dtype.kind not in "biu" and given.size):
        raise Invalid(
            "boundaries are the offsets at which episodes end, or a mask of their last rows: "
            f"1-D and of integers or booleans, not {given.ndim}-D {given.dtype}"
        )
    if given.dtype.kind == "b":
        if len(given) != rows:
            raise Invalid(
                f"a mask of {counted(len(given), 'boundary', 'boundaries')} does "
                f"not fit {counted(rows, 'row')}"
            )
        return np.flatnonzero(given).astype(np.int64) + 1
    ends = given.astype(np.int64)
    wrong = np.flatnonzero((ends < 0) | (ends > rows))
    if len(wrong):
        at = int(wrong[0])
        raise Invalid(
            f"boundary {at} is {given[at]}; offsets lie within the {counted(rows, 'row')}"
        )
    falls = np.flatnonzero(np.diff(ends) < 0)
    if len(falls):
        at = int(falls[0])
        raise Invalid(
            f"boundaries must ascend: boundary {at + 1} is {ends[at + 1]}, after {ends[at]}"
        )
    return ends


def packed(ends: Rows) -> tuple[str, bytes]:
    """Ends in few bytes, to be pickled: the lengths of episodes, about a byte or two each."""
    lengths = np.diff(ends, prepend=0)
    small = np.min_scalar_type(int(lengths.max(initial=0)))
    return small.str, zlib.compress(lengths.astype(small).tobytes())


def unpacked(dtype: str, data: bytes) -> Rows:
    """What :func:`packed` packed."""
    return np.cumsum(np.frombuffer(zlib.decompress(data), dtype), dtype=np.int64)
