"""The fewest requests and bytes that a selection can cost, from the chunk grid and what is stored.

A chunk that is an object of its own costs one request. A shard costs one for its index and one
for every run of wanted chunks, where gaps of up to 1 MiB are read over rather than skipped; or
one in all, where what is not wanted of it is no more than such a gap even uncompressed, as its
index is not known before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from .layout import Layout
from .samples import Array

GAP = 1 << 20
Cell = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Minimum:
    """``requests`` by the rule above; ``nbytes`` of chunks (and indices) that are wanted, gaps
    left out; ``trips`` that must follow each other."""

    requests: int
    nbytes: int
    trips: int

    def seconds(self, latency: float, bandwidth: float) -> float:
        """That the link alone needs."""
        return self.trips * latency + self.nbytes / bandwidth


def box_cells(box: tuple[slice, ...], layout: Layout) -> set[Cell]:
    """The chunks that a box touches."""
    axes = []
    for s, n, c in zip(box, layout.shape, layout.chunks, strict=True):
        start, stop, _ = s.indices(n)
        axes.append(range(start // c, -(-stop // c)))
    return set(product(*axes))


def row_cells(rows: Array, layout: Layout) -> set[Cell]:
    """The chunks that whole rows touch."""
    rest = [range(-(-n // c)) for n, c in zip(layout.shape[1:], layout.chunks[1:], strict=True)]
    return {cell for i in np.unique(rows // layout.chunks[0]) for cell in product([int(i)], *rest)}


def cost(folder: Path, layout: Layout, calls: Iterable[set[Cell]]) -> Minimum:
    """Of one call after the other by one handle, each with the chunks that it touches: a shard's
    index is read once. ``folder`` has the array's files."""
    if layout.shards is None:
        cells = [cell for call in calls for cell in call]
        nbytes = sum(_object(folder, cell).stat().st_size for cell in cells)
        return Minimum(len(cells), nbytes, 1)
    ratio = [s // c for s, c in zip(layout.shards, layout.chunks, strict=True)]
    indices: dict[Cell, Array] = {}
    requests = nbytes = trips = 0
    for call in calls:
        shards: dict[Cell, list[Cell]] = {}
        for cell in call:
            shard = tuple(i // r for i, r in zip(cell, ratio, strict=True))
            inner = tuple(i % r for i, r in zip(cell, ratio, strict=True))
            shards.setdefault(shard, []).append(inner)
        for shard, inners in shards.items():
            path = _object(folder, shard)
            known = shard in indices
            if not known:
                indices[shard] = _index(path, ratio)
            entries = sorted(tuple(map(int, indices[shard][inner])) for inner in inners)
            wanted = sum(size for _, size in entries)
            nbytes += wanted + (0 if known else 16 * math.prod(ratio) + 4)
            inside = [
                min(r, -(-n // c) - i * r)
                for r, n, c, i in zip(ratio, layout.shape, layout.chunks, shard, strict=True)
            ]
            unwanted = math.prod(inside) - len(inners)
            if unwanted * math.prod(layout.chunks) * layout.itemsize <= GAP and not known:
                requests += 1
                trips = max(trips, 1)
            else:
                requests += _runs(entries) + (not known)
                trips = max(trips, 1 if known else 2)
    return Minimum(requests, nbytes, trips)


def written(folder: Path) -> Minimum:
    """Of writing all chunks: a request an object."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    document = (folder / "zarr.json").stat().st_size
    return Minimum(len(sizes) - 1, sum(sizes) - document, 1)


def _object(folder: Path, cell: Cell) -> Path:
    return folder.joinpath("c", *map(str, cell))


def _index(path: Path, ratio: list[int]) -> Array:
    nbytes = 16 * math.prod(ratio)
    with path.open("rb") as file:
        file.seek(-nbytes - 4, 2)
        return np.frombuffer(file.read(nbytes), "<u8").reshape(*ratio, 2)


def _runs(entries: list[tuple[int, ...]]) -> int:
    count, end = 0, -GAP - 1
    for offset, size in entries:
        count += offset - end > GAP
        end = max(end, offset + size)
    return count
