"""What is kept of an array is copied by the kernel as Python does it."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine.native import library
from tests.engine.native.test_kernel import arrays, stored
from tests.support.far import FarDriver
from tests.support.native import needs_kernel, outcome, turned
from tests.support.oracle import advanced_index, numpy_index, same

pytestmark = needs_kernel


@settings(max_examples=3 * settings.default.max_examples)
@given(st.data(), st.sampled_from(["near", "near, immutable", "far, immutable"]))
def test_what_is_kept_is_the_same(data: st.DataObject, where: str) -> None:
    case = data.draw(arrays())
    memory = MemoryDriver()
    with turned(False):
        wanted = stored(memory, case)
    indices = [
        data.draw(st.one_of(advanced_index(wanted.shape), numpy_index(wanted.shape)))
        for _ in range(3)
    ]
    found = []
    for on in (True, False):
        with turned(on):
            driver: Any = memory if where.startswith("near") else FarDriver(memory)
            array = stash.open(driver, cache="10MB", immutable="immutable" in where)
            same(array[...], wanted)
            results = [outcome(partial(array.__getitem__, index)) for index in indices]
            found.append((results, array.stats.cache_hits))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        if isinstance(other, tuple):
            assert one == other
        else:
            same(one, other)
    assert found[0][1] == found[1][1]


@pytest.fixture
def table() -> tuple[MemoryDriver, np.ndarray[Any, Any]]:
    memory, values = MemoryDriver(), np.arange(4000.0).reshape(1000, 4)
    stash.create(memory, shape=values.shape, dtype="f8", chunks=(10, 4))[...] = values
    return memory, values


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks each call of the kernel has, from now on."""
    found: list[int] = []
    run = library.Library.run

    def counted(self: Any, *args: Any, **rest: Any) -> Any:
        found.append(len(args[5]))
        return run(self, *args, **rest)

    monkeypatch.setattr(library.Library, "run", counted)
    return found


def test_rows_that_are_kept_cost_one_call_and_no_request(
    table: tuple[MemoryDriver, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, values = table
    driver = FarDriver(memory)
    array = stash.open(driver, cache="1MB", immutable=True)
    rows = np.random.default_rng(0).choice(1000, 80, replace=False)
    assert (array[rows] == values[rows]).all()
    calls, sent = calls_of(monkeypatch), array.stats.requests
    for again in (rows, rows[::-1], rows[:9]):
        assert (array[again] == values[again]).all()
    assert calls == [len(np.unique(some // 10)) for some in (rows, rows, rows[:9])]
    assert array.stats.requests == sent


def test_what_was_written_meanwhile_is_read(
    table: tuple[MemoryDriver, np.ndarray[Any, Any]],
) -> None:
    memory, values = table
    array = stash.open(memory, cache="1MB")
    rows = np.arange(3, 1000, 7)
    assert (array[rows] == values[rows]).all()
    stash.open(memory, mode="r+")[500:510] = 1.5
    values[500:510] = 1.5
    assert (array[rows] == values[rows]).all()


def test_what_is_absent_or_dropped_is_read_as_ever(
    table: tuple[MemoryDriver, np.ndarray[Any, Any]],
) -> None:
    memory, values = table
    memory.delete("c/3/0")
    values[30:40] = 0
    rows = np.random.default_rng(1).integers(0, 1000, 300)
    for cache in ("3kB", "1MB"):
        array = stash.open(FarDriver(memory), cache=cache, immutable=True)
        for _ in range(3):
            assert (array[rows] == values[rows]).all()


def test_times_have_no_buffer_and_are_read_all_the_same() -> None:
    memory, values = MemoryDriver(), np.arange(100).astype("M8[s]")
    stash.create(memory, shape=(100,), dtype="M8[s]", chunks=(10,))[...] = values
    array = stash.open(FarDriver(memory), cache="1MB", immutable=True)
    rows = np.arange(99, 0, -3)
    for _ in range(2):
        assert (array[rows] == values[rows]).all()
