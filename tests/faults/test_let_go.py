"""A store in shared memory goes with the last handle on it, at once: nothing that was done with it
leaves a cycle of references, which would keep it until the garbage collector comes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Corrupt, NotFound
from tensorstash.threads import begin
from tensorstash.torch import Loader, Windows
from tests.support.far import FarDriver
from tests.support.interrupts import uncollected, until
from tests.support.shm_names import fresh, left


@pytest.fixture
def name() -> Iterator[str]:
    yield from fresh()


def filled(url: str, **how: Any) -> stash.Array:
    array = stash.create(url, (8, 40_000), "i4", chunks=(1, 40_000), **how)
    array[...] = np.arange(320_000).reshape(8, 40_000)
    return array


def damaged(url: str, *rows: int) -> Driver:
    driver = filled(url).driver
    for row in rows:
        driver.put(f"c/{row}/0", b"rubbish")
    return driver


def through_a_cache(url: str) -> None:
    array = stash.open(filled(url).driver, cache="1MiB")
    assert array[:2, 0].tolist() == [0, 40_000]


def read_ahead(url: str) -> None:
    array = stash.open(filled(url).driver, cache="8MiB")
    for row in range(4):
        assert array[row, 0] == 40_000 * row
        array[row]


def read_ahead_to_what_is_damaged(url: str) -> None:
    array = stash.open(damaged(url, 3), cache="8MiB")
    for row in range(3):
        array[row]
    with pytest.raises(Corrupt):
        array[3]


def damaged_in_threads(url: str) -> None:
    array = stash.open(damaged(url, *range(8)), threads=4)
    for _ in range(5):
        with pytest.raises(Corrupt):
            array[...]


def damaged_in_shards(url: str) -> None:
    array = filled(url, shards=(4, 40_000))
    array.driver.put("c/1/0", b"rubbish")
    with pytest.raises(Corrupt):
        array[...]


def merged(url: str) -> None:
    array = stash.open(damaged(url, 3), "r+")
    array[1:3, 5:7] = 1
    with pytest.raises(Corrupt):
        array[2:4, 5:7] = 1


def grown(url: str) -> None:
    array = filled(url)
    array.append(np.zeros((1, 40_000), "i4"))
    with array.writer() as writer:
        writer.append(np.zeros((2, 40_000), "i4"))
    array.resize((3, 40_000))


def viewed(url: str) -> None:
    array = filled(url, codecs=None)
    assert array.lazy[2:4, 0].read().tolist() == [80_000, 120_000]
    assert array.mmap(1)[0] == 40_000


def grouped(url: str) -> None:
    group = stash.create_group(url)
    group.create("a", (3,), "i4")
    group.create_group("b").create("c", (3,), "i4")
    group.consolidate()
    assert len([*stash.open_group(url).walk()]) == 3
    with pytest.raises(NotFound):
        group["d"]


def recorded(url: str) -> None:
    made = stash.create_records(url, {"id": "i8", "t": stash.ragged("i4")}, rows_per_chunk=4)
    made.extend({"id": np.arange(6), "t": [[k] * k for k in range(6)]})
    made[1] = {"id": 7, "t": [7]}
    made.add_field("x", "f4", np.zeros(6, "f4"))
    rows = stash.open_records(url).with_format("python")
    assert rows[1:3] == [{"id": 7, "t": [7], "x": 0}, {"id": 2, "t": [2, 2], "x": 0}]
    assert rows[1]["t"] == [7]


def replaced(url: str) -> None:
    array = filled(url + "/a")
    stash.create(url + "/a", (8, 40_000), "i4", overwrite=True)
    with pytest.raises(Conflict):
        array[0]
    records = stash.create_records(url + "/r", {"x": "i4", "y": "i4"}, 3)
    old, field = stash.open_records(url + "/r"), stash.open_records(url + "/r")["x"]
    records.drop_field("x")
    for gone in (lambda: old[0], lambda: field[0]):
        with pytest.raises(NotFound):
            gone()


def loaded(url: str) -> None:
    array = filled(url)
    for batch in Loader(array, batch_size=2, threads=2, prefetch=2, shuffle=True, seed=1):
        assert len(batch) == 2
    assert len([*Loader(Windows(array, 2), batch_size=2)]) > 1


def loading_was_stopped(url: str) -> None:
    for _ in Loader(filled(url), batch_size=2, threads=2, prefetch=2):
        break


def loaded_what_is_damaged(url: str) -> None:
    array = stash.open(damaged(url, 5))
    with pytest.raises(Corrupt):
        [*Loader(array, batch_size=1, threads=2, prefetch=2)]


def copied(url: str) -> None:
    with filled(url + "/from") as array:
        copy = stash.copy(array, url + "/to", overwrite=True)
        assert copy[1, 0] == 40_000


@pytest.mark.parametrize(
    "use",
    [
        through_a_cache, read_ahead, read_ahead_to_what_is_damaged, damaged_in_threads,
        damaged_in_shards, merged, grown, viewed, grouped, recorded, replaced, loaded,
        loading_was_stopped,
        loaded_what_is_damaged, copied,
    ],
    ids=lambda use: use.__name__,
)  # fmt: skip
def test_the_store_goes_with_its_last_handle(name: str, use: Callable[[str], None]) -> None:
    with uncollected():
        use(f"shm://{name}")
        assert until(lambda: left(name) == [], 5)  # a thread may be about to end


@pytest.mark.parametrize("shards", [None, 8])
@pytest.mark.parametrize("cache", [0, "1MiB"])
def test_a_look_far_away_that_fails_holds_no_handle(shards: int | None, cache: Any) -> None:
    driver = FarDriver(MemoryDriver())
    with uncollected():
        array = stash.create(driver, 16, "i4", chunks=4, shards=shards)
        array[...] = 1
        array = stash.open(driver, "r+", cache=cache)
        stash.create(driver, 16, "i4", chunks=4, shards=shards, overwrite=True)
        for use in (lambda a: a[...], lambda a: a[1], lambda a: a.__setitem__(1, 2)):
            with pytest.raises(Conflict):
                use(array)
        gone = weakref.ref(array)
        del array
        assert until(lambda: gone() is None, 5)


def test_fields_that_look_together_hold_no_handle() -> None:
    driver = FarDriver(MemoryDriver())
    with uncollected():
        made = stash.create_records(driver, {"id": "i8", "t": stash.ragged("i4")}, rows_per_chunk=4)
        made.extend({"id": np.arange(6), "t": [[k] * k for k in range(6)]})
        assert len(stash.open_records(driver)[:]["t"]) == 6
        gone = weakref.ref(driver)
        del driver, made
        assert until(lambda: gone() is None, 5)


class _Held:
    """What a piece of work refers to."""


def test_a_thread_hands_its_error_over() -> None:
    began = threading.Event()

    def fail(_: _Held) -> None:
        began.set()
        raise ZeroDivisionError

    with uncollected():
        held = _Held()
        gone = weakref.ref(held)
        end = begin(partial(fail, held))
        began.wait(10)  # from here on it is the thread's to do
        with pytest.raises(ZeroDivisionError):
            end()
        del held, end
        assert until(lambda: gone() is None, 5)
