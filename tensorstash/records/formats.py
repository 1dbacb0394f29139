"""What a batch of columns turns into: arrays, rows of Python values, tensors, tables.

==============  =================================================================
form            a batch is
==============  =================================================================
``numpy``       nested dicts of arrays; text is StringDType, JSON and bytes lists
``python``      a list of rows, nested dicts of Python's own values
``torch``       a nested ``Batch`` of tensors
``tensordict``  a ``TensorDict``
``arrow``       a ``pyarrow.Table`` (see ``interop/arrow.py``)
``pandas``      a ``pandas.DataFrame`` (see ``interop/frames.py``)
``polars``      a ``polars.DataFrame`` (see ``interop/frames.py``)
==============  =================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns, KnownColumns, Ragged, nested
from ..dtype import is_extended, widened
from ..errors import Invalid, short
from ..loading.present import to_batch, to_rows
from .interop import arrow, frames, tensordicts
from .interop.dtypes import cast_times, split_structured
from .interop.field_metadata import (
    KEY,
    FieldRows,
    FieldValues,
    KnownFields,
    attach_fields,
    fields_losing_shapes,
    to_text,
)
from .schema import Field, Fields

Format: TypeAlias = Literal["numpy", "torch", "python", "arrow", "pandas", "polars", "tensordict"]
FORMATS: Final = get_args(Format)
RaggedLayout: TypeAlias = Literal["list", "padded", "jagged"]
"""How rows of different sizes are shown: each as it is, as one array filled up with zeros, or
end to end (a ``Ragged``, a jagged nested tensor)."""


def format_columns(
    columns: Columns,
    form: str,
    ragged: str = "list",
    fields: Mapping[str, Field] | None = None,
) -> Any:
    """``columns`` in the ``form`` that a user asked for; numbers are shown over the memory they
    have wherever the form can. ``fields`` say what lists hold, where rows are none.

    :class:`~tensorstash.errors.Unsupported` names the field that the form cannot hold, or the
    package that it needs.
    """
    check_format(form, ragged)
    fields = fields or {}
    lost = fields_losing_shapes(columns, form, ragged)
    known: KnownFields = {p: None if p in lost else fields[p] for p in columns if p in fields}
    if ragged == "padded":
        columns = {path: _to_padded(column) for path, column in columns.items()}
    if form == "torch":
        return attach_fields(to_batch(columns, ragged), known)
    if form == "tensordict":
        return attach_fields(tensordicts.to_tensordict(columns, ragged), known)
    if form == "arrow":
        return arrow.to_arrow(columns, fields).replace_schema_metadata({KEY: to_text(known)})
    if form == "polars":
        return attach_fields(frames.to_polars(columns, fields), known)
    if form == "pandas":
        frame = frames.to_pandas(columns)
        frame.attrs[KEY] = to_text(known)
        return frame
    if form == "python":
        return FieldRows(_python_rows(columns), known)
    if ragged == "list":
        columns = {path: _to_list(column) for path, column in columns.items()}
    made = nested({path: _with_field(column, known.get(path)) for path, column in columns.items()})
    # Arrays of text of one size become text of any, were it not known.
    sized = any(field is None or field.dtype.kind == "U" for field in known.values())
    return attach_fields(KnownColumns(made), known) if sized else made


def format_row(columns: Columns, form: str, fields: Mapping[str, Field] | None = None) -> Any:
    """The single row in ``columns`` as ``form`` shows a row: nested dicts of NumPy scalars,
    Python values or tensors, a ``TensorDict`` without batch axes, a table of one row. A ragged
    row has its own shape."""
    check_format(form, "list")
    if form == "python":
        return _python_rows(columns)[0]
    if form in ("arrow", "pandas", "polars"):
        return format_columns(columns, form, fields=fields)
    if form == "numpy":
        return nested({path: column[0] for path, column in columns.items()})
    columns = split_structured(columns)
    (row,) = to_rows(columns)
    return row if form == "torch" else tensordicts.row_to_tensordict(row, columns)


def check_format(form: str, ragged: str) -> None:
    """Raise :class:`~tensorstash.errors.Invalid` unless there are such a form and layout."""
    if form not in FORMATS:
        raise Invalid(f"no format {short(form)}; there are: {', '.join(FORMATS)}")
    if ragged not in get_args(RaggedLayout):
        raise Invalid(
            f"ragged rows as {short(ragged)}; there are: {', '.join(get_args(RaggedLayout))}"
        )


def _to_padded(column: Any) -> Any:
    return column.to_padded() if isinstance(column, Ragged) else column


def _with_field(column: Any, field: Field | None) -> Any:
    return FieldValues(column, field) if type(column) is list and field is not None else column


def _to_list(column: Any) -> Any:
    return column.to_list() if isinstance(column, Ragged) else column


# -- Python's own values --------------------------------------------------------------


def _python_rows(columns: Columns) -> list[dict[str, Any]]:
    columns = split_structured(columns)
    listed = {path: _python_values(column) for path, column in columns.items()}
    names = list(listed)
    return [
        nested(dict(zip(names, row, strict=True))) for row in zip(*listed.values(), strict=True)
    ]


def _python_values(column: Any) -> list[Any]:
    if isinstance(column, Ragged):
        return [_python_array(row) for row in column]
    return _python_array(column) if isinstance(column, np.ndarray) else column  # type: ignore[no-any-return]


def _python_array(array: NDArray[Any]) -> Any:
    if is_extended(array.dtype):
        return array.astype(widened(array.dtype)).tolist()
    return (_python_times(array) if array.dtype.kind in "mM" else array).tolist()


def _python_times(array: NDArray[Any]) -> NDArray[Any]:
    """``datetime``, ``date`` and ``timedelta``, ``None`` for NaT; what these cannot hold
    exactly stays NumPy's."""
    kind, (unit, _) = array.dtype.kind, np.datetime_data(array.dtype)
    if unit == "generic" or (kind == "m" and unit in "YM"):
        return array
    days = kind == "M" and unit in "YMWD"
    cast, exact = cast_times(array, "M8[D]" if days else f"{kind}8[us]")
    out = cast.astype(object)
    for at, value in np.ndenumerate(out):
        if not (exact[at] and (value is None or isinstance(value, (date, timedelta)))):
            out[at] = array[at]
    return out


