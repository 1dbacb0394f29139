"""A box whose chunks are all in the cache: copied without a plan, which would cost more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from numpy.typing import NDArray

from ...indexing.selection import Point, Stride, Transform
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

    def read(self, transform: Transform, out: NDArray[Any]) -> bool | None:
        """Fill ``out``; ``False``: some of it is to be read, and what was filled is no matter;
        ``None``: not looked for, as it is no box, or has many chunks."""
        edges = self._edges
        if not edges:
            return None
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
                    return None
                axes.append(pieces)
            else:
                return None
        if dims != len(transform.shape):
            return None
        peek, names, tag_of = self._cache.peek, self._keys, self._chunks.driver.tag
        for piece in product(*axes):
            chunk, inside, outside = zip(*piece, strict=True)
            key = names.get(chunk) or self._key(chunk)  # spelled out: a call costs more
            held = peek(key)
            if held is None or (not self._immutable and tag_of(key) != held[0]):
                return False
            out[(*sum(outside, ()), ...)] = held[1][inside]
        self._meter.hit(count)
        return True

    def holds(self, chunk: Sequence[int]) -> bool:
        """Whether some version of a chunk is kept."""
        return self._cache.peek(self._key_of(tuple(chunk))) is not None

    def all_of(self, chunks: Sequence[Sequence[int]]) -> list[NDArray[Any]] | None:
        """What is kept of all these, or ``None`` where something is to be read of one."""
        peek, tag_of = self._cache.peek, self._chunks.driver.tag
        found = []
        for key in map(self._key_of, map(tuple, chunks)):
            held = peek(key)
            if held is None or (not self._immutable and tag_of(key) != held[0]):
                return None
            found.append(held[1])
        return found

    def hit(self, count: int) -> None:
        """So many chunks were taken from what is kept."""
        self._meter.hit(count)

    def _key_of(self, chunk: tuple[int, ...]) -> str:
        return self._keys.get(chunk) or self._key(chunk)

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
