"""Where patches lie: on a grid, or anywhere by a seed. Pure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..loading.permutation import key_of

Places = NDArray[np.int64]


class Corners(ABC):
    """The first position of every patch, an axis a column, by the patch's number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def at(self, patches: Places) -> Places:
        """The corners of some patches, of shape ``(patches, axes)``."""


class GridCorners(Corners):
    """Patches at equal distances, numbered in C order: patch ``i`` is ``i`` of ``counts`` by
    ``np.unravel_index``."""

    def __init__(self, counts: Sequence[int], stride: Sequence[int]) -> None:
        """So many along each axis, so far apart."""
        self.counts = tuple(counts)
        self.stride = tuple(stride)

    @classmethod
    def over(
        cls, lengths: Sequence[int], shape: Sequence[int], stride: Sequence[int], cover: bool
    ) -> GridCorners:
        """Patches of ``shape`` over axes of ``lengths``: whole ones only, or with ``cover`` as
        many more as it takes to reach the end, of which the last reach beyond it."""
        sizes = list(zip(lengths, shape, stride, strict=True))
        if cover:
            counts = [
                min(-(-n // step), 1 + max(0, -(-(n - size) // step))) for n, size, step in sizes
            ]
        else:
            counts = [max(0, (n - size) // step + 1) for n, size, step in sizes]
        return cls(counts, stride)

    def __len__(self) -> int:
        return math.prod(self.counts)

    def at(self, patches: Places) -> Places:
        """See :meth:`Corners.at`."""
        found = np.empty((len(patches), len(self.counts)), np.int64)
        rest = patches
        for k in reversed(range(len(self.counts))):
            rest, place = np.divmod(rest, max(1, self.counts[k]))
            found[:, k] = place * self.stride[k]
        return found


class RandomCorners(Corners):
    """Patches anywhere, whole: the place of each is a function of ``(seed, epoch, number)``
    alone, the same for ever."""

    def __init__(self, rooms: Sequence[int], count: int, seed: int, epoch: int) -> None:
        """``count`` patches that may begin at ``rooms`` positions along each axis."""
        self.rooms = tuple(rooms)
        self.count = count
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def at(self, patches: Places) -> Places:
        """See :meth:`Corners.at`."""
        found = np.empty((len(patches), len(self.rooms)), np.int64)
        for k, room in enumerate(self.rooms):
            drawn = key_of(self.seed, self.epoch, k, patches)
            found[:, k] = drawn % np.uint64(room)
        return found
