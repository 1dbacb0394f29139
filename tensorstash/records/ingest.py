"""What users hand over as rows, taken apart into columns: nothing is copied or converted that
need not be."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..coerce import is_tensor, natural
from ..columns import Columns
from ..dtype import parts
from ..errors import Invalid, listed, short
from ..loading.source import SourceHolder
from .interop import arrow, frames
from .interop.field_metadata import attached_fields, check_shapes_known
from .interop.tensordicts import from_nested_tensor, is_tensordict, stacked_rows, tensordict_items
from .schema import Field, check_paths, path_of

_ACCEPTED = (
    "a dict of columns, a list of rows, a TensorDict, a structured array, a dataclass, an Arrow "
    "table, or a pandas or polars data frame"
)

_COLUMNS: Mapping[str, Callable[[str, Any, Collection[str]], Columns]] = {
    "pyarrow": arrow.from_arrow_array,
    "polars": frames.from_polars_series,
    "pandas": frames.from_pandas_series,
}

_SCALARS = (bool, int, float, str, bytes, list, type(None))
_path_of = lru_cache(maxsize=1 << 12)(path_of)  # the same names come with every row


def check_columns(
    columns: Mapping[str, Any],
    names: Collection[str],
    values: Mapping[str, Any],
    count: int,
    repeat: bool = False,
) -> dict[str, Any]:
    """``values`` of ``count`` rows for every field of ``names``, each ready to be stored in its
    column."""
    missing = [name for name in names if name not in values]
    extra = [name for name in values if name not in names]
    if missing or extra:
        what = f"no value for {listed(missing)}" if missing else ""
        more = f"no field {listed(extra)}" if extra else ""
        known = listed(names)
        raise Invalid(f"{' and '.join(filter(None, (what, more)))}; the fields are {known}")
    return {name: columns[name].checked(values[name], count, repeat) for name in names}


def check_row(row: Any, columns: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The values of one row, each ready to be stored as a column of one row."""
    values = row_of(row, _fields_of(columns, names))
    one = {path: columns[path].one(v) if path in columns else [v] for path, v in values.items()}
    return check_columns(columns, names, one, 1)


def check_rows(
    rows: Any, columns: Mapping[str, Any], names: Collection[str]
) -> tuple[int, dict[str, Any]]:
    """How many rows there are in what ``Records.extend`` takes, and their values, ready to be
    stored."""
    values = columns_of(rows, _fields_of(columns, names))
    if not values and not isinstance(rows, Mapping):  # a list of no rows has no fields
        values = {name: [] for name in names}
    count = len(next(iter(values.values()), ()))
    return count, check_columns(columns, names, values, count)


def check_values(
    value: Any, columns: Mapping[str, Any], names: Collection[str], count: int
) -> dict[str, Any]:
    """The values of ``count`` rows that are there, ready to be stored: a dict of columns, or of
    values that stand for all rows. A TensorDict is a dict of columns too."""
    one = isinstance(value, Mapping) and not getattr(value, "batch_size", ())
    values = (row_of if one else columns_of)(value, _fields_of(columns, names))
    return check_columns(columns, names, values, count, repeat=True)


