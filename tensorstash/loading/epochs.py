"""Which epoch is next, and where in it: what resuming and going on from epoch to epoch mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .batches import Reads
from .ordering import Ordering
from .source import Source
from .state import State


@dataclass
class Progress:
    """How far an epoch is that was begun at ``state``."""

    state: State
    position: int
    reads: Reads = field(default_factory=Reads)


class Epochs:
    """The epochs of a source under one ordering.

    Each is begun by :meth:`next`: the next one, the one that :meth:`set` named, or the rest of
    one that was loaded. What was begun and not finished is over when another is begun.
    """

    def __init__(self, source: Source, ordering: Ordering, seed: int) -> None:
        self.source = source
        self.ordering = ordering
        self.seed = seed
        self.now: Progress | None = None
        self._coming: State | None = None
        self._loaded = False
        self._named = False

    @property
    def state(self) -> State:
        """What will be begun, where that was said; else how far it is."""
        if self._coming is not None:
            return self._coming
        now = self.now
        return self._fresh(0) if now is None else replace(now.state, position=now.position)

    def set(self, epoch: int) -> None:
        """The next to begin is this one; where it was loaded, its rest."""
        if not (self._loaded and self._coming is not None and self._coming.epoch == epoch):
            self._coming, self._loaded = self._fresh(epoch), False
        self._named = True

    def load(self, state: Mapping[str, Any]) -> None:
        """The next to begin is the rest of the one in ``state``; where nothing is left of it, the
        one after it, unless :meth:`set` names this one."""
        found = State.of(state)
        self.ordering.check(self.at(found.epoch), found)
        self.seed = found.seed
        self._coming, self._loaded, self._named = found, True, False

    def next(self) -> Progress:
        """Begin."""
        state = self._coming
        if state is None:
            state = self._fresh(0 if self.now is None else self.now.state.epoch + 1)
        elif self._loaded and state.position >= state.rows and not self._named:
            state = self._fresh(state.epoch + 1)
        else:
            self.ordering.check(self.at(state.epoch), state)  # rows may have come since
        self._coming, self._loaded, self._named = None, False, False
        self.now = Progress(state, state.position)
        return self.now

    def at(self, epoch: int) -> Source:
        """The source as it is in an epoch: in a mixture, sources go on where they stood."""
        move = getattr(self.source, "at_epoch", None)
        if move is None:
            return self.source
        moved: Source = move(epoch)
        return moved

    def _fresh(self, epoch: int) -> State:
        return self.ordering.begin(self.at(epoch), self.seed, epoch)
