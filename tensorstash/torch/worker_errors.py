"""Errors that keep their fields on the way from a ``DataLoader`` worker to its parent."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import get_worker_info

from ..errors import Conflict, Corrupt, DriverError, StashError


@contextmanager
def keeping_fields() -> Iterator[None]:
    """Errors raised within survive the journey out of a worker with their fields."""
    try:
        yield
    except StashError as error:
        kind = _IN_WORKER.get(type(error))
        if kind is None or get_worker_info() is None:
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
