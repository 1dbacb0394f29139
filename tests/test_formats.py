"""Metadata documents to specs and back: every rule of the specification, and hostile input."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.core.metadata.v3 import ArrayV3Metadata

from tensorstash import dtype as dtypes
from tensorstash import fill as fills
from tensorstash.codec import Pipeline
from tensorstash.errors import Corrupt, Invalid, StashError, Unsupported
from tensorstash.formats import zarr2, zarr3
from tensorstash.formats.document import GroupDocument
from tensorstash.grid import Grid, RectilinearAxis, RegularAxis
from tensorstash.registry import make_codec
from tensorstash.spec import ArraySpec, KeyEncoding

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
V3: dict[str, Any] = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [10, 20],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [5, 7]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": "NaN",
    "codecs": [BYTES, {"name": "zstd", "configuration": {"level": 1}}, {"name": "crc32c"}],
    "attributes": {"unit": "K", "nested": {"a": [1, 2.5, None]}},
    "dimension_names": ["y", None],
    "storage_transformers": [],
}
V2: dict[str, Any] = {
    "zarr_format": 2,
    "shape": [10, 20],
    "chunks": [5, 7],
    "dtype": "<f4",
    "compressor": {"id": "zstd", "level": 1},
    "fill_value": "NaN",
    "order": "C",
    "filters": None,
    "dimension_separator": ".",
}


def v3(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**V3, **changes}.items() if value is not ...}


def v2(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**V2, **changes}.items() if value is not ...}


def read3(document: Any) -> ArraySpec:
    kind, spec = zarr3.parse(json.dumps(document).encode())
    assert kind == "array"
    return spec


def read2(document: Any, attributes: Any = None, **options: Any) -> ArraySpec:
    attrs = None if attributes is None else json.dumps(attributes).encode()
    return zarr2.parse_array(json.dumps(document).encode(), attrs, **options)


def fresh(dtype: Any = "float32", **changes: Any) -> ArraySpec:
    made = dtypes.parse(dtype)
    serializer = {"T": "vlen-utf8", "O": "vlen-bytes"}.get(made.kind, "bytes")
    fields: dict[str, Any] = {
        "shape": (10, 20),
        "dtype": made,
        "grid": Grid.regular((5, 7)),
        "codecs": (make_codec(serializer), make_codec("zstd", {"level": 1}), make_codec("crc32c")),
        "fill": fills.default(made),
    }
    return ArraySpec(**{**fields, **changes})


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


def test_an_edge_of_zero_is_read_where_zarr_python_writes_it() -> None:
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, shape=(0, 3), chunks=(0, 3), dtype="i4")
    document = array.metadata.to_dict()
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
        ({"fill_value": "nan"}, Invalid, "fill_value"),
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
    import dataclasses

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
        ({"s": {1, 2}}, "s is a set"),
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


# --- groups -----------------------------------------------------------------------------------


def test_groups_of_both_versions() -> None:
    members = {"a/b": {"zarr_format": 3, "node_type": "group", "attributes": {}}}
    group = GroupDocument({"x": 1}, members)
    document = zarr3.group_document(group)
    kind, again = zarr3.parse(zarr3.encode(document))
    assert kind == "group" and again == group
    assert zarr3.parse_document(members["a/b"])[0] == "group"
    plain = zarr3.group_document(GroupDocument({"x": 1}))
    assert plain == {"zarr_format": 3, "node_type": "group", "attributes": {"x": 1}}
    old = zarr2.parse_group(b'{"zarr_format": 2}', b'{"x": 1}')
    assert old.attributes == {"x": 1} and old.zarr_format == 2
    assert zarr2.group_document(GroupDocument(zarr_format=2)) == {"zarr_format": 2}


def test_consolidated_v2() -> None:
    documents = {
        "": {".zgroup": {"zarr_format": 2}},
        "a": {".zgroup": {"zarr_format": 2}, ".zattrs": {"k": 1}},
        "a/b": {".zarray": V2},
    }
    data = zarr2.encode(zarr2.consolidated_document(documents))
    assert set(json.loads(data)["metadata"]) == {".zgroup", "a/.zgroup", "a/.zattrs", "a/b/.zarray"}
    group = zarr2.parse_group(b'{"zarr_format": 2}', None, data)
    assert group.consolidated is not None and set(group.consolidated) == {"a", "a/b"}
    kind, inner = zarr2.parse_documents(group.consolidated["a"])
    assert kind == "group" and inner.attributes == {"k": 1}
    kind, array = zarr2.parse_documents(group.consolidated["a/b"])
    assert kind == "array" and array.shape == (10, 20)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"shape": [1]}, StashError),
        ({"consolidated_metadata": 5}, Invalid),
        ({"consolidated_metadata": {"kind": "inline"}}, Invalid),
        ({"consolidated_metadata": {"kind": "elsewhere"}}, Unsupported),
        ({"consolidated_metadata": {"kind": "inline", "metadata": {"a": 1}}}, Invalid),
    ],
)
def test_group_documents_that_cannot_be(changes: dict, error: type) -> None:
    document = {"zarr_format": 3, "node_type": "group", **changes}
    with pytest.raises(error):
        zarr3.parse(json.dumps(document).encode())
    optional = {"kind": "elsewhere", "must_understand": False}
    document = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": optional}
    assert zarr3.parse(json.dumps(document).encode())[1].consolidated is None


# --- Zarr v2 ----------------------------------------------------------------------------------


def test_a_whole_v2_document() -> None:
    spec = read2({**V2, "extra": 1}, {"unit": "K", "_ARRAY_DIMENSIONS": ["y", "x"]})
    assert spec.shape == (10, 20) and spec.grid.chunks == (5, 7)
    assert spec.dtype == np.dtype("float32") and math.isnan(spec.fill)
    assert [codec.name for codec in spec.codecs] == ["bytes", "zstd"]
    assert spec.keys == KeyEncoding("v2", ".")
    assert spec.zarr_format == 2 and spec.fill_defined
    assert spec.dimension_names == ("y", "x")
    assert spec.attributes["unit"] == "K"
    assert zarr2.array_document(spec) == {**V2, "extra": 1}


@pytest.mark.parametrize(
    ("changes", "names", "dtype"),
    [
        ({"order": "F"}, ["transpose", "bytes", "zstd"], "f4"),
        ({"compressor": None}, ["bytes"], "f4"),
        ({"dtype": ">i2", "fill_value": 0}, ["bytes", "zstd"], "i2"),
        ({"compressor": {"id": "gzip", "level": 1}}, ["bytes", "gzip"], "f4"),
        (
            {"compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": -1}},
            ["bytes", "blosc"],
            "f4",
        ),
        (
            {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "fill_value": ""},
            ["vlen-utf8", "zstd"],
            "string",
        ),
        (
            {"dtype": "|O", "filters": [{"id": "vlen-bytes"}], "fill_value": None},
            ["vlen-bytes", "zstd"],
            "bytes",
        ),
        ({"dimension_separator": "/"}, ["bytes", "zstd"], "f4"),
        ({"dimension_separator": ..., "order": ..., "filters": []}, ["bytes", "zstd"], "f4"),
    ],
)
def test_v2_becomes_a_chain(changes: dict, names: list[str], dtype: str) -> None:
    spec = read2(v2(**changes))
    assert [codec.name for codec in spec.codecs] == names
    assert spec.dtype == dtypes.parse(dtype)
    new = ArraySpec(**{**{k: getattr(spec, k) for k in spec.__dataclass_fields__}, "document": {}})
    written = zarr2.array_document(new)
    expected = {**V2, **{k: v for k, v in changes.items() if v is not ...}}
    expected["filters"] = expected["filters"] or None
    if "blosc" in names:
        expected["compressor"] = {**expected["compressor"], "shuffle": 1, "blocksize": 0}
    assert written == expected
    assert ArrayV2Metadata.from_dict(copy.deepcopy(written)).shape == (10, 20)


def test_v2_big_endian_is_native_in_memory() -> None:
    spec = read2(v2(dtype=[["a", ">i4"], ["b", ">f8", [2]]], fill_value=None, order="F"))
    assert spec.dtype == np.dtype([("a", "=i4"), ("b", "=f8", (2,))])
    assert not spec.fill_defined and spec.fill.tobytes() == bytes(20)
    assert spec.codecs[1].configuration() == {"endian": "big"}


def test_v2_structured_fill_is_base64_in_stored_order() -> None:
    stored = np.dtype([("a", ">i4"), ("b", ">f4")])
    fill = np.array((7, 1.5), stored)
    spec = read2(v2(dtype=[["a", ">i4"], ["b", ">f4"]], fill_value=fills.to_json(fill, stored, 2)))
    assert spec.fill[()].item() == (7, 1.5)
    new = ArraySpec(**{**{k: getattr(spec, k) for k in spec.__dataclass_fields__}, "document": {}})
    assert zarr2.array_document(new)["fill_value"] == fills.to_json(fill, stored, 2)
    assert zarr2.array_document(new)["dtype"] == [["a", ">i4"], ["b", ">f4"]]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"shape": ...}, Invalid),
        ({"dtype": "float32"}, Invalid),
        ({"dtype": "|O", "fill_value": 0}, Unsupported),
        ({"order": "A"}, Invalid),
        ({"dimension_separator": "-"}, Invalid),
        ({"chunks": [5]}, Invalid),
        ({"chunks": [0, 7]}, Invalid),
        ({"compressor": "zstd"}, Invalid),
        ({"compressor": {"level": 1}}, Invalid),
        ({"compressor": {"id": "no such codec"}}, Unsupported),
        ({"filters": [{}]}, Invalid),
        ({"filters": {"id": "delta"}}, Invalid),
        ({"zarr_format": 3}, Unsupported),
        ({"fill_value": "abc"}, Invalid),
    ],
)
def test_v2_documents_that_break_the_rules(changes: dict, error: type) -> None:
    with pytest.raises(error) as caught:
        read2(v2(**changes))
    assert "\n" not in str(caught.value)


def test_v2_cannot_spell_everything() -> None:
    keys = KeyEncoding("v2", "/")
    with pytest.raises(Unsupported, match="keys"):
        zarr2.array_document(fresh(zarr_format=2))
    grid = Grid((RectilinearAxis((5, 5)), RegularAxis(7)))
    with pytest.raises(Unsupported, match="shapes"):
        zarr2.array_document(fresh(zarr_format=2, keys=keys, grid=grid))
    chain = (make_codec("transpose", {"order": [0, 1]}), make_codec("bytes"))
    with pytest.raises(Unsupported, match="Transpose"):
        zarr2.array_document(fresh(zarr_format=2, keys=keys, codecs=chain))


# --- hostile documents --------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["bytes", "float32", "regular", "r16", "struct", "<f4", "|O", "sharding_indexed"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["name", "configuration", "id", "fields"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
SHARDED = v3(
    codecs=[
        {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [5, 1],
                "codecs": [BYTES, {"name": "gzip", "configuration": {"level": 1}}],
                "index_codecs": [BYTES, {"name": "crc32c"}],
                "index_location": "start",
            },
        }
    ]
)
RECORD = v3(
    data_type={
        "name": "struct",
        "configuration": {"fields": [{"name": "a", "data_type": "int32"}]},
    },
    fill_value={"a": 3},
)
RECTILINEAR = v3(
    chunk_grid={
        "name": "rectilinear",
        "configuration": {"kind": "inline", "chunk_shapes": [[[2, 3], 4], 7]},
    }
)
GROUP = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {},
    "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {"a": V3}},
}
OLD_RECORD = v2(dtype=[["a", ">i4"], ["b", "<f8", [2]]], fill_value="AAAA", order="F")
OLD_TEXT = v2(dtype="|O", filters=[{"id": "vlen-utf8"}], fill_value="")


def paths(value: Any, where: tuple = ()) -> list[tuple]:
    found = [where]
    if isinstance(value, dict):
        for key, item in value.items():
            found += paths(item, (*where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += paths(item, (*where, index))
    return found


@st.composite
def mutated(draw: Any, documents: list[dict]) -> Any:
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(paths(document)))
        if not where:
            continue
        parent = document
        for step in where[:-1]:
            parent = parent[step]
        what = draw(st.sampled_from(["replace", "delete", "add", "huge"]))
        if what == "delete":
            del parent[where[-1]]
        elif what == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=5))] = draw(JSON)
        elif what == "huge":
            parent[where[-1]] = draw(st.sampled_from([10**30, 1 << 62, -1, 1e308, "x" * 1000]))
        else:
            parent[where[-1]] = draw(JSON)
    return document


def survives(parse: Any, data: bytes) -> None:
    try:
        made = parse(data)
    except StashError as error:
        assert "\n" not in str(error)
        return
    made = made if isinstance(made, tuple) else (None, made)
    assert isinstance(made[1], (ArraySpec, GroupDocument))


@given(mutated([V3, SHARDED, RECORD, RECTILINEAR, GROUP]))
def test_mutated_v3_documents_give_a_spec_or_our_error(document: Any) -> None:
    survives(zarr3.parse, json.dumps(document).encode())


@given(mutated([V2, OLD_RECORD, OLD_TEXT]))
def test_mutated_v2_documents_give_a_spec_or_our_error(document: Any) -> None:
    survives(zarr2.parse_array, json.dumps(document).encode())


@given(JSON)
def test_any_json_gives_a_spec_or_our_error(value: Any) -> None:
    data = json.dumps(value).encode()
    for parse in (zarr3.parse, zarr2.parse_array, zarr2.parse_group):
        survives(parse, data)


@given(st.sampled_from([V3, SHARDED, V2]), st.data())
def test_damaged_bytes_give_a_spec_or_our_error(document: dict, data: st.DataObject) -> None:
    raw = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    survives(zarr3.parse, bytes(raw))
    survives(zarr2.parse_array, bytes(raw))


@given(st.binary(max_size=40))
def test_any_bytes_give_a_spec_or_our_error(data: bytes) -> None:
    for parse in (zarr3.parse, zarr2.parse_array, zarr2.parse_group):
        survives(parse, data)


@given(st.sampled_from(["shape", "data_type", "codecs", "chunk_grid", "fill_value"]), JSON)
def test_one_field_of_anything(key: str, value: Any) -> None:
    survives(zarr3.parse, json.dumps({**V3, key: value}).encode())
    if key in V2:
        survives(zarr2.parse_array, json.dumps({**V2, key: value}).encode())
