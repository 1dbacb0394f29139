"""Single rows out of several blocks, as one column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .ragged import Ragged, offsets_of


class Held:
    """Ragged rows to be gathered from again and again."""

    __slots__ = ("buffer", "offsets", "rows")

    def __init__(self, rows: Ragged) -> None:
        self.rows = rows
        # Python slices and joins buffers, and reads integers of them, in half the time that it
        # takes with arrays.
        size = rows.dtype.itemsize
        self.buffer = rows.values.view(f"i{size}" if size in (1, 2, 4, 8) else f"V{size}").data
        self.offsets = rows.offsets.data


def held(column: Any) -> Any:
    """A column as :func:`gathered` takes it."""
    return Held(column) if isinstance(column, Ragged) else column


def gathered(blocks: Sequence[Any], which: Sequence[int], within: Sequence[int]) -> Any:
    """The column whose row ``i`` is row ``within[i]`` of ``blocks[which[i]]``, each a :func:`held`
    column of text, ragged rows or a list. There is at least one row."""
    pairs = list(zip(which, within, strict=True))
    first = blocks[pairs[0][0]]
    if isinstance(first, Held):
        return _ragged(blocks, pairs, first.rows)
    if not isinstance(first, np.ndarray):
        return [blocks[k][i] for k, i in pairs]
    out = np.empty((len(pairs), *first.shape[1:]), first.dtype)
    for place, (k, i) in enumerate(pairs):
        out[place] = blocks[k][i]
    return out


def _ragged(blocks: Sequence[Held], pairs: list[tuple[int, int]], first: Ragged) -> Ragged:
    pieces: list[memoryview] = []
    for k, i in pairs:
        block = blocks[k]
        offsets = block.offsets
        pieces.append(block.buffer[offsets[i] : offsets[i + 1]])
    joined = np.frombuffer(bytearray().join(pieces), first.dtype)
    sizes = np.array([*map(len, pieces)], np.int64)
    ends = offsets_of(sizes)
    if first.ndim == 1:
        return Ragged(joined, ends, sizes[:, None])
    return Ragged(joined, ends, np.stack([blocks[k].rows.shapes[i] for k, i in pairs]))
