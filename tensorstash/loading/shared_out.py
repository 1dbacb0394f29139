"""Whether workers of torch's ``DataLoader`` that iterate a loader each have rows of their own."""

from __future__ import annotations

import sys

from ..errors import Invalid, counted


def check_shared_out(rank: int, world: int) -> None:
    """Raise :class:`~tensorstash.errors.Invalid` in one of several workers over an
    ``IterableDataset``, unless workers are counted as ranks: every worker runs the whole dataset,
    so that each row would come once a worker.

    Rows shared out in another way, by views, are refused too: whether they are cannot be seen
    from within one worker.
    """
    data = sys.modules.get("torch.utils.data")
    if data is None:
        return
    info = data.get_worker_info()
    if info is None or info.num_workers < 2 or not isinstance(info.dataset, data.IterableDataset):
        return
    if world % info.num_workers == 0 and rank % info.num_workers == info.id:
        return
    raise Invalid(
        f"each of {counted(info.num_workers, 'worker')} iterates the IterableDataset, and "
        f"would give every "
        f"row of rank {rank} of {world}: with get_worker_info() as info, make the loader in the "
        "worker, with rank=rank * info.num_workers + info.id and "
        "world_size=world_size * info.num_workers; or let the DataLoader have num_workers=0 or 1, "
        "for a loader reads with threads"
    )
