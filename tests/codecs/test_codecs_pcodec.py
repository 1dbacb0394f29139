"""pcodec and zfpy: as compressors of Zarr v2, on times, both ways with zarr-python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import registry

import tensorstash as stash

pytestmark = pytest.mark.filterwarnings("ignore")

DTYPES = ["<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<M8[ns]", "<m8[s]"]


def config(identifier: str) -> dict[str, Any]:
    return {"id": identifier, **({"mode": 4, "tolerance": -1.0} if identifier == "zfpy" else {})}


def values(dtype: str, count: int = 35) -> np.ndarray:
    made = (np.arange(count) * 7 % 23).astype(dtype).reshape(5, -1)
    if made.dtype.kind in "mM":
        made[1, 2] = "NaT"
    return made


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("identifier", ["pcodec", "zfpy"])
def test_a_compressor_of_v2_both_ways(
    identifier: str, dtype: str, order: Any, tmp_path: Path
) -> None:
    pytest.importorskip(identifier)
    if identifier == "zfpy" and (order == "F" or dtype[1:] in ("i2", "u2", "u4", "u8", "f2")):
        return  # zfp has none of these, and numcodecs no other order
    data = values(dtype)
    theirs = zarr.create_array(
        tmp_path / "z", shape=data.shape, chunks=(3, 4), dtype=dtype, zarr_format=2, order=order,
        compressors=registry.get_codec(config(identifier)),
    )  # fmt: skip
    theirs[...] = data
    ours = stash.open(tmp_path / "z", mode="r+")
    assert ours[...].tobytes() == data.tobytes()
    ours[1:3] = data[::-1][1:3]
    expected = data.copy()
    expected[1:3] = data[::-1][1:3]
    assert zarr.open_array(tmp_path / "z")[...].tobytes() == expected.tobytes()
    made = stash.create(
        tmp_path / "a", data.shape, dtype, chunks=(3, 4), zarr_format=2, codecs=config(identifier),
        order=order,
    )  # fmt: skip
    made[...] = data
    document = json.loads((tmp_path / "a" / ".zarray").read_text())
    assert document["compressor"]["id"] == identifier and document["filters"] is None
    assert zarr.open_array(tmp_path / "a")[...].tobytes() == data.tobytes()
    assert stash.open(tmp_path / "a")[...].tobytes() == data.tobytes()


def test_filters_before_it(tmp_path: Path) -> None:
    delta = {"id": "delta", "dtype": "<i4"}
    data = values("<i4")
    made = stash.create(
        tmp_path / "a", data.shape, "<i4", chunks=(3, 4), zarr_format=2, filters=[delta],
        codecs=config("pcodec"),
    )  # fmt: skip
    made[...] = data
    document = json.loads((tmp_path / "a" / ".zarray").read_text())
    assert document["compressor"]["id"] == "pcodec"
    assert [item["id"] for item in document["filters"]] == ["delta"]
    assert np.array_equal(zarr.open_array(tmp_path / "a")[...], data)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9),
    st.sampled_from(["M8[s]", "m8[ns]", "M8[25us]"]),
)
def test_times_in_v3(items: list[int], dtype: str) -> None:
    data = np.array(items, "i8").view(dtype)
    store: dict[str, Any] = {}
    theirs = zarr.create_array(
        zarr.storage.MemoryStore(store), shape=data.shape, chunks=data.shape, dtype=data.dtype,
        serializer=zarr.codecs.numcodecs.PCodec(level=2), compressors=None, filters=None,
        fill_value=0,
    )  # fmt: skip
    theirs[...] = data
    kept = {key: value.to_bytes() for key, value in store.items()}
    assert stash.open(kept)[...].tobytes() == data.tobytes()
    ours = stash.create({}, data.shape, data.dtype, codecs=["numcodecs.pcodec"])
    ours[...] = data
    assert ours[...].tobytes() == data.tobytes()
