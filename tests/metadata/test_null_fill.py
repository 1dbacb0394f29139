"""A ``fill_value`` of null, in Zarr v2 and v3, against what zarr-python writes and reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.errors import Invalid

pytestmark = pytest.mark.filterwarnings("ignore")  # zarr warns of drafts

NUMBERS = ["|b1", "|i1", "<i2", ">i4", "<i8", "|u1", ">u2", "<u4", ">u8"]
FLOATS = ["<f2", ">f4", "<f8", "<c8", ">c16"]
FIXED = ["|S3", "<U4", ">U4", "|V5"]
TIMES = ["<M8[D]", ">M8[ns]", "<M8[10s]", "<m8[s]", ">m8[ms]", "<m8[25us]"]
# zarr 3.1 takes null for the text "0" within records, zarr 3.4 and TensorStore for none.
RECORDS = [[("a", "<i4"), ("b", "<f8")], [("t", "<M8[s]"), ("n", "|u1")], [("t", "<m8[ms]")]]
ALL = [*NUMBERS, *FLOATS, *FIXED, *TIMES, *RECORDS, str]


def bits(values: np.ndarray) -> Any:
    if values.dtype.kind in "OT":
        return list(values)
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_what_zarr_left_out_reads_as_it_reads_there(
    dtype: Any, version: Any, tmp_path: Path
) -> None:
    kind = str if dtype is str else np.dtype(dtype)
    theirs = zarr.create_array(
        tmp_path / "a", shape=(6,), chunks=(3,), dtype=kind, zarr_format=version, fill_value=None
    )
    document = json.loads(
        (tmp_path / "a" / (".zarray" if version == 2 else "zarr.json")).read_text()
    )
    assert (document["fill_value"] is None) == (version == 2)
    expected = theirs[:]
    theirs[:3] = expected[:3]  # of nothing but what an absent chunk holds: not stored
    found = stash.open(tmp_path / "a")[:]
    assert bits(found) == bits(expected)
    if dtype in TIMES:
        assert np.isnat(found).all()
    ours = stash.open(tmp_path / "a", mode="r+")
    ours[3:] = found[:3]
    ours.resize((9,))
    assert bits(zarr.open_array(tmp_path / "a")[:]) == bits(expected[[0] * 9])
    assert bits(stash.open(tmp_path / "a")[:]) == bits(expected[[0] * 9])
    if version == 2:
        again = json.loads((tmp_path / "a" / ".zarray").read_text())
        assert again["fill_value"] is None


@given(st.lists(st.sampled_from([None, 0, -1, 7, 2**40]), min_size=7, max_size=7), st.booleans())
def test_times_among_absent_ones(values: list[int | None], delta: bool) -> None:
    dtype = np.dtype("m8[us]" if delta else "M8[us]")
    data = np.array(["NaT" if v is None else dtype.type(v, "us") for v in values], dtype)
    store: dict[str, Any] = {}
    theirs = zarr.create_array(
        zarr.storage.MemoryStore(store),
        shape=(7,), chunks=(2,), dtype=dtype, zarr_format=2, fill_value=None, compressors=None,
    )  # fmt: skip
    theirs[:] = data
    kept = {key: value.to_bytes() for key, value in store.items()}
    assert bits(stash.open(kept)[:]) == bits(data)
    ours = stash.open(kept, mode="r+")
    ours[:] = np.roll(data, 1)
    assert bits(stash.open(kept)[:]) == bits(np.roll(data, 1))
    # A copy has a fill value of its own, and says so.
    assert bits(stash.copy(ours, {}, zarr_format=3)[:]) == bits(np.roll(data, 1))


def test_a_consolidated_member_too(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g", zarr_format=2)
    group.create_array("t", shape=(3,), chunks=(3,), dtype="M8[D]", fill_value=None)
    zarr.consolidate_metadata(tmp_path / "g", zarr_format=2)
    assert np.isnat(stash.open_group(tmp_path / "g")["t"][:]).all()


@pytest.mark.parametrize("dtype", ["float64", "int32", "string", "bool"])
def test_v3_has_no_null(dtype: str) -> None:
    place: dict[str, Any] = {}
    stash.create(place, (3,), str if dtype == "string" else dtype)
    document = json.loads(bytes(place["zarr.json"]))
    place["zarr.json"] = json.dumps({**document, "fill_value": None}).encode()
    with pytest.raises(Invalid, match="null"):
        stash.open(place)
