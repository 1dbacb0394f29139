"""The buffered writer: small writes gathered into whole chunks."""

from __future__ import annotations

import _thread
import subprocess
import sys
import time
import warnings
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import tensorstash as stash
from tensorstash import writer as writer_module
from tensorstash.cached import PerProcess
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import (
    Closed,
    Conflict,
    DriverError,
    Invalid,
    InvalidSelection,
    StashPerformanceWarning,
)
from tensorstash.testing.counting import Call, Count, CountingDriver, FailingDriver, Fault
from tests.support.oracle import same
from tests.support.project import ROOT


def counted(shape: Any, chunks: Any, dtype: str = "f4", **how: Any) -> Any:
    driver = CountingDriver(MemoryDriver())
    array = stash.create(driver, shape, dtype, chunks=chunks, codecs=None, **how)
    driver.reset()
    return array, driver


# -- cost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [None, (64, 100)])
def test_row_at_a_time_writes_each_chunk_once(shards: Any) -> None:
    model = np.random.default_rng(0).random((256, 100), "f4")
    array, driver = counted(model.shape, (32, 50), shards=shards)
    with array.writer() as writer:
        for k in range(256):
            writer[k] = model[k]
    assert driver.reads == Count()
    assert driver.writes.calls == (16 if shards is None else 4)
    assert driver.writes.nbytes <= 1.1 * model.nbytes
    same(array[...], model)


def test_a_thousand_appends_write_little_more_than_their_rows() -> None:
    rows = np.random.default_rng(0).random((10_000, 128), "f4")
    array, driver = counted((0, 128), (256, 128))
    with array.writer() as writer:
        for k in range(0, 10_000, 10):
            writer.append(rows[k : k + 10])
    assert driver.writes.nbytes <= 1.1 * rows.nbytes
    assert array.shape == (10_000, 128)
    same(array[...], rows)
    assert driver.writes.calls < 60


def test_the_budget_bounds_what_is_held() -> None:
    model = np.random.default_rng(0).random((40, 60), "f4")
    array, _ = counted(model.shape, (10, 10))
    writer = array.writer(3 * 500)  # a chunk and its mask take 500 bytes
    for row in range(40):
        writer[row] = model[row]
        assert writer._held_bytes <= 1500
        assert writer._held_bytes == sum(held.nbytes for held in writer._held.values())
    writer.close()
    same(array[...], model)


def test_whole_chunks_go_at_once_and_the_rest_on_closing() -> None:
    array, driver = counted((10,), (4,))
    with array.writer() as writer:
        writer[0:4] = 1
        assert driver.writes.calls == 1
        writer[4:6] = 2
        writer[8:10] = 3
        assert driver.writes.calls == 1
        assert array[...].tolist() == [1] * 4 + [0] * 6
        writer.flush()
        assert array[...].tolist() == [1] * 4 + [2, 2, 0, 0, 3, 3]
        writer[6] = 4
    assert array[...].tolist() == [1] * 4 + [2, 2, 4, 0, 3, 3]


# -- what is stored ----------------------------------------------------------------------------


def test_it_merges_with_what_others_write_meanwhile() -> None:
    array, driver = counted((8,), (8,))
    array[...] = 9
    with array.writer() as writer:
        writer[0] = 1
        stash.open(driver, "r+")[7] = 7
    assert array[...].tolist() == [1] + [9] * 6 + [7]


def test_repeated_and_overlapping_assignments() -> None:
    array, _ = counted((8,), (4,), "i4")
    with array.writer() as writer:
        writer[[0, 0, 1, 1]] = [1, 2, 3, 4]
        writer[0:3] = 5
        writer[2] = 6
        writer[::-2] = 8
    assert array[...].tolist() == [5, 8, 6, 8, 0, 8, 0, 8]


@given(st.data())
def test_rows_by_number_are_what_other_selections_are(data: Any) -> None:
    """A row that lies in one chunk goes a way of its own, beside those that do not."""
    rows, width, edge = (data.draw(st.integers(1, n)) for n in (12, 4, 7))
    columns = data.draw(st.integers(1, width + 1))
    dtype = data.draw(st.sampled_from(["f4", "str", [("a", "i2"), ("b", "f4")]]))
    array, _ = counted((rows, width), (edge, columns), dtype)
    model = array[...]
    with array.writer(data.draw(st.sampled_from(["1MiB", 1, 40]))) as writer:
        for k in range(data.draw(st.integers(0, 20))):
            row = data.draw(st.integers(-rows, rows - 1))
            many = data.draw(st.sampled_from([0, 1, width]))
            value = np.arange(k, k + (many or 1)).astype(str if dtype == "str" else "i2")
            given = value[0] if not many else value
            if isinstance(dtype, list):
                given = np.array([(x, x) for x in np.atleast_1d(value)], dtype)
            where = data.draw(st.sampled_from([row, np.int64(row), slice(row, None), [row, row]]))
            writer[where] = given
            model[where] = given
    same(array[...], model)


