"""``path=``: what is below a location, as if it had been opened at its own URL."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Conflict, Corrupt, Invalid, NotFound, ReadOnly
from tensorstash.testing.counting import CountingDriver
from tests.support.every_place import KINDS, place, stored
from tests.support.oracle import same

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

DATA = np.arange(24, dtype="int32").reshape(4, 6)
PATHS = ("x", "raw/image", "my data/ü/漢 字", "a/b/c/d")


# -- the same as at a place of its own ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_in_on_every_driver(
    kind: str, zarr_format: Any, tmp_path: Path, request: Any
) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        path = "raw/my image"
        made = stash.create(driver, (4, 6), "int32", path=path, chunks=3, zarr_format=zarr_format)
        made[...] = DATA
        same(stash.load(driver, path=path), DATA)
        same(stash.open(driver, path=path)[1:3], DATA[1:3])
        same(stash.open_group(driver, path="raw")["my image"][...], DATA)
        same(stash.open_group(driver)[path][...], DATA)
        same(stash.open(driver, "a", shape=(0, 6), dtype="int32", path=path)[...], DATA)
        same(stash.copy(driver, {}, path=path)[...], DATA)
        stash.open(driver, "r+", path=path)[0] = 7
        same(stash.load(driver, path=f"/{path}/")[0], np.full(6, 7, "int32"))
        store = stash.zarr_store(driver, path="raw", read_only=True)
        same(np.asarray(zarr.open_group(store, mode="r")["my image"][1:]), DATA[1:])
        if zarr_format == 3 and driver.capabilities.locks:
            rows = {"n": [1, 2, 3], "s": ["a", "b", "c"]}
            saved = stash.save_records(driver, rows, path="runs/first")
            assert stash.open_records(driver, path="runs/first")[:]["n"].tolist() == [1, 2, 3]
            assert saved.append({"n": 4, "s": "d"}) == 3
        assert stash.open_group(driver, "a", path="new/group").path == "new/group/"
        assert stash.open_group(driver).zarr_format == zarr_format
        for group in ("", "raw", "new", "new/group"):
            assert stash.open_group(driver, path=group).zarr_format == zarr_format


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("root", ["plain", "with space and ü %20"])
def test_the_bytes_are_those_of_a_place_of_its_own(tmp_path: Path, path: str, root: str) -> None:
    how: dict[str, Any] = {"chunks": 4, "attributes": {"k": 1}, "dimension_names": ["y", "x"]}
    stash.save(tmp_path / root, DATA, path=path, **how)
    stash.save(tmp_path / "own", DATA, **how)
    found = MemoryDriver({}).url and stored(stash.open(tmp_path / root, path=path).driver)
    below = {key[len(path) + 1 :]: v for key, v in found.items() if key.startswith(path + "/")}
    alone = stored(stash.open(tmp_path / "own").driver)
    assert below.keys() == alone.keys()
    assert all(below[key] == alone[key] for key in alone if not key.endswith("zarr.json"))
    same(stash.load(tmp_path / root / path), DATA)
    same(stash.load(f"file://{tmp_path}/{root.replace('%', '%25')}", path=path), DATA)
    assert stash.open(tmp_path / root, path=path).attrs == {"k": 1}


def test_every_group_above_is_made(tmp_path: Path, zarr_format: Any) -> None:
    stash.create(tmp_path / "a", 3, "int8", path="raw/deep/x", zarr_format=zarr_format)
    stash.create_group(tmp_path / "a", path="other/deep", attributes={"k": 1})
    if zarr_format == 3:
        stash.create_records(tmp_path / "a", {"n": {"v": "int32"}}, path="runs/r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = zarr.open_group(tmp_path / "a", mode="r", use_consolidated=False)
        names = {name for name, _ in found.members(max_depth=None)}
    wanted = {"raw", "raw/deep", "raw/deep/x", "other", "other/deep"}
    runs = {"runs", "runs/r", "runs/r/n", "runs/r/n/v"}
    assert names == wanted | (runs if zarr_format == 3 else set())
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


def test_handles_are_those_of_a_group(tmp_path: Path) -> None:
    stash.save(tmp_path / "g", DATA, path="raw/image")
    array = stash.open(tmp_path / "g", path="raw/image")
    member = stash.open_group(tmp_path / "g")["raw/image"]
    assert (array.path, array.driver.url) == (member.path, member.driver.url)
    assert repr(array) == repr(member) == repr(stash.open(tmp_path / "g/raw/image"))
    again = pickle.loads(pickle.dumps(array))
    assert (again.path, again.spec.shape) == ("raw/image/", (4, 6))
    same(again[...], DATA)
    group = pickle.loads(pickle.dumps(stash.open_group(tmp_path / "g", path="raw")))
    assert group.keys() == ["image"] and repr(group).endswith("/g/raw>")
    with pytest.raises(ReadOnly, match="g/raw/image was opened for reading"):
        array[0] = 1
    stash.save(tmp_path / "g", DATA[:2], path="raw/image")
    with pytest.raises(Conflict, match="g/raw/image was replaced"):
        array[0]


# -- what cannot be ----------------------------------------------------------------------------

BAD: tuple[Any, ...] = (
    "..", "a/../b", "../x", ".", "a//b", "__x", "zarr.json", "a/zarr.json", "a\\b", "a\0", "/",
    "//", " /..", "\ud800", 3, None, ["x"], b"x", Path("x"),
)  # fmt: skip


@pytest.mark.parametrize("path", BAD, ids=ascii)
def test_paths_that_name_nothing(path: Any) -> None:
    driver = CountingDriver(MemoryDriver({}))
    stash.save(driver, DATA, path="x")
    driver.reset()
    before = stored(driver.driver)
    calls = (
        lambda: stash.open(driver, path=path),
        lambda: stash.open(driver, "w", shape=3, dtype="int8", path=path),
        lambda: stash.open_group(driver, path=path),
        lambda: stash.open_records(driver, path=path),
        lambda: stash.load(driver, path=path),
        lambda: stash.copy(driver, {}, path=path),
        lambda: stash.zarr_store(driver, path=path),
        lambda: stash.create(driver, 3, "int8", path=path),
        lambda: stash.save(driver, DATA, path=path),
        lambda: stash.create_group(driver, path=path),
        lambda: stash.create_records(driver, {"n": "int8"}, path=path),
        lambda: stash.save_records(driver, {"n": [1]}, path=path),
    )
    for call in calls:
        with pytest.raises(Invalid, match="member") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not driver.counts
    assert stored(driver.driver) == before


def test_nothing_is_there() -> None:
    place = {}  # type: ignore[var-annotated]
    stash.save(place, DATA, path="raw/image")
    for call in (stash.open, stash.open_group, stash.open_records, stash.load):
        with pytest.raises(NotFound, match="memory://raw/nope"):
            call(place, path="raw/nope")
        with pytest.raises(NotFound):
            call(place, path="raw/image/below")
    with pytest.raises(Invalid, match=r"memory://raw is a group; open it with open_group\(\)"):
        stash.open(place, path="raw")
    with pytest.raises(Invalid, match=r"memory://raw/image is an array; open it with open\(\)"):
        stash.open_group(place, path="raw/image")


def makers(driver: Driver, path: str, **how: Any) -> Any:
    return (
        lambda: stash.create(driver, 3, "int8", path=path, **how),
        lambda: stash.save(driver, DATA, path=path, **{"overwrite": False, **how}),
        lambda: stash.create_group(driver, path=path, **how),
        lambda: stash.create_records(driver, {"n": "int8"}, path=path, **how),
        lambda: stash.save_records(driver, {"n": [1]}, path=path, **{"overwrite": False, **how}),
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_made_below_an_array(overwrite: bool) -> None:
    for where, path in (("", "x"), ("a", "a/x"), ("a/b", "a/b/c/d")):
        driver = MemoryDriver({})
        stash.save(driver, DATA, path=where)
        before = stored(driver)
        for make in makers(driver, path, overwrite=overwrite):
            with pytest.raises(Invalid, match=f"{where or '://'} is an array and cannot hold"):
                make()
        assert stored(driver) == before


def test_nothing_is_replaced_unasked() -> None:
    driver = MemoryDriver({})
    stash.save(driver, DATA, path="a/x")
    before = stored(driver)
    for path in ("a/x", "a"):
        for make in makers(driver, path):
            with pytest.raises(AlreadyExists, match=f"memory://{path} already"):
                make()
    assert stored(driver) == before
    for make in makers(driver, "a/x", overwrite=True):
        make()


def test_a_field_of_records_goes_by_their_own_hands() -> None:
    driver = MemoryDriver({})
    stash.save_records(driver, {"n": [1, 2], "next": {"obs": [3, 4]}}, path="runs/r")
    before = stored(driver)
    for path in ("runs/r/n", "runs/r/next", "runs/r/next/obs"):
        for make in makers(driver, path, overwrite=True):
            with pytest.raises(Invalid, match="a field of the records at memory://runs/r"):
                make()
    for path in ("runs/r/n/x", "runs/r/next/obs/x"):
        for make in makers(driver, path, overwrite=True):
            with pytest.raises(Invalid, match=r"is an array|a field of the records"):
                make()
    assert stored(driver) == before
    assert stash.open(driver, path="runs/r/next/obs")[:].tolist() == [3, 4]
    assert stash.open_group(driver, path="runs/r/next").keys() == ["obs"]


def test_a_group_of_another_format_holds_its_own_only(zarr_format: Any) -> None:
    other: Any = 5 - zarr_format
    driver = MemoryDriver({})
    stash.create_group(driver, zarr_format=zarr_format)
    before = stored(driver)
    for make in (
        lambda: stash.create(driver, 3, "int8", path="a/x", zarr_format=other),
        lambda: stash.create_group(driver, path="a/x", zarr_format=other),
        lambda: stash.open_group(driver, "a", path="a/x", zarr_format=other),
        lambda: stash.open(driver, "w", shape=3, dtype="int8", path="a/x", zarr_format=other),
    ):
        with pytest.raises(Invalid, match=f"is a group of Zarr v{zarr_format}"):
            make()
    if zarr_format == 2:
        with pytest.raises(Invalid, match="is a group of Zarr v2"):
            stash.create_records(driver, {"n": "int8"}, path="r")
    assert stored(driver) == before
    assert stash.create(driver, 3, "int8", path="a/x").spec.zarr_format == zarr_format
    assert stash.save(driver, DATA, path="b/x").spec.zarr_format == zarr_format
    assert stash.create_group(driver, path="c/x").zarr_format == zarr_format
    assert stash.open_group(driver, "a", path="d/x").zarr_format == zarr_format


def test_what_is_damaged_above_is_left_alone() -> None:
    driver = MemoryDriver({})
    stash.create_group(driver, path="a")
    driver.put("a/zarr.json", b"{")
    before = stored(driver)
    for make in makers(driver, "a/x"):
        with pytest.raises(Corrupt, match="memory://a"):
            make()
    assert stored(driver) == before


def test_a_handle_has_no_path_below_it() -> None:
    array = stash.save({}, DATA)
    with pytest.raises(Invalid, match="path= is for a location"):
        stash.copy(array, {}, path="x")


# -- consolidated metadata above ---------------------------------------------------------------


def test_what_shows_a_change_above_is_dropped(zarr_format: Any) -> None:
    def above(driver: Driver) -> bool:
        return stash.open_group(driver).document.consolidated is not None

    def consolidated() -> MemoryDriver:
        driver = MemoryDriver({})
        stash.create(driver, (2, 3), "int8", path="a/x", zarr_format=zarr_format)
        stash.open_group(driver, "r+").consolidate()
        assert above(driver)
        return driver

    for change in (
        lambda driver: stash.create(driver, 3, "int8", path="a/y"),
        lambda driver: stash.save(driver, DATA, path="a/x"),
        lambda driver: stash.create_group(driver, path="b"),
        lambda driver: stash.open(driver, "r+", path="a/x").append([[1, 2, 3]]),
        lambda driver: stash.open(driver, "r+", path="a/x").attrs.update(k=1),
        lambda driver: stash.open_group(driver, "w", path="a"),
    ):
        driver = consolidated()
        change(driver)
        assert not above(driver)
        members = zarr.open_group(stash.zarr_store(driver), mode="r").members(max_depth=None)
        assert {n for n, _ in members} == {n for n, _ in stash.open_group(driver).walk()}


def test_records_below_drop_what_shows_them() -> None:
    for change in (
        lambda records: records.append({"n": 9}),
        lambda records: records.add_field("m", "int8"),
        lambda records: records.attrs.update(k=1),
    ):
        driver = MemoryDriver({})
        stash.save_records(driver, {"n": [1, 2]}, path="runs/r")
        stash.open_group(driver, "r+").consolidate()
        records = stash.open_records(driver, "r+", path="runs/r")
        change(records)
        store = stash.zarr_store(driver)
        fields = {name: a.shape for name, a in zarr.open_group(store, mode="r")["runs/r"].arrays()}
        assert fields == {name: (len(records),) for name in records.fields}


# -- cost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_opening_below_costs_one_small_read(depth: int) -> None:
    driver = CountingDriver(MemoryDriver({}))
    path = "/".join("abcdef"[:depth])
    stash.save(driver, DATA, path=f"{path}/x")
    stash.save_records(driver, {"n": [1]}, path=f"{path}/r")
    for call, name in (
        (stash.open, "/x"),
        (stash.open_group, ""),
        (stash.open_records, "/r"),
    ):
        driver.reset()
        call(driver, path=path + name)
        assert dict(driver.counts) == {"get_many_tagged": driver.reads}
        assert (driver.reads.calls, driver.reads.keys) == (1, 1)


def test_a_place_of_its_own_costs_no_look_above() -> None:
    driver = CountingDriver(MemoryDriver({}))
    stash.create(driver, 3, "int8")
    assert driver.counts["put"].calls == 1
    assert driver.reads.keys <= 3


# -- what is kept on disk ----------------------------------------------------------------------


def test_a_disk_cache_serves_all_handles_of_a_location(tmp_path: Path, request: Any) -> None:
    server = request.getfixturevalue("valkey_server")
    url = server.fresh()
    stash.save(url, DATA, path="a/x", codecs=None)
    how: dict[str, Any] = {"cache_dir": tmp_path / "kept"}
    same(stash.open(url, path="a/x", **how)[...], DATA)
    for again in (stash.open(url, path="a/x", **how), stash.open_group(url, **how)["a/x"]):
        same(again[...], DATA)
        assert again.stats.disk_hits > 0
    alone = stash.open(f"{url.rstrip('/')}/a/x", **how)
    same(alone[...], DATA)
    assert alone.stats.disk_hits == 0  # what is kept is told apart by the location
