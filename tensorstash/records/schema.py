"""What the fields of records are: how a user says it, and how it is stored. Pure.

The grammar is TensorDict's, ``{field: (element_shape, dtype)}``, with nested dicts for fields
within fields, and with values of any length beside the fixed ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from .. import dtype as dtypes
from ..coerce import parse_lengths
from ..columns import Ragged
from ..dtype import OBJECT, STRING
from ..errors import Invalid, Unsupported, short

Kind = Literal["fixed", "ragged", "text", "bytes", "json", "object"]

_RESERVED: Final = "zarr.json"


@dataclass(frozen=True)
class Field:
    """One field. ``fixed``: every row an array of ``shape`` and ``dtype``. ``ragged``: every row
    an array of ``dtype`` with ``ndim`` axes and a shape of its own. ``text``, ``bytes``,
    ``json``, ``object`` (pickled): every row one such value."""

    kind: Kind
    dtype: np.dtype[Any] = OBJECT
    shape: tuple[int, ...] = ()
    ndim: int = 1

    def __repr__(self) -> str:
        if self.kind == "fixed":
            name = str(self.dtype)
            return f"({self.shape}, {name if self.dtype.names else repr(name)})"
        if self.kind == "ragged":
            more = f", ndim={self.ndim}" if self.ndim != 1 else ""
            return f"ragged('{self.dtype}'{more})"
        return {"text": "str", "bytes": "bytes", "object": "object"}.get(self.kind, self.kind)


Fields: TypeAlias = dict[str, Field]
"""Fields by path; one within another is ``"next/obs"``."""

json: Final = Field("json", STRING)
"""A field of values that JSON can hold: ``None``, numbers, text, lists, dicts."""

BY_TYPE: Final = {
    str: Field("text", STRING),
    bytes: Field("bytes", OBJECT),
    object: Field("object", OBJECT),
    dict: json,
    bool: Field("fixed", np.dtype(bool)),
    int: Field("fixed", np.dtype("int64")),
    float: Field("fixed", np.dtype("float64")),
}


def ragged(dtype: Any, ndim: int = 1) -> Field:
    """Describe a field whose rows are arrays, each of its own shape.

    Args:
        dtype: the type of all elements: numbers, not text.
        ndim: axes of a row, from 1 to 32.

    Returns:
        A ``Field`` for the schema of ``create_records``.

    Raises:
        Invalid: elements would be text or bytes, or ``ndim`` is not such a number.

    >>> r = stash.create_records("memory://texts", {"tokens": stash.ragged("int32")})
    >>> r.extend({"tokens": [[1, 2, 3], [4]]})
    0
    >>> r[1]["tokens"].tolist()
    [4]
    """
    element = dtypes.parse(dtype)
    if element.kind in "TO":
        raise Invalid(f"a ragged field holds numbers, not {short(dtype)}; use str, bytes or json")
    if type(ndim) is not int or not 1 <= ndim <= 32:
        raise Invalid(f"a row of a ragged field has 1 to 32 axes, not {short(ndim)}")
    return Field("ragged", element, (), ndim)


def parse(schema: Any) -> Fields:
    """The fields that a user's ``schema`` names: a dict, nested where fields are, of
    ``(element_shape, dtype)``, a dtype alone for single numbers, ``str``, ``bytes``, :data:`json`,
    ``object`` or :func:`ragged`. :class:`~tensorstash.errors.Invalid` names what is wrong."""
    if not isinstance(schema, Mapping) or not schema:
        raise Invalid(
            f"a schema is a dict such as {{'obs': ((84, 84), 'uint8'), 'reward': 'float32'}}, "
            f"not {short(schema)}"
        )
    found: Fields = {}
    for path, field in _each(schema, ""):
        if path in found:
            raise Invalid(f"field {path!r} is there twice")
        found[path] = field
    return check_paths(found)


def _each(schema: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Field]]:
    for key, value in schema.items():
        path = above + path_of(key)
        if isinstance(value, Mapping):
            if not value:
                raise Invalid(f"field {path!r} has no fields within; leave it out")
            yield from _each(value, path + "/")
        else:
            yield path, field_of(value, path)


def field_of(value: Any, path: str) -> Field:
    """The field that a schema's entry at ``path`` asks for."""
    if isinstance(value, Field):
        return value
    if isinstance(value, type) and value in BY_TYPE:
        return BY_TYPE[value]
    shape: tuple[int, ...] = ()
    if isinstance(value, (tuple, list)) and not _is_struct(value):
        if len(value) != 2:
            raise Invalid(f"field {path!r} is {short(value)}; write (element_shape, dtype)")
        shape, value = parse_lengths(value[0], f"the element shape of {path!r}"), value[1]
        if any(n < 0 for n in shape):
            raise Invalid(f"field {path!r} has a negative edge in {shape}; ragged() for any length")
    if isinstance(value, Field) or value in (dict, object):
        raise Invalid(
            f"field {path!r}: only numbers have an element shape; name {short(value)} alone"
        )
    try:
        element = dtypes.parse(value)
    except (Invalid, Unsupported) as error:
        raise type(error)(f"field {path!r}: {error}") from error
    if element.kind in "TO":
        if shape:
            raise Invalid(f"field {path!r}: text and bytes are one value a row; use json for more")
        return BY_TYPE[str if element.kind == "T" else bytes]
    return Field("fixed", element, shape)


