"""Zarr v2 filters give what numcodecs gives, and are bounded when they are undone."""

from __future__ import annotations

import json
from typing import Any

import numcodecs
import numpy as np
import pytest
from numpy.typing import NDArray

from tensorstash.codec import ChunkSpec
from tensorstash.codecs.foreign import Filters
from tensorstash.errors import StashError, Unsupported
from tensorstash.testing.codec import spec

STRING = np.dtypes.StringDType()


def raw(value: Any) -> bytes:
    return value.tobytes() if isinstance(value, np.ndarray) else bytes(value)


OBJECTS = np.array([["a", "bb"], ["ü", ""]], object)
FILTERED: dict[str, tuple[list[dict[str, Any]], NDArray[Any]]] = {
    "none": ([], np.arange(4).reshape(2, 2)),
    "delta": ([{"id": "delta", "dtype": "<i4"}], np.arange(4, dtype="<i4").reshape(2, 2)),
    "two": (
        [{"id": "delta", "dtype": "<i4", "astype": "<i2"}, {"id": "shuffle", "elementsize": 2}],
        np.arange(4, dtype="<i4").reshape(2, 2),
    ),
    "scale": (
        [{"id": "fixedscaleoffset", "dtype": "<f8", "astype": "|u1", "offset": 0, "scale": 1}],
        np.arange(4.0).reshape(2, 2),
    ),
    "packbits": ([{"id": "packbits"}], np.eye(2, dtype=bool)),
    "zlib": ([{"id": "zlib", "level": 1}], np.arange(4).reshape(2, 2)),
    "vlen-utf8": ([{"id": "vlen-utf8"}], OBJECTS),
    "vlen-bytes": ([{"id": "vlen-bytes"}], np.array([[b"a", b""], [b"\0", b"xyz"]], object)),
    "json2": ([{"id": "json2"}], OBJECTS),
    "msgpack2": ([{"id": "msgpack2"}], OBJECTS),
    "categorize": (
        [{"id": "categorize", "dtype": "|O", "astype": "|u1", "labels": ["a", "bb", "ü"]}],
        OBJECTS,
    ),
    "vlen-utf8+zlib": ([{"id": "vlen-utf8"}, {"id": "zlib", "level": 1}], OBJECTS),
}


