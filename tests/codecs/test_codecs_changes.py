"""Chunks of which a part changed, encoded from what was made of them before: to the same bytes."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.codec import ChunkSpec, Pipeline
from tensorstash.registry import make_codec
from tests.support.layouts import EXAMPLES


def pipeline(count: int, dtype: str, checksums: int = 1, **how: Any) -> Pipeline:
    tail = [make_codec("blosc", how), *(make_codec("crc32c") for _ in range(checksums))]
    made = np.dtype(dtype)
    codecs = [make_codec("bytes", {"endian": "little"}), *tail]
    return Pipeline(codecs, ChunkSpec((count,), made, np.zeros((), made)[()]))


def filled(data: Any, count: int, dtype: str) -> np.ndarray:
    """Some runs of noise, of numbers that repeat, of zeros."""
    out = np.zeros(count, dtype)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for _ in range(data.draw(st.integers(0, 3))):
        low, high = sorted(data.draw(st.integers(0, count)) for _ in range(2))
        most = data.draw(st.sampled_from([2, 9, 250]))
        out[low:high] = rng.integers(0, most, high - low)
    return out


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_it_is_what_encoding_all_of_it_makes(data: Any) -> None:
    dtype = data.draw(st.sampled_from(["u1", "i2", "f4", "f8"]))
    count = data.draw(st.sampled_from([1, 100, 1 << 16, (1 << 18) + 40, 450_000]))
    how = {
        "cname": data.draw(st.sampled_from(["lz4", "zstd", "blosclz"])),
        "clevel": data.draw(st.sampled_from([0, 1, 5])),
        "shuffle": data.draw(st.sampled_from(["noshuffle", "shuffle", "bitshuffle"])),
        "blocksize": data.draw(st.sampled_from([0, 8 << 10, 32 << 10])),
    }
    made = pipeline(count, dtype, data.draw(st.integers(0, 2)), **how)
    chunk = filled(data, count, dtype)
    before, size = made.encode(chunk), chunk.itemsize
    for _ in range(3):
        low, high = sorted(data.draw(st.integers(0, count)) for _ in range(2))
        chunk[low:high] = filled(data, high - low, dtype)
        found = made.encode_change(chunk, before, low * size, high * size)
        whole = made.encode(chunk)
        if found is not None:
            assert np.array_equal(made.decode(found), chunk)
            assert bytes(found) == bytes(whole)
        before = whole if found is None else found


@pytest.mark.parametrize("kind", ["noise", "numbers", "zeros"])
def test_most_rows_of_a_large_chunk_are_encoded_alone(kind: str) -> None:
    """Or this would be a way that nothing takes."""
    made = pipeline(450_000, "u1", shuffle="noshuffle", blocksize=32 << 10)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 450_000).astype("u1")
    chunk = {"noise": noise, "numbers": noise % 5, "zeros": np.zeros_like(noise)}[kind]
    before, done = made.encode(chunk), 0
    for row in range(0, 60, 3):
        place = slice(7000 * row, 7000 * (row + 1))
        chunk[place] = (
            rng.integers(0, 256 if kind != "numbers" else 4, 7000) if kind != "zeros" else row
        )
        found = made.encode_change(chunk, before, place.start, place.stop)
        whole = made.encode(chunk)
        done += found is not None and bytes(found) == bytes(whole)
        before = found or whole
    assert done > 15


def test_rows_that_are_replaced_are_stored_as_by_a_fresh_handle(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    schema = {"x": ((7000,), "u1"), "y": ((900,), "f4")}
    for k in range(2):
        stash.create_records(tmp_path / str(k), schema, 120, rows_per_chunk=60)
    kept = stash.open_records(tmp_path / "0", "r+")
    model = {"x": np.zeros((120, 7000), "u1"), "y": np.zeros((120, 900), "f4")}
    for i in rng.integers(0, 120, 60).tolist():
        row = {
            "x": rng.integers(0, rng.choice([2, 256]), 7000).astype("u1"),
            "y": rng.integers(0, 9, 900).astype("f4"),
        }
        kept[i] = row
        stash.open_records(tmp_path / "1", "r+")[i] = row
        for name, column in model.items():
            column[i] = row[name]
    for name, column in model.items():
        assert np.array_equal(stash.open_records(tmp_path / "0")[name][...], column)
        for number in range(2):
            files = [tmp_path / str(k) / name / "c" / str(number) / "0" for k in range(2)]
            assert files[0].read_bytes() == files[1].read_bytes()
