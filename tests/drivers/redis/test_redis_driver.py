"""The Redis driver by itself: places, names, what is stored, and in how many round trips."""

from __future__ import annotations

import logging
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

import tensorstash as stash
from tensorstash.driver import Changed, Driver, Request, Span, Traffic
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.redis import keys as redis_keys
from tensorstash.errors import Conflict, Invalid, TimedOut, Unsupported
from tensorstash.registry import connect
from tests.servers.redis import Redis


@pytest.fixture
def driver(redis_url: str) -> Driver:
    return connect(redis_url, {})


@pytest.fixture
def client(valkey_server: Redis) -> Any:
    with valkey_server.client() as client:
        yield client


def place(driver: Driver) -> str:
    return driver.url.split("/0/")[1]


# -- URLs and options --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://localhost/", "redis://localhost:6379/0"),
        ("redis://localhost:7000/3", "redis://localhost:7000/3"),
        ("redis://u:p@localhost/0/a/b/", "redis://localhost:6379/0/a/b"),
        ("redis://:p%40@[::1]:1/0/a%20b", "redis://[::1]:1/0/a%20b"),
        ("rediss://host/1/x", "rediss://host:6379/1/x"),
        ("unix:///run/r.sock", "unix:///run/r.sock?db=0&prefix="),
        ("unix:///run/r.sock?prefix=a/b", "unix:///run/r.sock?db=0&prefix=a/b"),
        ("unix:///run/r.sock?db=2&prefix=", "unix:///run/r.sock?db=2&prefix="),
        ("unix:///run/r.sock?db=2&prefix=a&b=c/d", "unix:///run/r.sock?db=2&prefix=a&b=c/d"),
    ],
)
def test_urls(given_url: str, url: str) -> None:
    driver = connect(given_url, {})
    assert driver.url == url
    assert connect(url, {}).url == url
    assert connect(url.rstrip("/") + "/more", {}).url.endswith(("/more", "=more"))
    assert driver.scheme == url.partition(":")[0]


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://host:port",
        "redis://host:99999/0",
        "redis://host/prefix",
        "redis://host/0/a/../b",
        "redis://host/0/a//b",
        "redis://host/0/.tag{x}/b",
        "redis://host?db=1",
        "unix://run/r.sock",
        "unix:///run/r.sock?db=x",
        "unix:///run/r.sock?password=x&prefix=a",
        "unix:///run/r.sock?dbprefix=a",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(Invalid):
        connect(url, {})


@pytest.mark.parametrize(
    "options",
    [
        {"colour": 1},
        {"timeout": 0},
        {"timeout": "1"},
        {"expire": -1},
        {"lease": None},
        {"verify": 1},
        {"password": b"x"},
    ],
)
def test_wrong_options(options: Any) -> None:
    with pytest.raises(Invalid, match=next(iter(options))):
        connect("redis://localhost/0", options)
    with pytest.raises(Invalid):
        connect("redis://localhost/1", {"cluster": True})


def test_places_are_told_apart_without_secrets() -> None:
    urls = [
        f"{scheme}://{host}{port}/{db}{prefix}"
        for scheme in ("redis", "rediss")
        for host in ("u:secret@one", "two")
        for port in ("", ":7000")
        for db in ("0", "1")
        for prefix in ("", "/a", "/a/b")
    ]
    urls += [
        f"unix:///{path}.sock?db={db}&prefix={prefix}"
        for path in ("one", "two")
        for db in ("0", "1")
        for prefix in ("", "a", "a/b")
    ]
    found = {connect(url, {}).identity for url in urls}
    assert len(found) == len(urls) and "secret" not in str(found)
    same = connect("redis://v:other@ONE:6379/0/a/", {"password": "x"})
    assert same.identity == connect(urls[1], {}).identity


def test_nothing_is_sent_before_the_first_use() -> None:
    driver = connect("redis://no.such.host.invalid/0", {})
    assert pickle.loads(pickle.dumps(driver)).url == driver.url
    assert driver.traffic == Traffic()
    driver.close()


