"""Values for a field of numbers: as an array of its type, where that changes none of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..coerce import as_array, is_tensor, natural
from ..dtype import OBJECT, is_float, parts
from ..errors import Invalid, short


def safe_cast(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``value`` as an array that can be stored as ``dtype``; :class:`~tensorstash.errors.Invalid`
    when that would change it beyond rounding: fractions, numbers out of range, text cut short,
    records with other fields."""
    array = _array(value, dtype)
    if array.dtype == dtype:
        return array
    if not array.size:
        return np.empty(array.shape, dtype)  # an empty list says nothing of its type
    if dtype.names is not None:
        return _structured(array, dtype)
    source, target = _kind(array.dtype), _kind(dtype)
    if target not in _KEEPS_IN.get(source, target):
        raise Invalid(f"{array.dtype} values in a field of {dtype} would lose a part; cast them")
    if source in "iu" and target in "iu":
        low, high = int(array.min()), int(array.max())
        limits = np.iinfo(dtype)
        if not limits.min <= low <= high <= limits.max:
            raise Invalid(f"{low if low < limits.min else high} is out of range for {dtype}")
    if target in "fc" and source in "fciu":
        return _floats(array, dtype)
    if source == "T" and target in "mM":
        array = _times_of(array, target)
        source = target
    made = as_array(array, dtype)
    if source + target in ("MM", "mm", "SS", "SU", "TS", "TU"):
        back = made.astype(array.dtype)
        if not np.array_equal(back, array, equal_nan=source in "mM"):
            raise Invalid(f"{array.dtype} values do not fit {dtype}; cast them, or use a wider one")
    return made


def _floats(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers rounded to ``dtype``, of which none may overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(dtype)
    odd = ~np.isfinite(made)
    if odd.any():
        lost = array[odd & np.isfinite(array)]
        if lost.size:
            raise Invalid(f"{lost.flat[0]} is out of range for {dtype}; use a wider one")
    return made


def single_row(value: Any) -> Any:
    """One value as a column of one: in the type that it has."""
    typed = is_tensor(value) or isinstance(value, (np.ndarray, np.generic))
    return natural(value)[None] if typed else [value]


_ZONE = re.compile(r"\d[T ].*([zZ]|[+-]\d\d:?\d?\d?)\s*$")

_KEEPS_IN = {
    "f": "fc",
    "c": "c",
    "i": "iufcmM",
    "u": "iufcmM",
    "M": "M",
    "m": "m",
    "T": "USTmM",
    "S": "UST",
}
"""What values of a kind may be stored as without losing a part; others as anything."""


def _kind(dtype: np.dtype[Any]) -> str:
    return "f" if is_float(dtype) else dtype.kind


def _array(value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``value`` in the type that it has; of ``dtype`` where it has none that NumPy knows."""
    if is_tensor(value) or hasattr(value, "dtype"):
        found = natural(value)
        if found.dtype.kind != "O":
            return found
        value = found.tolist()
    try:
        found = natural(value)
    except Invalid:
        if dtype.names is None:
            raise
        return as_array(value, dtype)  # tuples within tuples
    except (TypeError, RuntimeError) as error:  # of tensors within lists
        raise Invalid(f"{short(value)} is not an array: {error}") from error
    if dtype.names is not None and found.dtype.names is None:  # tuples: one for each record
        return as_array(value, dtype)
    if found.dtype.kind == "f" and dtype.kind in "iu":
        return _integers(value, found, dtype)
    return _of_objects(value, found, dtype) if found.dtype.kind == "O" and found.size else found


def _integers(value: Any, found: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """``found``, or the integers that it was made of: of some from 2**63 on NumPy makes floats."""
    scalars = np.array(value, OBJECT)
    whole = scalars.shape == found.shape and all(
        isinstance(scalar, (int, np.integer)) for scalar in scalars.flat
    )
    return _of_objects(value, scalars, dtype) if whole and found.size else found


def _of_objects(value: Any, scalars: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Python's values as ``dtype``. NumPy would cut what does not fit, and make something of
    ``None``."""
    if dtype.kind == "M":
        for scalar in scalars.flat:
            if getattr(scalar, "tzinfo", None) is not None:
                raise _zoned(scalar)
    with np.errstate(over="ignore"):
        made = as_array(value, dtype)
    same = _IS_SAME.get(dtype.kind)
    if same is not None and made.shape == scalars.shape:
        for scalar, stored in zip(scalars.flat, made.flat, strict=True):
            if not same(scalar, stored):
                raise Invalid(f"{short(scalar)} does not fit {dtype}")
    return made


def _times_of(texts: NDArray[Any], kind: str) -> NDArray[Any]:
    """Times as text, in the unit in which they are written."""
    listed = texts.tolist()
    for text in texts.flat if kind == "M" else ():
        if _ZONE.search(text):
            raise _zoned(text)
    try:
        return np.array(listed, f"{kind}8")
    except (ValueError, OverflowError) as error:
        raise Invalid(f"{short(listed)} are no times: {error}") from error


def _is_same_float(scalar: Any, stored: Any) -> bool:
    if scalar is None:
        return False
    return bool(np.isfinite(stored)) or scalar != scalar or bool(scalar == stored.item())


def _is_same_time(scalar: Any, stored: Any) -> bool:
    if scalar is None:
        return bool(np.isnat(stored))
    if isinstance(scalar, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(scalar)) or bool(stored.astype(scalar.dtype) == scalar)
    exact = getattr(scalar, "to_numpy", None)  # of pandas, which count nanoseconds
    if exact is not None:
        return _is_same_time(exact(), stored)
    unit = "s" if isinstance(scalar, date) and not hasattr(scalar, "hour") else "us"
    own = np.asarray(scalar, f"{stored.dtype.kind}8[{unit}]")
    return bool(stored.astype(own.dtype) == own)


def _zoned(value: Any) -> Invalid:
    return Invalid(
        f"{short(value)} has a time zone, which no field keeps: convert it to UTC, as "
        "t.astimezone(timezone.utc).replace(tzinfo=None)"
    )


_IS_SAME: Final[dict[str, Callable[[Any, Any], bool]]] = {
    **dict.fromkeys("biu", lambda scalar, stored: bool(scalar == stored.item())),
    **dict.fromkeys("fc", _is_same_float),
    **dict.fromkeys("mM", _is_same_time),
    "S": lambda scalar, stored: isinstance(scalar, (bytes, bytearray)),
    "U": lambda scalar, stored: isinstance(scalar, str),
}
"""Whether a Python value is still what it was, by the kind that it is stored as."""


def _structured(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Records with the same fields: NumPy would go by their order alone."""
    if array.dtype.names != dtype.names:
        raise Invalid(f"{array.dtype} values in a field of {dtype}; give records with its fields")
    made = np.empty(array.shape, dtype)
    for name, part in parts(dtype):
        made[name] = safe_cast(array[name], part)
    return made
