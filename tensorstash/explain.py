"""What a selection costs, worked out without reading it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .chunks import Chunks
from .errors import counted
from .index import Transform
from .limits import HUGE
from .plan import plan


@dataclass(frozen=True)
class Explanation:
    """The I/O of one read, before caches.

    ``chunks`` are decoded, each once, and come from ``objects`` stored objects (fewer where
    shards hold several). ``requests`` is the most that are sent for them: one an object, and for
    shards one more an object until its index is known, from afar one more a chunk. (Beside
    them goes one a call that asks whether it is the same array still; none with ``immutable``.)
    Bytes are decoded bytes; ``amplification`` is how many are decoded for each one wanted.
    """

    shape: tuple[int, ...]
    chunks: int
    objects: int
    requests: int
    wanted_bytes: int
    decoded_bytes: int

    @property
    def amplification(self) -> float:
        """Bytes decoded for each byte wanted."""
        return self.decoded_bytes / self.wanted_bytes if self.wanted_bytes else 0.0

    def __str__(self) -> str:
        return (
            f"result {self.shape}: {counted(self.chunks, 'chunk')} from "
            f"{counted(self.objects, 'object')}, "
            f"{counted(self.requests, 'request')}, {readable(self.decoded_bytes)} decoded for "
            f"{readable(self.wanted_bytes)} wanted ({self.amplification:.1f}x)"
        )


def explain(chunks: Chunks, transform: Transform) -> Explanation:
    """What reading ``transform`` costs."""
    spec = chunks.spec
    wanted = math.prod(transform.shape) * spec.dtype.itemsize
    if 0 in transform.shape:
        return Explanation(transform.shape, 0, 0, 0, 0, 0)
    todo = plan(transform, chunks.grid, spec.shape)
    if chunks.pipeline is not None:
        decoded = todo.count * chunks.pipeline.spec.nbytes
    else:
        decoded = sum(
            math.prod(chunks.grid.chunk_shape(part.chunk)) * spec.dtype.itemsize
            for part in todo.parts()
        )
    if chunks.sharding is None:
        return Explanation(transform.shape, todo.count, todo.count, todo.count, wanted, decoded)
    objects = plan(transform, spec.grid, spec.shape).count
    near = chunks.driver.capabilities.local
    requests = objects + (objects if near else todo.count)
    return Explanation(transform.shape, todo.count, objects, requests, wanted, decoded)


def readable(nbytes: int) -> str:
    """A number of bytes for people."""
    value = float(min(nbytes, HUGE**2))  # 64 axes multiply to more than a float can be
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
