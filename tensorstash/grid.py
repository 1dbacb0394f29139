"""Chunk grids: how each axis is cut into chunks. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cached import Cached
from .errors import Invalid


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

    def size(self, index: int) -> int:
        """The elements of chunk ``index``, padding included."""
        return self.edge

    def of(self, position: int) -> int:
        """The chunk that holds ``position``."""
        return position // self.edge

    def of_many(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """The chunks that hold each of ``positions``."""
        return positions // self.edge


@dataclass(frozen=True)
class RectilinearAxis:
    """Chunks of explicit lengths (Zarr extension ``rectilinear``). Their sum may exceed the
    array's length, never fall short of it."""

    edges: tuple[int, ...]

    @Cached
    def _starts(self) -> NDArray[np.intp]:
        return np.fromiter(accumulate(self.edges, initial=0), dtype=np.intp)

    def count(self, length: int) -> int:
        """Chunks that an axis of ``length`` elements touches."""
        return int(np.searchsorted(self._starts, length, side="left"))

    def start(self, index: int) -> int:
        """The first element of chunk ``index``."""
        return int(self._starts[index])

    def size(self, index: int) -> int:
        """The elements of chunk ``index``."""
        return self.edges[index]

    def of(self, position: int) -> int:
        """The chunk that holds ``position``."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def of_many(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """The chunks that hold each of ``positions``."""
        return np.searchsorted(self._starts, positions, side="right") - 1


AxisGrid = RegularAxis | RectilinearAxis


def cut(axis: AxisGrid, start: int, stop: int) -> Iterator[slice]:
    """``start:stop`` cut where chunks meet."""
    while start < stop:
        chunk = axis.of(start)
        end = min(axis.start(chunk) + axis.size(chunk), stop)
        yield slice(start, end)
        start = end


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
        return tuple(axis.start(i) for axis, i in zip(self.axes, index, strict=True))

    def document(self) -> Any:
        """The ``chunk_grid`` of a Zarr v3 document."""
        if self.chunks is not None:
            return {"name": "regular", "configuration": {"chunk_shape": list(self.chunks)}}
        shapes = [
            axis.edge if isinstance(axis, RegularAxis) else list(axis.edges) for axis in self.axes
        ]
        return {
            "name": "rectilinear",
            "configuration": {"kind": "inline", "chunk_shapes": shapes},
        }
