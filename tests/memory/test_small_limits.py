"""Under limits of a few chunks everything is as without: the same bits, in smaller steps."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.errors import Invalid, NoMemory
from tensorstash.loading.loader import BatchLoader
from tensorstash.memory import PROCESS
from tests.support.far import FarDriver
from tests.support.oracle import same
from tests.support.remote import remote

MODEL = np.random.default_rng(0).integers(1, 1 << 30, (96, 80)).astype("i4")
CHUNK = 8 * 10 * 4
LAYOUTS: dict[str, dict[str, Any]] = {
    "compressed": {"chunks": (8, 10)},
    "raw": {"chunks": (8, 10), "codecs": None},
    "zstd": {"chunks": (8, 10), "codecs": "zstd"},
    "shards": {"chunks": (8, 10), "shards": (32, 40)},
    "v2": {"chunks": (8, 10), "zarr_format": 2},
    "backwards": {"chunks": (8, 10), "order": "F"},
}
SELECTIONS: list[Any] = [
    np.s_[...],
    np.s_[3],
    np.s_[:, 7],
    np.s_[5:60:3, ::-1],
    np.s_[[90, 1, 1, 40, 7]],
    (np.arange(0, 96, 2), np.arange(48) % 80),
    np.s_[16:24, 30:40],
    np.s_[7, 9],
    MODEL % 5 == 0,
]


@pytest.fixture(autouse=True)
def no_limit_after() -> Iterator[None]:
    kinds = ("in_flight", "prefetched")
    before = {kind: PROCESS.use()[kind] for kind in kinds}  # of tests before, whose errors are kept
    yield
    stash.memory_limit(None)
    assert all(PROCESS.use()[kind] <= before[kind] for kind in kinds)


def place(kind: str, folder: Path) -> Any:
    return {"memory": dict, "file": lambda: folder / "a", "far": FarDriver}[kind]()


def object_bytes(how: dict[str, Any]) -> int:
    return CHUNK * 16 if "shards" in how else CHUNK


SHORT = {
    ("memory", "compressed", 0),
    ("file", "shards", 0),
    ("far", "compressed", "1MiB"),
    ("far", "shards", 0),
}


@pytest.mark.usefixtures("both_paths")
@pytest.mark.parametrize(
    ("kind", "layout", "cache"),
    [
        pytest.param(*case, marks=() if case in SHORT else pytest.mark.long)
        for case in product(("memory", "file", "far"), LAYOUTS, (0, "1MiB"))
    ],
)
def test_arrays(kind: str, layout: str, cache: Any, tmp_path: Path) -> None:
    how = LAYOUTS[layout]
    where = place(kind, tmp_path)
    stash.create(where, MODEL.shape, "i4", **how)[...] = MODEL
    for limit in (object_bytes(how), 3 * object_bytes(how), 20 * object_bytes(how)):
        array = stash.open(where, "r+", cache=cache, memory_limit=limit)
        for selection in SELECTIONS * (2 if cache else 1):
            same(array[selection], MODEL[selection])
            assert array.settings.memory.use()["caches"] <= limit
        model = MODEL.copy()
        for k, selection in enumerate(SELECTIONS):
            model[selection] = k
            array[selection] = k
        same(stash.open(where)[...], model)
        array[...] = MODEL
        same(stash.open(where)[...], MODEL)
        use = array.settings.memory.use()
        assert use["in_flight"] == 0
        array.append(MODEL[:5])
        same(array[-5:], MODEL[:5])
        array.resize(MODEL.shape)


@pytest.mark.parametrize("kind", ["memory", "far"])
@settings(max_examples=15, deadline=None)
@given(limit=st.integers(CHUNK, 40 * CHUNK), rows=st.lists(st.integers(0, 95)), data=st.data())
def test_gathers_and_writes_of_rows(kind: str, limit: int, rows: list[int], data: Any) -> None:
    stash.memory_limit(None)
    where = FarDriver() if kind == "far" else {}
    shards = data.draw(st.sampled_from([None, (24, 20)]))
    if shards is not None:
        limit = max(limit, 24 * 20 * 4)
    array = stash.create(where, MODEL.shape, "i4", chunks=(8, 10), shards=shards)
    array[...] = MODEL
    stash.memory_limit(limit)
    model = MODEL.copy()
    same(array[rows], model[rows])
    values = np.arange(len(rows), dtype="i4")[:, None]
    array[rows] = values
    model[rows] = values
    same(array[...], model)


def test_fewer_requests_are_under_way() -> None:
    driver = FarDriver(concurrency=16)
    array = stash.create(driver, 64 * 1024, "u1", chunks=1024, codecs=None)
    values = np.random.default_rng(0).integers(0, 256, 64 * 1024).astype("u1")
    for limit, most in ((None, 17), (64 * 1024, 17), (8 * 1024, 4), (1024, 1)):
        stash.memory_limit(limit)
        driver.reset()
        array[...] = values
        assert 1 <= driver.most <= most
        driver.reset()
        same(array[...], values)
        assert 1 <= driver.most <= most + 1  # one asks whether it is the same array still
        if limit is None:
            assert driver.most >= 16


def test_one_chunk_alone_is_refused_by_name_where_it_does_not_fit(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (4096,), "u1", chunks=2048)
    array[...] = 1
    small = stash.open(tmp_path / "a", "r+", memory_limit=2047)
    for work in (
        lambda: small[...],
        lambda: small[0],
        lambda: small.__setitem__(slice(5), 2),
        lambda: small.append([1]),
        lambda: stash.copy(small, {}),
        lambda: small.resize(4000),
        lambda: small.writer().__setitem__(3, 1),
    ):
        with pytest.raises(NoMemory, match=r"^one chunk of \S+ has 2048 bytes, .* is 2047; raise"):
            work()
    assert stash.open(tmp_path / "a").shape == (4096,)
    assert stash.open(tmp_path / "a", memory_limit=2048)[...].sum() == 4096
    # Uncompressed, it is read in part, or to where it is wanted.
    raw = stash.create({}, (4096,), "u1", chunks=2048, codecs=None, memory_limit=2048)
    raw[...] = 3
    raw.settings.memory.limit = 100
    assert raw[5] == 3
    assert raw[...].sum() == 3 * 4096


@pytest.mark.parametrize("kind", ["memory", "file", "far"])
@pytest.mark.parametrize("cache", [0, "1MiB"])
@pytest.mark.parametrize("shards", [None, 4096])
def test_a_large_chunk_that_is_not_stored_needs_no_memory(
    shards: int | None, cache: Any, kind: str, tmp_path: Path
) -> None:
    where = place(kind, tmp_path)
    array = stash.create(where, 10_000, "u1", chunks=2048, shards=shards, fill_value=7)
    array[2048:3000] = 1  # the second chunk; of the first shard, where there are shards
    model = np.full(10_000, 7, "u1")
    model[2048:3000] = 1
    small = stash.open(where, cache=cache, memory_limit=2047)
    for selection in (np.s_[3], np.s_[:2048], np.s_[[5, 4096, 9999, 5]], np.s_[2047::-3]):
        same(small[selection], model[selection])
    same(small[4096:], model[4096:])
    same(small[np.arange(9999, 4095, -7)], model[np.arange(9999, 4095, -7)])
    for selection in (2048, np.s_[...], [0, 2100]):
        with pytest.raises(NoMemory, match=r"^one chunk of "):
            small[selection]
    with pytest.raises(stash.errors.NotFound):
        stash.open(where, memory_limit=2047, missing="raise")[4096:]
    assert small.settings.memory.use()["in_flight"] == small.settings.memory.use()["native"] == 0


def test_fields_of_a_large_chunk_that_is_not_stored() -> None:
    where: dict[str, Any] = {}
    stash.create(where, 500, [("a", "i4"), ("b", "f8")], chunks=100, fill_value=0)
    small = stash.open(where, memory_limit=100)
    assert small["b"].tolist() == [0.0] * 500


@pytest.mark.parametrize("kind", ["memory", "far"])
@pytest.mark.parametrize("how", [{}, {"shards": 640}], ids=["chunks", "shards"])
def test_writers(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    where = place(kind, tmp_path)
    array = stash.create(where, 4096, "i4", chunks=64, memory_limit=8 << 10, **how)
    model = np.zeros(4096, "i4")
    with array.writer() as writer:
        for start in range(7):
            writer[start::7] = np.arange(len(model[start::7])) + start
            model[start::7] = np.arange(len(model[start::7])) + start
            assert array.settings.memory.use()["writers"] <= max(2 << 10, 5 * 640)
        for k in range(40):
            writer.append(np.full(100, k, "i4"))
    same(array[:4096], model)
    same(array[4096:], np.repeat(np.arange(40), 100).astype("i4"))
    assert array.settings.memory.use()["writers"] == 0


def test_record_writers() -> None:
    r = stash.create_records(
        {}, {"x": ((16,), "i4"), "t": "str", "n": stash.ragged("i2")}, memory_limit="256KiB"
    )
    with r.writer() as writer:
        for k in range(900):
            writer.append({"x": np.full(16, k), "t": str(k), "n": np.arange(k % 7)})
            assert r.settings.memory.use()["writers"] <= 64 << 10
        for k in range(10):
            writer.extend({"x": np.full((100, 16), k), "t": ["a"] * 100, "n": [[k]] * 100})
    assert len(r) == 1900
    assert r["x"][:900, 3].tolist() == list(range(900))
    assert r["t"][5] == "5"
    assert r["n"][900 + 300].tolist() == [3]
    with r.writer() as writer:
        for k in range(500):
            writer[k] = {"x": np.full(16, -k), "t": "b", "n": []}
    assert r["x"][:500, 0].tolist() == [-k for k in range(500)]


@pytest.mark.parametrize("cache", [0, "1MiB"])
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
def test_copies(far: bool, cache: Any, tmp_path: Path) -> None:
    stash.create(source := FarDriver() if far else {}, MODEL.shape, "i4", chunks=(8, 10))[...] = (
        MODEL
    )
    for k, changes in enumerate([{}, {"chunks": (20, 7)}, {"chunks": 8, "shards": 16}]):
        target: Any = FarDriver() if far else tmp_path / str(k)
        limit = 40 * 20 * 4
        copied = stash.copy(stash.open(source, cache=cache, memory_limit=limit), target, **changes)
        same(copied[...], MODEL)
        assert copied.settings.memory.limit == limit


# -- loaders -------------------------------------------------------------------------------


def batches(loader: Any) -> list[Any]:
    return [{name: list(value) for name, value in batch.items()} for batch in loader]


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("shuffle", [False, True, "exact"])
def test_loaders_give_the_same_batches(shuffle: Any, far: bool) -> None:
    where: Any = FarDriver() if far else {}
    stash.save_records(
        where,
        {
            "x": np.arange(640 * 32).reshape(640, 32),
            "n": [np.arange(k % 5) for k in range(640)],
        },
        rows_per_chunk=16,
    )
    r = stash.open_records(where)
    chunk = 256 << 10  # of the values of ragged rows

    def made(**how: Any) -> Any:
        return BatchLoader(r, 24, shuffle=shuffle, seed=3, lanes=4, pool=8, **how)

    usual = batches(made())
    for limit in (chunk, 4 * chunk, 400 * chunk):
        stash.memory_limit(limit)
        for options in ({}, {"threads": 8}, {"prefetch": 0}, {"threads": 3, "prefetch": 9}):
            for one, other in zip(batches(made(**options)), usual, strict=True):
                for name in ("x", "n"):
                    for a, b in zip(one[name], other[name], strict=True):
                        same(a, b)
        stash.memory_limit(None)
        loader = made(memory_limit=limit)
        state = loader.state_dict()
        assert [len(b["x"]) for b in batches(loader)] == [len(b["x"]) for b in usual]
        loader.load_state_dict(state)
        same(np.array(batches(loader)[1]["x"]), np.array(usual[1]["x"]))


def test_batches_wait_for_room_and_not_for_ever() -> None:
    r = stash.save_records({}, {"x": np.arange(2000.0)})
    loader: BatchLoader[Any] = BatchLoader(r, 10, prefetch=8, memory_limit=4 * 80)
    found = []
    for batch in loader:
        held = loader._budget.use()["prefetched"]  # two, where four fit: half is for the pool
        assert held <= 160
        found.append(batch["x"])
    same(np.concatenate(found), np.arange(2000.0))


def test_a_pool_that_outgrows_the_limit_ends_in_the_midst_of_an_epoch() -> None:
    r = stash.save_records({}, {"x": np.arange(4096)}, rows_per_chunk=16)
    usual = batches(BatchLoader(r, 32, shuffle=True, pool=128, lanes=8))
    loader: BatchLoader[Any] = BatchLoader(r, 32, shuffle=True, pool=128, lanes=8)
    loader._budget.limit = None
    found = []
    for k, batch in enumerate(loader):
        found.append(batch)
        if k == 3:
            stash.memory_limit(1 << 12)
    same(np.concatenate([b["x"] for b in found]), np.concatenate([b["x"] for b in usual]))


# -- places, members, processes ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["redis", pytest.param("obstore", marks=pytest.mark.long)])
def test_servers(kind: str, request: pytest.FixtureRequest) -> None:
    there = remote(kind, request.getfixturevalue)
    url, limit = there.fresh(), 6 * CHUNK * 16
    array = there.create(MODEL.shape, "i4", url=url, memory_limit=limit, **LAYOUTS["shards"])
    array[...] = MODEL
    same(array[...], MODEL)
    array[::5] = 1
    model = MODEL.copy()
    model[::5] = 1
    same(there.open(url, memory_limit=limit, cache="1GiB")[...], model)
    copied = stash.copy(array, there.fresh(), options=there.options, chunks=(8, 10), shards=None)
    same(copied[...], model)


@pytest.mark.parametrize("kind", ["redis", "obstore", "s3fs"])
def test_nothing_large_is_left_to_the_collector(kind: str, request: pytest.FixtureRequest) -> None:
    """What only the collector of cycles frees lies in memory until that comes."""
    there = remote(kind, request.getfixturevalue)
    array = there.create(1 << 20, "u1", chunks=1 << 17, codecs=None)
    array[...] = values = np.random.default_rng(0).integers(0, 256, 1 << 20).astype("u1")
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        array[1:-1] = values[1:-1]
        array[5 :: 1 << 17] = 0
        array[...]
        gc.collect()
        left = [each for one in gc.garbage for each in gc.get_referents(one)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not [one for one in left if isinstance(one, bytes | bytearray) and len(one) > 1 << 16]


def test_members_share_what_their_group_may_have() -> None:
    group = stash.create_group({}, memory_limit="1MiB")
    a, b = group.create("a", 8, "i4"), group.create_group("g").create("b", 8, "i4")
    assert a.settings.memory is b.settings.memory is group.settings.memory
    r = stash.create_records({}, {"x": "i4", "y": "i4"}, memory_limit="1MiB")
    assert {handle.settings.memory for handle in r.source.table._columns_for(False) and [r]} == {
        r.settings.memory
    }
    with pytest.raises(Invalid, match="memory_limit"):
        stash.create_group({}, memory_limit=0)


def _limit_there(array: Any, queue: Any) -> None:
    queue.put((stash.memory_limit(), array.settings.memory.limit, int(array[2])))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_the_limit_goes_to_workers(method: str, tmp_path: Path) -> None:
    array = stash.save(tmp_path / "a", np.arange(4), memory_limit="2MiB")
    stash.memory_limit("3MiB")
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_limit_there, args=(array, queue))
    process.start()
    assert queue.get(timeout=60) == (3 << 20, 2 << 20, 2)
    process.join()
