"""Codec ``vlen-utf8``: text of any length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numcodecs.vlen import VLenUTF8
from numpy.typing import NDArray

from tensorstash.codec import Buffer, ChunkSpec, Codec, take
from tensorstash.codecs.vlen import Vlen
from tensorstash.errors import Invalid

_PACKER = VLenUTF8()


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    take(name, configuration)
    return VlenUtf8()


class VlenUtf8(Vlen[str]):
    """Strings as UTF-8 (Zarr codec ``vlen-utf8``).

    Decodes to ``StringDType()`` or ``object``; encodes those and ``U``.
    """

    name: ClassVar[str] = "vlen-utf8"
    kind: ClassVar[type] = str
    kinds: ClassVar[str] = "TO"

    def bind(self, spec: ChunkSpec) -> Vlen[str]:
        """As all do. Bytes are no text: their fill value tells them from objects that are."""
        if spec.dtype.kind == "O" and isinstance(np.asarray(spec.fill)[()], bytes):
            raise Invalid("codec 'vlen-utf8' holds str of any length, not bytes; use 'vlen-bytes'")
        return super().bind(spec)

    def _pack(self, values: NDArray[np.object_]) -> Buffer:
        return _PACKER.encode(values)  # type: ignore[no-any-return]

    def _unpack(self, data: Buffer) -> NDArray[np.object_]:
        return _PACKER.decode(data)  # type: ignore[no-any-return]

    def _nbytes(self, values: NDArray[np.object_]) -> int:
        return sum(len(text) if text.isascii() else len(text.encode()) for text in values.tolist())
