"""What is different in a worker of torch's ``DataLoader``: several of them fill the processors, may
each iterate a whole dataset, and hand errors to their parent as text."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import Conflict, Corrupt, DriverError, Invalid, StashError, counted


def in_worker() -> bool:
    """Whether this is a worker of torch's ``DataLoader``, of which several fill the processors."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


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


@contextmanager
def keeping_fields() -> Iterator[None]:
    """Errors raised within survive the journey out of a worker with their fields."""
    try:
        yield
    except StashError as error:
        kind = _IN_WORKER.get(type(error))
        if kind is None or not in_worker():
            raise
        raise kind.of(error) from error


class _FromWorker(StashError):
    """An error with fields, raised in a loader's worker. torch makes it anew in the parent from
    its class and its printed text alone, so the fields travel in that text, as a note."""

    def __init__(self, message: str, **fields: Any) -> None:
        found = re.search(f"^{_NOTE}(.*)$", message, re.MULTILINE)
        if found is None:
            super().__init__(message, **fields)
            return
        told, fields = ast.literal_eval(found[1])
        super().__init__(told, **fields)
        self.add_note(message)

    @classmethod
    def of(cls, error: StashError) -> StashError:
        """``error``, fit for the journey."""
        made = cls(str(error), **vars(error))
        made.add_note(f"{_NOTE}{(str(error), vars(error))!r}")
        return made


class CorruptInWorker(_FromWorker, Corrupt):
    """A :class:`~tensorstash.errors.Corrupt` that came from a ``DataLoader`` worker."""


class ConflictInWorker(_FromWorker, Conflict):
    """A :class:`~tensorstash.errors.Conflict` that came from a ``DataLoader`` worker."""


class DriverErrorInWorker(_FromWorker, DriverError):
    """A :class:`~tensorstash.errors.DriverError` that came from a ``DataLoader`` worker."""


_NOTE = "tensorstash carries: "
_IN_WORKER: dict[type[StashError], type[_FromWorker]] = {
    Corrupt: CorruptInWorker,
    Conflict: ConflictInWorker,
    DriverError: DriverErrorInWorker,
}
