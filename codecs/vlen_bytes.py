"""Codec ``vlen-bytes``: byte strings of any length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numcodecs.vlen import VLenBytes
from numpy.typing import NDArray

from tensorstash.codec import Buffer, Codec, take
from tensorstash.codecs.vlen import Vlen

_PACKER = VLenBytes()


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    take(name, configuration)
    return VlenBytes()


class VlenBytes(Vlen[bytes]):
    """Byte strings as they are (Zarr codec ``vlen-bytes``).

    Decodes to ``object`` with ``bytes`` elements; encodes that and ``S``.
    """

    name: ClassVar[str] = "vlen-bytes"
    kind: ClassVar[type] = bytes
    kinds: ClassVar[str] = "O"

    def _pack(self, values: NDArray[np.object_]) -> Buffer:
        return _PACKER.encode(values)  # type: ignore[no-any-return]

    def _unpack(self, data: Buffer) -> NDArray[np.object_]:
        return _PACKER.decode(data)  # type: ignore[no-any-return]

    def _nbytes(self, values: NDArray[np.object_]) -> int:
        return sum(map(len, values.tolist()))
