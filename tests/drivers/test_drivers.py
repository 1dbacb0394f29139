from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import uuid
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensorstash.driver import Request, Span
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.drivers.shm import ShmDriver
from tensorstash.errors import Corrupt, DriverError, Invalid, TimedOut, Unsupported
from tensorstash.registry import connect
from tensorstash.testing.counting import Call, Count, CountingDriver, FailingDriver, Fault
from tensorstash.testing.driver import DriverContract
from tensorstash.testing.driver_races import in_threads, increment, run_in_processes


class TestFile(DriverContract):
    @pytest.fixture
    def driver(self, tmp_path: Path) -> FileDriver:
        return FileDriver(tmp_path / "root")


class TestMemory(DriverContract):
    @pytest.fixture
    def driver(self) -> MemoryDriver:
        return MemoryDriver()


class TestShm(DriverContract):
    @pytest.fixture
    def driver(self) -> Iterator[ShmDriver]:
        name = f"contract-{uuid.uuid4().hex}"
        keeper = ShmDriver(name)  # closing the last driver of a name would be its end
        yield ShmDriver(f"{name}/below")
        assert all(key.startswith("below/") for key in keeper.list())


class TestCounting(DriverContract):
    rounds = 200

    @pytest.fixture
    def driver(self, tmp_path: Path) -> CountingDriver:
        return CountingDriver(FileDriver(tmp_path / "root"))


def never(call: Call) -> None:
    return None


class TestFailing(DriverContract):
    @pytest.fixture
    def driver(self) -> FailingDriver:
        return FailingDriver(MemoryDriver(), never)


class TestFileWithoutHardLinks(DriverContract):
    """FAT and some network file systems: every put goes by a named temporary and a lock."""

    rounds = 200

    @pytest.fixture
    def driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileDriver:
        def link(*args: object, **options: object) -> None:
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", link)
        return FileDriver(tmp_path / "root")


class TestMemoryOfTheUser(DriverContract):
    @pytest.fixture
    def driver(self) -> MemoryDriver:
        return MemoryDriver(UserDict())


class TestMemoryBelowAPrefix(DriverContract):
    @pytest.fixture
    def driver(self) -> Iterator[MemoryDriver]:
        everything = connect("memory://contract", {})
        everything.put("pre", b"not below")
        everything.put("prefixed/k", b"not below")
        yield connect("memory://contract/pre/fix", {})
        assert sorted(k for k in everything.list() if not k.startswith("pre/fix/")) == [
            "pre",
            "prefixed/k",
        ]
        everything.delete_prefix("")


# -- memory ---------------------------------------------------------------------------


def test_an_empty_dict_is_used_itself() -> None:
    mine: dict[str, bytes] = {}
    MemoryDriver(mine).put("k", b"value")
    assert mine == {"k": b"value"}
    mine["by/hand"] = b"1"
    assert sorted(MemoryDriver(mine).list()) == ["by/hand", "k"]


def test_values_that_the_user_stored() -> None:
    mine = {"a": bytearray(b"12"), "b": memoryview(b"34"), "c": np.array([5, 6], "u1")}
    driver = MemoryDriver(mine)
    for key, expected in (("a", b"12"), ("b", b"34"), ("c", b"\5\6")):
        assert bytes(driver.get(key) or b"") == expected
        assert bytes(driver.get(key, Span(1)) or b"") == expected[1:]
        tag = driver.tag(key)
        assert driver.tag(key) == tag
        assert driver.put(key, b"new", if_tag=tag) != tag
    mine["bad"] = object()  # type: ignore[assignment]
    with pytest.raises(Corrupt):
        driver.get("bad")


def test_get_does_not_copy() -> None:
    driver = MemoryDriver()
    driver.put("k", b"0123456789")
    assert driver.get("k") is driver.get("k")
    found = driver.get_ranges("k", [Span(2, 4)])
    assert found is not None
    assert isinstance(found[0][0], memoryview)


def test_two_drivers_on_one_dict_exclude_each_other() -> None:
    mine: dict[str, bytes] = {"n": b"0"}
    in_threads(4, lambda i: increment(MemoryDriver(mine), "n", 25))
    assert mine["n"] == b"100"
    with (
        MemoryDriver(mine).lock("n"),
        pytest.raises(TimedOut),
        MemoryDriver(mine).lock("n", timeout=0.01),
    ):
        pass


def test_named_stores_nest_and_last() -> None:
    connect("memory://nested/run", {}).put("zarr.json", b"1")
    outer = connect("memory://nested", {})
    try:
        assert [*outer.list()] == ["run/zarr.json"]
        assert outer.get("run/zarr.json") == b"1"
        assert connect("memory://nested/run/", {}).url == "memory://nested/run"
        assert [*connect("memory://another", {}).list()] == []
    finally:
        outer.delete_prefix("")


@pytest.mark.parametrize("rest", ["name/../other", "name/a//b", "name/."])
def test_named_stores_are_not_escaped(rest: str) -> None:
    with pytest.raises(Invalid):
        connect("memory://" + rest, {})


def test_a_named_store_unpickles_as_itself_here_and_as_a_copy_elsewhere() -> None:
    driver = connect("memory://pickled", {})
    driver.put("k", b"1")
    pickled = pickle.dumps(driver)
    driver.put("k", b"2")
    try:
        assert pickle.loads(pickled).get("k") == b"2"
        child = multiprocessing.get_context("fork").Process(target=_expect_copy, args=(pickled,))
        child.start()
        child.join()
        assert child.exitcode == 0
    finally:
        driver.delete_prefix("")


