"""Rows gathered by a writer: whole chunks, within a budget, and nothing held is ever lost."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Closed, Conflict, DriverError, Invalid
from tensorstash.testing.counting import Call, FailingDriver, Fault
from tests.support.noting import Noting
from tests.support.record_races import TOLD, numbers_of, told
from tests.support.records_model import EVERY, Model, holds

BIG: dict[str, Any] = {"image": ((16, 16), "uint8"), "label": "int64", "in": {"x": ((2,), "f4")}}


def written(driver: Any) -> int:
    return sum(len(v) for key, v in driver.driver._mapping.items() if "/c/" in key)


@pytest.mark.parametrize("how", ["append", "extend", "mixed"])
@pytest.mark.parametrize("total", [4096, 8192])
def test_whole_chunks_are_put_once(how: str, total: int) -> None:
    driver = Noting(MemoryDriver())
    records = stash.create_records(driver, BIG, rows_per_chunk=64, codecs=None)
    edges = {records.source.table.catalog.chunk_rows(name) for name in records.names}
    assert max(edges) <= 4096
    model = Model(BIG)
    rng = np.random.default_rng(0)
    block = {
        "image": rng.integers(0, 256, (total, 16, 16)).astype("u1"),
        "label": np.arange(total),
        "in/x": rng.normal(size=(total, 2)).astype("f4"),
    }
    model.extend(block)
    driver.reset()
    with records.writer() as writer:
        at = 0
        while at < total:
            n = 1 if how == "append" else int(rng.integers(1, 300))
            if how == "mixed" and rng.integers(2):
                n = 1
            n = min(n, total - at)
            piece = {name: values[at : at + n] for name, values in block.items()}
            if n == 1:
                writer.append({name: values[0] for name, values in piece.items()})
            else:
                writer.extend(piece)
            at += n
    holds(records, model)
    payload = sum(values.nbytes for values in block.values())
    chunks = [key for key in driver.stored if "/c/" in key]
    assert max(Counter(chunks).values()) == 1
    assert driver.writes.nbytes <= 1.1 * payload
    assert driver.counts["lock"].calls <= 4


def test_rows_that_fill_no_chunk_are_stored_at_the_end() -> None:
    records, model = stash.create_records({}, EVERY, 3, rows_per_chunk=4), Model(EVERY, 3)
    rng = np.random.default_rng(0)
    with records.writer() as writer:
        for count in (1, 5, 0, 2, 9, 1):
            block = model.block(rng, count)
            model.extend(block)
            if count == 1:
                writer.append({path: values[0] for path, values in block.items()})
            else:
                writer.extend(block)
        assert len(records) == 3
        assert len(stash.open_records(records.driver)) == 3
    holds(records, model)
    holds(stash.open_records(records.driver), model)


@pytest.mark.parametrize("budget", [1, 1000, "20KiB", "1MiB"])
def test_any_budget_gives_the_same_rows(budget: Any) -> None:
    records, model = stash.create_records({}, EVERY, rows_per_chunk=4), Model(EVERY)
    rng = np.random.default_rng(1)
    with records.writer(budget) as writer:
        for turn in range(12):
            block = model.block(rng, 1 + turn % 5)
            writer.extend(block)
            model.extend(block)
    holds(stash.open_records(records.driver), model)


@pytest.mark.parametrize("budget", [0, -1, "lots", None])
def test_budgets_that_make_no_sense(budget: Any) -> None:
    with pytest.raises(Invalid):
        stash.create_records({}, {"a": "i4"}).writer(budget)


def test_no_more_than_the_budget_is_held() -> None:
    records = stash.create_records({}, {"x": ((1 << 15,), "f8"), "n": "i4"}, rows_per_chunk=2)
    row = {"x": np.random.default_rng(0).normal(size=1 << 15), "n": 1}
    most = []
    with records.writer("4MiB") as writer:
        for _ in range(100):  # 256 KiB each
            writer.append(row)
            most.append(writer._nbytes)
        assert max(most) <= 5 << 20
        assert len(records) >= 80


_LONG_EXTEND = """
import tracemalloc
import numpy as np
import tensorstash as stash
records = stash.create_records({}, {"x": ((1 << 15,), "f8"), "n": "i4"}, rows_per_chunk=2)
x = np.random.default_rng(0).normal(size=1 << 15)
rows = {"x": np.broadcast_to(x, (64, 1 << 15)), "n": np.ones(64, int)}
with records.writer("4MiB") as writer:
    writer.extend(rows)
    writer.flush()
    tracemalloc.start()
    writer.extend(rows)
    print(tracemalloc.get_traced_memory()[1])