def test_a_row_of_an_array_that_was_replaced_is_refused() -> None:
    place: dict[str, Any] = {}
    array = stash.create(place, (8, 3), "f4", chunks=(4, 3))
    writer = array.writer()
    writer[0] = 1
    stash.create(place, (8, 3), "f4", chunks=(4, 3), overwrite=True)
    writer[1] = 1  # is held with the other
    for row in (4, 2, 3):  # another chunk; two that complete the first
        if row == 2:
            writer[row] = 1
            continue
        with pytest.raises(Conflict):
            writer[row] = 1
    with pytest.raises(Conflict):
        writer.flush()
    assert not stash.load(place).any()


def test_appends_along_any_axis() -> None:
    array, _ = counted((2, 3), (2, 2), "i4")
    model = np.zeros((2, 3), "i4")
    with array.writer() as writer:
        for turn, axis in enumerate([0, -1, 1, -2, 0, 0]):
            shape = [*model.shape]
            shape[axis] = turn % 3
            rows = np.full(shape, turn + 1)
            writer.append(rows, axis)
            # Rows of another axis than the ones held must fit what those make of the array.
            model = np.concatenate([model, rows], axis)
    same(array[...], model.astype("i4"))


def test_rows_of_several_dtypes_keep_their_values() -> None:
    # Gathered as they are, these would pass through float64, which holds neither.
    array, _ = counted((0,), (8,), "u8")
    big = 2**63 + 1
    with array.writer() as writer:
        writer.append(np.array([big], "u8"))
        writer.append(np.array([1], "i8"))
        writer.append(np.array([2.0]))
    assert array[...].tolist() == [big, 1, 2]


def test_the_callers_memory_is_its_own() -> None:
    array, _ = counted((4,), (8,), "i4")
    row = np.array([1, 2, 3, 4], "i4")
    with array.writer() as writer:
        writer[...] = row
        row[:] = 9
        writer.append(row)
        row[:] = 0
    assert array[...].tolist() == [1, 2, 3, 4, 9, 9, 9, 9]


def test_appends_and_assignments_together() -> None:
    array, _ = counted((4, 2), (4, 2), "i4")
    with array.writer() as writer:
        writer[1] = 1
        writer.append(np.full((3, 2), 2))
        writer[2] = 3
        writer.flush()
        writer[6] = 4
    assert array[:, 0].tolist() == [0, 1, 3, 0, 2, 2, 4]


# -- errors ------------------------------------------------------------------------------------


def test_refused() -> None:
    array, _ = counted((4, 2), (4, 2))
    for budget in (0, -1, "much"):
        with pytest.raises(Invalid):
            array.writer(budget)
    with array.writer() as writer:
        with pytest.raises(InvalidSelection):
            writer[4] = 1
        with pytest.raises(Invalid, match="broadcast"):
            writer[0] = [1, 2, 3]
        with pytest.raises(Invalid, match="all other axes must agree"):
            writer.append(np.zeros((2, 3)))
        with pytest.raises(Invalid, match="out of bounds"):
            writer.append(np.zeros((2, 2)), axis=2)
    writer.close()
    for call in (lambda: writer.flush(), lambda: writer.append([[1, 2]])):
        with pytest.raises(Closed):
            call()
    assert not array[...].any()


def test_what_was_gathered_is_stored_when_the_block_raises() -> None:
    array, _ = counted((4,), (4,))
    with pytest.raises(KeyError), array.writer() as writer:
        writer[0] = 1
        writer.append([5])
        raise KeyError
    assert array[...].tolist() == [1, 0, 0, 0, 5]


def test_a_failed_flush_keeps_what_it_could_not_store() -> None:
    failing = False

    def when(call: Call) -> Fault | None:
        return "error" if failing and call.verb == "put" else None

    inner = MemoryDriver()
    stash.create(inner, (4, 2), "i4", chunks=(2, 2))
    writer = stash.open(FailingDriver(inner, when), "r+").writer()
    writer[0] = 1
    writer[3, 0] = 2
    writer.append([[7, 8]])
    failing = True
    for _ in range(3):
        with pytest.raises(DriverError):
            writer.flush()
    assert stash.load(inner).tolist() == [[0, 0]] * 4
    failing = False
    writer.close()
    assert stash.load(inner).tolist() == [[1, 1], [0, 0], [0, 0], [2, 0], [7, 8]]


