"""How often chunks are decoded, told from where rows lie: nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .cuts import Numbers
from .ragged import runs_of
from .source import Blocks

_PAIRS = 1 << 18  # of a row and a chunk, to look at
_OF_A_BLOCK = 1 << 10  # rows at most, which lie in fewer chunks
_STRETCHES = 8  # of blocks that follow each other


class Touched(NamedTuple):
    """The chunks of one stored array that some rows have a part in: ``chunk[i]`` is one of row
    ``owner[i]`` of them. ``kept``: the part of its decoded chunks that stays in a cache."""

    owner: Numbers
    chunk: Numbers
    kept: float = 0.0

    @classmethod
    def between(cls, first: Numbers, last: Numbers, kept: float = 0.0) -> Touched:
        """Row ``i`` has a part in the chunks ``first[i]`` to ``last[i]``."""
        counts = last - first + 1
        return cls(np.repeat(np.arange(len(first)), counts), runs_of(first, counts), kept)


class _Count(NamedTuple):
    """Of one array: chunks by group, different ones, and the part that is kept decoded."""

    pairs: int
    distinct: int
    kept: float


def repetition(
    source: Any, blocks: Blocks, wanted: Callable[[int], Numbers], size: int, in_order: bool
) -> float:
    """How often a chunk is decoded, on average, where every block is taken once, ``size`` of them
    at a time in the order in which they are ``wanted`` (the block of each of the first so many
    rows). ``in_order``: what a cache keeps is what comes next."""
    if getattr(source, "touches", None) is None or not int(blocks.bounds[-1]):
        return 1.0
    most = _most_rows(source, blocks)
    stretches = _stretches(blocks, most)
    here = _summed([_counts(source, groups) for groups in stretches])
    looked_at = sum(map(len, stretches))
    taken, of = here, looked_at
    if size > 1:  # small blocks, which share chunks the less the better they are shuffled
        found = wanted(most)
        names = found[np.sort(np.unique(found, return_index=True)[1])].tolist()
        rows = _rows_of_a_block(blocks, most)
        names = names[: max(1, most // rows // size) * size]
        bunches = [names[k : k + size] for k in range(0, len(names), size)]
        groups = [np.concatenate([_some(blocks, k, rows) for k in bunch]) for bunch in bunches]
        taken, of = _counts(source, groups), len(names)
    times, chunks = 0.0, 0.0
    for (_, distinct, kept), (pairs, *_) in zip(here, taken, strict=True):
        each = distinct / looked_at
        again = 0.0 if in_order and kept else 1 - kept
        times += each + max(0.0, pairs / of - each) * again
        chunks += each
    return times / chunks if chunks else 1.0


def scattered(source: Any, blocks: Blocks, batches: Sequence[Numbers], count: int) -> float | None:
    """How often a chunk is decoded, on average, by ``count`` batches each of which is read by
    itself, where these are some of them; ``None`` where the source does not say."""
    if getattr(source, "touches", None) is None or not batches:
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


def _counts(source: Any, groups: Sequence[Numbers]) -> list[_Count]:
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


def _most_rows(source: Any, blocks: Blocks) -> int:
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
