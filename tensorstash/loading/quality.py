"""How even a shuffle is, and how often it decodes chunks, found without reading anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .order import Exact, Numbers, Order
from .pool import more_together, together
from .ranks import EpochPlan, RankBatches
from .source import Blocks, Source

_PAIRS = 1 << 18  # of a row and a chunk, to look at
_OF_A_BLOCK = 1 << 10  # rows at most, which lie in fewer chunks
_STRETCHES = 8  # of blocks that follow each other
_SAMPLES = 64  # batches looked at


class _Count(NamedTuple):
    """Of one array: chunks by group, different ones, and the part that is kept decoded."""

    pairs: int
    distinct: int
    kept: float


def _repetition(
    plan: EpochPlan, wanted: Callable[[int], Numbers], sizes: tuple[int, int], in_order: bool
) -> float:
    """How often a chunk is decoded, on average, where every block is taken once, so many of them
    at a time (at first, and at most) in the order in which they are ``wanted`` (the block of each
    of the first so many rows). ``in_order``: what a cache keeps is what comes next."""
    source, blocks = plan.source, plan.order.blocks
    if not int(blocks.bounds[-1]):
        return 1.0
    most = _most_rows(source, blocks)
    stretches = _stretches(blocks, most)
    here = _summed([_counts(source, groups) for groups in stretches])
    looked_at = sum(map(len, stretches))
    taken = [count.pairs / looked_at for count in here]  # of a block
    if sizes[1] > 1:  # small blocks, which share chunks the less the better they are shuffled
        found = wanted(most)
        names = found[np.sort(np.unique(found, return_index=True)[1])].tolist()
        rows = _rows_of_a_block(blocks, most)
        first, wide = _bunches(names, sizes, most // rows)
        taken = [0.0] * len(here)
        begun, more = sum(map(len, first)), sum(map(len, wide))
        share = begun / max(begun + more, len(blocks) / plan.ranks.world) if wide else 1.0
        for bunches, part in ((first, share), (wide, 1 - share)):
            if bunches:
                groups = [np.concatenate([_some(blocks, k, rows) for k in b]) for b in bunches]
                each = part / sum(map(len, bunches))
                taken = [
                    before + count.pairs * each
                    for before, count in zip(taken, _counts(source, groups), strict=True)
                ]
    times, chunks = 0.0, 0.0
    for (_, distinct, kept), pairs in zip(here, taken, strict=True):
        each = distinct / looked_at
        again = 0.0 if in_order and kept else 1 - kept
        times += each + max(0.0, pairs - each) * again
        chunks += each
    return times / chunks if chunks else 1.0


def _bunches(
    names: list[int], sizes: tuple[int, int], most: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Blocks as they are read together: the first few times, and when as many are as may be. About
    ``most`` blocks in all; the last bunch, of what is left, only where these are all."""
    first: list[list[int]] = []
    wide: list[list[int]] = []
    size, at = sizes[0], 0
    while at < len(names) and (at == 0 or at + size <= max(most, 2 * sizes[1])):
        (wide if size == sizes[1] else first).append(names[at : at + size])
        at += size
        size = more_together(size, sizes[1])
    return first, wide


def _scattered(
    source: Source, blocks: Blocks, batches: Sequence[Numbers], count: int
) -> float | None:
    """How often a chunk is decoded, on average, by ``count`` batches each of which is read by
    itself, where these are some of them; ``None`` where the source does not say."""
    if not batches:
        return None
    stretches = _stretches(blocks, _most_rows(source, blocks))
    here = _summed([_counts(source, groups) for groups in stretches])
    looked_at = sum(map(len, stretches))
    times, chunks = 0.0, 0.0
    for (_, distinct, kept), (pairs, *_) in zip(here, _counts(source, batches), strict=True):
        every = distinct / looked_at * len(blocks)
        times += every + max(0.0, pairs / len(batches) * count - every) * (1 - kept)
        chunks += every
    return times / chunks if chunks else None


def _counts(source: Source, groups: Sequence[Numbers]) -> list[_Count]:
    """Of each array of a source, the chunks that groups of rows have a part in."""
    group = np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])
    found = []
    for owner, chunk, kept in source.touches(np.concatenate(groups)):
        low = int(chunk.min(initial=0))
        span = int(chunk.max(initial=0)) - low + 1
        pairs = len(np.unique(group[owner] * span + chunk - low))
        found.append(_Count(pairs, len(np.unique(chunk)), kept))
    return found


def _summed(counts: Sequence[list[_Count]]) -> list[_Count]:
    return [
        _Count(sum(c.pairs for c in of), sum(c.distinct for c in of), of[0].kept)
        for of in zip(*counts, strict=True)
    ]


