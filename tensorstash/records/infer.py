"""The fields that values call for where no schema names them. Pure.

Arrays say what they are. Python's values are looked at one by one, and the field is one that
gives each of them back: where numbers would change (integers of 2**63 and above among floats,
``True`` among numbers), the field is JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np

from .. import dtype as dtypes
from ..columns import Ragged
from ..dtype import OBJECT
from ..errors import Invalid, short
from .schema import BY_TYPE, Field, Fields, check_paths, field_of, json, ragged

_LARGEST = 1 << 64
_BYTES = (bytes, bytearray, memoryview)


def of_example(values: Mapping[str, Any], named: Fields) -> Fields:
    """The fields of which a row's ``values`` by path are examples: arrays, tensors, numbers,
    times, text and bytes. Lists count as arrays; what is ragged or JSON is ``named``."""
    found: Fields = {}
    for path, value in values.items():
        if path in named:
            found[path] = named[path]
        elif type(value) in BY_TYPE and type(value) is not int:
            found[path] = BY_TYPE[type(value)]
        elif isinstance(value, (str, bytes)):
            found[path] = BY_TYPE[str if isinstance(value, str) else bytes]
        else:
            found[path] = _of_one(path, value)
    return found


def of_columns(columns: Mapping[str, Any]) -> Fields:
    """The fields that columns of values call for: arrays are fixed; lists are text, bytes, arrays
    of one shape, ragged ones, or else JSON. See "Rows of Python's values" in docs/records.md."""
    return check_paths({path: _of_column(path, column) for path, column in columns.items()})


def _of_column(path: str, column: Any) -> Field:
    if isinstance(column, Ragged):
        return ragged(column.dtype, column.ndim)
    dtype, shape = getattr(column, "dtype", None), getattr(column, "shape", None)
    if dtype is not None and shape is not None and dtype != OBJECT:
        if not len(shape):
            raise Invalid(f"field {path!r} is a single value; columns have one for each row")
        if getattr(dtype, "kind", "") == "U":
            return BY_TYPE[str]
        return field_of((tuple(shape[1:]), dtype), path)
    rows = list(column)
    if not rows:
        raise Invalid(f"field {path!r}: no rows tell what it holds; name it in the schema")
    if all(isinstance(row, str) for row in rows):
        return BY_TYPE[str]
    if all(isinstance(row, _BYTES) for row in rows):
        return BY_TYPE[bytes]
    if all(hasattr(row, "dtype") and hasattr(row, "shape") for row in rows):
        return _of_arrays(path, rows)
    return _of_values(path, rows)


def _of_arrays(path: str, rows: Sequence[Any]) -> Field:
    """The field of rows that are arrays, tensors or NumPy's scalars."""
    shapes = {tuple(row.shape) for row in rows}
    dtype = _common(path, rows)
    if len(shapes) == 1:
        return field_of((shapes.pop(), dtype), path)
    if len({len(shape) for shape in shapes}) == 1:
        return ragged(dtype, len(shapes.pop()))
    raise Invalid(f"field {path!r} has rows of {sorted(map(len, shapes))} axes; they must agree")


def _common(path: str, arrays: Sequence[Any]) -> Any:
    """The dtype of arrays or tensors that have one; of several the one that NumPy makes of them,
    where that changes no number."""
    kinds = list(dict.fromkeys(array.dtype for array in arrays))
    if len(kinds) == 1:
        return kinds[0]
    known = [dtypes.parse(kind) for kind in kinds]
    try:
        found = np.result_type(*known)
    except TypeError as error:
        raise Invalid(f"field {path!r} has rows of {_listed(known)}: cast them") from error
    sorts = {kind.kind for kind in known}
    wide = any(kind.kind in "iu" and kind.itemsize == 8 for kind in known)
    if found.kind in "fc" and (wide or sorts <= set("iu")):
        raise Invalid(
            f"field {path!r} has rows of {_listed(known)}, which as {found} would change; cast "
            "them, or name the field in the schema"
        )
    return found


