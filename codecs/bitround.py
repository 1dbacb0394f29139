"""Codec ``bitround``: numbers rounded to fewer bits, so that they compress better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import ANY, ArrayCodec, ChunkSpec, Codec, lenient, short, take
from tensorstash.errors import Invalid

_MANTISSA = {"float16": 10, "float32": 23, "float64": 52, "bfloat16": 7}


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    known = take(name, configuration, keepbits=ANY)
    if "keepbits" not in known:
        raise Invalid("codec 'bitround' needs its 'keepbits', how many bits to keep")
    return lenient(Bitround, known)


@dataclass(frozen=True, eq=False, repr=False)
class Bitround(ArrayCodec):
    """Keeps ``keepbits`` bits of each number (registered Zarr v3 codec ``bitround``); decoding
    changes nothing.

    Of floats these are bits of the mantissa: sign and, but for a carry, exponent stay, and so do
    NaN and infinity. Of integers, and of times as the integers that they are, they are the highest
    of its magnitude, so that -3 becomes what 3 does. To the nearest, ties to even; where that
    leaves the integer type, towards zero. NaT stays.
    """

    name: ClassVar[str] = "bitround"
    keepbits: int = 64

    def __post_init__(self) -> None:
        if type(self.keepbits) is not int or not 1 <= self.keepbits <= 64:
            raise Invalid(
                f"codec 'bitround' keepbits is an integer from 1 to 64, not {short(self.keepbits)}"
            )

    def configuration(self) -> dict[str, Any]:
        """``{"keepbits": ...}``."""
        return {"keepbits": self.keepbits}

    def bind(self, spec: ChunkSpec) -> Bitround:
        """This codec, when it takes the elements of ``spec``."""
        if spec.dtype.kind not in "iucmM" and spec.dtype.name not in _MANTISSA:
            raise Invalid(
                f"codec 'bitround' rounds integers, times, bfloat16 and floats of 16 to 64 bits, "
                f"not {spec.dtype}"
            )
        return self

    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """``spec`` with its fill value rounded, as the elements are."""
        fill = spec.fill if self.unfit is not None else self.encode(spec.fill)
        return ChunkSpec(spec.shape, spec.dtype, fill)

    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """The rounded numbers, in a copy."""
        dtype = chunk.dtype
        plain = np.array(chunk, dtype.newbyteorder("="), order="C")  # no view of the caller's
        flat = plain.reshape(-1)
        if dtype.kind == "c":
            _round_floats(flat.view(f"f{dtype.itemsize // 2}"), self.keepbits)
        elif dtype.kind in "iumM":
            _round_integers(flat, self.keepbits)
        else:
            _round_floats(flat, self.keepbits)
        return plain

    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """``chunk`` itself."""
        return chunk


def _round_floats(values: NDArray[Any], keep: int) -> None:
    drop = _MANTISSA[values.dtype.name] - keep
    if drop <= 0:
        return
    finite = np.isfinite(values)  # a carry would make a NaN infinite, or zero
    bits = values.view(f"u{values.itemsize}")
    one = bits.dtype.type(1)
    half = bits.dtype.type((1 << drop - 1) - 1)
    rounded = bits + ((bits >> bits.dtype.type(drop)) & one) + half
    rounded &= ~bits.dtype.type((1 << drop) - 1)
    np.copyto(bits, rounded, where=finite)


def _round_integers(values: NDArray[Any], keep: int) -> None:
    width = 8 * values.itemsize
    signed = values.view(f"i{values.itemsize}") if values.dtype.kind in "imM" else None
    size: NDArray[Any] = values if signed is None else signed.view(f"u{values.itemsize}")
    if signed is not None:
        size = np.where(signed < 0, ~size + size.dtype.type(1), size)
    most = size.dtype.type((1 << (width if signed is None else width - 1)) - 1)
    below = size.copy()  # all bits below the highest one set
    for step in (1, 2, 4, 8, 16, 32):
        if step < width:
            below |= below >> below.dtype.type(step)
    drop = below >> below.dtype.type(keep) if keep < width else np.zeros_like(below)
    one = size.dtype.type(1)
    odd = ((size & (drop + one)) != 0) & (drop != 0)
    up = size + (drop >> one) + odd.astype(size.dtype)
    over = (up < size) | ((up & ~drop) > most)
    rounded = np.where(over, size, up) & ~drop
    if signed is None:
        values[...] = rounded
    else:
        signed[...] = np.where(signed < 0, ~rounded + one, rounded).view(signed.dtype)
