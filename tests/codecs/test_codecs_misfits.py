"""A filter or compressor that can encode no chunk of a dtype is refused when the array is created,
one that can is not, and reading is never stopped by it."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numcodecs
import numpy as np
import pytest
from numcodecs import registry

import tensorstash as stash
from tensorstash.errors import Invalid, StashError, Unsupported

_SCALE = {"offset": 0, "scale": 1}
_LABELS = ["a", "b"]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "astype": [
        {"encode_dtype": "<f4", "decode_dtype": "<f8"},
        {"encode_dtype": "<i2", "decode_dtype": "|u1"},
    ],
    "bitround": [{"keepbits": 5}],
    "delta": [{"dtype": "<i4"}, {"dtype": "<f8", "astype": "<f4"}],
    "fixedscaleoffset": [_SCALE | {"dtype": "<f8", "astype": "|u1"}, _SCALE | {"dtype": "<i2"}],
    "quantize": [{"digits": 2, "dtype": "<f8"}, {"digits": 2, "dtype": "<f4"}],
    "categorize": [{"labels": _LABELS, "dtype": "|O"}, {"labels": _LABELS, "dtype": "<U3"}],
    "vlen-array": [{"dtype": "<i4"}],
    "shuffle": [{}, {"elementsize": 4}, {"elementsize": 3}],
}
NUMBERS = ["?", "i1", "u1", "<i2", "<i4", ">i4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16"]
KINDS: list[Any] = [
    *map(np.dtype, [*NUMBERS, "<M8[s]", "<m8[s]", "<M8[ns]", "S3", "<U3", "V4"]),
    *(np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)),
    np.dtype([("a", "<i4"), ("b", "<f8")]),
    np.dtype([("a", "S3"), ("b", "<i2")]),
    str,
    bytes,
]
IDS = sorted(set(registry.codec_registry) | {"pcodec", "zfpy", "msgpack2"})


def ordinary(kind: Any) -> Any:
    """Three values that are not the fill."""
    if kind in (str, bytes):
        return np.array(["a", "bb", "a"] if kind is str else [b"a", b"bb", b"a"], object)
    if kind.kind in "SU":
        return np.array(["a", "b", "a"], kind)
    if kind.kind == "V":
        return np.frombuffer(b"\1" * (3 * kind.itemsize), kind)
    return np.array([1, 0, 1]).astype(kind)


def made(kind: Any, config: Any, how: str, shape: Any = (3,)) -> Any:
    options: Any = {"codecs": config} if how == "codecs" else {"filters": [config], "codecs": None}
    return stash.create({}, shape, kind, chunks=shape, zarr_format=2, **options)


@pytest.mark.parametrize("how", ["filters", "codecs"])
@pytest.mark.parametrize("identifier", IDS)
def test_what_each_write_would_refuse_is_refused_at_once(identifier: str, how: str) -> None:
    for options in OPTIONS.get(identifier, [{}]):
        config = {"id": identifier, **options}
        for kind in KINDS:
            values = ordinary(kind)
            try:
                array = made(kind, config, how)
            except Unsupported:
                continue
            except Invalid as error:
                if kind not in (str, bytes):
                    assert fails(config, values), (config, kind, error)
                assert identifier in str(error) or "object codec" in str(error)
                continue
            if how == "codecs" and identifier == "shuffle" and kind in (str, bytes):
                continue  # how many bytes there are depends on the values
            array[...] = values


MISTAKEN = {"packbits", "vlen-array"}  # keep one bit of a number; give an array for each


def fails(config: Any, values: Any) -> bool:
    """Whether numcodecs refuses them too, or makes of them what no chunk is."""
    try:
        codec = numcodecs.get_codec(config)
        undone = codec.decode(codec.encode(values.copy()))
        return np.asarray(undone).nbytes != values.nbytes or config["id"] in MISTAKEN
    except Exception:
        return True


@pytest.mark.parametrize(
    ("config", "kind", "told"),
    [
        ({"id": "json2"}, bytes, "'json2' cannot encode bytes: .*not JSON serializable"),
        ({"id": "json2"}, "S3", "'json2' cannot encode dtype .*S3.*"),
        ({"id": "msgpack2"}, "c8", "'msgpack2' cannot encode dtype complex64"),
        ({"id": "bitround", "keepbits": 3}, "i4", "'bitround' cannot encode dtype int32"),
        ({"id": "delta", "dtype": "<i4"}, "i1", "'delta' cannot encode dtype int8"),
        ({"id": "shuffle", "elementsize": 4}, "i1", "shuffle.* elements? .*4|multiple"),
    ],
)
def test_codec_and_dtype_are_named(config: Any, kind: Any, told: str) -> None:
    store: dict[str, Any] = {}
    with pytest.raises(Invalid, match=told):
        stash.create(store, 3, kind, zarr_format=2, filters=[config], codecs=None)
    assert not store


@pytest.mark.parametrize("count", [65_536 * 3, 65_537 * 4, 10**9 + 3, 10**9 + 4, 2**40])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"id": "shuffle", "elementsize": 4}, 4),
        ({"id": "shuffle", "elementsize": 3}, 3),
        ({"id": "delta", "dtype": "<i4"}, 4),
    ],
)
def test_large_chunks_are_judged_by_their_own_size(count: int, config: Any, size: int) -> None:
    if count % size:
        with pytest.raises(Invalid, match=config["id"]):
            made("i1", config, "filters", (count,))
    else:
        made("i1", config, "filters", (count,))


def test_sizes_that_depend_on_the_values_are_not_judged() -> None:
    for compressor in ({"id": "shuffle", "elementsize": 8}, None):
        filters = [{"id": "zlib"}, {"id": "shuffle", "elementsize": 4}]
        options: Any = {"filters": filters, "codecs": compressor}
        stash.create({}, 3, "i4", zarr_format=2, **options)
    for compressor in ({"id": "pcodec"}, {"id": "zfpy"}):
        with pytest.raises(StashError):
            stash.create({}, 3, str, zarr_format=2, codecs=compressor)


def test_what_others_wrote_is_read() -> None:
    document: dict[str, Any] = {
        "zarr_format": 2,
        "shape": [2],
        "chunks": [2],
        "dtype": "<M8[s]",
        "fill_value": 0,
        "order": "C",
        "filters": [{"id": "json2"}],
        "compressor": None,
    }
    nothing = np.array(["NaT", "NaT"], "<M8[s]")
    chunk = numcodecs.get_codec({"id": "json2"}).encode(nothing)
    for dtype, data in (("<M8[s]", chunk), ("|S3", None)):
        told = json.dumps(document | {"dtype": dtype, "fill_value": None}).encode()
        store = {".zarray": told} | ({} if data is None else {"0": bytes(data)})
        array = stash.open(store, mode="r+")
        found = array[...]
        assert np.isnat(found).all() if data else found.tolist() == [b"", b""]
        with pytest.raises(Invalid, match="json2"):
            array[...] = ordinary(np.dtype(dtype))[:2]
