"""How even a shuffle is, measured on the order itself: nothing is read."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuts import Numbers
from .order import Exact, Order
from .share import Share

_SAMPLES = 64  # batches looked at


def evenness(order: Order, share: Share) -> dict[str, float]:
    """What batches spread over the epoch look like, beside what a true shuffle's would.

    ``blocks_per_batch``, ``blocks_per_batch_min`` and ``blocks_per_batch_random``: blocks that a
    global batch has rows of: on average, at least, and on average of a true shuffle.
    ``inflation``: the spread of batch means over that of a true shuffle, were the rows of a block
    all alike, which is the worst case; 1.0 is as even as a true shuffle.
    """
    sizes = np.diff(order.blocks.bounds)
    whole, rows = min(share.whole, order.count), order.count
    if not rows:
        return {}
    first = np.unique(np.linspace(0, max(0, rows - whole), _SAMPLES).astype(np.int64))
    first -= first % whole
    distinct, squares = [], []
    for start in np.unique(first).tolist():
        block, _ = order.places(np.arange(start, min(rows, start + whole)))
        counts = np.unique(block, return_counts=True)
        distinct.append(len(counts[0]))
        squares.append(_deviation(counts, len(block), sizes, rows))
    random = 1 - float((sizes.astype(float) ** 2).sum()) / rows**2
    random *= (rows - whole) / (whole * max(1, rows - 1))
    exact = isinstance(order, Exact)
    return {
        "blocks_per_batch": round(float(np.mean(distinct)), 1),
        "blocks_per_batch_min": min(distinct),
        "blocks_per_batch_random": round(_expected(sizes, rows, whole), 1),
        "inflation": 1.0
        if exact or random <= 0
        else round(math.sqrt(np.mean(squares) / random), 3),
    }


def amplification(order: Order, share: Share, held: bool) -> float:
    """Blocks that this rank reads of an epoch over its part of all, estimated from the first
    batches; ``held``: what was read stays in memory while rows of it come."""
    window = next(share.windows(order, 0), None)
    if window is None or (held and share.world == 1):
        return 1.0
    block = order.places(window.positions)[0]
    if held:
        every = order.places(np.arange(window.after[-1]))[0]
        return round(_distinct(block) * share.world / _distinct(every), 2)
    each = [_distinct(block[a:b]) for a, b in pairwise(window.bounds)]
    blocks = np.count_nonzero(np.diff(order.blocks.bounds))
    return round(float(np.mean(each)) * share.batches(order.count) * share.world / int(blocks), 2)


def _distinct(block: Numbers) -> int:
    return len(np.unique(block))


def _deviation(
    counts: tuple[NDArray[Any], NDArray[Any]], batch: int, sizes: Numbers, rows: int
) -> float:
    """Variance of a batch's mean, for block values of variance 1, around the mean of all rows."""
    share, ideal = counts[1] / batch, sizes[counts[0]] / rows
    missed = float((sizes.astype(float) ** 2).sum()) / rows**2 - float((ideal**2).sum())
    return float(((share - ideal) ** 2).sum()) + missed


def _expected(sizes: Numbers, rows: int, batch: int) -> float:
    """Distinct blocks among so many rows drawn without repeats."""
    found = 0.0
    for size, count in zip(*np.unique(sizes[sizes > 0], return_counts=True), strict=True):
        if rows - int(size) < batch:
            found += float(count)
            continue
        none = math.lgamma(rows - size + 1) + math.lgamma(rows - batch + 1)
        none -= math.lgamma(rows - size - batch + 1) + math.lgamma(rows + 1)
        found += float(count) * (1 - math.exp(none))
    return found
