"""What :mod:`tests.faults.test_interrupts` interrupts: one class an operation."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.registry import connect
from tensorstash.torch import Loader


class Case:
    """An operation on a fresh place. ``states``: what another may find there after it was
    interrupted; ``None``: anything whole."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        self.options = options
        self.driver = self.connect()
        self.prepare()

    def connect(self) -> Driver:
        return connect(self.url, dict(self.options))

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
        with (
            self.connect().lock("d/k"),
            suppress(stash.errors.TimedOut),
            self.driver.lock("d/k", 0.01),
        ):
            raise AssertionError("two have it")


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
    """The source stays as it is, and what there is of the target may be replaced."""

    def run(self) -> None:
        copied = stash.copy(self.array, self.driver_of_copy(), overwrite=True)
        assert copied[...].tolist() == self.array[...].tolist()

    def driver_of_copy(self) -> Driver:
        scheme, _, rest = self.url.partition("://")
        return connect(f"{scheme}://{rest}-copy", dict(self.options))


class Shared(Case):
    """A store in shared memory, connected to and let go of."""

    def prepare(self) -> None:
        self.driver.put("k", b"v")

    def run(self) -> None:
        name = f"{self.url}-other"
        other = connect(name, {})
        other.put("k", b"w")
        other.close()
        del other
        [*connect(name, {}).list()]

    def state(self, driver: Driver) -> Any:
        return [bytes(driver.get("k") or b"")]


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
    Row, AddField, RecordsWriter, Copy, Load, Cached,
]  # fmt: skip
