"""Arrays of records to test with, their fields, and what NumPy makes of names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np

from tests.support.layouts import Layout, layouts

PLAIN = np.dtype([("x", "f8"), ("y", "i4"), ("z", "u1")])
TEXT = np.dtype([("s", "U3"), ("x", "f4"), ("when", "M8[s]"), ("raw", "V5")])
NESTED = np.dtype([("a", "u1"), ("in", [("b", "f4"), ("in", [("c", "i2"), ("b", "S2")])])])
DOTTED = np.dtype([("a.b", "i2"), ("a", [("b", "i4"), ("c", "i4")])])
ARRAYS = np.dtype([("n", "i8"), ("pos", "f4", (3,)), ("m", [("t", "i2", (2, 2)), ("u", "u1")])])

PATHS = {
    PLAIN: ["x", "y", "z"],
    TEXT: ["s", "x", "when", "raw"],
    NESTED: ["a", "in", "in.b", "in.in", "in.in.c", "in.in.b"],
    DOTTED: ["a.b", "a", "a.c"],
    ARRAYS: ["n", "pos", "m", "m.t", "m.u"],
}


def field_of(records: np.ndarray, path: str) -> np.ndarray:
    """The field at a path, as NumPy gives it."""
    while path not in (records.dtype.names or ()):
        outer, path = path.split(".", 1)
        records = records[outer]
    return records[path]


def fields_of(records: np.ndarray, names: str | list[str]) -> np.ndarray:
    """What one name, or several, give of records: packed, in memory of its own."""
    if isinstance(names, str):
        return np.array(field_of(records, names), order="C")
    columns = [field_of(records, name) for name in names]
    parts = [(n, c.dtype, c.shape[records.ndim :]) for n, c in zip(names, columns, strict=True)]
    made = np.empty(records.shape, parts)
    for name, column in zip(names, columns, strict=True):
        made[name] = column
    return made


def random_records(seed: int, shape: Any, dtype: Any) -> np.ndarray:
    """Records whose fields all differ; text that NumPy could have made."""
    draw = np.random.default_rng(seed)
    made = np.zeros(shape, dtype)
    for path in PATHS[np.dtype(dtype)]:
        column = field_of(made, path)
        if column.dtype.names is None and column.dtype.kind != "V":
            column[...] = draw.integers(0, 100, column.shape).astype(column.dtype)
        elif column.dtype.kind == "V" and column.dtype.names is None:
            column[...] = draw.integers(0, 255, (*column.shape, 5), "u1").view("V5")[..., 0]
    return made


@st.composite
def record_layouts(draw: Any, dtypes: Any = tuple(PATHS)) -> Layout:
    dtype = draw(st.sampled_from(dtypes))
    layout = draw(layouts(dtypes=["i4"]))
    how = {**layout.how, "fill_value": None}
    if dtype is ARRAYS:
        how |= {"zarr_format": 2}
        how.pop("shards", None)
        if isinstance(how["codecs"], list) or how["codecs"] == "crc32c":
            how["codecs"] = "auto"
    elif draw(st.booleans()):
        how["fill_value"] = random_records(7, (), dtype)[()]
    return replace(layout, dtype=dtype, how=how)


def names_of(dtype: Any) -> st.SearchStrategy[Any]:
    one = st.sampled_from(PATHS[dtype])
    return st.one_of(one, one, st.lists(one, min_size=1, max_size=4, unique=True))


def spelled(draw: Any, names: Any, index: Any) -> Any:
    """Names among indices, in any of the ways in which a user may write them."""
    rest = index if isinstance(index, tuple) else (index,)
    if index is ... and draw(st.booleans()):
        several = isinstance(names, list) and len(names) > 1
        return tuple(names) if several and draw(st.booleans()) else names
    at = draw(st.integers(0, len(rest)))
    given = [names]
    if isinstance(names, list) and len(names) > 1 and draw(st.booleans()):
        given = names
    return (*rest[:at], *given, *rest[at:])


def is_nothing(index: Any) -> bool:
    return isinstance(index, tuple) and not index


def model_of(layout: Layout) -> np.ndarray:
    fill = layout.how["fill_value"]
    return np.full(layout.shape, np.zeros((), layout.dtype)[()] if fill is None else fill)
