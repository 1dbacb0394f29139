"""Which epoch is next, and where in it: what resuming and going on from epoch to epoch mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import Invalid
from .batches import Reads
from .ordering import Ordering
from .source import Source
from .state import State


@dataclass
class Progress:
    """How far an epoch is that was begun at ``state``. ``torn``: in the midst of a batch of
    several ranks, whose rows are no run of positions. ``over``: nothing more comes of it."""

    state: State
    position: int
    reads: Reads = field(default_factory=Reads)
    torn: bool = False
    over: bool = False

    @property
    def rows(self) -> int:
        """How many rows it has had and has, from where it was begun."""
        return self.state.rows - self.state.position


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
        self._claimed = False

    @property
    def state(self) -> State:
        """What will be begun, where that was said; else how far it is."""
        if self._coming is not None:
            return self._coming
        now = self.now
        if now is None:
            return self._fresh(0)
        if now.torn:
            raise Invalid(
                "of several ranks there is a state only between batches: give the sampler the "
                "batch_size of its loader"
            )
        return replace(now.state, position=now.position)

    @property
    def epoch(self) -> int:
        """The number of the one in :attr:`state`."""
        if self._coming is not None:
            return self._coming.epoch
        return 0 if self.now is None else self.now.state.epoch

    def set(self, epoch: int) -> None:
        """The next to begin is this one; where it was loaded, its rest."""
        if not (self._loaded and self._coming is not None and self._coming.epoch == epoch):
            self._coming, self._loaded = self._fresh(epoch), False
        self._named = True

    def load(self, state: Mapping[str, Any]) -> None:
        """The next to begin is the rest of the one in ``state``; where nothing is left of it, the
        one after it, unless :meth:`set` names this one."""
        found = State.of(state)
        self.ordering.check(self.of(found), found)
        self.seed = found.seed
        self._coming, self._loaded, self._named = found, True, False
        self._claimed = False

    def claim(self) -> bool:
        """Whether a state was loaded and this was not asked since."""
        claimed, self._claimed = self._claimed, True
        return self._loaded and not claimed

    def next(self, rest: bool = False) -> Progress:
        """Begin; ``rest``: with the rest of one that was loaded even if nothing is left of it."""
        state = self._coming
        if state is None:
            state = self._fresh(0 if self.now is None else self.now.state.epoch + 1)
        elif self._passed(rest):
            state = self._fresh(state.epoch + 1)
        elif self._loaded:
            self.ordering.check(self.of(state), state)  # rows may have come since
        else:
            state = self._fresh(state.epoch)
        self._coming, self._loaded, self._named = None, False, False
        self.now = Progress(state, state.position)
        return self.now

    def _passed(self, rest: bool) -> bool:
        """Whether a state was loaded of which nothing is left: then the epoch after it is next."""
        state = self._coming
        ended = self._loaded and state is not None and state.position >= state.rows
        return ended and not (self._named or rest)

    def coming_rows(self, rest: bool = False) -> int:
        """How many rows :meth:`next` will begin with."""
        state = self._coming
        if state is None or not self._loaded or self._passed(rest):
            return len(self.source)
        return state.rows - state.position

    def rows(self, over: bool) -> int:
        """How many rows what was begun has, while it is not over, else what will be begun next;
        ``over``: what was begun last counts until something else is loaded, named or begun."""
        now = self.now
        if self._coming is not None or now is None or (now.over and not over):
            return self.coming_rows()
        return now.rows

    def of(self, state: State) -> Source:
        """The source as it is in the epoch of a state: where rows were added since it was begun,
        and the source can tell, the rows there were."""
        source = self.at(state.epoch)
        first = getattr(source, "at_rows", None)
        extent = getattr(source, "extent", 0)
        have, had = (extent, state.extent) if extent else (len(source), state.rows)
        if first is None or have <= had or (extent and not had):
            return source
        kept: Source = first(had)
        return kept

    def at(self, epoch: int) -> Source:
        """The source as it is in an epoch: in a mixture, sources go on where they stood."""
        move = getattr(self.source, "at_epoch", None)
        if move is None:
            return self.source
        moved: Source = move(epoch)
        return moved

    def _fresh(self, epoch: int) -> State:
        return self.ordering.begin(self.at(epoch), self.seed, epoch)