# -- names -------------------------------------------------------------------------------

_names = st.text(st.sampled_from("a{}/0.*\\é"), min_size=1, max_size=12).map(
    lambda text: re.sub("/+", "/", text).strip("/") or "a"
)


@settings(max_examples=40)
@given(_names)
def test_value_and_version_share_slot_and_folder(name: str) -> None:
    other = redis_keys.companion(name)
    assert redis_keys.slot(name.encode()) == redis_keys.slot(other.encode())
    assert other.startswith(redis_keys.split(name)[0] + ".tag{")
    assert redis_keys.is_ours(other)


@settings(max_examples=30)
@given(st.sets(_names, min_size=2, max_size=5))
def test_versions_do_not_collide(names: set[str]) -> None:
    assert len({redis_keys.companion(name) for name in names}) == len(names)


@settings(max_examples=40)
@given(_names)
def test_slots_are_those_of_redis(name: str) -> None:
    assert redis_keys.slot(name.encode()) == key_slot(name.encode())


@pytest.mark.parametrize("key", [".tag{a}", "a/.tag{a/b}", "a/.lock{b}/c"])
def test_names_of_ours_are_no_keys(driver: Driver, key: str) -> None:
    with pytest.raises(Invalid, match="kept"):
        driver.put(key, b"1")


def test_names_that_look_like_patterns(redis_url: str) -> None:
    strange = connect(redis_url + "/[ab]*?\\x".replace("\\", "^"), {})
    plain = connect(redis_url + "/aXYZx", {})
    plain.put("k", b"1")
    strange.put("k", b"2")
    assert [*strange.list()] == ["k"]
    strange.delete_prefix("")
    assert plain.get("k") == b"1" and strange.get("k") is None


# -- what is stored ----------------------------------------------------------------------


def test_values_are_stored_plain(driver: Driver, client: Any, tmp_path: Path) -> None:
    file = FileDriver(tmp_path / "a")
    for root in (driver, file):
        array = stash.create(root, (40, 40), "i4", chunks=(16, 16), shards=(32, 32))
        array[...] = 7
        array[3:20, 5:6] = 8
    assert sorted(driver.list()) == sorted(file.list())
    for key in file.list():
        value, same = client.get(f"{place(driver)}/{key}"), file.get(key)
        assert same is not None
        if key.endswith("zarr.json"):  # the blanks behind it differ: drawn for each array
            value, same = value.rstrip(), same.rstrip()
        assert value == same
    stored = {name.decode() for name in client.scan_iter(f"{place(driver)}/*", count=10_000)}
    assert len(stored) == 2 * len([*driver.list()])


def test_values_of_other_programs(driver: Driver, client: Any) -> None:
    root = place(driver)
    client.set(f"{root}/a/0.0", b"theirs")
    client.hset(f"{root}/.hash", "x", "y")
    client.set(f"{root}/a//b", b"no key of ours")
    assert {*driver.list()} == {"a/0.0", ".hash"}
    found = driver.get_tagged("a/0.0")
    assert found is not None and found[0] == b"theirs"
    assert driver.tag("a/0.0") == found[1]
    assert [*driver.get_many_tagged([Request("a/0.0", None, found[1])])] == [(0, (b"", found[1]))]
    assert driver.get_ranges("a/0.0", [Span(-2)], found[1]) == ([b"rs"], found[1])
    client.set(f"{root}/a/0.0", b"changed")
    with pytest.raises(Changed):
        driver.get_ranges("a/0.0", [Span(-2)], found[1])
    with pytest.raises(Conflict):
        driver.put("a/0.0", b"1", if_tag=found[1])
    with pytest.raises(Conflict):
        driver.put("a/0.0", b"1", if_absent=True)
    driver.put("a/0.0", b"1", if_tag=driver.tag("a/0.0"))
    assert client.get(f"{root}/a/0.0") == b"1"


