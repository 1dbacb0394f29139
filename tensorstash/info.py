"""What an array is and what is stored of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from .chunks import Chunks
from .driver import Driver, located
from .errors import counted
from .explain import readable
from .node import lock_key
from .spec import ArraySpec
from .stored import sizes


@dataclass(frozen=True)
class Info:
    """One array at a glance. ``stored_chunks`` of ``total_chunks`` objects are stored, the
    others are all fill; ``stored_bytes`` is what they take up. ``modified`` is when its metadata
    document was last stored (by create, append, resize, attributes; writing elements leaves it), by
    the store's clock; ``None`` where the store does not say."""

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
        fill_value=repr(spec.fill[()]),
        nbytes=spec.size * spec.dtype.itemsize,
        stored_chunks=count,
        total_chunks=math.prod(spec.grid.counts(spec.shape)),
        stored_bytes=nbytes,
        modified=modified_at(driver, lock_key(path, spec)),
    )
