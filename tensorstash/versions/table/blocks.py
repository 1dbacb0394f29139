"""Which page of which level a chunk's reference is in: arithmetic on powers of two.

An array's chunks are cut into blocks, a page each; these pages again into blocks, and so on up to
one page, the root. Each level has a block shape of its own, so that a grid can grow along any axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...cached import Cached
from ...metadata.document import MAX_NDIM
from ..binary import Reader, varint
from ..refs import MOST_POSITIONS

Index: TypeAlias = tuple[int, ...]

MOST_INDEX_BITS = 62
"""Of the index of a chunk along one axis."""

_MOST_LEVELS = 64
_PAGE_BITS = MOST_POSITIONS.bit_length() - 1


def choose_block(counts: Sequence[int]) -> Index:
    """The shape of the pages of an array that has ``counts`` chunks along its axes: powers of two,
    at most 4096 in all, of about the same length along each axis, and no longer than ``counts``
    need; the first axis, which mostly is the one that grows, takes what is left."""
    return tuple(1 << bits for bits in _bits(counts, [0] if len(counts) else []))


def _bits(counts: Sequence[int], growing: Sequence[int], most: Sequence[int] = ()) -> list[int]:
    """Bits of a block along each axis, at most ``most``; ``growing`` get those not needed."""
    wanted = [max(count - 1, 0).bit_length() for count in counts]
    bits = [0] * len(counts)
    for _ in range(_PAGE_BITS):
        short = [axis for axis in range(len(bits)) if bits[axis] < wanted[axis]]
        spare = [axis for axis in growing if not most or bits[axis] < most[axis]]
        if not (short or spare):
            break
        bits[min(short or spare, key=bits.__getitem__)] += 1
    return bits


@dataclass(frozen=True)
class Blocks:
    """The block shapes of each level, as bits along each axis; the first is that of the pages of
    chunks, which never changes, the last that of the root."""

    bits: tuple[Index, ...]

    @classmethod
    def chosen(cls, counts: Sequence[int]) -> Blocks:
        """One level, for an array that has ``counts`` chunks along its axes."""
        return cls((tuple(side.bit_length() - 1 for side in choose_block(counts)),))

    @property
    def ndim(self) -> int:
        """Axes of the array."""
        return len(self.bits[0])

    @property
    def levels(self) -> int:
        """Levels of pages."""
        return len(self.bits)

    @property
    def block(self) -> Index:
        """Chunks of a page along each axis."""
        return tuple(1 << bits for bits in self.bits[0])

    def size(self, level: int) -> int:
        """Positions of a page of ``level``."""
        return 1 << sum(self.bits[level])

    @Cached
    def shifts(self) -> tuple[Index, ...]:
        """Of each level, and of what would be above the root: bits of the chunks that one position
        spans along each axis."""
        out = [(0,) * self.ndim]
        for bits in self.bits:
            out.append(tuple(map(sum, zip(out[-1], bits, strict=True))))
        return tuple(out)

    def covers(self, index: Sequence[int]) -> bool:
        """Whether the root has a place for a chunk."""
        return not any(i >> shift for i, shift in zip(index, self.shifts[-1], strict=True))

    def covering(self, index: Sequence[int], counts: Sequence[int]) -> Blocks:
        """With as many levels as a chunk needs, in a grid of ``counts`` chunks or more."""
        out = self
        most = [
            max(i + 1, min(count, 1 << MOST_INDEX_BITS))
            for i, count in zip(index, counts or index, strict=True)
        ]
        while not out.covers(index):
            above = [-(-count >> shift) for count, shift in zip(most, out.shifts[-1], strict=True)]
            growing = [axis for axis, count in enumerate(above) if count > 1]
            room = [MOST_INDEX_BITS - shift for shift in out.shifts[-1]]
            out = Blocks((*out.bits, tuple(_bits(above, growing, room))))
        return out

    def lowered(self) -> Blocks:
        """Without the level of the root."""
        return Blocks(self.bits[:-1])

    def place(self, index: Sequence[int], level: int) -> tuple[Index, int]:
        """The page of ``level`` that a chunk lies below, and at which position of it."""
        shifts = self.shifts[level]
        return self.above([i >> shift for i, shift in zip(index, shifts, strict=True)], level)

    def position(self, index: Sequence[int], level: int) -> int:
        """At which position of its page of ``level`` a chunk is, or what it lies below."""
        position = 0
        for i, shift, bits in zip(index, self.shifts[level], self.bits[level], strict=True):
            position = position << bits | i >> shift & (1 << bits) - 1
        return position

    def above(self, below: Sequence[int], level: int) -> tuple[Index, int]:
        """The page of ``level`` that refers to the page ``below`` of the level below (of level 0,
        to a chunk), and at which position."""
        position = 0
        page = []
        for at, bits in zip(below, self.bits[level], strict=True):
            position = position << bits | at & (1 << bits) - 1
            page.append(at >> bits)
        return tuple(page), position

    def positions(self, indices: NDArray[np.int64], level: int) -> NDArray[np.uint16]:
        """The positions of chunks (n, ndim) in their pages of ``level``."""
        out = np.zeros(len(indices), np.int64)
        for axis, (shift, bits) in enumerate(
            zip(self.shifts[level], self.bits[level], strict=True)
        ):
            out = out << bits | indices[:, axis] >> shift & (1 << bits) - 1
        return out.astype(np.uint16)

    def inside(self, page: Index, positions: NDArray[Any], level: int) -> NDArray[np.int64]:
        """The reverse of :meth:`place`: what is at ``positions`` of a page of ``level``, chunks or
        pages of the level below, (n, ndim)."""
        rest = positions.astype(np.int64)
        out = np.empty((len(rest), self.ndim), np.int64)
        for axis in reversed(range(self.ndim)):
            bits = self.bits[level][axis]
            out[:, axis] = page[axis] << bits | rest & (1 << bits) - 1
            rest >>= bits
        return out

    def encode(self) -> bytes:
        """Their bytes."""
        head = varint(self.ndim) + varint(self.levels)
        return head + b"".join(map(bytes, self.bits))

    @classmethod
    def read(cls, reader: Reader) -> Blocks:
        """What :meth:`encode` gave."""
        ndim = reader.varint(MAX_NDIM)
        levels = reader.varint(_MOST_LEVELS)
        if not levels:
            reader.fail("has a table without levels")
        blocks = cls(tuple(tuple(reader.take(ndim)) for _ in range(levels)))
        if any(sum(bits) > _PAGE_BITS for bits in blocks.bits):
            reader.fail(f"has pages of more than {MOST_POSITIONS} positions")
        if max(blocks.shifts[-1], default=0) > MOST_INDEX_BITS:
            reader.fail("has more levels than any array needs")
        return blocks