def test_a_version_without_a_value_is_absence(driver: Driver, client: Any) -> None:
    old = driver.put("d/k", b"1")
    client.delete(f"{place(driver)}/d/k")
    assert driver.get_tagged("d/k") is None and driver.tag("d/k") is None
    assert [*driver.get_many_tagged([Request("d/k"), Request("d/k", None, old)])] == [
        (0, None),
        (1, None),
    ]
    with pytest.raises(Conflict):
        driver.put("d/k", b"2", if_tag=old)
    assert [*driver.list()] == []
    assert driver.put("d/k", b"2", if_absent=True) != old


def test_a_value_whose_version_was_evicted(driver: Driver, client: Any) -> None:
    old = driver.put("d/k", b"1")
    client.delete(f"{place(driver)}/d/.tag{{{place(driver)}/d/k}}")
    found = driver.get_tagged("d/k")
    assert found is not None and found[0] == b"1" and found[1] != old
    with pytest.raises(Conflict):
        driver.put("d/k", b"2", if_tag=old)
    driver.put("d/k", b"2", if_tag=found[1])
    assert driver.get("d/k") == b"2"


def test_values_expire(redis_url: str, client: Any) -> None:
    driver = connect(redis_url, {"expire": 60})
    tag = driver.put("k", b"1")
    driver.put_many([("l", b"1"), ("m", b"1")])
    driver.put("k", b"2", if_tag=tag)
    mine = [*client.scan_iter(f"{place(driver)}/*", count=10_000)]
    assert len(mine) == 6 and all(0 < client.pttl(name) <= 60_000 for name in mine)
    for name in mine:
        client.pexpire(name, 1)
    while client.exists(*mine):  # in a moment
        time.sleep(0.001)
    assert [*driver.list()] == [] and driver.tag("k") is None
    assert [found for _, found in driver.get_many_tagged([Request("k"), Request("l")])] == [
        None
    ] * 2
    assert [*client.scan_iter(f"{place(driver)}/*", count=10_000)] == []


def test_nothing_of_ours_stays(driver: Driver, client: Any) -> None:
    driver.put_many((f"a/{i}", b"1") for i in range(30))
    with driver.lock("a/zarr.json"):
        assert len([*driver.list()]) == 30
        driver.delete_many(f"a/{i}" for i in range(10))
        driver.delete_prefix("a/")
        assert [*driver.list()] == [] == [*driver.list_dir("")[1]]
        with pytest.raises(TimedOut), driver.lock("a/zarr.json", 0):
            pass
    assert [*client.scan_iter(f"{place(driver)}/*", count=10_000)] == []


def test_sizes(driver: Driver) -> None:
    driver.put_many((f"a/{i}", bytes(i)) for i in range(1500))
    assert dict(driver.sizes("a/")) == {f"a/{i}": i for i in range(1500)}
    assert dict(driver.sizes("b/")) == {}


def test_spans_that_start_from_the_end_and_stop_from_the_start(driver: Driver) -> None:
    value = bytes(range(20))
    driver.put("k", value)
    for start in (-25, -20, -7, -1, 0, 3, 20, 30):
        for stop in (None, 0, 1, 15, 20, 40):
            span = Span(start, stop)
            expected = value[slice(*span.resolve(20))]
            assert driver.get("k", span) == expected, span
            found = driver.get_ranges("k", [span, Span(0)])
            assert found is not None and [*found[0]] == [expected, value]


# -- round trips -------------------------------------------------------------------------


def trips(driver: Driver, work: Any) -> int:
    assert driver.traffic is not None
    before = driver.traffic.requests
    work()
    return driver.traffic.requests - before


