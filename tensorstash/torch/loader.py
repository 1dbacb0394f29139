"""Batches of tensors from threads of this process, and their orders for torch's ``DataLoader``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import distributed
from torch.utils.data import Sampler

from ..columns import Columns
from ..errors import Invalid
from ..loading.loader import BatchLoader
from ..loading.present import moved, present, shown
from ..loading.sampler import EpochPosition, EpochSampler, Shuffle
from ..loading.source import Source
from ..sources.arrays import as_source


class Loader(BatchLoader[Any]):
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
    the shuffle is. See :class:`~tensorstash.loading.feed.BatchLoader` for all methods.
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
        rows = as_source(source)
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
        self._as_it_is = source.format is not None
        self._ragged: str | None = source.default_ragged
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


def ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which rank of how many: those given, or those of ``torch.distributed``."""
    if (rank is None) != (world_size is None):
        raise Invalid("rank and world_size belong together: give both, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class _Sampler(EpochSampler):
    def __init__(
        self,
        source: Any,
        batch_size: int = 1,
        *,
        shuffle: Shuffle = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        lanes: int = 64,
        pool: int | None = None,
        pool_bytes: int | str = "256MiB",
    ) -> None:
        """``source`` is the dataset, or what it has its rows from; the rest as for
        :class:`~tensorstash.torch.Loader`."""
        rank, world_size = ranks(rank, world_size)
        super().__init__(
            as_source(source),
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            lanes=lanes,
            pool=pool,
            pool_bytes=pool_bytes,
        )

    def _batches(self, first: bool) -> Iterator[tuple[list[int], int, EpochPosition]]:
        """Rows of each batch, and the epoch's position after it.

        The epoch begins with the first batch: loaders make iterators that they never use.
        ``first``: the iterator is the first since a state was loaded. Where that is of an epoch's
        end, torchdata's workers use up this one and then expect the next epoch of another; without
        workers it is the one that is not used.
        """
        now = self.begin(3, rest=first)
        order = self.plan(now.state).order
        try:
            for positions, bounds, after in self.ranks.windows(order, now.position):
                rows = order.rows(positions).tolist()
                for (a, b), position in zip(pairwise(bounds), after, strict=True):
                    yield rows[a:b], position, now
            now.position = now.state.rows
        finally:
            now.over = True


class ShuffleBatchSampler(_Sampler, Sampler[list[int]]):
    """Batches of row numbers in the order of :class:`~tensorstash.torch.Loader`.

    ``DataLoader(records, batch_size=None, sampler=ShuffleBatchSampler(records, 64))`` reads each
    batch at once and collates nothing; with ``batch_sampler=`` rows are collated. The epoch goes
    on by itself, ``set_epoch`` names one, and ``state_dict`` is of under 250 bytes. A plain
    ``DataLoader`` with workers asks for batches before it yields them, so that states of the
    sampler are ahead: torchdata's ``StatefulDataLoader`` keeps those that belong to what
    was yielded.
    """

    def __iter__(self) -> Iterator[list[int]]:
        return self._lists(self.claim())

    def _lists(self, first: bool) -> Iterator[list[int]]:
        for rows, position, progress in self._batches(first):
            progress.position = position
            yield rows


class ShuffleSampler(_Sampler, Sampler[int]):
    """Single row numbers in the order of :class:`~tensorstash.torch.Loader`.

    ``DataLoader(records, batch_size=64, sampler=ShuffleSampler(records, 64))``: ``batch_size`` is
    the loader's, which the default pool and the division among ranks go by. See
    :class:`ShuffleBatchSampler` for epochs and states; of several ranks, a state is one between
    batches.
    """

    def __iter__(self) -> Iterator[int]:
        return self._numbers(self.claim())

    def _numbers(self, first: bool) -> Iterator[int]:
        for rows, position, progress in self._batches(first):
            before = progress.position
            for k, row in enumerate(rows, 1):
                progress.torn = self.world_size > 1 and k < len(rows)
                progress.position = position if k == len(rows) else before + k
                yield row

    def __len__(self) -> int:
        """Rows of the epoch that is next, or under way, for this rank as for every other."""
        rows = self.rows(over=False)
        left_out, twice = self.ranks.dropped(rows), self.ranks.padded(rows)
        return (rows - left_out + twice) // self.world_size
