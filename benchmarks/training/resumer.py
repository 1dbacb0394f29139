"""The contract of whoever can go on in the middle of an epoch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contestant import Contestant


@dataclass(slots=True)
class Running:
    """An epoch under way: ``batches`` yields the numbers of rows, ``snapshot`` its state."""

    batches: Iterator[Any]
    snapshot: Callable[[], Any]
    end: Callable[[], Any] = lambda: None

    def next(self) -> Any:
        """The next batch; ``None`` at the end."""
        return next(self.batches, None)

    def state(self) -> bytes:
        """As a checkpoint holds it."""
        return pickle.dumps(self.snapshot())

    def close(self) -> None:
        """Let go of it."""
        self.end()
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()


class Resumer(Contestant):
    """A library, used in one way."""

    workers = True
    """Whether it takes worker processes."""
    ranks = "given"
    """How it learns of ranks: ``given`` by arguments; as ``processes`` of their own, with torch's
    environment; not at all (empty)."""
    forks = True
    """Whether its workers may be forked."""

    def write(self, path: Path, rows: int) -> None:
        """Store rows of which each knows its number."""
        raise NotImplementedError

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        """The epoch from its begin, or from a state; ``batch`` is of this rank."""
        raise NotImplementedError

    def merge(self, blobs: list[bytes]) -> bytes:
        """One state of those of all ranks: the first, unless the library does more."""
        return blobs[0]


def loaded(saved: bytes | None) -> Any:
    """The state that was saved."""
    return None if saved is None else pickle.loads(saved)
