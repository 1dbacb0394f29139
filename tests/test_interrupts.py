"""After an interrupt, wherever it came: no lock held, no thread left, nothing left open, the store
in the old state or the new one, and the handle as good as before."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers import flock
from tensorstash.registry import connect
from tensorstash.torch import Loader
from tests.interrupts import (
    Place,
    descriptors,
    in_thread,
    interrupted,
    leftovers,
    own_threads,
    places,
    until,
)

_OPTIONS = {"lease": 60.0}
"""A lock that is left held does not lapse before the test notices."""

_CENTRE = (
    "drivers/", "turn.py", "threads.py", "merge.py", "resize.py", "write.py", "buffer.py",
    "cache.py", "records/grow.py", "records/writer.py", "loading/ahead.py", "loading/readers.py",
)  # fmt: skip
"""Files in which no place is left out."""

_EVERY = 9
"""Of the places elsewhere, so many are passed over for one."""


class Case:
    """An operation on a fresh place. ``states``: what another may find there after it was
    interrupted; ``None``: anything whole."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        self.options = options
        self.driver = self.connect()
        self.prepare()

    def connect(self) -> Driver:
        scheme, _, rest = self.url.partition("://")
        return connect(self.url, dict(self.options)) if scheme else connect(rest, {})

    def prepare(self) -> None: ...

    def run(self) -> None:
        raise NotImplementedError

    def state(self, driver: Driver) -> Any:
        """What another sees."""
        raise NotImplementedError

    key = "zarr.json"
    """What is locked by the operation, or might be."""


class Put(Case):
    def prepare(self) -> None:
        self.driver.put("d/k", b"old")

    def run(self) -> None:
        self.driver.put("d/k", b"new" * 50)

    def state(self, driver: Driver) -> Any:
        value = driver.get("d/k")
        return None if value is None else bytes(value), sorted(driver.list())


class PutAbsent(Put):
    def prepare(self) -> None: ...

    def run(self) -> None:
        with suppress(stash.errors.Conflict):  # it was stored before the interrupt
            self.driver.put("d/k", b"new", if_absent=True)


class PutTag(Put):
    def run(self) -> None:
        self.driver.put("d/k", b"new" * 50, if_tag=self.driver.tag("d/k"))


class Delete(Put):
    def run(self) -> None:
        self.driver.delete("d/k")


class Lock(Put):
    key = "d/k"

    def run(self) -> None:
        with self.driver.lock("d/k", 30) as check:
            check()


class Waited(Lock):
    """A lock that another has; the wait ends by its time."""

    def run(self) -> None:
        other = self.connect()
        with other.lock("d/k"), suppress(stash.errors.TimedOut):
            with self.driver.lock("d/k", 0.01):
                pass


class Append(Case):
    def prepare(self) -> None:
        self.array = stash.create(self.driver, (5,), "int32", chunks=(4,), codecs=None)
        self.array[...] = 1

    def run(self) -> None:
        self.array.refresh()
        if len(self.array) == 5:
            self.array.append(np.full(6, 2, "int32"))

    def state(self, driver: Driver) -> Any:
        return stash.open(driver)[...].tolist()


class Resize(Append):
    def run(self) -> None:
        self.array.resize((3,))


class Merge(Append):
    def run(self) -> None:
        self.array[1:3] = 7


class Shards(Append):
    def prepare(self) -> None:
        self.array = stash.create(self.driver, (8,), "int32", chunks=(2,), shards=(8,))
        self.array[...] = 1

    def run(self) -> None:
        self.array[1:4] = 7


class Buffered(Append):
    def run(self) -> None:
        self.array.refresh()
        if len(self.array) == 5:
            with self.array.writer() as writer:
                writer.append(np.full(3, 2, "int32"))


class Records(Case):
    def prepare(self) -> None:
        schema = {"id": "int64", "t": stash.ragged("int32")}
        self.records = stash.create_records(self.driver, schema, rows_per_chunk=4)
        self.records.extend({"id": np.arange(3), "t": [[1], [2, 2], []]})

    def run(self) -> None:
        self.records.refresh()
        if len(self.records) == 3:
            self.records.extend({"id": np.arange(4), "t": [[7], [], [8, 8], [9]]})

    def state(self, driver: Driver) -> Any:
        records = stash.open_records(driver).with_format("python")
        return records.schema.keys(), records[:]


class Row(Records):
    def run(self) -> None:
        self.records[1] = {"id": 5, "t": [5]}

    def state(self, driver: Driver) -> Any:
        # Each field of a row is stored by itself.
        rows = stash.open_records(driver)
        return rows["id"][[0, 2]].tolist(), rows["id"][1] in (1, 5), len(rows)


