"""What was read from records remembers its fields, so that stored again it has the same ones.

Arrays have a dtype; a list does not say whether it holds JSON, nor a table of float32
that it was bfloat16. So lists know their field, lists of rows and batches their fields, and
tables have a schema in their metadata, which pandas and Parquet keep too. What was changed since
goes by what it now is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ... import dtype as dtypes
from ...coerce import is_tensor
from ...columns import Ragged
from ...dtype import OBJECT, STRING, is_extended, widened
from ...errors import Invalid, StashError
from ..schema import Field

KnownFields: TypeAlias = Mapping[str, Field | None]
"""Fields by path; ``None`` for ragged rows of which nobody knows the shapes any more."""

KEY: Final = "tensorstash"
"""The name of the schema in a table's metadata."""

_ONE_VALUE: Final = {
    "text": Field("text", STRING),
    "json": Field("json", STRING),
    "bytes": Field("bytes", OBJECT),
    "object": Field("object", OBJECT),
}

_ATTRIBUTE: Final = "_tensorstash_fields"


class FieldValues(list[Any]):
    """The values of a field whose rows are no plain array: a list that knows its ``field``."""

    def __init__(self, values: Iterable[Any] = (), field: Field | None = None) -> None:
        super().__init__(values)
        self.field = field


class FieldRows(list[Any]):
    """Rows as dicts of Python's values: a list that knows their ``fields``, as its slices do."""

    def __init__(self, rows: Iterable[Any] = (), fields: KnownFields | None = None) -> None:
        super().__init__(rows)
        self.fields: KnownFields = {} if fields is None else fields

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return FieldRows(found, self.fields) if isinstance(key, slice) else found


def attach_fields(value: Any, fields: KnownFields) -> Any:
    """``value``, a batch or a data frame, which from now on knows its ``fields``."""
    setattr(value, _ATTRIBUTE, dict(fields))
    return value


def attached_fields(value: Any) -> KnownFields:
    """The fields that ``value`` knows, by path: those of records, of rows or batches or tables
    that were read from some, or of the lists in a dict."""
    if isinstance(value, FieldRows):
        return value.fields
    found = getattr(value, _ATTRIBUTE, None)
    if isinstance(found, dict):
        return found
    if isinstance(attributes := getattr(value, "attrs", None), dict):  # of pandas
        return from_text(attributes.get(KEY))
    metadata = getattr(getattr(value, "schema", None), "metadata", None)  # of Arrow
    if isinstance(metadata, dict):
        return from_text(metadata.get(KEY.encode()))
    return {}


def matches(column: Any, field: Field) -> bool:
    """Whether ``column`` is still what a column of ``field`` is read as. Of a list only what
    tells text from bytes is looked at: whether the rest fits is found out as it is stored."""
    if isinstance(column, Ragged):
        return field.kind == "ragged" and _is_type(column.dtype, field.dtype)
    dtype, shape = getattr(column, "dtype", None), getattr(column, "shape", None)
    if dtype is None or shape is None or dtype == OBJECT:
        kinds = {"text": (str,), "bytes": (bytes, bytearray, memoryview)}
        wanted = kinds.get(field.kind)
        return wanted is None or all(isinstance(value, wanted) for value in column)
    if field.kind in ("text", "json"):
        return bool(dtype == STRING)
    if is_tensor(column):
        dtype = dtypes.parse(dtype)
    fixed = field.kind == "fixed" and tuple(shape[1:]) == field.shape
    return fixed and _is_type(dtype, field.dtype)


def to_text(fields: KnownFields) -> str:
    """``fields`` as a table's metadata has them."""
    return json.dumps({path: _described(field) for path, field in fields.items()})


def from_text(text: Any) -> KnownFields:
    """The fields that a table's metadata tell; none where it tells something else."""
    try:
        described = json.loads(text) if isinstance(text, (str, bytes)) else {}
        return {path: _field(given) for path, given in described.items()}
    except (StashError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def fields_losing_shapes(columns: Mapping[str, Any], form: str, ragged: str) -> set[str]:
    """The ragged fields whose rows' shapes are lost in a format: padded ones, and rows without
    elements as lists, which do not tell ``(0, 5)`` from ``(0, 0)``."""
    found = {path: column for path, column in columns.items() if isinstance(column, Ragged)}
    if ragged == "padded":
        return set(found)
    lists = form in ("python", "arrow", "polars")
    return {path for path, column in found.items() if lists and _hides(column.shapes)}


def check_shapes_known(columns: Iterable[str], fields: KnownFields) -> None:
    """Raise for rows that were read without their shapes: others would be stored."""
    for path in columns:
        if path in fields and fields[path] is None:
            raise Invalid(
                f"field {path!r} was read in a way that does not tell the shapes of its rows: "
                "padded, or rows without elements as lists; read it as arrays, or 'jagged'"
            )


def _hides(shapes: NDArray[np.int64]) -> bool:
    ended = np.cumsum(shapes == 0, axis=1) > 0
    return bool((shapes * ended).any())


def _is_type(value: Any, stored: np.dtype[Any]) -> bool:
    if value == stored:
        return True
    kind = stored.kind
    if is_extended(stored):
        return bool(value == widened(stored))
    if kind in "mM":  # tensors count units; tables have units of their own
        return bool(value == np.int64 or value.kind == kind)
    return kind in "US" and value.kind in "TOU"


def _described(field: Field | None) -> Any:
    if field is None:
        return None
    described: dict[str, Any] = {"kind": field.kind}
    if field.kind in ("fixed", "ragged"):
        described["dtype"] = dtypes.to_v3(field.dtype)
    if field.kind == "fixed":
        described["shape"] = field.shape
    if field.kind == "ragged":
        described["ndim"] = field.ndim
    return described


def _field(described: Any) -> Field | None:
    if described is None:
        return None
    kind = described["kind"]
    if kind in ("fixed", "ragged"):
        dtype = dtypes.from_v3(described["dtype"])
        shape = tuple(int(n) for n in described.get("shape", ()))
        return Field(kind, dtype, shape, int(described.get("ndim", 1)))
    return _ONE_VALUE[kind]
