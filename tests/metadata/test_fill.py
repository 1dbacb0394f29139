"""Fill values bit for bit, and whether a chunk is nothing but fill."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.core.dtype import get_data_type_from_json

from tensorstash import dtype as dtypes
from tensorstash import fill as fills
from tensorstash.errors import Invalid
from tests.support.dtype_cases import NESTED, PLAIN, RECORDS


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def plain(fill: np.ndarray) -> np.ndarray:
    """With the bits that an int2 or int4 has no use for at zero."""
    if dtypes.is_small_int(fill.dtype):
        return fills.parse(fill, fill.dtype)
    made = fill.copy()
    for name, _ in dtypes.parts(fill.dtype) if fill.dtype.names else ():
        made[name] = plain(np.asarray(fill[name]))
    return made


def test_bits_without_a_meaning_are_dropped() -> None:
    int4 = dtypes.parse("int4")
    for bits, kept in ((0xF1, 0x01), (0xFF, 0x0F), (0x8F, 0x0F), (0x10, 0x00)):
        fill = np.array(bits, "u1").view(int4)
        assert fills.parse(fill, int4).tobytes() == bytes([kept])
        assert fills.parse(fill[()], int4).tobytes() == bytes([kept])


# --- in documents ------------------------------------------------------------------------------


@given(RECORDS.filter(lambda d: d.kind != "U" and "U" not in str(d.descr)), st.data())
def test_any_bits_survive_the_v3_document(dtype: np.dtype, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
    if "?" in str(dtype) or "bool" in str(dtype):
        raw = bytes(byte & 1 for byte in raw)
    fill = plain(np.frombuffer(raw, dtype).reshape(()))
    document = json.loads(json.dumps(fills.to_json(fill, dtype, 3)))
    assert same_bits(fills.from_json(document, dtype, 3), fill)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=4))
def test_text_survives_both_documents(text: str) -> None:
    text = text.rstrip("\0")
    for dtype in (np.dtype("U4"), dtypes.STRING):
        fill = fills.parse(text, dtype)
        for version in (2, 3):
            document = json.loads(json.dumps(fills.to_json(fill, dtype, version)))
            assert fills.from_json(document, dtype, version)[()] == text


@given(st.binary(max_size=9))
def test_bytes_survive_as_base64_and_are_read_as_a_list(value: bytes) -> None:
    fill = fills.parse(value, dtypes.OBJECT)
    document = fills.to_json(fill, dtypes.OBJECT, 3)
    assert fills.from_json(document, dtypes.OBJECT, 3)[()] == value
    assert fills.from_json(list(value), dtypes.OBJECT, 3)[()] == value


@pytest.mark.parametrize(
    ("dtype", "written", "bits"),
    [
        ("float16", "NaN", "7e00"),
        ("float32", "NaN", "7fc00000"),
        ("float64", "NaN", "7ff8000000000000"),
        ("float32", "0x7fc00001", "7fc00001"),
        ("float32", "0xffc00000", "ffc00000"),
        ("float32", -0.0, "80000000"),
        ("float32", "-Infinity", "ff800000"),
        ("float64", "Infinity", "7ff0000000000000"),
        ("float32", 0.1, "3dcccccd"),
        ("bfloat16", "NaN", "7fc0"),
        ("bfloat16", "0x7fc1", "7fc1"),
        ("float32", 3, "40400000"),
    ],
)
def test_float_fill_has_these_bits(dtype: str, written: object, bits: str) -> None:
    made = fills.from_json(written, dtypes.parse(dtype), 3)
    assert made.tobytes()[::-1].hex() == bits
    again = fills.to_json(made, made.dtype, 3)
    assert same_bits(fills.from_json(again, made.dtype, 3), made)


def test_complex_fill_keeps_both_parts() -> None:
    made = fills.from_json(["0x7fc00001", -0.0], np.dtype("complex64"), 3)
    assert made.tobytes()[::-1].hex() == "800000007fc00001"
    assert fills.to_json(made, made.dtype, 3) == ["0x7fc00001", -0.0]
    with pytest.raises(Invalid):
        fills.from_json([1.0], np.dtype("complex64"), 3)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        *((name, 1) for name in PLAIN),
        ("float32", math.nan),
        ("float64", -math.inf),
        ("complex64", complex(math.nan, -2.5)),
        ("M8[s]", np.datetime64("2020-02-03T04:05:06")),
        ("M8[s]", np.datetime64("NaT", "s")),
        ("U4", "añb"),
        ("S4", b"a\0b"),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_zarr_python_reads_our_fill_and_we_its(dtype: str, fill: object, version: int) -> None:
    ours = dtypes.parse(dtype)
    spelled = {"name": ours.str, "object_codec_id": None} if version == 2 else dtypes.to_v3(ours)
    theirs = get_data_type_from_json(spelled, zarr_format=version)
    made = fills.parse(fill, ours)
    read = theirs.from_json_scalar(fills.to_json(made, ours, version), zarr_format=version)
    assert same_bits(np.asarray(read, ours), made)
    written = theirs.to_json_scalar(theirs.cast_scalar(made[()]), zarr_format=version)
    assert same_bits(fills.from_json(json.loads(json.dumps(written)), ours, version), made)


@pytest.mark.parametrize(
    ("value", "dtype", "version"),
    [
        (0.5, "int8", 3),
        (128, "int8", 3),
        (-1, "uint8", 3),
        (True, "int8", 3),
        (2, "bool", 3),
        ("zero", "float32", 3),
        ("", "float32", 2),
        ("1,5", "float64", 2),
        ("1_0", "int32", 2),
        ("1.5", "int32", 2),
        ("300", "uint8", 3),
        ("9" * 5000, "int64", 2),
        ("0", "bool", 2),  # zarr-python reads true
        ("0x1ffffffff", "float32", 3),
        (1e300, "float32", 3),
        (10**400, "float64", 3),
        (None, "float32", 3),
        ([0], "r16", 3),
        ([0, 256], "r16", 3),
        ("toolong", "U3", 3),
        ("AAAA", "S2", 3),
        ("not base64!", "S20", 3),
        (2**70, "M8[s]", 3),
        ({"a": 1}, NESTED, 3),
        (math.nan, "int8", 3),
        (math.inf, "int8", 3),
        ("\ud800", "string", 3),
    ],
)
def test_fill_values_that_cannot_be(value: object, dtype: object, version: int) -> None:
    with pytest.raises(Invalid) as caught:
        fills.from_json(value, dtypes.parse(dtype), version)
    assert "fill_value" in str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "written"),
    [
        ("int32", "0"),
        ("int64", " -7 "),
        ("uint64", str(2**64 - 1)),
        (">u2", "+300"),
        ("float32", "0"),
        ("float32", "-0.0"),
        (">f8", "1.5e-3"),
        ("float16", "2."),
        ("float64", "nan"),
        ("float32", "-inf"),
        ("float64", "+Infinity"),
        ("bool", "1"),
    ],
)
def test_a_number_in_quotes_is_what_zarr_reads(dtype: str, written: str, version: int) -> None:
    stored = np.dtype(dtype)
    plain = stored.newbyteorder("=")
    spelled = {"name": stored.str, "object_codec_id": None} if version == 2 else plain.name
    theirs = get_data_type_from_json(spelled, zarr_format=version)
    expected = np.asarray(theirs.from_json_scalar(written, zarr_format=version), plain)
    assert same_bits(fills.from_json(written, plain, version), expected)
    if stored.kind == "f":
        assert same_bits(fills.parse(written, plain), expected)


@given(
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)),
    st.sampled_from(["int64", "float64", "m8[s]", "complex128"]),
    st.sampled_from([2, 3]),
    st.sampled_from(["{}", " {}", "{}\n"]),
)
def test_quotes_change_nothing(value: float, dtype: str, version: int, form: str) -> None:
    kind = np.dtype(dtype)
    try:
        expected = fills.from_json(value, kind, version)
    except Invalid:
        with pytest.raises(Invalid):
            fills.from_json(form.format(value), kind, version)
        return
    whole = kind.kind in "im" and isinstance(value, float)
    if whole and "e" in repr(value):  # no whole number is spelled so
        return
    assert same_bits(fills.from_json(form.format(repr(value)), kind, version), expected)


def test_v2_base64_follows_the_stored_byte_order() -> None:
    stored = np.dtype([("a", ">i4"), ("b", "<f4"), ("c", "V2", (2,))])
    fill = np.array((7, 1.5, [b"ab", b"cd"]), stored)
    assert same_bits(fills.from_json(fills.to_json(fill, stored, 2), stored, 2), fill)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (">f4", -0.0),
        (">c8", complex(1e-40, -0.0)),
        (">M8[s]", np.datetime64("2020-01-02", "s")),
        (">i2", 258),
        (">U3", "añ"),
    ],
)
def test_a_fill_value_of_a_big_endian_dtype(dtype: str, value: object) -> None:
    stored = np.dtype(dtype)
    fill = np.empty((), stored)
    fill[()] = value
    made = fills.from_json(json.loads(json.dumps(fills.to_json(fill, stored, 2))), stored, 2)
    assert same_bits(made, fill)
    assert made.astype(stored.newbyteorder("=")) == value


def test_v2_refuses_a_nan_it_cannot_spell() -> None:
    odd = np.array(0x7FC00001, "u4").view("f4")
    with pytest.raises(Invalid, match="0x7fc00001"):
        fills.to_json(odd, odd.dtype, 2)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (None, "int8", 0),
        (5.0, "int8", 5),
        (np.int64(5), "uint8", 5),
        (np.array(5), "uint8", 5),
        (True, "bool", True),
        ("NaN", "float32", math.nan),
        (None, "string", ""),
        (None, "bytes", b""),
        (bytearray(b"x"), "bytes", b"x"),
        ("2020-01-01", "M8[D]", np.datetime64("2020-01-01")),
        (b"ab", "r16", np.void(b"ab")),
        ([1, 2], "r16", np.void(b"\x01\x02")),
        ((1, 2.5), [("a", "i4"), ("b", "f4")], (1, 2.5)),
        ({"b": 2.5, "a": 1}, [("a", "i4"), ("b", "f4")], (1, 2.5)),
        (0, [("a", "i4"), ("b", "f4")], (0, 0.0)),
    ],
)
def test_a_callers_fill_value(value: object, dtype: object, expected: object) -> None:
    made = fills.parse(value, dtypes.parse(dtype))
    assert made.shape == () and not made.flags.writeable
    np.testing.assert_equal(made[()].item() if isinstance(expected, tuple) else made[()], expected)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (300, "uint8"),
        (-1, "uint8"),
        (0.5, "int32"),
        (math.nan, "int32"),
        ("x", "int32"),
        (1e39, "float32"),
        (2, "bool"),
        (1j, "float32"),
        ("abcdef", "U3"),
        (b"abcdef", "S3"),
        (5, "string"),
        ("x", "bytes"),
        ([1, 2], "int8"),
        (np.zeros(3), "float64"),
        ((1, 2, 3), [("a", "i4")]),
        ({"b": 1}, [("a", "i4")]),
        (np.datetime64("2020-01-01T00:00:01"), "M8[D]"),
        (object(), "float32"),
    ],
)
def test_a_callers_fill_value_that_does_not_fit(value: object, dtype: object) -> None:
    with pytest.raises(Invalid):
        fills.parse(value, dtypes.parse(dtype))


def test_parse_keeps_the_bits_of_a_value_of_the_dtype() -> None:
    odd = np.array(0xFFC12345, "u4").view("f4")
    assert same_bits(fills.parse(odd, np.dtype("f4")), odd)
    assert same_bits(fills.parse(odd[()], np.dtype("f4")), odd)


# --- is a chunk nothing but fill? -------------------------------------------------------------


@given(
    RECORDS,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=6),
    st.data(),
)
def test_is_fill_compares_bits(
    dtype: np.dtype, shape: tuple[int, ...], data: st.DataObject
) -> None:
    raw = data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize))
    fill = np.frombuffer(raw, dtype).reshape(()).copy()
    chunk = np.frombuffer(raw * math.prod(shape), dtype).reshape(shape).copy()
    assert fills.is_fill(chunk, fill)
    assert fills.is_fill(chunk.T[..., ::-1] if shape else chunk, fill)
    place = data.draw(st.integers(0, chunk.nbytes - 1))
    flipped = bytearray(chunk.tobytes())
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    assert not fills.is_fill(np.frombuffer(flipped, dtype).reshape(shape), fill)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", "f8", "c16", "S3", "V16", "V12"])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("place", [0, 1, 70_001, 139_999, None])
def test_is_fill_in_large_and_scattered_chunks(dtype: str, value: int, place: int | None) -> None:
    item = bytes([0] * (np.dtype(dtype).itemsize - 1) + [value])
    flat = np.frombuffer(item * 140_000, dtype).copy()
    fill = flat[0].copy() if dtype[0] == "V" else np.array(flat[0], dtype)
    fill = np.asarray(fill, dtype).reshape(())
    if place is not None:
        flat.view("u1").reshape(140_000, -1)[place, 0] ^= 0x10
    cube = flat.reshape(100, 14, 100)
    wide = np.repeat(cube, 2, axis=2)[:, :, ::2]
    for chunk in (flat, cube, cube.T, cube.transpose(1, 0, 2), wide, flat[::-1], wide.T):
        assert fills.is_fill(chunk, fill) is (place is None)


def test_is_fill_of_text_bytes_and_nothing() -> None:
    text = np.full(5, "a", dtypes.STRING)
    assert fills.is_fill(text, fills.parse("a", dtypes.STRING))
    assert not fills.is_fill(text, fills.parse("", dtypes.STRING))
    data = np.full(5, b"a", object)
    assert fills.is_fill(data, fills.parse(b"a", dtypes.OBJECT))
    data[3] = "a"
    assert not fills.is_fill(data, fills.parse(b"a", dtypes.OBJECT))
    assert fills.is_fill(np.empty((0, 3), "f4"), fills.parse(1, np.dtype("f4")))
