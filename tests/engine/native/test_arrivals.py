"""What arrives from a remote store is decoded and placed by the kernel as Python does it."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine import native
from tensorstash.errors import Corrupt, NotFound
from tests.engine.native.test_kernel import CHAINS, DAMAGES, arrays, stored
from tests.support.far import FarDriver
from tests.support.native import needs_kernel, outcome, same_outcome, turned
from tests.support.oracle import advanced_index, numpy_index, same

pytestmark = needs_kernel
CACHES = st.sampled_from([None, 600, "10MB"])


def opened(driver: FarDriver, cache: Any, **rest: Any) -> Any:
    return stash.open(driver, **({} if cache is None else {"cache": cache}), **rest)


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data(), CACHES, st.integers(0, 99), st.sampled_from([1, 2]))
def test_what_is_read_is_the_same(data: st.DataObject, cache: Any, seed: int, threads: int) -> None:
    case = data.draw(arrays())
    memory = MemoryDriver()
    with turned(False):
        wanted = stored(memory, case)
    indices = [
        data.draw(st.one_of(numpy_index(wanted.shape), advanced_index(wanted.shape)))
        for _ in range(3)
    ]
    found = []
    for on in (True, False):
        with turned(on):
            array = opened(FarDriver(memory, seed=seed), cache, threads=threads)
            results = [outcome(partial(array.__getitem__, i)) for i in (..., *indices, ...)]
            stats = array.stats
            found.append((results, stats.chunks, stats.encoded_bytes, stats.cache_hits))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        if isinstance(other, tuple):
            assert one == other
        else:
            same(one, other)
    if cache != 600:  # where little is kept, what goes depends on the order
        assert found[0][1:] == found[1][1:]


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data(), st.sampled_from(sorted(DAMAGES)), st.integers(0, 1 << 16), CACHES)
def test_what_is_damaged_is_told_in_the_same_words(
    data: st.DataObject, damage: str, at: int, cache: Any
) -> None:
    case = data.draw(arrays())
    memory = MemoryDriver()
    with turned(False):
        wanted = stored(memory, case)
    keys = sorted(key for key in memory.list() if not key.endswith((".json", ".zarray", ".zattrs")))
    if not keys:
        return
    key = keys[at % len(keys)]
    memory.put(key, DAMAGES[damage](bytes(memory.get(key) or b""), at))
    index = data.draw(st.one_of(st.just(...), numpy_index(wanted.shape)))
    found = []
    for on in (True, False):
        with turned(on):
            array = opened(FarDriver(memory, concurrency=1), cache, threads=1)
            found.append([outcome(lambda: array[index]) for _ in range(2)])  # noqa: B023
    for one, other in zip(*found, strict=True):
        same_outcome(one, other)


@pytest.mark.parametrize("cache", [None, "10MB"])
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("chain", sorted(set(CHAINS) - {"two", "bz2"}))
def test_the_kernel_does_the_work(chain: str, sharded: bool, cache: Any) -> None:
    data = np.arange(4096, dtype="i4").reshape(64, 64)
    driver = FarDriver()
    layout = {"chunks": (8, 8), "shards": (32, 32)} if sharded else {"chunks": (8, 8)}
    stash.save(driver, data, codecs=CHAINS[chain], **layout)
    array = opened(driver, cache)
    before = native.counts().get("tasks", 0)
    same(array[...], data)
    assert native.counts()["tasks"] - before == 64
    assert array.stats.chunks == 64
    same(array[::3, 5:60], data[::3, 5:60])
    assert native.counts()["tasks"] - before == 64 + (0 if cache else 64)
    assert array.stats.cache_hits == (64 if cache else 0)


def test_absent_chunks() -> None:
    driver = FarDriver()
    array = stash.create(driver, (40, 40), "i2", chunks=(4, 4), fill_value=7)
    array[8:20, 8:20] = 1
    before = native.counts().get("tasks", 0)
    assert (array[...] == 7).sum() == 1600 - 144
    assert native.counts()["tasks"] - before == 9
    with pytest.raises(NotFound, match=r"chunk \(\d, \d\) is not stored"):
        stash.open(driver, missing="raise")[...]


def test_what_is_kept_is_whole_and_read_only() -> None:
    driver = FarDriver()
    data = np.arange(4096, dtype="i4").reshape(64, 64)
    stash.save(driver, data, chunks=(8, 8))
    array = stash.open(driver, cache="10MB")
    part = array[::8, ::8]
    part[:] = 0
    sent = len(driver.sent)
    same(array[...], data)  # all of every chunk, though an element of each was wanted
    assert array.stats.chunks == 64
    assert len(driver.sent) > sent  # the versions were compared
    stash.open(driver, "r+")[...] = data + 1
    same(array[...], data + 1)


def test_a_shard_that_changes_meanwhile_is_read_anew() -> None:
    """Parts of it come twice; the later ones count, also within one batch."""
    layout = {"chunks": (8, 8), "shards": (128, 128)}
    data = np.arange(128 * 128, dtype="i4").reshape(128, 128)
    memory = MemoryDriver()
    stash.save(memory, data, codecs=None, **layout)
    changes = []

    class Changing(FarDriver):
        def get_many_tagged(self, requests: Any) -> Any:
            for at, found in super().get_many_tagged(requests):
                yield at, found
                if not changes and found is not None and len(found[0]) == 16 * 256:
                    changes.append(at)
                    stash.open(memory, "r+")[...] = data + 3

    reader = stash.open(Changing(memory, concurrency=1), threads=1)
    before = native.counts()["tasks"]
    index = np.array([1, 70, 127])  # of three rows of chunks that lie far apart
    same(reader[index], (data + 3)[index])
    assert changes
    assert native.counts()["tasks"] - before >= 48


def test_of_raw_inner_chunks_only_what_is_wanted_travels() -> None:
    data = np.arange(4 * 65536, dtype="i4").reshape(4, 65536)
    driver = FarDriver()
    stash.save(driver, data, chunks=(1, 65536), shards=(4, 65536), codecs=None)
    for on in (True, False):
        with turned(on):
            array = stash.open(driver)
            array[0, 0]  # the index
            for index, most in (
                (np.s_[1, 7], 4),
                (np.s_[:, 100:200], 1600),
                (np.s_[2, [5, 900, 30]], 3600),
                (np.s_[::-2, 65535:60000:-7], 2 * 22200),
                (np.s_[1], 65536 * 4),
            ):
                before = array.stats.encoded_bytes
                same(array[index], data[index])
                assert array.stats.encoded_bytes - before <= most
    key = next(key for key in driver.list() if key.startswith("c"))
    whole = bytes(driver.get(key) or b"")
    driver.put(key, whole[:1000] + whole[-68:])  # an index that points beyond
    told = []
    for on in (True, False):
        with turned(on):
            told.append([outcome(partial(stash.open(driver).__getitem__, k)) for k in (1, (1, 7))])
    assert told[0] == told[1]
    assert {kind for kind, *_ in told[0]} == {Corrupt}
