"""What an array is, in any format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .cached import Cached
from .codec import ChunkSpec, Codec
from .grid import Grid


@dataclass(frozen=True, slots=True)
class KeyEncoding:
    """How a chunk's index becomes its key: ``c/0/1`` (``default``) or ``0.1`` (``v2``)."""

    name: Literal["default", "v2"] = "default"
    separator: Literal["/", "."] = "/"

    def key(self, index: Sequence[int]) -> str:
        """The key of a chunk below its array (Zarr v3 core, "Chunk key encoding")."""
        if self.name == "default":
            return self.separator.join(("c", *map(str, index)))
        return self.separator.join(map(str, index)) if index else "0"

    @property
    def prefix(self) -> str:
        """What every key of an array with at least one axis begins with."""
        return "c" + self.separator if self.name == "default" else ""

    def index(self, key: str, ndim: int) -> tuple[int, ...] | None:
        """The inverse of :meth:`key`; ``None`` when ``key`` names no chunk."""
        parts = key.split(self.separator)
        if self.name == "default":
            if parts[0] != "c":
                return None
            parts = parts[1:]
        elif ndim == 0:
            return () if key == "0" else None
        if len(parts) != ndim or not all(map(_is_number, parts)):
            return None
        index = tuple(map(int, parts))
        return index if self.key(index) == key else None


def _is_number(part: str) -> bool:
    # No grid has as many chunks as 20 digits count; Python refuses to read thousands of them.
    return part.isascii() and part.isdigit() and len(part) < 20


@dataclass(frozen=True)
class ArraySpec:
    """Everything needed to read and write an array's chunks, and its metadata document.

    ``fill`` is a 0-d array of ``dtype``; ``fill_defined`` is ``False`` for Zarr v2's
    ``null``, whose absent chunks read as zeros. ``document`` is the document as stored, so
    that rewriting it keeps what we do not interpret.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grid: Grid
    codecs: tuple[Codec, ...]
    fill: NDArray[Any] = field(compare=False)
    keys: KeyEncoding = KeyEncoding()
    dimension_names: tuple[str | None, ...] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    zarr_format: Literal[2, 3] = 3
    fill_defined: bool = True
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @Cached
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def chunk_spec(self, shape: tuple[int, ...]) -> ChunkSpec:
        """A chunk of ``shape`` of this array."""
        return ChunkSpec(shape, self.dtype, self.fill)
