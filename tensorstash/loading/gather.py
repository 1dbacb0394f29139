"""Single rows out of several blocks, as one column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .ragged import Ragged


def gathered(blocks: Sequence[Any], which: Sequence[int], within: Sequence[int]) -> Any:
    """The column whose row ``i`` is row ``within[i]`` of ``blocks[which[i]]``: one column of
    text, a :class:`Ragged` or a list each. There is at least one row."""
    pairs = list(zip(which, within, strict=True))
    first = blocks[pairs[0][0]]
    if isinstance(first, Ragged):
        return _ragged(blocks, pairs, first)
    if not isinstance(first, np.ndarray):
        return [blocks[k][i] for k, i in pairs]
    out = np.empty((len(pairs), *first.shape[1:]), first.dtype)
    for place, (k, i) in enumerate(pairs):
        out[place] = blocks[k][i]
    return out


def _ragged(blocks: Sequence[Ragged], pairs: list[tuple[int, int]], first: Ragged) -> Ragged:
    spans = [
        (blocks[k], int(blocks[k].offsets[i]), int(blocks[k].offsets[i + 1])) for k, i in pairs
    ]
    sizes = [stop - start for _, start, stop in spans]
    offsets = np.zeros(len(spans) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    values = np.empty(int(offsets[-1]), first.dtype)
    np.concatenate([block.values[start:stop] for block, start, stop in spans], out=values)
    if first.ndim == 1:
        return Ragged(values, offsets)
    return Ragged(values, offsets, np.stack([blocks[k].shapes[i] for k, i in pairs]))
