"""The batches of one epoch as its consumer takes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from .ahead import Ahead, Stop
from .batches import Batches, Reads
from .epochs import Progress
from .state import State

Batch = TypeVar("Batch")


Make: TypeAlias = Callable[[State, int, Reads, Stop], Batches]
"""The batches of an epoch from a position on."""


class Iteration(Iterator[Batch], Generic[Batch]):
    """The batches of one epoch, or of the rest of one, made ahead by a thread that ends with this.

    In a forked child it goes on, by itself, from where it was.
    """

    def __init__(self, progress: Progress, make: Make, prefetch: int) -> None:
        """``progress`` is kept up to date; with ``prefetch`` 0 there is no thread."""
        self._progress = progress
        self._make = make
        self._prefetch = prefetch
        self._open = True
        self._begin()

    def _begin(self) -> None:
        now = self._progress
        make = partial(self._make, now.state, now.position, now.reads)
        self._pid = os.getpid()
        self._items: Ahead[tuple[Any, int]] | Batches
        self._items = Ahead(make, self._prefetch) if self._prefetch else make(Stop())

    def __next__(self) -> Batch:
        if self._pid != os.getpid() and self._open:
            self._begin()
        try:
            batch, self._progress.position = next(self._items)
        except StopIteration:
            if self._open:
                self._progress.position = self._progress.state.rows
                self._end()
            raise
        except BaseException:
            self._end()
            raise
        return batch  # type: ignore[no-any-return]

    def close(self) -> None:
        """End it here: there are no more batches, and nothing is read any more."""
        self._end()
        if self._pid == os.getpid():
            self._items.close()

    def _end(self) -> None:
        self._open, self._progress.over = False, True

    def __del__(self) -> None:
        self._progress.over = True  # one that was broken off
