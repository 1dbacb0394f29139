"""What a dataset looks like on disk: the same words for every peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
CODECS = ("raw", "lz4", "zstd")


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape, dtype, chunks (the inner ones where there are shards) and codec of an array.

    ``codec``: ``raw``; ``lz4``, blosc-lz4 level 5 with shuffle; ``zstd``, level 1.
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    codec: str = "raw"
    shards: tuple[int, ...] | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @property
    def inner(self) -> list[dict[str, Any]]:
        """The codecs of one (inner) chunk, as in ``zarr.json``."""
        if self.codec == "lz4":
            options = {"cname": "lz4", "clevel": 5, "shuffle": "shuffle"}
            sizes = {"typesize": self.itemsize, "blocksize": 0}
            return [BYTES, {"name": "blosc", "configuration": {**options, **sizes}}]
        if self.codec == "zstd":
            # no "checksum": what TensorStore writes and every reader takes
            return [BYTES, {"name": "zstd", "configuration": {"level": 1}}]
        return [BYTES]

    @property
    def documents(self) -> list[dict[str, Any]]:
        """``codecs`` of the array, as in ``zarr.json``."""
        if self.shards is None:
            return self.inner
        return [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(self.chunks),
                    "codecs": self.inner,
                    "index_codecs": [BYTES, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ]

    @property
    def outer(self) -> tuple[int, ...]:
        """The part of the array that one key holds."""
        return self.shards or self.chunks

    def words(self) -> str:
        """A word for file names."""
        parts = [self.codec, "x".join(map(str, self.chunks))]
        if self.shards:
            parts.append("in" + "x".join(map(str, self.shards)))
        return "-".join(parts)
