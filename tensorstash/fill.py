"""Fill values: what absent chunks hold, in JSON and in memory, bit for bit.

In memory a fill value is a read-only 0-d array of the array's dtype, so that NaN payloads
and -0.0 keep their bits. JSON forms: Zarr v3 core, "Fill value"; Zarr v2, "Fill value
encoding"; the registered extension data types.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from . import dtype as dtypes
from .errors import Invalid, counted, listed, short

__all__ = [
    "default",
    "from_json",
    "is_fill",
    "of_object",
    "parse",
    "quoted",
    "to_json",
    "undefined",
]

_NUMBER: Final = re.compile(
    r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf(inity)?)\s*", re.ASCII | re.IGNORECASE
)
_WHOLE: Final = re.compile(r"\s*([+-]?\d+)(\.0*)?\s*", re.ASCII)


def default(dtype: np.dtype[Any]) -> NDArray[Any]:
    """The fill value of an array created without one: what ``numpy.zeros`` holds, and empty
    text or bytes."""
    if dtype.kind == "O":
        return _frozen(b"", dtype)
    return _frozen("", dtype) if dtype.kind == "T" else _seal(np.zeros((), dtype))


def of_object(value: Any) -> NDArray[Any]:
    """The fill value of an array of any objects: ``value`` whole, a list too."""
    made = np.empty(1, object)
    made[0] = value
    return _seal(made.reshape(()))


def undefined(dtype: np.dtype[Any]) -> NDArray[Any]:
    """The fill value of a Zarr v2 array whose document says ``null``, which the specification
    leaves open: as zarr-python, which takes it for NaT where elements are times (and stores no
    chunk of nothing else), and for :func:`default` elsewhere, times within records included."""
    return _frozen("NaT", dtype) if dtype.kind in "mM" else default(dtype)


def parse(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The fill value that a caller's ``value`` asks for, exactly.

    A value of ``dtype`` keeps its bits; ``None`` asks for :func:`default`; text is read as in
    a metadata document (``"NaN"``, ``"0x7fc00001"``). :class:`~tensorstash.errors.Invalid`
    when ``dtype`` cannot hold it (300 in ``uint8``, NaN in integers, text that is too long).
    """
    if value is None:
        return default(dtype)
    if isinstance(value, np.ndarray):
        if value.ndim:
            raise Invalid(f"fill_value has shape {value.shape}; give one element")
        if value.dtype == dtype and dtype.kind not in "OT" and not dtypes.is_small_int(dtype):
            return _seal(value.astype(dtype))
        value = value[()]
    try:
        return _parse(value, dtype)
    except Invalid:
        raise
    except (TypeError, ValueError, OverflowError, UnicodeError) as error:
        raise _unfit(value, dtype) from error


