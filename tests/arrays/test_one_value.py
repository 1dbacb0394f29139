"""One value of an array of text, bytes or objects: however it is wrapped."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Invalid

_VALUES = [(str, "x"), (bytes, b"x"), ("i4", 5), ("U3", "x"), ("S3", b"x")]
_WRAPPED = [lambda v: [v], lambda v: (v,), lambda v: [[v]], lambda v: [[[v]]]]


@pytest.mark.parametrize("wrap", _WRAPPED)
@pytest.mark.parametrize("dtype, value", _VALUES)
@pytest.mark.parametrize("key", [0, (0, ...), slice(0, 1), [0], ...])
def test_leading_axes_of_length_one_are_dropped(
    dtype: Any, value: Any, wrap: Any, key: Any
) -> None:
    for form in (2, 3):
        array = stash.create({}, (3,), dtype, zarr_format=form)
        array[key] = wrap(value)
        model = np.zeros(3, array.dtype)
        model[0] = value
        model[:] = value if key is ... else model
        if dtype in (str, bytes):
            blank = dtype()
            assert array[:].tolist() == ([value] * 3 if key is ... else [value, blank, blank])
        else:
            assert np.array_equal(array[:], model)
    rows = stash.create({}, (2, 3), dtype)
    rows[1] = [wrap(value)] if key == 0 else wrap(value)
    assert rows[1].tolist() == [value] * 3
    with pytest.raises(Invalid, match="does not broadcast"):
        array[0] = [value, value]


def test_arrays_of_text_and_bytes_of_one_element() -> None:
    text = stash.create({}, (3,), str)
    for value in (np.array(["x"]), np.array([["x"]]), np.array(["x"], np.dtypes.StringDType())):
        text[1] = value
        assert text[1] == "x"
    with text.writer() as writer:
        writer[2] = ["y"]
    assert text[:].tolist() == ["", "x", "y"]


@pytest.mark.parametrize("value", [b"x", b"", b"xyz"])
def test_a_bytearray_is_one_value(value: bytes) -> None:
    array = stash.create({}, (3,), bytes)
    for made in (bytearray(value), memoryview(value), [bytearray(value)], np.array(value, object)):
        array[:] = b"?"
        array[0] = made
        assert array[0] == value
    array[1:] = [bytearray(value), memoryview(value)]
    assert array[:].tolist() == [value] * 3
    array[...] = bytearray(value)
    assert array[:].tolist() == [value] * 3


def _objects(codec: str, fill: Any = None, **more: Any) -> stash.Array:
    document = {
        "zarr_format": 2,
        "shape": [4],
        "chunks": [2],
        "dtype": "|O",
        "order": "C",
        "fill_value": fill,
        "compressor": None,
        "filters": [{"id": codec, **more}],
    }
    return stash.open({".zarray": json.dumps(document).encode()}, "r+", allow_pickle=True)


@pytest.mark.parametrize("codec", ["json2", "msgpack2", "pickle"])
@pytest.mark.parametrize("value", [[1, 2], ["x"], [], [[1], [2, 3]], {"k": [1]}, "x", 5, None])
def test_one_object_is_stored_whole(codec: str, value: Any) -> None:
    array = _objects(codec)
    array[1] = value
    assert array[1] == value and array[0] is None
    array[2:] = np.array([value, None, 0], object)[:2] if not isinstance(value, list) else "y"
    assert array[1] == value and array[2] in (value, "y")
    model = np.empty(4, object)
    array[:] = [[1], [2, 3], 4, "x"]
    model[:] = [[1], [2, 3], 4, "x"]
    assert array[:].tolist() == model.tolist()


def test_tuples_and_arrays_are_objects_too() -> None:
    array = _objects("pickle")
    array[0] = (1, 2)
    array[3] = np.arange(3)
    assert array[0] == (1, 2) and np.array_equal(array[3], np.arange(3))
    lists = _objects("vlen-array", dtype="<i4")
    lists[1] = np.array([1, 2, 3], "i4")
    lists[2] = [4]
    assert lists[1].tolist() == [1, 2, 3] and lists[2].tolist() == [4]


@pytest.mark.parametrize(
    "codec, more, fill, wanted",
    [
        ("json2", {}, None, None),
        ("msgpack2", {}, None, None),
        ("pickle", {}, None, None),
        ("vlen-array", {"dtype": "<i4"}, None, None),
        ("categorize", {"labels": ["a", "b"], "dtype": "|O", "astype": "|u1"}, None, ""),
        ("vlen-bytes", {}, None, b""),
        ("json2", {}, "text", "text"),
        ("json2", {}, [1, 2], [1, 2]),
        ("json2", {}, [], []),
        ("json2", {}, {"k": 1}, {"k": 1}),
        ("json2", {}, 0, 0),
    ],
)
def test_objects_that_were_never_written(codec: str, more: Any, fill: Any, wanted: Any) -> None:
    array = _objects(codec, fill, **more)
    assert array[3] == wanted and type(array[3]) is type(wanted)
    assert array[:].tolist() == [wanted] * 4
    value = {"vlen-array": np.array([1], "i4"), "vlen-bytes": b"a"}.get(codec, "a")
    array[0] = value  # a part of a chunk: the rest is stored as well
    if codec != "vlen-array":  # which has no other word for it than no elements
        assert array[:].tolist() == [value, wanted, wanted, wanted]
    else:
        assert array[1].tolist() == [] and array[2] is None
