"""Whether something is there, what is directly below it, and all of it: on every driver, and what
it costs."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Buffer, Driver, Span, Tag
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Corrupt, Denied, DriverError, Invalid, NotFound, Unavailable
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tests.support.every_place import KINDS, place
from tests.support.groups import populated


@pytest.fixture(params=KINDS)
def driver(request: Any, tmp_path: Path) -> Iterator[Driver]:
    with place(request.param, tmp_path, request.getfixturevalue) as found:
        yield found


def paths(*args: Any, **options: Any) -> list[str]:
    return [entry.path for entry in stash.walk(*args, **options)]


ALL = ["empty", "raw", "raw/image", "raw/mask", "time"]


# -- on every driver ---------------------------------------------------------------------------


def test_what_is_there(driver: Driver, zarr_format: Any) -> None:
    assert not stash.exists(driver)
    group = populated(driver, zarr_format)
    assert stash.exists(driver)
    assert [name for name in [*ALL, "no", "raw/no"] if stash.exists(driver, path=name)] == ALL
    found = stash.ls(driver)
    assert [(e.path, e.name, e.kind, e.shape, e.dtype) for e in found] == [
        ("empty", "empty", "group", None, None),
        ("raw", "raw", "group", None, None),
        ("time", "time", "array", (4,), np.dtype("f8")),
    ]
    assert stash.ls(driver, path="/raw/") == stash.ls(driver, path="raw")
    assert [e.path for e in stash.ls(driver, path="raw")] == ["image", "mask"]
    assert paths(driver) == ALL == [path for path, _ in group.walk()]
    assert paths(driver, path="raw") == ["image", "mask"]
    assert paths(driver, include="**/m*") == ["raw/mask"]
    assert paths(driver, exclude=["raw", "t*"]) == ["empty"]
    assert stash.ls(driver, path="empty") == paths(driver, path="empty") == []


def test_records_are_one_entry(driver: Driver) -> None:
    group = stash.create_group(driver)
    stash.save_records({}, {"x": [1]})
    rows = stash.create_records({}, {"x": "i4", "t": stash.ragged("f4"), "in": {"y": "u1"}})
    rows.extend({"x": [1, 2], "t": [[1], [2, 3]], "in/y": [3, 4]})
    group.create("a", 3, "i4")
    for key in rows.driver.list():
        driver.put(f"runs/{key}", rows.driver.get(key) or b"")
    [a, runs] = stash.walk(driver)
    assert (a.kind, runs.kind, runs.path, runs.rows) == ("array", "records", "runs", 2)
    assert stash.ls(driver) == [a, runs]
    fields = ["in", "in/y", "t", "t/offsets", "t/values", "x"]
    assert paths(driver, path="runs") == fields
    assert paths(driver, fields=True) == ["a", "runs", *(f"runs/{name}" for name in fields)]
    assert [e.path for e in stash.ls(driver, path="runs")] == ["in", "t", "x"]
    assert paths(driver, include="runs/**") == []
    assert paths(driver, include="runs/**/y", fields=True) == ["runs/in/y"]


def test_what_cannot_be_read_says_why(driver: Driver, zarr_format: Any) -> None:
    group = populated(driver, zarr_format)
    driver.put("time/" + (".zarray" if zarr_format == 2 else "zarr.json"), b"{damaged")
    half = FailingDriver(driver, lambda call: "error" if call.verb.startswith("delete") else None)
    with pytest.raises(DriverError):
        stash.open_group(half, "r+").__delitem__("raw")
    driver.put("notes.txt", b"")
    driver.put("photos/1.png", b"")
    _empty, raw, time = found = stash.ls(driver)
    assert [e.kind for e in found] == ["group", "unreadable", "unreadable"]
    assert "delete" in raw.why and "JSON" in time.why
    assert "\n" not in str(found) and "time  unreadable  " in str(time)
    assert paths(driver) == ["empty", "raw", "time"] == group.keys()
    assert all(stash.exists(driver, path=e.path) for e in found)
    with pytest.raises(Corrupt, match="delete"):
        stash.ls(driver, path="raw")
    stash.delete(driver, path="raw")
    assert paths(driver) == ["empty", "time"]


def test_where_there_is_nothing_to_list(driver: Driver) -> None:
    driver.put("photos/1.png", b"")
    for path in ("", "photos"):
        assert not stash.exists(driver, path=path)
        for call in (stash.ls, stash.walk):
            with pytest.raises(NotFound, match="no Zarr array or group"):
                call(driver, path=path)
    stash.create_group(driver).create("x", 3, "i4")
    for call in (stash.ls, stash.walk):
        with pytest.raises(Invalid, match=r"is an array, with no members; open it with open\(\)"):
            call(driver, path="x")
        with pytest.raises(NotFound):
            call(driver, path="x/y")


@pytest.mark.parametrize("bad", ["..", "a/../b", "a//b", ".", "__x", "zarr.json", "a\\b", 3, None])
def test_paths_that_no_member_has(bad: Any) -> None:
    for call in (stash.exists, stash.ls, stash.walk, stash.delete):
        with pytest.raises(Invalid):
            call({}, path=bad)


def test_odd_names(tmp_path: Path, zarr_format: Any) -> None:
    names = ["a b", "c", "ü", "日本", "0", "x.tmp", "[1]", "*", "a'b", "%41", "#"]
    for at in ({}, tmp_path / "with blank"):
        group = stash.create_group(at, zarr_format=zarr_format)
        for name in names:
            group.create(f"{name}/{name}", 3, "i4")
        assert [e.path for e in stash.ls(at)] == sorted(names)
        assert paths(at) == [p for n in sorted(names) for p in (n, f"{n}/{n}")]
        assert all(stash.exists(at, path=f"{name}/{name}") for name in names)
        assert paths(at, include="[*]/*") == ["*/*"]


# -- how they read -----------------------------------------------------------------------------


def test_how_entries_read() -> None:
    place: dict[str, Any] = {}
    group = stash.create_group(place)
    group.create("raw/image", (64, 64), "uint8")
    group.create("b", 3, "bfloat16")
    rows = stash.save_records({}, {"x": [1]})
    place |= {f"runs/{key}": rows.driver.get(key) for key in rows.driver.list()}
    assert [str(entry) for entry in stash.walk(place)] == [
        "b  array  (3,) bfloat16",
        "raw  group",
        "raw/image  array  (64, 64) uint8",
        "runs  records  1 row",
    ]
    assert repr(stash.ls(place, path="raw")) == "[<Entry image  array  (64, 64) uint8>]"
    one, other = stash.ls(place, path="raw"), stash.ls(place, path="raw")
    assert one == other and len({*one, *other}) == 1
    assert pickle.loads(pickle.dumps([*stash.walk(place)])) == [*stash.walk(place)]
    with pytest.raises(AttributeError):
        one[0].path = "x"  # type: ignore[misc]


# -- what it costs -----------------------------------------------------------------------------


def counted(driver: Driver) -> dict[str, int]:
    assert isinstance(driver, CountingDriver)
    return {verb: count.calls for verb, count in driver.counts.items()}


def test_one_request_to_know_whether_something_is_there(tmp_path: Path) -> None:
    driver = CountingDriver(FileDriver(tmp_path))
    for made in (False, True):
        driver.reset()
        assert stash.exists(driver) is made
        assert counted(driver) == {"get_many_tagged": 1}
        assert driver.reads.nbytes <= 1
        if not made:
            populated(driver)


def test_one_listing_and_one_batch_a_group(tmp_path: Path, zarr_format: Any) -> None:
    driver = CountingDriver(FileDriver(tmp_path))
    group = populated(driver, zarr_format)
    group.create("many", 300, "u1", chunks=1)[...] = 1
    driver.reset()
    stash.ls(driver)
    own = zarr_format == 2  # whether it has no zarr.json is seen first
    assert counted(driver) == {"get_many_tagged": 2 + own, "list_dir": 1}
    driver.reset()
    assert paths(driver) == ["empty", "many", *ALL[1:]]
    assert counted(driver) == {"get_many_tagged": 3 + own, "list_dir": 3}
    assert driver.counts["list_dir"].keys < 20  # and no chunk
    driver.reset()
    assert paths(driver, include="raw/*") == ["raw/image", "raw/mask"]
    assert counted(driver) == {"get_many_tagged": 3 + own, "list_dir": 2}
    asked = driver.reads.keys
    assert asked <= (4 if zarr_format == 3 else 30)  # of others not even the document
    driver.reset()
    assert paths(driver, exclude="raw") == ["empty", "many", "time"]
    assert counted(driver) == {"get_many_tagged": 2 + own, "list_dir": 2}


def test_one_listing_of_all_where_one_group_costs_as_much() -> None:
    driver = CountingDriver(MemoryDriver({}))
    populated(driver)
    driver.reset()
    assert paths(driver) == ALL
    assert counted(driver) == {"get_many_tagged": 3, "list": 1}
    driver.reset()
    assert paths(driver, path="raw") == ["image", "mask"]
    assert counted(driver) == {"get_many_tagged": 2, "list": 1}
    driver.reset()
    stash.ls(driver)
    assert counted(driver) == {"get_many_tagged": 2, "list_dir": 1}


def test_consolidated_metadata_is_one_read(zarr_format: Any) -> None:
    place: dict[str, Any] = {}
    populated(place, zarr_format).consolidate()
    driver = CountingDriver(MemoryDriver(place))
    for call in (lambda: paths(driver), lambda: [e.path for e in stash.ls(driver)]):
        driver.reset()
        assert call()
        assert counted(driver) == {"get_many_tagged": 1 if zarr_format == 3 else 2}
    assert paths(driver) == ALL
    del place["time/" + ("zarr.json" if zarr_format == 3 else ".zarray")]
    assert stash.ls(driver)[-1].path == "time"  # as a group says that is opened for reading
    assert not stash.exists(driver, path="time")


@pytest.mark.parametrize("kind", ["s3fs", "obstore", "redis"])
def test_requests_to_servers(kind: str, tmp_path: Path, request: Any) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        group = populated(driver)
        group.create("many", 40, "u1", chunks=1)[...] = 1
        scan = kind == "redis"  # which asks for a hundred documents in one pipeline

        def requests(call: Any) -> int:
            assert driver.traffic is not None
            before = driver.traffic.requests
            call()
            return driver.traffic.requests - before

        stash.exists(driver)  # connected
        assert requests(lambda: stash.exists(driver)) == (1 if scan else 3)
        # The group's document; its listing; those of members.
        assert requests(lambda: stash.ls(driver)) <= (3 if scan else 1 + 1 + 4)
        assert requests(lambda: paths(driver)) <= (4 if scan else 1 + 3 + 6)
        assert requests(lambda: paths(driver, include="raw/*")) <= (4 if scan else 1 + 2 + 3)


class Endless(Driver):
    """A million groups in a group, each of which holds a hundred, and so on."""

    DOCUMENT = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        return (self.DOCUMENT, 1) if key.endswith("zarr.json") else None

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        return ["zarr.json"], [f"g{k:03}" for k in range(100)] if prefix.count("/") < 3 else []

    def put(self, *args: Any, **options: Any) -> Tag:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def list(self, prefix: str = "") -> Iterator[str]:
        raise NotImplementedError


def test_a_million_groups_are_streamed() -> None:
    driver = Endless()
    found = stash.walk(driver)
    next(found)
    tracemalloc.start()
    for _ in islice(found, 3000):
        pass
    few = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for _ in islice(found, 10_000):
        pass
    many = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert few < 4 << 20 and many < few + (1 << 20)
    assert paths(driver, include="g007/g008/g009") == ["g007/g008/g009"]


# -- faults ------------------------------------------------------------------------------------


def test_a_failure_is_never_taken_for_absence() -> None:
    inner = MemoryDriver({})
    populated(inner)
    wanted = paths(inner)
    for number in range(100):
        met: list[Call] = []

        def when(call: Call, number: int = number, met: list[Call] = met) -> Fault | None:
            if call.number == number:
                met.append(call)
                return Unavailable("the server is down")
            return None

        try:
            found = paths(FailingDriver(inner, when))
        except Unavailable:
            assert met
            continue
        assert not met and found == wanted
        break
    assert number > 3
    down = FailingDriver(inner, lambda call: Unavailable("the server is down"))
    for call in (lambda: stash.exists(down), lambda: stash.ls(down), lambda: stash.walk(down)):
        with pytest.raises(Unavailable):
            call()


def test_one_that_may_not_be_read_hides_no_other() -> None:
    inner = MemoryDriver({})
    populated(inner)

    def when(call: Call) -> Fault | None:
        return Denied("forbidden") if call.key.startswith("raw/zarr") else None

    found = stash.ls(FailingDriver(inner, when))
    assert [(e.path, e.kind) for e in found] == [
        ("empty", "group"), ("raw", "unreadable"), ("time", "array"),
    ]  # fmt: skip
    assert found[1].why == "forbidden"


def test_members_that_go_while_they_are_listed(tmp_path: Path) -> None:
    for at in ({}, tmp_path / "x"):
        group = populated(at)
        found = stash.walk(at)
        assert next(found).path == "empty" and next(found).path == "raw"
        del group["raw"]
        assert [e.path for e in found] in (["time"], ["raw/image", "raw/mask", "time"])


# -- files -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_links(tmp_path: Path) -> None:
    populated(tmp_path / "data")
    group = stash.create_group(tmp_path / "g")
    group.create("own", 3, "i4")
    os.symlink(tmp_path / "data", tmp_path / "g/link")
    os.symlink(tmp_path / "g", tmp_path / "g/loop")
    os.symlink(tmp_path / "data", tmp_path / "root")
    assert paths(tmp_path / "g") == ["link", *(f"link/{path}" for path in ALL), "own"]
    assert paths(tmp_path / "root") == ALL
    assert stash.exists(tmp_path / "g", path="link/raw")


def test_a_group_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PK\3\4 zip")
    assert not stash.exists(tmp_path / "x")
    with pytest.raises(NotFound, match="a zip file"):
        stash.ls(tmp_path / "x")
    assert not stash.exists(tmp_path / "none/at/all")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_members_that_no_listing_may_name() -> None:
    place: dict[str, Any] = {}
    populated(place)
    document = place["time/zarr.json"]
    for name in ("__x", "a\\b", "..", "zarr.json"):
        place[f"{name}/zarr.json"] = document
    assert paths(place) == ALL


def test_documents_of_both_formats(tmp_path: Path) -> None:
    group = stash.create_group(tmp_path / "x")
    stash.create(tmp_path / "x/two", (2, 2), "f4", zarr_format=2, attributes={"a": 1})
    stash.create_group(tmp_path / "x/g2", zarr_format=2).create("y", 3, "i4")
    stash.create(tmp_path / "x/g2/three", (2, 2), "f4")
    group.create("three", 3, "u1")
    assert paths(tmp_path / "x") == ["g2", "g2/three", "g2/y", "three", "two"]
    assert {e.kind for e in stash.walk(tmp_path / "x", exclude="g2")} == {"array"}


def test_a_hostile_copy_of_metadata(tmp_path: Path) -> None:
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    members = {
        "good": group,
        "..": group,
        "good/x": {"bad": 1},
        "a/orphan": group,
        "good/x/y": group,
    }
    document = {**group, "consolidated_metadata": {"kind": "inline", "metadata": members}}
    found = [*stash.walk({"zarr.json": json.dumps(document).encode()})]
    assert [(e.path, e.kind) for e in found] == [("good", "group"), ("good/x", "unreadable")]