def _is_struct(value: Any) -> bool:
    """Whether this is a structured dtype as NumPy takes one: a list of ``(name, dtype)``."""
    return isinstance(value, list) and all(
        isinstance(part, tuple) and len(part) > 1 and isinstance(part[0], str) for part in value
    )


def path_of(key: Any) -> str:
    """The path that a user names a field by: text, or a tuple of the names along the way."""
    names = key if isinstance(key, tuple) else (key,)
    if not names or not all(isinstance(name, str) for name in names):
        raise Invalid(
            f"a field is named by text, or a tuple of text, not {short(key)}{_rows_after(names)}"
        )
    path = "/".join(name.strip("/") for name in names)
    for name in path.split("/"):
        odd = name.startswith("__") or name == _RESERVED or not name.strip(".")
        if odd or "\\" in name or "\0" in name:
            raise Invalid(
                f"{path!r} cannot name a field: names are not empty, not only dots, without a "
                "leading '__', and not 'zarr.json'"
            )
    return path


def _rows_after(key: tuple[Any, ...]) -> str:
    """What to write for a name with rows behind it."""
    count = next((k for k, part in enumerate(key) if not isinstance(part, str)), 0)
    if not count:
        return ""
    rows = ", ".join(map(str, key[count:])) if all(type(r) is int for r in key[count:]) else "rows"
    return f"; for rows of a field write r[{'/'.join(key[:count])!r}][{rows}]"


def is_name(key: Any) -> bool:
    """Whether what is in brackets names a field, rather than rows."""
    return isinstance(key, str) or (
        isinstance(key, tuple) and bool(key) and isinstance(key[0], str)
    )


def ragged_path(fields: Mapping[str, Field], name: Any) -> str:
    """The path of the ragged field that a user names."""
    path = path_of(name)
    field = fields.get(path)
    if field is None or field.kind != "ragged":
        known = ", ".join(repr(n) for n, f in fields.items() if f.kind == "ragged")
        raise Invalid(f"{path!r} is not a ragged field; those are: {known or 'none'}")
    return path


def check_paths(fields: Fields) -> Fields:
    """``fields`` itself when none stands where others stand within."""
    for path in fields:
        parts = path.split("/")
        for k in range(1, len(parts)):
            if "/".join(parts[:k]) in fields:
                raise Invalid(f"{'/'.join(parts[:k])!r} is a field, and cannot hold {path!r} too")
    return fields


def allowed(fields: Fields, pickled: bool) -> Fields:
    """``fields`` itself when none would be pickled, or that was asked for."""
    for path, field in fields.items():
        if field.kind == "object" and not pickled:
            raise Invalid(
                f"field {path!r} would hold pickled objects, which run code when they are read; "
                "use tensorstash.json, or pass allow_pickle=True"
            )
    return fields


def chosen(fields: Fields, names: Sequence[Any]) -> list[str]:
    """The paths that ``names`` choose, each once: fields, or all that stands within one."""
    found: dict[str, None] = {}
    for name in names:
        path = path_of(name)
        inside = [p for p in fields if p == path or p.startswith(path + "/")]
        if not inside:
            known = ", ".join(map(repr, fields)) or "none"
            raise Invalid(f"no field {path!r}; there are: {known}")
        found |= dict.fromkeys(inside)
    return list(found)


# -- fields that nobody has named -----------------------------------------------------------
#
# Arrays say what they are. Python's values are looked at one by one, and the field is one that
# gives each of them back: where numbers would change (integers of 2**63 and above among floats,
# ``True`` among numbers), the field is JSON.


_UINT64_END = 1 << 64
_BYTES = (bytes, bytearray, memoryview)


def infer_example(values: Mapping[str, Any], named: Fields) -> Fields:
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
            found[path] = _infer_one(path, value)
    return found


def infer_columns(columns: Mapping[str, Any]) -> Fields:
    """The fields that columns of values call for: arrays are fixed; lists are text, bytes, arrays
    of one shape, ragged ones, or else JSON. See "Rows of Python's values" in docs/records.md."""
    return check_paths({path: _infer_column(path, column) for path, column in columns.items()})


