"""The contract of a contestant that stores arrays in a bucket."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from .cloud_bucket import Bucket
from .installed import Installed
from .layout import Layout
from .samples import Array

WORKERS = 16
"""Patches wanted at once, as by so many workers of a DataLoader."""


class CloudPeer(Installed, ABC):
    """One library with one client and configuration. ``how`` says which, for the report."""

    name: str
    how: str
    default: bool = False
    """The slower of two configurations, left out of quick runs."""
    family: ClassVar[str] = "zarr"
    """``zarr``: reads what was written for all; else its own."""
    caches: ClassVar[dict[str, str]] = {}
    """Kinds of cache for ``open``, with words on each."""

    @abstractmethod
    def create(self, bucket: Bucket, path: str, layout: Layout) -> Any:
        """A new array in place of what is there, open for writing."""

    @abstractmethod
    def open(self, bucket: Bucket, path: str, cache: str = "", folder: Path | None = None) -> Any:
        """An array opened for reading; ``cache`` is empty or one of ``caches``, ``folder`` is
        empty and for caches on disk."""

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        """A box."""
        values: Array = handle[where]
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        """Rows."""
        values: Array = handle[rows]
        return values

    def reads(self, handle: Any, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        """Boxes, a call each, from several threads."""
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(lambda box: self.read(handle, box), boxes))

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        """Write a box; stored when this returns."""
        handle[where] = values
