"""Pairs of dtype and codec that no chunk can be of: refused where an array is made and opened."""

from __future__ import annotations

import json
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.errors import Invalid

PAIRS = [
    (bytes, "vlen-utf8"),
    (str, "vlen-bytes"),
    ("int32", "vlen-utf8"),
    ("float64", "vlen-bytes"),
    ("S3", "vlen-bytes"),
    ("U3", "vlen-utf8"),
]


@pytest.mark.parametrize(("dtype", "codec"), PAIRS)
@pytest.mark.parametrize("options", [{}, {"shards": (4,)}], ids=str)
def test_create_refuses(dtype: Any, codec: str, options: dict[str, Any]) -> None:
    place: dict[str, Any] = {}
    for chain in ([{"name": codec}], [codec, "zstd", "crc32c"]):
        with pytest.raises(Invalid, match=codec):
            stash.create(place, (8,), dtype, chunks=(2,), codecs=chain, **options)
    assert not place


@pytest.mark.parametrize(("dtype", "codec"), [(bytes, "vlen-utf8"), (str, "vlen-bytes")])
@pytest.mark.parametrize("more", [[], [{"id": "zlib"}]], ids=str)
def test_filters_of_v2_too(dtype: Any, codec: str, more: list[Any]) -> None:
    with pytest.raises(Invalid, match=codec):
        stash.create({}, (8,), dtype, zarr_format=2, filters=[{"id": codec}, *more])


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        ("bytes", "vlen-utf8"),
        ("variable_length_bytes", "vlen-utf8"),
        ("string", "vlen-bytes"),
        ("string", "bytes"),
        ("int32", "vlen-utf8"),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_open_refuses(dtype: str, codec: str, sharded: bool) -> None:
    place: dict[str, Any] = {}
    stash.create(place, (8,), str, chunks=(2,), shards=(4,) if sharded else None, codecs=None)
    text = json.loads(bytes(place["zarr.json"]))
    text |= {"data_type": dtype, "fill_value": 0 if dtype == "int32" else ""}
    if sharded and dtype == "int32":
        return  # the shape of a shard's chain is looked at when it is read
    inner = text["codecs"][0]["configuration"] if sharded else text
    inner["codecs"] = [{"name": codec}]
    place["zarr.json"] = json.dumps(text).encode()
    for mode in ("r", "r+", "a"):
        with pytest.raises(Invalid, match=codec):
            stash.open(place, mode=mode)


def test_those_that_fit_are_none_of_these() -> None:
    for version in (2, 3):
        for dtype, value in ((str, "ä"), (bytes, b"\xff")):
            array = stash.create({}, (3,), dtype, zarr_format=version)
            array[1] = value
            assert stash.open(array.driver)[1] == value
