"""What a selection costs, worked out without reading it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .driver import Driver, located
from .engine.chunks import Chunks
from .engine.stored import sizes
from .errors import counted
from .indexing.plan import plan
from .indexing.selection import Transform
from .limits import HUGE
from .metadata.node import lock_key
from .metadata.spec import ArraySpec


@dataclass(frozen=True)
class Explanation:
    """What one read costs at most, in chunks, requests and bytes; prints as a line.

    ``chunks`` are decoded, each once, and come from ``objects`` stored objects (fewer if shards
    hold several). ``requests`` is the most that are sent for them: one for each object; for
    shards one more for each object until its index is known, and in a remote store one more for
    each chunk. (Each call sends one more to check that it is still the same array, except with
    ``immutable``.) Caches are not counted on. Bytes are decoded bytes; ``amplification`` is how
    many are decoded for each byte wanted.

    >>> print(stash.save({}, np.arange(8, dtype="u1"), chunks=4).explain(slice(2)))
    result (2,): 1 chunk from 1 object, 1 request, 4 B decoded for 2 B wanted (2.0x)
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
    local = chunks.driver.capabilities.local
    requests = objects + (objects if local else todo.count)
    return Explanation(transform.shape, todo.count, objects, requests, wanted, decoded)


def readable(nbytes: int) -> str:
    """A number of bytes for people."""
    value = float(min(nbytes, HUGE**2))  # 64 axes multiply to more than a float can be
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


# -- what an array is and what is stored of it -----------------------------------------


@dataclass(frozen=True)
class Info:
    """What an array is and what is stored of it; prints as a table.

    ``stored_chunks`` of ``total_chunks`` objects are stored, and take ``stored_bytes``; the others
    read as the fill value. ``modified`` is when the metadata document was last stored (by create,
    append, resize, attributes; not by writing elements), by the clock of the store; ``None`` if
    the store does not tell.

    >>> found = stash.create({}, 8, "u1", chunks=4).info()
    >>> found.stored_chunks, found.total_chunks
    (0, 2)
    """

    url: str
    zarr_format: int
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] | None
    shards: tuple[int, ...] | None
    codecs: tuple[str, ...]
    fill_value: str
    nbytes: int
    stored_chunks: int
    total_chunks: int
    stored_bytes: int
    modified: datetime | None = None

    @property
    def ratio(self) -> float:
        """Bytes in memory for each byte stored."""
        return self.nbytes / self.stored_bytes if self.stored_bytes else 0.0

    def __str__(self) -> str:
        rows = [
            ("url", self.url),
            ("format", f"Zarr v{self.zarr_format}"),
            ("shape", str(self.shape)),
            ("dtype", self.dtype),
            ("chunks", str(self.chunks) if self.chunks is not None else "rectilinear"),
            *([("shards", str(self.shards))] if self.shards else []),
            ("codecs", " -> ".join(self.codecs)),
            ("fill value", self.fill_value),
            ("in memory", readable(self.nbytes)),
            (
                "stored",
                f"{readable(self.stored_bytes)} in {self.stored_chunks} of "
                f"{counted(self.total_chunks, 'object')} ({self.ratio:.2f}x smaller)",
            ),
            ("changed", changed(self.modified)),
        ]
        return "\n".join(f"{name:<11}{value}" for name, value in rows)


def changed(modified: datetime | None) -> str:
    """``modified`` of a metadata document, in words."""
    if modified is None:
        return "unknown: the store does not say"
    return f"{modified:%Y-%m-%d %H:%M:%S} UTC (its metadata)"


def modified_at(driver: Driver, key: str) -> datetime | None:
    """When ``key`` was last stored, as far as the store says."""
    seconds = driver.modified(key)
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def stored_size(driver: Driver, path: str, spec: ArraySpec) -> tuple[int, int]:
    """How many chunks (shards) of the array at ``path`` are stored, and their bytes."""
    count = nbytes = 0
    for _, size in sizes(driver, path, spec):
        count += 1
        nbytes += size
    return count, nbytes


def _shown(fill: Any) -> str:
    try:
        return repr(fill)
    except ValueError:  # a time without a unit, of which NumPy shows NaT alone
        return f"<{fill.dtype} of bytes {fill.tobytes().hex()}>"


def info(driver: Driver, path: str, spec: ArraySpec, chunks: Chunks) -> Info:
    """Look at the array at ``path``; lists its stored chunks."""
    count, nbytes = stored_size(driver, path, spec)
    sharded = chunks.sharding is not None
    return Info(
        url=located(driver, path),
        zarr_format=spec.zarr_format,
        shape=spec.shape,
        dtype=str(spec.dtype),
        chunks=chunks.grid.chunks,
        shards=spec.grid.chunks if sharded else None,
        codecs=tuple(repr(codec) for codec in spec.codecs),
        fill_value=_shown(spec.fill[()]),
        nbytes=spec.size * spec.dtype.itemsize,
        stored_chunks=count,
        total_chunks=math.prod(spec.grid.counts(spec.shape)),
        stored_bytes=nbytes,
        modified=modified_at(driver, lock_key(path, spec)),
    )
