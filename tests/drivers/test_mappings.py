"""Mappings of the user's that are no ``dict``: any key-value store as a place for arrays."""

from __future__ import annotations

import dbm.dumb
import shelve
import sqlite3
import sys
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import DriverError
from tensorstash.testing.driver import DriverContract

zict = pytest.importorskip("zict")


class Copying(MutableMapping[str, bytes]):
    """New bytes at each read, as whatever lies on a disk or in another process."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def __getitem__(self, key: str) -> bytes:
        return bytes(bytearray(self.kept[key]))

    def __setitem__(self, key: str, value: bytes) -> None:
        self.kept[key] = bytes(value)

    def __delitem__(self, key: str) -> None:
        del self.kept[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.kept))

    def __len__(self) -> int:
        return len(self.kept)


class Exclusive(Copying):
    """Fails where two threads are in it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Lock()

    def _alone(self) -> Any:
        if not self.inside.acquire(blocking=False):
            raise RuntimeError("two threads at once")
        return self.inside

    def __getitem__(self, key: str) -> bytes:
        lock = self._alone()
        try:
            return super().__getitem__(key)
        finally:
            lock.release()

    def __setitem__(self, key: str, value: bytes) -> None:
        lock = self._alone()
        try:
            super().__setitem__(key, value)
        finally:
            lock.release()


class InSqlite(MutableMapping[str, bytes]):
    """As Python 3.13's ``dbm.sqlite3``: keys come back as bytes, and only the thread that opened
    it may use it (unless ``shared``)."""

    def __init__(self, path: Path, shared: bool = False) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=not shared)
        self.connection.execute("create table if not exists kv (k blob primary key, v blob)")

    def __getitem__(self, key: str) -> bytes:
        row = self.connection.execute("select v from kv where k = ?", (key.encode(),)).fetchone()
        if row is None:
            raise KeyError(key)
        return bytes(row[0])

    def __setitem__(self, key: str, value: bytes) -> None:
        self.connection.execute("replace into kv values (?, ?)", (key.encode(), value))

    def __delitem__(self, key: str) -> None:
        gone = self.connection.execute("delete from kv where k = ?", (key.encode(),))
        if not gone.rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[Any]:
        for (key,) in self.connection.execute("select k from kv"):
            yield key

    def __len__(self) -> int:
        return int(self.connection.execute("select count(*) from kv").fetchone()[0])


