"""The pool of threads: each task once, in order, whatever is called off, interrupted or forked."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tensorstash import threads
from tensorstash.drivers.window import Window
from tensorstash.threads import Task, Workers, spread
from tests.support.project import ROOT


def submitted(pool: Workers, work: Callable[[], Any]) -> Task[Any]:
    task = pool.submit(work)
    assert task is not None
    return task


def blocked(pool: Workers, count: int) -> Callable[[], None]:
    """Keep ``count`` threads busy; what is returned lets go of them."""
    go = threading.Event()
    begun = threading.Semaphore(0)

    def work() -> None:
        begun.release()
        go.wait()

    for _ in range(count):
        submitted(pool, work)
    for _ in range(count):
        begun.acquire()
    return go.set


def named(name: str) -> int:
    return sum(thread.name == name and thread.is_alive() for thread in threading.enumerate())


def test_every_task_is_done_once_and_in_order() -> None:
    pool, seen = Workers(1, "t"), list[int]()
    tasks = [submitted(pool, lambda n=n: seen.append(n) or n * n) for n in range(100)]
    assert [task.result() for task in tasks] == [n * n for n in range(100)]
    assert seen == [*range(100)]
    assert all(task.ended for task in tasks)


def test_errors_arrive_and_keep_nothing_alive() -> None:
    class Thing:
        pass

    def work() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        raise SystemExit("no")

    pool, things = Workers(1, "t"), list[Any]()
    gc.disable()
    try:
        task = submitted(pool, work)
        with pytest.raises(SystemExit, match="no"):
            task.result()
        del task
        submitted(pool, int).result()  # the thread has let go of the one before
        assert things[0]() is None
    finally:
        gc.enable()


def test_what_is_called_off_never_begins() -> None:
    pool, seen = Workers(1, "t"), list[int]()
    go = blocked(pool, 1)
    tasks = [submitted(pool, lambda n=n: seen.append(n)) for n in range(4)]
    assert tasks[1].cancel()
    assert tasks[1].cancel()
    tasks[3].end()
    assert [task.ended for task in tasks] == [False, True, False, True]
    go()
    tasks[2].result()
    assert not tasks[2].cancel()
    assert seen == [0, 2]


def test_threads_are_started_as_needed_and_no_more() -> None:
    pool = Workers(3, "t")
    for _ in range(50):
        submitted(pool, int).result()
    assert len(pool._crew.threads) <= 2  # a thread tells that it is idle after its result is there
    go = blocked(pool, 3)
    later = [submitted(pool, int) for _ in range(9)]
    assert len(pool._crew.threads) == 3
    go()
    assert [task.result() for task in later] == [0] * 9


def test_threads_end_with_their_pool_after_what_was_submitted() -> None:
    pool, seen = Workers(2, "tensorstash-test-end"), list[int]()
    go = blocked(pool, 2)
    for n in range(20):
        submitted(pool, lambda n=n: seen.append(n))
    assert named("tensorstash-test-end") == 2
    crew = pool._crew
    del pool
    go()
    for held in crew.threads:
        threads.wait(held)
    assert sorted(seen) == [*range(20)]


def test_without_threads_the_caller_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    pool = Workers(2, "t")
    with monkeypatch.context() as patch:
        patch.setattr(threads, "start_new_thread", refused)
        assert pool.submit(int) is None
        done = list[int]()
        spread(range(5), lambda: done.append, 3)
        assert sorted(done) == [*range(5)]
        window: Window[int, int] = Window(3)
        assert sorted(window.each(lambda n: n * n, range(5))) == [(n, n * n) for n in range(5)]
    go = blocked(pool, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threads, "start_new_thread", refused)
        task = submitted(pool, int)  # the one that there is will do it
        go()
        assert task.result() == 0


def test_windows_raise_the_first_error_and_go_on_afterwards() -> None:
    window: Window[int, float] = Window(4)
    with pytest.raises(ZeroDivisionError):
        list(window.each(lambda n: 1 / n, range(-5, 5)))
    assert dict(window.each(lambda n: n + 0.5, range(100))) == {n: n + 0.5 for n in range(100)}
    halfway = window.each(lambda n: n, range(100))
    next(halfway)
    window.close()
    assert len([*halfway]) == 99
    assert len([*window.each(lambda n: n, range(9))]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own() -> None:
    code = """
        import os, sys
        from tensorstash.threads import spread, submit
        done = []
        spread(range(50), lambda: done.append, 3)
        pid = os.fork()
        if pid == 0:
            spread(range(50), lambda: done.append, 3)
            assert submit(lambda: 5).result() == 5
            sys.exit(len(done) != 100)  # atexit's handlers run
        assert os.waitpid(pid, 0)[1] == 0
        assert submit(lambda: 6).result() == 6
    """
    _run(code)


def test_the_end_of_the_program_waits_for_what_was_begun() -> None:
    code = """
        import threading, time
        from tensorstash.threads import submit
        begun = threading.Event()
        def slow():
            begun.set()
            time.sleep(0.3)
            print("done", flush=True)
        submit(slow)
        begun.wait()
    """
    assert _run(code) == "done\n"
    early = """
        import atexit
        def late():
            from tensorstash.threads import spread, submit
            assert submit(int) is None
            done = []
            spread(range(5), lambda: done.append, 3)
            print(sorted(done))
        atexit.register(late)
        import tensorstash.threads
    """
    assert _run(early) == "[0, 1, 2, 3, 4]\n"


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


STORM = """
    import random, signal, sys, time
    from tensorstash.drivers.window import Window
    from tensorstash.threads import IO_THREADS, begin, spread, submit
    what, seed, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    window = Window(4)
    def used():
        if what == "spread":
            spread(range(40), lambda: (lambda n: None), 4, waits=bool(chance.random() < 0.5))
        elif what == "window":
            for _ in window.each(lambda n: n, range(40)):
                pass
        else:
            tasks = [begin(lambda: 3) for _ in range(10)]
            assert [task() for task in tasks] == [3] * 10
    used()
    armed = False
    def handler(*_):
        if armed:
            raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, handler)
    began = time.perf_counter()
    for _ in range(20):
        used()
    usual = (time.perf_counter() - began) / 20
    hits = 0
    for n in range(most):
        signal.setitimer(signal.ITIMER_REAL, max(2e-6, chance.random() * usual))
        try:
            armed = True
            used()
            usual *= 0.99  # it had ended before the alarm: a busy machine was slower before
        except KeyboardInterrupt:
            hits += 1
            usual *= 1.01
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if n % 50 == 0:
            used()
    assert hits > most // 50, hits
    print(hits)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("what", ["spread", "window", "begin"])
def test_a_storm_of_interrupts_leaves_the_pool_at_work(what: str) -> None:
    storm(what, 1, 5000)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("what", ["spread", "window", "begin"])
def test_storms_of_interrupts_leave_the_pool_at_work(what: str, seed: int) -> None:
    storm(what, seed, 20_000)


def storm(what: str, seed: int, most: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STORM), what, str(seed), str(most)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
