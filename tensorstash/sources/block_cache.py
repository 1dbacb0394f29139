"""The blocks of a source that were read last, for readers that go through it in order."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns, joined
from ..engine.caching.cache import Cache
from ..loading.source import Source

_BLOCKS, _MOST_BLOCKS = 2, 6  # kept beside what is read again; more than one reader needs,
_MOST_BYTES = 64 << 20  # while they are small: others read next to it


class BlockCache:
    """The blocks of a source that were read last, so that reads in order which overlap, or which
    end within a block, read every block once; several threads may read next to each other.

    Holds about as much as ``overlap`` rows and a few blocks. A forked child, and a pickle,
    start with nothing.
    """

    def __init__(self, source: Source, overlap: int) -> None:
        """For reads of ``source`` that begin at most ``overlap`` rows before the last one
        ended."""
        self._source = source
        self._bounds: NDArray[np.int64] = source.blocks.bounds
        largest = int(np.diff(self._bounds).max(initial=1))
        row = max(1, source.row_bytes)
        aside = max(_BLOCKS * largest * row, min(_MOST_BLOCKS * largest * row, _MOST_BYTES))
        self._cache = Cache(overlap * row + aside)

    def gaps(self, starts: NDArray[np.int64], length: int) -> list[int]:
        """Which of the ascending runs of ``length`` rows lie so far behind the one before that
        there are whole blocks between them."""
        first, last = self._block(starts[1:]), self._block(starts[:-1] + (length - 1))
        found: list[int] = (np.flatnonzero(first > last + 1) + 1).tolist()
        return found

    def run(self, start: int, stop: int) -> Columns:
        """The rows ``start`` to ``stop``, not to be written to: others may be given them too."""
        first, last = int(self._block(start)), int(self._block(stop - 1))
        base = int(self._bounds[first])
        blocks = self._blocks(range(first, last + 1))
        names = list(blocks[0])
        if len(blocks) == 1:
            return {name: blocks[0][name][start - base : stop - base] for name in names}
        starts = self._bounds[first : last + 1]
        pieces = [
            (block, max(0, start - int(at)), min(int(end), stop) - int(at))
            for block, at, end in zip(
                blocks, starts, self._bounds[first + 1 : last + 2], strict=True
            )
        ]
        return {name: joined([block[name][a:b] for block, a, b in pieces]) for name in names}

    def _block(self, rows: Any) -> Any:
        return np.searchsorted(self._bounds, rows, side="right") - 1

    def _blocks(self, wanted: range) -> list[Columns]:
        """Blocks, those that are not kept read by one take for each run of them."""
        with ExitStack() as stack:
            for k in wanted:  # always in ascending order: no two threads wait for each other
                stack.enter_context(self._cache.flight(k))
            held = {k: found[1] for k in wanted if (found := self._cache.peek(k)) is not None}
            missing = [k for k in wanted if k not in held]
            for _, run in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
                held |= self._read([k for _, k in run])
        return [held[k] for k in wanted]

    def _read(self, run: list[int]) -> dict[int, Columns]:
        bounds = self._bounds[run[0] : run[-1] + 2].tolist()
        columns = self._source.take(np.arange(bounds[0], bounds[-1]))
        found: dict[int, Columns] = {}
        for k, start, stop in zip(run, bounds[:-1], bounds[1:], strict=True):
            part = {name: c[start - bounds[0] : stop - bounds[0]] for name, c in columns.items()}
            found[k] = part
            self._cache.put(k, None, part, self._source.row_bytes * (stop - start))
        return found


def split_by_blocks(source: Source) -> list[Source]:
    """``source`` as sources of fields whose chunks meet at the same rows, where it has several."""
    names = source.selectable
    if len(names) < 2:
        return [source]
    groups: dict[bytes, list[str]] = {}
    for name in names:
        groups.setdefault(source.select(name).blocks.bounds.tobytes(), []).append(name)
    return [source.select(*some) for some in groups.values()] if len(groups) > 1 else [source]
