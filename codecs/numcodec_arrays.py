"""numcodecs' array -> bytes codecs, ``pcodec`` and ``zfpy``; not a Zarr name itself."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import Buffer, ChunkSpec, Serializer, reason
from tensorstash.codecs.numcodec import Named, attempt, flat, is_panic
from tensorstash.errors import Invalid, counted

_KINDS = {
    "pcodec": (
        *("uint16", "uint32", "uint64", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    ),
    "zfpy": ("int32", "int64", "float32", "float64"),
}
_SLACK = 1 << 16
_BLOCK_BITS = 16658
"""The most that zfp makes of a block, of four axes in 64 bits."""


@dataclass(frozen=True, eq=False, repr=False)
class NumcodecSerializer(Named, Serializer):
    """An array -> bytes codec of numcodecs."""

    name: str = ""  # type: ignore[misc]
    options: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, spec: ChunkSpec) -> NumcodecSerializer:
        """This codec, when it takes the elements and axes of ``spec``."""
        kinds = _KINDS[self.identifier]
        if _numbers(spec.dtype).name not in kinds:
            raise Invalid(f"codec {self.name!r} takes {', '.join(kinds)}; not {spec.dtype}")
        if self.identifier == "zfpy" and (not 1 <= len(spec.shape) <= 4 or not spec.count):
            raise Invalid(f"codec {self.name!r} takes 1 to 4 axes, not shape {spec.shape}")
        assert self.codec is not None
        return self

    def encode(self, chunk: NDArray[Any]) -> Buffer:
        """What numcodecs makes of the chunk, in C order and native byte order."""
        plain = np.asarray(chunk, chunk.dtype.newbyteorder("="), order="C")
        plain = plain.view(_numbers(plain.dtype))
        check_zfp(self.identifier, self.codec, plain)
        return flat(attempt(self.name, self.codec.encode, plain))

    def encoded_limit(self, spec: ChunkSpec) -> int | None:
        """Generous; zfp works in blocks of four along each axis, and fills them up."""
        return 2 * spec.nbytes + _SLACK + (zfp_most(spec) if self.identifier == "zfpy" else 0)

    def decode(self, data: Buffer, spec: ChunkSpec) -> NDArray[Any]:
        """The inverse; the count in the header decides nothing."""
        decode = _unpco if self.identifier == "pcodec" else _unzfp
        try:
            return decode(bytes(data), _plain(spec)).view(spec.dtype)
        except Exception as error:
            raise ValueError(reason(error)) from error
        except BaseException as error:
            if not is_panic(error):
                raise
            raise ValueError(reason(error)) from error


def _numbers(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What numcodecs makes of a dtype first: times are whole numbers."""
    return np.dtype("i8") if dtype.kind in "mM" else dtype


def _plain(spec: ChunkSpec) -> ChunkSpec:
    dtype = _numbers(spec.dtype)
    return spec if dtype is spec.dtype else ChunkSpec(spec.shape, dtype, np.zeros((), dtype))


