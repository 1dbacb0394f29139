"""What columns turn into: type and shape in every format, over which memory, and back."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.columns import Ragged, nested
from tensorstash.errors import Invalid, Unsupported
from tensorstash.records import schema
from tensorstash.records.formats import FORMATS, format_columns, format_row
from tensorstash.records.ingest import columns_of
from tensorstash.records.interop.dtypes import cast_times

TEXT = np.dtypes.StringDType()
TOKENS = Ragged.of([[1, 2], [], [3]], np.dtype("int32"))
IMAGES = Ragged.of([np.ones((2, 3)), np.ones((0, 0)), np.full((1, 2), 7)], np.dtype("float32"), 2)
PAIRS = np.array([(1, 2.0), (3, 4.0), (5, 6.0)], [("x", "i4"), ("y", "f8")])

COLUMNS: dict[str, Any] = {
    "int": np.array([1, -2, 3]),
    "small": np.array([1, 2, 255], "uint8"),
    "flag": np.array([True, False, True]),
    "half": np.array([0.5, 1, np.inf], "float16"),
    "real": np.array([0.1, np.nan, -0.0]),
    "bf16": np.array([1, 0.5, 3], ml_dtypes.bfloat16),
    "f8": np.array([1, 0.5, 3], ml_dtypes.float8_e4m3fn),
    "day": np.array(["2020-02-29", "NaT", "1931-01-01"], "M8[D]"),
    "time": np.array([1, 2_000_000, -3], "M8[us]"),
    "span": np.array([1, "NaT", 3], "m8[ms]"),
    "vector": np.arange(6, dtype="float32").reshape(3, 2),
    "next/image": np.arange(36, dtype="uint8").reshape(3, 3, 4),
    "next/mask": np.arange(12).reshape(3, 2, 2) % 2 == 0,
    "tokens": TOKENS,
    "images": IMAGES,
    "text": np.array(["a", "zwölf\0", ""], TEXT),
    "data": [b"", b"\0x", b"\xff"],
    "meta": [{"a": [1, 2]}, None, "text"],
}
FIELDS = {"meta": schema.json, "data": schema.parse({"data": bytes})["data"]}


def same(found: Any, wanted: Any) -> None:
    """Equal in type, dtype, shape and values, NaN and NaT included."""
    assert type(found) is type(wanted)
    if isinstance(wanted, np.ndarray):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        if wanted.dtype.kind in "fmM":
            np.testing.assert_array_equal(found, wanted)
        else:
            assert np.array_equal(found, wanted)
    elif isinstance(wanted, Ragged):
        assert found == wanted and found.dtype == wanted.dtype
    else:
        assert found == wanted


# -- numpy and Python -------------------------------------------------------------------


def test_numpy_shows_the_columns_themselves() -> None:
    shown = format_columns(COLUMNS, "numpy", "jagged")
    assert list(shown) == list(dict.fromkeys(path.split("/")[0] for path in COLUMNS))
    for path, column in COLUMNS.items():
        inner = shown
        for name in path.split("/"):
            inner = inner[name]
        assert inner is column


def test_ragged_rows_as_list_padded_and_jagged() -> None:
    columns = {"a": TOKENS, "b": IMAGES}
    listed = format_columns(columns, "numpy")
    assert [row.tolist() for row in listed["a"]] == [[1, 2], [], [3]]
    assert [row.shape for row in listed["b"]] == [(2, 3), (0, 0), (1, 2)]
    assert all(np.shares_memory(row, TOKENS.values) for row in listed["a"] if row.size)
    padded = format_columns(columns, "numpy", "padded")
    assert padded["a"].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert padded["b"].shape == (3, 2, 3)
    assert format_columns(columns, "numpy", "jagged")["a"] is TOKENS


def test_python_rows() -> None:
    rows = format_columns({**COLUMNS, "pair": PAIRS}, "python")
    assert len(rows) == 3
    assert rows[0] == {
        "int": 1,
        "small": 1,
        "flag": True,
        "half": 0.5,
        "real": 0.1,
        "bf16": 1.0,
        "f8": 1.0,
        "day": date(2020, 2, 29),
        "time": datetime(1970, 1, 1, 0, 0, 0, 1),
        "span": timedelta(milliseconds=1),
        "vector": [0.0, 1.0],
        "next": {
            "image": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
            "mask": [[True, False], [True, False]],
        },
        "tokens": [1, 2],
        "images": [[1.0] * 3] * 2,
        "text": "a",
        "data": b"",
        "meta": {"a": [1, 2]},
        "pair": {"x": 1, "y": 2.0},
    }
    types = {name: type(value) for name, value in rows[2].items()}
    assert not [t for t in types.values() if t.__module__.startswith("numpy")]
    assert rows[1]["day"] is None and rows[1]["span"] is None


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array(["2020-01-02T03"], "M8[h]"), datetime(2020, 1, 2, 3)),
        (np.array(["2020"], "M8[Y]"), date(2020, 1, 1)),
        (np.array([5000], "M8[ns]"), datetime(1970, 1, 1, 0, 0, 0, 5)),
        (np.array([5001], "M8[ns]"), np.datetime64(5001, "ns")),
        (np.array([12345678], "M8[Y]"), np.datetime64(12345678, "Y")),
        (np.array([1 << 62], "M8[h]"), np.datetime64(1 << 62, "h")),
        (np.array([2], "m8[W]"), timedelta(weeks=2)),
        (np.array([2], "m8[M]"), 2),
        (np.array([1], "m8[fs]"), np.timedelta64(1, "fs")),
        (np.array([[1, 2]], "M8[s]"), [datetime(1970, 1, 1, 0, 0, n) for n in (1, 2)]),
    ],
)
def test_python_times_are_exact_or_stay_as_they_are(array: Any, wanted: Any) -> None:
    (row,) = format_columns({"t": array}, "python")
    assert row["t"] == wanted
    assert type(row["t"]) is type(wanted)


def test_one_row_of_numpy_and_python() -> None:
    first = {path: column[1:2] for path, column in COLUMNS.items()}
    row = format_row(first, "numpy")
    assert row["int"] == -2 and isinstance(row["int"], np.int64)
    assert type(row["text"]) is str and row["text"] == "zwölf\0"
    assert row["next"]["image"].shape == (3, 4)
    assert row["images"].shape == (0, 0)
    assert row["data"] == b"\0x" and row["meta"] is None
    assert np.isnat(row["day"])
    assert repr(format_row(first, "python")) == repr(format_columns(COLUMNS, "python")[1])


# -- tables: type and shape -------------------------------------------------------------

ARROW = {
    "int": pa.int64(),
    "small": pa.uint8(),
    "flag": pa.bool_(),
    "half": pa.float16(),
    "real": pa.float64(),
    "bf16": pa.float32(),
    "f8": pa.float32(),
    "day": pa.date32(),
    "time": pa.timestamp("us"),
    "span": pa.duration("ms"),
    "vector": pa.list_(pa.float32(), 2),
    "next": pa.struct(
        {
            "image": pa.fixed_shape_tensor(pa.uint8(), (3, 4)),
            "mask": pa.fixed_shape_tensor(pa.bool_(), (2, 2)),
        }
    ),
    "tokens": pa.large_list(pa.int32()),
    "images": pa.large_list(pa.large_list(pa.float32())),
    "text": pa.string(),
    "data": pa.binary(),
    "meta": pa.string(),
}
HALF = getattr(pl, "Float16", pl.Float32)  # older ones have none
POLARS = {
    "int": pl.Int64,
    "small": pl.UInt8,
    "flag": pl.Boolean,
    "half": HALF,
    "real": pl.Float64,
    "bf16": pl.Float32,
    "f8": pl.Float32,
    "day": pl.Date,
    "time": pl.Datetime("us"),
    "span": pl.Duration("ms"),
    "vector": pl.Array(pl.Float32, 2),
    "next": pl.Struct({"image": pl.Array(pl.UInt8, (3, 4)), "mask": pl.Array(pl.Boolean, (2, 2))}),
    "tokens": pl.List(pl.Int32),
    "images": pl.List(pl.List(pl.Float32)),
    "text": pl.String,
    "data": pl.Binary,
    "meta": pl.String,
}
PANDAS = {
    **{name: COLUMNS[name].dtype.name for name in ("int", "small", "half", "real")},
    "flag": "bool",
    "bf16": "float32",
    "f8": "float32",
    "day": "datetime64[s]",
    "time": "datetime64[us]",
    "span": "timedelta64[ms]",
    **dict.fromkeys(("vector", "next/image", "next/mask", "tokens", "images"), "object"),
    "text": str(pd.Series([""], dtype="str").dtype),
    "data": "object",
    "meta": "object",
}
WIDENED = {"bf16": np.float32, "f8": np.float32}


@pytest.mark.parametrize("rows", [3, 0])
def test_types_in_arrow_polars_and_pandas(rows: int) -> None:
    columns = {path: column[:rows] for path, column in COLUMNS.items()}
    table = format_columns(columns, "arrow", fields=FIELDS)
    assert isinstance(table, pa.Table)
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == ARROW
    polars = format_columns(columns, "polars", fields=FIELDS)
    assert isinstance(polars, pl.DataFrame)
    assert dict(polars.schema) == POLARS
    pandas = format_columns(columns, "pandas", fields=FIELDS)
    assert isinstance(pandas, pd.DataFrame)
    assert {name: str(dtype) for name, dtype in pandas.dtypes.items()} == PANDAS
    assert len(table) == len(polars) == len(pandas) == rows


@pytest.mark.parametrize("rows", [slice(None), slice(1, 2), slice(0, 0)])
@pytest.mark.parametrize("form", ["arrow", "polars"])
def test_back_from_a_table(form: str, rows: slice) -> None:
    columns = {path: column[rows] for path, column in COLUMNS.items()}
    if form == "polars" and pl.Float32 == HALF:
        del columns["half"]
    found = columns_of(format_columns(columns, form, fields=FIELDS), FIELDS)
    assert list(found) == list(columns)
    for path, column in columns.items():
        same(found[path], column.astype(WIDENED[path]) if path in WIDENED else column)


def test_back_from_pandas() -> None:
    found = columns_of(format_columns(COLUMNS, "pandas"), FIELDS)
    assert list(found) == list(COLUMNS)
    for path, column in COLUMNS.items():
        if path in WIDENED:
            column = column.astype(WIDENED[path])
        if path == "day":
            column = column.astype("M8[s]")
        if PANDAS[path] != "object" or isinstance(column, list):
            same(found[path], column)
        else:
            for row, wanted in zip(found[path], column, strict=True):
                same(row, wanted)


def test_a_slice_of_a_table_and_one_of_several_chunks() -> None:
    table = format_columns(COLUMNS, "arrow", fields=FIELDS)
    twice = pa.concat_tables([table, table])
    for found, wanted in ((table.slice(1, 2), slice(1, 3)), (twice.slice(2, 1), slice(2, 3))):
        for path, column in columns_of(found, FIELDS).items():
            expected = COLUMNS[path][wanted]
            same(column, expected.astype(WIDENED[path]) if path in WIDENED else expected)
    doubled = columns_of(twice, FIELDS)
    assert doubled["tokens"] == Ragged.join([TOKENS, TOKENS])
    assert doubled["meta"] == COLUMNS["meta"] * 2
    batches = columns_of(table.to_batches()[0], FIELDS)
    assert np.array_equal(batches["next/image"], COLUMNS["next/image"])


@given(st.lists(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=3)))
def test_ragged_rows_of_every_rank_survive_arrow(rows: list[Any]) -> None:
    for ndim in (1, 2, 3):
        arrays = [
            np.array(row, "int16").reshape((len(row),) + (1,) * (ndim - 2) + (2,))
            if ndim > 1
            else np.array(row, "int16").reshape(-1)
            for row in rows
        ]
        column = Ragged.of(arrays, np.dtype("int16"), ndim)
        table = format_columns({"r": column}, "arrow")
        found = columns_of(table)["r"]
        assert table["r"].to_pylist() == [array.tolist() for array in arrays]
        assert found.ndim == ndim
        assert [a.tolist() for a in found] == [a.tolist() for a in column]


def test_structured_columns_are_fields_within_a_field() -> None:
    fields = {"pair": schema.Field("fixed", PAIRS.dtype)}
    table = format_columns({"pair": PAIRS}, "arrow")
    assert table.schema.field("pair").type == pa.struct({"x": pa.int32(), "y": pa.float64()})
    assert list(format_columns({"pair": PAIRS}, "pandas").columns) == ["pair/x", "pair/y"]
    for form in ("arrow", "pandas", "polars", "python"):
        same(columns_of(format_columns({"pair": PAIRS}, form), fields)["pair"], PAIRS)
    with pytest.raises(Invalid, match=r"'pair' of .* is not made of"):
        columns_of({"pair/x": np.arange(3)}, fields)


# -- tables: whose memory ---------------------------------------------------------------

# Arrow keeps NaT in a mask, from which it is made anew.
WHOLE = {**COLUMNS, "span": np.array([1, 2, 3], "m8[ms]")}


def test_numbers_are_not_copied_to_arrow_and_back() -> None:
    names = ("int", "small", "half", "real", "time", "span", "vector", "next/image", "tokens")
    columns = {name: WHOLE[name] for name in names}
    for path, column in columns_of(format_columns(columns, "arrow")).items():
        mine = WHOLE[path]
        if isinstance(mine, Ragged):
            assert np.shares_memory(column.values, mine.values)
            assert np.shares_memory(column.offsets, mine.offsets)
        else:
            assert np.shares_memory(column, mine), path
    (images,) = columns_of(format_columns({"i": IMAGES}, "arrow")).values()
    assert np.shares_memory(images.values, IMAGES.values)


def test_numbers_are_not_copied_to_polars_and_back() -> None:
    names = ("int", "small", "real", "time", "span", "vector", "next/image", "tokens")
    columns = {name: WHOLE[name] for name in names}
    for path, column in columns_of(format_columns(columns, "polars")).items():
        mine = WHOLE[path]
        pair = (column.values, mine.values) if isinstance(mine, Ragged) else (column, mine)
        assert np.shares_memory(*pair), path


def test_numbers_are_not_copied_to_pandas_and_back() -> None:
    names = ("int", "small", "flag", "half", "real", "time", "span")
    found = columns_of(format_columns({name: COLUMNS[name] for name in names}, "pandas"))
    assert all(np.shares_memory(found[name], COLUMNS[name]) for name in names)
    frame = format_columns(COLUMNS, "pandas")
    assert np.shares_memory(frame["next/image"][1], COLUMNS["next/image"])
    assert np.shares_memory(frame["tokens"][0], TOKENS.values)


# -- what a format cannot hold ----------------------------------------------------------


@pytest.mark.parametrize("form", ["arrow", "polars"])
@pytest.mark.parametrize(
    "column",
    [
        np.ones(2, "complex64"),
        np.ones((2, 0)),
        np.array([1, 2], "M8[ps]"),
        np.array([1, 2], "m8[M]"),
        np.array([1 << 40, 0], "M8[D]"),
        np.array([1 << 62, 0], "M8[h]"),
        [{1, 2}, {3}],
    ],
    ids=["complex", "no values", "picoseconds", "months", "far days", "far hours", "objects"],
)
def test_a_field_that_a_table_cannot_hold_is_named(form: str, column: Any) -> None:
    with pytest.raises(Unsupported, match="field 'a/b'"):
        format_columns({"a/b": column}, form)


def test_pandas_holds_what_arrow_cannot() -> None:
    frame = format_columns(
        {"c": np.ones(2, "complex64"), "s": [{1}, 2], "e": np.ones((2, 0))}, "pandas"
    )
    assert str(frame.dtypes["c"]) == "complex64" and frame["s"][0] == {1}
    with pytest.raises(Unsupported, match="'t': pandas has no type for"):
        format_columns({"t": np.array([1], "M8[fs]")}, "pandas")


def test_pickled_objects_stay_out_of_tables() -> None:
    fields = {"o": schema.Field("object")}
    with pytest.raises(Unsupported, match="'o' holds Python objects"):
        format_columns({"o": [1, 2]}, "arrow", fields=fields)


@pytest.mark.parametrize("form", ["arrow", "pandas", "polars", "tensordict"])
def test_a_missing_package_is_named(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"arrow": "pyarrow"}.get(form, form)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unsupported, match=f"pip install {package}"):
        format_columns({"a": np.arange(2)}, form)


def test_formats_and_layouts_that_there_are() -> None:
    assert set(FORMATS) == {"numpy", "torch", "python", "arrow", "pandas", "polars", "tensordict"}
    with pytest.raises(Invalid, match="no format 'jax'; there are: numpy"):
        format_columns({}, "jax")
    with pytest.raises(Invalid, match="ragged rows as 'dense'; there are: list"):
        format_columns({}, "numpy", "dense")
    assert nested({"a/b": 1, "a/c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_text_of_fixed_length_bits_and_times_of_zones() -> None:
    columns = {"u": np.array(["a", "bc"]), "s": np.array([b"a", b"bc"]), "v": np.zeros(2, "V3")}
    table = format_columns(columns, "arrow")
    assert table.schema.types == [pa.string(), pa.binary(), pa.binary(3)]
    assert table.to_pylist()[1] == {"u": "bc", "s": b"bc", "v": b"\0\0\0"}
    assert format_columns(columns, "pandas").to_dict("list")["s"] == [b"a", b"bc"]


_ZONED = [datetime(2020, 1, 1, 12, tzinfo=UTC)] * 2
_FRAME = pd.DataFrame({"t": _ZONED}).astype("datetime64[us, Europe/Paris]")
_TABLE = pa.table({"t": pa.array(_ZONED, pa.timestamp("us", "Europe/Paris"))})


@pytest.mark.parametrize(
    "given",
    [
        _FRAME,
        _FRAME.astype("category"),
        _FRAME.astype(object),
        _FRAME.convert_dtypes(dtype_backend="pyarrow"),
        _FRAME.set_index("t"),
        {"t": _FRAME["t"]},
        {"t": pd.DatetimeIndex(_FRAME["t"])},
        _TABLE,
        {"t": _TABLE["t"]},
        pa.table({"t": _TABLE["t"].combine_chunks().dictionary_encode()}),
        pa.table({"t": pa.array([_ZONED], pa.list_(pa.timestamp("us", "UTC")))}),
        pa.table({"t": pa.array([{"u": _ZONED[0]}], pa.struct({"u": pa.timestamp("us", "UTC")}))}),
        pl.from_arrow(_TABLE),
        pl.from_arrow(_TABLE)["t"].to_frame().select(pl.concat_list("t", "t")),
        {"t": _ZONED},
        [{"t": _ZONED[0]}],
        [{"t": _ZONED}],
    ],
)
def test_a_time_zone_is_refused(given: Any) -> None:
    known = stash.create_records({}, {"t": "M8[us]"})
    for take in (partial(stash.save_records, {}), known.extend):
        with pytest.raises(Invalid, match=r"field 't(/u)?'.* zone"):
            take(given)
    assert len(known) == 0


def test_an_index_is_a_field_or_refused() -> None:
    frame = pd.DataFrame({"x": [1, 2, 3]})
    for plain in (frame, frame[:2], frame[1:].reset_index(drop=True), frame[frame.x > 5]):
        assert stash.save_records({}, plain).names == ("x",)
    named = frame.set_index(pd.Index(["a", "b", "c"], name="key"))
    made = stash.save_records({}, named)
    assert str(made.schema) == "{'key': str, 'x': ((), 'int64')}"
    assert made["key"][:].tolist() == ["a", "b", "c"] and made.extend(named[1:]) == 3
    assert stash.save_records({}, frame.rename_axis("n"))["n"][:].tolist() == [0, 1, 2]
    levels = frame.set_index(pd.MultiIndex.from_product([[1, 2, 3], [0.5]], names=["i", "in/f"]))
    made = stash.save_records({}, levels)
    assert made.names == ("i", "in/f", "x") and made["in/f"][:].tolist() == [0.5] * 3
    known = stash.save_records({}, frame)
    lost = "an index without a name, which would be lost"
    for odd, message in (
        (frame.iloc[[1, 0, 2]], lost),
        (frame[frame.x != 2], lost),
        (frame[1:], lost),
        (frame.set_index(pd.Index([7, 8, 9])), lost),
        (levels.rename_axis(["i", None]), lost),
        (frame.set_index("x", drop=False), "two columns are named 'x', or one and the index"),
        (levels.rename_axis(["i", "i"]), "two levels of the index are named 'i'"),
        ({"x": frame["x"][[1, 0, 2]]}, "'x' is a Series with an index, which would be lost"),
    ):
        for take in (partial(stash.save_records, {}), known.extend):
            with pytest.raises(Invalid, match=message):
                take(odd)
    with pytest.raises(Invalid, match="no field 'key'"):
        known.extend(named)
    known[:2] = frame[1:].reset_index(drop=True)
    assert known["x"][:].tolist() == [2, 3, 3]


@pytest.mark.parametrize("far", [-(1 << 62), (1 << 63) - 1, (1 << 63) // 3600 + 1])
def test_times_that_do_not_fit_are_told_from_those_that_do(far: int) -> None:
    times = np.array([[far, 5], ["NaT", 7]], "M8[h]")
    cast, exact = cast_times(times, "M8[s]")
    assert exact.tolist() == [[False, True], [True, True]]
    assert cast[exact].astype("M8[h]").tolist() == times[exact].tolist()
    lowest = np.array([-(1 << 63) + 1, 10**9], "m8[fs]")
    assert cast_times(lowest, "m8[us]")[1].tolist() == [False, True]
