"""What a driver promises when several threads and processes use it at once."""
# ruff: noqa: D102 - a test's name says what it promises

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest

from ..driver import Changed, Driver, Put, Request, Span
from ..errors import Conflict, TimedOut, Unsupported
from .driver_values import DriverValues, as_value

_fork = multiprocessing.get_context("fork")
_spawn = multiprocessing.get_context("spawn")


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work(0)`` ... ``work(count - 1)`` return, started together; errors are raised."""
    barrier = threading.Barrier(count)
    answers: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(i: int) -> None:
        barrier.wait()
        try:
            answers[i] = work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return answers


def increment(driver: Driver, key: str, times: int) -> None:
    """Add ``times`` to the number stored at ``key``, by compare-and-swap."""
    for _ in range(times):
        while True:
            found = driver.get_tagged(key)
            assert found is not None
            try:
                driver.put(key, str(int(bytes(found[0])) + 1).encode(), if_tag=found[1])
                break
            except Conflict:
                continue


def needs(capability: bool) -> None:
    """Skip the test of what the driver does not claim."""
    if not capability:
        pytest.skip("the driver does not claim this")


def run_in_processes(context: Any, count: int, work: Callable[..., None], *args: Any) -> None:
    """``work(*args)`` in ``count`` processes at once; every one must end well."""
    processes = [context.Process(target=work, args=args) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode == 0, f"{work.__name__} ended with {process.exitcode}"


class DriverRaces(DriverValues):
    """Part of :class:`~tensorstash.testing.DriverContract`."""

    patience: ClassVar[float] = 10.0
    """Seconds within which a dead holder's lock must be free."""
    rounds: ClassVar[int] = 1000
    """Puts in the test that every put makes another version."""
    torn_puts: ClassVar[int] = 60
    """Puts of 1 MiB in the test that reads are never torn."""

    swaps: ClassVar[int] = 25
    """Swaps of each thread or process in the tests that none is lost."""

    def test_every_put_makes_another_version(self, driver: Driver) -> None:
        # Same size, many within one tick of any clock, and one value put again and again.
        seen = set()
        for i in range(self.rounds):
            tag = driver.put("k", b"same" if i % 2 else b"%04d" % i)
            assert driver.tag("k") == tag
            seen.add(tag)
        if driver.capabilities.content_tags:
            assert len(seen) >= self.rounds // 2
            return
        assert len(seen) == self.rounds
        for value in (b"", b"", b"1", b"1"):
            before = driver.tag("k")
            assert driver.put("k", value) != before

    def test_if_absent(self, driver: Driver) -> None:
        needs(driver.capabilities.conditional_put)
        tag = driver.put("new/k", b"1", if_absent=True)
        assert driver.tag("new/k") == tag
        with pytest.raises(Conflict):
            driver.put("new/k", b"2", if_absent=True)
        assert as_value(driver.get("new/k")) == b"1"
        driver.delete("new/k")
        driver.put("new/k", b"3", if_absent=True)
        assert [*driver.list()] == ["new/k"]

    def test_if_tag(self, driver: Driver) -> None:
        needs(driver.capabilities.conditional_put)
        first = driver.put("k", b"1")
        second = driver.put("k", b"2", if_tag=first)
        with pytest.raises(Conflict):
            driver.put("k", b"3", if_tag=first)
        assert as_value(driver.get("k")) == b"2"
        driver.delete("k")
        with pytest.raises(Conflict):
            driver.put("k", b"4", if_tag=second)
        with pytest.raises(Conflict):
            driver.put("no/dir/k", b"4", if_tag=second)
        assert [*driver.list()] == []

    def test_put_each_answers_every_put(self, driver: Driver) -> None:
        needs(driver.capabilities.conditional_put)
        tags = [driver.put(f"k/{i}", b"%d" % i) for i in range(20)]
        puts = [
            *(Put(f"k/{i}", b"new %d" % i, if_tag=tag) for i, tag in enumerate(tags[:10])),
            *(Put(f"k/{i}", b"no", if_tag=tags[0]) for i in range(10, 15)),
            *(Put(f"k/{i}", b"no", if_absent=True) for i in range(15, 20)),
            *(Put(f"new/{i}", b"n%d" % i, if_absent=True) for i in range(5)),
            *(Put(f"plain/{i}", b"p%d" % i) for i in range(5)),
        ]
        taken = iter(puts)
        answers = dict(driver.put_each(taken))
        assert [*taken] == [] and sorted(answers) == [*range(30)]
        for i, (key, value, _, _) in enumerate(puts):
            if 10 <= i < 20:
                assert answers[i] is None and as_value(driver.get(key)) == key[2:].encode()
            else:
                assert answers[i] == driver.tag(key) and as_value(driver.get(key)) == value
        assert [*driver.put_each([])] == []

    def test_put_each_loses_no_increment(self, driver: Driver) -> None:
        needs(driver.capabilities.conditional_put)
        keys = [f"n/{i}" for i in range(4)]
        for key in keys:
            driver.put(key, b"0")

        def work(_: int) -> None:
            left = dict.fromkeys(keys, 10)
            while left:
                names = [*left]
                found = dict(driver.get_many_tagged([Request(name) for name in names]))
                puts = []
                for i, name in enumerate(names):
                    value, tag = found[i] or (b"", None)
                    puts.append(Put(name, b"%d" % (int(bytes(value)) + 1), if_tag=tag))
                for i, tag in driver.put_each(puts):
                    if tag is not None:
                        left[names[i]] -= 1
                        if not left[names[i]]:
                            del left[names[i]]

        in_threads(4, work)
        assert {as_value(driver.get(key)) for key in keys} == {b"40"}

    def test_if_absent_has_one_winner(self, driver: Driver) -> None:
        needs(driver.capabilities.conditional_put)

        def attempt(i: int) -> bool:
            try:
                driver.put(f"race/{turn}", b"%d" % i, if_absent=True)
            except Conflict:
                return False
            return True

        for turn in range(10):
            wins = in_threads(8, attempt)
            assert wins.count(True) == 1
            assert as_value(driver.get(f"race/{turn}")) == b"%d" % wins.index(True)

    def test_no_increment_is_lost_between_threads(self, driver: Driver) -> None:
        needs(driver.capabilities.conditional_put)
        driver.put("n", b"0")
        in_threads(8, lambda i: increment(driver, "n", self.swaps))
        assert as_value(driver.get("n")) == b"%d" % (8 * self.swaps)

    def test_no_increment_is_lost_between_processes(self, driver: Driver) -> None:
        needs(driver.capabilities.conditional_put and driver.capabilities.shared)
        driver.put("n", b"0")
        run_in_processes(_fork, 4, increment, driver, "n", self.swaps)
        assert as_value(driver.get("n")) == b"%d" % (4 * self.swaps)

    def test_no_put_or_delete_slips_into_a_compare_and_swap(self, driver: Driver) -> None:
        # Swaps carry the last unconditional value along; one lost in between would show.
        needs(driver.capabilities.conditional_put)
        driver.put("k", b"0:0")
        done = threading.Event()

        def swap() -> None:
            while not done.is_set():
                found = driver.get_tagged("k")
                assert found is not None
                base, count = bytes(found[0]).split(b":")
                try:
                    driver.put("k", b"%b:%d" % (base, int(count) + 1), if_tag=found[1])
                except Conflict:
                    continue

        def set_plain() -> None:
            try:
                for i in range(1, 60):
                    driver.put("k", b"%d:0" % i)
                    time.sleep(0.0005)
                    assert (as_value(driver.get("k")) or b"").startswith(b"%d:" % i)
            finally:
                done.set()

        in_threads(4, lambda i: swap() if i else set_plain())

    def test_reads_are_never_torn(self, driver: Driver) -> None:
        # Two patterns of different size: a read of both, or of a part, is seen.
        patterns = [b"a" * (1 << 20), b"b" * ((1 << 20) + 4096)]
        driver.put("k", patterns[0])
        done = threading.Event()

        def read() -> None:
            out = memoryview(bytearray(2 << 20))
            while not done.is_set():
                assert as_value(driver.get("k")) in patterns
                size = driver.get_into("k", out)
                assert out[:size] in patterns
                for _, value in driver.get_many([Request("k"), Request("k", Span(0))]):
                    assert as_value(value) in patterns
                for _, pair in driver.get_many_tagged([Request("k"), Request("k", Span(0))]):
                    assert pair is not None and as_value(pair[0]) in patterns
                try:
                    found = driver.get_ranges("k", [Span(0, 9), Span(-9), Span(5000, 5009)])
                except Changed:
                    continue
                assert found is not None and len({bytes(part) for part in found[0]}) == 1

        def write() -> None:
            try:
                for i in range(self.torn_puts):
                    driver.put("k", patterns[i % 2])
            finally:
                done.set()

        in_threads(3, lambda i: read() if i else write())

    def test_puts_and_deletes_of_a_prefix_get_along(self, driver: Driver) -> None:
        def work(i: int) -> None:
            for j in range(20):
                if i:
                    driver.put(f"p/{j % 3}/{i}", b"1")
                else:
                    driver.delete_prefix("p/")

        in_threads(4, work)
        driver.put("p/0/end", b"2")
        assert as_value(driver.get("p/0/end")) == b"2"

    # -- locks --------------------------------------------------------------------

    def test_lock_excludes_threads(self, driver: Driver) -> None:
        needs(driver.capabilities.locks)
        inside: list[int] = []

        def work(i: int) -> None:
            for _ in range(10):
                with driver.lock("a/zarr.json"):
                    inside.append(i)
                    # The holder publishes in the middle: that must not let the next one in.
                    driver.put("a/zarr.json", b"%d" % i)
                    time.sleep(0.0005)
                    assert inside == [i]
                    inside.clear()

        in_threads(4, work)
        assert [*driver.list()] == ["a/zarr.json"]

    def test_what_a_lease_asks_of_a_driver(self, driver: Driver) -> None:
        # A holder that was stopped goes on: each step of its own must be able to fail.
        needs(driver.capabilities.leases)
        assert driver.capabilities.locks and driver.capabilities.conditional_put
        tags = {key: driver.put(key, key.encode()) for key in ("d/0", "d/1", "d/2", "e")}
        there = dict(driver.tags("d/", lambda key: key != "d/2"))
        assert there == {key: tags[key] for key in ("d/0", "d/1")}
        newer = driver.put("d/1", b"newer", if_tag=tags["d/1"])
        try:
            kept = [*driver.delete_each([("d/0", tags["d/0"]), ("d/1", tags["d/1"])])]
        except Unsupported:
            assert sorted(driver.list("d/")) == ["d/0", "d/1", "d/2"]
        else:
            assert kept == [("d/1", tags["d/1"])] and driver.get("d/0") is None
        again = driver.put_anew("d/1", b"newer", newer)
        assert driver.tag("d/1") == again and as_value(driver.get("d/1")) == b"newer"
        assert again != newer or driver.capabilities.content_tags
        with pytest.raises(Conflict):
            driver.put_anew("d/1", b"newer", tags["d/1"])
        assert driver.tag("d/1") == again
        driver.delete("d/1")
        for tag in (again, tags["d/1"]):
            with pytest.raises(Conflict):
                driver.put_anew("d/1", b"newer", tag)
        assert driver.get("d/1") is None

    def test_lock_timeout(self, driver: Driver) -> None:
        needs(driver.capabilities.locks)
        with driver.lock("k"):
            for timeout in (0, 0.1):
                start = time.monotonic()
                with pytest.raises(TimedOut), self.reconnect(driver).lock("k", timeout):
                    pass
                assert timeout <= time.monotonic() - start < timeout + 5
            with driver.lock("other", timeout=5):
                driver.put("k", b"1")  # a lock keeps lockers out, not writers
            assert [*driver.list()] == ["k"]
        with pytest.raises(ZeroDivisionError), driver.lock("k", timeout=5):
            raise ZeroDivisionError
        with driver.lock("k", timeout=5):
            pass
        assert driver.list_dir("") == (["k"], [])

    def test_lock_excludes_processes_until_their_death(self, driver: Driver) -> None:
        needs(driver.capabilities.locks and driver.capabilities.shared)
        mine, theirs = _fork.Pipe()
        holder = _fork.Process(target=_hold, args=(driver, theirs))
        holder.start()
        assert mine.recv() == "held"
        with pytest.raises(TimedOut), driver.lock("k", timeout=0.1):
            pass
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        with driver.lock("k", timeout=self.patience):
            pass

    def test_a_forked_child_does_not_keep_the_lock(self, driver: Driver) -> None:
        needs(driver.capabilities.locks and driver.capabilities.shared)
        mine, theirs = _fork.Pipe()
        holder = _fork.Process(target=_hold_and_fork, args=(driver, theirs))
        holder.start()
        child = mine.recv()
        try:
            assert holder.pid is not None
            os.kill(holder.pid, signal.SIGKILL)
            holder.join()
            with driver.lock("k", timeout=self.patience):
                pass
        finally:
            os.kill(child, signal.SIGKILL)

    # -- processes ----------------------------------------------------------------

    def test_works_in_a_forked_child(self, driver: Driver) -> None:
        driver.put("before", b"1")
        assert as_value(driver.get("before")) == b"1"
        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                driver.put("busy", b"1")
                driver.get("busy")
                with driver.lock("busy") if driver.capabilities.locks else nullcontext():
                    pass

        # Forked while another thread is in the midst of things, as a DataLoader may.
        thread = threading.Thread(target=busy)
        thread.start()
        try:
            for _ in range(3):
                run_in_processes(_fork, 1, _use, driver)
        finally:
            stop.set()
            thread.join()

    def test_works_in_a_spawned_process(self, driver: Driver) -> None:
        driver.put("before", b"1")
        run_in_processes(_spawn, 1, _use, driver)
        if driver.capabilities.shared:
            assert as_value(driver.get("after")) == b"2"


def _use(driver: Driver) -> None:
    assert as_value(driver.get("before")) == b"1"
    driver.put("after", b"2")
    assert [as_value(v) for _, v in driver.get_many([Request("after")])] == [b"2"]
    assert "after" in driver.list_dir("")[0]
    if driver.capabilities.locks:
        with driver.lock("after", timeout=5):
            pass


def _hold(driver: Driver, pipe: Any) -> None:
    with driver.lock("k"):
        pipe.send("held")
        time.sleep(60)


def _hold_and_fork(driver: Driver, pipe: Any) -> None:
    with driver.lock("k"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        pipe.send(child)
        time.sleep(60)