def columns_of(value: Any, fields: Mapping[str, Field] | None = None) -> Columns:
    """The columns of several rows that ``value`` holds, by path, all of one length: a dict
    (nested, or by path or tuple) of columns, a list of rows, a TensorDict or TensorClass, a
    dataclass that holds columns, a structured array, an Arrow table, a data frame; records, or
    whatever else a loader reads, in their order.

    ``fields`` say which dicts are JSON values rather than fields within a field, that text in
    a table is JSON, and which fields make one structured one.
    """
    fields = fields or {}
    records = isinstance(value, SourceHolder) and hasattr(value, "fields")
    if records:  # a dataset of arrays has no names of fields
        value = value.source
    if hasattr(value, "take") and hasattr(value, "row_bytes"):  # a source
        # Any source takes row numbers; records take a slice too, which needs no memory.
        found = value.take(slice(0, len(value), 1) if records else np.arange(len(value)))
        if getattr(value, "transform", None) is None:
            return dict(found)
        value = value.present(found)
    found, tabled = _columns(value, fields)
    check_shapes_known(found, {path: f for path, f in attached_fields(value).items() if f is None})
    found = _with_structured(
        {path: _column(path, column) for path, column in found.items()}, fields
    )
    lengths = {path: _length(path, column) for path, column in found.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{path!r} has {n}" for path, n in lengths.items())
        raise Invalid(f"columns of different lengths: {listing}")
    return _parsed(found, fields) if tabled else found


def row_of(value: Any, fields: Mapping[str, Field] | None = None) -> dict[str, Any]:
    """The values of the one row that ``value`` is, by path: a dict (nested, or by path or
    tuple), a dataclass, a TensorDict without batch axes, a structured scalar."""
    fields = fields or {}
    return _with_structured(_row(value, fields), fields)


def _fields_of(columns: Mapping[str, Any], names: Iterable[str]) -> dict[str, Field]:
    return {name: columns[name].field for name in names}


def flatten(
    value: Any, whole_paths: Collection[str] = (), known: Collection[str] = ()
) -> dict[str, Any]:
    """What a nested dict (of dicts, dataclasses, TensorDicts) holds, by path. Keys are names,
    paths, or tuples of names; what stands at ``whole_paths`` is not taken apart. A dict that
    holds nothing is refused, for it may be a value, unless it stands above ``known`` fields."""
    out: dict[str, Any] = {}
    _flatten(value, _children(value) or {}, "", whole_paths, known, out)
    return check_paths(out)


# -- several rows ---------------------------------------------------------------------


def _columns(value: Any, fields: Mapping[str, Field]) -> tuple[dict[str, Any], bool]:
    """Columns, and whether they come from a table, which knows no JSON."""
    library = type(value).__module__.partition(".")[0]
    if library == "pyarrow" and hasattr(value, "column_names"):
        return arrow.from_arrow(value, _values(fields)), True
    if library == "polars" and hasattr(value, "get_columns"):
        return frames.from_polars(value, _values(fields)), True
    if hasattr(value, "iloc") and hasattr(value, "columns"):
        return frames.from_pandas(value, _values(fields)), False
    if is_tensordict(value):
        if not len(value.batch_size):
            raise Invalid("a TensorDict without batch axes is one row; append() it")
        if (rows := stacked_rows(value)) is not None:
            return _transposed(rows, fields), False
    elif not isinstance(value, Mapping) and _children(value) is None:
        if isinstance(value, (str, bytes, np.ndarray)) or not isinstance(value, Iterable):
            raise Invalid(f"rows come as {_ACCEPTED}; not as {short(value)}")
        return _transposed(value, fields), False
    return flatten(value, (), fields), False


def _row(value: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    if is_tensordict(value) and len(value.batch_size):
        raise Invalid(f"a row has no batch axes; this has {tuple(value.batch_size)}")
    if _children(value) is None:
        raise Invalid(
            f"a row is a dict of values by field, a dataclass or a TensorDict, not {short(value)}"
        )
    return flatten(value, _values(fields), fields)


def _transposed(rows: Iterable[Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    out: dict[str, list[Any]] = {}
    for i, row in enumerate(rows):
        try:
            values = _row(row, fields)
        except Invalid as error:
            raise Invalid(f"row {i}: {error}") from error
        if not i:
            out = {path: [] for path in values}
        if values.keys() != out.keys():
            odd = sorted(values.keys() ^ out.keys())[0]
            what = "has no" if odd in out else "alone has a"
            inner = odd.rpartition("/")[0]
            json = f", or name {inner!r} in the schema as tensorstash.json" if inner else ""
            raise Invalid(f"row {i} {what} field {odd!r}; give every row the same fields{json}")
        for path, value in values.items():
            out[path].append(value)
    return dict(out)


def _column(path: str, column: Any) -> Any:
    """A column that we know how to store: those of other libraries as arrays."""
    library = type(column).__module__.partition(".")[0]
    if library == "pandas" and hasattr(column, "index") and not frames.has_default_index(column):
        raise Invalid(
            f"field {path!r} is a Series with an index, which would be lost: give the values, by "
            "series.reset_index(drop=True)"
        )
    if library in _COLUMNS and hasattr(column, "__array__") and hasattr(column, "__len__"):
        found = _COLUMNS[library](path, column, ())
        whole = found if path in found else _COLUMNS[library](path, column, {path})
        return whole[path]
    if is_tensor(column) and column.is_nested:
        return from_nested_tensor(column)
    if isinstance(column, (list, tuple)) and any(is_tensor(value) for value in column):
        return [natural(value) if is_tensor(value) else value for value in column]
    return column


def _length(path: str, column: Any) -> int:
    single = isinstance(column, (str, bytes)) or getattr(column, "ndim", 1) == 0
    if single or not hasattr(column, "__len__"):
        raise Invalid(f"field {path!r}: {short(column)} is one value where a column is needed")
    return len(column)


def _parsed(columns: Columns, fields: Mapping[str, Field]) -> Columns:
    """``columns`` of a table, with the text of JSON fields as the values that it spells."""
    out = dict(columns)
    for path, column in columns.items():
        text = isinstance(column, np.ndarray) and column.dtype.kind == "T"
        if not text or path not in fields or fields[path].kind != "json":
            continue
        try:
            out[path] = [json.loads(text) for text in column]
        except (ValueError, RecursionError) as error:
            raise Invalid(f"field {path!r}: a table tells JSON by its text: {error}") from error
    return out


# -- one tree -------------------------------------------------------------------------


def _flatten(
    value: Any,
    branch: Mapping[Any, Any],
    above: str,
    whole_paths: Collection[str],
    known: Collection[str],
    out: dict[str, Any],
) -> None:
    # A structured column of a dict is one field; those within a structured array are several.
    apart = _is_structured(value)
    for key, inner in branch.items():
        path = above + _path_of(key)
        whole = path in whole_paths or (not apart and _is_structured(inner))
        within = None if whole else _children(inner)
        if within is not None:
            empty = not within and not is_tensordict(inner)
            if empty and not any(name.startswith(path + "/") for name in known):
                raise Invalid(
                    f"field {path!r} is {short(inner)}, which has no fields; name it in the schema "
                    "as tensorstash.json, or leave it out"
                )
            _flatten(inner, within, path + "/", whole_paths, known, out)
        elif path in out:
            raise Invalid(f"field {path!r} is there twice")
        else:
            out[path] = inner


def _children(value: Any) -> Mapping[Any, Any] | None:
    """The fields that ``value`` consists of, when it does."""
    if type(value) is dict:
        return value
    if type(value) in _SCALARS:
        return None
    if is_tensordict(value):
        return tensordict_items(value)
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclass_fields(value)}
    if _is_structured(value):
        return {name: value[name] for name, _ in parts(value.dtype)}
    return None


def _is_structured(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.void)) and value.dtype.names is not None


def _values(fields: Mapping[str, Field]) -> Collection[str]:
    return {path for path, field in fields.items() if field.kind in ("json", "object")}


def _with_structured(columns: dict[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """``columns``, with those that stand within a structured field put together as it."""
    out = dict(columns)
    for path, field in fields.items():
        if field.dtype.names is None or path in out:
            continue
        inside = {p: out.pop(p) for p in columns if p.startswith(path + "/")}
        if inside:
            out[path] = _structured(path, field.dtype, inside)
    return out


def _structured(path: str, dtype: np.dtype[Any], inside: dict[str, Any]) -> NDArray[Any]:
    arrays = {p.removeprefix(path + "/"): np.asarray(_column(p, v)) for p, v in inside.items()}
    names = {name: name.split("/") for name in arrays}
    shapes = {array.shape for array in arrays.values()}
    try:
        out = np.zeros(shapes.pop() if len(shapes) == 1 else (), dtype)
        wanted = set(_scalar_paths(dtype))
        if shapes or arrays.keys() != wanted:
            raise KeyError(sorted(arrays.keys() ^ wanted))
        for name, array in arrays.items():
            place = out
            for step in names[name]:
                place = place[step]
            place[...] = array
    except (KeyError, ValueError, IndexError) as error:
        raise Invalid(
            f"field {path!r} of {dtype} is not made of {sorted(arrays)}: {error}"
        ) from error
    return out


def _scalar_paths(dtype: np.dtype[Any], above: str = "") -> list[str]:
    return [
        path
        for name, part in parts(dtype)
        for path in (_scalar_paths(part, f"{above}{name}/") if part.names else [above + name])
    ]
