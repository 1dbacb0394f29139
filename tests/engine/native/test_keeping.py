"""Local chunks that a cache keeps are decoded, placed and kept by the kernel as Python does it."""

from __future__ import annotations

import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine import native
from tensorstash.engine.caching.cache import Cache
from tensorstash.engine.native import library
from tensorstash.errors import Corrupt, NotFound
from tests.engine.native.test_kernel import CHAINS, DAMAGES, arrays, stored
from tests.support.native import needs_kernel, outcome, same_outcome, turned
from tests.support.oracle import advanced_index, numpy_index, same

pytestmark = needs_kernel
CACHES = st.sampled_from([600, "10MB"])
LAYOUTS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (8, 8)},
    "shards": {"chunks": (8, 8), "shards": (32, 32)},
}
DATA = np.arange(4096, dtype="i4").reshape(64, 64)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def tasks() -> int:
    return native.counts().get("tasks", 0)


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data(), CACHES, st.sampled_from([1, 2]), st.booleans(), st.sampled_from([None, "1MB"]))
def test_what_is_read_is_the_same(
    data: st.DataObject, cache: Any, threads: int, immutable: bool, limit: Any
) -> None:
    case = data.draw(arrays())
    files = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as folder:
        location: Any = Path(folder) / "a" if files else MemoryDriver()
        with turned(False):
            wanted = stored(location, case)
        one_index = st.one_of(numpy_index(wanted.shape), advanced_index(wanted.shape))
        indices = [data.draw(one_index) for _ in range(3)]
        found = []
        for on in (True, False):
            with turned(on):
                options: dict[str, Any] = {} if limit is None else {"memory_limit": limit}
                array = stash.open(
                    location, cache=cache, threads=threads, immutable=immutable, **options
                )
                results = [
                    outcome(partial(array.__getitem__, i)) for i in (*indices, ..., *indices)
                ]
                found.append(results)
    for one, other in zip(*found, strict=True):
        if isinstance(other, tuple):
            assert one == other
        else:
            same(one, other)


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data(), st.sampled_from(sorted(DAMAGES)), st.integers(0, 1 << 16), st.booleans())
def test_what_is_damaged_is_told_in_the_same_words(
    data: st.DataObject, damage: str, at: int, files: bool
) -> None:
    case = data.draw(arrays())
    with tempfile.TemporaryDirectory() as folder:
        location: Any = Path(folder) / "a" if files else {}
        with turned(False):
            wanted = stored(location, case)
        driver: Any = stash.open(location, "r+").driver if files else None
        store: dict[str, Any] = location if not files else {}
        names = driver.list() if files else store
        keys = sorted(k for k in names if not k.endswith((".json", ".zarray", ".zattrs")))
        if not keys:
            return
        key = keys[at % len(keys)]
        if files:
            driver.put(key, DAMAGES[damage](bytes(driver.get(key) or b""), at))
        else:
            store[key] = DAMAGES[damage](bytes(store[key]), at)
        index = data.draw(st.one_of(st.just(...), numpy_index(wanted.shape)))
        found = []
        for on in (True, False):
            with turned(on):
                array = stash.open(location, cache="10MB", threads=1)
                found.append([outcome(lambda: array[index]) for _ in range(2)])  # noqa: B023
    for one, other in zip(*found, strict=True):
        same_outcome(one, other)


@both_layouts
@pytest.mark.parametrize("files", [True, False], ids=["files", "memory"])
@pytest.mark.parametrize("chain", sorted(set(CHAINS) - {"two", "bz2"}))
def test_the_kernel_does_the_work(
    chain: str, layout: dict[str, Any], files: bool, tmp_path: Path
) -> None:
    location: Any = tmp_path / "a" if files else {}
    stash.save(location, DATA, codecs=CHAINS[chain], **layout)
    array = stash.open(location, cache="10MB")
    rows = np.array([3, 60, 17, 3, 40])
    before = tasks()
    same(array[rows], DATA[rows])
    assert tasks() - before == array.stats.chunks == 32
    same(array[...], DATA)  # what is kept is not decoded again
    assert tasks() - before == array.stats.chunks == 64
    same(array[::3, 5:60], DATA[::3, 5:60])
    assert tasks() - before == array.stats.chunks == 64
    assert array.stats.cache_hits == 32 + 64


@both_layouts
@pytest.mark.parametrize("limit", [None, "40KB"])
def test_no_more_is_kept_than_there_may_be(
    layout: dict[str, Any], limit: Any, tmp_path: Path
) -> None:
    stash.save(tmp_path / "a", DATA, **layout)
    options: dict[str, Any] = {} if limit is None else {"memory_limit": limit}
    array = stash.open(tmp_path / "a", cache=2048, threads=1, **options)
    before = tasks()
    for _ in range(2):
        same(array[::-1], DATA[::-1])
    assert tasks() - before == array.stats.chunks
    assert array.stats.chunks + array.stats.cache_hits == 128
    assert array.stats.chunks >= 64 + 56
    same(stash.open(tmp_path / "a", cache=100)[...], DATA)  # less than a chunk has


