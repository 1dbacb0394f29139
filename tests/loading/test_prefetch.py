"""Who makes what a loader yields: a thread ahead of the loop, or the loop, which would wait."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from itertools import chain
from queue import SimpleQueue
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

import tensorstash as stash
from tensorstash.loading.prefetch import Prefetcher, Stop
from tensorstash.torch import Loader
from tests.support.counted import Counted
from tests.support.feeders import no_feeder
from tests.support.races import in_threads

MAIN, FEED = "MainThread", "tensorstash-feed"


def numbered(count: int, seconds: float, makers: list[str]) -> Any:
    def make(stop: Stop) -> Generator[int, None, None]:
        for k in range(count):
            stop.check()
            if seconds:
                time.sleep(seconds)
            makers.append(threading.current_thread().name)
            yield k

    return make


def test_a_loop_that_does_nothing_makes_them_itself() -> None:
    makers: list[str] = []
    assert list(Prefetcher(numbered(400, 0, makers), 4)) == list(range(400))
    assert makers[-100:].count(MAIN) >= 90  # who is interrupted once may be handed one
    no_feeder()


def test_a_loop_that_works_finds_them_ready() -> None:
    makers: list[str] = []
    items = Prefetcher(numbered(60, 0.001, makers), 4)
    for k, item in enumerate(items):
        assert item == k
        time.sleep(0.004)
    assert makers.count(FEED) > 40
    no_feeder()


def test_a_loop_that_begins_to_work_is_helped_again() -> None:
    makers: list[str] = []
    items = Prefetcher(numbered(600, 0, makers), 4)
    for _ in range(300):
        next(items)
    assert makers[-20:].count(MAIN) >= 15
    for _ in range(100):
        next(items)
        time.sleep(0.002)
    assert makers[-1] == FEED
    assert [next(items) for _ in range(200)] == list(range(400, 600))
    assert list(items) == []
    no_feeder()


def test_what_must_stay_in_the_background_does() -> None:
    makers: list[str] = []
    assert list(Prefetcher(numbered(200, 0, makers), 4, anywhere=False)) == list(range(200))
    assert {*makers} == {FEED}


@given(
    st.integers(0, 30),
    st.integers(1, 4),
    st.lists(st.sampled_from([0, 0, 0.0005]), max_size=30),
    st.sampled_from([0, 0.0003]),
    st.integers(0, 40),
)
def test_every_item_comes_once_in_order(
    count: int, depth: int, pauses: list[float], seconds: float, taken: int
) -> None:
    items = Prefetcher(numbered(count, seconds, []), depth)
    found = []
    for k in range(taken):
        item = next(items, None)
        if item is None:
            break
        found.append(item)
        time.sleep(pauses[k] if k < len(pauses) else 0)
    assert found == list(range(min(taken, count)))
    items.close()
    assert list(items) == []
    no_feeder()


def test_consumers_in_several_threads_share_them() -> None:
    items = Prefetcher(numbered(4000, 0, []), 2)
    found: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda k=k: found[k].extend(items)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(chain(*found)) == list(range(4000))
    no_feeder()


@pytest.mark.parametrize("anywhere", [True, False])
def test_an_error_comes_where_its_item_would(anywhere: bool) -> None:
    def make(stop: Stop) -> Generator[int, None, None]:
        yield from range(50)
        raise OSError("no disk")

    items = Prefetcher(make, 3, anywhere=anywhere)
    assert [next(items) for _ in range(50)] == list(range(50))
    with pytest.raises(OSError, match="no disk"):
        next(items)
    assert list(items) == []
    no_feeder()


def test_batches_are_no_results_of_the_loop() -> None:
    with torch.inference_mode():
        batches = [batch["row"] for batch in Loader(Counted(500), 5)]
        assert not any(batch.is_inference() for batch in batches)


def test_a_consumer_does_not_wait_for_what_another_makes_for_itself() -> None:
    items = Prefetcher(numbered(1000, 0.002, []), 2)
    for _ in range(40):
        next(items)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(next(items))) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.0005)
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [40, 41]
    items.close()
    no_feeder()


def test_a_signal_s_handler_may_close_it() -> None:
    items = Prefetcher(numbered(1000, 0.02, []), 2)
    for _ in range(5):
        next(items)
    before = signal.signal(signal.SIGALRM, lambda *_: items.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(StopIteration):
            for _ in range(100):
                next(items)
    finally:
        signal.signal(signal.SIGALRM, before)
    no_feeder()


def test_what_a_user_makes_of_rows_is_made_in_the_background() -> None:
    records = stash.save_records({}, {"x": np.arange(400)})
    names: list[str] = []

    def seen(batch: Any) -> Any:
        names.append(threading.current_thread().name)
        return batch

    viewed = records.with_transform(seen)
    for batches in (Loader(viewed, 5), viewed.iter_batches(5)):
        for _ in batches:
            pass
    assert {*names} == {FEED}
    assert len(names) == 160


class SlowPut(SimpleQueue[Any]):
    """The feeding thread is stopped for a moment after each put, its lock in hand."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        if threading.current_thread().name == "tensorstash-feed":
            time.sleep(0.02)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_item_taken_before_its_maker_lets_go_is_followed_by_others(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(stop: Stop) -> Generator[int, None, None]:
        yield from range(50)

    monkeypatch.setattr("tensorstash.loading.prefetch.SimpleQueue", SlowPut)
    found: list[int] = []

    def work(_: int) -> None:
        for item in Prefetcher(make, depth):
            found.append(item)
            if item % 10 == 3:  # so that some are made ahead
                time.sleep(0.01)

    in_threads(1, work, 30)
    assert found == list(range(50))
