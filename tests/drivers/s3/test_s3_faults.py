"""What the network does to requests to S3, and what comes of it: right data, or the right error
in time; nothing lost, nothing twice."""

from __future__ import annotations

import threading
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Request
from tensorstash.drivers import s3 as s3_driver
from tensorstash.drivers.s3 import lock
from tensorstash.drivers.s3.driver import S3Driver
from tensorstash.drivers.s3.keys import lock_place
from tensorstash.errors import Conflict, Corrupt, DriverError, TimedOut, Unavailable
from tests.servers.fault import Fault
from tests.servers.faults import FaultProxy, Proxies
from tests.servers.s3 import S3

SMALL = {"timeout": 3.0, "idle": 1.2}
LEASE = 1.5


@pytest.fixture(params=["s3fs", "obstore"])
def client(request: Any) -> str:
    name: str = request.param
    return name


@pytest.fixture
def way(s3: S3, proxy: Proxies) -> FaultProxy:
    parts = urlsplit(s3.endpoint)
    return proxy((parts.hostname, parts.port), http=True)


def through(way: FaultProxy, s3: S3, client: str, **options: Any) -> S3Driver:
    given = s3.through(way.endpoint).options | {"client": client} | options
    return s3_driver.connect(f"{s3.make_bucket()}/root", **given)


# -- counts ------------------------------------------------------------------------------


def test_requests_are_counted_as_they_are_sent(way: FaultProxy, s3: S3, client: str) -> None:
    driver = through(way, s3, client)

    def spent(call: Any) -> int:
        before, seen = driver.traffic.requests, way.counts.requests
        call()
        sent = driver.traffic.requests - before
        assert way.counts.requests - seen == sent
        return sent

    assert spent(lambda: driver.put("a", b"0123456789")) == 1
    assert spent(lambda: driver.get("a")) == 1
    assert spent(lambda: driver.tag("a")) == 1
    assert spent(lambda: driver.get("absent")) == 1
    assert spent(lambda: driver.put_many((f"c/{i}", b"x") for i in range(20))) == 20
    assert spent(lambda: [*driver.get_many(Request(f"c/{i}") for i in range(20))]) == 20
    # The server is tried with 5 requests once, each conditional put is one.
    assert spent(lambda: driver.put("b", b"1", if_absent=True)) == 6
    assert spent(lambda: driver.put("d", b"1", if_absent=True)) == 1
    assert spent(lambda: [*driver.list()]) == 1
    assert spent(lambda: driver.list_dir()) == 1
    assert spent(lambda: dict(driver.sizes())) == 1
    assert spent(lambda: driver.delete_many([f"c/{i}" for i in range(20)])) == 1
    assert spent(lambda: driver.delete_prefix("")) == 2
    assert driver.traffic.retries == 0
    assert driver.traffic.bytes_read == 30 and driver.traffic.bytes_written == 10 + 20 + 1 + 1
    driver.close()


# -- reading -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [{"cut_after": 1000}, {"cut_after": 1000, "orderly": True}, {"drop_reply": True}]
)
def test_a_cut_read_is_repeated(
    way: FaultProxy, s3: S3, client: str, fault: dict[str, Any]
) -> None:
    driver = through(way, s3, client)
    value = np.arange(20_000, dtype="u4").tobytes()
    driver.put("k", value)
    with way.broken(times=2, only="^GET", **fault):
        assert bytes(driver.get("k") or b"") == value
    assert driver.traffic.retries == 2
    with way.broken(times=3, only="^GET", **fault):
        found = dict(driver.get_many_tagged(Request("k") for _ in range(20)))
    assert all(pair is not None and bytes(pair[0]) == value for pair in found.values())
    driver.close()


def test_a_flipped_byte_is_noticed_by_the_array(way: FaultProxy, s3: S3, client: str) -> None:
    driver = through(way, s3, client)
    array = stash.create(driver, (64, 64), "int32", chunks=(64, 64))
    array[:] = np.arange(64 * 64).reshape(64, 64)
    with way.broken(flip=60, only="^GET [^ ]*/c/"), pytest.raises(Corrupt):
        stash.open(driver)[:]
    assert stash.open(driver)[0, 63] == 63
    driver.close()


def test_a_storm_of_503_is_weathered(way: FaultProxy, s3: S3, client: str) -> None:
    driver = through(way, s3, client)
    with way.broken(slow_down=0.3):
        driver.put_many((f"k/{i}", b"%d" % i) for i in range(60))
        found = dict(driver.get_many(Request(f"k/{i}") for i in range(60)))
        assert {i: bytes(value or b"") for i, value in found.items()} == {
            i: b"%d" % i for i in range(60)
        }
        tag = driver.put("n", b"0", if_absent=True)
        for i in range(10):
            tag = driver.put("n", b"%d" % i, if_tag=tag)
        assert len([*driver.list()]) == 61
    assert driver.traffic.retries > 20
    driver.close()


@pytest.mark.parametrize("fault", [{"black_hole": True}, {"drop_reply": True, "hang": True}])
def test_the_time_limit_is_kept_by_a_silent_server(
    way: FaultProxy, s3: S3, client: str, fault: dict[str, Any]
) -> None:
    driver = through(way, s3, client, **SMALL)
    driver.put("k", b"1")
    with way.broken(**fault):
        for call in (
            lambda: driver.get("k"),
            lambda: driver.put("k", b"2"),
            lambda: [*driver.list()],
            lambda: [*driver.get_many([Request("k")] * 40)],
        ):
            with pytest.raises(TimedOut, match="option 'timeout'"):
                call()
    assert bytes(driver.get("k") or b"") in (b"1", b"2")
    driver.close()


