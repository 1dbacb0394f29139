"""What the kernel may not decide: damage that Python notices, layouts beyond it, long calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.engine.native import batch, library
from tensorstash.errors import Corrupt
from tests.support.native import needs_kernel, outcome, turned
from tests.support.oracle import same


@needs_kernel
def test_a_checksum_within_a_frame_is_compared_where_python_compares_it() -> None:
    store: dict[str, bytes] = {}
    codec = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024), "u1")
    stash.create(store, noise.shape, "u1", chunks=(1024, 1024), codecs=[codec])[...] = noise
    chunk = bytearray(store["c/0/0"])
    chunk[300 * 1024 + 700] ^= 1  # of raw blocks, which nothing else checks
    store["c/0/0"] = bytes(chunk)
    for select in (np.s_[[0, 5, 300, 600]], np.s_[0:600], np.s_[300, ::2]):
        with turned(False):
            expected = outcome(lambda: stash.open(store)[select])  # noqa: B023
        found = outcome(lambda: stash.open(store)[select])  # noqa: B023
        if isinstance(expected, tuple):
            assert found == expected
        else:  # Python looks at a small part alone; the kernel may look at all
            assert isinstance(found, tuple) or np.array_equal(found, expected)


@needs_kernel
def test_an_index_in_another_order_is_read() -> None:
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [4],
            "codecs": [{"name": "bytes"}],
            "index_codecs": [
                {"name": "transpose", "configuration": {"order": [1, 0]}},
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "index_location": "end",
        },
    }
    store: dict[str, bytes] = {}
    data = np.arange(32, dtype="u1")
    stash.create(store, (32,), "u1", chunks=(16,))[...] = 0
    document = json.loads(store["zarr.json"])
    document["codecs"] = [sharding]
    store.clear()
    store["zarr.json"] = json.dumps(document).encode()
    array = stash.open(store, "r+")
    array[...] = data
    assert np.array_equal(stash.open(store)[...], data)
    assert np.array_equal(stash.open(store)[::-3], data[::-3])


@needs_kernel
def test_what_is_beyond_the_kernel_is_left_to_python() -> None:
    many = stash.create({}, (9,), "u1", chunks=(3,), codecs=["crc32c"] * 17)
    many[...] = np.arange(9)
    assert many[...].tolist() == [*range(9)]
    deep = stash.create({}, (2,) * 3 + (1,) * 61, "u1", chunks=(1,) * 64)
    deep[...] = 7
    assert (deep[...] == 7).all()
    huge = stash.create({}, (1 << 62,), "u1", chunks=(1 << 61,), codecs=None)
    assert not huge[5:9].any()


@needs_kernel
def test_one_call_does_no_more_than_a_call_may(monkeypatch: pytest.MonkeyPatch) -> None:
    store: dict[str, bytes] = {}
    data = np.arange(4096, dtype="u2")
    stash.create(store, (4096,), "u2", chunks=(4,), shards=(2048,))[...] = data
    chunk = bytearray(store["c/1"])
    chunk[700] ^= 1
    monkeypatch.setattr(batch, "_CALL_TASKS", 100)
    calls: list[int] = []
    run = batch.Call.run

    def noted(self: Any, jobs: Any, first: int, count: int) -> Any:
        calls.append(count)
        return run(self, jobs, first, count)

    monkeypatch.setattr(batch.Call, "run", noted)
    assert np.array_equal(stash.open(store)[...], data)
    assert max(calls) <= 100
    assert sum(calls) == 1024
    store["c/1"] = bytes(chunk)
    with pytest.raises(Corrupt):
        stash.open(store)[...]
    del store["c/1"]
    assert np.array_equal(stash.open(store)[...], np.where(np.arange(4096) < 2048, data, 0))


@needs_kernel
def test_a_trial_that_cannot_be_made_leaves_its_codec_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: bytes) -> bytes:
        raise ImportError

    monkeypatch.setitem(library._TRIALS, library.BLOSC, missing)
    monkeypatch.setattr(library, "library", library.Library())
    assert library.BLOSC not in library.library.kinds
    assert library.CRC32C in library.library.kinds


@needs_kernel
def test_of_a_large_file_only_the_blocks_wanted_are_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 12, (2, 1 << 20), "u2")
    stash.save(tmp_path / "a", noise, chunks=(1, 1 << 20), codecs=["blosc"])
    array = stash.open(tmp_path / "a", threads=1)
    file = tmp_path / "a" / "c" / "1" / "0"
    whole = file.read_bytes()
    count = len(whole) // 40
    for place in (0, 7, 1 << 19, (1 << 20) - 1):
        assert array[0, place] == noise[0, place]
        assert array[1, place] == noise[1, place]
        same(array[:, place : place + 3000], noise[:, place : place + 3000])
        same(array[1, place::-700001], noise[1, place::-700001])
        for cut in range(8, len(whole), count):  # what was read before must not be taken for it
            file.write_bytes(whole[:cut] + bytes(200) + whole[cut + 200 :])
            array[0, place : place + 9]
            native = outcome(lambda: array[1, place : place + 9])  # noqa: B023
            with turned(False):
                python = outcome(lambda: array[1, place : place + 9])  # noqa: B023
            if isinstance(native, tuple) or isinstance(python, tuple):
                assert native == python
            else:
                same(native, python)
        file.write_bytes(whole)
