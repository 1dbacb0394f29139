"""What ``quality()`` says of reading is what is read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.loading.loader import BatchLoader
from tensorstash.sources.arrays import as_source
from tensorstash.torch import Patches, Windows, mix
from tests.support.noting import Noting


def ragged(driver: Any, lengths: Any) -> Any:
    schema = {"id": "int64", "t": stash.ragged("int64")}
    r = stash.create_records(driver, schema, overwrite=True)
    r.extend({"id": np.arange(len(lengths)), "t": [np.arange(n) for n in lengths]})
    return stash.open_records(driver)


def fixed(driver: Any) -> Any:
    columns = {"x": np.zeros((2000, 1024), "f4"), "y": np.zeros(2000)}
    stash.save_records(driver, columns, rows_per_chunk=16)
    return stash.open_records(driver)


def series(driver: Any) -> Any:
    stash.create(driver, (40_000, 8), "f4", chunks=(256, 8))[...] = 1
    return stash.open(driver)


def volume(driver: Any) -> Any:
    stash.create(driver, (96, 96, 96), "u1", chunks=(16, 16, 16))[...] = 1
    return stash.open(driver)


def lognormal(rows: int) -> Any:
    return np.random.default_rng(0).lognormal(5, 1, rows).astype(int)


CASES: dict[str, Any] = {
    "ragged": lambda d: ragged(d, lognormal(8000)),
    "short": lambda d: ragged(d, [10] * 100_000),
    "long": lambda d: ragged(d, [20_000] * 200),
    "view": lambda d: ragged(d, lognormal(8000)).split({"a": 0.3}, seed=1)["a"],
    "fixed": fixed,
    "windows of records": lambda d: fixed(d).windows(24, 8),
    "overlapping": lambda d: Windows(series(d), 16, 4),
    "apart": lambda d: Windows(series(d), 64, 64),
    "a token more": lambda d: Windows(series(d), 129, 128),
    "long windows": lambda d: Windows(series(d), 2000, 16),
    "episodes": lambda d: Windows(series(d), 16, 4, boundaries=np.arange(100, 40_000, 100)),
    "patches": lambda d: Patches(volume(d), (24, 24, 24), count=200),
    "small patches": lambda d: Patches(volume(d), (8, 8, 8), count=200),
    "a grid": lambda d: Patches(volume(d), (24, 24, 24)),
    "mixed": lambda d: mix([ragged(d, [300] * 4000), fixed_and_long(ragged)], [10, 1]),
}


def fixed_and_long(make: Any) -> Any:
    """Another source, of a driver that is counted with the first."""
    found = make(SECOND, [3000] * 400)
    SECOND.reset()
    return found


SECOND = Noting(MemoryDriver())


def read(driver: Noting, feed: BatchLoader[Any]) -> tuple[int, int]:
    """Chunks that an epoch reads, and how many different ones."""
    driver.reset()
    SECOND.reset()
    for _ in feed:
        pass
    keys = [(0, k) for k in driver.read] + [(1, k) for k in SECOND.read]
    found = Counter(key for key in keys if f"/{key[1]}".rpartition("/c/")[1])
    return sum(found.values()), len(found)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("case", sorted(CASES))
def test_chunks_read_are_those_told(case: str, shuffle: bool) -> None:
    driver = Noting(MemoryDriver())
    feed: BatchLoader[Any] = BatchLoader(CASES[case](driver), 32, shuffle=shuffle, prefetch=0)
    told = feed.quality()["read_amplification"]
    driver.reset()
    times, chunks = read(driver, feed)
    assert told == pytest.approx(times / chunks, rel=0.1)


@pytest.mark.parametrize("case", ["overlapping", "fixed", "ragged"])
def test_a_true_shuffle_reads_what_is_told(case: str) -> None:
    driver = Noting(MemoryDriver())
    source = CASES[case](driver)
    if case != "overlapping":
        source = source.where(slice(0, 1000)).select("x" if case == "fixed" else "t")
    feed: BatchLoader[Any] = BatchLoader(
        source, 32, shuffle="exact", prefetch=0, pool_bytes="64KiB"
    )
    told = feed.quality()["read_amplification"]
    times, chunks = read(driver, feed)
    assert told > 5
    assert told == pytest.approx(times / chunks, rel=0.1)


@pytest.mark.parametrize("limit", ["2MiB", "64MiB"])
def test_it_is_told_where_blocks_have_no_room(limit: str) -> None:
    driver = Noting(MemoryDriver())
    feed: BatchLoader[Any] = BatchLoader(
        CASES["fixed"](driver), 32, shuffle=True, prefetch=0, memory_limit=limit
    )
    told = feed.quality()["read_amplification"]
    times, chunks = read(driver, feed)
    assert (told > 5) == (limit == "2MiB")
    assert told == pytest.approx(times / chunks, rel=0.1)


def test_of_several_ranks_each_tells_its_own() -> None:
    driver = Noting(MemoryDriver())
    source = CASES["ragged"](driver)
    feeds: list[BatchLoader[Any]] = [
        BatchLoader(source, 32, shuffle=True, prefetch=0, rank=k, world_size=2, drop_last=True)
        for k in range(2)
    ]
    told = [feed.quality()["read_amplification"] for feed in feeds]
    found = [read(driver, feed) for feed in feeds]
    chunks = sum(1 for key in driver.list("") if "/c/" in key)
    for one, (times, _) in zip(told, found, strict=True):
        assert one == pytest.approx(2 * times / chunks, rel=0.2)


@settings(max_examples=25, deadline=None)
@given(
    chunk=st.integers(1, 200),
    length=st.integers(1, 300),
    stride=st.integers(1, 200),
    shuffle=st.booleans(),
)
def test_windows_of_any_length(chunk: int, length: int, stride: int, shuffle: bool) -> None:
    driver = Noting(MemoryDriver())
    stash.create(driver, (2000, 64), "f4", chunks=(chunk, 64))[...] = 1
    windows = Windows(stash.open(driver), length, stride)
    feed: BatchLoader[Any] = BatchLoader(windows, 8, shuffle=shuffle, prefetch=0)
    told = feed.quality()["read_amplification"]
    times, chunks = read(driver, feed)
    # Of few blocks, some follow each other by luck, and share what was read last.
    blocks = len(windows.blocks)
    shared = (blocks - 1) * -(-length // chunk) if blocks <= 4 else 0
    assert told * chunks == pytest.approx(times, rel=0.15, abs=4 + shared)


def test_what_does_not_say_is_taken_to_read_each_block_once() -> None:
    feed: BatchLoader[Any] = BatchLoader(as_source(np.arange(100)), 7, shuffle=True)
    assert feed.quality()["read_amplification"] == 1.0
    empty: BatchLoader[Any] = BatchLoader(as_source(np.arange(0)), 7, shuffle=True)
    assert empty.quality()["read_amplification"] == 1.0
    raw: BatchLoader[Any] = BatchLoader(
        as_source(stash.save({}, np.arange(10), codecs=None)), 2, shuffle="exact"
    )
    assert raw.quality()["read_amplification"] > 0
