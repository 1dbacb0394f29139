"""Shards: the index once, neighbours together, one version, nothing rewritten in vain."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.codec import ChunkSpec
from tensorstash.driver import Capabilities, Span
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine.local import runs
from tensorstash.errors import Conflict, Corrupt, Invalid
from tensorstash.registry import make_codec
from tensorstash.sharding import BoundSharding, Sharding
from tensorstash.testing.counting import CountingDriver
from tests.support.oracle import count_decodes, same


class Ranges(CountingDriver):
    """Notes the spans that are asked for."""

    def __init__(self, driver: Any, gap: int = 0) -> None:
        super().__init__(driver)
        self.capabilities = Capabilities(local=True, gap_bytes=gap)
        self.spans: list[Span] = []

    def get_ranges(self, key: str, spans: Any, tag: Any = None) -> Any:
        self.spans += spans
        return super().get_ranges(key, spans, tag)


def sharded(shape: Any, chunks: Any, shards: Any, gap: int = 0, **how: Any) -> Any:
    driver = Ranges(MemoryDriver(), gap)
    made = stash.create(driver, shape, "i4", chunks=chunks, shards=shards, **how)
    made[...] = 1 + np.arange(np.prod(shape)).reshape(shape)
    array = stash.open(driver, "r+", threads=1)
    driver.reset()
    driver.spans.clear()
    return array, driver


# -- reading -----------------------------------------------------------------------------------


def test_the_index_is_read_once() -> None:
    array, driver = sharded((16,), (2,), (8,), codecs=None)
    array[0]
    assert driver.spans[0].start < 0  # from the end: the index, before the bytes
    assert len(driver.spans) == 2
    array[5]
    array[3]
    assert [span.start < 0 for span in driver.spans] == [True, False, False, False]
    assert array.read(slice(8, 16)).tolist() == list(range(9, 17))
    assert sum(span.start < 0 for span in driver.spans) == 2
    assert driver.counts["tag"].calls == 4  # of the document, once a read; of no shard


def test_each_inner_chunk_is_decoded_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    array, driver = sharded((16,), (2,), (8,))
    array[0]
    array[8]
    seen = count_decodes(monkeypatch)
    driver.reset()
    assert array[[15, 0, 1, 15, 0, 9, 0]].tolist() == [16, 1, 2, 16, 1, 10, 1]
    assert len(seen) == 3
    assert driver.reads.keys == 2


def encoded_size(array: stash.Array) -> int:
    return int(np.prod(array.chunks)) * array.dtype.itemsize


@pytest.mark.parametrize(("gap", "wanted"), [(7, 2), (8, 1), (9, 1)])
def test_ranges_closer_than_the_gap_are_one(gap: int, wanted: int) -> None:
    # Inner chunks of 8 bytes: between the first and the third lie exactly 8.
    array, driver = sharded((16,), (2,), (16,), gap, codecs=None)
    array[1]
    driver.spans.clear()
    assert array[[0, 4]].tolist() == [1, 5]
    assert len(driver.spans) == wanted
    assert driver.reads.calls == 3  # ranges of one shard go in one call
    spans = [(span.start, span.stop) for span in driver.spans]
    assert spans == ([(0, 24)] if wanted == 1 else [(0, 8), (16, 24)])


def test_a_whole_shard_is_one_range() -> None:
    array, driver = sharded((32, 32), (4, 4), (16, 16))
    array[...]
    assert len(driver.spans) == 8  # four shards: an index and a range each
    cost = array.explain()
    assert (cost.objects, cost.requests, cost.chunks) == (4, 8, 64)


def test_runs_bridge_gaps_and_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [[0, 10], [30, 10], [10, 10], [20, 0], [50, 5]]
    ((spans, members),) = runs(entries, [0, 1, 2, 3, 4], 10)
    assert spans == [Span(0, 55)]
    assert sorted(members[0]) == [0, 1, 2, 3, 4]
    ((spans, members),) = runs(entries, [4, 0, 1], 9)
    assert spans == [Span(0, 10), Span(30, 40), Span(50, 55)]
    assert members == [[0], [1], [4]]
    assert list(runs(entries, [], 5)) == []
    monkeypatch.setattr("tensorstash.engine.local._RUN_BYTES", 25)
    groups = list(runs(entries, [0, 1, 2, 4], 0))
    assert groups[0][0][0] == Span(0, 20)
    assert all(sum(s.stop - s.start for s in spans) < 50 for spans, _ in groups)
    assert sorted(k for _, members in groups for m in members for k in m) == [0, 1, 2, 4]


def test_overlapping_entries_are_read_right() -> None:
    # Writers may store equal inner chunks once and point at them twice.
    sharding = bound((8,), (2,))
    part = b"\1\0\0\0\2\0\0\0"
    index = np.array([[0, 8], [0, 8], [2**64 - 1] * 2, [0, 8]], "u8")
    shard = part + bytes(sharding._index.encode(index))
    array, driver = sharded((8,), (2,), (8,), codecs=None)
    driver.put("c/0", shard)
    assert array[...].tolist() == [1, 2, 1, 2, 0, 0, 1, 2]


def test_a_shard_replaced_while_it_is_read_is_read_again() -> None:
    array, driver = sharded((16,), (2,), (16,), codecs=None)
    array[0]
    other = stash.open(driver.driver, "r+")
    for value in (50, 60):
        other[...] = value
        assert array[3:9].tolist() == [value] * 6
    swapped = []

    class Swapping(MemoryDriver):
        def get_ranges(self, key: str, spans: Any, tag: Any = None) -> Any:
            if tag is not None and not swapped:
                swapped.append(key)
                other[...] = np.arange(16)
            return super().get_ranges(key, spans, tag)

    inner: Any = driver.driver
    reader = stash.open(Swapping(inner._mapping))
    assert reader[...].tolist() == list(range(16))
    assert swapped
    other[...] = 0  # now absent
    assert array[...].tolist() == [0] * 16
    other[2:4] = 7  # and back, in part
    assert array[0:5].tolist() == [0, 0, 7, 7, 0]


def test_a_shard_that_never_holds_still_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstash.engine.local.RETRIES", 5)
    _, driver = sharded((16,), (2,), (16,))

    class Restless(MemoryDriver):
        def get_ranges(self, key: str, spans: Any, tag: Any = None) -> Any:
            found = self.get(key)
            assert found is not None
            self.put(key, found)
            return super().get_ranges(key, spans, tag)

    inner: Any = driver.driver
    with pytest.raises(Conflict, match=r"shard \(0,\)"):
        stash.open(Restless(inner._mapping))[...]


# -- writing -----------------------------------------------------------------------------------


def test_a_full_shard_is_one_put_and_no_read() -> None:
    array, driver = sharded((32,), (4,), (16,))
    array[:16] = 5
    array[...] = 6
    assert driver.reads.calls == 0
    assert driver.counts["tag"].calls == 2  # of the document, once a write; of no shard
    assert driver.writes.calls == 3
    assert array[...].tolist() == [6] * 32


def test_part_of_a_shard_is_one_read_and_one_put(monkeypatch: pytest.MonkeyPatch) -> None:
    array, driver = sharded((32,), (4,), (16,))
    for index in (3, slice(2, 11), [0, 15, 7], slice(0, 4)):
        driver.reset()
        array[index] = 5
        assert (driver.reads.calls, driver.writes.calls) == (1, 1), index
    driver.reset()
    array[10:20] = 7
    assert (driver.reads.calls, driver.writes.calls) == (2, 2)


def test_untouched_inner_chunks_keep_their_bytes() -> None:
    array, driver = sharded((16,), (4,), (16,), codecs="zstd")
    sharding = array._read.chunks.sharding
    before = [bytes(part or b"") for part in sharding.split(driver.get("c/0"))]
    array[5] = 99
    after = [bytes(part or b"") for part in sharding.split(driver.get("c/0"))]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]
    assert len(driver.get("c/0")) == sum(map(len, after)) + sharding.index_nbytes  # no dead bytes


def test_shards_of_nothing_but_fill() -> None:
    array, driver = sharded((16,), (2,), (8,))
    array[0:8] = 0
    assert driver.get("c/0") is None
    array[8:10] = 0
    sharding = array._read.chunks.sharding
    assert [p is None for p in sharding.split(driver.get("c/1"))] == [True, False, False, False]
    for k in range(10, 16):
        array[k] = 0
    assert not array[...].any()
    array[12] = 4
    assert array[...].tolist() == [0] * 12 + [4, 0, 0, 0]


def test_shards_across_the_edge_of_the_array() -> None:
    model = np.arange(1, 71).reshape(7, 10)
    array = stash.create({}, (7, 10), "i8", chunks=(2, 3), shards=(4, 6))
    array[...] = model
    same(array[...], model)
    array[6:, 9:] = -1
    model[6:, 9:] = -1
    same(array[...], model)
    same(stash.load(array.driver), model)


# -- the layout itself -------------------------------------------------------------------------


def bound(shape: Any, inner: Any, location: str = "end") -> BoundSharding:
    codecs = [make_codec("bytes", {"endian": "little"})]
    spec = ChunkSpec(tuple(shape), np.dtype("i4"), np.zeros((), "i4"))
    return Sharding(inner, codecs, index_location=location).bind(spec)


@pytest.mark.parametrize("location", ["start", "end"])
def test_split_is_the_inverse_of_join(location: str) -> None:
    sharding = bound((4, 4), (2, 2), location)
    for present in product([False, True], repeat=4):
        parts = [bytes([k]) * 16 if here else None for k, here in enumerate(present)]
        shard = sharding.join(parts)
        if not any(present):
            assert shard is None
            continue
        assert [None if p is None else bytes(p) for p in sharding.split(shard)] == parts
        start, stop = sharding.index_span.resolve(len(shard))
        assert stop - start == sharding.index_nbytes == 4 * 16 + 4


@pytest.mark.parametrize("location", ["start", "end"])
def test_damaged_indices_are_noticed(location: str) -> None:
    array, driver = sharded((8,), (2,), (8,), codecs=None)
    sharding = bound((8,), (2,))
    body = bytes(range(1, 33))
    far = 1 << 40
    wrong = {
        "past the end": [[0, 8], [far, 8], [16, 8], [24, 8]],
        "oversized": [[0, far], [8, 8], [16, 8], [24, 8]],
        "wrapping": [[2**64 - 2, 8], [8, 8], [16, 8], [24, 8]],
        "one half absent": [[2**64 - 1, 8], [8, 8], [16, 8], [24, 8]],
        "short": [[0, 4], [8, 8], [16, 8], [24, 8]],
    }
    for entries in wrong.values():
        driver.put("c/0", body + bytes(sharding._index.encode(np.array(entries, "u8"))))
        for call in (lambda: array[...], lambda: array.__setitem__(slice(1, 7), 1)):
            with pytest.raises(Corrupt, match="c/0") as caught:
                call()
            assert caught.value.key == "c/0"
            assert "\n" not in str(caught.value)
    for value in (b"", b"short", body, body * 9):
        driver.put("c/0", value)
        with pytest.raises(Corrupt, match="c/0"):
            array[...]


def test_an_inner_chunk_that_is_damaged_is_named() -> None:
    array, driver = sharded((4, 16), (2, 4), (4, 8), codecs="zstd")
    value = bytearray(driver.get("c/0/1"))
    sharding = array._read.chunks.sharding
    start, stop = sharding.index_span.resolve(len(value))
    offset, size = sharding.decode_index(value[start:stop])[3].tolist()
    value[offset + size // 2] ^= 4
    driver.put("c/0/1", bytes(value))
    with pytest.raises(Corrupt) as caught:
        array[...]
    assert caught.value.chunk == (1, 3)
    assert caught.value.key == "c/0/1"
    with pytest.raises(Corrupt) as caught:
        array[3, 14] = 1
    assert caught.value.chunk == (1, 3)
    assert (array[:, :12] > 0).all()


def test_refused_layouts() -> None:
    for how in (
        {"chunks": (3,), "shards": (8,)},
        {"chunks": (3, 3), "shards": (6, 8)},
        {"chunks": (0,), "shards": (8,)},
        {"chunks": (2,), "shards": (8,), "zarr_format": 2},
    ):
        with pytest.raises(Invalid):
            stash.create({}, (8,) * len(how["chunks"]), "i4", **how)
    with pytest.raises(Invalid, match="index_location"):
        Sharding((2,), [make_codec("bytes")], index_location="middle")
    codecs = [make_codec("bytes", {"endian": "little"})]
    spec = ChunkSpec((8,), np.dtype("i4"), np.zeros((), "i4"))
    with pytest.raises(Invalid, match="fixed size"):
        Sharding((2,), codecs, [*codecs, make_codec("gzip", {"level": 1})]).bind(spec)
