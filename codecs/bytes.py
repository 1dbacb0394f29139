"""Codec ``bytes``: the elements of a chunk in C order, in a stated byte order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import Buffer, ChunkSpec, Codec, Serializer, short, take
from tensorstash.errors import Invalid, counted

Endian = Literal["little", "big"]


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    return Bytes(take(name, configuration, endian=str).get("endian"))


@dataclass(frozen=True, eq=False, repr=False)
class Bytes(Serializer):
    """Stores elements as they are (Zarr v3 codec ``bytes``); decoding native bytes copies nothing.

    ``endian`` is ``"little"``, ``"big"``, or ``None`` for one-byte elements. Binding drops it
    where it means nothing and reads a missing one as little, as zarr-python does. It applies
    to every field of a record; raw bits and ``S`` have no byte order.
    """

    name: ClassVar[str] = "bytes"
    endian: Endian | None = "little"

    def __post_init__(self) -> None:
        if self.endian not in ("little", "big", None):
            raise Invalid(f"codec 'bytes' endian is 'little' or 'big', not {short(self.endian)}")

    def configuration(self) -> dict[str, Any]:
        """``{"endian": ...}``, or nothing for one-byte elements."""
        return {} if self.endian is None else {"endian": self.endian}

    def bind(self, spec: ChunkSpec) -> Bytes:
        """With ``endian`` set exactly where ``spec.dtype`` has a byte order."""
        if spec.dtype.hasobject or spec.dtype.kind == "T":
            raise Invalid(
                f"codec 'bytes' cannot hold dtype {spec.dtype}, whose elements vary in size; "
                "use 'vlen-utf8' or 'vlen-bytes'"
            )
        ordered = _layout(spec.dtype, "little")[1] != _layout(spec.dtype, "big")[1]
        return Bytes((self.endian or "little") if ordered else None)

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The bytes of ``chunk``: a read-only view of its memory where that is already right."""
        plain, wire = _layout(chunk.dtype, self.endian)
        if plain is not chunk.dtype:
            chunk = chunk.view(plain)
        stored = chunk.astype(wire, order="C", copy=False)
        return stored.reshape(-1).view(np.uint8).data.toreadonly()

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """A view of ``data`` when it is in native order, else a swapped copy."""
        plain, wire = _layout(spec.dtype, self.endian)
        expected = spec.count * wire.itemsize
        if len(data) != expected:
            raise ValueError(
                f"{counted(len(data), 'byte')} where shape {spec.shape} of {spec.dtype} "
                f"takes {expected}"
            )
        chunk: NDArray[Any] = np.ndarray(spec.shape, wire, data)
        if wire is plain:
            return chunk
        if wire != plain:
            chunk = chunk.astype(plain)
        return chunk.view(spec.dtype)

    def encoded_nbytes(self, spec: ChunkSpec) -> int | None:
        """Elements times their stored size."""
        return spec.count * _layout(spec.dtype, self.endian)[1].itemsize

    def is_memory(self, spec: ChunkSpec) -> bool:
        """Whether the machine's byte order is the stored one."""
        plain, wire = _layout(spec.dtype, self.endian)
        return wire == plain

    def memory_dtype(self, spec: ChunkSpec) -> np.dtype[Any] | None:
        """``spec.dtype`` in the stored byte order; those of ``ml_dtypes`` know only one."""
        plain, wire = _layout(spec.dtype, self.endian)
        if wire == plain:
            return spec.dtype
        return wire if plain == spec.dtype else None


@lru_cache(maxsize=512)
def _layout(dtype: np.dtype[Any], endian: Endian | None) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """``dtype`` in terms of NumPy's own types, and the packed dtype it is stored as.

    Types of ``ml_dtypes`` have no byte orders, so they are swapped as unsigned integers. The
    two are one object where nothing is to be done, and ``dtype`` itself where it can be.
    """
    plain = _plain(dtype)
    if plain == dtype:
        plain = dtype
    wire = _ordered(plain, ">" if endian == "big" else "<")
    return plain, plain if wire == plain == dtype else wire


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((_plain(base), shape))
    if dtype.names is not None and dtype.fields is not None:
        fields = dtype.fields
        return np.dtype(
            {
                "names": list(dtype.names),
                "formats": [_plain(fields[name][0]) for name in dtype.names],
                "offsets": [fields[name][1] for name in dtype.names],
                "itemsize": dtype.itemsize,
            }
        )
    if dtype.type.__module__ == "numpy":
        return dtype
    swapped: np.dtype[Any] = np.dtype(f"u{dtype.itemsize}").newbyteorder(dtype.byteorder)
    return swapped


def _ordered(dtype: np.dtype[Any], order: Literal["<", ">"]) -> np.dtype[Any]:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((_ordered(base, order), shape))
    if dtype.names is not None and dtype.fields is not None:
        fields = dtype.fields
        return np.dtype([(name, _ordered(fields[name][0], order)) for name in dtype.names])
    return dtype.newbyteorder(order)