def _of_values(path: str, rows: list[Any]) -> Field:
    """The field of rows that are Python's values, or lists of them."""
    try:
        shape = np.asarray(rows).shape
    except ValueError:  # lists of different lengths
        return _of_lists(path, rows)
    except OverflowError:
        return json
    leaves = np.array(rows, OBJECT)
    if leaves.shape != shape:
        return json
    dtype = _of_leaves(path, leaves.reshape(-1).tolist())
    return json if dtype is None else Field("fixed", dtype, shape[1:])


def _of_lists(path: str, rows: list[Any]) -> Field:
    leaves: list[Any] = []
    for row in rows:
        inner = row.tolist() if hasattr(row, "tolist") else row
        if not isinstance(inner, (list, tuple)):
            return json
        leaves += inner
    if any(isinstance(leaf, (list, tuple, dict)) for leaf in leaves):
        return json
    dtype = _of_leaves(path, leaves)
    return json if dtype is None else ragged(dtype)


def _of_leaves(path: str, leaves: list[Any]) -> np.dtype[Any] | None:
    """The type that holds each of these values as it is, of numbers and times; else ``None``."""
    kinds = {type(leaf) for leaf in leaves}
    if not kinds:
        return None
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        return np.dtype(bool)
    if any(issubclass(kind, (date, timedelta)) for kind in kinds):
        return _of_times(path, leaves, kinds)
    number = (int, float, complex, np.number)
    if not all(issubclass(kind, number) and not issubclass(kind, bool) for kind in kinds):
        return None
    if any(issubclass(kind, np.timedelta64) for kind in kinds):
        return None
    whole = [leaf for leaf in leaves if isinstance(leaf, (int, np.integer))]
    if len(whole) == len(leaves):
        return _of_integers(int(min(whole)), int(max(whole)))
    dtype = np.result_type(np.float64, *(np.asarray(kind(0)) for kind in kinds - {int}))
    return dtype if all(_is_float(int(leaf)) for leaf in whole) else None


def _of_integers(low: int, high: int) -> np.dtype[Any] | None:
    if low >= -(1 << 63) and high < 1 << 63:
        return np.dtype("int64")
    return np.dtype("uint64") if low >= 0 and high < _LARGEST else None


def _is_float(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _of_times(path: str, leaves: list[Any], kinds: set[type]) -> np.dtype[Any]:
    if any(getattr(leaf, "tzinfo", None) is not None for leaf in leaves):
        raise Invalid(
            f"field {path!r} has times with a time zone, which no field keeps: convert them, as "
            "t.astimezone(timezone.utc).replace(tzinfo=None)"
        )
    kinds = kinds - {type(None)}  # NaT
    if all(issubclass(kind, datetime) for kind in kinds):
        return np.dtype("M8[us]")
    if all(issubclass(kind, date) and not issubclass(kind, datetime) for kind in kinds):
        return np.dtype("M8[D]")
    if all(issubclass(kind, timedelta) for kind in kinds):
        return np.dtype("m8[us]")
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise Invalid(f"field {path!r} has values of {names}; name it in the schema, as 'M8[us]'")


def _of_one(path: str, value: Any) -> Field:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        if dtype == OBJECT:
            raise Invalid(f"field {path!r}: {short(value)} tells no dtype; name one in the schema")
        return field_of((tuple(shape), dtype), path)
    found = _of_values(path, [value])
    if found.kind != "fixed" and not isinstance(value, (list, tuple)):
        raise Invalid(f"field {path!r}: {short(value)} tells no dtype; name one in the schema")
    if found.kind != "fixed":
        raise Invalid(
            f"field {path!r}: {short(value)} is not an array; name it in the schema as "
            "ragged(dtype) or json"
        )
    return found


def _listed(known: Sequence[np.dtype[Any]]) -> str:
    return " and ".join(map(str, known))
