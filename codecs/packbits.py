"""Codec ``packbits``: the elements of a chunk in no more bits than they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import Buffer, ChunkSpec, Codec, Serializer, short, take
from tensorstash.dtype import is_extended, is_small_int
from tensorstash.errors import Invalid, counted

Padding = Literal["none", "first_byte", "last_byte"]
_BLOCK = 1 << 15
"""Components at a time: taken apart, each bit is a byte. A multiple of 8, so that blocks end where
bytes end."""


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    whole = (int, type(None))
    return Packbits(
        **take(name, configuration, padding_encoding=str, first_bit=whole, last_bit=whole)
    )


@dataclass(frozen=True, eq=False, repr=False)
class Packbits(Serializer):
    """Stores each element as its bits ``first_bit`` to ``last_bit``, counted from the lowest, one
    after the other (registered Zarr v3 codec ``packbits``).

    Without these, as all that it has: 1 of a bool, 2 of int2 and uint2, 4 of int4 and uint4. The
    other bits are lost; decoded they are zero, or of signed integers the highest bit kept. Of
    complex numbers both halves are packed. ``padding_encoding`` says where a byte tells how many
    bits the last byte is filled up with: ``"first_byte"``, ``"last_byte"`` or ``"none"``.
    """

    name: ClassVar[str] = "packbits"
    padding_encoding: Padding = "none"
    first_bit: int | None = None
    last_bit: int | None = None

    def __post_init__(self) -> None:
        if self.padding_encoding not in ("none", "first_byte", "last_byte"):
            raise Invalid(
                "codec 'packbits' padding_encoding is 'none', 'first_byte' or 'last_byte', not "
                + short(self.padding_encoding)
            )
        for bit in (self.first_bit, self.last_bit):
            if bit is not None and (type(bit) is not int or not 0 <= bit < 64):
                raise Invalid(f"codec 'packbits' counts bits from 0 to 63, not {short(bit)}")
        if self.last_bit is not None and self.last_bit < (self.first_bit or 0):
            raise Invalid("codec 'packbits' has a last_bit below its first_bit")

    def configuration(self) -> dict[str, Any]:
        """What differs from the defaults."""
        told = {"first_bit": self.first_bit, "last_bit": self.last_bit}
        known: dict[str, Any] = {key: bit for key, bit in told.items() if bit is not None}
        if self.padding_encoding != "none":
            known["padding_encoding"] = self.padding_encoding
        return known

    def bind(self, spec: ChunkSpec) -> Packbits:
        """This codec, when it takes the elements of ``spec``."""
        if spec.dtype.kind not in "biufcmM" and not is_extended(spec.dtype):
            raise Invalid(f"codec 'packbits' packs bool, numbers and times, not {spec.dtype}")
        self._bits(spec.dtype)
        return self

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The packed bits, and where it is asked for the byte that counts those left over."""
        first, last, _ = self._bits(chunk.dtype)
        width, _ = _component(chunk.dtype)
        plain = _bytes(chunk).reshape(-1, width)
        step = last - first + 1
        packed = [
            np.packbits(
                np.unpackbits(plain[start : start + _BLOCK], axis=1, bitorder="little")[
                    :, first : last + 1
                ].reshape(-1),
                bitorder="little",
            )
            for start in range(0, len(plain), _BLOCK)
        ]
        padding = np.array([-len(plain) * step % 8], np.uint8)
        if self.padding_encoding == "first_byte":
            packed.insert(0, padding)
        elif self.padding_encoding == "last_byte":
            packed.append(padding)
        return np.concatenate(packed).tobytes() if packed else b""

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """The elements, in memory of their own."""
        expected = self.encoded_nbytes(spec)
        if len(data) != expected:
            held = counted(len(data), "byte")
            raise ValueError(f"{held} where shape {spec.shape} of {spec.dtype} takes {expected}")
        first, last, own = self._bits(spec.dtype)
        width, halves = _component(spec.dtype)
        step, count = last - first + 1, spec.count * halves
        stored = np.frombuffer(data, np.uint8)
        if self.padding_encoding != "none":
            at = 0 if self.padding_encoding == "first_byte" else -1
            if stored[at] != -count * step % 8:
                raise ValueError(f"it says that {stored[at]} bits are left over")
            stored = stored[1:] if at == 0 else stored[:-1]
        plain = np.empty((count, width), np.uint8)
        signed = spec.dtype.kind in "imM" or spec.dtype.name in ("int2", "int4")
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            taken = stored[start * step // 8 : -(-stop * step // 8)]
            bits = np.unpackbits(taken, count=(stop - start) * step, bitorder="little")
            whole = np.zeros((stop - start, 8 * width), np.uint8)
            whole[:, first : last + 1] = bits.reshape(-1, step)
            if signed:
                whole[:, last + 1 : own] = whole[:, last : last + 1]
            plain[start:stop] = np.packbits(whole, axis=1, bitorder="little")
        return _from_bytes(plain, spec)

    def encoded_nbytes(self, spec: ChunkSpec) -> int | None:
        """As many bits as are kept, in whole bytes."""
        first, last, _ = self._bits(spec.dtype)
        bits = spec.count * _component(spec.dtype)[1] * (last - first + 1)
        return -(-bits // 8) + (self.padding_encoding != "none")

    def _bits(self, dtype: np.dtype[Any]) -> tuple[int, int, int]:
        """The first and the last bit kept of each component, and how many it has."""
        own = 8 * _component(dtype)[0]
        if dtype.kind == "b":
            own = 1
        elif is_small_int(dtype):
            own = int(dtype.name[-1])
        first = self.first_bit or 0
        last = own - 1 if self.last_bit is None else self.last_bit
        if not first <= last < own:
            raise Invalid(
                f"codec 'packbits' keeps bits {first} to {last}; {dtype} has 0 to {own - 1}"
            )
        return first, last, own


def _component(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Bytes of each component, and components of each element."""
    halves = 2 if dtype.kind == "c" else 1
    return dtype.itemsize // halves, halves


def _bytes(chunk: NDArray[Any]) -> NDArray[Any]:
    """The chunk's memory, little-endian."""
    if not is_extended(chunk.dtype):
        return np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    bits = np.dtype(f"u{chunk.itemsize}").newbyteorder(chunk.dtype.byteorder)
    plain = np.ascontiguousarray(chunk).reshape(-1).view(bits)
    return plain.astype(plain.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _from_bytes(plain: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
    kind = np.dtype(f"u{spec.dtype.itemsize}") if is_extended(spec.dtype) else spec.dtype
    ordered = plain.reshape(-1).view(kind.newbyteorder("<")).astype(kind, copy=False)
    return ordered.view(spec.dtype).reshape(spec.shape)