class NoMapping:
    """As ``dbm.gnu``: keys in, values out, and no class of :mod:`collections.abc`."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}

    def keys(self) -> list[bytes]:
        return list(self.kept)

    def get(self, key: str, default: Any = None) -> Any:
        return self.kept.get(key.encode(), default)

    def __getitem__(self, key: str) -> bytes:
        return self.kept[key.encode()]

    def __setitem__(self, key: str, value: bytes) -> None:
        self.kept[key.encode()] = value

    def __delitem__(self, key: str) -> None:
        del self.kept[key.encode()]


def opened(kind: str, folder: Path) -> Any:
    match kind:
        case "copying":
            return Copying()
        case "exclusive":
            return Exclusive()
        case "dbm.dumb":
            return dbm.dumb.open(str(folder / "d"), "c")
        case "shelve":
            return shelve.Shelf(dbm.dumb.open(str(folder / "s"), "c"))
        case "shelve, writeback":
            return shelve.open(str(folder / "w"), writeback=True)
        case "zict.File":
            return zict.File(str(folder / "z"))
        case "zict.Buffer":
            return zict.Buffer({}, zict.File(str(folder / "b")), n=2)
        case "sqlite":
            return InSqlite(folder / "q", shared=True)
        case "sqlite of one thread":
            return InSqlite(folder / "o")
    return NoMapping()


KINDS = [
    "copying",
    "exclusive",
    "dbm.dumb",
    "shelve",
    "shelve, writeback",
    "zict.File",
    "zict.Buffer",
    "sqlite",
    "sqlite of one thread",
    "no class of mappings",
]


class MappingContract(DriverContract):
    many = 200
    kind = ""
    rounds = 60
    examples = 8
    torn_puts = 10

    @pytest.fixture
    def driver(self, tmp_path: Path) -> MemoryDriver:
        return MemoryDriver(opened(self.kind, tmp_path))


class TestCopying(MappingContract):
    kind = "copying"


class TestExclusive(MappingContract):
    kind = "exclusive"

    def test_works_in_a_forked_child(self, driver: Driver) -> None:
        pytest.skip("its own lock may be held by another thread at the fork")


class TestDumb(MappingContract):
    kind = "dbm.dumb"


class TestShelve(MappingContract):
    kind = "shelve"


class TestZict(MappingContract):
    kind = "zict.File"

    def test_works_in_a_forked_child(self, driver: Driver) -> None:
        pytest.skip("its own lock may be held by another thread at the fork")


class TestSqlite(MappingContract):
    kind = "sqlite"

    def test_works_in_a_forked_child(self, driver: Driver) -> None:
        pytest.skip("SQLite forbids to carry a connection over a fork")


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_changes_a_part(kind: str, tmp_path: Path) -> None:
    mapping = opened(kind, tmp_path)
    a = stash.create(mapping, (10, 10), "int32", chunks=(4, 4))
    model = np.zeros((10, 10), "int32")
    for where in np.s_[3:9, 2], np.s_[0], np.s_[::3, 1:8]:
        a[where] = model[where] = 5
    a.append(np.ones((3, 10), "int32"))
    model = np.concatenate([model, np.ones((3, 10), "int32")])
    a.resize((13, 9))
    a.attrs["unit"] = "mm"
    again = stash.open(mapping)
    np.testing.assert_array_equal(again[...], model[:, :9])
    assert dict(again.attrs) == {"unit": "mm"}
    assert again.info().stored_chunks == 11
    g = stash.create_group(mapping, overwrite=True)
    g.create("x/y", (3,), "int8")[1] = 7
    assert [*g.keys()] == ["x"]
    assert stash.open_group(mapping)["x/y"][1] == 7


@pytest.mark.parametrize("kind", KINDS)
def test_records_grow_and_change(kind: str, tmp_path: Path) -> None:
    mapping = opened(kind, tmp_path)
    r = stash.create_records(mapping, {"id": "int64", "words": stash.ragged("int32")})
    r.extend({"id": np.arange(5), "words": [np.arange(i) for i in range(5)]})
    r.append({"id": 5, "words": np.arange(7)})
    r[2] = {"id": 2, "words": np.arange(9)}
    assert len(stash.open_records(mapping)[2]["words"]) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_notices_every_change(kind: str, tmp_path: Path) -> None:
    mapping = opened(kind, tmp_path)
    writer = stash.create(mapping, (4,), "int32", chunks=(4,))
    writer[...] = 1
    reader = stash.open(mapping, cache="1MiB")
    assert reader[0] == 1
    writer[0] = 2
    assert reader[0] == 2


@pytest.mark.parametrize("kind", ["exclusive", "sqlite of one thread", "sqlite"])
def test_reads_that_would_use_threads(kind: str, tmp_path: Path) -> None:
    values = np.arange(1 << 20).reshape(16, -1)
    mapping = opened(kind, tmp_path)
    for threads in None, 4:
        stash.save(mapping, values, chunks=(1, 1 << 15), overwrite=True)
        np.testing.assert_array_equal(stash.open(mapping, threads=threads)[...], values)


def test_another_thread_of_a_mapping_that_is_bound_to_one(tmp_path: Path) -> None:
    a = stash.create(opened("sqlite of one thread", tmp_path), (4,), "int32")
    failed: list[Exception] = []

    def read() -> None:
        try:
            a[...]
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert isinstance(failed[0], DriverError)
    assert "only the thread that opened it" in str(failed[0])


def test_keys_that_are_no_text_are_left_alone(tmp_path: Path) -> None:
    with dbm.dumb.open(str(tmp_path / "d"), "c") as mapping:
        mapping[b"\xff\xfe"] = b"theirs"
        stash.create(mapping, (4,), "int32")
        assert [*MemoryDriver(mapping).list()] == ["zarr.json"]
        assert mapping[b"\xff\xfe"] == b"theirs"


def test_a_shelf_holds_plain_bytes(tmp_path: Path) -> None:
    with shelve.open(str(tmp_path / "s")) as shelf:
        MemoryDriver(shelf).put("k", b"1")
        assert type(shelf["k"]) is bytes


def test_two_appends_within_one_step_of_asking_for_a_lock() -> None:
    """A signal's handler, or a finalizer that the collector runs, may append wherever it comes."""
    mine, other = stash.create({}, (0,), "i8", chunks=4), stash.create({}, (0,), "i8", chunks=4)
    inside = False

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal inside
        if frame.f_code.co_filename.endswith("thread_lock.py") and event == "line" and not inside:
            inside = True
            other.append([1])
            inside = False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        mine.append([1])
    finally:
        sys.settrace(before)
    assert len(other.refresh()) > 3 and mine[:].tolist() == [1]