def decoded(identifier: str, data: bytes, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The ``count`` elements that a filter of Zarr v2 made these bytes of, in one run;
    ``ValueError`` where they claim others."""
    dtype = _numbers(dtype.newbyteorder("="))
    if identifier == "pcodec":
        return _unpco(data, ChunkSpec((count,), dtype, np.zeros((), dtype)))
    header = importlib.import_module("zfpy").header(data)
    shape = tuple(header[axis] for axis in ("nw", "nz", "ny", "nx") if header[axis])
    if math.prod(shape) != count:
        raise ValueError(f"its header claims shape {shape} of {counted(count, 'element')}")
    return _unzfp(data, ChunkSpec(shape, dtype, np.zeros((), dtype))).reshape(-1)


def _unpco(data: bytes, spec: ChunkSpec) -> NDArray[Any]:
    standalone = importlib.import_module("pcodec.standalone")
    chunk = np.zeros(spec.count, spec.dtype)
    progress = standalone.simple_decompress_into(data, chunk)
    if progress.n_processed != spec.count or not progress.finished:
        raise ValueError(f"not the {counted(spec.count, 'element')} expected")
    return chunk.reshape(spec.shape)


def _unzfp(data: bytes, spec: ChunkSpec) -> NDArray[Any]:
    zfpy = importlib.import_module("zfpy")
    header = zfpy.header(data)
    shape = tuple(header[axis] for axis in ("nw", "nz", "ny", "nx") if header[axis])
    if shape != spec.shape or header["type"] != spec.dtype.type:
        raise ValueError(f"its header claims shape {shape} of {header['type'].__name__}")
    # Each block has at least so many bits, whatever is in them: zfp skips them unlooked.
    least = header["config"]["expert"]["minbits"] if header["mode"] in ("rate", "expert") else 0
    if least * zfp_blocks(spec) > 8 * len(data):
        raise ValueError(
            f"its {counted(len(data), 'byte')} cannot hold blocks of {counted(least, 'bit')}"
        )
    # zfp reads on beyond its input when that is cut short: let it find zeros there.
    return np.asarray(zfpy.decompress_numpy(data + bytes(zfp_most(spec))))


def check_zfp(identifier: str, step: Any, plain: Any) -> None:
    """:class:`~tensorstash.errors.Invalid` where ``step`` is zfpy in a mode that cannot hold these
    numbers: zfp would write beyond its memory, or other numbers."""
    kwargs = getattr(step, "compression_kwargs", {}) if identifier == "zfpy" else {}
    if not isinstance(plain, np.ndarray) or not any(option >= 0 for option in kwargs.values()):
        return
    rate, axes = kwargs.get("rate"), plain.ndim
    least = zfp_least(plain.dtype)
    if rate is not None and not least <= zfp_bits(rate, axes) <= _BLOCK_BITS:
        raise Invalid(
            f"codec 'zfpy' has no rate {rate} of {plain.dtype} along "
            f"{counted(axes, 'axis', 'axes')}; use {least / 4**axes} to 64"
        )
    try:
        check_lossy(plain)
    except ValueError as error:
        raise Invalid(f"codec 'zfpy' cannot encode this chunk: {error}") from error


def check_lossy(plain: NDArray[Any]) -> None:
    """``ValueError`` where a lossy mode of zfp would make others of numbers, also of those beside
    them: infinity and NaN have no place there, and integers need one bit to spare."""
    if not plain.size:
        return
    if plain.dtype.kind == "f":
        if not np.isfinite(plain).all():
            raise ValueError(
                "NaN and infinity, also as the fill value around what is written, spoil what "
                "is beside them; only the mode that loses nothing holds them"
            )
        return
    end = 1 << 8 * plain.itemsize - 2
    if int(plain.min()) <= -end or int(plain.max()) >= end:
        raise ValueError(
            f"{plain.dtype} from {-end} down and from {end} up would wrap; only the mode that "
            "loses nothing holds them"
        )


def zfp_bits(rate: float, ndim: int) -> int:
    """Bits of a block at a ``rate`` in bits an element, as zfp reckons them."""
    return math.floor(rate * float(4**ndim) + 0.5)


def zfp_least(dtype: np.dtype[Any]) -> int:
    """Bits that each block has at least. Of floats it begins with an exponent, which zfpy writes
    even where the rate, and so its memory, has no room for it."""
    return {"float32": 9, "float64": 12}.get(dtype.name, 1)


def zfp_blocks(spec: ChunkSpec) -> int:
    """Blocks of four along each axis."""
    return math.prod(-(-edge // 4) for edge in spec.shape)


def zfp_most(spec: ChunkSpec) -> int:
    """Bytes that zfp may read, or write, for such a chunk, and more."""
    return 2 * zfp_blocks(spec) * (int(4 ** len(spec.shape)) * spec.dtype.itemsize + 32)