# -- rows of a batch -----------------------------------------------------------------------------


def format_rows(columns: Columns, form: str, fields: Fields) -> list[Any]:
    """Every row of ``columns`` by itself, as ``form`` shows a row: a dict of NumPy values, of
    tensors, of Python's; a table of one row for forms that are tables."""
    if form == "numpy":
        parts = {name: _row_values(column) for name, column in columns.items()}
        count = len(next(iter(parts.values()), ()))
        if any("/" in name for name in parts):
            return [nested({name: part[i] for name, part in parts.items()}) for i in range(count)]
        return [{name: part[i] for name, part in parts.items()} for i in range(count)]
    if form == "torch":
        return to_rows(columns)
    count = len(next(iter(columns.values()), ()))
    if form == "python":
        return list(format_columns(columns, form, "list"))
    one = [{name: column[i : i + 1] for name, column in columns.items()} for i in range(count)]
    return [format_row(row, form, fields) for row in one]


def unstack(batch: Any) -> list[Any]:
    """The rows of a batch that a transform has returned."""
    if isinstance(batch, Mapping):
        parts = {name: unstack(column) for name, column in batch.items()}
        count = len(next(iter(parts.values()), ()))
        return [{name: part[i] for name, part in parts.items()} for i in range(count)]
    if isinstance(batch, list):
        return batch
    return [batch[i] for i in range(len(batch))]


def _row_values(column: Any) -> Any:
    """A column whose items are what a row has: text as ``str``, and memory of its own for no
    row's sake: rows of one batch share theirs."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "T":
        return column.tolist()
    return column
