"""Codec ``scale_offset``: a chunk's numbers, less an offset and times a scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorstash import fill as fills
from tensorstash.codec import ArrayCodec, Cached, ChunkSpec, Codec, take
from tensorstash.codecs.casting import is_integer, is_real
from tensorstash.dtype import int_range, is_small_int, widened
from tensorstash.errors import Invalid


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    scalar = (int, float, str)
    return ScaleOffset(**take(name, configuration, offset=scalar, scale=scalar))


@dataclass(frozen=True, eq=False, repr=False)
class ScaleOffset(ArrayCodec):
    """Stores ``(x - offset) * scale``, in the arithmetic of the array's own dtype (registered
    Zarr v3 codec ``scale_offset``).

    Nothing wraps, and no integer is cut: where a step leaves the dtype, or a stored integer is no
    multiple of ``scale``, that is an error. Both are spelled as a fill value of the dtype is.
    """

    name: ClassVar[str] = "scale_offset"
    offset: float | str | None = None
    scale: float | str | None = None
    dtype: np.dtype[Any] | None = None

    def configuration(self) -> dict[str, Any]:
        """What was given."""
        told = {"offset": self.offset, "scale": self.scale}
        return {key: value for key, value in told.items() if value is not None}

    def bind(self, spec: ChunkSpec) -> ScaleOffset:
        """For numbers of ``spec``'s dtype, when its fill value has a place among the results."""
        if not is_real(spec.dtype):
            raise Invalid(f"codec 'scale_offset' takes integers and floats, not {spec.dtype}")
        bound = ScaleOffset(self.offset, self.scale, spec.dtype)
        offset, scale = bound._numbers
        if not (np.isfinite(offset.astype(float)) and np.isfinite(scale.astype(float))):
            raise Invalid("codec 'scale_offset' needs a finite offset and scale")
        if scale.astype(float) == 0:
            raise Invalid("codec 'scale_offset' needs a scale other than 0, which loses everything")
        try:
            bound.decode(bound.encode(spec.fill), spec)
        except ValueError as error:
            raise Invalid(f"codec 'scale_offset' cannot take the fill value: {error}") from error
        return bound

    def encoded(self, spec: ChunkSpec) -> ChunkSpec:
        """``spec`` with its fill value put through."""
        return ChunkSpec(spec.shape, spec.dtype, self.encode(spec.fill))

    def encode(self, chunk: NDArray[Any]) -> NDArray[Any]:
        """``(chunk - offset) * scale``."""
        plain = np.asarray(chunk, chunk.dtype.newbyteorder("="))
        offset, scale = self._numbers
        if is_integer(plain.dtype):
            return self._integers(plain, int(offset), int(scale), encode=True)
        with np.errstate(all="ignore"):
            return _kept(plain, np.asarray((plain - offset) * scale))

    def decode(self, chunk: NDArray[Any], spec: ChunkSpec) -> NDArray[Any]:
        """``chunk / scale + offset``."""
        offset, scale = self._numbers
        if is_integer(chunk.dtype):
            plain = np.asarray(chunk, chunk.dtype.newbyteorder("="))
            return self._integers(plain, int(offset), int(scale), encode=False)
        plain = np.asarray(chunk, chunk.dtype.newbyteorder("="))
        with np.errstate(all="ignore"):
            return _kept(plain, np.asarray(plain / scale + offset))

    @Cached
    def _numbers(self) -> tuple[NDArray[Any], NDArray[Any]]:
        assert self.dtype is not None
        offset = 0 if self.offset is None else self.offset
        scale = 1 if self.scale is None else self.scale
        return fills.from_json(offset, self.dtype, 3), fills.from_json(scale, self.dtype, 3)

    def _integers(
        self, plain: NDArray[Any], offset: int, scale: int, *, encode: bool
    ) -> NDArray[Any]:
        if not plain.size:
            return plain.copy()
        low, high = int_range(plain.dtype)
        # NumPy's integers wrap: with ends and steps within the dtype, what they give is exact.
        wide = plain.astype(widened(plain.dtype)) if is_small_int(plain.dtype) else plain
        kind = wide.dtype.type
        least, most = int(wide.min()), int(wide.max())
        if encode:
            steps = [(end - offset, (end - offset) * scale) for end in (least, most)]
        else:
            if np.any(_remainder(wide, scale)):
                raise ValueError(f"a number is not a multiple of the scale {scale}")
            steps = [(end // scale, end // scale + offset) for end in (least, most)]
        for step in steps:
            if any(not low <= number <= high for number in step):
                raise ValueError(f"{step[1]} is beyond {plain.dtype}")
        with np.errstate(all="ignore"):
            if encode:
                made = (wide - kind(offset)) * kind(scale)
            else:
                made = wide // kind(scale) + kind(offset)
        return np.asarray(made).astype(plain.dtype)


def _remainder(values: NDArray[Any], scale: int) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        made: NDArray[Any] = np.asarray(values % values.dtype.type(scale))
    return made


def _kept(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """``after``, when no finite number has become infinite; of the same dtype."""
    after = after.astype(before.dtype, copy=False)
    lost = np.isfinite(before) & ~np.isfinite(after)
    if lost.any():
        raise ValueError(f"{before[lost].flat[0]} leaves the range of {before.dtype}")
    return after
