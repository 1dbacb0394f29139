"""What cannot be added to records, and what adding costs: refused by name, nothing stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Capabilities, Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Invalid, NotFound, Unsupported
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tests.support.oracle import same
from tests.support.records_model import EVERY, MIXED, Model, holds, made

# -- refused -----------------------------------------------------------------------------------


def test_a_handle_that_knows_other_fields_is_told_to_refresh() -> None:
    records, model = made(2)
    stale = stash.open_records(records.driver, "r+")
    block = model.block(np.random.default_rng(8), 2)
    one = {p: v[0] for p, v in block.items()}
    records.add_field("n", "int8")
    with pytest.raises(Conflict, match=r"changed since they were opened; refresh\(\)"):
        stale.extend(block)
    with pytest.raises(Conflict):
        stale.append(one)
    with pytest.raises(Invalid, match="no value for 'n'"):
        stale.refresh().append(one)
    assert stale.append({**one, "n": 3}) == 2
    records.drop_field("t")
    with pytest.raises(Conflict):
        stale.append({**one, "n": 3})
    records.refresh().rename_field("x", "y")
    with pytest.raises(Conflict):
        stale.append({**one, "n": 3})
    assert len(records.refresh()) == 3
    assert records["n"][...].tolist() == [0, 0, 3]


def test_rows_changed_without_the_lock_are_a_conflict() -> None:
    records, model = made(2)
    inner = records.driver

    def when(call: Call) -> Fault | None:
        if call.verb == "put" and call.key == "x/c/0/0":
            document = json.loads(bytes(inner.get("zarr.json") or b""))
            document["attributes"]["tensorstash"]["rows"] = 1
            for member in document["consolidated_metadata"]["metadata"].values():
                if member.get("shape", [0])[0] == 2 and member["data_type"] != "uint8":
                    member["shape"][0] = 1
            document["attributes"]["tensorstash"]["members"]["in/half"]["shape"] = [1]
            inner.put("zarr.json", json.dumps(document).encode())
        return None

    failing = stash.open_records(FailingDriver(inner, when), "r+")
    with pytest.raises(Conflict, match="repeat the call"):
        failing.extend(model.block(np.random.default_rng(8), 2))
    assert len(stash.open_records(inner)) == 1


def test_records_that_vanished() -> None:
    records, model = made(2)
    block = model.block(np.random.default_rng(8), 2)
    records.driver.delete_prefix("")
    for call in (
        lambda: records.extend(block),
        lambda: records.refresh(),
        lambda: records.add_field("n", "i4"),
        lambda: records.drop_field("x"),
        lambda: records.attrs.update(a=1),
    ):
        with pytest.raises(NotFound):
            call()
    assert list(records.driver.list()) == []


def test_growing_needs_a_lock_and_says_so() -> None:
    class Lockless(MemoryDriver):
        capabilities = Capabilities(locks=False, local=True)

        def lock(self, key: str, timeout: float | None = None) -> Any:
            return Driver.lock(self, key, timeout)

    records = stash.create_records(Lockless(), MIXED, 3)
    model = Model(MIXED, 3)
    before = dict(records.driver._mapping)  # type: ignore[attr-defined]
    block = model.block(np.random.default_rng(8), 3)
    for call in (
        lambda: records.extend(block),
        lambda: records.append({p: v[0] for p, v in block.items()}),
        lambda: records.add_field("n", "i4"),
        lambda: records.drop_field("x"),
        lambda: records.rename_field("x", "y"),
    ):
        with pytest.raises(Unsupported, match="lock"):
            call()
    assert dict(records.driver._mapping) == before  # type: ignore[attr-defined]
    kept = records.select("x", "s", "in")
    kept[1] = {p: v[0] for p, v in block.items() if p not in ("t", "p")}
    same(records["x"][1], block["x"][0])


def test_an_append_reads_the_document_once() -> None:
    driver = CountingDriver(MemoryDriver())
    records = stash.create_records(driver, {"a": "i4", "s": str, "b": ((3,), "f4")}, 0)
    row = {"a": 1, "s": "x", "b": [1, 2, 3]}
    # Of the first one no chunk needs to be read; what it stored itself a handle need not read, but
    # for text, of which no chunk is kept, and a chunk that it has read once.
    for chunks, documents in ((0, 4), (3, 0), (1, 0), (3, 4), (3, 0), (1, 0)):
        if (chunks, documents) == (3, 4):  # others were here
            stash.open_records(driver, "r+").append(row)
        driver.reset()
        records.append(row)
        assert driver.counts["lock"].calls == 1
        assert driver.writes.keys == 3 + 1 + 3  # chunks, the records' document, the fields'
        assert driver.reads.keys == chunks + documents
        assert driver.counts["list"].calls == 0
    assert len(stash.open_records(driver)) == len(records) == 7
    assert json.loads(bytes(driver.get("a/zarr.json") or b""))["shape"] == [7]


def test_every_kind_grows() -> None:
    records, model = stash.create_records({}, EVERY, 2, rows_per_chunk=2), Model(EVERY, 2)
    rng = np.random.default_rng(11)
    for count in (1, 4, 3):
        block = model.block(rng, count)
        records.extend(block)
        model.extend(block)
    holds(stash.open_records(records.driver), model)
