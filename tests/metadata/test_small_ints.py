"""int2, int4, uint2 and uint4: in arrays, documents, records and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash import dtype as dtypes
from tensorstash import fill as fills
from tensorstash.errors import Invalid, StashError
from tensorstash.torch import Loader

NAMES = ["int2", "int4", "uint2", "uint4"]
CHAINS: dict[str, Any] = {
    "default": {},
    "v2": {"zarr_format": 2},
    "packbits": {"codecs": ["packbits", "crc32c"]},
    "reshape": {"codecs": [{"name": "reshape", "configuration": {"shape": [-1]}}, "packbits"]},
    "shards": {"shards": (4, 6)},
    "packed in shards": {"shards": (4, 6), "codecs": ["packbits"]},
    "transposed": {"order": "F", "codecs": ["packbits"]},
}


def kind(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name))


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_ask_for_them(name: str) -> None:
    assert dtypes.parse(name) == dtypes.parse(kind(name)) == dtypes.from_v3(name) == kind(name)
    assert dtypes.to_v3(kind(name)) == name
    assert dtypes.native(kind(name)) == kind(name)
    bits = int(name[-1])
    low, high = dtypes.int_range(kind(name))
    assert high - low + 1 == 1 << bits
    assert (low < 0) == (name[0] == "i")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_fill_values(name: str, zarr_format: Any) -> None:
    low, high = dtypes.int_range(kind(name))
    for value in range(low, high + 1):
        made = fills.parse(value, kind(name))
        told = json.loads(json.dumps(fills.to_json(made, kind(name), zarr_format)))
        assert told == value
        for spelled in (told, float(value), str(value)):
            back = fills.from_json(spelled, kind(name), zarr_format)
            assert back.tobytes() == made.tobytes()
        array = stash.create({}, (3,), name, chunks=(2,), fill_value=value, zarr_format=zarr_format)
        array[0] = low
        assert array[...].tolist() == [low, value, value]
        assert f"{value}" in repr(array.info())
    for wrong in (low - 1, high + 1, 0.5, "NaN", "x", [1], None):
        with pytest.raises(Invalid):
            fills.from_json(wrong, kind(name), zarr_format)
    for wrong in (low - 1, high + 1, 0.5, np.int64(16)):
        with pytest.raises(Invalid):
            stash.create({}, (3,), name, fill_value=wrong)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(sorted(CHAINS)), st.data())
def test_arrays_as_numpys(name: str, options: str, data: st.DataObject) -> None:
    low, high = dtypes.int_range(kind(name))
    fill = data.draw(st.integers(low, high))
    place: dict[str, Any] = {}
    chosen = CHAINS[options]
    array = stash.create(place, (8, 6), name, chunks=(2, 3), fill_value=fill, **chosen)
    plain = np.full((8, 6), fill, np.int8)
    rows = st.integers(0, 8)
    for _ in range(data.draw(st.integers(1, 6))):
        what = data.draw(st.sampled_from(["put", "element", "append", "resize", "open"]))
        if what == "put":
            start, stop = sorted((data.draw(rows), data.draw(rows)))
            part = plain[start:stop, 1:5]
            values = data.draw(
                st.lists(st.integers(low, high), min_size=part.size, max_size=part.size)
            )
            made = np.array(values, np.int8).reshape(part.shape)
            array[start:stop, 1:5] = made.astype(kind(name))
            plain[start:stop, 1:5] = made
        elif what == "element" and len(plain):
            value = data.draw(st.integers(low, high))
            array[0, 0] = value
            plain[0, 0] = value
        elif what == "append":
            array.append(np.full((3, 6), high, np.int8).astype(kind(name)))
            plain = np.concatenate([plain, np.full((3, 6), high, np.int8)])
        elif what == "resize":
            count = data.draw(st.integers(1, 12))
            array.resize((count, 6))
            more = np.full((max(0, count - len(plain)), 6), fill, np.int8)
            plain = np.concatenate([plain[:count], more])
        else:
            array = stash.open(place, "r+")
    for read in (array, stash.open(place)):
        got = read[...]
        assert got.dtype == kind(name)
        assert got.tolist() == plain.tolist()
        assert read[::2, [0, 5, 1]].tolist() == plain[::2, [0, 5, 1]].tolist()
        assert read.vindex[[0, -1], [1, 2]].tolist() == plain[[0, -1], [1, 2]].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_they_do_not_hold(name: str) -> None:
    low, high = dtypes.int_range(kind(name))
    array = stash.create({}, (4,), name)
    for wrong in (high + 1, low - 1, 300, [0, 1, 2, high + 1], "x", [[None]]):
        with pytest.raises(StashError):
            array[...] = wrong
    array[...] = [low, high, 0, 1]
    array[1] = 1.0
    assert array[...].tolist() == [low, 1, 0, 1]
    array[...] = np.array([16, 17, 0, 1])  # an array is cast as NumPy casts
    assert array[...].tolist() == [0, 1, 0, 1]


def test_bits_without_a_meaning_are_ignored() -> None:
    place: dict[str, Any] = {}
    array = stash.create(place, (4,), "int4", chunks=(4,), codecs=["bytes"])
    array[...] = 1
    place["c/0"] = bytes([0xF1, 0x8F, 0x0F, 0xFF])
    read = stash.open(place)[...]
    assert read.tolist() == [1, -1, -1, -1]
    copied = stash.save({}, read, codecs=["packbits"])
    assert copied[...].tolist() == [1, -1, -1, -1]


def test_packed_they_take_half_a_byte() -> None:
    place: dict[str, Any] = {}
    stash.create(place, (1000,), "uint4", chunks=(1000,), codecs=["packbits"])[...] = 5
    assert len(place["c/0"]) == 500
    with pytest.raises(Invalid):
        stash.create({}, (4,), "string", codecs=["packbits"])


@pytest.mark.parametrize("name", ["int2", "int4"])
@pytest.mark.parametrize("driver", ["zarr3", "zarr"])
def test_tensorstore_both_ways(name: str, driver: str, tmp_path: Path) -> None:
    """TensorStore 0.1.86 knows the signed two, and no packbits."""
    low, high = dtypes.int_range(kind(name))
    values = np.arange(low, high + 1).astype(kind(name)).reshape(2, -1)
    theirs = str(tmp_path / "theirs")
    metadata: Any = {"shape": values.shape}
    metadata |= {"data_type": name} if driver == "zarr3" else {"dtype": name, "chunks": [2, 2]}
    where = {"driver": driver, "kvstore": {"driver": "file", "path": theirs}}
    made = ts.open({**where, "metadata": metadata}, create=True).result()
    made[...] = values
    assert stash.open(theirs)[...].tolist() == values.tolist()
    ours = tmp_path / "ours"
    array = stash.create(
        ours,
        values.shape,
        name,
        fill_value=low,
        chunks=(1, values.shape[1]),
        zarr_format=3 if driver == "zarr3" else 2,
    )
    array[1] = values[1]
    where["kvstore"] = {"driver": "file", "path": str(ours)}
    back = ts.open(where).result()
    assert np.asarray(back.read().result()).tolist() == [
        [low] * values.shape[1],
        values[1].tolist(),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_and_tables(name: str) -> None:
    low, high = dtypes.int_range(kind(name))
    values = np.array([low, high, 0, 1]).astype(kind(name))
    array = stash.save({}, values)
    wide = torch.uint8 if name[0] == "u" else torch.int8
    tensor = array.torch[...]
    assert tensor.dtype == wide
    assert tensor.tolist() == values.tolist()
    array[...] = tensor.flip(0)
    assert array[...].tolist() == values.tolist()[::-1]
    with pytest.raises(Invalid, match=name):
        array.read(..., out=torch.zeros(4, dtype=wide))
    records = stash.save_records({}, {"q": values, "r": [values[:2], values[:0], values, values]})
    assert records.schema["q"].dtype == kind(name)
    for batch in Loader(records, batch_size=4, shuffle=False):
        assert batch["q"].dtype == wide
        assert batch["q"].tolist() == values.tolist()
    assert [row["q"] for row in records.with_format("python")] == values.tolist()
    assert records.with_format("pandas")[:]["q"].tolist() == values.tolist()
    assert records.with_format("arrow")[:]["q"].to_pylist() == values.tolist()
    again = stash.save_records({}, records)
    assert again[:]["q"].tolist() == values.tolist()