@pytest.mark.parametrize(("configs", "values"), FILTERED.values(), ids=FILTERED)
def test_filters_agree_with_numcodecs(configs: list[dict[str, Any]], values: NDArray[Any]) -> None:
    expected: Any = values
    for config in configs:
        expected = numcodecs.get_codec(config).encode(expected)
    chunk = ChunkSpec(values.shape, values.dtype, np.zeros((), values.dtype))
    codec = Filters(configs).bind(chunk)
    data = bytes(codec.encode(np.asfortranarray(values)))
    assert data == raw(expected)
    back = codec.decode(data, chunk)
    assert back.dtype == values.dtype
    assert back.shape == values.shape
    assert back.tolist() == values.tolist()
    for bad in (data[:-1], data[: len(data) // 2], b""):
        with pytest.raises(ValueError, match=r"\w"):
            codec.decode(bad, chunk)
    with pytest.raises(ValueError, match=r"\w"):
        codec.decode(data, spec((50, 60), values.dtype))


def test_filters_on_arrays_of_arrays_and_nested_values() -> None:
    ragged = np.empty(3, object)
    ragged[:] = [np.arange(3, dtype="<i2"), np.arange(0, dtype="<i2"), np.arange(2, dtype="<i2")]
    chunk = spec((3,), object)
    codec = Filters([{"id": "vlen-array", "dtype": "<i2"}]).bind(chunk)
    data = codec.encode(ragged)
    assert [a.tolist() for a in codec.decode(data, chunk)] == [[0, 1, 2], [], [0, 1]]
    with pytest.raises(ValueError, match="follow"):
        codec.decode(bytes(data) + b"\0\0", chunk)
    nested = np.empty((2,), object)
    nested[:] = [{"a": [1, 2]}, [3, [4]]]
    for identifier in ("json2", "msgpack2"):
        codec = Filters([{"id": identifier}]).bind(spec((2,), object))
        assert codec.decode(codec.encode(nested), spec((2,), object)).tolist() == nested.tolist()


def test_filters_without_axes_and_without_elements() -> None:
    for configs, value in (
        ([{"id": "json2"}], "x"),
        ([{"id": "msgpack2"}], "x"),
        ([{"id": "vlen-utf8"}], "x"),
        ([{"id": "delta", "dtype": "<i8"}], 5),
    ):
        single = np.array(value, object if isinstance(value, str) else "<i8")
        for values in (single, np.empty((0, 2), single.dtype)):
            chunk = ChunkSpec(values.shape, values.dtype, np.zeros((), values.dtype))
            codec = Filters(configs).bind(chunk)
            back = codec.decode(codec.encode(values), chunk)
            assert back.shape == values.shape
            assert back.tolist() == values.tolist()


def test_strings_through_filters_become_strings() -> None:
    chunk = spec((2, 2), STRING, "")
    for identifier in ("vlen-utf8", "json2"):
        codec = Filters([{"id": identifier}]).bind(chunk)
        back = codec.decode(codec.encode(OBJECTS.astype(STRING)), chunk)
        assert back.dtype == STRING
        assert back.tolist() == OBJECTS.tolist()


def test_stored_byte_order_is_kept_through_filters() -> None:
    values = np.arange(6, dtype="<i4").reshape(2, 3)
    chunk = spec((2, 3), "<i4")
    codec = Filters([{"id": "delta", "dtype": ">i4"}], stored=np.dtype(">i4")).bind(chunk)
    data = codec.encode(values)
    assert bytes(data) == numcodecs.Delta(">i4").encode(values.astype(">i4")).tobytes()
    assert codec.decode(data, chunk).tolist() == values.tolist()
    mixed = np.dtype([("a", "<i4"), ("b", ">f8")])
    plain = np.dtype([("a", "<i4"), ("b", "<f8")])
    records = np.array([(1, 2.5), (3, 4.5)], plain)
    codec = Filters([], stored=mixed)
    assert bytes(codec.encode(records)) == records.astype(mixed).tobytes()
    assert codec.decode(codec.encode(records), spec((2,), plain)).tolist() == records.tolist()


def test_pickle_is_refused_unless_asked_for() -> None:
    config = {"id": "pickle", "protocol": 4}
    with pytest.raises(Unsupported, match="allow_pickle"):
        Filters([config])
    chunk = spec((2, 2), object)
    codec = Filters([config], allow_pickle=True).bind(chunk)
    assert codec.decode(codec.encode(OBJECTS), chunk).tolist() == OBJECTS.tolist()


@pytest.mark.parametrize(
    ("configs", "kind", "says"),
    [
        ([], object, "object codec"),
        ([{"id": "zlib"}], object, "object codec"),
        ([{"id": "vlen-utf8"}], "i4", "takes objects"),
        ([{"id": "astype", "encode_dtype": "U99999999", "decode_dtype": "i4"}], "i4", "U99999999"),
        ([{"id": "categorize", "labels": ["a"], "dtype": "U99999999"}], "U1", "categorize"),
        ([{"id": "nonsense"}], "i4", "nonsense"),
        ([{"level": 1}], "i4", "no 'id'"),
    ],
)
def test_filters_that_cannot_be_are_refused(configs: Any, kind: Any, says: str) -> None:
    with pytest.raises(StashError, match=says):
        Filters(configs).bind(spec((2,), kind))


@pytest.mark.parametrize("identifier", ["json2", "msgpack2"])
@pytest.mark.parametrize(
    "items",
    [
        ["a", "|O", [1 << 40]],
        ["a", "|O", [1 << 20, 1 << 20]],
        ["a", "|O", [-1, -2]],
        ["a", "b", "|O", [2, 1]],
        [["a"], "|O", [1, 2]],
        ["ab", "|O", [1, 2]],
        ["a", "|O", 1],
        {"a": 1},
        [],
    ],
)
def test_object_headers_are_checked(identifier: str, items: Any) -> None:
    chunk = spec((2,), object)
    pack = json.dumps(items).encode()
    if identifier == "msgpack2":
        pack = pytest.importorskip("msgpack").packb(items)
    with pytest.raises(ValueError, match="filter"):
        Filters([{"id": identifier}]).bind(chunk).decode(pack, chunk)
