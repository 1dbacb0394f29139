"""Metadata documents to specs and back: every rule of Zarr v2, and groups of both."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from zarr.core.metadata.v2 import ArrayV2Metadata

from tensorstash import dtype as dtypes
from tensorstash import fill as fills
from tensorstash.errors import Invalid, StashError, Unsupported
from tensorstash.indexing.grid import Grid, RectilinearAxis, RegularAxis
from tensorstash.metadata import zarr2, zarr3
from tensorstash.metadata.document import GroupDocument
from tensorstash.metadata.spec import ArraySpec, KeyEncoding
from tensorstash.registry import make_codec
from tests.support.documents import V2, fresh, read2, v2

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
    ("dtype", "written", "value"),
    [("<f4", "0", 0.0), (">f8", "-1.5e3", -1500.0), ("<i2", "7", 7), ("<M8[D]", "3", 3)],
)
def test_a_number_in_quotes_is_read_and_put_right(dtype: str, written: str, value: float) -> None:
    # As some OME-Zarr files have it.
    spec = read2(v2(dtype=dtype, fill_value=written))
    assert spec.fill.astype("f8") == value
    assert zarr2.array_document(spec)["fill_value"] == value


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


def test_pickled_objects_are_read_only_when_asked_for() -> None:
    document = v2(dtype="|O", filters=[{"id": "pickle"}], fill_value=None, compressor=None)
    with pytest.raises(Unsupported, match="allow_pickle"):
        read2(document)
    assert read2(document, allow_pickle=True).dtype == np.dtype(object)


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


# --- groups -----------------------------------------------------------------------------------


def test_groups_of_both_versions() -> None:
    inner = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    members = {"a": inner, "a/b": inner}
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
        ({"consolidated_metadata": {"kind": "inline", "metadata": [1]}}, Invalid),
    ],
)
def test_group_documents_that_cannot_be(changes: dict, error: type) -> None:
    document = {"zarr_format": 3, "node_type": "group", **changes}
    with pytest.raises(error):
        zarr3.parse(json.dumps(document).encode())
    optional = {"kind": "elsewhere", "must_understand": False}
    document = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": optional}
    assert zarr3.parse(json.dumps(document).encode())[1].consolidated is None
