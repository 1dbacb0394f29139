"""Where every request is a round trip: what is sent for each use, exactly, and no more."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Buffer, Request, Tag
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Corrupt, NotFound
from tests.support.far import FarDriver
from tests.support.oracle import same

MODEL = np.arange(1, 33 * 20 + 1, dtype="i4").reshape(33, 20)


def far(cache: Any = 0, codecs: Any = "auto", **how: Any) -> tuple[stash.Array, FarDriver]:
    driver = FarDriver()
    stash.create(driver, MODEL.shape, "i4", chunks=(4, 5), codecs=codecs, **how)[...] = MODEL
    opening = {name: how.pop(name) for name in ("immutable",) if name in how}
    array = stash.open(driver, "r+", cache=cache, **opening)
    driver.reset()
    return array, driver


SHARDS: dict[str, Any] = {"shards": (16, 10)}  # 8 inner chunks each; 6 shards, the last 2 of 2

READS: list[tuple[str, dict[str, Any], Any, int]] = [
    ("element", {}, np.s_[7, 3], 1),
    ("row", {}, np.s_[7], 4),
    ("column", {}, np.s_[:, 3], 9),
    ("everything", {}, np.s_[...], 36),
    ("box", {}, np.s_[3:9, 4:6], 6),
    ("backwards", {}, np.s_[::-8, ::-1], 20),
    ("rows, unsorted, repeated", {}, np.s_[[30, 1, 1, 0]], 8),
    ("nothing", {}, np.s_[5:5], 0),
    # a shard whose unwanted rest is smaller than a gap comes whole, in one request
    ("element of a shard", SHARDS, np.s_[7, 3], 1),
    ("row of shards", SHARDS, np.s_[7], 2),
    ("column of shards", SHARDS, np.s_[:, 3], 3),
    ("every shard", SHARDS, np.s_[...], 6),
]


@pytest.mark.parametrize(
    ("how", "index", "requests"), [r[1:] for r in READS], ids=[r[0] for r in READS]
)
def test_a_read_costs_a_request_an_object(how: Any, index: Any, requests: int) -> None:
    array, driver = far(**how)
    same(array[index], MODEL[index])
    look = [("get", "zarr.json")] * bool(requests)  # in the same window, behind them
    assert driver.sent[requests:] == look
    assert requests == len({key for _, key in driver.sent[:requests]})
    assert driver.most == min(requests + len(look), 8)


def test_opening_costs_one_request_and_creating_few() -> None:
    driver = FarDriver()
    stash.create(driver, (4,), "i4")
    assert len(driver.sent) == 4  # is there anything? (all three at once) and the document
    assert driver.most == 3
    driver.reset()
    stash.open(driver)
    assert driver.sent == [("get", "zarr.json")]


def large(inner: tuple[int, int] = (64, 64), **how: Any) -> tuple[stash.Array, FarDriver, Any]:
    """Shards whose parts are worth asking for one by one."""
    model = np.random.default_rng(0).integers(0, 1 << 16, (256, 256), "u2")
    driver = FarDriver()
    stash.create(driver, model.shape, "u2", chunks=inner, shards=(128, 128), codecs=None, **how)[
        ...
    ] = model
    driver.reset()
    return stash.open(driver, "r+"), driver, model


def test_parts_of_shards_cost_their_index_once_and_a_request_a_run() -> None:
    array, driver, model = large()
    driver.reset()
    same(array[0, 0], model[0, 0])
    look = ("get", "zarr.json")  # beside the chunks, once a read
    assert driver.sent == [("get", "c/0/0"), look, ("get", "c/0/0")]  # index, chunk
    same(array[0], model[0])  # two shards: one index known, two neighbours each are one run
    assert len(driver.sent) == 2 + 3 + 2
    same(array[:, 3], model[:, 3])  # chunks 0 and 2 of a shard: 8 KiB apart, two runs
    assert len(driver.sent) == 5 + 1 + 4 + 3
    same(array[...], model)
    assert len(driver.sent) == 10 + 3 + 1 + 4  # one shard was never met: it comes whole
    assert driver.sent.count(look) == 4


@pytest.mark.parametrize("shards", [None, (16, 10)])
def test_what_is_kept_is_compared_in_one_window(shards: Any) -> None:
    array, driver = far(cache="1MiB", shards=shards)
    same(array[...], MODEL)
    first = len(driver.sent)
    read = driver.traffic.bytes_read
    driver.reset()
    same(array[...], MODEL)
    assert len(driver.sent) == first  # one small request an object: has it changed?
    assert driver.traffic.bytes_read == read  # and not a byte moved
    assert array.stats.cache_hits == 36 and array.stats.chunks == 36
    driver.reset()
    stash.open(driver, "r+")[5, 5] = -1
    changed = MODEL.copy()
    changed[5, 5] = -1
    driver.reset()
    same(array[...], changed)
    assert len(driver.sent) == first + bool(shards)  # a new index says where the new bytes are


@pytest.mark.parametrize("shards", [None, (16, 10)])
def test_immutable_asks_nothing_again(shards: Any) -> None:
    driver = FarDriver()
    stash.create(driver, MODEL.shape, "i4", chunks=(4, 5), shards=shards)[...] = MODEL
    array = stash.open(driver, cache="1MiB", immutable=True)
    same(array[...], MODEL)
    driver.reset()
    for index in (..., 5, np.s_[:, 3], (7, 7)):
        same(array[index], MODEL[index])
    assert driver.sent == []


@pytest.mark.parametrize("cache", [0, "1MiB"])
@pytest.mark.parametrize("shards", [None, (16, 10)])
def test_absent_and_deleted_chunks(cache: Any, shards: Any) -> None:
    array, driver = far(cache=cache, shards=shards)
    same(array[...], MODEL)
    key = "c/0/0"
    driver.driver.delete(key)
    gone = MODEL.copy()
    gone[:16, :10] = 0 if shards else gone[:16, :10]
    gone[:4, :5] = 0
    same(array[...], gone)
    strict = stash.open(driver, cache=cache, missing="raise")
    with pytest.raises(NotFound, match=key):
        strict[0, 0]
    same(strict[32], MODEL[32])


class Restless(FarDriver):
    """Its shards are replaced while they are read."""

    def __init__(self, driver: Any, times: int) -> None:
        super().__init__(driver)
        self.times = times
        self.value = 0

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        for i, found in super().get_many_tagged(requests):
            yield i, found
            if self.times:
                self.times -= 1
                self.value += 1
                stash.open(self.driver, "r+")[...] = np.full((256, 256), self.value, "u2")


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_shard_that_changes_meanwhile_is_read_again(times: int) -> None:
    _, quiet, _ = large()
    driver = Restless(quiet.driver, times)
    array = stash.open(driver)
    driver.times, driver.value = times, 0
    found = array[:, 3]
    for shard in (found[:128], found[128:]):  # each of one version, whichever
        assert len(set(shard.tolist())) == 1


def test_a_shard_that_never_holds_still_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstash.engine.remote_shards.RETRIES", 3)
    _, quiet, _ = large()
    array = stash.open(Restless(quiet.driver, 1000))
    with pytest.raises(Conflict, match="faster"):
        array[:, 3]


def test_little_of_a_large_raw_chunk_moves_little() -> None:
    model = np.arange(512 * 512, dtype="f4").reshape(512, 512)
    driver = FarDriver()
    stash.create(driver, model.shape, "f4", chunks=(256, 256), codecs=None)[...] = model
    array = stash.open(driver)
    before = driver.traffic.bytes_read
    same(array[10], model[10])
    same(array[10:12, 300:], model[10:12, 300:])
    assert driver.traffic.bytes_read - before < 6000
    data = driver.driver.get("c/0/0")
    driver.driver.put("c/0/0", bytes(data)[:100])
    with pytest.raises(Corrupt, match="c/0/0"):
        array[10]


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("shards", [None, (128, 128)])
def test_threads_decode_what_arrives(threads: int, shards: Any) -> None:
    model = np.random.default_rng(0).integers(0, 99, (600, 500))
    driver = FarDriver()
    made = stash.create(
        driver, model.shape, model.dtype, chunks=(128, 64), shards=shards, threads=threads
    )
    made[...] = model
    array = stash.open(driver, threads=threads)
    same(array[...], model)
    same(array[::-3, 5:400:7], model[::-3, 5:400:7])
    rows = np.random.default_rng(1).integers(0, 600, 300)
    same(array[rows], model[rows])


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_stops_the_read_and_names_the_chunk(threads: int) -> None:
    model = np.random.default_rng(0).integers(0, 99, (600, 500))
    driver = FarDriver()
    stash.create(driver, model.shape, model.dtype, chunks=(100, 100))[...] = model
    data = bytearray(driver.driver.get("c/3/2") or b"")
    data[len(data) // 2] ^= 1
    driver.driver.put("c/3/2", bytes(data))
    with pytest.raises(Corrupt, match=r"chunk \(3, 2\) at key 'c/3/2'") as caught:
        stash.open(driver, threads=threads)[...]
    assert caught.value.chunk == (3, 2)


def test_threads_that_want_one_chunk_fetch_it_once() -> None:
    array, driver = far(cache="1MiB", codecs="zstd")
    before = driver.traffic.bytes_read
    array[0, 0]
    one = driver.traffic.bytes_read - before
    array, driver = far(cache="1MiB", codecs="zstd")
    before = driver.traffic.bytes_read
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda k: int(array[0, 0]), range(40))]
    assert found == [int(MODEL[0, 0])] * 40
    assert driver.traffic.bytes_read - before == one


def test_what_is_on_its_way_is_waited_for() -> None:
    class Slow(FarDriver):
        def get_many_tagged(self, requests: Any) -> Any:
            time.sleep(0.005)
            yield from super().get_many_tagged(requests)

    driver = Slow()
    stash.save(driver, MODEL, chunks=(4, 5))
    array = stash.open(driver, cache="1MiB")
    before = driver.traffic.bytes_read
    for start in range(0, 33, 4):
        same(array[start : start + 4], MODEL[start : start + 4])
    stored = sum(size for key, size in driver.sizes("c/"))
    assert driver.traffic.bytes_read - before == stored  # every chunk once


# -- writing ----------------------------------------------------------------------------------


WRITES: list[tuple[str, dict[str, Any], Any, int, int]] = [
    # objects covered cost a put, those in part (or at the edge) a get and a put; and a look at the
    # document, which travels with the gets where nothing is put without one
    ("everything", {}, np.s_[...], 5, 36),
    ("whole chunks", {}, np.s_[4:8, 5:15], 1, 2),
    ("element", {}, np.s_[7, 3], 2, 1),
    ("row", {}, np.s_[7], 5, 4),
    ("every shard", SHARDS, np.s_[...], 3, 6),
    ("part of a shard", SHARDS, np.s_[:4, :5], 2, 1),
]


@pytest.mark.parametrize(
    ("how", "index", "gets", "puts"), [w[1:] for w in WRITES], ids=[w[0] for w in WRITES]
)
def test_a_write_costs_a_put_an_object(how: Any, index: Any, gets: int, puts: int) -> None:
    array, driver = far(**how)
    model = MODEL.copy()
    model[index] = array[index] = -model[index]
    verbs = [verb for verb, _ in driver.sent]
    reading = len({key for verb, key in driver.sent if verb == "put"})
    assert (verbs.count("put"), reading) == (puts, puts)
    driver.reset()
    model[index] = array[index] = -model[index]
    verbs = [verb for verb, _ in driver.sent]
    assert (verbs.count("get"), verbs.count("put")) == (gets, puts)
    same(array[...], model)


@pytest.mark.parametrize(("shards", "objects"), [(None, 36), ((16, 10), 6)])
def test_filling_a_new_array_asks_nothing_first(shards: Any, objects: int) -> None:
    driver = FarDriver()
    array = stash.create(driver, MODEL.shape, "i4", chunks=(4, 5), shards=shards)
    driver.reset()
    array[...] = MODEL
    assert driver.sent[0] == ("get", "zarr.json")  # is it still this array?
    assert [verb for verb, _ in driver.sent[1:]] == ["put"] * objects
    same(array[...], MODEL)
    # Something is there after all: noticed by the refused put, and not tried again.
    driver.reset()
    array[...] = -MODEL
    verbs = [verb for verb, _ in driver.sent]
    edges = 4 if shards is None else 2
    assert verbs.count("get") == edges + 1 and objects < verbs.count("put") <= objects + edges
    same(array[...], -MODEL)
    driver.reset()
    array[...] = MODEL
    assert [verb for verb, _ in driver.sent].count("put") == objects
    same(stash.load(driver), MODEL)


def test_filling_does_not_wipe_what_another_handle_appended() -> None:
    driver = FarDriver()
    array = stash.create(driver, MODEL.shape, "i4", chunks=(4, 5))
    stash.open(driver, "r+").append(np.full((3, 20), 7, "i4"))
    array[...] = MODEL  # does not know the longer array
    same(stash.load(driver), np.concatenate([MODEL, np.full((3, 20), 7, "i4")]))


def test_chunks_of_fill_are_deleted_in_one_request() -> None:
    array, driver = far()
    array[:32] = 0
    assert ("delete_many", "") in driver.sent
    assert [verb for verb, _ in driver.sent].count("put") == 0
    assert sorted(driver.driver.list("c/")) == [f"c/8/{k}" for k in range(4)]


def test_raw_chunks_are_not_overwritten_on_their_way() -> None:
    # A batch is encoded ahead of what was sent: each chunk needs memory of its own.
    model = np.arange(64 * 64).reshape(64, 64)

    class Slow(FarDriver):
        def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
            held = [*items]
            super().put_many(held)

    driver = Slow()
    stash.create(driver, model.shape, model.dtype, chunks=(8, 8), codecs=None)[...] = model[::-1]
    same(stash.load(driver), model[::-1])


def test_a_failed_batch_raises_and_the_rest_is_not_sent() -> None:
    class Full(FarDriver):
        def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
            for k, _ in enumerate(items):
                if k == 3:
                    raise stash.NoSpace("no room for 'c/0/3'; free some", key="c/0/3")

    driver = Full(MemoryDriver())
    array = stash.create(driver, (4096, 64), "i8", chunks=(256, 64), threads=2)
    with pytest.raises(stash.NoSpace, match="c/0/3"):
        array[...] = 1


def test_a_lost_lock_stops_an_append() -> None:
    from contextlib import contextmanager

    class Lapsing(FarDriver):
        lost = False

        @contextmanager
        def lock(self, key: str, timeout: float | None = None) -> Iterator[Any]:
            def check() -> None:
                if self.lost:
                    raise Conflict(f"the lock of {key!r} was lost; repeat the call", key=key)

            yield check

    driver = Lapsing()
    array = stash.save(driver, MODEL, chunks=(4, 5))
    array.append(MODEL[:3])
    driver.lost = True
    stored = {key: bytes(driver.driver.get(key) or b"") for key in driver.driver.list()}
    for change in (
        lambda: array.append(MODEL[:9]),
        lambda: array.resize((50, 20)),
        lambda: array.resize((5, 20)),
    ):
        with pytest.raises(Conflict, match="repeat"):
            change()
    assert stored == {key: bytes(driver.driver.get(key) or b"") for key in driver.driver.list()}


def test_copies_overlap_their_round_trips() -> None:
    source, target = FarDriver(), FarDriver()
    array = stash.save(source, MODEL, chunks=(4, 5))
    copied = stash.copy(array, target)
    same(copied[...], MODEL)
    same(stash.load(target), MODEL)


def test_stats_count_what_a_handle_did() -> None:
    array, driver = far()
    assert array.stats == stash.Stats(
        requests=driver.traffic.requests,
        bytes_read=driver.traffic.bytes_read,
        bytes_written=driver.traffic.bytes_written,
    )
    array[:8]
    stats = array.stats
    assert stats.chunks == 8 and stats.encoded_bytes > 0 and stats.decode_seconds > 0
    near = stash.open(driver.driver)
    near[:8]
    assert (near.stats.chunks, near.stats.encoded_bytes) == (8, stats.encoded_bytes)
    assert near.stats.requests == 0