def _most_rows(source: Source, blocks: Blocks) -> int:
    """How many rows to look at: fewer where each lies in many chunks."""
    some = np.unique(np.linspace(0, int(blocks.bounds[-1]) - 1, 8).astype(np.int64))
    pairs = sum(len(touched.chunk) for touched in source.touches(some))
    return max(1, _PAIRS * len(some) // max(1, pairs))


def _stretches(blocks: Blocks, most: int) -> list[list[Numbers]]:
    """Stretches of blocks that follow each other, as the rows of each: about ``most`` rows."""
    count, rows = len(blocks), _rows_of_a_block(blocks, most)
    length, some = count, 1
    if count * rows > most:
        length, some = min(count, max(2, most // (rows * _STRETCHES))), _STRETCHES
    firsts = np.unique(np.linspace(0, count - length, some).astype(np.int64)).tolist()
    return [[_some(blocks, k, rows) for k in range(first, first + length)] for first in firsts]


def _rows_of_a_block(blocks: Blocks, most: int) -> int:
    """How many rows of a block to look at, on average, where ``most`` are looked at in all."""
    mean = -(-int(blocks.bounds[-1]) // len(blocks))
    return min(mean, _OF_A_BLOCK, max(2, most // (2 * _STRETCHES)))


def _some(blocks: Blocks, k: int, rows: int) -> Numbers:
    """Rows of a block, all or evenly spread over it."""
    start, stop = int(blocks.bounds[k]), int(blocks.bounds[k + 1])
    if stop - start <= 2 * rows:
        return np.asarray(blocks.rows(k))
    places = np.linspace(start, stop - 1, rows).astype(np.int64)
    return places if blocks.order is None else np.asarray(blocks.order[places])


def evenness(order: Order, ranks: RankBatches) -> dict[str, float]:
    """What batches spread over the epoch look like, beside what a true shuffle's would.

    ``blocks_per_batch``, ``blocks_per_batch_min`` and ``blocks_per_batch_random``: blocks that a
    global batch has rows of: on average, at least, and on average of a true shuffle.
    ``inflation``: the spread of batch means over that of a true shuffle, were the rows of a block
    all alike, which is the worst case; 1.0 is as even as a true shuffle.
    """
    sizes = np.diff(order.blocks.bounds)
    whole, rows = min(ranks.whole, order.count), order.count
    if not rows:
        return {}
    first = np.unique(np.linspace(0, max(0, rows - whole), _SAMPLES).astype(np.int64))
    first -= first % whole
    distinct, squares = [], []
    for start in np.unique(first).tolist():
        block, _ = order.locate(np.arange(start, min(rows, start + whole)))
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


def read_amplification(plan: EpochPlan, in_order: bool, sparing: bool) -> float:
    """Chunks that this rank decodes of an epoch over its part of them all, estimated. Where a block
    has but a part of some chunks, these are decoded again for others, though every block is read
    once. ``sparing``: as memory is limited, few of them are read at a time."""
    source, order, ranks = plan.source, plan.order, plan.ranks
    blocks, held = order.blocks, plan.slots > 0
    by_blocks = _blocks_read(order, ranks, held)
    if not held:
        window = next(ranks.windows(order, 0), None)
        if window is None:
            return by_blocks
        rows = order.rows(window.positions)
        batches = [rows[a:b] for a, b in pairwise(window.bounds)]
        count = ranks.batches(order.count) * ranks.world
        found = _scattered(source, blocks, batches, count)
        return by_blocks if found is None else found
    if in_order and source.goes_on:
        return by_blocks

    def wanted(rows: int) -> Numbers:
        own: list[Numbers] = []
        for window in ranks.windows(order, 0):
            own.append(order.locate(window.positions)[0])
            if sum(map(len, own)) >= rows:
                break
        return np.concatenate([np.empty(0, np.int64), *own])

    return by_blocks * _repetition(plan, wanted, together(plan, sparing), in_order)


def _blocks_read(order: Order, ranks: RankBatches, held: bool) -> float:
    """Blocks that this rank reads of an epoch over its part of all, estimated from the first
    batches; ``held``: what was read stays in memory while rows of it come."""
    window = next(ranks.windows(order, 0), None)
    if window is None or (held and ranks.world == 1):
        return 1.0
    block = order.locate(window.positions)[0]
    if held:
        every = order.locate(np.arange(window.after[-1]))[0]
        return round(_distinct(block) * ranks.world / _distinct(every), 2)
    each = [_distinct(block[a:b]) for a, b in pairwise(window.bounds)]
    blocks = np.count_nonzero(np.diff(order.blocks.bounds))
    return round(float(np.mean(each)) * ranks.batches(order.count) * ranks.world / int(blocks), 2)


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
