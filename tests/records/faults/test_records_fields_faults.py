"""Changes of fields that fail or are watched at every step: done or not, never half."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Corrupt, DriverError
from tensorstash.testing.counting import Call, FailingDriver, Fault
from tests.support.records_model import Model, holds


def made(rows: int, schema: Any) -> tuple[stash.Records, Model]:
    records, model = stash.create_records({}, schema, rows_per_chunk=3), Model(schema)
    block = model.block(np.random.default_rng(0), rows)
    records.extend(block)
    model.extend(block)
    return records, model


SMALL: dict[str, Any] = {"a": "i4", "t": stash.ragged("i4"), "in": {"s": str, "n": "i2"}}
CHANGES: dict[str, tuple[Callable[[stash.Records], Any], Callable[[stash.Records], bool]]] = {
    "add": (
        lambda r: r.add_field("new", "i4", [1, 2, 3, 4]),
        lambda r: "new" in r.names and r["new"][...].tolist() == [1, 2, 3, 4],
    ),
    "add absent": (lambda r: r.add_field("in/new", "i4"), lambda r: "in/new" in r.names),
    "add ragged": (
        lambda r: r.add_field("new", stash.ragged("i4"), [[1], [], [2, 3], [4]]),
        lambda r: "new" in r.names and [t.tolist() for t in r["new"]] == [[1], [], [2, 3], [4]],
    ),
    "drop": (lambda r: r.drop_field("t"), lambda r: "t" not in r.names),
    "drop nested": (lambda r: r.drop_field("in"), lambda r: "in/s" not in r.names),
    "rename": (lambda r: r.rename_field("a", "in/a"), lambda r: "in/a" in r.names),
    "rename ragged": (lambda r: r.rename_field("t", "u"), lambda r: "u" in r.names),
    "rename nested": (lambda r: r.rename_field("in", "out"), lambda r: "out/s" in r.names),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_failure_anywhere_leaves_it_done_or_not(what: str) -> None:
    change, is_done = CHANGES[what]
    start, model = made(4, SMALL)
    contents = dict(start.driver._mapping)  # type: ignore[attr-defined]
    wanted = {path: values for path, values in model.columns.items()}  # noqa: C416
    for number in itertools.count():
        inner = MemoryDriver(dict(contents))

        def when(call: Call) -> Fault | None:
            return "error" if call.number == number else None  # noqa: B023

        driver = FailingDriver(inner, lambda call: None)
        records = stash.open_records(driver, "r+")
        records[:]
        driver._seen, driver.when = 0, when
        try:
            change(records)
        except DriverError:
            driver.when = lambda call: None
            found = stash.open_records(inner, "r+")
            if not is_done(found):
                holds(found, model)
                change(found)
                found = stash.open_records(inner)
            assert is_done(found)
            assert len(found) == 4
            for path, values in wanted.items():
                name = path if path in found.names else None
                if name and found.fields[name].kind == "fixed":
                    assert np.array_equal(found[name][...], np.stack(values))
            writer = stash.open_records(inner, "r+")
            rows = [{p: v for p, v in flat_row(writer, 0).items()}]  # noqa: C416
            assert writer.extend(rows) == 4
            assert len(stash.open_records(inner)) == 5
            records.refresh()
            assert is_done(stash.open_records(inner)) or len(records) == 5
        else:
            assert is_done(stash.open_records(inner))
            assert number >= 3
            return


def flat_row(records: stash.Records, i: int) -> dict[str, Any]:
    columns = records.source.take(slice(i, i + 1, 1))
    return {path: found[0] for path, found in columns.items()}


@pytest.mark.parametrize("how", ["add the field", "delete it first"])
def test_what_a_drop_that_failed_has_left_can_be_deleted(how: str) -> None:
    records, _ = made(3, SMALL)

    def when(call: Call) -> Fault | None:
        return "error" if call.verb.startswith("delete") else None

    failing = stash.open_records(FailingDriver(records.driver, when), "r+")
    with pytest.raises(DriverError):
        failing.drop_field("t")
    again = stash.open_records(records.driver, "r+")
    assert "t" not in again.names
    group = stash.open_group(records.driver, "r+")
    with pytest.raises(Corrupt, match="what a delete left; delete it again"):
        group["t"]
    if how == "delete it first":
        del group["t"]
        assert not [*records.driver.list("t/")]
    again.add_field("t", "i4", [1, 2, 3])
    assert stash.open_records(records.driver)["t"][...].tolist() == [1, 2, 3]


def test_changes_are_one_step_for_every_reader() -> None:
    for what, (change, is_done) in CHANGES.items():
        records, model = made(4, SMALL)
        inner = records.driver
        seen: list[bool] = []

        def look(call: Call, inner: Any = inner, seen: Any = seen, is_done: Any = is_done,
                 model: Any = model) -> Fault | None:  # fmt: skip
            found = stash.open_records(inner)
            seen.append(is_done(found))
            if not seen[-1]:
                holds(found, model)
            else:
                found[:]
            return None

        change(stash.open_records(FailingDriver(inner, look), "r+"))
        assert [k for k, _ in itertools.groupby([*seen, True])] == [False, True], what
