"""A damaged chunk is noticed, named and contained: other chunks stay readable, a whole write
repairs it, and a write to a part of it changes nothing."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Corrupt, NotFound

ROOT = Path(__file__).resolve().parent.parent
DATA = np.random.default_rng(0).integers(1, 60000, (12, 8)).astype("uint16")
KEY = "c/1/0"  # rows 4 to 8, columns 0 to 4: chunk or shard (1, 0)
HERE = np.s_[4:8, 0:4]
ELSEWHERE = (np.s_[:4], np.s_[8:], np.s_[:, 4:])

CHECKED: dict[str, Any] = {
    "auto": "auto",
    "zstd": "zstd",
    "gzip": "gzip",
    "crc32c": "crc32c",
    "transposed": [{"name": "transpose", "configuration": {"order": [1, 0]}}, "crc32c"],
    "big endian": [{"name": "bytes", "configuration": {"endian": "big"}}, "crc32c"],
}
UNCHECKED: dict[str, Any] = {
    "raw": None,
    "blosc": ["blosc"],
    "zstd alone": ["zstd"],
    "gzip alone": ["gzip"],
    "lz4": ["numcodecs.lz4"],
    "zlib": ["numcodecs.zlib"],
    "bz2": ["numcodecs.bz2"],
    "lzma": ["numcodecs.lzma"],
    "base64": ["numcodecs.base64"],
    "delta": [{"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}, "numcodecs.zlib"],
}
CHAINS = {**CHECKED, **UNCHECKED}

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "one byte short": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "without its beginning": lambda data: data[1:],
    "one byte long": lambda data: data + b"\0",
    "twice": lambda data: data + data,
}


def stored(chain: Any, sharded: bool = False) -> tuple[dict[str, Any], stash.Array]:
    store: dict[str, Any] = {}
    layout = {"chunks": (2, 2), "shards": (4, 4)} if sharded else {"chunks": (4, 4)}
    array = stash.create(store, DATA.shape, DATA.dtype, codecs=chain, **layout)
    array[...] = DATA
    return store, stash.open(store, "r+")


def noticed(call: Callable[[], Any], key: str, chunk: tuple[int, ...]) -> Corrupt:
    """The error of ``call``, which must say where the damage is and what to do, in one line."""
    with pytest.raises(Corrupt) as caught:
        call()
    error, text = caught.value, str(caught.value)
    assert (error.key, error.chunk) == (key, chunk), text
    assert error.codec, text
    assert repr(key) in text, text
    assert str(chunk) in text, text
    assert "restore it" in text, text
    assert "\n" not in text, text
    return error


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_chunk_of_the_wrong_size(chain: str, damage: str, sharded: bool) -> None:
    if not sharded and chain in ("gzip alone", "zstd alone", "bz2", "lzma") and damage == "twice":
        pytest.skip("two streams in a row are one value of twice the size: see the next test")
    store, array = stored(CHAINS[chain], sharded)
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


@pytest.mark.parametrize("chain", ["gzip alone", "zstd alone", "bz2", "lzma"])
def test_two_streams_where_one_was_expected(chain: str) -> None:
    store, array = stored(CHAINS[chain])
    store[KEY] *= 2
    noticed(lambda: array[...], KEY, (1, 0))


@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("chain", CHECKED)
def test_every_flipped_byte_is_noticed_with_a_checksum(chain: str, sharded: bool) -> None:
    store, array = stored(CHECKED[chain], sharded)
    good = store[KEY]
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        store[KEY] = bytes(bad)
        with pytest.raises(Corrupt) as caught:
            array[...]
        assert caught.value.key == KEY
        inner = caught.value.chunk
        assert inner is not None
        assert (inner[0] // 2, inner[1] // 2) == (1, 0) if "shard " not in str(caught.value) else 1
    store[KEY] = good
    assert np.array_equal(array[...], DATA)


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


# -- shards ------------------------------------------------------------------------------


def damaged_inner(store: dict[str, Any], array: stash.Array, local: int) -> None:
    """Flip a byte in the ``local``-th inner chunk of shard (1, 0)."""
    index = np.frombuffer(store[KEY][-68:-4], "<u8").reshape(4, 2)
    bad = bytearray(store[KEY])
    bad[int(index[local, 0]) + 5] ^= 4
    store[KEY] = bytes(bad)


@pytest.mark.parametrize("local", range(4))
def test_an_inner_chunk_is_named_by_its_index_in_the_array(local: int) -> None:
    store, array = stored("auto", sharded=True)
    damaged_inner(store, array, local)
    place = (2 + local // 2, local % 2)
    rows, columns = (slice(2 * n, 2 * n + 2) for n in place)
    for cache in (0, "1MiB"):
        noticed(lambda cache=cache: stash.open(store, cache=cache)[...], KEY, place)
    before = store[KEY]
    noticed(lambda: array.__setitem__((2 * place[0], 2 * place[1]), 7), KEY, place)
    assert store[KEY] is before
    left = DATA.copy()
    left[rows, columns] = 0
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
    store, array = stored("auto", sharded=True)
    entries = np.frombuffer(store[KEY][-68:-4], "<u8").reshape(4, 2).tolist()
    store[KEY] = store[KEY][:-68] + index_of(store, *entries[:1] * 4)
    again = stash.open(store)[HERE]
    assert np.array_equal(again, np.tile(DATA[4:6, :2], (2, 2)))


# -- claims of 100 GB ----------------------------------------------------------------------

ZSTD = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", HUGE) + b"\x03\x00\x00\x07"  # one RLE block
BLOSC = struct.pack("<4B3I", 2, 1, 1, 2, 2**31 - 1, 2**31 - 1, 64) + bytes(48)
BOMBS: dict[str, tuple[Any, str, bytes]] = {
    "blosc": (["blosc"], "uint16", BLOSC),
    "zstd": (["zstd"], "uint16", ZSTD),
    "zstd without size": (["zstd"], "uint16", b"\x28\xb5\x2f\xfd\x00\xff" + b"\xfa\xff\x0f\7" * 900),
    "gzip": (["gzip"], "uint16", gzip.compress(bytes(300 << 20), 1)),
    "zlib": (["numcodecs.zlib"], "uint16", gzip.zlib.compress(bytes(300 << 20), 1)),
    "lz4": (["numcodecs.lz4"], "uint16", struct.pack("<I", 2**31 - 1) + bytes(60)),
    "strings": (None, "string", struct.pack("<I", 2**32 - 1) + bytes(60)),
    "a string": (None, "string", struct.pack("<18I", 16, 2**31 - 1, *[0] * 16)),
    "strings in zstd": (["zstd"], "string", ZSTD),
    "strings in blosc": (["blosc"], "string", BLOSC),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_claims_100_gb(name: str) -> None:
    chain, dtype, bomb = BOMBS[name]
    store: dict[str, Any] = {}
    array = stash.create(store, (4, 8), dtype, chunks=(4, 4), codecs=chain)
    array[...] = 5
    store["c/0/1"] = bomb
    tracemalloc.start()
    try:
        noticed(lambda: array[...], "c/0/1", (0, 1))
        noticed(lambda: array.__setitem__((0, 5), 5), "c/0/1", (0, 1))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert store["c/0/1"] is bomb
    array[:, 4:] = 5
    assert (array[...] == stash.create({}, (), dtype, fill_value=array[0, 0])[...]).all()


def test_the_process_stays_small(tmp_path: Path) -> None:
    # tracemalloc does not see what C libraries take; the kernel does.
    code = """
import resource, sys
sys.path.insert(0, "tests")
import tensorstash as stash
from test_damage import BOMBS
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stores = []
for chain, dtype, bomb in BOMBS.values():
    store = {}
    array = stash.create(store, (4, 8), dtype, chunks=(4, 4), codecs=chain)
    array[...] = 5
    store["c/0/1"] = bomb
    stores.append(store)
before = peak()
for store in stores:
    try:
        stash.open(store)[...]
    except stash.Corrupt:
        continue
    raise SystemExit("not noticed")
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10, f"{done.stdout.strip()} KiB more"


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