AT_EXIT = """
import atexit, sys
import numpy as np
import tensorstash as stash
array = stash.create(sys.argv[1], (64, 4096), "f8", chunks=(4, 4096), threads=4, cache="64MiB")
writer = array.writer()
writer[:63] = 1
def last():
    writer.close()
    assert array[...].sum() == 63 * 4096
    assert array[0:4].sum() + array[4:8].sum() + array[8:12].sum() == 12 * 4096
atexit.register(last)
array[...]
"""


def test_a_writer_may_be_closed_as_the_interpreter_goes_down(tmp_path: Path) -> None:
    # Python starts no more threads then.
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert stash.load(tmp_path / "a").sum() == 63 * 4096


# -- rows one by one, without a writer ---------------------------------------------------------


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that was not warned yet."""
    monkeypatch.setattr(writer_module, "_told", PerProcess(list))


def array_of(place: Any) -> Any:
    array = stash.create(place, (0, 2), "i4")
    return lambda i: array.append([[i, i]])


def records_of(place: Any) -> Any:
    records = stash.create_records(place, {"x": "i4"})
    return lambda i: records.append({"x": i}) if i % 2 else records.extend({"x": [i]})


def typed_of(place: Any) -> Any:
    typed = stash.create_records(place, {"x": "i4"}).as_typed(make_dataclass("Row", [("x", int)]))
    return lambda i: typed.append({"x": i})


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize("made", [array_of, records_of, typed_of])
def test_a_loop_of_single_rows_is_told_once_of_the_writer(made: Any) -> None:
    append, again = made({}), made({})
    for i in range(99):
        append(i)
    with pytest.warns(StashPerformanceWarning, match=r"100 rows .* memory://.*writer\(\)") as told:
        append(99)
    assert told[0].filename == __file__  # the lambda above
    for i in range(150):
        append(i)
        again(i)


@pytest.mark.usefixtures("untold")
def test_the_warning_says_what_each_row_costs(tmp_path: Path) -> None:
    placed = stash.create_records(tmp_path / "r", {"x": "i4"}, in_place=True)
    with pytest.warns(StashPerformanceWarning, match="each of which stores metadata anew"):
        for i in range(100):
            placed.append({"x": i})


@pytest.mark.usefixtures("untold")
def test_who_stores_a_chunk_a_row_is_told_too() -> None:
    """A writer stores as many chunks, and the metadata of all of them once."""
    array = stash.create({}, (2, 0), "i4", chunks=(2, 1))
    with pytest.warns(StashPerformanceWarning, match="stores a chunk and metadata anew"):
        for _ in range(100):
            array.append([[1], [2]], axis=1)


@pytest.mark.usefixtures("untold")
def test_the_warning_is_of_the_users_line_and_can_be_an_error() -> None:
    records = stash.create_records({}, {"x": "i4"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(StashPerformanceWarning):
            for i in range(200):
                records.append({"x": i})
        assert len(stash.open_records(records.driver)) == len(records) == 99  # it stored nothing
        records.append({"x": 0})


@pytest.mark.usefixtures("untold")
def test_a_log_that_grows_now_and_then_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now[0])
    array = stash.create({}, 0, "i4")
    for i in range(250):
        array.append([i])
        now[0] += 1.0
    for i in range(250):  # and many rows at a time, or few through each of many handles
        array.append([i, i])
        stash.create({}, 0, "i4").append([i])


@pytest.mark.usefixtures("untold")
def test_a_writers_own_appends_do_not_count() -> None:
    array = stash.create({}, 0, "i4", chunks=1)
    records = stash.create_records({}, {"x": "i4"}, rows_per_chunk=1)
    for target, row in ((array, [1]), (records, {"x": 1})):
        for _ in range(120):
            with target.writer(1) as writer:  # type: ignore[attr-defined]
                writer.append(row)
        target.append(row)  # type: ignore[attr-defined]


def test_every_process_is_told_once() -> None:
    code = """
import os, sys, warnings
import tensorstash as stash
def told(place):
    array = stash.create(place, 0, "i4")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(250):
            array.append([i])
    return [w.filename for w in caught]
assert told({}) == ["<string>"], "parent"
assert told({}) == [], "again"
child = os.fork()
if not child:
    os._exit(0 if told({}) == ["<string>"] and told({}) == [] else 1)
assert os.waitpid(child, 0)[1] == 0, "child"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_row_is_stored_whoever_calls() -> None:
    store: dict[str, Any] = {}
    array = stash.create(store, (0,), "i4", chunks=(64,))
    exec("array.append([1])", {"array": array, "__builtins__": {}})
    _thread.start_new_thread(array.append, ([2],))
    while stash.open(store).shape != (2,):  # the test's own time limit is the guard
        time.sleep(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StashPerformanceWarning)
        for _ in range(200):
            exec("array.append([3])", {"array": array, "__builtins__": {}})
    assert stash.open(store)[:3].tolist() == [1, 2, 3]
    assert stash.open(store).shape == (202,)
