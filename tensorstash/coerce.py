"""What users hand over, as arrays: values to store, buffers to fill, sizes in bytes."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dtype import OBJECT, STRING, int_range, is_small_int, widened
from .errors import Invalid, counted, short
from .tensors import to_numpy

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def as_array(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``value`` as an array that NumPy can assign into one of ``dtype``.

    Arrays keep their dtype (they are cast as they are stored, as NumPy casts); anything else is
    made an array of ``dtype`` by NumPy's rules, which refuse a scalar that does not fit. Torch
    tensors keep bfloat16. Masked elements are refused.
    """
    if not isinstance(value, np.ndarray):
        if is_tensor(value):
            return as_array(to_numpy(value), dtype)
        typed = getattr(value, "dtype", None) is not None and hasattr(value, "__array__")
        if isinstance(value, np.generic):
            typed = dtype.kind == "O" or value.dtype == dtype
        try:
            made = np.asarray(value) if typed else _untyped(value, dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise Invalid(
                f"cannot make {type(value).__name__} into an array of {dtype}: {error}"
            ) from error
        return as_array(made, dtype)
    array = _unmasked(value)
    if array.dtype == dtype or (array.dtype.kind in "biufc" and dtype.kind in "biufc"):
        return array
    try:
        cast: NDArray[Any] = array.astype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise Invalid(f"cannot store {array.dtype} in an array of {dtype}: {error}") from error
    return cast


def _untyped(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not is_small_int(dtype):
        return _assigned(value, dtype)
    wide = _assigned(value, widened(dtype))
    low, high = int_range(dtype)
    if wide.size and not low <= wide.min() <= wide.max() <= high:  # NumPy raises, ml_dtypes wraps
        raise OverflowError(f"{dtype} holds integers from {low} to {high}")
    return wide.astype(dtype)


def _assigned(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not isinstance(value, np.generic):
        _check_listed(value)
        return np.asarray(value, dtype=dtype)
    made = np.empty((), dtype)
    made[()] = value  # np.asarray would cast, and make numbers of nan and of what is out of range
    return made


def _unmasked(array: NDArray[Any]) -> NDArray[Any]:
    """``array`` without a mask, in which nothing may be masked: what is hidden is no value."""
    if type(array) is np.ndarray or not isinstance(array, np.ma.MaskedArray):
        return array
    mask = np.ascontiguousarray(np.ma.getmaskarray(array)).reshape(-1).view(bool)  # of fields too
    if mask.any():
        verb = "is" if len(mask) == 1 else "are"
        raise Invalid(
            f"{mask.sum()} of {counted(len(mask), 'value')} {verb} masked; store values.filled(x)"
        )
    return np.asarray(array)


def _check_listed(value: Any) -> None:
    """Refuse what is masked in a list, of which NumPy would make nan or what is hidden."""
    if isinstance(value, (list, tuple)):
        of_arrays = {kind for kind in set(map(type, value)) if issubclass(kind, np.ndarray)}
        for row in value if of_arrays - {np.ndarray} else ():
            if isinstance(row, np.ndarray):
                _unmasked(row)


def as_objects(value: Any, shape: tuple[int, ...], raw: bool) -> NDArray[Any]:
    """``value`` for a selection of ``shape`` in an array of bytes (``raw``), or of any objects.

    Where one object is selected, a list, tuple or array is that object; else NumPy opens it up.
    Bytes are never lists, and a bytearray is one value, not its numbers.
    """
    if raw:
        value = _plain_bytes(value)
    elif not shape and (isinstance(value, (list, tuple)) or len(getattr(value, "shape", ())) > 0):
        made = np.empty(1, OBJECT)
        made[0] = value
        return made.reshape(())
    return broadcast(as_array(value, OBJECT), shape)


def _plain_bytes(value: Any) -> Any:
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return [*map(_plain_bytes, value)] if isinstance(value, (list, tuple)) else value


def natural(value: Any) -> NDArray[Any]:
    """``value`` as an array of the dtype that it has, or that NumPy finds for it; fixed-length
    text becomes text of any length."""
    if is_tensor(value):
        found: NDArray[Any] = to_numpy(value)
        return found
    if isinstance(value, np.ndarray):
        value = _unmasked(value)
    _check_listed(value)
    try:
        array = np.asarray(value)
        return array.astype(STRING) if array.dtype.kind == "U" else array
    except (TypeError, ValueError) as error:  # TypeError: of text that has no UTF-8 form
        raise Invalid(f"cannot make {type(value).__name__} into an array: {error}") from error


def broadcast(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """``array`` seen as ``shape``; leading dimensions of length 1 may be dropped, as in NumPy's
    assignment."""
    array = np.asarray(array)  # of a subclass, such as a matrix, indexing is another
    given = array.shape
    if given == shape:
        return array
    while array.ndim > len(shape) and array.shape[0] == 1:
        array = array.reshape(array.shape[1:])  # [0] would be an object, of text
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise Invalid(
            f"a value of shape {given} does not broadcast to the selection's shape {shape}"
        ) from None


def as_rows(rows: Any, axis: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rows to be appended along ``axis`` of an array of ``shape``, all other axes of theirs
    compared."""
    value = as_array(rows, dtype)
    expected = (*shape[:axis], *shape[axis + 1 :])
    if value.ndim != len(shape) or (*value.shape[:axis], *value.shape[axis + 1 :]) != expected:
        raise Invalid(
            f"rows of shape {value.shape} cannot be appended along axis {axis} of an array of "
            f"shape {shape}; all other axes must agree"
        )
    return value


def as_axis(axis: Any, ndim: int) -> int:
    """``axis`` counted from the first, its bounds checked."""
    if not isinstance(axis, (int, np.integer)) or not -ndim <= axis < ndim:
        raise Invalid(
            f"axis {axis!r} is out of bounds for an array of {counted(ndim, 'dimension')}"
        )
    return int(axis) % ndim


def as_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array over a caller's buffer, its shape, dtype and writability checked."""
    array = to_numpy(out, shared=True) if is_tensor(out) else out
    if not isinstance(array, np.ndarray):
        raise Invalid(f"out must be a NumPy array or a torch tensor, not {type(out).__name__}")
    if array.shape != shape or array.dtype != dtype:
        raise Invalid(
            f"out has shape {array.shape} and dtype {array.dtype}; this selection needs shape "
            f"{shape} and dtype {dtype}"
        )
    if not array.flags.writeable:
        raise Invalid("out is read-only; pass a writable array")
    return array


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a torch tensor, found out without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "untyped_storage")


def parse_lengths(value: int | Iterable[int], what: str) -> tuple[int, ...]:
    """Whole numbers an axis, from an integer (one axis) or several, NumPy's among them."""
    try:
        given = (value,) if isinstance(value, (int, np.integer)) else tuple(value)
        if not any(isinstance(n, bool) for n in given):
            return tuple(operator.index(n) for n in given)
    except TypeError:
        pass
    raise Invalid(f"{what} cannot be {short(value)}; give an integer, or one for each axis")


def parse_whole(value: Any, what: str, least: int | None = None, most: int | None = None) -> int:
    """One whole number within bounds; ``what`` begins the message, as ``"length must be"``."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    low = least is not None and number is not None and number < least
    high = most is not None and number is not None and number > most
    if number is None or low or high:
        some = "a whole number" if least is None else f"a whole number from {least} on"
        raise Invalid(f"{what} {some}, not {short(value)}")
    return number


def parse_bytes(value: int | str) -> int:
    """A number of bytes: ``4096``, ``"256MiB"``, ``"1.5 GB"``."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise Invalid(f"a size in bytes cannot be negative: {value}")
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if found is None or found[2].upper() not in _UNITS:
        raise Invalid(f"{value!r} is not a size in bytes; write 4096, '256MiB' or '1GiB'")
    return int(float(found[1]) * _UNITS[found[2].upper()])