def test_nobody_listens(way: FaultProxy, s3: S3, client: str) -> None:
    driver = through(way, s3, client, **SMALL)
    driver.put("k", b"1")
    with way.broken(refuse=True), pytest.raises(Unavailable, match="kept failing"):
        driver.get("k")
    assert bytes(driver.get("k") or b"") == b"1"
    driver.close()


# -- conditional puts whose answer is lost ---------------------------------------------------


def test_a_lost_answer_to_a_conditional_put_is_no_failure(
    way: FaultProxy, s3: S3, client: str
) -> None:
    driver = through(way, s3, client)
    driver.put("try/it", b"", if_absent=True)
    with way.broken(drop_reply=True, times=1, only="^PUT"):
        tag = driver.put("k", b"1", if_absent=True)
    assert driver.tag("k") == tag
    with way.broken(drop_reply=True, times=1, only="^PUT"):
        second = driver.put("k", b"2", if_tag=tag)
    assert driver.tag("k") == second
    assert bytes(driver.get("k") or b"") == b"2"
    driver.close()


def test_a_request_lost_on_its_way_up_is_sent_again(way: FaultProxy, s3: S3, client: str) -> None:
    driver = through(way, s3, client)
    tag = driver.put("k", b"1", if_absent=True)
    with way.broken(cut_request_after=100, times=1, only="^PUT"):
        second = driver.put("k", b"2" * 5000, if_tag=tag)
    assert driver.tag("k") == second
    with way.broken(cut_request_after=100, times=1, only="^PUT"):
        driver.put("new", b"3" * 5000, if_absent=True)
    assert bytes(driver.get("new") or b"") == b"3" * 5000
    driver.close()


def test_a_lost_answer_and_another_writer_is_unknown(way: FaultProxy, s3: S3, client: str) -> None:
    driver = through(way, s3, client)
    tag = driver.put("k", b"1", if_absent=True)
    boto = s3.client()
    bucket = driver.url.split("/")[2]

    def another_writes() -> None:
        while boto.get_object(Bucket=bucket, Key="root/k")["Body"].read() != b"2":
            time.sleep(0.002)
        boto.put_object(Bucket=bucket, Key="root/k", Body=b"another")
        way.fault = Fault()

    # The answer is lost, and so are all others until another has written.
    way.fault = Fault(drop_reply=True)
    thread = threading.Thread(target=another_writes)
    thread.start()
    with pytest.raises(DriverError, match="outcome unknown"):
        driver.put("k", b"2", if_tag=tag)
    thread.join()
    with pytest.raises(Conflict):
        driver.put("k", b"3", if_tag=tag)
    boto.close()
    driver.close()


def test_increments_through_a_network_that_loses_answers(
    way: FaultProxy, s3: S3, client: str
) -> None:
    driver = through(way, s3, client)
    tag = driver.put("n", b"0", if_absent=True)
    for i in range(1, 13):
        if i % 3 == 0:
            with way.broken(drop_reply=True, times=1, only="^PUT"):
                tag = driver.put("n", b"%d" % i, if_tag=tag)
        else:
            tag = driver.put("n", b"%d" % i, if_tag=tag)
    assert bytes(driver.get("n") or b"") == b"12"
    driver.close()


def test_appends_through_a_network_that_loses_answers(way: FaultProxy, s3: S3, client: str) -> None:
    driver = through(way, s3, client)
    array = stash.create(driver, (0, 2), "int32", chunks=(4, 2))
    for i in range(6):
        with way.broken(drop_reply=True, times=2, only="^PUT"):
            array.append([[i, i]])
    assert stash.open(driver)[:, 0].tolist() == [*range(6)]
    driver.close()


# -- locks -------------------------------------------------------------------------------


def test_a_holder_that_cannot_renew_learns_that_its_lock_lapsed(
    way: FaultProxy, s3: S3, client: str
) -> None:
    driver = through(way, s3, client, lease=LEASE, **SMALL)
    other = s3_driver.connect(
        driver.url.removeprefix("s3://"), **(s3.options | {"client": client, "lease": LEASE})
    )
    with driver.lock("k") as check:
        check()
        with way.broken(black_hole=True), _unshared(other, "k", 10) as theirs:
            theirs()
            with pytest.raises(Conflict, match="lock of 'k' was lost"):
                check()
    other.close()
    driver.close()


def test_a_lock_is_renewed_for_as_long_as_it_is_held(s3: S3, client: str) -> None:
    driver = s3_driver.connect(
        f"{s3.make_bucket()}/root", **(s3.options | {"client": client, "lease": LEASE})
    )
    other = s3_driver.connect(
        driver.url.removeprefix("s3://"), **(s3.options | {"client": "s3fs", "lease": LEASE})
    )
    with driver.lock("k") as check:
        with pytest.raises(TimedOut, match="still locked"), _unshared(other, "k", 2.5):
            pass
        check()
    with other.lock("k", timeout=2) as check:
        check()
    driver.close()
    other.close()


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_what_lies_in_the_place_of_a_lock_is_not_read_whole(s3: S3, client: str) -> None:
    driver = s3_driver.connect(f"{s3.make_bucket()}/root", **(s3.options | {"client": client}))
    for value in (b"x" * (4 << 20), b""):
        driver._swap(lock_place("k"), value, None)
        before = driver.traffic.bytes_read
        with driver.lock("k", timeout=5) as check:
            check()
        assert driver.traffic.bytes_read - before < 1 << 20
        driver.prune("")
    driver.close()


def _unshared(driver: S3Driver, key: str, timeout: float) -> Any:
    """The lock as another process would ask for it, without the turns of our threads."""
    store = lock.Store(driver._read_lock, driver._swap)
    return lock.lease(store, lock_place(key), key, driver.url + "#other", LEASE, timeout)
