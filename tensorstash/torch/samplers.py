"""The loader's orders for torch's own ``DataLoader``, and torchdata's ``StatefulDataLoader``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch.utils.data import Sampler

from ..loading.course import Course, Shuffle
from ..loading.epochs import Progress
from .loader import ranks, source_of


class _Sampler(Course):
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
            source_of(source),
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

    def _batches(self, first: bool) -> Iterator[tuple[list[int], int, Progress]]:
        """Rows of each batch, and the epoch's position after it.

        The epoch begins with the first batch: loaders make iterators that they never use.
        ``first``: the iterator is the first since a state was loaded. Where that is of an epoch's
        end, torchdata's workers use up this one and then expect the next epoch of another; without
        workers it is the one that is not used.
        """
        progress = self._begin(3, rest=first)
        state = progress.state
        order = self._ordering.order(self._epochs.of(state), state)
        try:
            for positions, bounds, after in self._share.windows(order, progress.position):
                rows = order.rows(positions).tolist()
                for (a, b), position in zip(pairwise(bounds), after, strict=True):
                    yield rows[a:b], position, progress
            progress.position = state.rows
        finally:
            progress.over = True


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
        return self._lists(self._epochs.claim())

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
        return self._rows(self._epochs.claim())

    def _rows(self, first: bool) -> Iterator[int]:
        for rows, position, progress in self._batches(first):
            before = progress.position
            for k, row in enumerate(rows, 1):
                progress.torn = self.world_size > 1 and k < len(rows)
                progress.position = position if k == len(rows) else before + k
                yield row

    def __len__(self) -> int:
        """Rows of the epoch that is next, or under way, for this rank as for every other."""
        rows = self._epochs.rows(over=False)
        left_out, twice = self._share.dropped(rows), self._share.padded(rows)
        return (rows - left_out + twice) // self.world_size
