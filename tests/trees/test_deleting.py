"""Deleting arrays, groups and records on every driver: all that is theirs, nothing else, killed at
any step, two at once, and what is said to who still has a handle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.drivers.shm import ShmDriver
from tensorstash.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Denied,
    DriverError,
    Invalid,
    NotFound,
    ReadOnly,
    StashError,
    Unsupported,
)
from tensorstash.location import resolve
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tests.support.every_place import KINDS, place, stored
from tests.support.groups import populated
from tests.support.races import TRIALS, Dying, fork, in_processes, in_threads

DATA = np.arange(1, 25, dtype="i4").reshape(4, 6)


@pytest.fixture(params=KINDS)
def driver(request: Any, tmp_path: Path) -> Iterator[Driver]:
    with place(request.param, tmp_path, request.getfixturevalue) as found:
        yield found


def rows(at: Any) -> None:
    """Records, also where there is no lock, which adding rows takes."""
    schema = {"x": "i8", "t": stash.ragged("i4"), "in": {"y": str}}
    records = stash.create_records({}, schema, rows_per_chunk=2)
    records.extend({"x": np.arange(3), "t": [[1], [2, 3], []], "in/y": ["a", "b", "c"]})
    driver = resolve(at)
    for key in records.driver.list():
        driver.put(key, records.driver.get(key) or b"")


def near_first(*usual: str) -> list[Any]:
    """The kinds of places: in the usual run these, the others in the long one."""
    long = pytest.mark.long
    return [kind if kind in usual else pytest.param(kind, marks=long) for kind in KINDS]


MAKERS: dict[str, Callable[[Any], Any]] = {
    "array": lambda at: stash.save(at, DATA, chunks=2),
    "sharded": lambda at: stash.save(at, DATA, chunks=1, shards=2),
    "v2": lambda at: stash.save(at, DATA, chunks=2, zarr_format=2, attributes={"a": 1}),
    "group": populated,
    "group v2": lambda at: populated(at, 2),
    "consolidated": lambda at: populated(at).consolidate(),
    "consolidated v2": lambda at: populated(at, 2).consolidate(),
    "records": rows,
}


# -- on every driver ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_of_it_is_left(driver: Driver, kind: str) -> None:
    MAKERS[kind](driver)
    assert stored(driver)
    stash.delete(driver)
    assert stored(driver) == {}
    assert not stash.exists(driver)
    with pytest.raises(NotFound, match="missing_ok=True"):
        stash.delete(driver)
    stash.delete(driver, missing_ok=True)
    MAKERS[kind](driver)  # and there is room for another
    assert stash.exists(driver)


def test_of_a_group_one_member(driver: Driver, zarr_format: Any) -> None:
    group = populated(driver, zarr_format)
    group.consolidate()
    before = stored(driver)
    with pytest.raises(NotFound, match="raw/no"):
        stash.delete(driver, path="raw/no")
    stash.delete(driver, path="raw/no", missing_ok=True)
    assert stored(driver) == before
    stash.delete(driver, path="/raw/")
    gone = {key for key in before if key.startswith("raw/")} | {".zmetadata"}
    left = {key: value for key, value in stored(driver).items() if key != "zarr.json"}
    assert left == {k: v for k, v in before.items() if k not in gone and k != "zarr.json"}
    assert stash.open_group(driver).keys() == ["empty", "time"]  # no copy shows it still
    assert np.array_equal(stash.open_group(driver)["time"][...], [0, 1, 2, 3])  # type: ignore[index]


def test_files_of_others_are_not_deleted(driver: Driver, zarr_format: Any) -> None:
    populated(driver, zarr_format)
    for key in ("raw/notes.txt", "photos/2023/1.jpg"):
        driver.put(key, b"precious")
        before = stored(driver)
        for path in ("", "raw") if key.startswith("raw") else ("",):
            with pytest.raises(AlreadyExists, match="which no metadata there explains"):
                stash.delete(driver, path=path)
            with pytest.raises(AlreadyExists):
                stash.delete(driver, path=path, missing_ok=True)
            assert stored(driver) == before
        driver.delete(key)
    driver.put("photos/2023/1.jpg", b"precious")
    with pytest.raises(NotFound):
        stash.delete(driver, path="photos")
    stash.delete(driver, path="raw")
    assert stored(driver)["photos/2023/1.jpg"] == b"precious"


def test_fields_of_records_go_by_drop_field(driver: Driver) -> None:
    rows(driver)
    records = stash.open_records(driver)
    before = stored(driver)
    for path in ("x", "t", "t/values", "in", "in/y"):
        with pytest.raises(Invalid, match=r"drop_field\(\)"):
            stash.delete(driver, path=path)
    assert stored(driver) == before
    assert records[1]["in"]["y"] == "b"
    stash.delete(driver)
    assert stored(driver) == {}


def test_fields_of_records_by_their_own_place(tmp_path: Path) -> None:
    for place_ in (tmp_path / "r", "memory://fields-by-place"):
        rows(place_)
        for path in ("x", "t", "t/values", "in", "in/y"):
            with pytest.raises(Invalid, match=r"is a field of records.*drop_field\(\)"):
                stash.delete(f"{place_}/{path}")
        assert stash.open_records(place_)["x"][...].tolist() == [0, 1, 2]


# -- interrupted -------------------------------------------------------------------------------


def between(at: Any, whole: dict[str, bytes]) -> None:
    """What a delete that did not end leaves: all, what every reader refuses, or nothing."""
    left = stored(at)
    if not left or left.keys() >= whole.keys() - {".zmetadata"}:
        return  # of what is there twice, the copy goes first
    assert stash.exists(at)  # the last document is the last that goes
    for opener in (stash.open, stash.open_group, stash.open_records):
        with pytest.raises(Corrupt, match="what a delete left; delete it again"):
            opener(at)  # type: ignore[operator]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dies", [False, True], ids=["fails once", "is dead from then on"])
@pytest.mark.parametrize("where", near_first("memory"))
def test_a_failure_of_any_request(
    where: str, kind: str, dies: bool, tmp_path: Path, request: Any
) -> None:
    number, step = 0, 1
    met: list[Call] = [Call("", "", 0)]
    while met:
        with place(where, tmp_path, request.getfixturevalue) as inner:
            MAKERS[kind](inner)
            whole = stored(inner)
            met = []

            def when(call: Call, number: int = number, met: list[Call] = met) -> Fault | None:
                if call.number == number or (dies and call.number > number):
                    met.append(call)
                    return "error"
                return None

            with suppress(StashError):
                stash.delete(FailingDriver(inner, when))
            between(inner, whole)
            stash.delete(inner, missing_ok=True)
            assert stored(inner) == {}
            step = 1 if inner.capabilities.local else 5  # far away some: near by all are tried
        number += step
    assert number > 4


def delete_and_die(path: Path, number: int) -> None:
    stash.delete(Dying(FileDriver(path), number))


@pytest.mark.skipif(os.name != "posix", reason="fork")
@pytest.mark.parametrize("kind", ["array", "v2", "group", "records"])
def test_a_kill_between_any_two_steps(kind: str, tmp_path: Path) -> None:
    for number in range(200):
        path = tmp_path / str(number)
        MAKERS[kind](path)
        whole = stored(FileDriver(path))
        process = fork.Process(target=delete_and_die, args=(path, number))
        process.start()
        process.join(60)
        assert process.exitcode in (0, 9)
        between(FileDriver(path), whole)
        stash.delete(path, missing_ok=True)
        assert stored(FileDriver(path)) == {}
        if process.exitcode == 0:
            break
    assert 4 < number < 199
    assert not path.exists()


def test_what_a_copy_left_is_finished_off(driver: Driver) -> None:
    def when(call: Call) -> Fault | None:
        return "error" if call.verb.startswith("put") and call.key.endswith("1/1") else None

    with pytest.raises(DriverError):
        stash.copy(stash.save({}, DATA, chunks=2), FailingDriver(driver, when))
    assert stash.exists(driver)
    stash.delete(driver)
    assert stored(driver) == {}


# -- others at once, and handles from before ---------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "v2", "group", "records"])
def test_several_at_once(driver: Driver, kind: str) -> None:
    if not driver.capabilities.conditional_put:
        pytest.skip("one writer at a time")
    MAKERS[kind](driver)
    told: list[StashError] = []

    def work(_: int) -> None:
        try:
            stash.delete(driver)
        except (NotFound, Conflict) as error:
            told.append(error)

    in_threads(4, work)
    assert len(told) < 4
    assert stored(driver) == {}


def delete_a_member(barrier: Any, path: Path, name: str) -> None:
    barrier.wait()
    with suppress(NotFound, Conflict):
        stash.delete(path, path=name)


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_processes_at_once(tmp_path: Path, zarr_format: Any) -> None:
    for trial in range(TRIALS):
        path = tmp_path / str(trial)
        populated(path, zarr_format).consolidate()
        names = ["raw", "raw/image", "raw", "time"]
        in_processes(fork, delete_a_member, *((path, name) for name in names))
        assert [entry.path for entry in stash.walk(path)] == ["empty"]
        documents = {"zarr.json"} if zarr_format == 3 else {".zgroup", ".zattrs"}
        kept = {f"{at}{name}" for at in ("", "empty/") for name in documents}
        assert stored(FileDriver(path)).keys() == kept


def test_handles_from_before(driver: Driver, zarr_format: Any) -> None:
    group = stash.create_group(driver, zarr_format=zarr_format)
    array = group.create("x", DATA.shape, "i4", chunks=2)
    array[...] = DATA
    reader = stash.open_group(driver)["x"]
    assert isinstance(reader, stash.Array)
    lazy = reader.lazy[1:]
    stash.delete(driver, path="x")
    for call in (
        lambda: reader[...],
        lambda: np.asarray(lazy),
        lambda: array.refresh(),
        lambda: array.__setitem__(..., 7),
        lambda: array.attrs.update(a=1),
    ):
        with pytest.raises((NotFound, Conflict)):
            call()
    if driver.capabilities.locks:
        with pytest.raises((NotFound, Conflict)):
            array.append(DATA)
    assert not stash.exists(driver, path="x")
    again = stash.create_group(driver, zarr_format=zarr_format, overwrite=True)
    again.create("x", DATA.shape, "i4", chunks=2)
    assert not again["x"][...].any()  # type: ignore[index]


def test_records_from_before(driver: Driver) -> None:
    rows(driver)
    records = stash.open_records(driver, "r+")
    stash.delete(driver)
    for call in (lambda: records[0], lambda: records.refresh(), lambda: records.extend({"x": [1]})):
        with pytest.raises(StashError):
            call()


# -- places ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_the_folder_goes_too(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "with blank" / "ü.zarr"
    MAKERS[kind](path)
    stash.delete(path)
    assert [p.name for p in tmp_path.iterdir()] == ["with blank"]
    assert [*(tmp_path / "with blank").iterdir()] == []


def test_of_a_member_too_and_no_other(tmp_path: Path) -> None:
    populated(tmp_path / "g")
    stash.delete(tmp_path / "g", path="raw/image")
    assert not (tmp_path / "g/raw/image").exists()
    assert (tmp_path / "g/raw/mask").exists()
    stash.delete(tmp_path / "g/raw/mask")
    assert sorted(p.name for p in (tmp_path / "g/raw").iterdir()) == ["zarr.json"]
    (tmp_path / "g/time/theirs").mkdir()
    stash.delete(tmp_path / "g/time", missing_ok=True)
    assert stash.open_group(tmp_path / "g", "r+").keys() == ["empty", "raw"]


def test_an_empty_folder_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(NotFound):
        stash.delete(tmp_path / "mine")
    stash.delete(tmp_path / "mine", missing_ok=True)
    assert (tmp_path / "mine").exists()


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_a_link_goes_and_not_what_it_leads_to(tmp_path: Path) -> None:
    populated(tmp_path / "data")
    before = stored(FileDriver(tmp_path / "data"))
    stash.create_group(tmp_path / "g").consolidate()
    os.symlink(tmp_path / "data", tmp_path / "g/link")
    os.symlink(tmp_path / "data", tmp_path / "root")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    stash.delete(tmp_path / "root")
    stash.delete(tmp_path / "g", path="link")
    assert not os.path.lexists(tmp_path / "root") and not os.path.lexists(tmp_path / "g/link")
    os.symlink(tmp_path / "data", tmp_path / "g/link")
    with pytest.raises(Denied, match="symbolic link"):
        stash.delete(tmp_path / "g", path="link/raw")
    with pytest.raises((NotFound, DriverError)):
        stash.delete(tmp_path / "dangling")
    stash.delete(tmp_path / "g")
    assert stored(FileDriver(tmp_path / "data")) == before
    assert os.path.lexists(tmp_path / "dangling")


def test_a_store_in_shared_memory_stays_open(tmp_path: Path) -> None:
    with place("shm", tmp_path, lambda name: None) as driver:
        assert isinstance(driver, ShmDriver)
        stash.save(driver, DATA)
        stash.save(f"{driver.url}/inner", DATA)
        stash.delete(f"{driver.url}/inner")
        stash.delete(driver)
        assert np.array_equal(stash.save(driver, DATA)[...], DATA)


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    import zarr

    stash.save(tmp_path / "x", DATA)
    store = zarr.storage.LocalStore(tmp_path / "x", read_only=True)
    with pytest.raises(ReadOnly, match="read-only"):
        stash.delete(store)
    assert np.array_equal(stash.load(tmp_path / "x"), DATA)


def test_on_the_web(http_server: Any) -> None:
    at: dict[str, bytes] = {}
    populated(at).consolidate()
    http_server.files.update({f"g/{key}": bytes(value) for key, value in at.items()})
    url = f"{http_server.url}/g"
    assert stash.exists(url, path="raw/image") and not stash.exists(url, path="raw/no")
    assert [entry.path for entry in stash.walk(url, path="")] == [
        "empty", "raw", "raw/image", "raw/mask", "time",
    ]  # fmt: skip
    with pytest.raises(Unsupported, match="cannot list"):
        stash.ls(url, path="raw")  # it has no copy of its own
    before = dict(http_server.files)
    with pytest.raises(ReadOnly):
        stash.delete(url, path="raw")
    with pytest.raises(NotFound):
        stash.delete(url, path="raw/no")
    assert http_server.files == before


def test_copies_of_metadata_above_are_dropped_first() -> None:
    inner = MemoryDriver({})
    populated(inner).consolidate()
    calls: list[Call] = []
    stash.delete(FailingDriver(inner, lambda call: calls.append(call)), path="raw/image")
    changed = [call.key for call in calls if call.verb in ("put", "delete", "delete_many")]
    assert changed[0] == "zarr.json" and changed[-1] == "raw/image/zarr.json"


def test_where_nothing_is_there_nothing_is_listed(tmp_path: Path) -> None:
    driver = CountingDriver(FileDriver(tmp_path))
    driver.put("photos/1.jpg", b"precious")
    driver.reset()
    stash.delete(driver, missing_ok=True)
    assert {verb: count.calls for verb, count in driver.counts.items()} == {"get_many_tagged": 1}
