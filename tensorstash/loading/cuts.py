"""In which piece of a line an offset lies, and how far into it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


class Cuts:
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