@both_layouts
@pytest.mark.parametrize("files", [True, False], ids=["files", "memory"])
def test_what_is_replaced_meanwhile_is_seen(
    layout: dict[str, Any], files: bool, tmp_path: Path
) -> None:
    location: Any = tmp_path / "a" if files else {}
    stash.save(location, DATA, **layout)
    array = stash.open(location, cache="10MB")
    writer = stash.open(location, "r+")
    same(array[1:], DATA[1:])
    writer[:8, :20] = -1
    changed = DATA.copy()
    changed[:8, :20] = -1
    before, decoded = tasks(), array.stats.chunks
    same(array[1:], changed[1:])
    again = array.stats.chunks - decoded
    assert tasks() - before == again
    assert again == (16 if "shards" in layout else 3)
    del changed
    frozen = stash.open(location, cache="10MB", immutable=True)
    old = frozen[1:]
    writer[...] = 5
    same(frozen[1:], old)
    assert (array[...] == 5).all()


def test_what_is_kept_is_whole_and_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stash.save(tmp_path / "a", DATA, chunks=(8, 8))
    kept = []
    put_all = Cache.put_all

    def noted(self: Cache, values: Any) -> None:
        kept.extend(value for _, _, value, _ in values)
        put_all(self, values)

    monkeypatch.setattr(Cache, "put_all", noted)
    array = stash.open(tmp_path / "a", cache="10MB")
    part = array[::8, ::8]
    part[:] = 0
    assert [(v.shape, v.dtype, v.flags.writeable, v.base) for v in kept] == [
        ((8, 8), DATA.dtype, False, None)
    ] * 64
    same(array[...], DATA)
    assert array.stats.chunks == 64


@both_layouts
def test_absent_chunks(layout: dict[str, Any], tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (64, 64), "i2", fill_value=7, **layout)
    array[8:24, 8:24] = 1
    reader = stash.open(tmp_path / "a", cache="10MB")
    before = tasks()
    assert (reader[...] == 7).sum() == 4096 - 256
    assert tasks() - before == 4
    array[40:48] = 2  # absent until now, and of a shard that was there, or was not
    assert (reader[...] == 2).sum() == 512
    with pytest.raises(NotFound, match=r"chunk \(\d, \d\) is not stored"):
        stash.open(tmp_path / "a", missing="raise", cache="10MB")[...]
    if "shards" not in layout:  # what is kept of one that is gone is not given any more
        os.remove(tmp_path / "a" / "c" / "1" / "1")
        assert (reader[8:16, 8:24] == 7).sum() == 64


def test_threads_that_want_one_chunk_decode_it_once(tmp_path: Path) -> None:
    data = np.arange(1 << 20, dtype="i4").reshape(1024, 1024)
    stash.save(tmp_path / "a", data, chunks=(64, 1024))
    array = stash.open(tmp_path / "a", cache="64MB")
    together = threading.Barrier(4)

    def read(first: int) -> Any:
        together.wait()
        return array[first:]

    with ThreadPoolExecutor(4) as pool:
        for first, found in enumerate(pool.map(read, range(4))):
            same(found, data[first:])
    assert array.stats.chunks == 16


def test_the_right_to_fetch_is_one_threads() -> None:
    cache = Cache(100)
    with cache.flight("a"):
        assert [*cache.rights(["a", "b"])] == ["b"]
    rights = cache.rights(["a", "b"])
    assert [*rights] == ["a", "b"]
    assert not cache.rights(["a"])
    rights.clear()
    assert [*cache.rights(["a"])] == ["a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@both_layouts
def test_a_forked_child_decodes_for_itself(layout: dict[str, Any], tmp_path: Path) -> None:
    stash.save(tmp_path / "a", DATA, **layout)
    array = stash.open(tmp_path / "a", cache="10MB")
    rows = np.arange(63, 0, -1)
    same(array[rows], DATA[rows])
    pid = os.fork()
    if not pid:
        right = (array[rows] == DATA[rows]).all() and array.stats.chunks == 64
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    same(array[rows], DATA[rows])
    assert array.stats.chunks == 64


def test_one_that_is_damaged_does_not_keep_the_others_from_being_kept(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", DATA, chunks=(8, 8))
    (tmp_path / "a" / "c" / "2" / "3").write_bytes(b"\0" * 50)
    array = stash.open(tmp_path / "a", cache="10MB")
    for _ in range(2):
        with pytest.raises(Corrupt, match=r"chunk \(2, 3\)"):
            array[...]
    assert array.stats.chunks == 63


def test_the_kernel_takes_tasks_of_several_jobs_in_order_only() -> None:
    found = library.library
    row = np.array([4, 0, 1, 0, 1, -1, -1], np.int64)
    group = (0,), np.zeros(1, np.int64), row, None
    job = b"", None, None, [b"abcd", b"efgh"], (0,), (1,)

    def run(picked: list[int], versions: Any = None) -> bytes:
        out = bytearray(4)
        found.run(
            *(((), 4, 4, 1), (group,), [job, job], np.frombuffer(out, "V1"), None),
            *(bytearray(len(picked)), (1,), (0,)),
            picked=np.array(picked, np.int64),
            versions=versions,
        )
        return bytes(out)

    assert run([0, 1]) == b"efgh"
    for picked in ([1, 0], [0, 0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="task"):
            run(picked)
    with pytest.raises(ValueError, match="three numbers a task"):
        run([0, 1], np.zeros((1, 3), np.int64))
