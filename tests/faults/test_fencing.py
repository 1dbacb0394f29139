"""A holder of a lock whose lease ends while it is stopped: what others stored meanwhile, and were
told is stored, stays; it succeeds wholly, or says Conflict and leaves nothing to be seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.create import make_spec
from tensorstash.driver import held
from tensorstash.drivers.redis import RedisDriver
from tensorstash.engine.fence import Fence, Moved
from tensorstash.engine.resize import _Within
from tensorstash.errors import Conflict, StashError, Unsupported
from tensorstash.location import resolve
from tensorstash.metadata import node, trailer
from tensorstash.metadata.trailer import Trailer
from tensorstash.records import evolve
from tests.support.fencing import (
    FIELDS,
    LAYOUTS,
    WIDTH,
    Holder,
    Op,
    driver_at,
    patient,
    record_stops,
    replaced,
    rows_of,
    stops,
    told,
)
from tests.support.remote import Remote, on_redis, on_s3

PLACES = ("redis", "cluster", "moto-s3fs", "moto-obstore", "rgw-s3fs", "rgw-obstore")

WHOLE: Op = ("append", 8, 100)
PART: Op = ("append", 3, 200)
ONE: Op = ("append", 1, 300)
FILL: Op = ("append", 5, 0)
GROW: Op = ("resize", 17)
SHRINK: Op = ("resize", 3)
EDGE: Op = ("edge", 777)
BLANK: Op = ("blank",)


@pytest.fixture(scope="module")
def holder() -> Iterator[Holder]:
    made = Holder()
    yield made
    made.close()


def at(kind: str, request: Any) -> Remote:
    """A place on a server of that kind."""
    server, _, client = kind.partition("-")
    if server == "redis":
        return on_redis(request.getfixturevalue("valkey_server"))
    if server == "cluster":
        nodes = request.getfixturevalue("redis_cluster")
        return on_redis(nodes.nodes[0]).having(**nodes.options)
    return on_s3(request.getfixturevalue("s3" if server == "moto" else "rgw"), client)


@pytest.fixture(scope="module", params=PLACES)
def place(request: Any) -> Remote:
    return at(request.param, request)


OFTEN: dict[str, tuple[str, Op, list[Op]]] = {
    "chunks of two appends": ("whole", WHOLE, [PART]),
    "the same chunk": ("part", PART, [ONE]),
    "room made visible": ("plain", PART, [GROW]),
    "appended, cut off, grown": ("part", WHOLE, [("append", 8, 500), SHRINK, GROW]),
    "cut off under it": ("part", SHRINK, [PART]),
    "shards of fill": ("shards", PART, [FILL]),
    "room made visible, then blank": ("whole", WHOLE, [("resize", 16), BLANK]),
}


SLOW = ("room made visible", "cut off under it")
"""On S3 the other cases are for the long run."""


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        (kind, case)
        for kind in ("redis", "cluster", "moto-obstore", "rgw-s3fs")
        for case in (OFTEN if kind in ("redis", "cluster") else SLOW)
    ],
)
def test_a_holder_that_wakes_late_changes_nothing(
    holder: Holder, request: Any, kind: str, case: str
) -> None:
    layout, op, others = OFTEN[case]
    assert stops(holder, patient(at(kind, request)), LAYOUTS[layout], op, others) > 3


@pytest.mark.parametrize(
    ("kind", "others"),
    [
        ("redis", [("extend", 2, 0)]),
        ("redis", [("extend", 7, 5), BLANK]),
        ("moto-obstore", [("extend", 2, 5)]),
    ],
)
def test_so_does_one_that_adds_records(
    holder: Holder, request: Any, kind: str, others: list[Op]
) -> None:
    place = patient(at(kind, request))
    assert record_stops(holder, place, 6, ("extend", 3, 200), others) > 8


@pytest.mark.parametrize("kind", ["redis", "moto-s3fs"])
def test_a_process_that_the_system_stops(holder: Holder, request: Any, kind: str) -> None:
    # The real thing: SIGSTOP until the others have waited for the end of its lease.
    place = at(kind, request).having(lease=1.0)
    points = [5, 6] if kind == "redis" else [7]  # a put of a chunk, the put that publishes
    assert stops(holder, place, LAYOUTS["part"], PART, [WHOLE], leases=True, points=points) == -1


@pytest.mark.parametrize("layout", ["whole", "v2"])
@pytest.mark.parametrize("op", [("replace", 12), ("remove",), WHOLE], ids=lambda op: op[0])
@pytest.mark.parametrize("kind", ["redis", "rgw-obstore"])
def test_one_that_replaces_or_deletes(
    holder: Holder, request: Any, kind: str, op: Op, layout: str
) -> None:
    assert replaced(holder, patient(at(kind, request)), LAYOUTS[layout], op, 10, None) > 5


def test_a_field_that_another_made_anew_is_not_deleted(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On every driver: no lock is held between the document and the deletes.
    url = str(tmp_path / "r")
    mine = stash.save_records(url, {"x": np.arange(40), "id": np.arange(40)}, rows_per_chunk=8)
    delete = evolve.delete

    def late(table: Any, name: str, stored: Any) -> None:
        monkeypatch.undo()
        del stash.open_group(url, "r+")[name]
        with stash.open_records(url, "r+") as theirs:
            theirs.add_field(name, "int64", np.arange(40) + 1000)
        delete(table, name, stored)

    monkeypatch.setattr(evolve, "delete", late)
    mine.drop_field("x")
    assert stash.open_records(url)["x"][:].tolist() == [*range(1000, 1040)]


HOLDERS = {"whole": WHOLE, "part": PART, "one": ONE, "fill": FILL, "grow": GROW, "shrink": SHRINK}
OTHERS: dict[str, list[Op]] = {
    "append": [PART],
    "fill": [FILL],
    "grow": [GROW],
    "shrink": [SHRINK],
    "two": [ONE, WHOLE],
    "append, grow": [PART, GROW],
    "append, shrink, grow": [WHOLE, SHRINK, GROW],
    "grow, edge": [GROW, EDGE],
    "shrink, append": [("resize", 5), PART],
    "edge": [EDGE],
    "grow, blank": [("resize", 16), BLANK],
}


# All of them take hours: a seventh of those on Redis and a few on S3, unless more is asked for.
WHOLE_CAMPAIGN = os.environ.get("TENSORSTASH_CAMPAIGN") == "whole"
_OF_S3 = 149


def some(*cases: Iterable[Any], found: Iterable[tuple[Any, ...]] = ()) -> list[tuple[Any, ...]]:
    """Places with each of ``cases``, or some of them and what once was ``found`` to fail."""
    if WHOLE_CAMPAIGN:
        return [*product(PLACES, *cases)]
    listed = [tuple(one) for one in cases]
    near = [*product(PLACES[:2], *listed)][::7]
    far = [*product(PLACES[2:], *listed)][::_OF_S3]
    return [*near, *far, *(one for one in found if one not in far)]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "layout", "op", "other"),
    some(LAYOUTS, HOLDERS, OTHERS, found=[("rgw-obstore", "part", "fill", "shrink")]),
)
def test_every_holder_beside_every_other(
    holder: Holder, request: Any, kind: str, layout: str, op: str, other: str
) -> None:
    place = at(kind, request)
    if layout == "empty" and (other in ("edge", "grow, edge") or op == "shrink"):
        pytest.skip("there is no row")
    stops(holder, patient(place), LAYOUTS[layout], HOLDERS[op], OTHERS[other])


ADDERS: list[list[Op]] = [
    [("extend", 2, 5)],
    [("extend", 2, 0)],
    [("extend", 2, 5), ("extend", 2, 0)],
    [("extend", 2, 0), ("extend", 2, 7)],
    [("extend", 7, 5), BLANK],
]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "before", "others", "mine", "how"),
    some((0, 6), ADDERS, (200, 0), ({}, {"rows_per_shard": 8})),
)
def test_every_holder_that_adds_records(
    holder: Holder,
    request: Any,
    kind: str,
    before: int,
    mine: int,
    others: list[Op],
    how: dict[str, Any],
) -> None:
    place = patient(at(kind, request))
    record_stops(holder, place, before, ("extend", 3, mine), others, **how)


# -- what it costs -------------------------------------------------------------------------------

BEFORE: dict[str, tuple[Callable[[Any], Any], int, int]] = {
    # Requests to S3 and round trips to Redis before there was a fence, counted then.
    "whole chunks": (lambda a: a.append(rows_of(8, 1)), 8, 6),
    "part of a chunk": (lambda a: a.append(rows_of(2, 1)), 7, 6),
    "one row": (lambda a: a.append(rows_of(1, 1)), 8, 7),
    "part and whole": (lambda a: a.append(rows_of(7, 1)), 10, 8),
    "grow": (lambda a: a.resize((40, WIDTH)), 8, 7),
    "shrink": (lambda a: a.resize((21, WIDTH)), 11, 10),
}
"""One after the other on an array of 8 rows in chunks of 4, all columns."""


def requests_of(driver: Any, work: Callable[[], Any]) -> int:
    before = driver.traffic.requests
    work()
    return int(driver.traffic.requests - before)


@pytest.mark.parametrize("kind", ["redis", "moto-obstore", "moto-s3fs"])
def test_the_usual_case_costs_no_request_more(request: Any, kind: str) -> None:
    place = at(kind, request)
    # Leases so long that none is renewed meanwhile, which would be a request.
    with driver_at(place, place.fresh(), lease=600.0) as driver:
        warm = stash.create(driver, (9,), "i4", chunks=(2,))
        warm[...] = 1
        warm.resize(3)  # scripts are sent once, servers tried once
        warm.append([1, 2, 3])
    with driver_at(place, place.fresh(), lease=600.0) as driver:
        array = stash.create(driver, (8, WIDTH), "i4", chunks=(4, WIDTH))
        array[...] = 1
        for name, (work, by_s3, by_redis) in BEFORE.items():
            most = by_redis if kind == "redis" else by_s3
            assert requests_of(driver, lambda: work(array)) <= most, name  # noqa: B023


ROWS = {"redis": [16, 21, 21], "moto": [26, 31, 31]}
"""The same of records of four fields, one of them ragged, four rows a chunk: 6, 3 and 8 rows."""


@pytest.mark.parametrize("kind", ["redis", "moto-obstore"])
def test_adding_records_costs_no_request_more(request: Any, kind: str) -> None:
    place = at(kind, request)
    url = place.fresh()
    with driver_at(place, url, lease=600.0) as driver:
        warm = stash.create(driver, (1,), "i4")
        warm.append([1])
        driver.delete_prefix("")
        records = stash.create_records(driver, FIELDS, rows_per_chunk=4)
        for count, most in zip((6, 3, 8), ROWS[kind.partition("-")[0]], strict=True):
            spent = requests_of(driver, lambda: records.extend(told(count, 100)))  # noqa: B023
            assert spent <= most, count


# -- the pieces ----------------------------------------------------------------------------------


def test_marks_are_blanks_that_say_what_was_put_in() -> None:
    rng = np.random.default_rng(5)
    for n in range(200):
        reach = tuple(map(int, rng.integers(0, 1 << 62, n % 5)))
        made = trailer.NONE.next(open=bool(n % 2), kept=bool(n % 3), reach=reach)
        blanks = trailer.encode(made)
        assert not blanks.strip(b" \t\r\n") and trailer.decode(b"{}" + blanks) == made
        grown = made.next(open=True, reach=reach)
        assert grown.salt != made.salt and grown.reach == reach
    for other in (b"", b"\n", b"\r\n\r\n", b" " * 44, b"\t" * 36):
        assert trailer.decode(b"{}" + other) == trailer.NONE
    assert Trailer(b"12345678", reach=(3, 9)).next(open=True, reach=(5, 5)).reach == (5, 9)


SHAPES = [((9, 7), (12, 7)), ((8, 6), (8, 9)), ((5, 5), (11, 9)), ((9, 7, 3), (9, 8, 5))]


@pytest.mark.parametrize("reach", [(), (10, 8), (4, 4), (12, 9), (10, 7, 4), (1 << 64,) * 2])
@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_the_chunks_that_a_mark_reaches(before: Any, after: Any, reach: Any) -> None:
    edges = (4, 2, 3)[: len(before)]
    spec = make_spec(before, "u1", chunks=edges)
    found = _Within(reach, spec, replace(spec, shape=after))
    near = map(min, reach, after) if len(reach) == len(before) else (0,) * len(before)
    wanted = {
        index
        for index in np.ndindex(*spec.grid.counts(tuple(near)))
        if any((i + 1) * edge > n for i, edge, n in zip(index, edges, before, strict=True))
    }
    assert sorted(found) == sorted(wanted) and found.count == len(wanted)
    assert {index for index in np.ndindex(*spec.grid.counts(after)) if index in found} == wanted


def test_chunks_that_a_hostile_mark_reaches_are_not_listed() -> None:
    spec = make_spec((0, 4), "u1", chunks=(1, 1))
    grown = replace(spec, shape=(1 << 60, 5))
    found = _Within((1 << 64,) * 2, spec, grown)
    assert (1 << 59, 3) in found and next(iter(found)) == (0, 0)
    assert not _Within((1 << 64, 0), spec, grown).count


def test_documents_stay_json_and_zarrs(request: Any) -> None:
    zarr = pytest.importorskip("zarr")
    place = at("redis", request)
    with driver_at(place, place.fresh()) as driver:
        array = stash.create(driver, (2,), "i4", chunks=(2,))
        array.append([1, 2, 3])
        array.attrs["a"] = 1
        value = driver.get("zarr.json")
        assert value is not None and trailer.decode(value).salt
        store = {key: bytes(driver.get(key) or b"") for key in driver.list()}
        buffers = {
            k: zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(v)
            for k, v in store.items()
        }
        theirs = zarr.open_array(zarr.storage.MemoryStore(buffers), mode="r")
        assert theirs[...].tolist() == [0, 0, 1, 2, 3] and theirs.attrs["a"] == 1


def test_deletes_and_second_puts_hold_to_a_version(place: Remote) -> None:
    with driver_at(place, place.fresh()) as driver:
        assert driver.capabilities.leases
        tags = {f"c/{k}": driver.put(f"c/{k}", b"%d" % k) for k in range(4)}
        assert dict(driver.tags("c/", lambda key: key != "c/3")) == {
            key: tag for key, tag in tags.items() if key != "c/3"
        }
        newer = driver.put("c/0", b"newer")
        kept = [*driver.delete_each([*tags.items(), ("c/9", newer)])]
        assert kept == [("c/0", tags["c/0"])] and [*driver.list()] == ["c/0"]
        again = driver.put_anew("c/0", b"newer", newer)
        assert driver.tag("c/0") == again and bytes(driver.get("c/0") or b"") == b"newer"
        if place.kind != "redis" and again == newer:  # a server that puts parts together anyhow
            return
        assert again != newer
        third = driver.put_anew("c/0", b"newer", again)
        assert third != again
        with pytest.raises(Conflict):
            driver.put_anew("c/0", b"newer", again)


def test_servers_that_delete_whatever_the_condition_get_chunks_of_fill(
    request: Any, monkeypatch: Any
) -> None:
    place = at("moto-obstore", request)
    with driver_at(place, place.fresh()) as driver:
        array = stash.create(driver, (12,), "i4", chunks=(4,), fill_value=7)
        array[...] = np.arange(12)

        def refuse(pairs: Any) -> Any:
            raise Unsupported("deletes whatever is stored")

        monkeypatch.setattr(driver, "delete_each", refuse)
        array.resize(3)
        assert sorted(driver.list()) == ["c/0", "c/1", "c/2", "zarr.json"]
        array.resize(12)
        assert array[...].tolist() == [0, 1, 2, *[7] * 9]


def test_only_what_can_be_lost_is_called_a_lease() -> None:
    for url, leased in {"memory://f": False, "redis://h/0": True, "s3://b": True}.items():
        driver = resolve(url)
        assert driver.capabilities.leases is leased, url
    assert not resolve("s3://b", {"unsafe": True}).capabilities.leases


@pytest.mark.parametrize("change", ["rename", "add"])
def test_so_does_one_that_changes_fields(
    change: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{redis_url}/fields-{change}"
    rows = {"x": np.arange(40), "id": np.arange(40)}
    mine = stash.save_records(url, rows, rows_per_chunk=8)

    def changed(records: stash.Records, value: int) -> None:
        if change == "rename":
            records.rename_field("x", "y")
        else:
            records.add_field("y", "int64", np.full(40, value))

    late = True
    replace, put_each = RedisDriver.replace, RedisDriver.put_each

    def others() -> None:
        nonlocal late
        if not late:
            return
        late = False
        client = pytest.importorskip("redis").Redis.from_url(redis_url.rpartition("/")[0])
        for name in client.keys("*.lock{*"):  # as if the lease had ended
            client.delete(name)
        client.close()
        with stash.open_records(url, "r+") as theirs:
            changed(theirs, 7)
            theirs["y"][:] = np.arange(40) + 1000

    def stopped(self: RedisDriver, key: str, *args: Any) -> Any:
        if key.startswith("y/"):  # of the new field
            others()
        return replace(self, key, *args)

    def stopped_each(self: RedisDriver, puts: Any) -> Any:
        others()
        return put_each(self, puts)

    monkeypatch.setattr(RedisDriver, "replace", stopped)
    monkeypatch.setattr(RedisDriver, "put_each", stopped_each)
    with pytest.raises(StashError):
        changed(mine, 5)
    assert not late
    assert stash.open_records(url)["y"][:].tolist() == [*range(1000, 1040)]


def test_what_lands_after_the_fence_fell_is_taken_back(redis_url: str) -> None:
    # Fields are stored by threads; one learns of a newer holder while another's put is on its way.
    with driver_at(Remote("redis", redis_url, {}), redis_url) as driver:
        stash.create(driver, (4,), "i4", chunks=4)
        tag = driver.put("c/0", b"before")
        mine, theirs = (
            Fence(driver, "", node.require(driver, ""), held, eager=False) for _ in range(2)
        )
        theirs.close()
        with pytest.raises(Moved):
            mine.close()
        mine.landed("c/0", (b"before", tag), driver.put("c/0", b"late", if_tag=tag))
        assert bytes(driver.get("c/0") or b"") == b"before"
        with pytest.raises(Moved):
            mine()
