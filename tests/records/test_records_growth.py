"""Rows are added to all fields or to none: at every step, whatever fails, whoever looks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, DriverError, StashError
from tensorstash.testing.counting import Call, FailingDriver, Fault
from tests.support.records_model import MIXED, Model, equal, flat, holds, made


def test_rows_begin_where_the_others_ended() -> None:
    records, model = made(0)
    reader = stash.open_records(records.driver)
    rng = np.random.default_rng(1)
    for count in (1, 3, 0, 4, 10, 2):
        block = model.block(rng, count)
        assert records.extend(block) == model.rows
        model.extend(block)
        holds(records, model)
        holds(stash.open_records(records.driver), model)
    for _ in range(5):
        row = model.row(rng)
        assert records.append(row) == model.rows
        model.extend({path: [v] for path, v in row.items()})
    holds(records, model)
    # A handle keeps the rows that it knows until it is told to look again.
    assert len(reader) == 0
    holds(reader.refresh(), model)


def test_many_handles_and_stale_ones() -> None:
    records, model = made(2)
    rng = np.random.default_rng(2)
    handles = [stash.open_records(records.driver, "r+") for _ in range(3)]
    for turn in range(12):
        handle = handles[turn % 3]
        block = model.block(rng, turn % 4 + 1)
        assert handle.extend(block) == model.rows
        model.extend(block)
        holds(handle, model)
    holds(records.refresh(), model)


def test_a_stale_handle_keeps_rows_that_it_does_not_know() -> None:
    records, model = made(2)
    stale = stash.open_records(records.driver, "r+")
    rng = np.random.default_rng(3)
    block = model.block(rng, 7)
    records.extend(block)
    model.extend(block)
    new = model.block(rng, 2)
    plain = stale.select("x", "s", "in")
    plain[-2:] = {p: v for p, v in new.items() if p not in ("t", "p")}
    assert len(stale) == 2
    stale["t"][:2] = new["t"]
    stale["p"][:2] = new["p"]
    model.put([0, 1], new)
    holds(records, model)
    holds(stash.open_records(records.driver), model)


def test_two_handles_on_rows_and_ends() -> None:
    # r[i] = row of one handle and appends of another share the chunk at the end.
    records, model = made(0, length=4)
    writer, appender = (stash.open_records(records.driver, "r+") for _ in range(2))
    rng = np.random.default_rng(4)
    for turn in range(8):
        row = model.row(rng)
        writer[turn % 4] = row
        model.put([turn % 4], {p: [v] for p, v in row.items()})
        new = model.row(rng)
        appender.append(new)
        model.extend({p: [v] for p, v in new.items()})
    holds(records.refresh(), model)


# -- failing -----------------------------------------------------------------------------------


def copied(driver: Driver) -> MemoryDriver:
    return MemoryDriver(dict(driver._mapping))  # type: ignore[attr-defined]


def every_failure(
    start: MemoryDriver,
    before: Model,
    after: Model,
    change: Callable[[stash.Records], Any],
    errors: tuple[type[StashError], ...] = (),
) -> int:
    """``change`` with the n-th use of the driver failing, for every n. The records must be as
    they were, or as they were to become; then the same is asked for again, by the same handle
    and by a fresh one. Returns how many uses there were."""
    for number in itertools.count():
        inner = copied(start)
        failing: list[bool] = [True]

        def when(call: Call) -> Fault | None:
            return "error" if failing[0] and call.number == number else None  # noqa: B023

        records = stash.open_records(FailingDriver(inner, lambda call: None), "r+")
        driver: Any = records.driver
        records[:]
        driver._seen, driver.when = 0, when
        try:
            change(records)
        except DriverError:
            failing[0] = False
            found = stash.open_records(inner)
            if len(found) == before.rows and found.fields == before.fields:
                holds(found, before)
                for handle in (records, stash.open_records(copied(inner), "r+")):
                    holds(handle.refresh(), before)
                    change(handle)
                    holds(handle, after)
                    holds(stash.open_records(handle.driver), after)
            else:
                holds(found, after)
                holds(records.refresh(), after)
        else:
            holds(stash.open_records(inner), after)
            if driver._seen <= number:
                return number
    raise AssertionError


@pytest.mark.parametrize(("rows", "length", "count"), [(2, 0, 1), (0, 0, 5), (4, 3, 7)])
def test_rows_added_with_a_failure_anywhere(rows: int, length: int, count: int) -> None:
    records, before = made(rows, length)
    _, after = made(rows, length)
    block = before.block(np.random.default_rng(9), count)
    after.extend(block)
    start: Any = records.driver
    assert every_failure(start, before, after, lambda r: r.extend(block)) > 20


def test_a_creation_that_fails_anywhere_can_be_repeated() -> None:
    block = Model(MIXED).block(np.random.default_rng(9), 2)
    wanted = Model(MIXED, 3)
    wanted.extend(block)
    for number in itertools.count():
        inner = MemoryDriver()

        def when(call: Call) -> Fault | None:
            return "error" if call.number == number else None  # noqa: B023

        try:
            stash.create_records(FailingDriver(inner, when), MIXED, 3)
        except DriverError:
            for again in (True, False):
                other = copied(inner)
                try:
                    records = stash.create_records(other, MIXED, 3, overwrite=again)
                except AlreadyExists:  # it was claimed: all that readers and writers need is there
                    assert not again
                    records = stash.open_records(other, "r+")
                records.extend(block)
                records[0] = {p: v[0] for p, v in block.items()}
                records[0] = {p: v[1] for p, v in block.items()}
                records[0:1] = Model(MIXED, 1).taken([0])
                holds(stash.open_records(other), wanted)
        else:
            break
    assert number > 5


def test_what_a_failed_append_left_is_never_shown() -> None:
    records, model = made(2)
    inner: Any = records.driver

    def when(call: Call) -> Fault | None:
        return "error" if call.verb == "put" and call.key == "zarr.json" else None

    failing = stash.open_records(FailingDriver(inner, when), "r+")
    rng = np.random.default_rng(5)
    for count in (3, 30):
        with pytest.raises(DriverError):
            failing.extend(model.block(rng, count))
        holds(failing, model)
        holds(failing.refresh(), model)
    row = model.row(rng)
    records.append(row)
    model.extend({p: [v] for p, v in row.items()})
    records.add_field("later", ((2,), "int32"))
    model.fields["later"] = records.fields["later"]
    model.columns["later"] = [np.zeros(2, "i4")] * model.rows
    block = model.block(rng, 5)
    records.extend(block)
    model.extend(block)
    holds(stash.open_records(inner), model)


def test_readers_see_all_fields_of_a_row_or_none() -> None:
    records, model = made(2)
    inner: Any = records.driver
    lengths: list[int] = []
    before, after = model.taken(slice(None)), Model(MIXED)
    after.extend(before)
    block = model.block(np.random.default_rng(6), 6)
    after.extend(block)

    def look(call: Call) -> Fault | None:
        found = stash.open_records(inner)
        lengths.append(len(found))
        whole = before if len(found) == 2 else after.taken(slice(None))
        equal(flat(found[:], model.fields), whole)
        for name in ("x", "in/half", "s"):  # the arrays by themselves are never ahead
            assert len(stash.open_group(inner, "r+")[name]) <= len(found)
        return None

    stash.open_records(FailingDriver(inner, look), "r+").extend(block)
    assert [k for k, _ in itertools.groupby(lengths)] == [2, 8]


# -- what others see ---------------------------------------------------------------------------


def test_every_document_says_how_many_rows_there_are(tmp_path: Path) -> None:
    records = stash.create_records(tmp_path / "r", MIXED, 2, rows_per_chunk=3)
    block = Model(MIXED).block(np.random.default_rng(7), 5)
    for rows in (2, 7, 12):
        plain = zarr.open_group(str(tmp_path / "r"), mode="r", use_consolidated=False)
        whole = zarr.open_group(str(tmp_path / "r"), mode="r", use_consolidated=True)
        for name in ("x", "s", "in/j", "t/offsets", "p/offsets"):
            assert plain[name].shape[0] == whole[name].shape[0] == rows
            assert zarr.open_array(str(tmp_path / "r" / name), mode="r").shape[0] == rows
        for name in ("t", "p"):
            sizes = np.diff(plain[f"{name}/offsets"][:, :2], axis=1)
            assert plain[f"{name}/values"].shape == whole[f"{name}/values"].shape == (sizes.sum(),)
        records.extend(block)


def test_documents_of_fields_that_lag_are_brought_up_by_the_next_change(caplog: Any) -> None:
    records, model = made(2)
    inner: Any = records.driver

    def when(call: Call) -> Fault | None:
        return "error" if call.verb == "put_each" and call.key.endswith("zarr.json") else None

    failing = stash.open_records(FailingDriver(inner, when), "r+")
    block = model.block(np.random.default_rng(8), 4)
    assert failing.extend(block) == 2  # it has happened, and says so
    assert "lag behind" in caplog.text
    model.extend(block)
    holds(stash.open_records(inner), model)
    assert len(stash.open_group(inner, "r+")["x"]) == 2
    records.extend(block)
    model.extend(block)
    assert len(stash.open_group(inner, "r+")["x"]) == 10
    holds(stash.open_records(inner), model)


def test_what_others_wrote_into_the_documents_stays() -> None:
    records, model = made(2)
    driver = records.driver
    for key in ("zarr.json", "x/zarr.json", "t/values/zarr.json"):
        raw = json.loads(bytes(driver.get(key) or b""))
        raw["later"] = {"must_understand": False, "x": [1]}
        driver.put(key, json.dumps(raw).encode())
    stash.open_group(driver, "r+")["x"].attrs["unit"] = "K"
    stash.open_records(driver, "r+").attrs["note"] = [1]
    block = model.block(np.random.default_rng(8), 4)
    records.extend(block)  # this handle knows nothing of it
    model.extend(block)
    for key in ("zarr.json", "x/zarr.json", "t/values/zarr.json"):
        assert json.loads(bytes(driver.get(key) or b""))["later"]["x"] == [1]
    assert stash.open_group(driver, "r+")["x"].attrs["unit"] == "K"
    assert stash.open_records(driver).attrs["note"] == [1]
    holds(stash.open_records(driver), model)
