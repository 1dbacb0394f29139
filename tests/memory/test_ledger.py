"""The ledger of who holds what: against a plain model, in threads and forks, and ended early."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.engine.caching.cache import _ENTRY, Cache
from tensorstash.errors import Invalid, NoMemory
from tensorstash.memory import PROCESS, Budget
from tensorstash.memory.ledger import KINDS, Entry, room, units
from tensorstash.memory.steps import divided
from tests.support.interrupts import in_thread, interrupted, places, uncollected
from tests.support.races import in_threads


@pytest.fixture(autouse=True)
def no_limit_after() -> Iterator[None]:
    yield
    stash.memory_limit(None)


# -- arithmetic ----------------------------------------------------------------------------

ENTRIES = st.lists(st.builds(Entry, st.sampled_from(KINDS), st.integers(0, 100), st.booleans()))


@given(st.integers(1, 300), ENTRIES, st.integers(1, 80), st.integers(1, 9))
def test_units(limit: int, entries: list[Entry], each: int, most: int) -> None:
    held = sum(entry.nbytes for entry in entries)
    count = units(limit, entries, each, most)
    assert 0 <= count <= most
    if count > 1:
        assert held + count * each <= limit
    if held + each <= limit:
        assert count >= 1
    elif any(entry.passing for entry in entries):
        assert count == 0
    else:  # nobody would ever give back what is missing
        assert count == 1
    assert units(None, entries, each, most) == most


@given(st.integers(1, 300), ENTRIES, st.integers(1, 5), st.integers(0, 99))
def test_room(limit: int, entries: list[Entry], part: int, mine: int) -> None:
    others = sum(e.nbytes for e in entries if not e.passing and e.kind != "caches")
    assert room(limit, entries, part) == max(0, limit // part - others)
    entries.append(Entry("pools", mine, False))
    assert room(limit, entries, part, mine) == max(0, limit // part - others)
    assert room(None, entries, part) is None


@given(st.integers(1, 500), st.integers(1, 16), st.integers(1, 128), st.integers(1, 32))
def test_divided(count: int, threads: int, batch: int, concurrency: int) -> None:
    how = divided(count, threads, batch, concurrency)
    assert 1 <= how.threads <= threads
    assert 1 <= how.batch <= min(batch, count)
    if how.window is not None:
        assert how.window >= 1
        assert how.window * how.threads <= count
    else:  # as many as the driver likes, which is no more than there is room for
        assert how.threads * concurrency < count


# -- against a model -----------------------------------------------------------------------


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(1, 40), st.integers(1, 5)),
        st.tuples(st.just("leave"), st.just(0), st.just(0)),
        st.tuples(st.just("keep"), st.integers(0, 4), st.integers(0, 50)),
        st.tuples(st.just("drop"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("limit"), st.integers(1, 200), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_steps_of_one_thread(steps: list[tuple[str, int, int]]) -> None:
    """Whatever one thread does, shares in shares too, it never waits, what it was given is noted,
    and nothing is left when all has ended."""
    budget = Budget(100)
    open_shares: list[tuple[Any, int]] = []
    kept: dict[int, tuple[Any, int]] = {}
    for what, a, b in steps:
        if what == "enter":
            before = budget.use()["total"]
            share = budget.share("native", a, b)
            count = share.__enter__()
            assert 1 <= count <= b
            grown = budget.use()["total"] - before
            if open_shares:  # what it had already is not counted twice
                assert 0 <= grown <= count * a
            else:
                assert grown == count * a
            open_shares.append((share, count * a))
        elif what == "leave" and open_shares:
            open_shares.pop()[0].__exit__(None, None, None)
        elif what == "keep":
            kept[a] = (kept[a][0] if a in kept else budget.account("writers")), b
            kept[a][0].set(b)
        elif what == "drop":
            kept.pop(a, None)
        elif what == "limit":
            budget.limit = a
        use = budget.use()
        assert use["writers"] == sum(nbytes for _, nbytes in kept.values())
        assert use["native"] <= sum(nbytes for _, nbytes in open_shares)
        if len(open_shares) == 1:
            assert use["native"] == open_shares[0][1]
        assert use["total"] == sum(use[kind] for kind in KINDS)
    while open_shares:
        open_shares.pop()[0].__exit__(None, None, None)
    kept.clear()
    assert budget.use()["total"] == 0


@settings(max_examples=10)
@given(st.integers(1, 60), st.lists(st.tuples(st.integers(1, 80), st.integers(1, 4)), min_size=6))
def test_threads_stay_within_the_limit_and_one_unit(
    limit: int, wanted: list[tuple[int, int]]
) -> None:
    budget = Budget(limit)
    lock, now = threading.Lock(), [0]

    def work(k: int) -> None:
        for each, most in wanted[k::3]:
            with budget.share("native", each, most) as count:
                with lock:
                    now[0] += each * count
                    assert now[0] <= limit or now[0] == each * count, "more than one beyond it"
                if each % 3 == 0:
                    with budget.share("in_flight", each) as inner:  # never waits for itself
                        assert inner == 1
                if each % 4 == 0:
                    time.sleep(0.001)
                with lock:
                    now[0] -= each * count

    in_threads(3, work, 60)
    assert now[0] == 0
    assert budget.use()["total"] == 0


def test_two_that_each_need_what_the_other_has_both_end() -> None:
    budget = Budget(100)
    both = threading.Barrier(2)

    def work(k: int) -> None:
        with budget.share("native", 50):
            both.wait(30)
            with budget.share("in_flight", 80) as count:  # more than is left, by any count
                assert count == 1

    in_threads(2, work, 60)


def test_two_handles_and_a_process_do_not_wait_in_a_circle() -> None:
    stash.memory_limit(100)
    a, b = Budget(60), Budget(60)

    def work(k: int) -> None:
        first, second = (a, b) if k % 2 else (b, a)
        for _ in range(50):
            with first.share("native", 40, 3), second.share("native", 40, 3):
                pass

    in_threads(4, work, 60)
    assert PROCESS.use()["native"] == 0


def test_who_waits_goes_in_order() -> None:
    """One that needs much is not passed by for ever by those who need little."""
    budget = Budget(100)
    stop, begun, done = threading.Event(), threading.Event(), threading.Event()

    def little(k: int) -> None:
        while not stop.is_set():
            with budget.share("native", 30):
                begun.set()
                time.sleep(0.0005)

    def work(k: int) -> None:
        if k < 3:
            little(k)
            return
        assert begun.wait(30)
        with budget.share("native", 100):
            done.set()
        stop.set()

    in_threads(4, work, 60)
    assert done.is_set()


def test_a_limit_lowered_below_what_is_held() -> None:
    budget = Budget(100)
    account = budget.account("pools")
    account.set(90)
    with budget.share("native", 10, 8) as count:
        assert count == 1
        budget.limit = 20
        assert budget.room() == 0
        with budget.share("native", 5) as inner:
            assert inner == 1
    with budget.share("native", 10, 8) as count:  # nobody else is at work: one always goes
        assert count == 1


def test_a_limit_lifted_while_one_waits() -> None:
    stash.memory_limit(100)
    has, waits = threading.Event(), threading.Event()
    got: list[int] = []

    def work(k: int) -> None:
        if k == 0:
            with PROCESS.share("native", 100):
                has.set()
                assert waits.wait(30)
                stash.memory_limit(None)
                while not got:
                    time.sleep(0.001)
        else:
            assert has.wait(30)
            waits.set()
            with PROCESS.share("native", 100, 7) as count:
                got.append(count)

    in_threads(2, work, 60)
    assert got == [7]


def test_without_waiting_there_may_be_nothing() -> None:
    budget = Budget(100)
    with budget.share("native", 100):

        def work(k: int) -> None:
            with budget.share("native", 50, wait=False) as count:
                assert count == 0
            assert budget.use()["native"] == 100

        in_threads(1, work, 60)


def test_errors_and_what_is_forgotten_give_back() -> None:
    budget = Budget(100)
    with pytest.raises(KeyError), budget.share("native", 60):
        raise KeyError
    assert budget.use()["total"] == 0
    share = budget.share("native", 60)
    share.__enter__()  # a generator that nobody ends, say
    assert budget.use()["total"] == 60
    del share
    gc.collect()
    assert budget.use()["total"] == 0
    with budget.share("native", 60, 2) as count:
        assert count == 1
    account = budget.account("writers")
    account.set(7)
    del account
    gc.collect()
    assert budget.use()["total"] == 0


def test_one_chunk_that_does_not_fit_is_refused_by_name() -> None:
    budget = Budget(100)
    with (
        pytest.raises(NoMemory, match=r"^one chunk of here has 101 bytes, .* is 100; raise memory"),
        budget.share("native", 200, 4, 101, lambda: "here"),
    ):
        pass
    assert budget.use()["total"] == 0
    with budget.share("native", 200, 4, 100) as count:
        assert count == 1


# -- caches give way -----------------------------------------------------------------------


def test_caches_give_way_the_largest_first() -> None:
    each = 1000 + _ENTRY
    budget = Budget(10 * each)
    small, large = Cache(100_000, budget), Cache(100_000, budget)
    for k in range(2):
        small.put(k, None, k, 1000)
    for k in range(8):
        large.put(k, None, k, 1000)
    assert budget.use()["caches"] == 10 * each
    with budget.share("native", 5 * each // 2) as count:
        assert count == 1
        assert (small.nbytes, large.nbytes) == (2000, 5000)
        assert large.peek(0) is None, "what was used least recently went"
        assert large.peek(7) is not None
    small.put("more than there is", None, 0, 10 * each + 1)
    assert budget.use()["caches"] <= 10 * each


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=30), st.integers(1, 90))
def test_caches_stay_within_the_limit(puts: list[tuple[int, int]], limit: int) -> None:
    limit *= _ENTRY // 16
    budget = Budget(limit)
    caches = [Cache(2000, budget), Cache(100_000, budget)]
    for k, (key, nbytes) in enumerate(puts):
        caches[k % 2].put(key, None, key, 50 * nbytes)
        held = sum(cache.nbytes + _ENTRY * len(cache.entries) for cache in caches)
        assert held == budget.use()["caches"] <= limit
        assert all(cache.nbytes <= cache.limit for cache in caches)
    caches.clear()
    gc.collect()
    assert budget.use()["caches"] == 0


# -- processes -----------------------------------------------------------------------------


def test_a_forked_child_begins_with_the_limit_and_nothing_held() -> None:
    stash.memory_limit(limit := 100 + _ENTRY)
    cache = Cache(1000)
    cache.put(0, None, 0, 30)
    account = PROCESS.account("pools")
    account.set(20)
    before = PROCESS.use()["total"]
    with PROCESS.share("native", 40):
        pid = os.fork()
        if not pid:  # in the child
            ok = False
            try:
                with PROCESS.share("native", 100) as count:  # as if nobody had anything
                    ok = count == 1 and stash.memory_limit() == limit
                ok = ok and PROCESS.use()["total"] == 0
                account.set(50)
                cache.put(1, None, 1, 10)
                ok = ok and PROCESS.use() == {
                    **dict.fromkeys((*KINDS, "total"), 0),
                    "pools": 50,
                    "caches": 10 + _ENTRY,
                    "total": 60 + _ENTRY,
                }
                cache.put(2, None, 2, 60)  # more than there is room for
                ok = ok and PROCESS.use()["total"] <= limit
            finally:
                os._exit(0 if ok else 1)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert PROCESS.use()["native"] == 40
    assert PROCESS.use()["total"] == before


def test_pickles_have_a_limit_of_their_own() -> None:
    assert pickle.loads(pickle.dumps(PROCESS)) is PROCESS
    budget = Budget(100)
    account = budget.account("pools")
    account.set(10)
    other = pickle.loads(pickle.dumps(budget))
    assert other is not budget
    assert (other.limit, other.use()["total"]) == (100, 0)
    array = stash.create({}, 4, "int8", memory_limit="1MiB")
    again = pickle.loads(pickle.dumps(array))
    assert again.settings.memory.limit == 1 << 20
    assert again.settings == array.settings
    assert len(pickle.dumps(array.settings)) < 400
    plain = stash.create({}, 4, "int8").settings
    assert pickle.loads(pickle.dumps(plain)).memory is PROCESS


# -- the public face -----------------------------------------------------------------------


def test_limits_are_sizes() -> None:
    assert stash.memory_limit() is None
    assert stash.memory_limit("1.5MiB") == 3 << 19
    assert stash.memory_limit(4096) == 4096 == stash.memory_limit()
    for wrong in (0, "0", "much", -1, True):
        with pytest.raises(Invalid):
            stash.memory_limit(wrong)  # type: ignore[arg-type]
        with pytest.raises(Invalid):
            stash.create({}, 3, "int8", memory_limit=wrong)  # type: ignore[arg-type]
    assert stash.memory_limit() == 4096
    assert stash.memory_limit(None) is None


def test_use_tells_who_has_what() -> None:
    array = stash.create({}, (64, 1024), "u1", chunks=(1, 1024), cache="1MiB")
    array[...] = 7
    before = stash.memory_use()
    array[:10]
    now = stash.memory_use()
    assert set(now) == {*KINDS, "total"}
    assert now["caches"] - before["caches"] == 10 * (1024 + _ENTRY)
    with array.writer() as writer:
        writer[0, :5] = 3
        assert stash.memory_use()["writers"] - now["writers"] == 2 * 1024  # values, and which
    assert stash.memory_use()["writers"] == now["writers"]
    stash.memory_limit(4096)
    assert stash.memory_use()["caches"] <= 4096, "the limit wins over cache="
    array.close()


# -- interrupts ----------------------------------------------------------------------------


def test_an_interrupt_anywhere_leaves_nothing_held() -> None:
    budget = Budget(100 + _ENTRY)

    def operation() -> None:
        cache = Cache(1000, budget)
        cache.put(0, None, 0, 60)
        with budget.share("native", 30, 2, 40) as count:
            assert count >= 1
            cache.put(1, None, 1, 30)  # each more than there is room for
            with budget.share("in_flight", 50):
                pass
        cache.drop(0)
        cache.drop(1)

    found = places(operation)
    assert len(found) > 100
    came = 0
    for at in found[:: max(1, len(found) // 150)]:
        with uncollected(now=False):
            came += interrupted(operation, at)
            use = budget.use()
            assert use["native"] == use["in_flight"] == 0, at
        with budget.share("native", 100 + _ENTRY, wait=False) as count:
            assert count == 1, at
        gc.collect()
        assert budget.use()["total"] == 0, at
    assert came > 50


def test_an_interrupt_while_one_waits_leaves_no_place_in_the_line() -> None:
    budget = Budget(100)

    def operation() -> None:
        begun, done = threading.Event(), threading.Event()

        def other() -> None:
            with budget.share("native", 100):
                begun.set()
                done.wait(0.03)

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        begun.wait(30)
        try:
            with budget.share("native", 100):
                pass
        finally:
            done.set()
            thread.join(30)

    found = [at for at in places(operation) if "memory/" in at.file]
    for at in found[:: max(1, len(found) // 15)]:
        with suppress(RuntimeError):
            interrupted(operation, at)
        gc.collect()
        started = time.monotonic()
        assert in_thread(lambda: budget.share("native", 100).__enter__()) == 1, at
        assert time.monotonic() - started < 20
        gc.collect()
        assert budget.use()["total"] == 0, at
