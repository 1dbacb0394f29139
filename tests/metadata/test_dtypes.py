"""Data types and fill values: every spelling, every bit, with NumPy and zarr as oracles."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.dtype import get_data_type_from_json

import tensorstash as stash
from tensorstash import dtype as dtypes
from tensorstash.errors import Invalid, StashError, Unsupported
from tensorstash.metadata.zarr2 import from_v2, to_v2
from tests.support.dtype_cases import NESTED, PLAIN, RECORDS, SMALL

# --- what a user may ask for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("float32", np.dtype("float32")),
        (float, np.dtype("float64")),
        (">i4", np.dtype("=i4")),
        (np.uint8, np.dtype("uint8")),
        ("M8[25us]", np.dtype("M8[25us]")),
        ("timedelta64", np.dtype("m8")),
        ("U5", np.dtype("U5")),
        ("S5", np.dtype("S5")),
        ("r16", np.dtype("V2")),
        ("r24", np.dtype("V3")),
        ("V7", np.dtype("V7")),
        (str, np.dtypes.StringDType()),
        ("string", np.dtypes.StringDType()),
        (np.dtypes.StringDType(), np.dtypes.StringDType()),
        (bytes, np.dtype(object)),
        ("bytes", np.dtype(object)),
        (NESTED.newbyteorder(">"), NESTED),
        (np.dtype([("a", "i1"), ("b", "f8")], align=True), np.dtype([("a", "i1"), ("b", "f8")])),
        *((name, np.dtype(getattr(ml_dtypes, name))) for name in SMALL),
    ],
)
def test_parse_gives_the_native_packed_dtype(asked: object, expected: np.dtype) -> None:
    made = dtypes.parse(asked)
    assert made == expected
    assert made.itemsize == expected.itemsize
    assert made.isnative


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (object, Invalid, "string"),
        (None, Invalid, "float32"),
        ("flaot32", Invalid, "did you mean 'float32'"),
        ("r9", Invalid, "multiples of 8"),
        (f"r{1 << 40}", Unsupported, "bytes"),
        (np.dtype(("f4", (2,))), Invalid, "shape"),
        (np.dtype([("a", object)]), Invalid, "object"),
        ("int5", Invalid, "int5"),
        (np.longdouble, Unsupported, "float64"),
        (ml_dtypes.float4_e2m1fn, Unsupported, "float4"),
        (np.dtypes.StringDType(na_object=None), Invalid, "missing"),
        (np.dtype("V0"), Invalid, "no bytes"),
        ("U500000000", Unsupported, "bytes"),
    ],
)
def test_parse_refuses_with_advice(asked: object, error: type, says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        dtypes.parse(asked)
    assert "\n" not in str(caught.value)


# --- Zarr v3 --------------------------------------------------------------------------------


@given(RECORDS)
def test_every_dtype_survives_its_v3_document(dtype: np.dtype) -> None:
    document = json.loads(json.dumps(dtypes.to_v3(dtype)))
    assert dtypes.from_v3(document) == dtype


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("form", ["{n}", '{"name": "{n}"}', '{"name": "{n}", "configuration": {}}'])
def test_shorthand_and_omitted_configuration(name: str, form: str) -> None:
    text = form.replace("{n}", name)
    assert dtypes.from_v3(json.loads(text) if "{" in text else text) == np.dtype(name)


@pytest.mark.parametrize(
    "dtype",
    [*PLAIN, "M8[10s]", "m8[us]", "m8", "U4", "S3"],
)
def test_zarr_python_reads_our_data_type(dtype: str) -> None:
    ours = dtypes.parse(dtype)
    theirs = get_data_type_from_json(dtypes.to_v3(ours), zarr_format=3)
    assert theirs.to_native_dtype() == ours
    assert dtypes.from_v3(theirs.to_json(zarr_format=3)) == ours


def test_names_that_zarr_python_wrote_are_read() -> None:
    legacy = {
        "name": "structured",
        "configuration": {"fields": [["a", "int32"], ["b", {"name": "raw_bytes"}]]},
    }
    legacy["configuration"]["fields"][1][1]["configuration"] = {"length_bytes": 3}
    assert dtypes.from_v3(legacy) == np.dtype([("a", "i4"), ("b", "V3")])
    assert dtypes.from_v3("variable_length_bytes") == np.dtype(object)
    assert dtypes.to_v3(np.dtype(object)) == "bytes"
    theirs = get_data_type_from_json("bytes", zarr_format=3)
    assert theirs.to_native_dtype() == np.dtype(object)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("flot32", Unsupported),
        ("int1", Unsupported),
        ("r12", Invalid),
        ("r0", Invalid),
        (7, Invalid),
        ({"configuration": {}}, Invalid),
        ({"name": "int8", "configuration": {"x": 1}}, Invalid),
        ({"name": "int8", "must_understand": False}, Invalid),
        ({"name": "int8", "extra": 1}, Invalid),
        ({"name": "numpy.datetime64", "configuration": {"unit": "year"}}, Invalid),
        ({"name": "numpy.datetime64", "configuration": {"scale_factor": 0}}, Invalid),
        ({"name": "fixed_length_utf32", "configuration": {"length_bytes": 6}}, Invalid),
        ({"name": "fixed_length_utf32", "configuration": {"length_bytes": 4 << 40}}, Unsupported),
        ({"name": "fixed_length_utf32"}, Invalid),
        ({"name": "struct", "configuration": {"fields": []}}, Invalid),
        ({"name": "struct", "configuration": {"fields": [["a", "int8"], ["a", "int8"]]}}, Invalid),
        ({"name": "struct", "configuration": {"fields": [["", "int8"]]}}, Invalid),
        ({"name": "struct", "configuration": {"fields": [["a", "string"]]}}, Unsupported),
    ],
)
def test_data_types_that_cannot_be(value: object, error: type) -> None:
    with pytest.raises(error):
        dtypes.from_v3(value)


def test_records_in_records_have_a_limit() -> None:
    value: object = "int8"
    for _ in range(200):
        value = {"name": "struct", "configuration": {"fields": [{"name": "a", "data_type": value}]}}
    with pytest.raises(Unsupported):
        dtypes.from_v3(value)


def test_subarrays_are_for_v2() -> None:
    dtype = dtypes.parse([("a", "f4", (2, 3))])
    with pytest.raises(Unsupported, match="zarr_format=2"):
        dtypes.to_v3(dtype)
    assert from_v2(to_v2(dtype)) == dtype


# --- Zarr v2 --------------------------------------------------------------------------------


@given(RECORDS, st.sampled_from(["little", "big"]))
def test_every_dtype_survives_its_v2_document(dtype: np.dtype, endian: str) -> None:
    document = json.loads(json.dumps(to_v2(dtype, endian)))
    stored = from_v2(document)
    assert dtypes.native(stored) == dtype
    if dtype.str[0] in "<>" and dtypes.parse(dtype).type.__module__ == "numpy":
        assert stored.str[0] == (">" if endian == "big" else "<")


@pytest.mark.parametrize("name", [*PLAIN, "M8[ns]", "m8[10s]", "U4", "S3", "V5"])
def test_typestr_is_numpys(name: str) -> None:
    dtype = np.dtype(name)
    assert to_v2(dtype) == dtype.str
    assert from_v2(dtype.str) == dtype


def test_object_dtype_follows_its_codec() -> None:
    assert from_v2("|O", [{"id": "vlen-utf8"}]).kind == "T"
    assert from_v2("|O", [{"id": "vlen-bytes"}]) == np.dtype(object)
    assert from_v2("|O", [{"id": "json2"}]) == np.dtype(object)
    with pytest.raises(Unsupported, match="object codec"):
        from_v2("|O", [{"id": "delta"}])


@pytest.mark.parametrize(
    "value",
    [
        "float32",
        "<f",
        "<f3",
        "|O8",
        "f4",
        "<U0",
        [],
        [["a"]],
        [["a", "<i4", [0]]],
        5,
        None,
        "<f4[s]",
    ],
)
def test_typestrs_that_cannot_be(value: object) -> None:
    with pytest.raises(StashError):
        from_v2(value)


def test_a_huge_typestr_allocates_nothing() -> None:
    for value in ("|S99999999999999", "<U536870911", [["a", "<f8", [1 << 20, 1 << 20]]]):
        with pytest.raises(Unsupported):
            from_v2(value)


def test_strings_at_index_arrays() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = ["é" * n for n in rng.integers(0, 40, 16)]
        array = stash.create({}, (8,), "string", chunks=5)
        array[...] = words[:8]
        at = rng.permutation(8)[: rng.integers(1, 9)]
        array.oindex[at] = words[8 : 8 + len(at)]
        for i, word in zip(at, words[8:], strict=False):
            words[i] = word
        assert array[...].tolist() == words[:8]
        assert array.oindex[at].tolist() == [words[i] for i in at]
