"""NumPy's values as attributes, and floats that are not finite."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensorstash as stash
from tensorstash.errors import Invalid

GIVEN: list[tuple[Any, Any]] = [
    (np.float32(2), 2.0),
    (np.float64(0.1), 0.1),
    (np.float16(0.5), 0.5),
    (np.longdouble(2), 2.0),
    (ml_dtypes.bfloat16(1.5), 1.5),
    (np.array([1.5, 2], ml_dtypes.bfloat16), [1.5, 2.0]),
    (np.int8(-3), -3),
    (np.uint64(2**64 - 1), 2**64 - 1),
    (np.bool_(True), True),
    (np.str_("ä"), "ä"),
    (np.arange(3), [0, 1, 2]),
    (np.arange(4, dtype="u1").reshape(2, 2), [[0, 1], [2, 3]]),
    (np.array(7), 7),
    (np.array(["a", "bc"]), ["a", "bc"]),
    (np.array(["a"], np.dtypes.StringDType()), ["a"]),
    (np.array([], "f4"), []),
    (np.array([np.int64(1), {"k": np.float32(2)}], object), [1, {"k": 2.0}]),
    ({"deep": [np.int32(1), (np.bool_(False), {"k": np.zeros(2)})]},
     {"deep": [1, [False, {"k": [0.0, 0.0]}]]}),
]  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("value", "plain"), GIVEN, ids=repr)
def test_values_of_numpy_are_taken(value: Any, plain: Any, version: Any) -> None:
    place: dict[str, Any] = {}
    group = stash.create_group(place, attributes={"a": value}, zarr_format=version)
    group.attrs["b"] = value
    array = group.create("x", (2,), "u1", attributes={"a": value})
    array.attrs["b"] = value
    array.attrs.update({"c": value}, d=value)
    group.create_group("g", {"a": value})
    again = stash.open_group(place)
    for attrs in (group.attrs, again.attrs, again["x"].attrs, array.attrs, again["g"].attrs):
        for found in attrs.values():
            assert found == plain and type(found) is type(plain)
    assert dict(again["x"].attrs) == dict.fromkeys("abcd", plain)


@given(hnp.arrays(hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.floating_dtypes(),
                  hnp.array_shapes(min_dims=0, max_side=3)), st.booleans())  # fmt: skip
def test_any_array_is_as_its_list(value: np.ndarray, whole: bool) -> None:
    array = stash.create({}, (1,), "u1")
    array.attrs["k"] = value if whole else [value]
    found = stash.open(array.driver).attrs["k"]
    np.testing.assert_equal(found if whole else found[0], value.tolist())


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2020-01-01"),
        np.array([1j]),
        np.array([b"x"]),
        np.zeros(2, [("a", "i4")]),
        np.array([object()], object),
        b"x",
    ],
    ids=["time", "complex", "bytes in an array", "records", "objects", "bytes"],
)
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    array = stash.create({}, (1,), "u1")
    for change in (
        lambda: array.attrs.__setitem__("k", value),
        lambda: array.attrs.update(k=[value]),
        lambda: stash.create({}, (1,), "u1", attributes={"k": {"deep": value}}),
    ):
        with pytest.raises(Invalid, match=r"\bk\b"):
            change()
    assert dict(array.attrs) == {}


@pytest.mark.parametrize("version", [2, 3])
def test_floats_that_are_not_finite_stay_what_they_are(version: Any) -> None:
    place: dict[str, Any] = {}
    array = stash.create(place, (1,), "u1", zarr_format=version)
    array.attrs.update(a=math.nan, b=[np.float32("inf"), -math.inf])
    text = bytes(place["zarr.json" if version == 3 else ".zattrs"]).decode()
    assert "NaN" in text and "-Infinity" in text and '"NaN"' not in text
    found = stash.open(place).attrs
    assert math.isnan(found["a"]) and found["b"] == [math.inf, -math.inf]
    assert json.loads(text)
