"""How the feed ends: broken off, closed, collected, by an error, in a fork, with the interpreter;
never a thread is left."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from itertools import chain
from typing import Any

import pytest

from tensorstash.errors import DriverError, NotFound
from tensorstash.loading.loader import BatchLoader, Iteration
from tests.support.counted import Counted, check_batch
from tests.support.feeders import SHUFFLES, feeders, no_feeder, rows_of
from tests.support.project import ROOT


@pytest.fixture(autouse=True)
def _ends() -> Any:
    yield
    no_feeder()


# -- ends --------------------------------------------------------------------------------------


def test_an_interrupt_before_it_began_leaves_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    broken: Any = Iteration.__new__(Iteration)  # as an interrupt before its first line leaves it
    del broken
    gc.collect()
    assert not told


def test_a_broken_off_loop_ends_its_thread() -> None:
    source = Counted(10_000, delay=0.001)
    for _ in BatchLoader(source, 10, shuffle=True):
        break
    no_feeder()
    calls = source.calls
    time.sleep(0.1)
    assert source.calls == calls


def test_closing_waits_until_nothing_is_read_any_more() -> None:
    source = Counted(10_000, delay=0.01)
    feed: BatchLoader[Any] = BatchLoader(source, 10, shuffle=True, threads=2)
    batches = iter(feed)
    next(batches)
    batches.close()
    assert not feeders()
    assert source._reading == 0
    assert list(batches) == []
    assert feed.state_dict()["position"] == 10
    batches.close()


def test_garbage_in_a_circle_ends_its_thread_too() -> None:
    batches = iter(BatchLoader(Counted(10_000), 10, shuffle=True))
    next(batches)
    circle: list[Any] = [batches]
    circle.append(circle)
    del batches, circle
    no_feeder()


def test_a_generator_over_it_that_is_dropped() -> None:
    def twice(feed: Any) -> Any:
        for batch in feed:
            yield batch
            yield batch

    running = twice(BatchLoader(Counted(10_000), 10))
    next(running)
    del running
    no_feeder()


def test_several_iterators_at_once() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(300), 10, shuffle=True)
    one, other = iter(feed), iter(feed)
    found: list[list[int]] = [[], []]
    for first, second in zip(one, other, strict=True):
        found[0] += check_batch(first)
        found[1] += check_batch(second)
    assert sorted(found[0]) == sorted(found[1]) == list(range(300))
    assert found[0] != found[1]


def test_several_consumers_of_one_iterator() -> None:
    batches = iter(BatchLoader(Counted(2000), 10, shuffle=True))
    found: list[list[int]] = [[] for _ in range(4)]

    def consume(k: int) -> None:
        for batch in batches:
            found[k] += check_batch(batch)

    consumers = [threading.Thread(target=consume, args=(k,)) for k in range(4)]
    for consumer in consumers:
        consumer.start()
    for consumer in consumers:
        consumer.join(30)
    assert sorted(chain(*found)) == list(range(2000))


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_an_error_comes_in_its_place_and_ends_the_epoch(
    shuffle: Any, threads: int, prefetch: int
) -> None:
    def fault(rows: Any) -> None:
        if 333 in rows:
            raise NotFound("the store is gone: mount it again")

    source = Counted(640, 16, fault=fault)
    options: dict[str, Any] = {"lanes": 4, "pool": 8, "pool_bytes": 500}
    feed: BatchLoader[Any] = BatchLoader(
        source, 10, shuffle=shuffle, threads=threads, prefetch=prefetch, **options
    )
    good: BatchLoader[Any] = BatchLoader(Counted(640, 16), 10, shuffle=shuffle, **options)
    batches = iter(feed)
    found = []
    with pytest.raises(NotFound, match="the store is gone: mount it again"):
        for batch in batches:
            found.append(check_batch(batch))
    assert found == [check_batch(batch) for _, batch in zip(found, good, strict=False)]
    assert feed.state_dict()["position"] == 10 * len(found)
    assert list(batches) == []
    assert feed.state_dict()["position"] == 10 * len(found)
    no_feeder()
    # When it is there again, the rest follows.
    source.fault = None
    feed.load_state_dict(feed.state_dict())
    assert sorted([*chain(*found), *rows_of(feed)]) == list(range(640))


def test_an_error_in_what_makes_batches() -> None:
    made = []

    def finish(columns: Any) -> Any:
        made.append(1)
        if len(made) == 3:
            raise ZeroDivisionError("of the user's")
        return columns

    feed: BatchLoader[Any] = BatchLoader(Counted(640), 10, finish=finish)
    with pytest.raises(ZeroDivisionError, match="of the user's"):
        list(feed)
    assert feed.state_dict()["position"] == 20


def test_interrupts_of_the_reader_arrive() -> None:
    def fault(rows: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(BatchLoader(Counted(640, fault=fault), 10))


def test_faults_of_drivers_keep_their_fields() -> None:
    def fault(rows: Any) -> None:
        raise DriverError("the disk is gone; mount it", key="c/3", driver="file")

    with pytest.raises(DriverError) as caught:
        list(BatchLoader(Counted(640, fault=fault), 10, shuffle=True, threads=2))
    assert (caught.value.key, caught.value.driver) == ("c/3", "file")


# -- forks and the interpreter's end -----------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 4])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_forked_child_goes_on_by_itself(shuffle: Any, prefetch: int) -> None:
    source = Counted(640, 16, plain=False, delay=0.0005)
    feed: BatchLoader[Any] = BatchLoader(
        source, 10, shuffle=shuffle, prefetch=prefetch, pool_bytes=3000
    )
    batches = iter(feed)
    before = [check_batch(next(batches)) for _ in range(7)]
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            rest = rows_of(batches)
            os.write(write, repr(rest).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    mine = rows_of(batches)
    with os.fdopen(read, "rb") as pipe:
        theirs = eval(pipe.read())
    assert os.waitpid(child, 0)[1] == 0
    assert theirs == mine
    assert sorted([*chain(*before), *mine]) == list(range(640))


SCRIPTS = {
    "while the feeder waits": "batches = iter(feed); next(batches); time.sleep(0.2)",
    "while it reads": "source.delay = 0.3; batches = iter(feed); next(batches)",
    "at once": "batches = iter(feed)",
    "in a circle": "batches = iter(feed); next(batches); batches.me = [batches]",
    "by an error": "batches = iter(feed); next(batches); raise SystemExit(0)",
    "in a thread": (
        "import threading\n"
        "t = threading.Thread(target=lambda: list(feed)); t.start(); time.sleep(0.1)"
    ),
}


@pytest.mark.parametrize("how", SCRIPTS)
def test_the_interpreter_ends_without_waiting(how: str) -> None:
    script = "\n".join(
        [
            "import sys, time",
            f"sys.path.insert(0, {str(ROOT)!r})",
            "from tests.support.counted import Counted",
            "from tensorstash.loading.loader import BatchLoader",
            "source = Counted(100_000 if 'thread' not in sys.argv else 2000, 16)",
            "feed = BatchLoader(source, 10, shuffle=True, threads=2)",
            textwrap.dedent(SCRIPTS[how]),
        ]
    )
    arguments = ["thread"] if how == "in a thread" else []
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, timeout=60, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
