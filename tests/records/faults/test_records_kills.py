"""Writers of records that are killed: the rows from before or with those that were added, whole."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.testing.counting import Call, FailingDriver, Fault
from tests.faults.test_processes import die_at
from tests.support.races import fork
from tests.support.record_races import Place, is_told, numbers_of, told
from tests.support.records_model import flat

ROWS = [told(i) for i in range(5)]


def killed_at(path: Path, number: int, change: Callable[[stash.Records], Any]) -> None:
    """``change`` in this process, which dies instead of its ``number``-th request."""

    def when(call: Call) -> Fault | None:
        if call.number == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return None

    driver = FailingDriver(FileDriver(path), lambda call: None)
    records = stash.open_records(driver, "r+")
    records[:]
    driver._seen, driver.when = 0, when
    change(records)


def deaths(
    tmp_path: Path,
    change: Callable[[stash.Records], Any],
    check: Callable[[Place, int], Any],
    step: int,
) -> int:
    """Kill a child that makes a change at every ``step``-th request, each time from the start."""
    start = Place(str(tmp_path / "start"))
    start.create().extend(ROWS)
    for number in itertools.count(0, step):
        place = Place(str(tmp_path / str(number)))
        shutil.copytree(start.url, place.url)
        child = fork.Process(target=killed_at, args=(Path(place.url), number, change))
        child.start()
        child.join(60)
        check(place, number)
        if child.exitcode == 0:
            return number
        assert child.exitcode == -signal.SIGKILL
    raise AssertionError


def extend(records: stash.Records) -> None:
    records.extend([told(i) for i in range(5, 9)])


def whole(place: Place, number: int = 0) -> None:
    found = numbers_of(place.open())
    assert found in ([*range(5)], [*range(9)])
    records = place.open("r+")
    assert records.extend([told(78), told(79)]) == len(found)
    assert numbers_of(place.open()) == [*found, 78, 79]
    if number % 5:
        return
    # Nothing of the dead comes to light later.
    records.add_field("late", "i4")
    records.extend([{**told(i), "late": 3} for i in (80, 81, 82)])
    assert [int(row["id"]) for row in place.open()] == [*found, *range(78, 83)]
    assert place.open()["late"][...].tolist() == [0] * (len(found) + 2) + [3] * 3


def test_killed_at_each_request_of_an_extend(tmp_path: Path) -> None:
    assert deaths(tmp_path, extend, whole, 2) > 40


@pytest.mark.parametrize("call", ["write", "rename"])
def test_killed_within_the_file_driver(tmp_path: Path, call: str) -> None:
    for number in itertools.count(0, 3):
        place = Place(str(tmp_path / str(number)))
        place.create().extend(ROWS)
        child = fork.Process(target=extend_and_die, args=(place, call, number))
        child.start()
        child.join(60)
        whole(place)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert number


def extend_and_die(place: Place, call: str, number: int) -> None:
    records = place.open("r+")
    die_at(call, number)
    extend(records)


def test_killed_while_rows_are_rewritten(tmp_path: Path) -> None:
    # Row by row and field by field: the old value or the new one.
    new = {1: told(1001), 3: told(1003), 4: told(1004)}

    def rewrite(records: stash.Records) -> None:
        records[1] = new[1]
        records.where([3, 4])[0] = new[3]
        records[-1] = new[4]

    def old_or_new(place: Place, number: int) -> None:
        records = place.open("r+")
        for i, row in enumerate(records):
            values = flat(row, records.fields)
            choices = [flat(told(i), records.fields), flat(new.get(i, told(i)), records.fields)]
            for name, value in values.items():
                assert any(np.array_equal(value, one[name]) for one in choices), (i, name)
        rewrite(records)
        assert numbers_of(place.open()) == [0, 1001, 2, 1003, 1004]

    assert deaths(tmp_path, rewrite, old_or_new, 3) > 30


def write_for_ever(place: Place, pipe: Any) -> None:
    records = place.open("r+")
    pipe.send("started")
    for number in itertools.count(len(records)):
        if number % 3:
            records.append(told(number))
        else:
            with records.writer() as writer:
                writer.append(told(number))


def test_killed_at_any_moment(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "r"))
    place.create()
    seen: list[int] = []
    for trial in range(8):
        mine, theirs = fork.Pipe()
        child = fork.Process(target=write_for_ever, args=(place, theirs))
        child.start()
        mine.recv()
        time.sleep(0.003 + 0.0171 * trial)
        child.kill()
        child.join()
        mine.close()
        theirs.close()
        found = numbers_of(place.open())
        assert found[: len(seen)] == seen
        assert place.open("r+").append(told(len(found))) == len(found)
        seen = [*found, len(found)]
    assert seen == [*range(len(seen))]
    assert all(map(is_told, place.open()))
