"""Selection in whole chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .grid import Grid
from .index import Transform, select, spans


def blocks(grid: Grid) -> Callable[[Any, Sequence[int]], Transform]:
    """The rule by which integers and slices of step 1 count in chunks of ``grid``."""

    def rule(selection: Any, shape: Sequence[int]) -> Transform:
        bounds = spans(select(selection, grid.counts(shape)))
        slices = []
        for (start, stop), axis in zip(bounds, grid.axes, strict=True):
            end = axis.start(stop - 1) + axis.size(stop - 1) if stop > start else 0
            slices.append(slice(axis.start(start) if stop > start else 0, end))
        return select(tuple(slices), shape)

    return rule
