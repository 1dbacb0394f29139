"""A damaged chunk is noticed, named and contained: other chunks stay readable, a whole write
repairs it, and a write to a part of it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Corrupt, NotFound
from tests.support.damage import (
    CHAINS,
    CHECKED,
    DATA,
    ELSEWHERE,
    HERE,
    KEY,
    UNCHECKED,
    noticed,
    stored,
)

pytestmark = pytest.mark.usefixtures("both_paths")

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "one byte short": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "without its beginning": lambda data: data[1:],
    "one byte long": lambda data: data + b"\0",
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_chunk_of_the_wrong_size(chain: str, damage: str) -> None:
    store, array = stored(CHAINS[chain])
    store[KEY] = bad = DAMAGE[damage](store[KEY])
    noticed(lambda: array[...], KEY, (1, 0))
    noticed(lambda: array[4, 0], KEY, (1, 0))
    noticed(lambda: stash.open(store, cache="1MiB")[...], KEY, (1, 0))
    for elsewhere in ELSEWHERE:
        assert np.array_equal(array[elsewhere], DATA[elsewhere])
    noticed(lambda: array.__setitem__((5, 1), 7), KEY, (1, 0))
    assert store[KEY] is bad
    array[HERE] = DATA[HERE]
    assert np.array_equal(array[...], DATA)


@pytest.mark.parametrize("chain", CHECKED)
def test_every_flipped_byte_is_noticed_with_a_checksum(chain: str) -> None:
    store, array = stored(CHECKED[chain])
    good = store[KEY]
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        store[KEY] = bytes(bad)
        noticed(lambda: array[...], KEY, (1, 0))
    store[KEY] = good
    assert np.array_equal(array[...], DATA)


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("chain", CHECKED)
def test_no_part_of_a_checked_chunk_is_trusted_alone(
    chain: str, sharded: bool, tmp_path: Path
) -> None:
    # Large enough for whatever decodes only as far as it must, from a file or from memory.
    data = np.random.default_rng(0).integers(0, 60000, (256, 512)).astype("uint16")
    for place in ({}, tmp_path / "a"):
        shards = {"shards": (512, 512)} if sharded else {}
        how = {"chunks": (256, 512), "codecs": CHECKED[chain], **shards}
        array = stash.create(place, data.shape, "uint16", **how)
        array[...] = data
        good = bytes(array.driver.get("c/0/0") or b"")
        for at in (30, len(good) // 2, len(good) - 200):
            bad = bytearray(good)
            bad[at] ^= 16
            array.driver.put("c/0/0", bad)
            for corner in ((0, 0), (255, 511), np.s_[100:102, 7]):
                noticed(lambda c=corner, p=place: stash.open(p)[c], "c/0/0", (0, 0))


@pytest.mark.parametrize("chain", UNCHECKED)
def test_without_a_checksum_flips_give_data_or_corrupt(chain: str) -> None:
    store, array = stored(UNCHECKED[chain])
    good = store[KEY]
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        store[KEY] = bytes(bad)
        try:
            found = array[...]
        except Corrupt as error:
            assert (error.key, error.chunk) == (KEY, (1, 0))
            continue
        for elsewhere in ELSEWHERE:
            assert np.array_equal(found[elsewhere], DATA[elsewhere])


def test_another_chunk_in_its_place() -> None:
    store, array = stored("auto")
    # Zarr stores no index in a chunk: one of the same array and shape cannot be told apart.
    store[KEY] = store["c/0/0"]
    assert np.array_equal(array[HERE], DATA[:4, :4])
    for dtype, chunks in (("uint16", (4, 2)), ("uint16", (6, 4)), ("uint8", (4, 4))):
        other: dict[str, Any] = {}
        stash.create(other, (6, 4), dtype, chunks=chunks)[...] = 7
        store[KEY] = other["c/0/0"]
        noticed(lambda: array[...], KEY, (1, 0))
    other_chain: dict[str, Any] = {}
    stash.create(other_chain, (4, 4), "uint16", codecs="zstd")[...] = 7
    store[KEY] = other_chain["c/0/0"]
    noticed(lambda: array[...], KEY, (1, 0))
    store[KEY] = store["zarr.json"]
    noticed(lambda: array[...], KEY, (1, 0))


def test_what_is_no_bytes_in_a_dict() -> None:
    store, array = stored("auto")
    store[KEY] = "text"
    for cache in (0, "1MiB"):
        with pytest.raises(Corrupt, match=r"'c/1/0' is str, not bytes") as caught:
            stash.open(store, cache=cache)[...]
        assert caught.value.key == KEY
    with pytest.raises(Corrupt, match="not bytes"):
        array[5, 1] = 7
    store["zarr.json"] = 5
    with pytest.raises(Corrupt, match=r"zarr\.json"):
        stash.open(store)


# -- metadata, other verbs -------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"", b"{", b"[]", b"null", b"\xff", b"{}" * 2, b"[" * 10**5])
def test_metadata_that_is_no_json(bad: bytes) -> None:
    store, _ = stored("auto")
    store["zarr.json"] = bad
    with pytest.raises(Corrupt, match=r"zarr\.json") as caught:
        stash.open(store)
    assert caught.value.key == "zarr.json"
    assert caught.value.chunk is None
    assert "\n" not in str(caught.value)
    with pytest.raises(Corrupt):
        stash.open_group(store)


def test_damage_below_a_group_is_named_by_its_whole_key() -> None:
    store: dict[str, Any] = {}
    group = stash.create_group(store)
    array = group.create("raw/image", DATA.shape, "uint16", chunks=(4, 4))
    array[...] = DATA
    store["raw/image/c/1/0"] = b"no chunk"
    noticed(lambda: group["raw/image"][...], "raw/image/c/1/0", (1, 0))
    store["raw/image/zarr.json"] = b"no json"
    with pytest.raises(Corrupt) as caught:
        group["raw/image"]
    assert caught.value.key == "raw/image/zarr.json"


def test_v2_damage_is_named_too() -> None:
    store: dict[str, Any] = {}
    array = stash.create(store, DATA.shape, "uint16", chunks=(4, 4), zarr_format=2, order="F")
    array[...] = DATA
    store["1.0"] = store["1.0"][:-1]
    noticed(lambda: array[...], "1.0", (1, 0))
    store[".zarray"] = b"?"
    with pytest.raises(Corrupt, match=r"\.zarray"):
        stash.open(store)


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_growing_over_damage_changes_nothing(sharded: bool) -> None:
    store, array = stored("auto", sharded)
    array.resize((10, 8))
    store["c/2/0"] = store["c/2/0"][:-1]
    document = store["zarr.json"]
    for grow in (lambda: array.append(DATA[:3]), lambda: array.resize((14, 8))):
        noticed(grow, "c/2/0", (2, 0))
        assert store["zarr.json"] is document
        assert np.array_equal(stash.open(store)[:8], DATA[:8])


def test_every_way_to_read_notices() -> None:
    store, array = stored("auto")
    store[KEY] = store[KEY][:-1]
    rows = [5, 5, 0]
    buffer = np.empty(DATA.shape, DATA.dtype)
    for read in (
        lambda: array.oindex[rows, [0, 1]],
        lambda: array.vindex[rows, [0, 1, 0]],
        lambda: array[DATA > 0],
        lambda: array.lazy[::-1].read(),
        lambda: array.read(out=buffer),
        lambda: array.blocks[1],
        lambda: list(array.iter_blocks()),
        lambda: list(array),
        lambda: np.asarray(array),
        lambda: array.torch[...],
        lambda: stash.load(store),
        lambda: stash.copy(array, {}),
    ):
        noticed(read, KEY, (1, 0))
    array.info()
    array.explain()


def test_a_cache_keeps_no_damage() -> None:
    store, _ = stored("auto")
    array = stash.open(store, "r+", cache="1MiB")
    assert np.array_equal(array[...], DATA)
    good = store[KEY]
    store[KEY] = good[:-1]
    noticed(lambda: array[...], KEY, (1, 0))
    store[KEY] = bytes(bytearray(good))
    assert np.array_equal(array[...], DATA)


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("cache", [0, "1MiB"])
def test_absent_is_the_fill_value_or_not_found(sharded: bool, cache: Any) -> None:
    store, _ = stored("auto", sharded)
    del store[KEY]
    assert (stash.open(store, cache=cache)[HERE] == 0).all()
    told = stash.open(store, cache=cache, missing="raise")
    assert np.array_equal(told[:4], DATA[:4])
    with pytest.raises(NotFound) as caught:
        told[...]
    assert repr(KEY) in str(caught.value)
    assert ("(2, 0)" if sharded else "(1, 0)") in str(caught.value)
    assert 'missing="fill"' in str(caught.value)
