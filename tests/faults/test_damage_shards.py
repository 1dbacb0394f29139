"""Damage within shards: the inner chunk, or the shard whose index it is, is named."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Corrupt
from tests.support.damage import CHAINS, CHECKED, DATA, ELSEWHERE, HERE, KEY, noticed, stored

pytestmark = pytest.mark.usefixtures("both_paths")


@pytest.mark.parametrize("size", [0, 1, 67, 68, -1, -20], ids=str)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_shard_that_was_cut(chain: str, size: int) -> None:
    store, array = stored(CHAINS[chain], sharded=True)
    store[KEY] = bad = store[KEY][:size]
    error = noticed(lambda: array[...], KEY, (1, 0))
    assert "shard (1, 0)" in str(error)
    noticed(lambda: stash.open(store, cache="1MiB")[...], KEY, (1, 0))
    for elsewhere in ELSEWHERE:
        assert np.array_equal(array[elsewhere], DATA[elsewhere])
    noticed(lambda: array.__setitem__((5, 1), 7), KEY, (1, 0))
    noticed(lambda: array.__setitem__(np.s_[4:6, 0:2], 7), KEY, (1, 0))
    assert store[KEY] is bad
    array[HERE] = DATA[HERE]
    assert np.array_equal(array[...], DATA)


def test_a_shard_that_grew() -> None:
    store, array = stored("auto", sharded=True)
    store[KEY] += b"\0"
    assert "shard (1, 0)" in str(noticed(lambda: array[...], KEY, (1, 0)))


@pytest.mark.parametrize("chain", CHECKED)
def test_every_flipped_byte_of_a_shard_is_noticed(chain: str) -> None:
    store, array = stored(CHECKED[chain], sharded=True)
    good = store[KEY]
    index = len(good) - 68
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        store[KEY] = bytes(bad)
        with pytest.raises(Corrupt) as caught:
            array[...]
        assert caught.value.key == KEY
        if place >= index:
            assert "shard (1, 0)" in str(caught.value)
            assert caught.value.chunk == (1, 0)
        else:
            assert caught.value.chunk in ((2, 0), (2, 1), (3, 0), (3, 1))
    store[KEY] = good
    assert np.array_equal(array[...], DATA)


def flip_inner(store: dict[str, Any], local: int) -> None:
    """Flip a byte in the ``local``-th inner chunk of shard (1, 0)."""
    index = np.frombuffer(store[KEY][-68:-4], "<u8").reshape(4, 2)
    bad = bytearray(store[KEY])
    bad[int(index[local, 0]) + 5] ^= 4
    store[KEY] = bytes(bad)


@pytest.mark.parametrize("local", range(4))
def test_an_inner_chunk_is_named_by_its_index_in_the_array(local: int) -> None:
    store, array = stored("auto", sharded=True)
    flip_inner(store, local)
    place = (2 + local // 2, local % 2)
    rows, columns = (slice(2 * n, 2 * n + 2) for n in place)
    for cache in (0, "1MiB"):
        noticed(lambda cache=cache: stash.open(store, cache=cache)[...], KEY, place)
    before = store[KEY]
    noticed(lambda: array.__setitem__((2 * place[0], 2 * place[1]), 7), KEY, place)
    assert store[KEY] is before
    for start in range(4, 8, 2):
        for across in range(0, 4, 2):
            if (start // 2, across // 2) != place:
                here = np.s_[start : start + 2, across : across + 2]
                assert np.array_equal(array[here], DATA[here])
                array[start, across] = DATA[start, across]  # its neighbours can still be written
    array[rows, columns] = DATA[rows, columns]  # and it can be replaced whole
    assert np.array_equal(array[...], DATA)


def index_of(store: dict[str, Any], *entries: tuple[int, int]) -> bytes:
    """Shard (1, 0) with an index that holds ``entries``, and the right checksum."""
    codec = stash.open(store).codecs[0].index_codecs[1]  # type: ignore[attr-defined]
    return bytes(codec.encode(np.array(entries, "<u8").tobytes()))


HUGE = 100 << 30
EMPTY = (1 << 64) - 1


@pytest.mark.parametrize(
    "entry",
    [(0, HUGE), (HUGE, 20), (EMPTY - 1, 20), (0, EMPTY), (EMPTY, 0), (EMPTY - 20, 19), (10**9, 0)],
    ids=["huge", "beyond", "wrapping", "half absent", "half absent 2", "wrapping 2", "empty"],
)
@pytest.mark.parametrize("dtype", ["uint16", "string"])
def test_an_index_that_points_nowhere(dtype: str, entry: tuple[int, int]) -> None:
    store: dict[str, Any] = {}
    array = stash.create(store, (4, 4), dtype, chunks=(2, 2), shards=(4, 4))
    data = DATA[:4, :4].astype(str) if dtype == "string" else DATA[:4, :4]
    array[...] = data
    entries = np.frombuffer(store["c/0/0"][-68:-4], "<u8").reshape(4, 2).tolist()
    store["c/0/0"] = store["c/0/0"][:-68] + index_of(store, *entries[:3], entry)
    array = stash.open(store, "r+")
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt) as caught:
            array[2:, 2:]
        with pytest.raises(Corrupt):
            array[3, 3] = data[3, 3]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.key == "c/0/0"
    assert caught.value.chunk in ((1, 1), (0, 0))  # the inner chunk, or the shard
    array[...] = data
    assert array[...].tolist() == data.tolist()


def test_entries_that_overlap_are_only_read() -> None:
    store, _ = stored("auto", sharded=True)
    entries = np.frombuffer(store[KEY][-68:-4], "<u8").reshape(4, 2).tolist()
    store[KEY] = store[KEY][:-68] + index_of(store, *entries[:1] * 4)
    again = stash.open(store)[HERE]
    assert np.array_equal(again, np.tile(DATA[4:6, :2], (2, 2)))
