"""Which order an epoch has, and what of it must be remembered to have it again."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from .order import Exact, InOrder, Order
from .permutation import key_of
from .pooled import Pooled
from .room import Room
from .share import Share
from .source import Blocks, Source
from .state import State

Kind: TypeAlias = Literal["in order", "exact", "pooled"]

_AHEAD = 64  # slots for blocks on their way; memory that is not read into costs none
_TOLD = 1 << 16  # block bounds and rows that tell a view from another


@dataclass(frozen=True)
class Ordering:
    """The orders of one kind, for a loader's ``share`` and the ``room`` it has."""

    kind: Kind
    share: Share
    room: Room

    def begin(self, source: Source, seed: int, epoch: int) -> State:
        """The state of an epoch that begins."""
        lanes, pool = self.room.pooled(source, self.share) if self.kind == "pooled" else (0, 0)
        data = fingerprint(source)
        extent = getattr(source, "extent", 0)
        return State(self.kind, seed, epoch, 0, len(source), data, lanes, pool, extent=extent)

    def check(self, source: Source, state: State) -> None:
        """Raise :class:`~tensorstash.errors.Invalid` unless ``state`` is of this source and kind
        of order."""
        state.check(self.kind, len(source), fingerprint(source))

    def order(self, source: Source, state: State) -> Order:
        """The order of the epoch that ``state`` names."""
        make = _in_order if self.kind == "in order" else partial(_shuffled, state)
        own = getattr(source, "order", None)
        order: Order = make(source.blocks, 0, 1.0) if own is None else own(make)
        return order

    def slots(self, source: Source, state: State, order: Order) -> int:
        """How many blocks to make room for; 0: batches are read without."""
        blocks = len(order.blocks)
        if self.kind == "exact":
            return blocks if self.room.fits(source) else 0
        if self.kind == "in order" and getattr(source, "raw", False):
            return 0  # nothing is decoded, so nothing is decoded twice
        held = 2 * (state.pool + state.lanes) // self.share.world
        in_batch = self.share.whole * blocks // max(1, order.count)
        return max(1, min(blocks, held + in_batch + _AHEAD))


def _in_order(blocks: Blocks, number: int, part: float) -> Order:
    """The rows of one of several sources, or of the only one, as they are stored."""
    return InOrder(blocks)


def _shuffled(state: State, blocks: Blocks, number: int, part: float) -> Order:
    """The shuffle of one of several sources that make up ``part`` of the rows, or of the only
    one."""
    seed = int(key_of(state.seed, number)[0]) if number else state.seed
    if state.order == "exact":
        return Exact(blocks, seed, state.epoch)
    lanes = max(1, round(state.lanes * part))
    return Pooled(blocks, seed, state.epoch, lanes, max(lanes, round(state.pool * part)))


def fingerprint(source: Source) -> str:
    """The source's own, and for views of other rows that of its blocks."""
    blocks = source.blocks
    told = zlib.crc32(blocks.bounds[:: 1 + len(blocks.bounds) // _TOLD].tobytes())
    if blocks.order is not None:
        some = blocks.order[:: 1 + len(blocks.order) // _TOLD]
        told = zlib.crc32(np.ascontiguousarray(some).tobytes(), told)
    return f"{source.fingerprint}-{told:08x}"
