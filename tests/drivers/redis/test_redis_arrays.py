"""Arrays and groups in Redis: many writers at once, appends, other processes, a cluster."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.registry import connect
from tests.servers.cluster import Cluster
from tests.servers.faults import Proxies
from tests.servers.port import HOST
from tests.servers.redis import Redis
from tests.servers.valkey import valkey
from tests.support.races import LAYOUTS, fork, in_processes, in_threads, spawn

ROWS, COLUMNS = 32, 16


def write_rows(barrier: Any, url: str, k: int, count: int, options: Any = None) -> None:
    """Every ``count``-th row from the ``k``-th on, one at a time."""
    array = stash.open(url, "r+", options=options)
    barrier.wait()
    for row in range(k, ROWS, count):
        array[row] = row + 1


EXPECTED = np.repeat(np.arange(1, ROWS + 1), COLUMNS).reshape(ROWS, COLUMNS)


@pytest.mark.parametrize(
    ("layout", "context"),
    [*((layout, fork) for layout in LAYOUTS), ("shard", spawn)],
    ids=[*LAYOUTS, "shard-spawn"],
)
def test_processes_write_parts_of_one_chunk(redis_url: str, layout: str, context: Any) -> None:
    array = stash.create(redis_url, (ROWS, COLUMNS), "i4", **LAYOUTS[layout])
    count = 4 if context is fork else 2  # a spawned one starts slowly
    in_processes(context, write_rows, *((redis_url, k, count) for k in range(count)))
    np.testing.assert_array_equal(array[...], EXPECTED)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_write_parts_of_one_chunk(redis_url: str, layout: str) -> None:
    array = stash.create(redis_url, (ROWS, COLUMNS), "i4", **LAYOUTS[layout])
    barrier = threading.Barrier(8)
    in_threads(8, lambda k: write_rows(barrier, redis_url, k, 8))
    np.testing.assert_array_equal(array[...], EXPECTED)


def test_threads_write_parts_of_one_chunk_of_a_cluster(redis_cluster: Cluster) -> None:
    url, options = redis_cluster.fresh(), {"cluster": True}
    array = stash.create(url, (ROWS, COLUMNS), "i4", chunks=(8, 8), options=options)
    barrier = threading.Barrier(4)
    in_threads(4, lambda k: write_rows(barrier, url, k, 4, options))
    np.testing.assert_array_equal(array[...], EXPECTED)


def append_rows(barrier: Any, url: str, k: int, times: int) -> None:
    array = stash.open(url, "r+")
    barrier.wait()
    for _ in range(times):
        array.append(np.full((3, 4), k))


@pytest.mark.parametrize("chunks", [(2, 4), (64, 4)])
def test_processes_append(redis_url: str, chunks: tuple[int, int]) -> None:
    stash.create(redis_url, (0, 4), "i4", chunks=chunks)
    in_processes(fork, append_rows, *((redis_url, k, 5) for k in range(1, 5)))
    found = stash.open(redis_url)[...]
    assert found.shape == (60, 4)
    blocks = found.reshape(20, 12)
    assert (blocks == blocks[:, :1]).all()
    assert sorted(blocks[:, 0]) == sorted([1, 2, 3, 4] * 5)


def test_an_append_waits_for_no_dead_process(redis_url: str) -> None:
    stash.create(redis_url, (0, 4), "i4", chunks=(2, 4))
    mine, theirs = fork.Pipe()
    # What the holder's lease is decides about how long the others wait.
    holder = fork.Process(target=hold, args=(redis_url, theirs))
    holder.start()
    assert mine.recv() == "held"
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    start = time.monotonic()
    stash.open(redis_url, "r+", options={"lease": 600.0}, lock_timeout=None).append(np.ones((3, 4)))
    assert time.monotonic() - start < 300  # ours would be 600
    assert stash.open(redis_url).shape == (3, 4)


def hold(url: str, pipe: Any) -> None:
    with connect(url, {"lease": 1.0}).lock("zarr.json"):
        pipe.send("held")
        time.sleep(60)


def test_groups(redis_url: str) -> None:
    group = stash.create_group(redis_url)
    for name in ("a", "b", "deep/er"):
        group.create(name, (4, 4), "i4", chunks=(2, 2))[...] = 1
    assert sorted(group) == ["a", "b", "deep"]
    del group["a"]
    assert sorted(stash.open_group(redis_url)) == ["b", "deep"]
    assert [*group.driver.list("a/")] == []
    assert (group["deep/er"][...] == 1).all()


def test_a_handle_travels(redis_url: str) -> None:
    array = stash.create(redis_url, (8, 8), "i4", chunks=(4, 4))
    array[...] = 3
    pickled = pickle.dumps(array)
    assert len(pickled) < 2048
    in_processes(spawn, read_all, (pickled,))


def read_all(barrier: Any, pickled: bytes) -> None:
    barrier.wait()
    assert (pickle.loads(pickled)[...] == 3).all()


def test_a_server_restarted_between_writes_loses_none() -> None:
    with closing(valkey(settings={"appendonly": "yes", "appendfsync": "no"})) as server:
        array = stash.create(server.address + "/x", (ROWS, COLUMNS), "i4", chunks=(4, 4))
        killer = threading.Timer(0.05, server.process.restart)
        killer.start()
        for row in range(ROWS):
            array[row] = row + 1
            time.sleep(0.005)
        killer.join()
        np.testing.assert_array_equal(array[...], EXPECTED)


def test_parts_written_through_a_network_that_loses_replies(
    redis_url: str, valkey_server: Redis, proxy: Proxies
) -> None:
    array = stash.create(redis_url, (ROWS, COLUMNS), "i4", chunks=(32, 16))
    far = proxy((HOST, valkey_server.port))
    url = f"redis://{HOST}:{far.port}/0/{redis_url.rpartition('/')[2]}"
    lossy = stash.open(url, "r+")
    for row in range(ROWS):
        with far.broken(drop_reply=True, times=1):
            lossy[row] = row + 1
    np.testing.assert_array_equal(array[...], EXPECTED)


def test_a_read_is_few_round_trips(redis_url: str) -> None:
    array = stash.create(redis_url, (400, 400), "f4", chunks=(10, 10))
    array[...] = np.random.default_rng(0).random((400, 400), "f4")
    driver = connect(redis_url, {})
    fresh = stash.open(driver)
    assert driver.traffic is not None
    assert driver.traffic.requests <= 3
    for selection, most in ((np.s_[...], 8), (np.s_[...], 4), (np.s_[5], 2), (np.s_[:, 5], 2)):
        before = driver.traffic.requests
        fresh[selection]
        assert driver.traffic.requests - before <= most, selection
