"""What a write costs, what it keeps, and what a failing one leaves behind."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash import threads as workers
from tensorstash.cached import PerProcess
from tensorstash.driver import Capabilities
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Corrupt, DriverError
from tensorstash.testing.counting import Call, Count, CountingDriver, FailingDriver, Fault
from tests.support.oracle import count_decodes, same


def counted(shape: Any, chunks: Any, **how: Any) -> tuple[stash.Array, CountingDriver]:
    driver = CountingDriver(MemoryDriver())
    array = stash.create(driver, shape, "i4", chunks=chunks, **how)
    driver.reset()
    return array, driver


def filled(shape: Any, chunks: Any, **how: Any) -> tuple[stash.Array, CountingDriver]:
    array, driver = counted(shape, chunks, **how)
    array[...] = 1 + np.arange(np.prod(shape)).reshape(shape)
    driver.reset()
    return array, driver


# -- requests ----------------------------------------------------------------------------------


def test_whole_chunks_are_not_read() -> None:
    array, driver = filled((12, 12), (4, 4))
    for index in (
        ...,
        slice(4, 8),
        (slice(None), slice(8, None)),
        [3, 2, 1, 0],
        slice(None, None, -1),
    ):
        array[index] = 7
    assert driver.reads == Count()
    assert driver.counts["tag"].calls == 5  # once a call: is it this array still?
    assert driver.counts["lock"] == Count()
    assert driver.writes.calls == 9 + 3 + 3 + 3 + 9


def test_chunks_larger_than_the_array_are_written_once() -> None:
    array, driver = counted((3, 3), (100, 100))
    array[...] = 5
    assert driver.writes.calls == 1
    assert array[...].tolist() == [[5] * 3] * 3


def test_a_partial_write_is_one_read_and_one_conditional_put() -> None:
    puts: list[dict[str, Any]] = []

    class Watching(CountingDriver):
        def put(self, key: str, value: Any, **conditions: Any) -> Any:
            puts.append(conditions)
            return super().put(key, value, **conditions)

    driver = Watching(MemoryDriver())
    array = stash.create(driver, (12,), "i4", chunks=(4,))
    for turn in range(2):
        driver.reset()
        puts.clear()
        array[1:3] = turn + 1
        assert (driver.reads.calls, driver.writes.calls) == (1, 1)
        (conditions,) = puts
        tagged = conditions.get("if_tag") is not None
        assert (bool(conditions.get("if_absent")), tagged) == ((True, False), (False, True))[turn]
    assert array[...].tolist() == [0, 2, 2, 0] + [0] * 8


def test_each_chunk_once_however_often_it_is_named() -> None:
    array, driver = filled((12,), (4,))
    array[[0, 11, 1, 10, 0, 11]] = [1, 2, 3, 4, 5, 6]
    assert (driver.reads.calls, driver.writes.calls) == (2, 2)
    assert array[[0, 1, 10, 11]].tolist() == [5, 3, 4, 6]


def test_fill_is_not_stored_unless_asked() -> None:
    array, driver = counted((8,), (4,), fill_value=3)
    array[...] = 3
    array[1] = 3
    assert driver.writes == Count()
    array[:] = 5
    array[4:] = 3
    assert array.info().stored_chunks == 1
    array[0:3] = 3
    array[3:4] = 3
    same(array[...], np.full(8, 3, "i4"))
    kept = stash.create({}, (8,), "i4", chunks=(4,), write_fill=True)
    kept[...] = 0
    assert kept.info().stored_chunks == 2
    sharded = stash.create({}, (8,), "i4", chunks=(2,), shards=(4,), write_fill=True)
    sharded[...] = 0
    assert sharded.info().stored_chunks == 2
    reader = stash.open(sharded.driver, missing="raise")
    assert reader[...].tolist() == [0] * 8


def test_nothing_selected_is_nothing_written() -> None:
    array, driver = filled((6,), (4,))
    array[3:3] = 1
    array[np.zeros(6, bool)] = 1
    array[[]] = 1
    assert driver.writes == Count()
    assert driver.reads == Count()


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [None, (6, 8)])
def test_any_layout_of_memory_is_stored_the_same(shards: Any) -> None:
    model = np.arange(48, dtype="f4").reshape(6, 8)
    forms = [
        model,
        np.asfortranarray(model),
        model.astype(">f4"),
        np.repeat(model, 2, 1)[:, ::2],
        np.flip(np.flip(model).copy()),
        model.astype("f8"),
        model.tolist(),
    ]
    wanted = None
    for form in forms:
        array = stash.create({}, (6, 8), "f4", chunks=(3, 4), shards=shards)
        array[...] = form
        same(array[...], model)
        stored = {key: bytes(array.driver.get(key) or b"") for key in array.driver.list("c/")}
        wanted = wanted or stored
        assert stored == wanted


def test_values_are_not_kept_or_changed() -> None:
    value = np.arange(8.0)
    value.flags.writeable = False
    array = stash.create({}, (8,), "f8", chunks=(8,), codecs=None)
    array[...] = value
    changed = np.arange(8.0)
    array[...] = changed
    changed[:] = -1
    same(array[...], np.arange(8.0))


def test_the_callers_errstate_holds_in_every_thread() -> None:
    array = stash.create({}, (8, 65536), "i4", chunks=(1, 65536), threads=4)
    model = np.zeros((8, 65536), "i4")
    value = np.full((8, 65536), np.nan)
    with np.errstate(invalid="ignore"):
        array[...] = value
        model[...] = value
    same(array[...], model)
    with pytest.raises(FloatingPointError), np.errstate(invalid="raise"):
        array[...] = value


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [None, (8,)])
def test_a_partial_write_to_a_damaged_chunk_says_so(shards: Any) -> None:
    array, driver = filled((16,), (4,), shards=shards, codecs="zstd")
    value = bytearray(driver.get("c/0") or b"")
    value[10] ^= 0xFF
    driver.put("c/0", bytes(value))
    with pytest.raises(Corrupt, match=r"chunk \(0,\) at key 'c/0'") as caught:
        array[1] = 5
    assert (caught.value.key, caught.value.chunk) == ("c/0", (0,))
    assert str(caught.value).count("is damaged") == 1
    assert bytes(driver.get("c/0") or b"") == bytes(value)


@pytest.mark.parametrize("length", [16, 14])
@pytest.mark.parametrize("shards", [None, (8,)])
def test_overwriting_a_damaged_chunk_whole_repairs_it(shards: Any, length: int) -> None:
    # As the error message advises: also where the chunk reaches beyond the array's edge.
    array, driver = filled((length,), (4,), shards=shards, codecs="zstd")
    key = [key for key in driver.list() if key.startswith("c/")][-1]
    key = max(key for key in driver.list() if key.startswith("c/"))
    driver.put(key, b"rubbish")
    with pytest.raises(Corrupt):
        array[...]
    array[...] = np.arange(length)
    assert array[...].tolist() == list(range(length))


def test_an_inner_chunk_that_is_overwritten_whole_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array, _ = filled((16,), (4,), shards=(16,))
    seen = count_decodes(monkeypatch)
    array[4:8] = 1
    assert len(seen) == 1  # the index
    array[3:8] = 2
    assert len(seen) == 3  # the index again, and the one inner chunk that keeps a part


# -- failing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["get_many_tagged", "put"])
def test_a_failed_write_raises_and_can_be_repeated(verb: str) -> None:
    failing = True

    def when(call: Call) -> Fault | None:
        return "error" if failing and call.verb == verb and call.key.startswith("c/") else None

    inner = MemoryDriver()
    stash.create(inner, (8,), "i4", chunks=(4,))[...] = 1
    array = stash.open(FailingDriver(inner, when), "r+")
    with pytest.raises(DriverError, match="fails as told"):
        array[2:6] = 5
    assert array[...].tolist() == [1] * 8
    failing = False
    array[2:6] = 5
    assert array[...].tolist() == [1, 1, 5, 5, 5, 5, 1, 1]


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    inner = MemoryDriver()
    stash.create(inner, (64, 1024), "i4", chunks=(4, 1024), codecs=None)
    names: set[str] = set()

    def when(call: Call) -> Fault | None:
        names.add(threading.current_thread().name)
        return "error" if call.verb == "put" and call.key == "c/9/0" else None

    array = stash.open(FailingDriver(inner, when), "r+", threads=2)
    with pytest.raises(DriverError, match="c/9/0"):
        array[...] = np.ones((64, 1024), "i4")
    array[:32] = 2
    assert (array[:32] == 2).all()


def test_a_writer_that_loses_every_race_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorstash.engine.update._PATIENCE", 0.05)

    class Hostile(CountingDriver):
        """Someone else is always first."""

        def put(self, key: str, value: Any, **conditions: Any) -> Any:
            if conditions.get("if_tag") is not None:
                raise Conflict("lost", key=key)
            return super().put(key, value, **conditions)

    array = stash.create(Hostile(MemoryDriver()), (8,), "i4", chunks=(4,))
    array[...] = 1
    with pytest.raises(Conflict, match=r"chunk \(0,\) at key 'c/0'.* write whole chunks"):
        array[0] = 2
    array[:4] = 3  # needs no condition
    assert array[...].tolist() == [3] * 4 + [1] * 4


def test_a_lost_race_is_run_again_on_what_the_other_wrote() -> None:
    inner = MemoryDriver()

    class Racing(CountingDriver):
        """Another handle writes between our read and our put, once."""

        raced = False

        def get_many_tagged(self, requests: Any) -> Any:
            asked = list(requests)
            found = list(super().get_many_tagged(asked))
            if asked[0].key == "c/0" and not self.raced:
                self.raced = True
                other = threading.Thread(target=lambda: stash.open(inner, "r+").__setitem__(3, 33))
                # From another process: this one's threads would wait for each other.
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(
                        "tensorstash.engine.update.key_lock", lambda *names: threading.Lock()
                    )
                    other.start()
                    other.join()
            return iter(found)

    stash.create(inner, (4,), "i4", chunks=(4,))
    for start in ([0, 0, 0, 0], [1, 1, 1, 1]):  # absent, then there
        stash.open(inner, "r+")[...] = start
        array = stash.open(Racing(inner), "r+")
        array[0] = 11
        assert array[...].tolist() == [11, *start[1:3], 33]


def test_without_conditions_this_process_still_takes_turns() -> None:
    class Plain(MemoryDriver):
        capabilities = Capabilities(conditional_put=False, local=True, shared=False)

    array = stash.create(Plain(), (64,), "i4", chunks=(64,))

    def write(low: int) -> None:
        for k in range(low, 64, 8):
            array[k] = k

    threads = [threading.Thread(target=write, args=(low,)) for low in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert array[...].tolist() == list(range(64))


def test_locks_of_keys_are_one_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two threads that come first together must not make themselves one lock each.
    for _ in range(20):
        monkeypatch.setattr(workers, "_processes", PerProcess(workers._Process))
        barrier = threading.Barrier(4)
        found: list[Any] = []

        def take() -> None:
            barrier.wait()  # noqa: B023
            found.append(workers.key_lock("url", "key"))  # noqa: B023

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(lock) for lock in found}) == 1


@pytest.mark.parametrize("chunks", [1, (1, 4), (4, 4), (3, 3)])
def test_values_of_subclasses_of_arrays_are_stored_as_arrays(chunks: Any) -> None:
    values = np.arange(16.0).reshape(4, 4)
    for given in (np.ma.masked_array(values, mask=False), values.view(np.recarray)):
        array = stash.create({}, (4, 4), "f8", chunks=chunks)
        array[...] = given
        assert array[...].tolist() == values.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a class of matrices
        array[0] = np.matrix([[5, 6, 7, 8]])
        array[:2] = np.matrix(values[:2])
    assert array[:2].tolist() == values[:2].tolist()
