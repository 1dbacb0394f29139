"""How many blocks a loader may hold in memory, and so how well it may shuffle."""

from __future__ import annotations

from dataclasses import dataclass

from .share import Share
from .source import Blocks, Source

_BATCHES = 4  # blocks in the pool for each row of a global batch: 12 % inflation at the worst
_ASIDE = 8  # the part of the memory, one in so many, that is left to blocks on their way


@dataclass(frozen=True)
class Room:
    """What the user allows: ``lanes`` at most, and a ``pool`` of so many blocks, or one that fits
    in ``limit`` bytes a rank with all that is held beside it.

    What comes of it depends on nothing of one machine, such as its processors: all ranks must
    come to the same.
    """

    lanes: int
    pool: int | None
    limit: int

    def wanted(self, blocks: Blocks, share: Share) -> int:
        """The pool that was asked for, or would be good enough."""
        wanted = _BATCHES * share.whole if self.pool is None else self.pool
        return max(1, min(wanted, len(blocks)))

    def pooled(self, source: Source, share: Share) -> tuple[int, int]:
        """The lanes and the pool of a chunk-aware shuffle."""
        blocks = source.blocks
        pool = self.wanted(blocks, share)
        if self.pool is None:
            # All ranks together, for each holds its own lanes.
            held = self.limit // _mean_bytes(source, blocks) * share.world
            if held < len(blocks):
                begun = share.whole * len(blocks) // max(1, int(blocks.bounds[-1])) + 1
                held = max(1, held - held // _ASIDE - begun)
                # Beside the pool, a block for each lane: that of which it has begun some rows.
                pool = max(1, min(pool, max(held - self.lanes, held // 2)))
        return max(1, min(self.lanes, pool, len(blocks))), pool

    def aside(self, source: Source) -> int:
        """How many blocks may be on their way that are not wanted yet."""
        return max(1, self.limit // _ASIDE // _mean_bytes(source, source.blocks))

    def fits(self, source: Source) -> bool:
        """Whether a rank may hold every block."""
        blocks = source.blocks
        return len(blocks) * _mean_bytes(source, blocks) <= self.limit


def _mean_bytes(source: Source, blocks: Blocks) -> int:
    rows = int(blocks.bounds[-1])
    return max(1, source.row_bytes * -(-rows // max(1, len(blocks))))
