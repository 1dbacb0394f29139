"""An element, a row, a patch: from the index to what NumPy would return in one call of the kernel,
for which no object of Python's is made. Whatever is not plain is declined, and read as ever."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from ...driver import Tag
from ...memory import Budget
from ...metadata.node import lock_key
from ...threads import cores
from ..caching.cache import Cache
from ..chunks import SPAN_FROM, Chunks
from ..stats import Meter
from . import library as native
from .batch import CALL_BYTES, THREAD_BYTES
from .steps import Steps, steps

_MOST_AXES = 16  # as in direct.h


class Small:
    """Reads of elements, rows and patches of one array, by the kernel alone. ``own``: what
    :func:`direct` takes; ``None``: of arrays whose rows are copied from where they are mapped."""

    def __init__(self, own: tuple[Any, ...] | None, budget: Budget) -> None:
        self._own = own
        self._budget = budget
        self._direct: Any = None

    def take(self, selection: Any, tag: Tag | None, follow: Callable[[Any], None]) -> Any:
        """What NumPy would return; ``None``: another way is to be taken. ``tag``: the version that
        the array's document must have then, unless that need not be looked at. ``follow`` is called
        with a selection that begins where the last read had ended."""
        if self._direct is None:
            own = self._own  # another thread may take it away
            if own is None or native.library.kernel is None:
                return None
            self._direct, self._own = direct(*own), None
            return None if self._direct is None else self.take(selection, tag, follow)
        if not native.enabled or self._budget.limited:
            return None
        return self._direct.take(selection, tag, follow)


def direct(
    chunks: Chunks,
    cache: Cache | None,
    immutable: bool,
    meter: Meter,
    threads: int | None,
    indices: Cache | None,
    last: array[int] | None,
) -> Any | None:
    """What reads small boxes of the array at ``chunks`` by its ``take``.

    Args:
        chunks: Of an array that is not changed in place.
        cache: Of decoded chunks; with it nothing but what is kept is read.
        immutable: What is kept need not be compared with what is stored.
        meter: What it did is counted by.
        threads: The most threads of a read; what several are had for is declined.
        indices: Of shards, kept.
        last: Of the box that was read last along each axis where it begins and ends.

    Returns:
        ``None`` where the kernel is not there, or cannot.
    """
    kernel, spec, edges = native.library.kernel, chunks.spec, chunks.grid.chunks
    if kernel is None or edges is None or not 0 < spec.ndim <= _MOST_AXES or not chunks.plain:
        return None
    driver, sharding, document = chunks.driver, chunks.sharding, lock_key(chunks.path, spec)
    local = driver.capabilities.local
    folder = driver.local_path(chunks.path) if local else None
    if cache is None:
        found = None if chunks.pipeline is None else steps(chunks.pipeline, native.library.kinds)
        if found is None or folder is None:
            return None
    elif not (local or immutable):
        return None
    else:
        nbytes = chunks.chunk_bytes
        found = Steps((), nbytes, nbytes, spec.dtype.itemsize, (0,) * spec.ndim, False)
    # What several threads are had for is declined; and what an interrupt would wait long for.
    alone = threads == 1 or cores() == 1
    most = CALL_BYTES if alone else 2 * THREAD_BYTES - 1
    scalars = spec.dtype.kind != "V"
    spans = found.plain and found.nbytes > SPAN_FROM
    ones, none = (1,) * spec.ndim, (0,) * spec.ndim
    by_shard = (ones, none) if sharding is None else (sharding.grid, sharding.strides)
    try:
        return kernel.Direct(
            found.chain,
            (spec.shape, edges, found.strides, *by_shard),
            (np.empty, spec.dtype, np.integer, cache, indices, driver.tag, _Absent(chunks)),
            (
                chunks.prefix,
                None if folder is None else os.fsencode(folder + spec.keys.prefix),
                None if folder is None else os.fsencode(folder + document[len(chunks.path) :]),
                document,
                spec.fill.tobytes() if chunks.missing == "fill" else None,
                spec.keys.separator,
            ),
            (immutable, scalars, spans, sharding is not None, most),
            meter.direct,
            last,
        )
    except (ValueError, OverflowError, BufferError):  # no such array is read so
        return None


class _Absent:
    """Whether a chunk that has no file is absent for sure: no link leads to its folder."""

    def __init__(self, chunks: Chunks) -> None:
        self._driver = chunks.driver

    def __call__(self, key: str) -> bool:
        return self._driver.plain_folder(key.rpartition("/")[0])
