"""Batches of tensors from threads of this process, and their orders for torch's ``DataLoader``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Unpack

import torch
from torch import distributed
from torch.utils.data import Sampler

from ..columns import Columns
from ..errors import Invalid, short
from ..loading.loader import BatchLoader
from ..loading.present import moved, to_batch, to_tensors
from ..loading.sampler import (
    EpochOptions,
    EpochPosition,
    EpochSampler,
    check_options,
    shows_epoch_options,
)
from ..loading.source import Source
from ..sources.arrays import as_source


class Loader(BatchLoader[Any]):
    """Iterate over batches of tensors, which threads read ahead; each row comes once per epoch.

    ::

        loader = Loader(records, 64, shuffle=True)
        for epoch in range(10):
            for batch in loader:
                ...

    The order depends only on ``seed`` and the number of the epoch. ``state_dict()``, less than 250
    bytes of JSON, can be resumed exactly with any number of ranks, batch size and threads. As with
    torch's ``DataLoader``, each ``for`` loop is a whole epoch in a new order, and one that is
    broken off is over; after ``load_state_dict`` the first is the rest of the epoch. ``set_epoch``
    is needed only if ranks may begin different numbers of epochs. ``quality()`` returns how close
    the shuffle is to a random one. See :class:`~tensorstash.loading.loader.BatchLoader` for all
    methods.
    """

    @shows_epoch_options()
    def __init__(
        self,
        source: Any,
        batch_size: int = 1,
        *,
        threads: int | None = None,
        prefetch: int = 4,
        pin_memory: bool = False,
        transform: Callable[[Any], Any] | None = None,
        memory_limit: int | str | None = None,
        **options: Unpack[EpochOptions],
    ) -> None:
        """A loader, at the beginning of epoch 0.

        Args:
            source: records, windows, patches or mixtures; a stored array, an array or a tensor, a
                tuple or dict of them, or a dataset of ours. Arrays in what it presents become
                tensors and dicts a ``Batch``, unless its user has chosen a format for it.
            batch_size: rows of a batch, for each rank.
            shuffle: ``False``: row after row. ``True``: each block of rows is read once an epoch,
                and up to ``pool_bytes`` are held. ``"exact"``: a true shuffle, which reads blocks
                again where they do not all fit into ``pool_bytes``.
            seed: an integer; with the epoch's number, all that the order depends on.
            rank, world_size: which part of each global batch is this process', from 0 on, and of
                how many; if left out, those of ``torch.distributed`` where that is initialized,
                else 0 of 1.
            drop_last: leave out what is left at the end, rather than fill it up.
            lanes: blocks that the rows of a batch are dealt from at a time, at most.
            pool: blocks that a shuffle draws from; if left out, four for each row of a global
                batch, as far as ``pool_bytes`` allow.
            pool_bytes: what a rank may hold of decoded blocks: bytes, or ``"256MiB"``.
            threads: how many read at once; if left out, 16 where reading mostly waits, else one a
                processor, but one in all where trying shows that more are no faster.
            prefetch: batches made ahead of their use, at most; 0: no thread at all. None is where
                the loop does next to nothing with a batch, as to hand it over would take longer.
            pin_memory: give batches in page-locked memory, for an accelerator.
            transform: gets each batch, one after another in the background thread, and returns
                what is yielded. What it draws from torch's global generator it does not draw in
                the order of the training loop's.
            memory_limit: bytes, or ``"1GiB"``, that blocks and batches of this loader take together
                in each process. Where half of it does not hold the blocks that a shuffle draws
                from, each batch is read by itself, in the same order.

        Raises:
            Invalid: ``source`` has no rows to load, or an option is of the wrong kind or too small.
        """
        check_options(options, self)
        if transform is not None and not callable(transform):
            raise Invalid(f"transform is a function, not {short(transform)}")
        rows = as_source(source)
        super().__init__(
            rows,
            batch_size,
            threads=threads,
            prefetch=prefetch,
            finish=_Finish(rows, transform, pin_memory),
            memory_limit=memory_limit,
            **with_ranks(options),
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
        # Nothing of a user's, and nothing that belongs to a thread.
        self.anywhere = transform is None and not self._pins

    def __call__(self, columns: Columns) -> Any:
        if (
            torch.is_inference_mode_enabled()
        ):  # of the loop's thread: a batch is none of its results
            with torch.inference_mode(False):
                return self._made(columns)
        return self._made(columns)

    def _made(self, columns: Columns) -> Any:
        if self._ragged is not None:  # tensors at once, not of arrays that were made before
            batch: Any = to_batch(columns, self._ragged)
        else:
            batch = self._present(columns)
            if not self._as_it_is:
                batch = to_tensors(batch)
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


def with_ranks(options: EpochOptions) -> EpochOptions:
    """``options`` with the rank and the number of ranks: those given, or those of
    ``torch.distributed``."""
    rank, world_size = options.get("rank"), options.get("world_size")
    if (rank is None) != (world_size is None):
        raise Invalid("rank and world_size belong together: give both, or neither")
    if rank is None and distributed.is_available() and distributed.is_initialized():
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
    return {**options, "rank": rank, "world_size": world_size}


class _Sampler(EpochSampler):
    @shows_epoch_options(shuffle=True)
    def __init__(self, source: Any, batch_size: int = 1, **options: Unpack[EpochOptions]) -> None:
        """A sampler, at the beginning of epoch 0.

        Args:
            source: the dataset, or what it has its rows from: whatever
                :class:`~tensorstash.torch.Loader` takes.
            batch_size: rows of a batch, for each rank.
            options: those of :class:`~tensorstash.torch.Loader` that say which rows come when;
                ``shuffle`` is ``True`` if left out.

        Raises:
            Invalid: ``source`` has no rows to load, or an option is of the wrong kind or too small.
        """
        check_options(options, self)
        options.setdefault("shuffle", True)
        super().__init__(as_source(source), batch_size, **with_ranks(options))

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
    """Yield the row numbers of each batch in the order of :class:`~tensorstash.torch.Loader`.

    ``DataLoader(records, batch_size=None, sampler=ShuffleBatchSampler(records, 64))`` reads each
    batch at once and collates nothing; with ``batch_sampler=`` rows are collated. Each iteration
    is the next epoch; ``set_epoch`` chooses one. ``state_dict`` has less than 250 bytes. A plain
    ``DataLoader`` with workers requests batches before it yields them, so the state of the
    sampler is ahead; torchdata's ``StatefulDataLoader`` keeps the state that belongs to what was
    yielded.
    """

    def __iter__(self) -> Iterator[list[int]]:
        return self._lists(self.claim())

    def _lists(self, first: bool) -> Iterator[list[int]]:
        for rows, position, progress in self._batches(first):
            progress.position = position
            yield rows


class ShuffleSampler(_Sampler, Sampler[int]):
    """Yield row numbers, one by one, in the order of :class:`~tensorstash.torch.Loader`.

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