def test_round_trips(driver: Driver) -> None:
    items = {f"a/c/{i}": bytes([i % 256]) * 4000 for i in range(1000)}
    driver.put("a/zarr.json", b"{}")
    assert trips(driver, lambda: driver.put_many(items.items())) == 1
    everything = [Request(key) for key in items]
    assert trips(driver, lambda: [*driver.get_many_tagged(everything)]) == 3  # it learns
    assert trips(driver, lambda: [*driver.get_many_tagged(everything)]) == 1
    assert trips(driver, lambda: [*driver.get_many(everything)]) == 1
    known = [Request(each.key, None, b"x") for each in everything]
    assert trips(driver, lambda: [*driver.get_many_tagged(known)]) == 1
    spans = [Request(key, Span(10, 20)) for key in items]
    assert trips(driver, lambda: [*driver.get_many_tagged(spans)]) == 1
    for once in (
        lambda: driver.get("a/c/1"),
        lambda: driver.get("a/c/1", Span(-3)),
        lambda: driver.get_tagged("a/c/1"),
        lambda: driver.get_tagged("absent"),
        lambda: driver.tag("a/c/1"),
        lambda: driver.get_ranges("a/c/1", [Span(i, i + 1) for i in range(100)]),
        lambda: driver.put("a/c/1", b"1"),
        lambda: driver.put("a/c/1", b"1", if_tag=b"no"),
        lambda: driver.delete("a/c/1"),
        lambda: driver.delete_many(f"a/c/{i}" for i in range(900)),
    ):
        try:
            assert trips(driver, once) == 1
        except Conflict:
            continue


def test_the_server_counts_the_same(redis_url: str, client: Any) -> None:
    driver = connect(redis_url, {})
    driver.put_many((f"a/{i}", bytes(1000)) for i in range(300))
    [*driver.get_many_tagged(Request(f"a/{i}") for i in range(300))]
    client.config_resetstat()
    [*driver.get_many_tagged(Request(f"a/{i}") for i in range(300))]
    driver.put("a/0", b"1")
    stats = client.info("commandstats")
    assert stats["cmdstat_mget"]["calls"] == stats["cmdstat_exists"]["calls"] == 1
    assert stats["cmdstat_mset"]["calls"] == 1
    assert "cmdstat_keys" not in stats and "cmdstat_get" not in stats


def test_a_known_version_moves_no_bytes(driver: Driver) -> None:
    tags = {f"a/{i}": driver.put(f"a/{i}", bytes(100_000)) for i in range(50)}
    assert driver.traffic is not None
    before = driver.traffic.bytes_read
    known = [Request(key, None, tag) for key, tag in tags.items()]
    assert [found for _, found in driver.get_many_tagged(known)] == [
        (b"", t) for t in tags.values()
    ]
    assert driver.traffic.bytes_read - before < 50 * 20


def test_round_trips_are_bounded_in_bytes(driver: Driver) -> None:
    for i in range(40):
        driver.put(f"a/{i}", bytes(1 << 20))
    requests = (Request(f"a/{i}") for i in range(40))
    taken = []
    found = driver.get_many_tagged(taken.append(each) or each for each in requests)  # type: ignore[func-returns-value]
    next(found)
    assert len(taken) <= 9  # before anything is known of their size
    for i in range(1, 40):
        next(found)
        assert len(taken) <= i + 18
    again = driver.get_many_tagged(Request(f"a/{i}") for i in range(40))
    assert trips(driver, lambda: [*again]) == 3


def test_large_requests_go_in_parts(driver: Driver) -> None:
    driver.put("a/big", bytes(20 << 20))
    spans = [Span(i << 20, (i + 1) << 20) for i in range(20)]
    assert trips(driver, lambda: driver.get_ranges("a/big", spans)) == 2
    many = [(f"b/{i}", bytes(1 << 20)) for i in range(20)]
    assert trips(driver, lambda: driver.put_many(many)) == 3


def test_requests_are_logged(driver: Driver, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, logger="tensorstash")
    driver.put("a/k", b"12345")
    driver.get("a/k", Span(1, 3))
    with pytest.raises(Conflict):
        driver.put("a/k", b"1", if_absent=True)
    lines = [record.getMessage() for record in caplog.records if record.name == "tensorstash"]
    assert all("\n" not in line and "attempt" in line and " ms" in line for line in lines)
    assert "'a/k'" in lines[0] and "Span(start=1, stop=3)" in " ".join(lines)


def test_too_much_at_once_in_put_many(driver: Driver) -> None:
    with pytest.raises(Unsupported, match="'b'"):
        driver.put_many([("a", b"1"), ("b", bytes((512 << 20) + 1))])
