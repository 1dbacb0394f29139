"""Which boxes of chunks share chunks, and what to read of them together. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..loading.ragged import runs_of

Places = NDArray[np.int64]


def apart(low: Places, high: Places) -> Iterator[tuple[Places, Places | None]]:
    """Boxes of chunks from ``low`` to ``high`` (inclusive; a row a box, a column an axis) in
    groups of which no two need the same chunk: the boxes of each, and the one chunk that the
    group stands for, or ``None`` where it stands for all chunks of its boxes.

    A box that shares nothing is a group by itself. Boxes that together fill one large box of
    chunks are one; others are in one group for each chunk that any of them has.
    """
    owner, chunk = touched(low, high)
    base = chunk.min(axis=0)
    name = np.ravel_multi_index(tuple((chunk - base).T), tuple(chunk.max(axis=0) - base + 1))
    whose = _connected(owner, name, len(low))[owner]
    order = np.lexsort((owner, name, whose))
    for pairs in _split(order, whose):
        members = owner[pairs]
        first = int(members[0])
        if (members == first).all():
            yield members[:1], None
            continue
        spanned = high[members].max(axis=0) - low[members].min(axis=0) + 1
        chunks = 1 + int(np.count_nonzero(np.diff(name[pairs])))
        if chunks == math.prod(spanned.tolist()):
            yield np.unique(members), None
            continue
        for shared in _split(pairs, name):
            yield owner[shared], chunk[shared[0]]


def _split(pairs: Places, by: Places) -> list[Places]:
    """``pairs``, in order of ``by``, where it changes."""
    return np.split(pairs, np.flatnonzero(np.diff(by[pairs])) + 1)


def touched(low: Places, high: Places) -> tuple[Places, Places]:
    """Every pair of a box and a chunk of it: the box, and the chunk."""
    counts = high - low + 1
    sizes = counts.prod(axis=1)
    owner = np.repeat(np.arange(len(low)), sizes)
    rest = runs_of(np.zeros(len(low), np.int64), sizes)
    chunk = np.empty((len(owner), low.shape[1]), np.int64)
    for k in reversed(range(low.shape[1])):
        rest, place = np.divmod(rest, counts[owner, k])
        chunk[:, k] = low[owner, k] + place
    return owner, chunk


def _connected(owner: Places, name: Places, boxes: int) -> Places:
    """For each box the first of those that it is connected with by chunks they share, directly
    or by way of others."""
    label = np.arange(boxes)
    order = np.argsort(name, kind="stable")
    heads = np.flatnonzero(np.diff(name[order], prepend=-1))
    sizes = np.diff(heads, append=len(order))
    by_chunk = owner[order]
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    lowest = np.empty(len(order), np.int64)
    while len(heads) < len(order):
        lowest[order] = np.repeat(np.minimum.reduceat(label[by_chunk], heads), sizes)
        lower = np.minimum.reduceat(lowest, firsts)
        lower = lower[lower]  # as far on as is known already
        if (lower == label).all():
            break
        label = lower
    return label