def _parse(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    # Of integers of few bits, those that mean nothing are dropped.
    if isinstance(value, np.generic) and value.dtype == dtype and not dtypes.is_small_int(dtype):
        return _seal(np.asarray(value).astype(dtype))
    kind = dtype.kind
    if dtype.names is not None:
        return _parse_record(value, dtype)
    if kind == "b":
        if value not in (0, 1):
            raise _unfit(value, dtype)
        return _frozen(bool(value), dtype)
    if kind in "iu" or dtypes.is_small_int(dtype):
        whole = int(value)
        if isinstance(value, str | bytes) or whole != value:
            raise _unfit(value, dtype)
        return _whole(whole, dtype)
    if kind == "c" or dtypes.is_float(dtype):
        if isinstance(value, str | list):
            return from_json(value, dtype, 3)
        made = _frozen(value, dtype)
        if np.all(np.isfinite(value)) and not np.isfinite(made):
            raise _unfit(value, dtype)
        return made
    if kind in "mM":
        made = _frozen(value, dtype)
        timed = isinstance(value, np.datetime64 | np.timedelta64)
        if timed and not np.isnat(value) and made[()] != value:
            raise _unfit(value, dtype)
        return made
    if kind in "TU" and not isinstance(value, str):
        raise _unfit(value, dtype)
    if kind == "U" and len(value) > dtype.itemsize // 4:
        raise _unfit(value, dtype)
    if kind in "TU":
        return _frozen(str(value), dtype)
    if isinstance(value, list) and kind != "U":
        value = bytes(value)
    data = value.tobytes() if isinstance(value, np.void) else value
    if not isinstance(data, bytes | bytearray):
        raise _unfit(value, dtype)
    return _of_bytes(bytes(data), dtype)


def _parse_record(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(value, np.void):
        value = value.item()
    if isinstance(value, int | float) and value == 0:
        return default(dtype)
    made = np.zeros((), dtype)
    fields = dtypes.parts(dtype)
    if isinstance(value, Mapping):
        if set(value) != {name for name, _ in fields}:
            names = listed(sorted(map(str, value)))
            raise Invalid(f"fill_value must name every field of {short(dtype)}, got {names}")
        items = [value[name] for name, _ in fields]
    elif isinstance(value, tuple | list) and len(value) == len(fields):
        items = list(value)
    else:
        raise _unfit(value, dtype)
    for (name, part), item in zip(fields, items, strict=True):
        if part.subdtype is None:
            made[name] = parse(item, part)
        else:
            made[name] = np.asarray(item, part.subdtype[0])
    return _seal(made)


def to_json(fill: NDArray[Any], dtype: np.dtype[Any], zarr_format: Literal[2, 3]) -> Any:
    """``fill`` as it stands in a metadata document; :func:`from_json` gives the same bits.

    Zarr v2 can spell only the one NaN that ``numpy.nan`` is:
    :class:`~tensorstash.errors.Invalid` for others.
    """
    kind = dtype.kind
    if dtype.names is not None and zarr_format == 3:
        return {
            name: to_json(np.asarray(fill[name]), part, 3) for name, part in dtypes.parts(dtype)
        }
    if kind == "c":
        half = np.dtype(f"f{dtype.itemsize // 2}")
        return [
            _float_to_json(fill.real, half, zarr_format),
            _float_to_json(fill.imag, half, zarr_format),
        ]
    if dtypes.is_float(dtype):
        return _float_to_json(fill, dtype, zarr_format)
    if kind in "mM":
        return "NaT" if np.isnat(fill) else int(fill.astype("i8"))
    if kind == "O":
        value = fill[()]
        return _base64(value) if isinstance(value, bytes) else value
    if dtypes.is_small_int(dtype):
        return int(fill)
    if kind == "V" and dtype.names is None and zarr_format == 3:
        return list(fill.tobytes())
    if kind in "SV":
        return _base64(fill.tobytes())
    return fill.item() if kind != "T" else str(fill[()])


def from_json(value: Any, dtype: np.dtype[Any], zarr_format: Literal[2, 3]) -> NDArray[Any]:
    """The fill value that a metadata document spells as ``value``, bit for bit.

    Also reads what others write against the rules: integers as ``0.0``, bare NaN tokens, numbers
    in quotes, base64 where a list is due and the reverse. :class:`~tensorstash.errors.Invalid` when
    ``value`` is not a fill value of ``dtype``.
    """
    # Only the base64 of a record is in stored byte order; everything else spells a value.
    keep = dtype.isnative or dtype.names is not None
    native = dtype if keep else dtype.newbyteorder("=")
    try:
        return _seal(_from_json(value, native, zarr_format).astype(dtype))
    except Invalid:
        raise
    except (TypeError, ValueError, OverflowError, UnicodeError) as error:
        raise _unfit(value, dtype) from error


def _from_json(value: Any, dtype: np.dtype[Any], zarr_format: Literal[2, 3]) -> NDArray[Any]:
    kind = dtype.kind
    small = dtypes.is_small_int(dtype)
    if small or (kind in "iumMb" and dtype.names is None):
        value = _unquoted(value, kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype.names is not None:
        return _record_from_json(value, dtype, zarr_format)
    if kind == "b":
        if isinstance(value, bool) or (number and value in (0, 1)):
            return _frozen(bool(value), dtype)
    elif small or kind in "iu":
        if number and int(value) == value:
            return _whole(int(value), dtype)
    elif kind == "c":
        half = np.dtype(f"f{dtype.itemsize // 2}")
        if isinstance(value, list) and len(value) == 2:
            made = np.zeros(2, half)
            made[0], made[1] = (_float_from_json(part, half) for part in value)
            return _seal(made.view(dtype).reshape(()))
        if number or isinstance(value, str):  # Zarr v2 documents with a real fill value
            made = np.zeros(2, half)
            made[0] = _float_from_json(value, half)
            return _seal(made.view(dtype).reshape(()))
    elif dtypes.is_float(dtype):
        return _seal(_float_from_json(value, dtype))
    elif kind in "mM":
        if value == "NaT":
            return _frozen("NaT", dtype)
        if number and int(value) == value:
            return _seal(np.array(int(value), "i8").view(dtype))
    elif kind in "TU" and isinstance(value, str):
        if kind == "T" or len(value) <= dtype.itemsize // 4:
            return _frozen(value, dtype)
    elif kind in "TU" and zarr_format == 2 and number:
        # zarr-python 2 wrote its default fill value, 0, for text as well.
        return _frozen("" if value == 0 else str(value), dtype)
    elif kind in "SVO":
        if kind in "SV" and zarr_format == 2 and number and value == 0:
            return default(dtype)
        return _of_bytes(_bytes_from_json(value), dtype)
    raise _unfit(value, dtype)


def quoted(value: Any) -> bool:
    """Whether a document spells a number as text, other than NaN and infinity are to be."""
    return (
        isinstance(value, str)
        and value not in ("NaN", "Infinity", "-Infinity")
        and _NUMBER.fullmatch(value) is not None
    )


def _unquoted(value: Any, kind: str) -> Any:
    """``value``, or the whole number that stands in it in quotes.

    No bool but a true one does: zarr-python takes ``"0"`` and ``"false"`` for true.
    """
    if not isinstance(value, str):
        return value
    if kind == "b":
        return True if value in ("1", "true", "True") else value
    whole = _WHOLE.fullmatch(value)
    return value if whole is None else int(whole[1])


def _record_from_json(value: Any, dtype: np.dtype[Any], zarr_format: Literal[2, 3]) -> NDArray[Any]:
    if isinstance(value, dict) and zarr_format == 3:
        made = np.zeros((), dtype)
        if set(value) != set(dtype.names or ()):
            raise Invalid(f"fill_value must name exactly the fields {listed(dtype.names or ())}")
        for name, part in dtypes.parts(dtype):
            made[name] = _from_json(value[name], part, 3)
        return _seal(made)
    if isinstance(value, int | float) and value == 0:
        return default(dtype)
    # Zarr v2, and the `structured` type that zarr-python wrote in v3: the packed bytes.
    stored = dtype.newbyteorder("<") if zarr_format == 3 else dtype
    return _seal(_of_bytes(_bytes_from_json(value), stored).astype(dtype))


def _float_to_json(
    value: NDArray[Any], dtype: np.dtype[Any], zarr_format: Literal[2, 3]
) -> float | str:
    value = np.asarray(value, dtype)
    number = float(value)
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    if not math.isnan(number):
        return number
    if value.tobytes() == np.array(math.nan, dtype).tobytes():
        return "NaN"
    value = value.astype(dtype.newbyteorder("=")) if not dtype.isnative else value
    bits = f"0x{int(_bits(value)):0{2 * dtype.itemsize}x}"
    if zarr_format == 2:
        raise Invalid(f"Zarr v2 cannot spell the NaN {bits}; use fill_value=numpy.nan")
    return bits


def _float_from_json(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(value, str):
        if value in ("NaN", "Infinity", "-Infinity"):
            return np.array(float(value), dtype)
        if re.fullmatch(f"0x[0-9a-fA-F]{{1,{2 * dtype.itemsize}}}", value):
            return np.array(int(value, 16), f"u{dtype.itemsize}").view(dtype)
        if _NUMBER.fullmatch(value):
            value = math.nan if "nan" in value.lower() else float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        with np.errstate(over="ignore"):
            made = np.array(float(value), dtype)
        if np.isfinite(made) or not math.isfinite(value):
            return made
    raise _unfit(value, dtype)


def _bytes_from_json(value: Any) -> bytes:
    if isinstance(value, str):
        return base64.b64decode(value.encode("ascii"), validate=True)
    if isinstance(value, list) and all(type(item) is int for item in value):
        return bytes(value)
    if value is None or value == 0:
        return b""
    raise ValueError("neither base64 nor a list of bytes")


def _of_bytes(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "O":
        return _frozen(data, dtype)
    if dtype.kind == "S":
        data = data.ljust(dtype.itemsize, b"\0")
    if len(data) != dtype.itemsize:
        raise Invalid(f"fill_value has {counted(len(data), 'byte')}; {dtype} has {dtype.itemsize}")
    return _seal(np.frombuffer(data, dtype).reshape(()).copy())


def _bits(value: NDArray[Any]) -> NDArray[Any]:
    return np.atleast_1d(value).view(f"u{value.dtype.itemsize}")[0]  # type: ignore[no-any-return]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _whole(value: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    low, high = dtypes.int_range(dtype)
    if not low <= value <= high:  # those of ml_dtypes would wrap
        raise _unfit(value, dtype)
    return _frozen(value, dtype)


def _frozen(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    made = np.empty((), dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the result
        made[()] = value
    return _seal(made)


def _seal(fill: NDArray[Any]) -> NDArray[Any]:
    fill.setflags(write=False)
    return fill


def _unfit(value: Any, dtype: np.dtype[Any]) -> Invalid:
    return Invalid(f"fill_value {short(value)} does not fit dtype {dtype}")


# -- bit for bit -----------------------------------------------------------------------


_BLOCK: Final = 1 << 16
"""Elements compared at a time: the temporary stays in cache and a mismatch ends the scan."""

_COPY_LIMIT: Final = 1 << 20
"""Bytes of a scattered chunk that may be gathered for comparison."""


def is_fill(chunk: NDArray[Any], fill: NDArray[Any]) -> bool:
    """Whether every element of ``chunk`` is ``fill``, by its bits: -0.0 is not 0.0, and one
    NaN is not another (text and bytes of any length: by ``==``).

    Decides by the first element where that differs; otherwise one pass over the memory,
    with temporaries of at most a mebibyte.
    """
    if chunk.size == 0:
        return True
    if chunk.dtype.kind == "O":
        wanted = fill[()]
        return isinstance(wanted, bytes) and all(
            type(item) is bytes and item == wanted for item in chunk.flat
        )
    if chunk.dtype.kind == "T":
        first = chunk[(0,) * chunk.ndim]
        return bool(first == fill[()]) and bool(np.all(chunk == fill))
    if chunk.dtype != fill.dtype:
        fill = fill.astype(chunk.dtype)
    wanted_bytes = fill.tobytes()
    corner: Any = (*(slice(1),) * chunk.ndim, ...)  # no scalar: NumPy refuses odd text
    if chunk[corner].tobytes() != wanted_bytes:
        return False
    if chunk.nbytes <= _BLOCK:
        return chunk.tobytes() == wanted_bytes * chunk.size
    width = math.gcd(chunk.dtype.itemsize, 8)
    wanted = np.frombuffer(wanted_bytes, f"u{width}")
    return _is_all(chunk, wanted, wanted[0] if (wanted == wanted[0]).all() else None)


def is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two fill values of one dtype are equal as numbers or text, or both NaN or NaT."""
    if is_fill(one.reshape(1), other) or bool(one == other):
        return True
    undefined = bool(one != one) and bool(other != other)  # NaN, NaT
    return undefined and one.dtype.names is None


def _is_all(chunk: NDArray[Any], wanted: NDArray[Any], same: Any) -> bool:
    if not chunk.flags.forc and not _any_order_contiguous(chunk):
        if chunk.nbytes > _COPY_LIMIT:
            step = max(1, len(chunk) * _COPY_LIMIT // chunk.nbytes)
            halves = (
                chunk[0] if len(chunk) == 1 else chunk[start : start + step]
                for start in range(0, len(chunk), step)
            )
            return all(_is_all(part, wanted, same) for part in halves)
        chunk = np.ascontiguousarray(chunk)
    lanes = chunk.ravel(order="K").view(wanted.dtype)
    if same is not None and same == 0 and wanted.itemsize < 8:
        return _no_bits(lanes)
    if same is None:
        rows = lanes.reshape(-1, len(wanted))
        step = max(1, _BLOCK // len(wanted))
        return not any(
            (rows[start : start + step] != wanted).any() for start in range(0, len(rows), step)
        )
    return not any(
        (lanes[start : start + _BLOCK] != same).any() for start in range(0, len(lanes), _BLOCK)
    )


def _no_bits(lanes: NDArray[Any]) -> bool:
    """Whether all of ``lanes`` is zero, eight bytes at a time."""
    per = 8 // lanes.itemsize
    whole = len(lanes) // per * per
    words = lanes[:whole].view("u8")
    return not lanes[whole:].any() and not any(
        words[start : start + _BLOCK].any() for start in range(0, len(words), _BLOCK)
    )


def _any_order_contiguous(chunk: NDArray[Any]) -> bool:
    axes = sorted(range(chunk.ndim), key=lambda axis: -abs(chunk.strides[axis]))
    return chunk.transpose(axes).flags.c_contiguous
