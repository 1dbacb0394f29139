"""A disk cache is the driver within, with fewer bytes asked of it."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorstash.driver import Buffer, Changed, Driver, Request, Span, Tag, Traffic
from tensorstash.drivers.diskcache.driver import DiskCache
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid, TimedOut
from tensorstash.testing.counting import Count, CountingDriver
from tensorstash.testing.driver import DriverContract
from tensorstash.testing.driver_races import run_in_processes

LIMIT = 64 << 20


class TestDiskCache(DriverContract):
    rounds = 300

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Driver:
        return DiskCache(FileDriver(tmp_path / "root"), tmp_path / "cache", LIMIT)


class TestDiskCacheTooSmall(DriverContract):
    """Nearly nothing is kept, and not for long."""

    rounds = 200

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Driver:
        return DiskCache(FileDriver(tmp_path / "root"), tmp_path / "cache", 100_000)


class TestDiskCacheImmutable(DriverContract):
    """What this process writes, this process reads, even if nothing is compared."""

    rounds = 200

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Driver:
        return DiskCache(FileDriver(tmp_path / "root"), tmp_path / "cache", LIMIT, immutable=True)


@pytest.fixture
def remote(tmp_path: Path) -> CountingDriver:
    return CountingDriver(FileDriver(tmp_path / "remote"))


MakeCache = Callable[..., DiskCache]


@pytest.fixture
def cache(remote: CountingDriver, tmp_path: Path) -> MakeCache:
    def make(limit: int = LIMIT, immutable: bool = False) -> DiskCache:
        return DiskCache(remote, tmp_path / "cache", limit, immutable)

    return make


def copy(found: tuple[Buffer, Tag] | None) -> tuple[bytes, Tag] | None:
    return None if found is None else (bytes(found[0]), found[1])


READS: dict[str, Callable[[DiskCache], Any]] = {
    "get": lambda c: c.get("k"),
    "get_tagged": lambda c: c.get_tagged("k"),
    "get_many": lambda c: [*c.get_many([Request("k")])],
    "get_many_tagged": lambda c: [*c.get_many_tagged([Request("k")])],
    "get_into": lambda c: c.get_into("k", memoryview(bytearray(99))),
    "get_ranges": lambda c: c.get_ranges("k", [Span(0)]),
    "get_span": lambda c: c.get("k", Span(3, 7)),
    "get_spans": lambda c: c.get_ranges("k", [Span(0, 1), Span(-2)]),
    "get_whole_span": lambda c: c.get("k", Span(0)),
}


@pytest.mark.parametrize("first", ["get", "get_many_tagged", "get_into", "get_ranges"])
@pytest.mark.parametrize("then", READS)
def test_a_value_read_whole_is_served_to_every_verb(
    cache: MakeCache, remote: CountingDriver, first: str, then: str
) -> None:
    remote.put("k", b"0123456789")
    READS[first](cache())
    remote.reset()
    again = cache()
    expected = READS[then](cache(immutable=True))
    assert remote.counts == {}
    READS[then](again)
    # One request, and no bytes.
    assert sum((count for count in remote.counts.values()), Count()) == Count(1, 1, 0)
    assert again.counts.hits == (2 if then == "get_spans" else 1)
    assert again.counts.misses == 0
    reference = READS[then](remote)  # type: ignore[arg-type]
    assert _bare(expected) == _bare(reference)


def _bare(found: Any) -> Any:
    if isinstance(found, bytes | bytearray | memoryview):
        return bytes(found)
    return [*map(_bare, found)] if isinstance(found, list | tuple) else found


@pytest.mark.parametrize("verb", ["get_span", "get_spans"])
@pytest.mark.parametrize("immutable", [False, True])
def test_a_span_is_kept_as_such(
    cache: MakeCache, remote: CountingDriver, verb: str, immutable: bool
) -> None:
    remote.put("k", b"0123456789")
    READS[verb](cache())
    remote.reset()
    READS[verb](cache(immutable=immutable))
    counts = sum((count for count in remote.counts.values()), Count())
    assert counts == (Count() if immutable else Count(1, 1, 0))
    cache().get("k")
    assert remote.reads.nbytes == 10  # the whole is another matter


def test_ranges_that_are_kept_in_part(cache: MakeCache, remote: CountingDriver) -> None:
    tag = remote.put("k", b"0123456789")
    cache().get_ranges("k", [Span(0, 2)])
    remote.reset()
    parts, version = cache().get_ranges("k", [Span(0, 2), Span(4, 5), Span(-1)], tag) or ([], None)
    assert [*map(bytes, parts)] == [b"01", b"4", b"9"] and version == tag
    assert remote.counts == {"get_ranges": Count(1, 1, 2)}
    new = remote.put("k", b"abcdefghij")
    for spans in ([Span(0, 2)], [Span(0, 2), Span(7, 8)]):
        with pytest.raises(Changed):
            cache().get_ranges("k", spans, tag)
    parts, version = cache().get_ranges("k", [Span(0, 2), Span(7, 8)]) or ([], None)
    assert [*map(bytes, parts)] == [b"ab", b"h"] and version == new
    remote.delete("k")
    assert cache().get_ranges("k", [Span(0, 2)]) is None
    with pytest.raises(Changed):
        cache().get_ranges("k", [Span(0, 2)], new)


def test_a_changed_value_is_fetched_once(cache: MakeCache, remote: CountingDriver) -> None:
    mine = cache()
    remote.put("k", b"old")
    assert mine.get("k") == b"old"
    remote.put("k", b"new!")  # by someone who knows of no cache
    remote.reset()
    assert mine.get("k") == b"new!"
    assert mine.get("k") == b"new!"
    assert remote.counts == {"get_many_tagged": Count(2, 2, 4)}
    assert (mine.counts.hits, mine.counts.misses, mine.counts.bytes_served) == (1, 2, 4)
    remote.delete("k")
    assert mine.get("k") is None
    assert mine.get("k") is None


def test_who_holds_the_version_reads_nothing(cache: MakeCache, remote: CountingDriver) -> None:
    tag = remote.put("k", b"0123456789")
    for mine in (cache(), cache(immutable=True)):  # the second finds a file
        remote.reset()
        [(_, found)] = mine.get_many_tagged([Request("k", None, tag)])
        assert copy(found) == (b"", tag)
        assert remote.reads.nbytes == 0 and mine.counts.bytes_served == 0
        mine.get("k")
    assert (mine.counts.hits, mine.counts.bytes_served) == (1, 10)  # what it has is no hit
    # Someone holds an older version than the disk does: no bytes move either.
    new = remote.put("k", b"abcdefghij")
    cache().get("k")
    remote.reset()
    [(_, found)] = cache().get_many_tagged([Request("k", None, tag)])
    assert copy(found) == (b"abcdefghij", new) and remote.reads.nbytes == 0
    # A newer one: it is told so.
    newest = remote.put("k", b"newest")
    [(_, found)] = cache().get_many_tagged([Request("k", None, newest)])
    assert copy(found) == (b"", newest)
    assert copy(cache().get_tagged("k")) == (b"newest", newest)


class Window(CountingDriver):
    """Takes up to ``ahead`` requests before it answers the first, as remote drivers do."""

    ahead = 4

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.taken = 0
        self.windows = 0

    def get_many_tagged(self, requests: Any) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        self.windows += 1
        waiting: list[tuple[int, Request]] = []
        for pair in enumerate(requests):
            self.taken += 1
            waiting.append(pair)
            if len(waiting) == self.ahead:
                yield self._one(*waiting.pop())
        while waiting:
            yield self._one(*waiting.pop())

    def _one(self, i: int, request: Request) -> tuple[int, tuple[Buffer, Tag] | None]:
        [(_, found)] = super().get_many_tagged([request])
        return i, found


@pytest.mark.parametrize("immutable", [False, True])
@pytest.mark.parametrize("every", [1, 2, 7, 10_000])
def test_the_window_stays_lazy_and_bounded(tmp_path: Path, immutable: bool, every: int) -> None:
    remote = Window(FileDriver(tmp_path / "remote"))
    values = {f"c/{i}": b"%d" % i for i in range(60)}
    remote.put_many(values.items())
    mine = DiskCache(remote, tmp_path / "cache", LIMIT, immutable)
    for i in range(0, 60, every):
        mine.get(f"c/{i}")
    pulled = 0

    def requests() -> Iterator[Request]:
        nonlocal pulled
        for i in range(1200):
            pulled += 1
            yield Request(f"c/{i % 60}", None if i % 3 else Span(-1))

    remote.taken = remote.windows = 0
    seen = set()
    for answered, (i, found) in enumerate(mine.get_many_tagged(requests()), 1):
        value = values[f"c/{i % 60}"]
        assert found is not None and bytes(found[0]) == (value if i % 3 else value[-1:])
        seen.add(i)
        if not immutable:
            assert pulled - answered <= Window.ahead
    assert seen == {*range(1200)}
    if not immutable:
        assert (remote.windows, remote.taken) == (1, 1200)
    elif every == 1:
        assert (remote.windows, remote.taken) == (0, 0)
    else:
        assert remote.windows == 1 and remote.taken <= 180


def test_hits_do_not_pile_up_behind_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstash.drivers.diskcache.driver._READY", 10)
    remote = Window(FileDriver(tmp_path / "remote"))
    remote.put_many((name, name.encode()) for name in "abc")
    mine = DiskCache(remote, tmp_path / "cache", LIMIT, immutable=True)
    mine.get("a")
    names = "a" * 20 + "b" + "a" * 500 + "c" + "a" * 5
    pulled = 0

    def requests() -> Iterator[Request]:
        nonlocal pulled
        for name in names:
            pulled += 1
            yield Request(name)

    found = {}
    for answered, (i, pair) in enumerate(mine.get_many_tagged(requests()), 1):
        assert pair is not None
        found[i] = bytes(pair[0]).decode()
        assert pulled - answered <= 10 + Window.ahead
    assert "".join(found[i] for i in range(len(names))) == names


def test_left_early(cache: MakeCache, remote: CountingDriver) -> None:
    remote.put("k", b"1")
    for immutable in (False, True):
        mine = cache(immutable=immutable)
        for _, found in mine.get_many_tagged(Request("k") for _ in range(1000)):
            assert copy(found) is not None
            break
        assert mine.get("k") == b"1"


class Overtaken(FileDriver):
    """Something happens between the reading of a value and its arrival."""

    def meanwhile(self) -> None:
        pass

    def get_many_tagged(self, requests: Any) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        for pair in super().get_many_tagged(requests):
            self.meanwhile()
            yield pair


@pytest.mark.parametrize("immutable", [False, True])
@pytest.mark.parametrize("verb", ["put", "put_many", "delete", "delete_many", "delete_prefix"])
def test_a_write_that_overtakes_a_read_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, immutable: bool, verb: str
) -> None:
    within = Overtaken(tmp_path / "remote")
    mine = DiskCache(within, tmp_path / "cache", LIMIT, immutable)
    writes: dict[str, Callable[[], Any]] = {
        "put": lambda: mine.put("c/k", b"new"),
        "put_many": lambda: mine.put_many([("c/k", b"new")]),
        "delete": lambda: mine.delete("c/k"),
        "delete_many": lambda: mine.delete_many(["c/k"]),
        "delete_prefix": lambda: mine.delete_prefix("c/"),
    }
    expected = b"new" if "put" in verb else None
    mine.put("c/k", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(within, "meanwhile", writes[verb])
        assert mine.get("c/k") == b"old"
    assert mine.get("c/k") == expected


# -- the handle -------------------------------------------------------------------------


def test_passes_on_what_it_does_not_change(tmp_path: Path) -> None:
    within = FileDriver(tmp_path / "remote")
    mine = DiskCache(within, tmp_path / "cache", 1000)
    assert mine.url == within.url and mine.scheme == "file"
    assert mine.traffic == Traffic() and within.capabilities.local and not mine.capabilities.local
    assert mine.capabilities.gap_bytes == within.capabilities.gap_bytes
    mine.put("a/k", b"123")
    assert [*mine.sizes()] == [("a/k", 3)]
    assert [*mine.list()] == ["a/k"] and mine.list_dir() == ([], ["a"])
    with mine.lock("k"), pytest.raises(TimedOut), within.lock("k", timeout=0):
        pass


def test_pickles_as_driver_folder_and_limit(cache: MakeCache, remote: CountingDriver) -> None:
    remote.put("k", b"1")
    mine = cache(immutable=True)
    mine.get("k")
    again = pickle.loads(pickle.dumps(mine))
    assert again.get("k") == b"1"
    assert (again.counts.hits, again.driver.reads) == (1, Count())


def test_counts_are_of_one_process(cache: MakeCache, remote: CountingDriver) -> None:
    remote.put("k", b"1")
    mine = cache()
    mine.get("k")
    run_in_processes(multiprocessing.get_context("fork"), 1, expect_a_fresh_count, mine)
    assert (mine.counts.hits, mine.counts.misses) == (0, 1)


def expect_a_fresh_count(mine: DiskCache) -> None:
    mine.get("k")
    assert (mine.counts.hits, mine.counts.misses, mine.counts.bytes_served) == (1, 0, 1)


def test_refuses_what_it_is_not_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tensorstash")
    with pytest.raises(Invalid, match="leave cache_dir out"):
        DiskCache(MemoryDriver(), tmp_path, 1000)
    driver = FileDriver(tmp_path)
    for limit in (0, -1, 1.5, True, "1 GiB", None):
        with pytest.raises(Invalid, match="number of bytes"):
            DiskCache(driver, tmp_path, limit)  # type: ignore[arg-type]
    for folder in ("", "a\0b", b"bytes"):
        with pytest.raises(Invalid, match="no folder"):
            DiskCache(driver, folder, 1000)  # type: ignore[arg-type]
