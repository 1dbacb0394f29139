"""Small boxes read by the kernel alone: what NumPy returns, and what is stored now."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorstash as stash
from tensorstash.codecs.blosc import Blosc
from tensorstash.engine import native
from tensorstash.engine.native import batch, library
from tensorstash.engine.native.direct import Small, direct
from tensorstash.errors import Conflict, Corrupt, InvalidSelection, NotFound
from tests.engine.native.test_kernel import CHAINS, random_of
from tests.engine.native.test_kernel import DTYPES as ALL
from tests.support.native import needs_kernel, outcome, turned
from tests.support.oracle import numpy_index, same, shapes

DTYPES = [dtype for dtype in ALL if dtype != "bfloat16"]


def taken(array: stash.Array, index: Any) -> Any:
    """What the kernel alone returns; ``None`` where it declines."""
    tag = array._tag if array._watched else None
    return array._read.small.take(index, tag, array._read.follow)


@st.composite
def indices(draw: Any, shape: tuple[int, ...]) -> Any:
    """Those that the kernel takes, and some that only look so."""
    items: list[Any] = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        at = draw(st.integers(-n - 1, n))
        kinds = [int, int, np.int64, np.uint8, np.array, slice, slice, bool]
        kind = draw(st.sampled_from(kinds))
        if kind is slice:
            items.append(slice(draw(st.none() | st.integers(-n - 1, n + 1)), at))
        elif kind is np.uint8:
            items.append(np.uint8(max(at, 0)))
        else:
            items.append(kind(at))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ...)
    return tuple(items) if len(items) != 1 or draw(st.booleans()) else items[0]


@given(st.data())
def test_it_returns_what_numpy_returns(data: st.DataObject) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=12))
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES)))
    wanted = random_of(dtype, shape, data.draw(st.integers(0, 9)))
    chunks = tuple(data.draw(st.integers(1, 7)) for _ in shape)
    layout: dict[str, Any] = {"chunks": chunks}
    if data.draw(st.booleans()):
        layout["shards"] = tuple(n * data.draw(st.integers(1, 3)) for n in chunks)
    chain = data.draw(st.sampled_from(sorted(CHAINS)))
    how: dict[str, Any] = {"immutable": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        how["cache"] = data.draw(st.sampled_from([200, "1MB"]))
    with tempfile.TemporaryDirectory() as folder:
        store: Any = folder + "/a" if data.draw(st.booleans()) else {}
        stash.create(store, shape, dtype, codecs=CHAINS[chain], **layout)[...] = wanted
        array = stash.open(store, **how)
        array[...]
        for _ in range(6):
            index = data.draw(indices(shape) | numpy_index(shape))
            try:
                expected = wanted[index]
            except IndexError:
                with pytest.raises(InvalidSelection):
                    array[index]
                continue
            same(array[index], expected)
            found = taken(array, index)
            if found is not None:
                same(found, expected)


@needs_kernel
@pytest.mark.parametrize("shards", [None, (8, 8)])
@pytest.mark.parametrize("cache", [0, "1MB"])
@pytest.mark.parametrize("chain", sorted(CHAINS))
def test_it_does_not_decline_the_plain_ones(
    tmp_path: Path, chain: str, cache: Any, shards: Any
) -> None:
    data = np.arange(24 * 24, dtype="u2").reshape(24, 24)
    a = stash.save(tmp_path / "a", data, codecs=CHAINS[chain], chunks=(4, 4), shards=shards)
    a = stash.open(a.driver, cache=cache)
    a[...]
    before, stats = native.counts().get("tasks", 0), a.stats
    for index in ((3, 5), (-1, -24), (3, slice(None)), (slice(2, 7), slice(5, 9)), 7):
        found = taken(a, index)
        if chain in ("two", "bz2") and not cache:
            assert found is None
        else:
            same(found, data[index])
    if not cache and chain not in ("two", "bz2"):
        assert native.counts()["tasks"] - before == 1 + 1 + 6 + 4 + 6
        assert a.stats.chunks - stats.chunks == 18
        assert a.stats.encoded_bytes > stats.encoded_bytes
    elif cache:
        assert a.stats.cache_hits - stats.cache_hits == 18


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache", [0, "1MB"])
def test_every_dtype(tmp_path: Path, dtype: Any, cache: Any) -> None:
    dtype = np.dtype(dtype)
    data = random_of(dtype, (5, 6), 1)
    stash.create(tmp_path / "a", (5, 6), dtype, chunks=(2, 3))[...] = data
    a = stash.open(tmp_path / "a", cache=cache)
    a[...]
    for index in ((1, 2), (-1,), (slice(1, 4), 3)):
        same(taken(a, index), data[index])
        found = a[index]
        if isinstance(found, np.ndarray):
            assert found.flags.writeable
            found[...] = found[...]  # memory that is the user's
    same(a[...], data)


@pytest.mark.parametrize("shards", [None, (4, 4)])
@pytest.mark.parametrize("cache", [0, "1MB"])
def test_what_is_stored_meanwhile_is_seen(tmp_path: Path, cache: Any, shards: Any) -> None:
    data = np.arange(64).reshape(8, 8)
    stash.save(tmp_path / "a", data, chunks=(2, 2), shards=shards)
    a, other = stash.open(tmp_path / "a", cache=cache), stash.open(tmp_path / "a", "r+")
    for k in range(5):
        assert (a[3] == data[3]).all()
        assert a[3, 3] == data[3, 3]
        other[3, k] = data[3, k] = -k
        assert a[3, k] == -k
        assert (a[3, 1:] == data[3, 1:]).all()
        other.attrs["k"] = k  # the document is another, of the same array
        assert a[3, k] == -k
    other.resize((12, 8))
    other[8:] = 7
    assert a[3, 3] == data[3, 3]
    with pytest.raises(InvalidSelection):
        a[9, 0]
    a.refresh()
    assert (a[9, 0], a[9].tolist()) == (7, [7] * 8)
    other.resize((2, 8))
    a.refresh()
    with pytest.raises(InvalidSelection):
        a[3, 3]
    other.resize((8, 8))
    a.refresh()
    assert (a[3, 3], a[0, 1]) == (0, 1)
    stash.save(tmp_path / "a", data + 1, chunks=(2, 2), overwrite=True)
    with pytest.raises(Conflict):
        a[0, 0]
    a = stash.open(tmp_path / "a", cache=cache)
    assert a[0, 0] == 1
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(NotFound):
        a[0, 0]
    a.close()
    with pytest.raises(stash.errors.Closed):
        a[0, 0]


@needs_kernel
def test_what_is_absent_or_damaged(tmp_path: Path) -> None:
    for name, shards in (("plain", None), ("sharded", (4, 4))):
        where = tmp_path / name
        a = stash.create(where, (8, 8), "i4", chunks=(2, 2), shards=shards, fill_value=9)
        a[0, 0] = 1
        same(taken(a, (0, slice(None))), np.array([1] + [9] * 7, "i4")) if not shards else None
        same(a[0], np.array([1] + [9] * 7, "i4"))
        same(a[1, 1], np.int32(9))
        strict = stash.open(where, missing="raise")
        with pytest.raises(NotFound, match=r"chunk \(0, 3\)"):
            strict[0, 7]
        (file,) = (p for p in where.rglob("*") if p.is_file() and p.suffix != ".json")
        file.write_bytes(file.read_bytes()[:-3])
        for index in ((0, 0), (0, slice(None))):
            with turned(True):
                one = outcome(partial(a.__getitem__, index))
                again = outcome(partial(stash.open(where).__getitem__, index))
            with turned(False):
                assert one == again == outcome(partial(stash.open(where).__getitem__, index))
            assert one[0] is Corrupt


@needs_kernel
def test_links_are_left_to_python(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", np.arange(6), chunks=2)
    (tmp_path / "a/c/1").rename(tmp_path / "there")
    (tmp_path / "a/c/1").symlink_to(tmp_path / "there")
    for cache in (0, "1MB"):
        a = stash.open(tmp_path / "a", cache=cache)
        assert [a[2], a[3], a[2]] == [2, 3, 2]
        (tmp_path / "there").write_bytes((tmp_path / "a/c/2").read_bytes())
        assert a[2] == 4
        stash.open(tmp_path / "a", "r+")[2:4] = [2, 3]
        (tmp_path / "a/c/1").unlink()
        (tmp_path / "there").unlink(missing_ok=True)
        assert a[2] == 0
        stash.open(tmp_path / "a", "r+")[2:4] = [2, 3]
        (tmp_path / "a/c/1").rename(tmp_path / "there")
        (tmp_path / "a/c/1").symlink_to(tmp_path / "there")


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("cache", [0, "1MB"])
def test_a_forked_child_begins_anew(tmp_path: Path, cache: Any, before: bool) -> None:
    stash.save(tmp_path / "a", np.arange(100), chunks=10)
    a = stash.open(tmp_path / "a", cache=cache)
    if before:
        assert [a[k] for k in range(0, 100, 9)] == [*range(0, 100, 9)]
    else:  # what reads small boxes is made by the child
        assert a[...].tolist() == [*range(100)]
    pid = os.fork()
    if not pid:
        good = a.stats.chunks == a.stats.cache_hits == 0
        if cache:
            good = good and taken(a, 5) is None  # its cache is empty
        good = good and [a[k] for k in (3, 5, 99)] == [3, 5, 99] and taken(a, 5) == 5
        os._exit(0 if good and a.stats.chunks in (2, 4) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert a[5] == 5


@needs_kernel
@pytest.mark.parametrize("cache", [0, "2KB", "1MB"])
def test_many_threads_with_one_handle(tmp_path: Path, cache: Any) -> None:
    data = np.arange(64 * 64).reshape(64, 64)
    stash.save(tmp_path / "a", data, chunks=(8, 8))
    a, other = stash.open(tmp_path / "a", cache=cache), stash.open(tmp_path / "a", "r+")
    wrong: list[Any] = []
    done = threading.Event()

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not done.is_set():
            i, j = rng.integers(0, 64, 2)
            found = a[i, j], a[int(i)].tolist()
            if found != (data[i, j], data[i].tolist()):
                wrong.append((i, j))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for k in range(60):
        other[k % 64] = data[k % 64]  # the same again, in another version
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reading_ahead_goes_on(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", np.arange(40).reshape(20, 2), chunks=(4, 2))
    a = stash.open(tmp_path / "a", cache="1MB")
    ahead = a._read._ahead
    assert ahead is not None
    for k in range(7):
        assert a[k].tolist() == [2 * k, 2 * k + 1]
        while ahead._busy():
            time.sleep(0.001)
    assert ahead._done == [(8, 12), (0, 2)]


@needs_kernel
def test_helpers_are_counted_over_the_process() -> None:
    kernel: Any = library.library.kernel
    stored = np.arange(1 << 21, dtype="u1").tobytes()
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.0005):
            most[0] = max(most[0], len(os.listdir("/proc/self/task")))

    def read() -> None:
        store = {}
        a = stash.save(store, np.frombuffer(stored, "u1"), chunks=1 << 18, codecs=["zstd"])
        a = stash.open(a.driver, threads=8)
        for _ in range(6):
            assert a[:].tobytes() == stored

    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no list of threads")
    kernel.processors(3)
    try:
        threads = [threading.Thread(target=read) for _ in range(3)]
        before = len(os.listdir("/proc/self/task"))
        watcher = threading.Thread(target=watch)
        for thread in (watcher, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        watcher.join()
    finally:
        kernel.processors(os.cpu_count() or 1)
    assert most[0] <= before + 1 + 3 + 2 + 2  # a helper that ended may be there for a moment


@needs_kernel
def test_two_threads_make_what_reads_small_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stash.save(tmp_path / "a", np.arange(12), chunks=3)
    a = stash.open(tmp_path / "a")
    small, real = Small(a._read.small._own, a._read._budget), library.library

    class Between:
        """The library, where another thread comes in between at the first look."""

        @property
        def kernel(self) -> Any:
            monkeypatch.setattr(library, "library", real)
            assert small.take(1, a._tag, str) == 1
            return real.kernel

    monkeypatch.setattr(library, "library", Between())
    assert small.take(2, a._tag, str) == 2


@needs_kernel
@pytest.mark.parametrize("folder", ["/" + "x" * 5000 + "/", "/a\0b/"])
def test_a_path_that_no_file_has_is_none_of_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    stash.save(tmp_path / "a", np.arange(100).reshape(10, 10), chunks=5)
    small = stash.open(tmp_path / "a")._read.small
    assert small._own is not None
    monkeypatch.setattr(small._own[0].driver, "local_path", lambda _: folder)
    assert direct(*small._own) is None


class Stops(np.int64):
    """An index that is interrupted, once."""

    left = 1

    def __index__(self) -> int:
        if self.left:
            self.left -= 1
            raise KeyboardInterrupt
        return 3


@needs_kernel
@pytest.mark.parametrize("cut", [lambda stops: stops, lambda stops: slice(stops, None)])
def test_an_interrupt_in_an_index_is_not_lost(tmp_path: Path, cut: Any) -> None:
    a = stash.save(tmp_path / "a", np.arange(100), chunks=10)
    assert a[5] == 5
    with pytest.raises(KeyboardInterrupt):
        a[cut(Stops(3))]


@needs_kernel
@pytest.mark.parametrize("cache", [0, "1MB"])
@pytest.mark.parametrize("shards", [None, 20])
def test_files_of_a_time_that_64_bits_do_not_hold(
    tmp_path: Path, cache: Any, shards: int | None
) -> None:
    stash.save(tmp_path / "a", np.arange(100), chunks=10, shards=shards)
    for path in (tmp_path / "a").rglob("*"):
        os.utime(path, (10**10, 10**10))
    a = stash.open(tmp_path / "a", cache=cache)
    for _ in range(2):
        assert [a[k] for k in range(0, 100, 9)] == [*range(0, 100, 9)]
        assert a[...].tolist() == [*range(100)]


@needs_kernel
def test_the_collector_sees_through_it(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", np.arange(100), chunks=10)
    a = stash.open(tmp_path / "a")
    assert taken(a, 5) == 5
    a.driver.users = [a]  # type: ignore[attr-defined]
    gone = weakref.ref(a.driver)
    del a
    gc.collect()
    assert gone() is None


@needs_kernel
def test_what_takes_long_to_decode_is_shared_among_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a chunk that is one large block all is decoded for a small part: that is seen in time."""
    threads: list[int] = []
    asked = batch.Call.threads

    def noted(self: batch.Call, *how: int) -> int:
        threads.append(asked(self, *how))
        return threads[-1]

    monkeypatch.setattr(batch, "cores", lambda: 2)
    monkeypatch.setattr(batch.Call, "threads", noted)
    data = np.arange(8 * 1 << 20, dtype="u4").reshape(8, 1024, 1024)
    block = 4 << 20
    codecs = [Blosc("lz4", 5, "shuffle", 4, block)]
    stash.save(tmp_path / "a", data, chunks=(1, 1024, 1024), codecs=codecs)
    array = stash.open(tmp_path / "a")
    for _ in range(40):
        same(array[:, 5, 7:900], data[:, 5, 7:900])
    assert threads
    assert threads[-1] == 2