assert len(records) == 128
"""


def test_rows_that_come_at_once_are_held_in_part() -> None:
    # In a process of its own: what threads of other tests allocate is none of it.
    done = subprocess.run([sys.executable, "-c", _LONG_EXTEND], capture_output=True, check=True)
    assert int(done.stdout) < 40 << 20  # of 16 MiB that are stored, in that process' memory


def test_the_callers_memory_may_be_reused() -> None:
    records = stash.create_records({}, {"x": ((2,), "i4"), "t": stash.ragged("i4")})
    x, t = np.zeros(2, "i4"), np.zeros(3, "i4")
    with records.writer() as writer:
        for i in range(5):
            x[:] = t[:] = i
            writer.append({"x": x, "t": t})
            writer.extend({"x": x[None], "t": [t]})
    assert records["x"][:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [row.tolist() for row in records["t"]][-1] == [4, 4, 4]


def test_integers_of_different_types_stay_whole() -> None:
    records = stash.create_records({}, {"u": "uint64", "i": "int64", "f": "float32"})
    with records.writer() as writer:
        writer.append({"u": 2**63 + 1, "i": -(2**63) + 1, "f": 1})
        writer.append({"u": np.int8(1), "i": np.uint8(3), "f": np.float64(0.1)})
        writer.extend({"u": np.array([2**63 + 3], "u8"), "i": np.array([2**62 + 1]), "f": [0.1]})
        writer.extend({"u": np.array([5]), "i": np.array([6], "u8"), "f": np.ones(1, "f2")})
    assert records["u"][...].tolist() == [2**63 + 1, 1, 2**63 + 3, 5]
    assert records["i"][...].tolist() == [-(2**63) + 1, 3, 2**62 + 1, 6]
    assert records["f"][...].tolist() == [1, np.float32(0.1), np.float32(0.1), 1]


# -- assignments -------------------------------------------------------------------------------


def test_assignments_are_collected() -> None:
    driver = Noting(MemoryDriver())
    schema = {"x": "i4", "s": str, "t": stash.ragged("i4")}
    records = stash.create_records(driver, schema, 64, rows_per_chunk=8)
    driver.reset()
    with records.writer() as writer:
        for i in range(64):
            writer[i] = {"x": -1, "s": "old", "t": [1, 2]}
        for i in range(-64, 0):
            writer[i] = {"x": i, "s": str(i), "t": [i] * (i % 3)}
        writer.append({"x": 5, "s": "new", "t": []})
    assert records["x"][...].tolist() == [*range(-64, 0), 5]
    assert records[:]["s"][10] == "-54"
    assert [len(t) for t in records["t"]] == [i % 3 for i in range(-64, 0)] + [0]
    chunks = Counter(key for key in driver.stored if "/c/" in key and "values" not in key)
    assert max(chunks.values()) <= 2
    with records.writer(200) as writer:
        for i in (3, 3, 60, 3):
            writer[i] = {"x": i, "s": "tiny budget", "t": [i] * 100}
    assert records[3]["s"] == "tiny budget"
    for wrong in (65, -66, slice(0, 2), "x", [1], 1.5, True):
        with records.writer() as writer, pytest.raises(Invalid, match="single rows of 65"):
            writer[wrong] = {"x": 1, "s": "", "t": []}  # type: ignore[index]


# -- when something goes wrong -----------------------------------------------------------------


def test_an_error_in_the_block_keeps_what_was_added_before() -> None:
    records = stash.create_records({}, TOLD)
    with pytest.raises(ZeroDivisionError), records.writer() as writer:
        writer.append(told(1))
        writer.extend([told(2), told(3)])
        1 / 0  # noqa: B018
    assert numbers_of(records) == [1, 2, 3]


def test_a_row_that_does_not_fit_is_refused_at_once() -> None:
    records = stash.create_records({}, TOLD)
    with records.writer() as writer:
        writer.append(told(1))
        for wrong, match in [
            ({**told(2), "id": "x"}, "field 'id'"),
            ({**told(2), "more": 1}, "no field 'more'"),
            ({"id": 1}, "no value for 'x', 't', 'p', 's', 'in/j', 'in/b'"),
            (5, "a row is"),
        ]:
            with pytest.raises(Invalid, match=match):
                writer.append(wrong)
        with pytest.raises(Invalid, match="field 's'"):
            writer.extend([told(2), {**told(3), "s": 3}])
        writer.append(told(4))
    assert numbers_of(records) == [1, 4]


@pytest.mark.parametrize("verb", ["put", "lock"])
def test_a_flush_that_fails_keeps_the_rows(verb: str) -> None:
    broken = [False]

    def when(call: Call) -> Fault | None:
        return "error" if broken[0] and call.verb == verb else None

    driver = FailingDriver(MemoryDriver(), when)
    records = stash.create_records(driver, TOLD, rows_per_chunk=2)
    records.append(told(0))
    writer = records.writer()
    writer.extend([told(i) for i in range(1, 6)])
    writer[0] = told(100)
    for _ in range(2):
        broken[0] = True
        with pytest.raises(DriverError):
            writer.flush()
        with pytest.raises(DriverError):
            writer.close()
        assert len(stash.open_records(driver.driver)) == 1
    with pytest.raises(DriverError), records.writer(1) as small:
        small.append(told(6))  # over the budget: it is held still
    broken[0] = False
    writer.append(told(7))
    writer.close()
    writer.close()
    assert numbers_of(records) == [100, 1, 2, 3, 4, 5, 7]
    small.flush()
    assert numbers_of(records) == [100, 1, 2, 3, 4, 5, 7, 6]
    for call in (lambda: writer.append(told(1)), lambda: writer.flush(),
                 lambda: writer.extend([]), lambda: writer.__setitem__(0, told(1))):  # fmt: skip
        with pytest.raises(Closed, match="take a new one"):
            call()


def test_fields_that_changed_meanwhile_keep_the_rows() -> None:
    records = stash.create_records({}, {"a": "i4"})
    writer = records.writer()
    writer.append({"a": 1})
    other = stash.open_records(records.driver, "r+")
    other.add_field("b", "i4")
    with pytest.raises(Conflict, match=r"refresh\(\)"):
        writer.flush()
    other.drop_field("b")
    writer.flush()
    assert records["a"][...].tolist() == [1]


def test_two_writers_at_once() -> None:
    records = stash.create_records({}, TOLD, rows_per_chunk=2)
    other = stash.open_records(records.driver, "r+")
    with records.writer(3000) as one, other.writer(3000) as two:
        for i in range(20):
            one.append(told(i))
            two.append(told(100 + i))
    found = numbers_of(records.refresh())
    assert sorted(found) == [*range(20), *range(100, 120)]
    assert [n for n in found if n < 100] == [*range(20)]
    assert [n for n in found if n >= 100] == [*range(100, 120)]
