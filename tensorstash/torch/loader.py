"""The loader: batches of tensors from threads of this process, resumable anywhere."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from ..errors import Invalid
from ..loading.batch import moved
from ..loading.course import Shuffle
from ..loading.feed import Feed
from ..loading.present import present, shown
from ..loading.source import Columns, Source
from ..sources.beside import as_rows
from .dataset import ArrayDataset


class Loader(Feed[Any]):
    """Every row once an epoch, in batches of tensors that threads of this process read ahead.

    ::

        loader = Loader(records, 64, shuffle=True)
        for epoch in range(10):
            for batch in loader:
                ...

    The order depends on ``seed`` and the epoch's number alone. ``state_dict()``, under 250 bytes
    of JSON, is resumed exactly with any number of ranks, batch size and threads. As with torch's
    ``DataLoader``, each ``for`` is a whole epoch with an order of its own, and one that is broken
    off is over; after ``load_state_dict`` the first is the rest of the epoch. ``set_epoch`` is
    not needed, but where ranks may begin unlike numbers of epochs. ``quality()`` says how even
    the shuffle is. See :class:`~tensorstash.loading.feed.Feed` for all methods.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int = 1,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        lanes: int = 64,
        pool: int | None = None,
        pool_bytes: int | str = "256MiB",
        threads: int | None = None,
        prefetch: int = 4,
        pin_memory: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        """``source``: records, windows, patches or mixtures; a stored array, an array or a
        tensor, or a tuple or dict of them. Arrays in what it presents become tensors and dicts a
        ``Batch``, unless its user has chosen a format for it.

        ``shuffle=True`` reads each block of rows once an epoch and holds up to ``pool_bytes``;
        ``"exact"`` is a true shuffle. ``rank`` and ``world_size`` are by default those of
        ``torch.distributed``, where that is initialized. ``transform`` gets each batch, one after
        another in the background thread: what it draws from torch's global generator it
        does not draw in the order of the training loop's.
        """
        rows = source_of(source)
        rank, world_size = ranks(rank, world_size)
        super().__init__(
            rows,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            lanes=lanes,
            pool=pool,
            pool_bytes=pool_bytes,
            threads=threads,
            prefetch=prefetch,
            finish=_Finish(rows, transform, pin_memory),
        )


class _Finish:
    """Columns made a batch: presented, as tensors, transformed, pinned."""

    def __init__(
        self, source: Source, transform: Callable[[Any], Any] | None, pin_memory: bool
    ) -> None:
        self._present = source.present
        self._as_it_is = getattr(source, "form", None) is not None
        self._ragged: str | None = getattr(source, "untouched", None)
        self._transform = transform
        self._pins = pin_memory and _has_accelerator()
        self._pinning: int | None = None
        self._device = torch.accelerator.current_device_index() if self._pins else 0

    def __call__(self, columns: Columns) -> Any:
        if self._ragged is not None:  # tensors at once, not of arrays that were made before
            batch: Any = present(columns, self._ragged)
        else:
            batch = self._present(columns)
            if not self._as_it_is:
                batch = shown(batch)
        if self._transform is not None:
            batch = self._transform(batch)
        return self._pin(batch) if self._pins else batch

    def _pin(self, batch: Any) -> Any:
        here = threading.get_ident()
        if self._pinning != here:
            # Every thread has a current device of its own; that of a new one is the first, on
            # which every rank's would otherwise take memory.
            torch.accelerator.set_device_index(self._device)
            self._pinning = here
        return moved(batch, lambda tensor: tensor.pin_memory())


def _has_accelerator() -> bool:
    found = hasattr(torch, "accelerator") and torch.accelerator.is_available()
    if not found:
        warnings.warn(
            "pin_memory needs an accelerator, and torch sees none: batches are not pinned",
            stacklevel=4,
        )
    return found


def source_of(given: Any) -> Source:
    """What to take rows from: as :func:`~tensorstash.sources.beside.as_rows`, or the arrays of a
    dataset."""
    if not isinstance(given, ArrayDataset):
        return as_rows(given)
    if given.transform is not None:
        raise Invalid(
            "the transform of an ArrayDataset gets rows, that of a Loader batches: make the "
            "dataset without, and give the Loader one"
        )
    return as_rows(given.arrays[0] if len(given.arrays) == 1 else given.arrays)


def ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which rank of how many: those given, or those of ``torch.distributed``."""
    if (rank is None) != (world_size is None):
        raise Invalid("rank and world_size belong together: give both, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
