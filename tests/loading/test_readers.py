"""Threads that read blocks: each job is done once, by whoever comes first; and how many threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.loading.workers import Task, ThreadTuner, WorkQueue


def test_every_job_is_done_once_and_errors_are_told() -> None:
    done: list[int] = []
    threads: set[int] = set()

    def work(i: int) -> None:
        threads.add(threading.get_ident())
        done.append(i)
        time.sleep(0.001)
        if i == 30:
            raise ValueError(str(i))

    readers = WorkQueue(3, waits=False)
    jobs = [Task(lambda i=i: work(i)) for i in range(60)]  # type: ignore[misc]
    readers.add(*jobs)
    readers.go()
    for i, job in enumerate(jobs):
        if i == 30:
            with pytest.raises(ValueError, match="30"):
                readers.finish(job)
        else:
            readers.finish(job)
            assert job.seconds > 0
    assert sorted(done) == list(range(60))
    assert 1 < len(threads) <= 4


def test_what_is_held_is_not_begun_and_what_was_begun_is_over() -> None:
    begun, over = threading.Event(), []
    go = threading.Event()

    def first() -> None:
        begun.set()
        go.wait(10)
        over.append("first")

    readers = WorkQueue(1, waits=True)
    rest = [Task(lambda: over.append("rest")) for _ in range(3)]
    readers.add(Task(first), *rest)
    readers.go()
    assert begun.wait(10)
    threading.Timer(0.05, go.set).start()
    assert readers.hold() == rest
    assert over == ["first"]
    readers.add(*rest)
    for job in rest:
        readers.finish(job)
    assert over == ["first", "rest", "rest", "rest"]


def test_threads_are_kept_where_they_pay() -> None:
    for each, kept in ((1.1, True), (1.7, False), (2.5, False)):
        pace = ThreadTuner(2, decided=False)
        assert not pace.together
        for _ in range(8):
            pace.took(1.0)
        assert pace.together
        for k in range(16):
            pace.took(9.0 if k < 3 else each)  # the first ones are late
        assert pace.together is kept
        for _ in range(99):
            pace.took(5.0)
        assert pace.together is kept
        pace = ThreadTuner(2, decided=False)
        pace.took(40.0, 40)  # a task that is many
        assert pace.together
        for _ in range(3):
            pace.took(40 * each, 40)
            assert pace.together
        pace.took(40 * each, 40)
        assert pace.together is kept
    assert ThreadTuner(2, decided=True).together
    assert not ThreadTuner(1, decided=True).together
    assert not ThreadTuner(1, decided=False).together


def test_whole_chunks_in_any_order_equal_numpy() -> None:
    values = np.random.default_rng(0).integers(0, 1000, (64, 5, 3))
    array = stash.create("memory://", (64, 5, 3), "int64", chunks=(8, 5, 3))
    array[...] = values
    runs = np.arange(64).reshape(8, 8)
    for rows in (
        runs[[3, 0, 7]].ravel(),  # whole chunks
        runs[[3, 0, 7], ::-1].ravel(),  # backwards within each
        runs[[3, 0, 3]].ravel(),  # one of them twice
        runs[[3, 0, 7]].T.ravel(),  # taking turns
        np.concatenate([runs[2], runs[5, :4], runs[1]]),  # half of one
        np.repeat(runs[4], 2)[:8],
        np.concatenate([runs[6], [48], runs[0]]),
        runs[5, 5:6],
        np.arange(0),
        -1 - runs[[1, 6]].ravel(),
    ):
        np.testing.assert_array_equal(array[rows], values[rows])
        out = np.full((len(rows), 5, 3), -7)
        array.read(rows, out=out)
        np.testing.assert_array_equal(out, values[rows])
        into = np.full((5, len(rows), 3), -7).transpose(1, 0, 2)
        array.read(rows, out=into)
        np.testing.assert_array_equal(into, values[rows])
        np.testing.assert_array_equal(array[rows, :, 1:2], values[rows, :, 1:2])
        np.testing.assert_array_equal(array[rows][..., [2, 0]], values[rows][..., [2, 0]])


def test_a_lone_whole_chunk_is_read_whatever_its_chain() -> None:
    values = np.random.default_rng(0).normal(size=(6, 4))
    for codecs in (
        None,
        "auto",
        "zstd",
        [{"name": "transpose", "configuration": {"order": [1, 0]}}, "bytes"],
    ):
        for shards in (None, (6, 4)):
            array = stash.create(
                "memory://lone",
                (6, 4),
                "float64",
                chunks=(2, 4),
                shards=shards,
                codecs=codecs,
                overwrite=True,
            )
            array[:4] = values[:4]
            for rows in (slice(0, 2), slice(2, 4), np.arange(2)):
                np.testing.assert_array_equal(array[rows], values[rows])
                out = np.full((2, 4), -1.0)
                assert array.read(rows, out=out) is out
                np.testing.assert_array_equal(out, values[rows])
            assert not array[4:].any()
