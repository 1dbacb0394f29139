"""What a batch of columns turns into: arrays, rows of Python values, tensors, tables.

==============  =================================================================
form            a batch is
==============  =================================================================
``numpy``       nested dicts of arrays; text is StringDType, JSON and bytes lists
``python``      a list of rows, nested dicts of Python's own values
``torch``       a nested ``Batch`` of tensors
``tensordict``  a ``TensorDict``
``arrow``       a ``pyarrow.Table`` (see ``arrow.py``)
``pandas``      a ``pandas.DataFrame`` (see ``frames.py``)
``polars``      a ``polars.DataFrame`` (see ``frames.py``)
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
from ..loading.present import present as as_tensors
from ..loading.present import rows
from . import arrow, frames, tensordicts
from .elements import recast, unfolded
from .given import columns_of, flat, row_of
from .kept import KEY, Kept, Rows, Values, keep, shapeless, text_of
from .schema import Field

__all__ = [
    "FORMS",
    "Form",
    "Layout",
    "columns_of",
    "flat",
    "nested",
    "one_row",
    "present",
    "row_of",
]

Form: TypeAlias = Literal["numpy", "torch", "python", "arrow", "pandas", "polars", "tensordict"]
FORMS: Final = get_args(Form)
Layout: TypeAlias = Literal["list", "padded", "jagged"]
"""How rows of different sizes are shown: each as it is, as one array filled up with zeros, or
end to end (a ``Ragged``, a jagged nested tensor)."""


def present(
    columns: Columns,
    form: str,
    ragged: str = "list",
    fields: Mapping[str, Field] | None = None,
) -> Any:
    """``columns`` in the ``form`` that a user asked for; numbers are shown over the memory they
    have wherever the form can. ``fields`` tell what lists hold, where rows are none.

    :class:`~tensorstash.errors.Unsupported` names the field that the form cannot hold, or the
    package that it needs.
    """
    check(form, ragged)
    fields = fields or {}
    lost = shapeless(columns, form, ragged)
    kept: Kept = {p: None if p in lost else fields[p] for p in columns if p in fields}
    if ragged == "padded":
        columns = {path: _padded(column) for path, column in columns.items()}
    if form == "torch":
        return keep(as_tensors(columns, ragged), kept)
    if form == "tensordict":
        return keep(tensordicts.tensordict(columns, ragged), kept)
    if form == "arrow":
        return arrow.table(columns, fields).replace_schema_metadata({KEY: text_of(kept)})
    if form == "polars":
        return keep(frames.polars_frame(columns, fields), kept)
    if form == "pandas":
        frame = frames.pandas_frame(columns)
        frame.attrs[KEY] = text_of(kept)
        return frame
    if form == "python":
        return Rows(_python_rows(columns), kept)
    if ragged == "list":
        columns = {path: _listed(column) for path, column in columns.items()}
    made = nested({path: _known(column, kept.get(path)) for path, column in columns.items()})
    # Arrays of text of one size become text of any, were it not known.
    sized = any(field is None or field.dtype.kind == "U" for field in kept.values())
    return keep(KnownColumns(made), kept) if sized else made


def one_row(columns: Columns, form: str, fields: Mapping[str, Field] | None = None) -> Any:
    """The single row in ``columns`` as ``form`` shows a row: nested dicts of NumPy scalars,
    Python values or tensors, a ``TensorDict`` without batch axes, a table of one row. A ragged
    row has its own shape."""
    check(form, "list")
    if form == "python":
        return _python_rows(columns)[0]
    if form in ("arrow", "pandas", "polars"):
        return present(columns, form, fields=fields)
    if form == "numpy":
        return nested({path: column[0] for path, column in columns.items()})
    columns = unfolded(columns)
    (row,) = rows(columns)
    return row if form == "torch" else tensordicts.row_tensordict(row, columns)


def check(form: str, ragged: str) -> None:
    """Raise :class:`~tensorstash.errors.Invalid` unless there are such a form and layout."""
    if form not in FORMS:
        raise Invalid(f"no format {short(form)}; there are: {', '.join(FORMS)}")
    if ragged not in get_args(Layout):
        raise Invalid(f"ragged rows as {short(ragged)}; there are: {', '.join(get_args(Layout))}")


def _padded(column: Any) -> Any:
    return column.to_padded() if isinstance(column, Ragged) else column


def _known(column: Any, field: Field | None) -> Any:
    return Values(column, field) if type(column) is list and field is not None else column


def _listed(column: Any) -> Any:
    return column.to_list() if isinstance(column, Ragged) else column


# -- Python's own values --------------------------------------------------------------


def _python_rows(columns: Columns) -> list[dict[str, Any]]:
    columns = unfolded(columns)
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
    """``datetime``, ``date`` and ``timedelta``, ``None`` for NaT; what these cannot tell
    exactly stays NumPy's."""
    kind, (unit, _) = array.dtype.kind, np.datetime_data(array.dtype)
    if unit == "generic" or (kind == "m" and unit in "YM"):
        return array
    days = kind == "M" and unit in "YMWD"
    told, exact = recast(array, "M8[D]" if days else f"{kind}8[us]")
    out = told.astype(object)
    for at, value in np.ndenumerate(out):
        if not (exact[at] and (value is None or isinstance(value, (date, timedelta)))):
            out[at] = array[at]
    return out