def _infer_column(path: str, column: Any) -> Field:
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
        return _infer_arrays(path, rows)
    return _infer_values(path, rows)


def _infer_arrays(path: str, rows: Sequence[Any]) -> Field:
    """The field of rows that are arrays, tensors or NumPy's scalars."""
    shapes = {tuple(row.shape) for row in rows}
    dtype = _common_dtype(path, rows)
    if len(shapes) == 1:
        return field_of((shapes.pop(), dtype), path)
    if len({len(shape) for shape in shapes}) == 1:
        return ragged(dtype, len(shapes.pop()))
    raise Invalid(f"field {path!r} has rows of {sorted(map(len, shapes))} axes; they must agree")


def _common_dtype(path: str, arrays: Sequence[Any]) -> Any:
    """The dtype of arrays or tensors that have one; of several the one that NumPy makes of them,
    where that changes no number."""
    kinds = list(dict.fromkeys(array.dtype for array in arrays))
    if len(kinds) == 1:
        return kinds[0]
    known = [dtypes.parse(kind) for kind in kinds]
    try:
        found = np.result_type(*known)
    except TypeError as error:
        raise Invalid(f"field {path!r} has rows of {_names(known)}: cast them") from error
    sorts = {kind.kind for kind in known}
    wide = any(kind.kind in "iu" and kind.itemsize == 8 for kind in known)
    if found.kind in "fc" and (wide or sorts <= set("iu")):
        raise Invalid(
            f"field {path!r} has rows of {_names(known)}, which as {found} would change; cast "
            "them, or name the field in the schema"
        )
    return found


def _infer_values(path: str, rows: list[Any]) -> Field:
    """The field of rows that are Python's values, or lists of them."""
    try:
        shape = np.asarray(rows).shape
    except ValueError:  # lists of different lengths
        return _infer_lists(path, rows)
    except OverflowError:
        return json
    scalars = np.array(rows, OBJECT)
    if scalars.shape != shape:
        return json
    dtype = _scalar_dtype(path, scalars.reshape(-1).tolist())
    return json if dtype is None else Field("fixed", dtype, shape[1:])


def _infer_lists(path: str, rows: list[Any]) -> Field:
    scalars: list[Any] = []
    for row in rows:
        inner = row.tolist() if hasattr(row, "tolist") else row
        if not isinstance(inner, (list, tuple)):
            return json
        scalars += inner
    if any(isinstance(scalar, (list, tuple, dict)) for scalar in scalars):
        return json
    dtype = _scalar_dtype(path, scalars)
    return json if dtype is None else ragged(dtype)


def _scalar_dtype(path: str, scalars: list[Any]) -> np.dtype[Any] | None:
    """The type that holds each of these values as it is, of numbers and times; else ``None``."""
    kinds = {type(scalar) for scalar in scalars}
    if not kinds:
        return None
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        return np.dtype(bool)
    if any(issubclass(kind, (date, timedelta)) for kind in kinds):
        return _time_dtype(path, scalars, kinds)
    number = (int, float, complex, np.number)
    if not all(issubclass(kind, number) and not issubclass(kind, bool) for kind in kinds):
        return None
    if any(issubclass(kind, np.timedelta64) for kind in kinds):
        return None
    whole = [scalar for scalar in scalars if isinstance(scalar, (int, np.integer))]
    if len(whole) == len(scalars):
        return _integer_dtype(int(min(whole)), int(max(whole)))
    dtype = np.result_type(np.float64, *(np.asarray(kind(0)) for kind in kinds - {int}))
    return dtype if all(_is_exact_float(int(scalar)) for scalar in whole) else None


def _integer_dtype(low: int, high: int) -> np.dtype[Any] | None:
    if low >= -(1 << 63) and high < 1 << 63:
        return np.dtype("int64")
    return np.dtype("uint64") if low >= 0 and high < _UINT64_END else None


def _is_exact_float(number: int) -> bool:
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _time_dtype(path: str, scalars: list[Any], kinds: set[type]) -> np.dtype[Any]:
    if any(getattr(scalar, "tzinfo", None) is not None for scalar in scalars):
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


def _infer_one(path: str, value: Any) -> Field:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        if dtype == OBJECT:
            raise Invalid(f"field {path!r}: {short(value)} tells no dtype; name one in the schema")
        return field_of((tuple(shape), dtype), path)
    found = _infer_values(path, [value])
    if found.kind != "fixed" and not isinstance(value, (list, tuple)):
        raise Invalid(f"field {path!r}: {short(value)} tells no dtype; name one in the schema")
    if found.kind != "fixed":
        raise Invalid(
            f"field {path!r}: {short(value)} is not an array; name it in the schema as "
            "ragged(dtype) or json"
        )
    return found


def _names(known: Sequence[np.dtype[Any]]) -> str:
    return " and ".join(map(str, known))
