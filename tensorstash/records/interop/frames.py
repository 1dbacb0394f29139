"""Columns as pandas and polars data frames, and back.

pandas: a column a field, named by its path (``"next/obs"``). Single numbers are columns of their
own dtype over the same memory, bfloat16 and float8 as float32; text is pandas' text; arrays,
ragged rows, bytes and JSON values are Python objects, arrays as views.

polars: what Arrow makes of the columns, elements of several axes as ``Array``, fields within a
field as ``Struct``, JSON as its text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...columns import Columns, Ragged
from ...dtype import OBJECT, STRING
from ...errors import Invalid, Unsupported, counted, listed, short
from ..schema import Field, path_of
from . import arrow
from .dtypes import common_dtype, optional_package, split_structured, time_zone_error


def to_pandas(columns: Columns) -> Any:
    """A ``pandas.DataFrame``."""
    pd = optional_package("pandas")
    series = {path: _series(pd, path, column) for path, column in split_structured(columns).items()}
    try:
        return pd.DataFrame(series, copy=False)
    except (ValueError, OverflowError) as error:  # times that are out of its bounds
        odd = [p for p, s in series.items() if getattr(s, "dtype", OBJECT).kind in "mM"]
        raise Unsupported(
            f"pandas cannot hold times of the fields {listed(odd)}: {error}; deselect them"
        ) from error


def to_polars(columns: Columns, fields: Mapping[str, Field]) -> Any:
    """A ``polars.DataFrame``."""
    pl = optional_package("polars")
    return pl.from_arrow(arrow.to_arrow(columns, fields, "polars"), rechunk=False)


def from_pandas(frame: Any, whole: Collection[str] = ()) -> Columns:
    """The columns of a ``pandas.DataFrame``, by path, those of its index first: its levels are
    columns by their names. Only pandas' own count of rows is left out."""
    out = {} if has_default_index(frame) else _from_index(frame.index, whole)
    for i, name in enumerate(frame.columns):
        # Levels of names are fields within fields; shallower ones are filled up with "".
        path = path_of(tuple(part for part in name if part) if isinstance(name, tuple) else name)
        if path in out:
            raise Invalid(f"two columns are named {path!r}, or one and the index; rename one")
        out |= from_pandas_series(path, frame.iloc[:, i], whole)
    return out


def has_default_index(frame: Any) -> bool:
    """Whether the index of a frame or series says nothing but how its rows are counted. Numbers
    that begin or step otherwise may be of a choice of rows, or somebody's keys: none can tell."""
    index = frame.index
    if not len(index):
        return True
    counted = type(index).__name__ == "RangeIndex" and index.name is None
    return counted and (index.start, index.step) == (0, 1)


def _from_index(index: Any, whole: Collection[str]) -> Columns:
    if any(name is None for name in index.names):
        raise Invalid(
            "the data frame has an index without a name, which would be lost: store it as a field, "
            "by frame.rename_axis('name'), or drop it, by frame.reset_index(drop=True)"
        )
    out: Columns = {}
    for level, name in enumerate(index.names):
        path = path_of(name)
        if path in out:
            raise Invalid(f"two levels of the index are named {path!r}; rename one of them")
        out |= from_pandas_series(path, index.get_level_values(level).to_series(), whole)
    return out


def from_polars(frame: Any, whole: Collection[str] = ()) -> Columns:
    """The columns of a ``polars.DataFrame``, by path."""
    out: Columns = {}
    for series in frame.get_columns():
        out |= from_polars_series(series.name, series, whole)
    return out


def from_polars_series(path: str, series: Any, whole: Collection[str] = ()) -> Columns:
    """The columns within a ``polars.Series``: several where it is a struct, unless
    ``whole``."""
    pl = optional_package("polars")
    if series.dtype == pl.Object:
        return {path: series.to_list()}
    optional_package("pyarrow")
    return arrow.from_arrow_array(path, series.to_arrow(), whole)


def from_pandas_series(path: str, series: Any, whole: Collection[str] = ()) -> Columns:
    """The columns within a ``pandas.Series``: several where it is a struct of Arrow's,
    unless ``whole``."""
    dtype = series.dtype
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        return {path: series.to_numpy()}
    if hasattr(dtype, "pyarrow_dtype"):
        return arrow.from_arrow_array(path, optional_package("pyarrow").array(series.array), whole)
    if hasattr(dtype, "categories"):
        return from_pandas_series(path, series.astype(dtype.categories.dtype), whole)
    if hasattr(dtype, "tz"):
        raise time_zone_error(path, dtype.tz)
    if isinstance(dtype, np.dtype):
        values = series.tolist()
        text = bool(values) and all(isinstance(value, str) for value in values)
        return {path: np.array(values, STRING) if text else values}
    if missing := int(series.isna().sum()):
        raise Invalid(f"field {path!r} has {counted(missing, 'missing value')}; fill them first")
    if hasattr(dtype, "numpy_dtype"):
        return {path: series.to_numpy(dtype=dtype.numpy_dtype)}
    if str(dtype) in ("str", "string"):
        return {path: np.array(series.tolist(), STRING)}
    raise Unsupported(f"field {path!r}: pandas' {short(str(dtype))} has no stored form; cast it")


def _series(pd: Any, path: str, column: Any) -> Any:
    if not isinstance(column, np.ndarray):
        return _objects(column)
    column = common_dtype(path, column, "pandas")
    if column.ndim > 1:
        return _objects(column)
    if column.dtype.kind in "TU":
        return pd.Series(column.tolist(), dtype="str")
    return _objects(column.tolist()) if column.dtype.kind in "SVO" else column


def _objects(values: Iterable[Any] | Ragged) -> NDArray[Any]:
    listed = list(values)
    out = np.empty(len(listed), OBJECT)
    # One by one: NumPy would take arrays of one shape apart.
    for i, value in enumerate(listed):
        out[i] = value
    return out
