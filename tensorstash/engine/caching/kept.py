"""A box whose chunks are all in the cache: copied without a plan, which would cost more."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...columns import Placed
from ...indexing.selection import Point, Stride, Take, Transform
from ..chunks import Chunks
from ..stats import Meter
from .cache import Cache

_MOST_CHUNKS = 64
_MOST_KEYS = 4096
_ALL = slice(None)


class Kept:
    """Reads of what ``cache`` holds of an array whose chunks are one object each. Versions are
    compared unless the array is ``immutable``."""

    def __init__(self, chunks: Chunks, cache: Cache, immutable: bool, meter: Meter) -> None:
        self._chunks = chunks
        self._cache = cache
        self._immutable = immutable
        self._meter = meter
        self._edges = chunks.grid.chunks
        self._keys: dict[tuple[int, ...], str] = {}

    def read(self, transform: Transform, out: NDArray[Any]) -> bool:
        """Fill ``out``; ``False``: some of it is to be read, and what was filled is no matter."""
        edges = self._edges
        if not edges:
            return False
        axes: list[Any] = []
        dims, count = 0, 1
        for axis_map, edge in zip(transform.maps, edges, strict=True):
            if isinstance(axis_map, Point):
                at, within = divmod(axis_map.at, edge)
                axes.append(((at, within, ()),))
            elif isinstance(axis_map, Stride) and axis_map.step == 1 and axis_map.dim == dims:
                n = transform.shape[dims]
                at, within = divmod(axis_map.start, edge)
                dims += 1
                if within + n <= edge:
                    axes.append(((at, slice(within, within + n), (_ALL,)),))
                    continue
                pieces = _pieces(at, within, n, edge)
                count *= len(pieces)
                if count > _MOST_CHUNKS:
                    return False
                axes.append(pieces)
            else:
                return False
        if dims != len(transform.shape):
            return False
        peek, names, tag_of = self._cache.peek, self._keys, self._chunks.driver.tag
        for piece in product(*axes):
            chunk, inside, outside = zip(*piece, strict=True)
            key = names.get(chunk) or self._key(chunk)
            held = peek(key)
            if held is None or (not self._immutable and tag_of(key) != held[0]):
                return False
            out[(*sum(outside, ()), ...)] = held[1][inside]
        self._meter.hit(count)
        return True

    def scatter(self, transform: Transform, placed: Placed) -> bool:
        """As :meth:`read` for rows each of which goes to its place: any rows along the first axis,
        of which a chunk has all the rest."""
        edges, shape = self._edges, transform.shape
        first, *rest = transform.maps or (None,)
        if not edges or not isinstance(first, (Stride, Take)):
            return False
        for k, (axis_map, edge) in enumerate(zip(rest, edges[1:], strict=True), 1):
            if axis_map != Stride(k, 0, 1) or shape[k] > edge:
                return False
        if isinstance(first, Stride):
            rows = first.start + first.step * np.arange(shape[0])
        else:
            rows = first.array
        chunks = rows // edges[0]
        cuts = (np.flatnonzero(chunks[1:] != chunks[:-1]) + 1).tolist()
        if len(cuts) >= _MOST_CHUNKS:
            return False
        within, tail = rows - chunks * edges[0], (0,) * len(rest)
        inside = tuple(slice(0, n) for n in shape[1:])
        peek, names, tag_of = self._cache.peek, self._keys, self._chunks.driver.tag
        seen: dict[str, Any] = {}
        for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            chunk = (int(chunks[a]), *tail)
            key = names.get(chunk) or self._key(chunk)
            held = seen.get(key)
            if held is None:
                held = seen[key] = peek(key)
                if held is None or (not self._immutable and tag_of(key) != held[0]):
                    return False
            placed.array[placed.rows[a:b]] = held[1][within[a:b]][(slice(None), *inside)]
        self._meter.hit(len(seen))
        return True

    def _key(self, chunk: tuple[int, ...]) -> str:
        if len(self._keys) >= _MOST_KEYS:
            self._keys.clear()
        key = self._keys[chunk] = self._chunks.key(chunk)
        return key


def _pieces(at: int, within: int, n: int, edge: int) -> list[tuple[int, slice, tuple[slice]]]:
    """Along an axis: each chunk, what is wanted of it, and where that goes."""
    found = []
    done = 0
    while done < n:
        some = min(edge - within, n - done)
        found.append((at, slice(within, within + some), (slice(done, done + some),)))
        done += some
        at, within = at + 1, 0
    return found