def _expect_copy(pickled: bytes) -> None:
    copy = pickle.loads(pickled)
    assert copy.get("k") == b"1"
    copy.put("k", b"3")
    assert connect("memory://pickled", {}).get("k") == b"2"


def test_large_contents_do_not_travel() -> None:
    driver = MemoryDriver()
    driver.put("a", bytes(1 << 19))
    driver.put("b", bytes(1 << 19))
    assert len(pickle.loads(pickle.dumps(driver)).get("a")) == 1 << 19
    driver.put("c", b"1")
    with pytest.raises(Unsupported, match="save it to a file, or start workers with fork"):
        pickle.dumps(driver)


# -- counting and failing -----------------------------------------------------------


def test_counts() -> None:
    driver = CountingDriver(MemoryDriver())
    driver.put("a", b"12345")
    driver.put_many([("b", b"12"), ("c", b"")])
    assert [v and bytes(v) for _, v in driver.get_many([Request("a"), Request("x")])] == [
        b"12345",
        None,
    ]
    driver.get("b")
    driver.get_ranges("a", [Span(0, 2), Span(-1)])
    driver.get_into("a", memoryview(bytearray(9)))
    assert sorted(driver.list()) == ["a", "b", "c"]
    driver.delete_many(["a", "b"])
    assert driver.counts == {
        "put": Count(1, 1, 5),
        "put_many": Count(1, 2, 2),
        "get_many": Count(1, 2, 5),
        "get": Count(1, 1, 2),
        "get_ranges": Count(1, 1, 3),
        "get_into": Count(1, 1, 5),
        "list": Count(1, 3, 0),
        "delete_many": Count(1, 2, 0),
    }
    assert driver.reads == Count(4, 5, 15)
    assert driver.writes == Count(2, 3, 7)
    assert driver.counts["lock"] == Count()
    driver.reset()
    assert driver.counts == {}


def test_counts_of_threads_add_up() -> None:
    driver = CountingDriver(MemoryDriver())
    in_threads(8, lambda i: [driver.put(f"{i}/{j}", b"12") for j in range(200)])
    assert driver.counts["put"] == Count(1600, 1600, 3200)


def test_a_fork_amid_counting_does_not_hang() -> None:
    driver = CountingDriver(MemoryDriver())
    with driver._guard:  # as another thread may hold it at the fork
        run_in_processes(multiprocessing.get_context("fork"), 1, put_one, driver)
    assert driver.counts == {}


def put_one(driver: CountingDriver) -> None:
    driver.put("k", b"1")
    assert driver.counts == {"put": Count(1, 1, 1)}


def test_faults() -> None:
    within = MemoryDriver()
    faults: dict[str, Fault] = {"error": "error", "half": "truncate", "bit": "flip"}
    faults["own"] = RuntimeError("mine")
    for key in faults:
        within.put(key, b"01234567")
    driver = FailingDriver(within, lambda call: faults.get(call.key))
    with pytest.raises(DriverError, match="'error'"):
        driver.get("error")
    with pytest.raises(DriverError):
        driver.put("error", b"new")
    with pytest.raises(RuntimeError, match="mine"):
        driver.delete("own")
    assert within.get("error") == within.get("own") == b"01234567"
    flipped = b"01235567"
    out = memoryview(bytearray(20))
    for key, damaged in (("half", b"0123"), ("bit", flipped)):
        assert driver.get(key) == damaged
        tagged = driver.get_tagged(key)
        assert tagged is not None
        assert tagged[0] == damaged
        assert [v for _, v in driver.get_many([Request(key)])] == [damaged]
        assert driver.get_into(key, out) == len(damaged)
        assert out[: len(damaged)] == damaged
        ranges = driver.get_ranges(key, [Span(0, 8)])
        assert ranges is not None
        assert ranges[0] == [damaged]
        driver.put(key, b"01234567")
        assert within.get(key) == damaged


def test_faults_by_number() -> None:
    driver = FailingDriver(MemoryDriver(), lambda call: "error" if call.number == 1 else None)
    driver.put("a", b"1")
    with pytest.raises(DriverError):
        driver.put_many([("b", b"2"), ("c", b"3")])
    driver.put("b", b"2")
    assert sorted(driver.list()) == ["a", "b"]


# -- by URL ---------------------------------------------------------------------------


def test_file_by_url(tmp_path: Path) -> None:
    driver = connect(f"file://{tmp_path}/x", {"fsync": True})
    driver.put("k", b"1")
    assert (tmp_path / "x/k").read_bytes() == b"1"
    assert driver.url == f"file://{tmp_path}/x"
    with pytest.raises(Invalid, match="colour"):
        connect(f"file://{tmp_path}", {"colour": 1})


@pytest.mark.parametrize("deleting", ["delete", "delete_prefix"])
def test_what_a_mapping_raises_stays_the_cause(deleting: str) -> None:
    class Failing(dict[str, bytes]):
        def __delitem__(self, key: str) -> None:
            raise RuntimeError("theirs")

    driver = MemoryDriver(Failing({"a/b": b"1"}))
    with pytest.raises(DriverError, match="raised RuntimeError") as caught:
        getattr(driver, deleting)("a/b" if deleting == "delete" else "a/")
    assert isinstance(caught.value.__cause__, RuntimeError)