class AddField(Records):
    def run(self) -> None:
        self.records.refresh()
        if "x" not in self.records.schema:
            self.records.add_field("x", "float32", np.arange(3, dtype="float32"))


class RecordsWriter(Records):
    def run(self) -> None:
        self.records.refresh()
        if len(self.records) == 3:
            with self.records.writer() as writer:
                writer.append({"id": 9, "t": [1, 2]})


class Copy(Append):
    """The source stays; what is there of the target may be replaced."""

    def run(self) -> None:
        inner = stash.open_group(self.driver, "a")
        stash.copy(stash.open(self.driver), inner.driver, overwrite=True) if False else None
        target: dict[str, bytes] = {}
        stash.copy(self.array, target)


class Load(Records):
    """Two threads, read ahead."""

    def run(self) -> None:
        seen = [
            int(i)
            for batch in Loader(self.records, batch_size=2, threads=2, prefetch=2)
            for i in batch["id"]
        ]
        assert seen == [0, 1, 2]


class Cached(Append):
    def run(self) -> None:
        array = stash.open(self.driver, cache="1MiB")
        for _ in range(2):
            assert array[...].tolist() == [1] * 5


CASES: list[type[Case]] = [
    Put, PutAbsent, PutTag, Delete, Lock, Waited, Append, Resize, Merge, Shards, Buffered, Records,
    Row, AddField, RecordsWriter, Load, Cached,
]  # fmt: skip

_spawn = multiprocessing.get_context("spawn")


def _neighbour(pipe: Any) -> None:
    """A process that locks what it is told to."""
    while True:
        url, options, key = pipe.recv()
        try:
            with connect(url, options).lock(key, 20):
                pass
            pipe.send("locked")
        except BaseException as error:
            pipe.send(repr(error))


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Callable[[str, dict[str, Any], str], None]]:
    mine, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_neighbour, args=(theirs,), daemon=True)
    process.start()

    def lock(url: str, options: dict[str, Any], key: str) -> None:
        mine.send((url, options, key))
        assert mine.poll(60), "another process hangs"
        assert mine.recv() == "locked"

    yield lock
    process.kill()
    process.join()


def _hangs(*_: Any) -> None:
    raise AssertionError("it hangs")


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    """Against an operation that hangs after an interrupt; no place takes as long."""
    before = signal.signal(signal.SIGALRM, _hangs)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _chosen(found: list[Place]) -> list[Place]:
    near = [place for place in found if place.file.startswith(_CENTRE)]
    far = [place for place in found if not place.file.startswith(_CENTRE)]
    return near + far[::_EVERY]


def campaign(
    kind: type[Case],
    fresh: Callable[[], tuple[str, dict[str, Any], Path | None]],
    neighbour: Callable[[str, dict[str, Any], str], None] | None,
    choose: Callable[[list[Place]], list[Place]],
) -> int:
    """Interrupt the operation at every place chosen; how many there were."""
    url, options, _ = fresh()
    case = kind(url, options)
    old = case.state(case.driver)
    found = places(case.run)  # a second run takes no imports
    new = case.state(case.connect())
    url, options, _ = fresh()
    case = kind(url, options)
    found = [*dict.fromkeys(found + places(case.run))]
    assert case.state(case.connect()) == new
    chosen = choose(found)
    for number, at in enumerate(chosen):
        signal.alarm(120)
        url, options, folder = fresh()
        case = kind(url, options)
        opened, threads = descriptors(), own_threads()
        came = interrupted(case.run, at)
        try:
            if own_threads() != threads:
                assert until(lambda: own_threads() == threads), own_threads()
            if descriptors() != opened:
                assert until(lambda: descriptors() == opened), descriptors()
            assert [file for file in flock._held if not file._owner.closed] == []
            state = in_thread(lambda: _looked(case))
            assert state in ((old, new) if came else (new,)), state
            if neighbour is not None and number % 5 == 0:
                neighbour(url, options, case.key)
            case.run()
            assert case.state(case.connect()) == new
            if folder is not None:
                [*case.driver.list()]
                assert leftovers(folder) == []
        except BaseException as error:
            error.add_note(f"after an interrupt at {at}")
            raise
    return len(chosen)


def _looked(case: Case) -> Any:
    other = case.connect()
    if other.capabilities.locks:
        with other.lock(case.key, 20):
            pass
    return case.state(other)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_file(kind: type[Case], tmp_path: Path, neighbour: Any) -> None:
    numbers = itertools.count()

    def fresh() -> tuple[str, dict[str, Any], Path]:
        folder = tmp_path / str(next(numbers))
        return f"file://{folder}", {}, folder

    assert campaign(kind, fresh, neighbour, _chosen) > 20
