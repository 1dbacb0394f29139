"""Many conditional puts to Redis at once: round trips, scripts, lost replies, a cluster."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver, Put, Request
from tensorstash.errors import DriverError, Invalid
from tensorstash.registry import connect
from tests.servers.cluster import Cluster
from tests.servers.faults import FaultProxy, Proxies
from tests.servers.port import HOST
from tests.servers.redis import Redis
from tests.servers.valkey import valkey

PUTS = "EVALSHA|EVAL|MSET"


@pytest.fixture
def driver(redis_url: str) -> Driver:
    return connect(redis_url, {})


def trips(driver: Driver, work: Any) -> int:
    assert driver.traffic is not None
    before = driver.traffic.requests
    work()
    return driver.traffic.requests - before


def news(count: int, size: int, folder: str = "a") -> list[Put]:
    return [Put(f"{folder}/{i}", bytes([i % 256]) * size, if_absent=True) for i in range(count)]


def test_round_trips(driver: Driver) -> None:
    assert trips(driver, lambda: [*driver.put_each(news(1000, 4000))]) == 1
    assert trips(driver, lambda: [*driver.put_each(news(1000, 4000))]) == 1  # conflicts
    assert trips(driver, lambda: [*driver.put_each(news(20, 1 << 20, "b"))]) == 3
    assert trips(driver, lambda: [*driver.put_each(news(1, 9 << 20, "c"))]) == 1
    assert trips(driver, lambda: [*driver.put_each(news(1500, 1, "d"))]) == 2


def test_puts_are_taken_as_earlier_ones_are_done(driver: Driver) -> None:
    taken: list[Put] = []
    puts = news(40, 1 << 20)
    for i, tag in driver.put_each(taken.append(put) or put for put in puts):  # type: ignore[func-returns-value]
        assert tag is not None and len(taken) <= i + 10


def test_many_puts_of_one_key(driver: Driver) -> None:
    puts = [Put("k", b"1"), Put("k", b"2", if_absent=True), Put("l", b"3"), Put("k", b"4")]
    answers = dict(driver.put_each(puts))
    assert answers[1] is None and answers[3] == driver.tag("k")
    assert driver.get("k") == b"4" and driver.get("l") == b"3"


def test_two_conditions_are_refused(driver: Driver) -> None:
    with pytest.raises(Invalid, match="not both"):
        [*driver.put_each([Put("k", b"1", True, b"x")])]
    assert driver.get("k") is None


def test_a_script_is_sent_once(driver: Driver, valkey_server: Redis) -> None:
    with valkey_server.client() as client:

        def calls() -> dict[str, int]:
            stats = client.info("commandstats")
            names = ("eval", "evalsha")
            found = {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names}
            client.config_resetstat()
            return found

        client.script_flush()
        calls()
        [*driver.put_each(news(50, 10))]
        assert calls() == {"eval": 1, "evalsha": 49}
        [*driver.put_each(news(50, 10))]
        assert calls() == {"eval": 0, "evalsha": 50}
        client.script_flush()  # as a server does that starts again
        assert {tag for _, tag in driver.put_each(news(50, 10))} == {None}
        assert calls() == {"eval": 1, "evalsha": 50 + 49}


def test_a_server_that_was_away_for_long_learns_its_scripts_again() -> None:
    with closing(valkey(settings={"appendonly": "yes", "appendfsync": "no"})) as server:
        driver = connect(server.address, {})
        old = driver.put("k", b"1", if_absent=True)
        with driver.lock("k", 1):
            pass
        server.process.kill()
        timer = threading.Timer(1.2, server.process.start)
        timer.start()
        with driver.lock("k", 10):
            assert [tag for _, tag in driver.put_each([Put("k", b"2", if_tag=old)])] != [None]
        timer.join()
        assert driver.traffic is not None and driver.traffic.retries > 5


# -- replies that are lost ---------------------------------------------------------------


@pytest.fixture
def far(valkey_server: Redis, proxy: Proxies) -> FaultProxy:
    return proxy((HOST, valkey_server.port))


@pytest.fixture
def lossy(driver: Driver, far: FaultProxy) -> Driver:
    name = driver.url.rpartition("/")[2]
    return connect(f"redis://{HOST}:{far.port}/0/{name}", {"timeout": 20.0})


@pytest.mark.parametrize("fault", [{"drop_reply": True}, {"cut_after": 60}])
def test_puts_whose_replies_are_lost_happen_once(
    lossy: Driver, driver: Driver, far: FaultProxy, fault: dict[str, Any]
) -> None:
    tags = [driver.put(f"a/{i}", b"old") for i in range(30)]
    puts = [Put(f"a/{i}", b"%d" % i, if_tag=tag) for i, tag in enumerate(tags)]
    lossy.get("a/0")
    with far.broken(only=PUTS, times=1, **fault):
        answers = dict(lossy.put_each(puts))
        assert far.counts.struck == 1
    found = dict(driver.get_many_tagged(Request(put.key) for put in puts))
    assert found == {i: (put.value, answers[i]) for i, put in enumerate(puts)}


def test_another_writer_after_a_lost_reply_is_named(
    lossy: Driver, driver: Driver, far: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy.get("a/0")
    monkeypatch.setattr(
        "tensorstash.drivers.redis.client.time.sleep", lambda _: driver.put("a/3", b"another's")
    )
    with (
        far.broken(only=PUTS, times=1, drop_reply=True),
        pytest.raises(DriverError, match=r"'a/3'.*unknown") as caught,
    ):
        [*lossy.put_each(news(5, 1))]
    assert type(caught.value) is DriverError and caught.value.key == "a/3"
    assert driver.get("a/3") == b"another's" and driver.get("a/4") == b"\4"


# -- a cluster, an array -----------------------------------------------------------------


def test_a_cluster_is_a_round_trip_a_node(redis_cluster: Cluster) -> None:
    driver = connect(redis_cluster.fresh(), {"cluster": True})
    tags = dict(driver.put_each(news(200, 1000)))
    assert trips(driver, lambda: [*driver.put_each(news(200, 1000))]) == 3
    swaps = [Put(f"a/{i}", b"x", if_tag=tag) for i, tag in tags.items()]
    assert None not in dict(driver.put_each(swaps)).values()
    with redis_cluster.nodes[1].client() as client:
        client.script_flush()
    again = dict(driver.put_each(swaps))
    assert [*again] == [*range(200)] and {*again.values()} == {None}


def test_rows_of_many_chunks_are_few_round_trips(driver: Driver) -> None:
    array = stash.create(driver, (4864, 16), "f4", chunks=(64, 16))  # 76 chunks
    array[...] = 1
    rows = np.random.default_rng(0).permutation(4864)[:200]
    array[[0, 1]] = 2
    most = trips(driver, lambda: array.__setitem__(rows, 3))
    expected = np.ones((4864, 16), "f4")
    expected[[0, 1]] = 2
    expected[rows] = 3
    np.testing.assert_array_equal(array[...], expected)
    assert most <= 5
