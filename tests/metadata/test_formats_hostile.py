"""Random and damaged metadata gives a spec or one of our errors, nothing else."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tensorstash.errors import StashError
from tensorstash.metadata import zarr2, zarr3
from tensorstash.metadata.document import GroupDocument
from tensorstash.metadata.spec import ArraySpec
from tests.support.documents import BYTES, V2, V3, v2, v3

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
