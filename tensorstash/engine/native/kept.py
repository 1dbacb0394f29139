"""What is kept of chunks, copied to where it is wanted by the kernel: one call for all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...indexing.selection import Transform
from ...memory import Budget
from ...threads import cores, nested
from ..caching.kept import Kept
from ..chunks import Chunks
from . import library as native
from .library import DONE
from .tables import chunks_of, groups

_MOST_CHUNKS = 1 << 14
_THREAD_BYTES = 4 << 20  # copied, for which one more thread pays


class KeptBatches:
    """Reads of the array at ``chunks`` of which all is ``kept``, by ``threads`` at most: boxes of
    few chunks by Python, others by the kernel."""

    def __init__(self, chunks: Chunks, kept: Kept, threads: int | None, budget: Budget) -> None:
        self._chunks = chunks
        self._kept = kept
        self._threads = threads
        self._budget = budget
        spec = chunks.spec
        self._raw = np.dtype(("V", spec.dtype.itemsize))

    def read(self, transform: Transform, out: NDArray[Any]) -> bool:
        """Fill ``out``; ``False``: some of it is to be read, and what was filled is no matter."""
        found = self._kept.read(transform, out)
        if found is not None:
            return found
        # Under a limit on memory what the cache drops meanwhile is not to be held here.
        return not self._budget.limited and self._gather(transform, out)

    def _gather(self, transform: Transform, out: NDArray[Any]) -> bool:
        spec, edges = self._chunks.spec, self._chunks.grid.chunks
        library, pipeline = native.library, self._chunks.pipeline
        if not native.enabled or library.kernel is None or pipeline is None or not edges:
            return False
        if out.dtype != spec.dtype or not pipeline.ordered or spec.dtype.itemsize == 0:
            return False
        inside = [spec.dtype.itemsize] * len(edges)
        for k in range(len(edges) - 1, 0, -1):
            inside[k - 1] = inside[k] * edges[k]
        ones = (1,) * len(edges)
        table = groups(transform, edges, inside, out.strides, ones)
        if table is None:
            return False
        high = tuple(group.many for group in table)
        low, count = (0,) * len(high), math.prod(high)
        if count > _MOST_CHUNKS or not self._kept.holds(chunks_of(table, [0], low, high)[0]):
            return False
        held = self._kept.all_of(chunks_of(table, range(count), low, high))
        if held is None or held[0].dtype != spec.dtype or held[0].shape != edges:
            return False
        threads = 1
        if not nested():
            most = cores() if self._threads is None else self._threads
            threads = max(1, min(most, count, out.nbytes // _THREAD_BYTES))
        status = np.zeros(count, np.uint8)
        nbytes = inside[0] * edges[0]
        chain = (), nbytes, nbytes, spec.dtype.itemsize
        try:
            library.run(
                *(chain, table, [(b"", None, None, [*held], low, high)], out.view(self._raw)),
                *(None, status, ones, (0,) * len(edges)),
                threads=threads,
                grain=max(1, min(64, count // (8 * threads))),
            )
        except (ValueError, BufferError):  # of a dtype that no buffer has
            return False
        if (status != DONE).any():
            return False
        self._kept.hit(count)
        return True
