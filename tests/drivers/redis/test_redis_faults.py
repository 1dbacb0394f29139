"""What becomes of requests to Redis when the network or the server fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tensorstash.driver import Check, Driver, Request, Span
from tensorstash.errors import Conflict, DriverError, TimedOut, Unavailable
from tensorstash.registry import connect
from tests.servers.cluster import cluster
from tests.servers.faults import FaultProxy, Proxies
from tests.servers.port import HOST, free_port
from tests.servers.redis import Redis
from tests.servers.valkey import valkey

PUTS = "EVALSHA|EVAL|MSET"


@pytest.fixture
def far(valkey_server: Redis, proxy: Proxies) -> FaultProxy:
    return proxy((HOST, valkey_server.port))


@pytest.fixture
def near(redis_url: str) -> Driver:
    """The same place as ``driver``, not through the proxy."""
    return connect(redis_url, {})


@pytest.fixture
def driver(near: Driver, far: FaultProxy) -> Driver:
    name = near.url.rpartition("/")[2]
    return connect(f"redis://{HOST}:{far.port}/0/{name}", {"timeout": 20.0})


# -- replies that are lost ---------------------------------------------------------------


def test_a_conditional_put_whose_reply_is_lost_happens_once(
    driver: Driver, near: Driver, far: FaultProxy
) -> None:
    near.put("k", b"1")
    found = driver.get_tagged("k")
    assert found is not None
    with far.broken(drop_reply=True, only=PUTS, times=1):
        tag = driver.put("k", b"2", if_tag=found[1])
        assert far.counts.struck == 1
    assert near.get_tagged("k") == (b"2", tag)
    with far.broken(drop_reply=True, only=PUTS, times=1):
        tag = driver.put("new", b"1", if_absent=True)
    assert near.get_tagged("new") == (b"1", tag)
    assert driver.traffic is not None and driver.traffic.retries >= 2


def test_a_repeated_put_does_not_undo_what_came_after_it(
    driver: Driver, near: Driver, far: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = near.put("k", b"1")
    driver.get("k")
    pauses: list[float] = []

    def meanwhile(seconds: float) -> None:
        if not pauses:
            near.put("k", b"another's")
        pauses.append(seconds)

    monkeypatch.setattr("tensorstash.drivers.redis.client.time.sleep", meanwhile)
    with far.broken(drop_reply=True, only=PUTS, times=1), pytest.raises(DriverError) as caught:
        driver.put("k", b"2", if_tag=first)
    assert type(caught.value) is DriverError and caught.value.key == "k"
    assert "unknown" in str(caught.value) and "'k'" in str(caught.value)
    assert near.get("k") == b"another's" and pauses


def test_a_conflict_is_told_from_a_lost_reply(
    driver: Driver, near: Driver, far: FaultProxy
) -> None:
    old = near.put("k", b"1")
    near.put("k", b"2")
    with pytest.raises(Conflict):
        driver.put("k", b"3", if_tag=old)
    # Refused before it was sent: repeated, and still a plain conflict.
    far.reset_connections()
    with pytest.raises(Conflict):
        driver.put("k", b"3", if_absent=True)


def test_an_outcome_that_stays_unknown_is_said(driver: Driver, far: FaultProxy) -> None:
    driver = connect(driver.url, {"timeout": 2.0})
    driver.get("k")
    with (
        far.broken(drop_reply=True, only=PUTS),
        pytest.raises(Unavailable, match="whether it was carried out is unknown"),
    ):
        driver.put("k", b"1", if_absent=True)


@pytest.mark.parametrize("verb", ["put", "delete", "put_many", "delete_prefix", "lock"])
def test_other_writes_whose_reply_is_lost(
    verb: str, driver: Driver, near: Driver, far: FaultProxy
) -> None:
    near.put("d/k", b"0")
    driver.get("d/k")
    with far.broken(drop_reply=True, only="MSET|UNLINK|EVAL", times=1):
        if verb == "put":
            driver.put("d/k", b"1")
        elif verb == "put_many":
            driver.put_many([("d/k", b"1"), ("d/l", b"2")])
        elif verb == "delete":
            driver.delete("d/k")
        elif verb == "delete_prefix":
            driver.delete_prefix("d/")
        else:
            with driver.lock("d/k", timeout=0):
                near.put("d/k", b"1")
    assert far.counts.struck == 1
    assert near.get("d/k") == (b"1" if verb in ("put", "put_many", "lock") else None)


# -- broken reads ------------------------------------------------------------------------


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize("offset", [0, 3, 5000])
def test_a_reply_cut_short_is_asked_for_again(
    driver: Driver, near: Driver, far: FaultProxy, offset: int, orderly: bool
) -> None:
    values = {f"c/{i}": bytes([i]) * 3000 for i in range(20)}
    near.put_many(values.items())
    calls = [
        lambda: {i: found and found[0] for i, found in driver.get_many_tagged(requests)},
        lambda: {0: driver.get("c/0")},
        lambda: {0: found[0][0] if (found := driver.get_ranges("c/0", [Span(0)])) else None},
    ]
    requests = [Request(key) for key in values]
    for call in calls:
        driver.close()
        with far.broken(cut_after=offset, times=1, orderly=orderly):
            found: dict[int, Any] = call()
        assert [*found.values()] == [values[f"c/{i}"] for i in found]


def test_a_listing_cut_short_is_not_taken_for_all(
    driver: Driver, near: Driver, far: FaultProxy
) -> None:
    keys = {f"c/{i}" for i in range(3000)}
    near.put_many((key, b"1") for key in keys)
    with far.broken(cut_after=2000, times=1):
        assert {*driver.list()} == keys
    impatient = connect(driver.url, {"timeout": 2.0})
    with far.broken(cut_after=2000), pytest.raises(Unavailable):
        [*impatient.list()]


# -- nothing answers ---------------------------------------------------------------------


def calls(driver: Driver) -> list[Any]:
    return [
        lambda: driver.get("k"),
        lambda: [*driver.get_many_tagged([Request("k")])],
        lambda: driver.put("k", b"1"),
        lambda: driver.put("k", b"1", if_absent=True),
        lambda: driver.delete("k"),
        lambda: [*driver.list()],
        lambda: driver.lock("k", 1).__enter__(),
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_black_hole_is_a_time_out(near: Driver, far: FaultProxy, number: int) -> None:
    driver = connect(f"redis://{HOST}:{far.port}/0/x", {"timeout": 0.4})
    with far.broken(black_hole=True), pytest.raises(TimedOut, match="raise timeout"):
        calls(driver)[number]()
    driver = connect(f"redis://{HOST}:{far.port}/0/x", {})
    driver.put("k", b"1")
    assert driver.get("k") == b"1"


@pytest.mark.parametrize("number", range(7))
def test_a_refused_connection_is_unavailable(number: int) -> None:
    driver = connect(f"redis://{HOST}:{free_port()}/0/x", {"timeout": 0.4})
    with pytest.raises(Unavailable, match="check that the server runs") as caught:
        calls(driver)[number]()
    assert caught.value.__cause__ is not None


def test_a_server_that_stops_for_a_while(near: Driver, far: FaultProxy, driver: Driver) -> None:
    driver.put("k", b"1")
    far.fault = type(far.fault)(refuse=True)
    import threading

    timer = threading.Timer(0.5, lambda: setattr(far, "fault", type(far.fault)()))
    timer.start()
    assert driver.get("k") == b"1"
    timer.join()


# -- servers that die --------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[Redis]:
    settings = {"appendonly": "yes", "appendfsync": "no"}
    with closing(valkey(settings=settings)) as server:
        yield server


def test_a_server_killed_with_an_append_only_file_keeps_every_put(mortal: Redis) -> None:
    driver = connect(mortal.address, {})
    tags = {f"c/{i}": driver.put(f"c/{i}", b"%d" % i * 1000) for i in range(50)}
    mortal.process.restart()
    for i, found in driver.get_many_tagged(Request(key) for key in tags):
        assert found == (b"%d" % i * 1000, tags[f"c/{i}"])
    # Scripts went with the server's memory.
    driver.put("c/0", b"new", if_tag=tags["c/0"])


def test_a_server_killed_without_one_forgets(valkey_server: Redis) -> None:
    with closing(valkey()) as server:
        driver = connect(server.address, {})
        driver.put("k", b"1")
        server.process.restart()
        assert driver.get("k") is None


def test_a_lock_is_lost_with_the_server(mortal: Redis) -> None:
    with closing(valkey()) as server:
        driver = connect(server.address, {"lease": 3.0})
        with driver.lock("k") as check:
            check()
            server.process.restart()
            with connect(server.address, {}).lock("k", 0):
                is_lost(check)


def test_a_lease_outlives_its_term_while_its_holder_lives(redis_url: str) -> None:
    driver = connect(redis_url, {"lease": 3.0})
    with driver.lock("k") as check:
        time.sleep(4.0)
        check()
        with pytest.raises(TimedOut), connect(redis_url, {}).lock("k", 0):
            pass


def test_a_stopped_holder_notices_that_its_lease_ended(redis_url: str) -> None:
    driver = connect(redis_url, {"lease": 1.0})
    with driver.lock("k") as check:
        place = f"{redis_url.rpartition('/')[2]}/.lock{{k}}"
        client = _client(redis_url)
        client.delete(place)  # as if its time were up
        is_lost(check)


def is_lost(check: Check) -> None:
    """The holder is told, as soon as it tried to renew its lease."""
    end = time.monotonic() + 60
    with pytest.raises(Conflict, match="was lost"):
        while time.monotonic() < end:
            check()
            time.sleep(0.02)


def _client(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url.rpartition("/")[0])


def test_a_node_of_a_cluster_that_dies() -> None:
    with closing(cluster()) as servers:
        driver = connect(servers.fresh(), {"cluster": True, "timeout": 1.0})
        keys = [f"c/{i}" for i in range(100)]
        driver.put_many((key, b"1") for key in keys)
        assert {*driver.list()} == {*keys}
        servers.nodes[2].process.kill()
        for call in (
            lambda: [*driver.get_many(Request(key) for key in keys)],
            lambda: driver.put_many((key, b"2") for key in keys),
            lambda: [*driver.list()],
        ):
            with pytest.raises((Unavailable, TimedOut)):
                call()
        servers.nodes[2].process.start()
        driver = connect(driver.url, {"cluster": True, "timeout": 20.0})
        driver.put_many((key, b"3") for key in keys)
        assert {value for _, value in driver.get_many(Request(key) for key in keys)} == {b"3"}
