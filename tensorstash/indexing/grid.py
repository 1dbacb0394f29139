"""Chunk grids: how each axis is cut into chunks. Pure arithmetic."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..errors import Invalid
from .selection import Transform, select, spans


@dataclass(frozen=True)
class RegularAxis:
    """Every chunk has ``edge`` elements, the last one too: it reaches beyond the array
    (Zarr v3 core, "Regular grids")."""

    edge: int

    def count(self, length: int) -> int:
        """Chunks that an axis of ``length`` elements touches."""
        return -(-length // self.edge)

    def start(self, index: int) -> int:
        """The first element of chunk ``index``."""
        return index * self.edge

    def starts(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """The first elements of several chunks."""
        return indices * self.edge

    def size(self, index: int) -> int:
        """The elements of chunk ``index``, padding included."""
        return self.edge

    def of(self, position: int) -> int:
        """The chunk that holds ``position``."""
        return position // self.edge

    def of_many(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """The chunks that hold each of ``positions``."""
        return positions // self.edge

    def covering(self, length: int) -> RegularAxis:
        """This axis: it covers any length."""
        return self

    def begins(self, other: AxisGrid) -> bool:
        """Whether ``other`` has the same chunks."""
        return self == other


@dataclass(frozen=True)
class RectilinearAxis:
    """Chunks of explicit lengths (Zarr extension ``rectilinear``). Their sum may exceed the
    array's length, never fall short of it. Beyond the last of them the axis goes on in chunks as
    long as its longest, of which :meth:`covering` lists as many as a longer array needs: so where
    a chunk begins depends neither on who grew the array nor in how many steps.

    ``runs`` are pairs of a length and how many chunks of it follow each other, or lengths alone;
    they stay runs, for a few bytes of a document can name any number of chunks.
    """

    runs: tuple[tuple[int, int], ...]

    def __init__(self, runs: Iterable[int | tuple[int, int]]) -> None:
        """See the class."""
        joined: list[tuple[int, int]] = []
        for run in runs:
            edge, count = (run, 1) if isinstance(run, int) else run
            if joined and joined[-1][0] == edge:
                count += joined.pop()[1]
            joined.append((edge, count))
        object.__setattr__(self, "runs", tuple(joined))

    @Cached
    def _edges(self) -> list[int]:
        """The length of each run's chunks, and of those beyond the last run."""
        edges = [edge for edge, _ in self.runs]
        return [*edges, max(edges, default=1)]

    @Cached
    def _firsts(self) -> tuple[list[int], list[int]]:
        """Of each run, the first element and the number of its first chunk; at the end, those of
        what follows the last run."""
        elements = accumulate((edge * count for edge, count in self.runs), initial=0)
        chunks = accumulate((count for _, count in self.runs), initial=0)
        return list(elements), list(chunks)

    @Cached
    def _arrays(self) -> NDArray[np.intp]:
        return np.array([*self._firsts, self._edges], np.intp)

    def covering(self, length: int) -> RectilinearAxis:
        """This axis with chunks listed for at least ``length`` elements."""
        edge, missing = self._edges[-1], length - self._firsts[0][-1]
        return RectilinearAxis((*self.runs, (edge, -(-missing // edge)))) if missing > 0 else self

    def begins(self, other: AxisGrid) -> bool:
        """Whether ``other`` lists all chunks of this axis, and may list more after them."""
        if not isinstance(other, RectilinearAxis) or len(self.runs) > len(other.runs):
            return False
        if not self.runs:
            return True
        last = len(self.runs) - 1
        (edge, count), (wanted, most) = self.runs[last], other.runs[last]
        return self.runs[:last] == other.runs[:last] and edge == wanted and count <= most

    def count(self, length: int) -> int:
        """Chunks that an axis of ``length`` elements touches."""
        if length <= 0:
            return 0
        elements, chunks = self._firsts
        run = bisect_left(elements, length) - 1
        return chunks[run] - (elements[run] - length) // self._edges[run]

    def start(self, index: int) -> int:
        """The first element of chunk ``index``."""
        elements, chunks = self._firsts
        run = bisect_right(chunks, index) - 1
        return elements[run] + (index - chunks[run]) * self._edges[run]

    def starts(self, indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """The first elements of several chunks."""
        elements, chunks, edges = self._arrays
        run = np.searchsorted(chunks, indices, side="right") - 1
        found: NDArray[np.intp] = elements[run] + (indices - chunks[run]) * edges[run]
        return found

    def size(self, index: int) -> int:
        """The elements of chunk ``index``."""
        return self._edges[bisect_right(self._firsts[1], index) - 1]

    def of(self, position: int) -> int:
        """The chunk that holds ``position``."""
        elements, chunks = self._firsts
        run = bisect_right(elements, position) - 1
        return chunks[run] + (position - elements[run]) // self._edges[run]

    def of_many(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """The chunks that hold each of ``positions``."""
        elements, chunks, edges = self._arrays
        run = np.searchsorted(elements, positions, side="right") - 1
        found: NDArray[np.intp] = chunks[run] + (positions - elements[run]) // edges[run]
        return found


AxisGrid = RegularAxis | RectilinearAxis


def cut(axis: AxisGrid, start: int, stop: int) -> Iterator[slice]:
    """``start:stop`` cut where chunks meet."""
    while start < stop:
        chunk = axis.of(start)
        end = min(axis.start(chunk) + axis.size(chunk), stop)
        yield slice(start, end)
        start = end


def cuts(
    axes: Sequence[AxisGrid], bounds: Sequence[tuple[int, int]]
) -> Iterator[tuple[slice, ...]]:
    """The parts into which a box falls where chunks meet, in order. Made one by one: metadata of a
    few bytes names any number of chunks."""
    if any(start >= stop for start, stop in bounds):
        return
    if not bounds:
        yield ()
        return
    for first in cut(axes[0], *bounds[0]):
        for rest in cuts(axes[1:], bounds[1:]):
            yield first, *rest


@dataclass(frozen=True)
class Grid:
    """How an array is cut: one :class:`RegularAxis` or :class:`RectilinearAxis` per axis."""

    axes: tuple[AxisGrid, ...]

    @classmethod
    def regular(cls, chunks: Sequence[int]) -> Grid:
        """A grid of equal chunks."""
        for edge in chunks:
            if edge < 1:
                raise Invalid(f"chunk shape {tuple(chunks)} has an edge below 1")
        return cls(tuple(RegularAxis(int(edge)) for edge in chunks))

    @Cached
    def chunks(self) -> tuple[int, ...] | None:
        """The one shape of every chunk, or ``None`` when chunks differ."""
        if all(isinstance(axis, RegularAxis) for axis in self.axes):
            return tuple(axis.edge for axis in self.axes if isinstance(axis, RegularAxis))
        return None

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Chunks along each axis of an array of ``shape``."""
        return tuple(axis.count(n) for axis, n in zip(self.axes, shape, strict=True))

    def chunk_shape(self, index: Sequence[int]) -> tuple[int, ...]:
        """The shape of one chunk, padding included."""
        if self.chunks is not None:
            return self.chunks
        return tuple(axis.size(i) for axis, i in zip(self.axes, index, strict=True))

    def origin(self, index: Sequence[int]) -> tuple[int, ...]:
        """The array position of a chunk's first element."""
        if self.chunks is not None:
            return tuple(map(mul, index, self.chunks))
        return tuple(axis.start(i) for axis, i in zip(self.axes, index, strict=True))

    def covering(self, shape: Sequence[int]) -> Grid:
        """This grid, with chunks listed for all of an array of ``shape``."""
        axes = tuple(axis.covering(n) for axis, n in zip(self.axes, shape, strict=True))
        return self if axes == self.axes else Grid(axes)

    def begins(self, other: Grid) -> bool:
        """Whether each chunk of this grid is one of ``other``, at the same place."""
        return all(axis.begins(longer) for axis, longer in zip(self.axes, other.axes, strict=True))

    def document(self) -> Any:
        """The ``chunk_grid`` of a Zarr v3 document."""
        if self.chunks is not None:
            return {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}}
        shapes = [
            axis.edge
            if isinstance(axis, RegularAxis)
            else [edge if count == 1 else [edge, count] for edge, count in axis.runs]
            for axis in self.axes
        ]
        return {
            "name": "rectilinear",
            "configuration": {"kind": "inline", "chunk_shapes": shapes},
        }


# -- whole chunks ----------------------------------------------------------------------


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
