"""Records taken back in any format keep their fields and values, or are refused; lists of
Python's values give each value back."""

from __future__ import annotations

import io
import pickle
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensorstash as stash
from tensorstash.errors import Conflict, Invalid, StashError, Unsupported
from tensorstash.records.formats import FORMATS

_DTYPES = [
    *("bool", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32"),
    *("float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn"),
    *(f"M8[{unit}]" for unit in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns")),
    *(f"m8[{unit}]" for unit in ("W", "D", "h", "s", "ms", "us", "ns")),
    *("S3", "U2"),
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e6, 1e6) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_STRUCT = np.dtype([("x", "f4"), ("n", [("k", "i2"), ("t", "M8[s]")])])


def _elements(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    if dtype.kind in "mM":
        # What datetime can tell, what it cannot, and NaT.
        near = st.integers(-50_000, 50_000)
        far = st.integers(-(2**61), 2**61)
        return (near | far | st.just(-(2**63))).map(lambda n: np.int64(n).view(dtype))
    if dtype.kind == "S":
        return st.binary(max_size=dtype.itemsize).map(lambda b: b.rstrip(b"\0"))
    if dtype.kind == "U":
        return st.text(max_size=2).map(lambda t: t.rstrip("\0"))
    if dtype.kind == "V":
        return st.integers(-9, 9)
    return hnp.from_dtype(dtype, allow_nan=False)


def _array(draw: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    if dtype.names is not None:
        out = np.zeros(shape, dtype)
        out["x"] = draw(st.integers(-9, 9))
        out["n"]["t"] = np.datetime64(draw(st.integers(0, 999)), "s")
        return out
    size = int(np.prod(shape))
    values = [draw(_elements(dtype)) for _ in range(size)]
    out = np.zeros(size, dtype)
    for i, value in enumerate(values):
        out[i] = value
    return out.reshape(shape)


@st.composite
def _records(draw: Any) -> stash.Records:
    names = ["a", "b", "in/c", "in/deep/d"][: draw(st.integers(1, 4))]
    rows = draw(st.integers(0, 4))
    schema: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for name in names:
        kind = draw(st.sampled_from(["fixed", "ragged", "text", "bytes", "json", "struct"]))
        if kind in ("fixed", "ragged"):
            dtype = stash.create({}, (1,), draw(st.sampled_from(_DTYPES))).dtype
        if kind == "fixed":
            shape = draw(st.sampled_from([(), (1,), (2,), (2, 3), (0,), (2, 0)]))
            schema[name] = (shape, dtype)
            columns[name] = _array(draw, dtype, (rows, *shape))
        elif kind == "struct":
            schema[name] = ((), _STRUCT)
            columns[name] = _array(draw, _STRUCT, (rows,))
        elif kind == "ragged":
            ndim = draw(st.integers(1, 3))
            schema[name] = stash.ragged(dtype, ndim)
            shapes = [tuple(draw(st.integers(0, 2)) for _ in range(ndim)) for _ in range(rows)]
            columns[name] = [_array(draw, dtype, shape) for shape in shapes]
        elif kind == "text":
            schema[name], one = str, st.text(max_size=3)
            columns[name] = [draw(one) for _ in range(rows)]
        elif kind == "bytes":
            schema[name], one = bytes, st.binary(max_size=3)
            columns[name] = [draw(one) for _ in range(rows)]
        else:
            schema[name] = stash.json
            same = draw(st.sampled_from([_JSON, st.just([1, 2]), st.just({"k": 1}), st.text()]))
            columns[name] = [draw(same) for _ in range(rows)]
    made = stash.create_records({}, schema)
    made.extend(columns)
    return made


def _same(found: stash.Records, wanted: stash.Records) -> None:
    assert found.fields == wanted.fields
    assert len(found) == len(wanted)
    one, other = (r.ragged_as("jagged")[:] for r in (found, wanted))
    _equal(one, other)


def _equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            _equal(one[name], other[name])
    elif isinstance(one, stash.Ragged):
        _equal(one.values, other.values)
        assert np.array_equal(one.shapes, other.shapes)
    elif isinstance(one, np.ndarray) and one.dtype.kind != "T":
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert repr(list(one)) == repr(list(other))


_refused: set[str] = set()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_taken_back_is_the_same_or_refused(form: Any) -> None:
    kept = 0

    @settings(deadline=None, max_examples=60)
    @given(_records(), st.sampled_from(["list", "jagged", "padded"]))
    def run(records: stash.Records, ragged: Any) -> None:
        nonlocal kept
        try:
            found = stash.save_records({}, records.with_format(form, ragged)[:])
        except StashError as error:
            _refused.add(f"{form}: {error}")
            return
        kept += 1
        _same(found, records)

    run()
    assert kept > 20


@pytest.mark.parametrize("dtype", ["m8[s]", "M8[s]", "m8[h]"])
@pytest.mark.parametrize("ragged", [False, True])
def test_seconds_that_polars_cannot_count_are_no_nulls(dtype: str, ragged: bool) -> None:
    # It keeps them as milliseconds, and makes null of what these cannot count.
    for count, fits in ((2**40, True), (2**60, False)):
        row = np.array([count, -count], dtype)
        rows = {"t": [row] * 2} if ragged else {"t": row}
        records = stash.save_records({}, rows)
        if fits:
            frame = records.with_format("polars")[:]
            _same(stash.save_records({}, frame), records)
        else:
            with pytest.raises(Unsupported, match="polars cannot hold"):
                records.with_format("polars")[:]


def _some() -> stash.Records:
    made = stash.create_records(
        {},
        {
            "meta": stash.json,
            "list": stash.json,
            "tokens": stash.ragged("int32"),
            "raw": bytes,
            "big": "uint64",
            "when": "M8[h]",
            "half": "bfloat16",
            "in/name": str,
        },
    )
    for i in range(3):
        made.append(
            {
                "meta": {"id": i, "source": "x"},
                "list": [1, i],
                "tokens": [i, i],
                "raw": b"r",
                "big": (2**63 + 3) * (i == 0),
                "when": np.datetime64("2024-01-01T05", "h") if i else np.datetime64("NaT"),
                "half": i,
                "in": {"name": str(i)},
            }
        )
    return made


@pytest.mark.parametrize("ragged", ["list", "jagged", "padded"])
@pytest.mark.parametrize("form", [None, *FORMATS])
def test_records_are_saved_with_their_schema(form: Any, ragged: Any) -> None:
    records = _some()
    for view in (records, records.where([2, 0]), records.select("in", "list"), records[["big"]]):
        made = stash.save_records({}, view.with_format(form, ragged))
        assert made.schema == view.schema
        _equal(made.ragged_as("jagged")[:], view.ragged_as("jagged")[:])


def test_records_are_saved_over_themselves_or_into_others() -> None:
    place: dict[str, bytes] = {}
    records = stash.save_records(place, _some())
    half = stash.save_records(place, records.where([2]))
    assert half.schema == records.schema and half[0]["meta"]["id"] == 2
    assert half.extend(_some()) == 1
    half[:2] = _some().where([0, 1])
    with half.writer() as writer:
        writer.extend(_some())
    assert [meta["id"] for meta in half["meta"][:]] == [0, 1, 1, 2, 0, 1, 2]
    with pytest.raises(Conflict, match="replaced"):  # those are no more
        stash.save_records({}, records.where([]))
    empty = stash.save_records({}, _some().where([]))
    assert len(empty) == 0 and empty.schema == records.schema


def test_what_a_transform_answers_is_saved_as_what_it_is() -> None:
    def half(batch: dict[str, Any]) -> dict[str, Any]:
        return {"big": batch["big"] / 2, "list": batch["list"]}

    made = stash.save_records({}, _some().with_transform(half))
    assert str(made.schema) == "{'big': ((), 'float64'), 'list': json}"


@pytest.mark.parametrize("form", FORMATS)
def test_parts_and_pickles_of_what_was_read_keep_its_fields(form: Any) -> None:
    records = _some()
    found = records.with_format(form)[:]
    if form not in ("polars", "torch", "numpy", "tensordict"):
        found = found[:2]
    if form in ("numpy", "python", "arrow", "pandas"):
        found = pickle.loads(pickle.dumps(found))
    made = stash.save_records({}, found)
    assert made.schema == records.schema
    assert made[0]["meta"] == records[0]["meta"]


def test_tables_keep_the_schema_in_files() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    pd = pytest.importorskip("pandas")
    records = _some()
    for form in ("arrow", "pandas"):
        file = io.BytesIO()
        found = records.with_format(form)[:]
        if form == "pandas":
            found = found.drop(columns=["half", "when"])
            found.to_parquet(file)
        else:
            pq.write_table(found, file)
        back = pq.read_table(file) if form == "arrow" else pd.read_parquet(file)
        made = stash.save_records({}, back)
        assert made.fields["list"] == stash.json and made.fields["tokens"].kind == "ragged"
        assert made[1]["list"] == [1, 1]


def test_a_list_of_a_field_knows_it_anywhere() -> None:
    records = _some()
    made = stash.save_records(
        {}, {"a": records["list"][:], "b": records[:]["tokens"], "c": records[:2]["raw"] + [b""]}
    )
    assert str(made.schema) == "{'a': json, 'b': ragged('int32'), 'c': bytes}"


def test_what_was_changed_goes_by_what_it_is() -> None:
    frame = _some().with_format("pandas")[:]
    frame["big"] = [0.5, 1, 2]
    frame["half"] = frame["half"].astype("float64")
    frame["new"] = 1
    made = stash.save_records({}, frame)
    found = str(made.schema)
    assert "'big': ((), 'float64')" in found and "'half': ((), 'float64')" in found
    assert "'new': ((), 'int64')" in found and made.fields["list"] == stash.json
    rows = _some().with_format("python")[:]
    rows[0]["big"] = 0.5
    with pytest.raises(Invalid, match="field 'big': float64 values"):
        stash.save_records({}, rows)
    assert stash.save_records({}, rows, {"big": float})["big"][0] == 0.5


@pytest.mark.parametrize("form", FORMATS)
def test_padded_rows_are_not_taken_back(form: Any) -> None:
    records = stash.save_records({}, _some().select("tokens", "big"))
    found = records.with_format(form, "padded")[:]
    for take in (lambda: stash.save_records({}, found), lambda: records.extend(found)):
        with pytest.raises(Invalid, match="field 'tokens' was read in a way that does not tell"):
            take()


# -- rows of Python's values ----------------------------------------------------------

_DAY = date(2024, 1, 2)
_TIME = datetime(2024, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    "values, schema",
    [
        ([True, False], "((), 'bool')"),
        ([1, 2**63 - 1], "((), 'int64')"),
        ([2**63 + 3, 5], "((), 'uint64')"),
        ([2**64 - 1, 0], "((), 'uint64')"),
        ([2**63, -1], "json"),
        ([2**64], "json"),
        ([True, 2], "json"),
        ([1, 0.5], "((), 'float64')"),
        ([2**53 + 1, 0.5], "json"),
        ([2**2000, 0.5], "json"),
        ([1, 2j], "((), 'complex128')"),
        ([[1, 2], [3, 4]], "((2,), 'int64')"),
        ([[2**63 + 3, 5], [3, 4]], "((2,), 'uint64')"),
        ([[1], [2, 3]], "ragged('int64')"),
        ([[2**63 + 3], [2, 3]], "ragged('uint64')"),
        ([[], [0.5]], "ragged('float64')"),
        ([[True], [2, 3]], "json"),
        ([[], []], "json"),
        ([[[1], []], []], "json"),
        ([None, 1], "json"),
        ([None, None], "json"),
        (["a", None], "json"),
        (["a", 1], "json"),
        ([["a"], ["b"]], "json"),
        (["a", "b"], "str"),
        ([b"a", bytearray(b"b")], "bytes"),
        ([_TIME, None], "((), 'datetime64[us]')"),
        ([_DAY, None], "((), 'datetime64[D]')"),
        ([timedelta(1, 2, 3), None], "((), 'timedelta64[us]')"),
        ([[_TIME], [_TIME]], "((1,), 'datetime64[us]')"),
        ([np.int8(1), np.int8(2)], "((), 'int8')"),
        ([np.int8(1), 2], "((), 'int64')"),
        ([np.arange(2, dtype="i2"), np.arange(3, dtype="i4")], "ragged('int32')"),
    ],
)
def test_python_values_are_inferred_so_that_each_comes_back(values: Any, schema: str) -> None:
    for rows in ({"x": values}, [{"x": value} for value in values]):
        made = stash.save_records({}, rows)
        assert str(made.schema["x"]) == schema, values
        for found, value in zip(made.with_format("python")[:], values, strict=True):
            wanted = value.tolist() if hasattr(value, "tolist") else value
            assert found["x"] == wanted and (type(found["x"]) is not bool) == (
                type(wanted) is not bool
            )


@pytest.mark.parametrize(
    "values, message",
    [
        ([_TIME.replace(tzinfo=UTC)], "field 'x' has times with a time zone"),
        ([_TIME, _DAY], "field 'x' has values of date, datetime; name it in the schema"),
        ([_DAY, 3], "field 'x' has values of date, int; name it"),
        ([], "field 'x': no rows tell what it holds"),
        ([np.int64(3), np.uint64(2**63)], "rows of int64 and uint64, which as float64 would"),
        ([np.int64(3), np.float32(2)], "rows of int64 and float32, which as float64 would"),
    ],
)
def test_python_values_of_which_none_can_tell(values: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        stash.save_records({}, {"x": values})


def test_a_dict_within_a_row_is_fields_or_json_as_the_schema_says() -> None:
    rows = [{"meta": {"id": 1, "deep": {"k": "a"}}}, {"meta": {"id": 2, "deep": {"k": "b"}}}]
    fields = stash.save_records({}, rows)
    assert fields.names == ("meta/id", "meta/deep/k")
    whole = stash.save_records({}, rows, {"meta": stash.json})
    assert whole.names == ("meta",) and whole[1] == rows[1]
    for odd in ({"meta": {"id": 1}}, {"meta": {}}, {"meta": None}):
        with pytest.raises(Invalid, match=r"in the schema|field 'meta'"):
            stash.save_records({}, [rows[0], odd])
        assert stash.save_records({}, [rows[0], odd], {"meta": stash.json})[1] == odd
    with pytest.raises(Invalid, match=r"'meta' is \{\}, which has no fields; name it"):
        stash.save_records({}, [{"id": 1, "meta": {}}])


@pytest.mark.parametrize(
    "dtype, value",
    [
        ("M8[h]", datetime(2024, 1, 1, 12, 5)),
        ("M8[D]", datetime(2024, 1, 1, 12)),
        ("M8[Y]", date(2024, 2, 1)),
        ("M8[ns]", datetime(1, 1, 1)),
        ("m8[D]", timedelta(1, 5)),
        ("M8[us]", datetime(2024, 1, 1, tzinfo=UTC)),
        ("M8[D]", "2024-01-01T12:05"),
        ("bool", None),
        ("float32", None),
        ("int64", Decimal("1.5")),
        ("uint64", 2**64),
        ("uint8", 2**63),
        ("S4", None),
        ("U4", None),
    ],
)
def test_values_that_a_field_would_change_are_refused(dtype: str, value: Any) -> None:
    records = stash.create_records({}, {"x": dtype})
    for rows in ([{"x": value}], [{"x": value}] * 2):
        with pytest.raises(Invalid, match="field 'x'"):
            records.extend(rows)
    with pytest.raises(Invalid, match="field 'x'"):
        records.append({"x": value})


def test_large_whole_numbers_among_small_ones() -> None:
    records = stash.create_records(
        {}, {"x": "uint64", "r": stash.ragged("uint64"), "j": stash.json}
    )
    big = 2**63 + 3
    records.extend({"x": [big, 5], "r": [[big, 5], [1]], "j": [big, [2**70, 1]]})
    records.append({"x": np.uint64(big), "r": [np.uint64(big), np.int64(5)], "j": 1})
    assert records["x"][:].tolist() == [big, 5, big]
    assert [row.tolist() for row in records["r"][:]] == [[big, 5], [1], [big, 5]]
    assert records["j"][:] == [big, [2**70, 1], 1]
