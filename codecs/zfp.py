"""Codec ``zfp``: numbers compressed by zfp, through the package ``zfpy``."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import Buffer, ChunkSpec, Codec, Serializer, short, take
from tensorstash.codecs.numcodec_arrays import check_lossy, zfp_bits, zfp_least, zfp_most
from tensorstash.errors import Invalid, Unsupported

_OPTIONS = {
    "reversible": None,
    "fixed_accuracy": "tolerance",
    "fixed_rate": "rate",
    "fixed_precision": "precision",
}
"""The option that each mode takes, as zfpy calls it too."""

_NATIVE = ("int32", "int64", "float32", "float64")
_SLACK = 1 << 16


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec that a metadata document describes."""
    whole = ("minbits", "maxbits", "maxprec", "minexp")
    known = take(
        name,
        configuration,
        mode=str,
        tolerance=(int, float),
        rate=(int, float),
        precision=int,
        **dict.fromkeys(whole, int),
    )
    mode = known.pop("mode", None)
    if mode == "expert":
        raise Unsupported("codec 'zfp' in mode 'expert': zfpy does not offer it")
    return Zfp(mode, **known)


@dataclass(frozen=True, eq=False, repr=False)
class Zfp(Serializer):
    """Chunks of 1 to 4 axes as zfp streams without a header (registered Zarr v3 codec ``zfp``).

    ``mode`` is ``"reversible"`` (exact), ``"fixed_accuracy"`` with a ``tolerance``,
    ``"fixed_rate"`` with a ``rate`` in bits an element, or ``"fixed_precision"`` with a
    ``precision`` in bits. Integers of 8 and 16 bits are widened to 32, float16 and bfloat16 to
    float32; unsigned ones of 32 and 64 bits go as signed ones, and larger values are refused. So
    are, but for ``"reversible"``, NaN, infinity, NaT and integers that need all of 32 or 64 bits.
    """

    name: ClassVar[str] = "zfp"
    mode: str = "reversible"
    tolerance: float | None = None
    rate: float | None = None
    precision: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in _OPTIONS:
            raise Invalid(
                f"codec 'zfp' mode is one of {', '.join(_OPTIONS)}, not {short(self.mode)}"
            )
        wanted = _OPTIONS[self.mode]
        given = [
            option for option in _OPTIONS.values() if option and self._told(option) is not None
        ]
        if given != ([wanted] if wanted else []):
            raise Invalid(
                f"codec 'zfp' in mode {self.mode!r} takes {wanted or 'no option'}, not "
                f"{', '.join(given) or 'none'}"
            )
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise Invalid(f"codec 'zfp' tolerance cannot be {short(self.tolerance)}")
        if self.rate is not None and not 0 < self.rate <= 64:
            raise Invalid(
                f"codec 'zfp' rate is above 0 and at most 64 bits, not {short(self.rate)}"
            )
        if self.precision is not None and not 1 <= self.precision <= 64:
            raise Invalid(
                f"codec 'zfp' precision is from 1 to 64 bits, not {short(self.precision)}"
            )

    def _told(self, option: str) -> Any:
        return getattr(self, option)

    def configuration(self) -> dict[str, Any]:
        """The mode, and its option."""
        return {"mode": self.mode, **self._options()}

    def _options(self) -> dict[str, Any]:
        wanted = _OPTIONS[self.mode]
        return {} if wanted is None else {wanted: self._told(wanted)}

    def bind(self, spec: ChunkSpec) -> Zfp:
        """This codec, when it takes the elements and axes of ``spec``."""
        if spec.dtype.kind not in "iumM" and spec.dtype.name not in (
            *("float16", "bfloat16", "float32", "float64"),
        ):
            raise Invalid(f"codec 'zfp' takes integers, times and floats, not {spec.dtype}")
        if len(spec.shape) > 4 or not spec.count:
            raise Invalid(f"codec 'zfp' takes up to 4 axes, not shape {spec.shape}")
        _zfpy()
        return self

    def overfull(self, spec: ChunkSpec) -> str | None:
        """zfp knows no tolerance of integers: what it makes of them differs by more. Nor does it
        make anything of less than a bit a block."""
        if self.rate is not None and not self._bits(spec.shape, _wide(spec.dtype)):
            return (
                f"codec 'zfp' has no rate {self.rate}: no block would have a bit; use a higher one"
            )
        if self.mode != "fixed_accuracy" or spec.dtype.kind not in "iumM":
            return None
        return f"codec 'zfp' has no fixed_accuracy of {spec.dtype}; use another mode"

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """The stream."""
        plain = np.ascontiguousarray(_promoted(chunk))
        if not plain.ndim:
            plain = plain.reshape(1)
        options = self._options()
        narrow = chunk.dtype.kind in "iu" and chunk.itemsize < plain.itemsize  # fits, promoted
        if self.mode != "reversible" and not narrow:
            check_lossy(plain)
        if self.rate is not None:  # zfpy does not raise it by dtype here, as it does in decode
            options = {"rate": self._bits(plain.shape, plain.dtype) / 4**plain.ndim}
        made: bytes = _zfpy().compress_numpy(plain, write_header=False, **options)
        return made

    def _bits(self, shape: tuple[int, ...], wide: np.dtype[Any]) -> int:
        """Bits of each block in mode ``fixed_rate``."""
        assert self.rate is not None
        bits = zfp_bits(self.rate, len(shape) or 1)
        return max(bits, zfp_least(wide)) if wide.kind == "f" else bits

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """The numbers; of what is cut short the last ones are others."""
        zfpy = _zfpy()
        wide = _wide(spec.dtype)
        shape = spec.shape or (1,)
        # zfp reads on beyond its input when that is cut short: let it find zeros there.
        stream = bytes(data) + bytes(zfp_most(_as(spec, shape, wide)))
        made = zfpy._decompress(stream, zfpy.dtype_to_ztype(wide), shape, **self._options())
        return _demoted(np.asarray(made).reshape(spec.shape), spec.dtype)

    def encoded_limit(self, spec: ChunkSpec) -> int | None:
        """Generous; zfp works in blocks of four along each axis, and fills them up."""
        wide = _as(spec, spec.shape or (1,), _wide(spec.dtype))
        return 2 * wide.nbytes + _SLACK + zfp_most(wide)


