"""The contract of a contestant that stores arrays.

Each peer is used as its documentation says is fast, through its public interface. A handle is
whatever the peer's ``open`` answers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .layout import Layout
from .samples import Array

OURS = "tensorstash"
CACHE = 1 << 30
"""Bytes of decoded chunks that the cached variants may keep."""


class Peer(ABC):
    """One library (or one way to use it)."""

    name: ClassVar[str]
    format: ClassVar[str]
    """``zarr``: reads the one dataset written for all Zarr readers; else its own file."""
    module: ClassVar[str]
    package: ClassVar[str]
    caches: ClassVar[bool] = False
    """Whether there is a cache of decoded chunks to ask for."""
    keeps: ClassVar[bool] = False
    """Whether decoded chunks are kept without asking."""
    codecs: ClassVar[tuple[str, ...]] = ("raw", "lz4", "zstd")

    @classmethod
    def missing(cls) -> str:
        """Why this peer cannot run here; empty when it can."""
        try:
            importlib.import_module(cls.module)
        except ImportError as error:
            return f"{cls.module} does not import: {str(error).splitlines()[0]}"
        return ""

    @classmethod
    def version(cls) -> str:
        """The installed version."""
        return importlib.metadata.version(cls.package)

    def handles(self, layout: Layout) -> bool:
        """Whether this peer has such arrays."""
        return layout.codec in self.codecs and (layout.shards is None or self.format == "zarr")

    @abstractmethod
    def create(self, path: Path, layout: Layout) -> Any:
        """A new array, open for writing."""

    @abstractmethod
    def open(self, path: Path, cached: bool = False) -> Any:
        """An array opened for reading."""

    @abstractmethod
    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        """A box."""

    @abstractmethod
    def take(self, handle: Any, rows: Array) -> Array:
        """Rows in the order asked for, repeats included."""

    def reads(self, handle: Any, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        """Boxes, one call after the other."""
        read = self.read
        return [read(handle, box) for box in boxes]

    @abstractmethod
    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        """Write a box; stored when this returns."""

    @abstractmethod
    def append(self, handle: Any, rows: Array) -> Any:
        """Grow axis 0 by ``rows``, stored when this returns; answers the handle to go on with."""

    def close(self, handle: Any) -> None:
        """Let go of the handle; nothing to do but for single files."""
        del handle


def sorted_take(read: Any, rows: Array) -> Array:
    """``rows`` by a ``read`` that wants increasing indices, each once."""
    unique, back = np.unique(rows, return_inverse=True)
    values: Array = read(unique)
    return values if np.array_equal(unique, rows) else values[back]
