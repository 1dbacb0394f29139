"""Metadata documents to specs and back: every rule of Zarr v3."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import zarr
from packaging.version import Version
from zarr.core.metadata.v3 import ArrayV3Metadata

from tensorstash.codec import Pipeline
from tensorstash.errors import Corrupt, Invalid, StashError, Unsupported
from tensorstash.indexing.grid import Grid, RectilinearAxis, RegularAxis
from tensorstash.metadata import zarr2, zarr3
from tensorstash.metadata.spec import KeyEncoding
from tensorstash.registry import make_codec
from tests.support.documents import BYTES, V3, fresh, read3, v3

# --- Zarr v3, reading -----------------------------------------------------------------------


def test_a_whole_v3_document() -> None:
    spec = read3(V3)
    assert spec.shape == (10, 20)
    assert spec.dtype == np.dtype("float32")
    assert spec.grid == Grid.regular((5, 7))
    assert [codec.name for codec in spec.codecs] == ["bytes", "zstd", "crc32c"]
    assert spec.fill.tobytes() == np.float32(np.nan).tobytes()
    assert spec.keys == KeyEncoding("default", "/")
    assert spec.dimension_names == ("y", None)
    assert spec.attributes == V3["attributes"]
    assert spec.zarr_format == 3


@pytest.mark.parametrize(
    ("encoding", "keys"),
    [
        ("default", KeyEncoding("default", "/")),
        ({"name": "default"}, KeyEncoding("default", "/")),
        (
            {"name": "default", "configuration": {"separator": "."}, "must_understand": True},
            KeyEncoding("default", "."),
        ),
        ("v2", KeyEncoding("v2", ".")),
        ({"name": "v2", "configuration": {"separator": "/"}}, KeyEncoding("v2", "/")),
    ],
)
def test_key_encodings(encoding: Any, keys: KeyEncoding) -> None:
    assert read3(v3(chunk_key_encoding=encoding)).keys == keys


@pytest.mark.parametrize(
    "codecs",
    [
        ["bytes", "zstd", "crc32c"],
        [{"name": "bytes"}, {"name": "zstd"}, {"name": "crc32c", "configuration": {}}],
        [BYTES, {"name": "future", "must_understand": False}, {"name": "zstd"}, "crc32c"],
        [BYTES, {"name": "zstd", "must_understand": True}, "crc32c"],
    ],
)
def test_shorthand_omitted_configuration_and_optional_codecs(codecs: Any) -> None:
    spec = read3(v3(codecs=codecs))
    bound = Pipeline(spec.codecs, spec.chunk_spec((5, 7))).codecs
    assert [codec.name for codec in bound] == ["bytes", "zstd", "crc32c"]
    assert bound[0].configuration() == {"endian": "little"}


@pytest.mark.parametrize("shape", [[], [0], [0, 3], [1 << 60, 1 << 60], [1] * 64])
def test_shapes(shape: list[int]) -> None:
    grid = {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in shape]}}
    assert read3(v3(shape=shape, chunk_grid=grid, dimension_names=...)).shape == tuple(shape)


def test_an_edge_of_zero_is_read_where_zarr_python_wrote_it() -> None:
    # Until 3.1; since 3.2 it makes no such array any more, but those made are there.
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, shape=(0, 3), chunks=(1, 3), dtype="i4")
    document = array.metadata.to_dict()
    document["chunk_grid"]["configuration"]["chunk_shape"] = (0, 3)
    if Version(zarr.__version__) < Version("3.2"):
        written = zarr.create_array({}, shape=(0, 3), chunks=(0, 3), dtype="i4")
        assert written.metadata.to_dict() == document
    spec = read3(document)
    assert spec.grid.chunks == (1, 3)
    assert zarr3.array_document(spec)["chunk_grid"]["configuration"]["chunk_shape"] == [1, 3]
    with pytest.raises(Invalid, match="below 1"):
        read3(v3(chunk_grid={"name": "regular", "configuration": {"chunk_shape": [0, 7]}}))


def test_rectilinear_grid() -> None:
    grid = {
        "name": "rectilinear",
        "configuration": {"kind": "inline", "chunk_shapes": [[[2, 3], 4, [1, 1]], 7]},
    }
    spec = read3(v3(chunk_grid=grid))
    assert spec.grid.axes == (RectilinearAxis((2, 2, 2, 4, 1)), RegularAxis(7))
    assert spec.grid.counts(spec.shape) == (4, 3)
    kept = zarr3.array_document(spec)["chunk_grid"]
    assert kept == grid
    again = read3(v3(chunk_grid=spec.grid.document()))
    assert again.grid == spec.grid


@pytest.mark.parametrize(
    ("shapes", "error"),
    [
        ([[[1, 1 << 40]], 7], Unsupported),
        ([[[1 << 62, 4]], 7], Invalid),
        ([[1, 2], 7], Invalid),
        ([[0, 10], 7], Invalid),
        ([[[5, 0], 10], 7], Invalid),
        ([[True] * 10, 7], Invalid),
        ([0, 7], Invalid),
        ([7], Invalid),
        ("x", Invalid),
    ],
)
def test_rectilinear_grids_that_cannot_be(shapes: Any, error: type) -> None:
    grid = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": shapes}}
    with pytest.raises(error):
        read3(v3(chunk_grid=grid))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        *(({key: ...}, Invalid, key) for key in ("shape", "data_type", "fill_value", "codecs")),
        ({"chunk_grid": ...}, Invalid, "chunk_grid"),
        ({"fill_value": None}, Invalid, "fill_value"),
        ({"fill_value": "none"}, Invalid, "fill_value"),
        ({"shape": [10, -1]}, Invalid, "-1"),
        ({"shape": [10, 20.0]}, Invalid, "20.0"),
        ({"shape": [True, 20]}, Invalid, "True"),
        ({"shape": [10, 1 << 63]}, Invalid, "shape"),
        ({"shape": "ab"}, Invalid, "shape"),
        ({"shape": [10]}, Invalid, "chunk_shape"),
        ({"shape": [1] * 65}, Unsupported, "64"),
        ({"chunk_grid": "regular"}, Invalid, "chunk_shape"),
        ({"chunk_grid": {"name": "hexagonal"}}, Unsupported, "hexagonal"),
        ({"chunk_grid": {**V3["chunk_grid"], "must_understand": False}}, Invalid, "optional"),
        ({"chunk_key_encoding": "v4"}, Unsupported, "v4"),
        ({"chunk_key_encoding": {"name": "v2", "must_understand": False}}, Invalid, "optional"),
        (
            {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "-"}}},
            Invalid,
            "separator",
        ),
        (
            {"chunk_key_encoding": {"name": "v2", "configuration": {"seperator": "/"}}},
            Invalid,
            "seperator",
        ),
        ({"data_type": "float31"}, Unsupported, "float32"),
        ({"data_type": {"name": "int8", "must_understand": False}}, Invalid, "optional"),
        ({"codecs": []}, Invalid, "codecs"),
        ({"codecs": ["zstd"]}, Invalid, "bytes"),
        ({"codecs": ["bytes", "bytes"]}, Invalid, "place"),
        ({"codecs": [{"name": "bytes", "endian": "little"}]}, Invalid, "endian"),
        ({"codecs": ["bytes", "zsdt"]}, Unsupported, "zstd"),
        ({"codecs": ["bytes", {"name": "zstd", "configuration": {"levle": 1}}]}, Invalid, "levle"),
        ({"codecs": ["bytes", {"name": "zstd", "configuration": 3}]}, Invalid, "configuration"),
        ({"codecs": [5]}, Invalid, "codec"),
        ({"dimension_names": ["a"]}, Invalid, "dimension_names"),
        ({"dimension_names": [1, 2]}, Invalid, "dimension_names"),
        ({"attributes": [1]}, Invalid, "attributes"),
        ({"storage_transformers": [{"name": "x"}]}, Unsupported, "'x'"),
        ({"storage_transformers": 5}, Invalid, "storage_transformers"),
        ({"atributes": {}}, Invalid, "atributes|attributes"),
        ({"attributes": ..., "atributes": {}}, Invalid, "did you mean 'attributes'"),
        ({"surprise": {"must_understand": True}}, Unsupported, "surprise"),
        ({"surprise": 1}, Unsupported, "surprise"),
        ({"zarr_format": 4}, Unsupported, "4"),
        ({"zarr_format": "3"}, Unsupported, "zarr_format"),
        ({"node_type": "grup"}, Invalid, "node_type"),
    ],
)
def test_v3_documents_that_break_the_rules(changes: dict, error: type, says: str) -> None:
    with pytest.raises(StashError, match=says) as caught:
        read3(v3(**changes))
    assert isinstance(caught.value, (error, Unsupported))
    assert "\n" not in str(caught.value)


def test_nulls_that_zarr_python_wrote_are_read() -> None:
    spec = read3(v3(dimension_names=None, storage_transformers=None, attributes=None))
    assert spec.dimension_names is None
    assert spec.attributes == {}
    document = zarr3.array_document(spec)
    assert "dimension_names" not in document and "storage_transformers" not in document


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"zarr_format": 3,}',
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"null",
        b"3",
        b'"text"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        json.dumps(V3).encode()[:-1],
        b"\0" * 100,
    ],
)
def test_what_is_not_a_json_object_is_corrupt(data: bytes) -> None:
    for parse in (zarr3.parse, zarr2.parse_array, zarr2.parse_group):
        with pytest.raises(Corrupt) as caught:
            parse(data)
        assert caught.value.key
        assert len(str(caught.value)) < 300


def test_deep_documents_are_refused_not_crashed_on() -> None:
    head = '{"name": "sharding_indexed", "configuration": {"chunk_shape": [5, 7], "codecs": ['
    whole = json.dumps(v3(codecs=["HERE"]))
    for depth in (5, 50, 300, 900, 5000):
        chain = head * depth + '"bytes"' + "]}}" * depth
        try:
            spec = zarr3.parse(whole.replace('"HERE"', chain).encode())[1]
        except StashError as error:
            assert depth > 5
            assert len(str(error)) < 300
        else:
            assert spec.shape == (10, 20)


# --- Zarr v3, writing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int64", "float16", "complex64", "M8[ns]", "m8[10s]", "U4", "S3", str, bytes],
)
def test_zarr_python_reads_our_document(dtype: Any) -> None:
    spec = fresh(dtype, dimension_names=("y", None), attributes={"a": 1})
    document = json.loads(zarr3.encode(zarr3.array_document(spec)))
    theirs = ArrayV3Metadata.from_dict(document)
    assert theirs.shape == spec.shape
    assert theirs.chunks == (5, 7)
    assert theirs.dimension_names == ("y", None)
    again = read3(document)
    assert again == spec or again.codecs != spec.codecs  # codecs gain what binding fills in
    assert again.dtype == spec.dtype
    assert again.fill == spec.fill or np.isnat(spec.fill)


def test_what_is_written_is_the_widest_read_form() -> None:
    blosc = make_codec("blosc", {"cname": "lz4"})
    spec = fresh(codecs=(make_codec("bytes"), blosc))
    document = zarr3.array_document(spec)
    assert set(document) == {
        *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding"),
        *("fill_value", "codecs", "attributes"),
    }
    assert document["codecs"][0] == BYTES
    assert document["codecs"][1]["configuration"]["typesize"] == 4
    assert document["codecs"][1]["configuration"]["shuffle"] == "shuffle"
    narrow = zarr3.array_document(fresh("uint8"))
    assert narrow["codecs"][0] == {"name": "bytes"}
    assert narrow["codecs"][2] == {"name": "crc32c"}


def test_a_stored_document_keeps_what_we_do_not_interpret() -> None:
    extra = {"must_understand": False, "anything": [1]}
    document = v3(extra=extra, codecs=["bytes", {"name": "later", "must_understand": False}])
    spec = read3(document)
    changed = dataclasses.replace(
        spec, shape=(99, 20), attributes={"b": 2}, dimension_names=("p", "q")
    )
    written = zarr3.array_document(changed)
    assert written["extra"] == extra
    assert written["codecs"] == document["codecs"]
    assert written["shape"] == [99, 20]
    assert written["attributes"] == {"b": 2}
    assert written["dimension_names"] == ["p", "q"]
    assert written["fill_value"] == "NaN"


def test_a_structured_array_stays_what_it_was() -> None:
    legacy = {"name": "structured", "configuration": {"fields": [["a", "int32"], ["b", "float32"]]}}
    document = v3(data_type=legacy, fill_value="BwAAAAAAwD8=", codecs=["bytes"])
    spec = read3(document)
    assert spec.fill[()].item() == (7, 1.5)
    written = zarr3.array_document(spec)
    assert written["data_type"] == legacy and written["fill_value"] == "BwAAAAAAwD8="
    new = zarr3.array_document(fresh([("a", "i4"), ("b", "f4")]))
    assert new["data_type"]["name"] == "struct"
    assert new["fill_value"] == {"a": 0, "b": 0.0}


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"a": {"b": [1, np.int64(3)]}}, r"a\.b\[1\]"),
        ({"when": np.datetime64("2020")}, "when"),
        ({"s": {1, 2}}, "s is of type set"),
        ({"a": b"x"}, "bytes"),
        ({"a": {3: 4}}, "3"),
    ],
)
def test_attributes_that_json_cannot_hold(attributes: dict, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        zarr3.encode(attributes)


def test_attributes_that_contain_themselves() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(Invalid, match="deep"):
        zarr3.encode(loop)