def _zfpy() -> Any:
    try:
        return importlib.import_module("zfpy")
    except ImportError as error:
        raise Unsupported(
            "codec 'zfp' needs the package 'zfpy': pip install zfpy==1.0.1"
        ) from error


def _as(spec: ChunkSpec, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ChunkSpec:
    return ChunkSpec(shape, dtype, np.zeros((), dtype))


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What zfp compresses a dtype as."""
    if dtype.name in _NATIVE:
        return dtype.newbyteorder("=")
    if dtype.kind in "iumM":
        return np.dtype(np.int64 if dtype.itemsize == 8 else np.int32)
    return np.dtype(np.float32)


def _promoted(chunk: NDArray[Any]) -> NDArray[Any]:
    dtype = chunk.dtype
    wide = _wide(dtype)
    if dtype.kind in "mM":
        return chunk.astype(dtype.newbyteorder("=")).view(np.int64)
    if dtype.kind not in "iu" or dtype.name in _NATIVE:
        return chunk.astype(wide, copy=False)
    bits = 8 * dtype.itemsize
    if bits < 32:  # as zfp's own promotion: the value stands in the high bits
        middle = 1 << bits - 1 if dtype.kind == "u" else 0
        high: NDArray[Any] = (chunk.astype(wide) - wide.type(middle)) << wide.type(31 - bits)
        return high
    if chunk.size and int(chunk.max()) > np.iinfo(wide).max:
        raise ValueError(f"zfp holds no {dtype} above {np.iinfo(wide).max}")
    return chunk.astype(wide)


def _demoted(plain: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "mM":
        return plain.view(dtype)
    if dtype.kind not in "iu" or dtype.name in _NATIVE:
        with np.errstate(over="ignore"):
            return plain.astype(dtype, copy=False)
    bits = 8 * dtype.itemsize
    if bits < 32:
        middle = 1 << bits - 1 if dtype.kind == "u" else 0
        plain = (plain >> plain.dtype.type(31 - bits)) + plain.dtype.type(middle)
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        return plain.clip(low, high).astype(dtype)
    return plain.clip(0, None).astype(dtype)  # lossy modes go below what there was
