"""Boxes of one shape, wherever they lie, read from an array: each chunk is decoded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ..columns import runs_of
from ..indexing.selection import Transform
from ..threads import spread
from .reader import Edges, Sliced

Places = NDArray[np.int64]


def apart(low: Places, high: Places) -> Iterator[tuple[Places, Places | None]]:
    """Boxes of chunks from ``low`` to ``high`` (inclusive; a row a box, a column an axis) in
    groups of which no two need the same chunk: the boxes of each, and the one chunk that the
    group stands for, or ``None`` where it stands for all chunks of its boxes.

    A box that shares nothing is a group by itself. Boxes that together fill one large box of
    chunks are one; others are in one group for each chunk that any of them has.
    """
    owner, chunk = touched(low, high)
    base = chunk.min(axis=0)
    name = np.ravel_multi_index(tuple((chunk - base).T), tuple(chunk.max(axis=0) - base + 1))
    whose = _connected(owner, name, len(low))[owner]
    order = np.lexsort((owner, name, whose))
    for pairs in _split(order, whose):
        members = owner[pairs]
        first = int(members[0])
        if (members == first).all():
            yield members[:1], None
            continue
        spanned = high[members].max(axis=0) - low[members].min(axis=0) + 1
        chunks = 1 + int(np.count_nonzero(np.diff(name[pairs])))
        if chunks == math.prod(spanned.tolist()):
            yield np.unique(members), None
            continue
        for shared in _split(pairs, name):
            yield owner[shared], chunk[shared[0]]


def _split(pairs: Places, by: Places) -> list[Places]:
    """``pairs``, in order of ``by``, where it changes."""
    return np.split(pairs, np.flatnonzero(np.diff(by[pairs])) + 1)


def touched(low: Places, high: Places) -> tuple[Places, Places]:
    """Every pair of a box and a chunk of it: the box, and the chunk."""
    counts = high - low + 1
    sizes = counts.prod(axis=1)
    owner = np.repeat(np.arange(len(low)), sizes)
    rest = runs_of(np.zeros(len(low), np.int64), sizes)
    chunk = np.empty((len(owner), low.shape[1]), np.int64)
    for k in reversed(range(low.shape[1])):
        rest, place = np.divmod(rest, counts[owner, k])
        chunk[:, k] = low[owner, k] + place
    return owner, chunk


def _connected(owner: Places, name: Places, boxes: int) -> Places:
    """For each box the first of those that it is connected with by chunks they share, directly
    or by way of others."""
    label = np.arange(boxes)
    order = np.argsort(name, kind="stable")
    heads = np.flatnonzero(np.diff(name[order], prepend=-1))
    sizes = np.diff(heads, append=len(order))
    by_chunk = owner[order]
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    lowest = np.empty(len(order), np.int64)
    while len(heads) < len(order):
        lowest[order] = np.repeat(np.minimum.reduceat(label[by_chunk], heads), sizes)
        lower = np.minimum.reduceat(lowest, firsts)
        lower = lower[lower]  # as far on as is known already
        if (lower == label).all():
            break
        label = lower
    return label


class _Read(NamedTuple):
    """What some boxes have of chunks that no other read needs: from ``starts`` to ``stops``."""

    boxes: Places
    starts: Places
    stops: Places


@dataclass(frozen=True)
class Boxes:
    """Boxes within an array: ``starts`` to ``stops`` along its dimensions ``dims``, a box a row;
    all of the other dimensions."""

    sliced: Sliced
    dims: tuple[int, ...]
    starts: Places
    stops: Places

    @classmethod
    def clipped(
        cls, sliced: Sliced, dims: tuple[int, ...], corners: Places, shape: Sequence[int]
    ) -> Boxes:
        """Boxes of ``shape`` from ``corners`` on, as far as they are within the array."""
        lengths = np.array([sliced.shape[dim] for dim in dims], np.int64)
        return cls(sliced, dims, corners, np.minimum(corners + np.array(shape), lengths))

    def __len__(self) -> int:
        return len(self.starts)

    def short(self, shape: Sequence[int]) -> Places:
        """The boxes that are smaller than ``shape``."""
        return np.flatnonzero((self.stops - self.starts < np.array(shape)).any(axis=1))

    def read(self, out: NDArray[Any]) -> None:
        """``out[i]`` becomes box ``i``, from the box's corner on; what is beyond its end is left
        as it is."""
        if not out.size:
            return
        reads = list(self._reads())

        def make() -> Callable[[_Read], None]:
            return lambda read: self._carry_out(read, out)

        threads = self.sliced.threads(len(reads), self.sliced.chunk_bytes)
        spread(reads, make, threads, waits=not self.sliced.local)

    def chunks(self) -> tuple[Places, Places]:
        """The chunks that boxes have a part in along their dimensions: the box and a number of
        the chunk, for each pair of them."""
        _, low, high = self._span()
        owner, chunk = touched(low, high)
        if not len(chunk):
            return owner, owner
        sizes = tuple((chunk.max(axis=0) + 1).tolist())
        return owner, np.ravel_multi_index(tuple(chunk.T), sizes).astype(np.int64)

    def _span(self) -> tuple[list[Edges], Places, Places]:
        """The first and the last chunk of every box along each dimension."""
        edges = [self.sliced.edges(dim) for dim in self.dims]
        low = np.stack([e.of(x) for e, x in zip(edges, self.starts.T, strict=True)], axis=1)
        high = np.stack([e.of(x - 1) for e, x in zip(edges, self.stops.T, strict=True)], axis=1)
        return edges, low, high

    def _reads(self) -> Iterator[_Read]:
        edges, low, high = self._span()
        for boxes, chunk in apart(low, high):
            starts, stops = self.starts[boxes], self.stops[boxes]
            if chunk is not None:
                spans = [e.span(c) for e, c in zip(edges, chunk.tolist(), strict=True)]
                starts = np.maximum(starts, [first for first, _ in spans])
                stops = np.minimum(stops, [stop for _, stop in spans])
            yield _Read(boxes, starts, stops)

    def _carry_out(self, read: _Read, out: NDArray[Any]) -> None:
        boxes, starts, stops = read
        corners = self.starts[boxes]
        if len(boxes) == 1:  # straight into its place
            place = out[int(boxes[0])]
            inside = self._where((starts - corners)[0].tolist(), (stops - corners)[0].tolist())
            self.sliced.read(self._box(starts[0], stops[0]), place[inside])
            return
        base = starts.min(axis=0)
        whole = self.sliced.read(self._box(base, stops.max(axis=0)))
        sizes = stops - starts
        full = [out.shape[dim + 1] for dim in self.dims]
        if (sizes == full).all() and self.sliced.plain:
            every = self._sliding(whole, full)
            for i, at in zip(boxes.tolist(), map(tuple, (starts - base).tolist()), strict=True):
                out[i] = every[at]
            return
        at, to = starts - base, starts - corners
        ends = (at + sizes).tolist(), (to + sizes).tolist()
        for i, a, b, c, d in zip(
            boxes.tolist(), at.tolist(), ends[0], to.tolist(), ends[1], strict=True
        ):
            out[i][self._where(c, d)] = whole[self._where(a, b)]

    def _box(self, start: Places, stop: Places) -> Transform:
        bounds = zip(start.tolist(), stop.tolist(), strict=True)
        return self.sliced.box(dict(zip(self.dims, bounds, strict=True)))

    def _where(self, start: list[int], stop: list[int]) -> tuple[slice, ...]:
        found = [slice(None)] * len(self.sliced.shape)
        for dim, a, b in zip(self.dims, start, stop, strict=True):
            found[dim] = slice(a, b)
        return tuple(found)

    def _sliding(self, whole: NDArray[Any], sizes: list[int]) -> NDArray[Any]:
        """Every box of ``sizes`` in ``whole``, by where it begins: a view."""
        room, shape = [], list(whole.shape)
        for dim, size in zip(self.dims, sizes, strict=True):
            room.append(whole.shape[dim] - size + 1)
            shape[dim] = size
        strides = [whole.strides[dim] for dim in self.dims]
        return as_strided(whole, (*room, *shape), (*strides, *whole.strides), writeable=False)
