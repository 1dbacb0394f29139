"""Arrays through the registered codecs, inside and outside of shards, against NumPy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.errors import Conflict, Corrupt, Invalid

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def named(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def shard(*codecs: Any, edges: tuple[int, ...] = (2, 3)) -> dict[str, Any]:
    return named(
        "sharding_indexed",
        chunk_shape=list(edges),
        codecs=[*codecs],
        index_codecs=[LITTLE, {"name": "crc32c"}],
    )


SCALED = [named("scale_offset", offset=-20, scale=2), named("cast_value", data_type="uint8")]
CHAINS: dict[str, list[Any]] = {
    "reshape": [named("reshape", shape=[[0, 1]]), LITTLE],
    "reshape, transpose": [
        *(named("reshape", shape=[[0], 2, 3]), named("transpose", order=[2, 0, 1]), LITTLE),
    ],
    "transpose, reshape": [named("transpose", order=[1, 0]), named("reshape", shape=[-1]), LITTLE],
    "bitround": [named("bitround", keepbits=7), LITTLE, {"name": "zstd"}],
    "packbits": [named("packbits", last_bit=7, padding_encoding="first_byte"), {"name": "crc32c"}],
    "scaled": [*SCALED, {"name": "bytes"}],
    "scaled, packed": [*SCALED, named("packbits")],
    "mapped": [
        named(
            "cast_value",
            data_type="int8",
            scalar_map={"encode": [[7, -1]], "decode": [[-1, 7]]},
        ),
        {"name": "bytes"},
    ],
    "in shards": [shard(*SCALED, {"name": "bytes"})],
    "around shards": [*SCALED, shard({"name": "bytes"})],
    "packed in shards": [shard(named("reshape", shape=[-1]), named("packbits", last_bit=7))],
    "reshaped around shards": [
        *(named("reshape", shape=[[0, 1]]), shard(LITTLE, edges=(6,))),
    ],
    "rounded around shards": [named("bitround", keepbits=7), shard(LITTLE)],
}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(CHAINS)), st.sampled_from([0, 7, 90]), st.data())
def test_arrays_as_numpys(chain: str, fill: int, data: st.DataObject) -> None:
    place: dict[str, Any] = {}
    array = stash.create(
        place, (8, 6), "int16", chunks=(4, 6), codecs=CHAINS[chain], fill_value=fill
    )
    plain = np.full((8, 6), fill, "i2")
    for _ in range(data.draw(st.integers(1, 6))):
        what = data.draw(st.sampled_from(["put", "element", "append", "resize", "open", "fill"]))
        if what == "put":
            ends = st.integers(0, len(plain))
            start, stop = sorted((data.draw(ends), data.draw(ends)))
            shape = (stop - start, 3)
            made = data.draw(st.lists(st.integers(0, 100), min_size=9, max_size=9))
            array[start:stop, 1:4] = plain[start:stop, 1:4] = np.resize(made, shape)
        elif what == "element":
            array[0, 0] = plain[0, 0] = data.draw(st.integers(0, 100))
        elif what == "append":
            array.append(np.full((3, 6), 100, "i2"))
            plain = np.concatenate([plain, np.full((3, 6), 100, "i2")])
        elif what == "resize":
            count = data.draw(st.integers(1, 12))
            array.resize((count, 6))
            more = np.full((max(0, count - len(plain)), 6), fill, "i2")
            plain = np.concatenate([plain[:count], more])
        elif what == "fill":
            array[1:3] = plain[1:3] = fill
        else:
            array = stash.open(place, "r+")
    for read in (array, stash.open(place)):
        np.testing.assert_array_equal(read[...], plain)
        np.testing.assert_array_equal(read[::2, [0, 5, 1]], plain[::2, [0, 5, 1]])
        np.testing.assert_array_equal(read[0], plain[0])
        assert read[-1, 2] == plain[-1, 2]
    copied = stash.copy(place, {})
    np.testing.assert_array_equal(copied[...], plain)
    codecs = json.loads(bytes(place["zarr.json"]))["codecs"]
    assert [codec["name"] for codec in codecs] == [codec["name"] for codec in CHAINS[chain]]
    assert repr(array.codecs)
    assert repr(array.info())


@pytest.mark.parametrize("chain", sorted(CHAINS))
def test_damage_is_said(chain: str) -> None:
    place: dict[str, Any] = {}
    array = stash.create(place, (8, 6), "int16", chunks=(4, 6), codecs=CHAINS[chain])
    array[...] = np.arange(48).reshape(8, 6)
    for key in [key for key in place if key != "zarr.json"]:
        place[key] = place[key][:-1]
    with pytest.raises(Corrupt):
        stash.open(place)[...]


def test_an_absent_chunk_within_a_shard_is_the_fill_value_put_through() -> None:
    place: dict[str, Any] = {}
    codecs = [named("bitround", keepbits=3), shard(LITTLE)]
    array = stash.create(place, (4, 6), "f4", chunks=(4, 6), codecs=codecs, fill_value=1.2345679)
    array[0, 0] = 5
    # What is not stored at all is exact; what is stored beside it is rounded, as it would be alone.
    assert stash.open(place)[3, 5] == np.float32(1.25)


def test_a_handle_notices_another_chain() -> None:
    place: dict[str, Any] = {}
    array = stash.create(place, (8, 6), "int16", chunks=(4, 6), codecs=CHAINS["scaled"])
    document = json.loads(bytes(place["zarr.json"]))
    document["codecs"][0]["configuration"]["offset"] = 3
    place["zarr.json"] = json.dumps(document).encode()
    with pytest.raises(Conflict):
        array.append(np.zeros((1, 6), "i2"))


@pytest.mark.parametrize(
    "index_codecs",
    [
        [named("packbits", last_bit=31)],
        [named("bitround", keepbits=3), LITTLE],
        [named("cast_value", data_type="float32", out_of_range="clamp"), LITTLE],
        [
            named("cast_value", data_type="float64", out_of_range="clamp"),
            LITTLE,
            {"name": "crc32c"},
        ],
        [named("scale_offset", scale=3), LITTLE],
        [named("numcodecs.astype", encode_dtype="<u4", decode_dtype="<u8"), LITTLE],
    ],
    ids=str,
)
@pytest.mark.parametrize("edge", [2, 64])
def test_an_index_of_shards_that_does_not_come_back_is_refused(
    index_codecs: Any, edge: int
) -> None:
    place: dict[str, Any] = {}
    sharding = shard({"name": "bytes"}, edges=(edge,))
    sharding["configuration"]["index_codecs"] = index_codecs
    with pytest.raises(Invalid, match="index_codecs"):
        stash.create(place, (64,), "u1", chunks=(64,), codecs=[sharding])
    assert not place
    sharding["configuration"]["index_codecs"] = [named("reshape", shape=[-1]), named("packbits")]
    array = stash.create(place, (64,), "u1", chunks=(64,), codecs=[sharding])
    array[:5] = [1, 2, 3, 4, 5]
    assert stash.open(place)[:6].tolist() == [1, 2, 3, 4, 5, 0]
