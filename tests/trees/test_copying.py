"""Copies of whole trees between all drivers: every byte of what is theirs, nothing else, marked
until they are whole, killed at any step, and kept apart from what they are copied from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Conflict, Corrupt, Invalid, NotFound, StashError
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tests.support.every_place import KINDS, place, stored
from tests.support.groups import populated
from tests.support.races import Dying, fork
from tests.trees.test_deleting import MAKERS, rows

PLACES = {"group", "group v2", "consolidated", "consolidated v2", "records"}


@pytest.fixture(params=KINDS)
def driver(request: Any, tmp_path: Path) -> Iterator[Driver]:
    with place(request.param, tmp_path, request.getfixturevalue) as found:
        yield found


def plain(at: Any) -> dict[str, bytes]:
    """All that is stored, without the blanks behind documents and what names their identities."""
    found = {key: value.rstrip() for key, value in stored(at).items()}
    for key, value in found.items():
        if b'"identities"' in value:
            start = value.index(b'"identities"')
            found[key] = value[:start] + value[value.index(b"}", start) :]
    return found


# -- what is copied ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_to_and_from_every_driver(driver: Driver, kind: str) -> None:
    origin = MemoryDriver({})
    MAKERS[kind](origin)
    there = stash.copy(origin, driver)
    assert plain(driver) == plain(origin)
    back = MemoryDriver({})
    stash.copy(there, back)
    assert plain(back) == plain(origin)
    with pytest.raises(AlreadyExists):
        stash.copy(origin, driver)
    stash.copy(origin, driver, overwrite=True)
    assert plain(driver) == plain(origin)


def test_records_read_and_grow_in_the_copy(driver: Driver) -> None:
    origin = MemoryDriver({})
    rows(origin)
    copied = stash.copy(stash.open_records(origin), driver)
    assert copied[2]["in"]["y"] == "c"
    assert copied[1]["t"].tolist() == [2, 3]
    if driver.capabilities.locks:
        copied.append({"x": 9, "t": [7], "in": {"y": "d"}})
        assert stash.open_records(driver)[3]["x"] == 9
    assert len(stash.open_records(origin)) == 3


def test_a_copy_is_another_array(zarr_format: Any) -> None:
    origin, target = MemoryDriver({}), MemoryDriver({})
    group = populated(origin, zarr_format)
    group.create("x", 3, "i4")[...] = 1
    handle = stash.copy(group, target)["x"]
    assert handle[...].tolist() == [1, 1, 1]
    stash.copy(group, target, overwrite=True)
    with pytest.raises(Conflict):
        handle[...]  # it was replaced since
    assert stash.copy(group, {})["x"].spec.identity != group["x"].spec.identity  # type: ignore[union-attr]


def test_chunks_beyond_the_shape_and_files_of_others_stay(zarr_format: Any) -> None:
    origin = MemoryDriver({})
    group = populated(origin, zarr_format)
    group.create("x", 4, "i4", chunks=2)[...] = 1
    wanted = plain(origin)
    key = "x/c/2" if zarr_format == 3 else "x/2"
    origin.put(key, bytes(origin.get("x/c/0" if zarr_format == 3 else "x/0") or b""))
    origin.put("notes.txt", b"precious")
    origin.put("photos/2023/1.jpg", b"precious")
    target = MemoryDriver({})
    stash.copy(origin, target)
    assert plain(target) == wanted


def test_unknown_codecs_are_copied_as_they_are() -> None:
    origin = MemoryDriver({})
    group = stash.create_group(origin)
    group.create("x", 4, "i4", chunks=2)[...] = 1
    document = bytes(origin.get("x/zarr.json") or b"").replace(b'"crc32c"', b'"unheard-of"')
    assert b"unheard-of" in document
    origin.put("x/zarr.json", document)
    target = MemoryDriver({})
    stash.copy(origin, target)
    assert plain(target) == plain(origin)


def test_members_are_chosen_by_pattern(zarr_format: Any) -> None:
    origin = MemoryDriver({})
    group = populated(origin, zarr_format)
    group.create("raw/deep/er", 3, "i4")[...] = 2
    group.consolidate()
    target = MemoryDriver({})
    copied = stash.copy(group, target, include="raw/**", exclude=["**/image", "**/mask"])
    assert [path for path, _ in copied.walk()] == ["raw", "raw/deep", "raw/deep/er"]
    shown = stash.open_group(target)
    assert [path for path, _ in shown.walk()] == ["raw", "raw/deep", "raw/deep/er"]
    assert shown["raw/deep/er"][...].tolist() == [2, 2, 2]  # type: ignore[index]
    with pytest.raises(Invalid, match="this is an array"):
        stash.copy(group["raw/deep/er"], {}, include="x")
    with pytest.raises(Invalid, match="codecs: how a copy is stored"):
        stash.copy(group, {}, codecs=None)


def test_records_are_whole_or_not_at_all() -> None:
    origin = MemoryDriver({})
    group = stash.create_group(origin)
    rows(origin_of := MemoryDriver({}))
    for key, value in stored(origin_of).items():
        origin.put("runs/" + key, value)
    assert len(stash.copy(group, {}, include="runs")["runs"]["x"]) == 3
    assert stash.copy(group, {}, include="runs/x").keys() == []
    assert stash.copy(group, {}, exclude="runs/x").keys() == ["runs"]
    with pytest.raises(Invalid, match="copied whole or not at all"):
        stash.copy(origin_of, {}, include="x")


def test_what_is_below_a_location(tmp_path: Path) -> None:
    group = populated(tmp_path / "g")
    group.create("raw/x", 3, "i4")[...] = 5
    assert stash.copy(tmp_path / "g", {}, path="raw")["x"][...].tolist() == [5] * 3
    assert stash.copy(tmp_path / "g", {}, path="raw/x")[...].tolist() == [5] * 3
    with pytest.raises(NotFound):
        stash.copy(tmp_path / "g", {}, path="no")
    with pytest.raises(Invalid, match="path="):
        stash.copy(group, {}, path="raw")


names = st.sampled_from(["a", "b", "ä ö", "c.d", "x" * 40])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(deadline=None, max_examples=60)
@given(
    arrays=st.dictionaries(paths, st.integers(0, 5), max_size=6),
    groups=st.sets(paths, max_size=3),
    zarr_format=st.sampled_from([2, 3]),
    include=st.none() | st.sampled_from(["a/**", "**/b", "*"]),
)
def test_random_trees(
    arrays: dict[str, int], groups: set[str], zarr_format: Any, include: str | None
) -> None:
    origin = stash.create_group({}, {"u": 1}, zarr_format=zarr_format)
    for path in groups:
        with suppress(StashError):
            origin.create_group(path)
    for path, length in arrays.items():
        with suppress(StashError):
            origin.create(path, length, "i2", chunks=2)[...] = length
    wanted = {entry.path for entry in stash.walk(origin.driver, include=include)}
    wanted |= {path[:k] for path in wanted for k, letter in enumerate(path) if letter == "/"}
    copied = stash.copy(origin, {}, include=include)
    assert {path for path, _ in copied.walk()} == wanted
    for path, member in copied.walk():
        if isinstance(member, stash.Array):
            assert np.array_equal(member[...], origin[path][...])  # type: ignore[index]


# -- apart -------------------------------------------------------------------------------------


def test_into_itself_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    group = populated(tmp_path / "g")
    (tmp_path / "link").symlink_to(tmp_path / "g")
    (tmp_path / "up").symlink_to(tmp_path)
    before = stored(FileDriver(tmp_path))
    for target in ("g", "g/raw/new", "g/new", "link/new", "up/g/new"):
        for overwrite in (False, True):
            with pytest.raises((Invalid, AlreadyExists)):
                stash.copy(group, tmp_path / target, overwrite=overwrite)
            with pytest.raises((Invalid, AlreadyExists)):
                stash.move(group, tmp_path / target, overwrite=overwrite)
            assert stored(FileDriver(tmp_path)) == before, target
    with pytest.raises(Invalid):
        stash.copy(tmp_path / "g/raw", tmp_path / "g", overwrite=True)
    with pytest.raises(Invalid):
        stash.copy(tmp_path / "link/raw", tmp_path / "g", overwrite=True)
    assert stored(FileDriver(tmp_path)) == before
    assert not (tmp_path / "g/new").exists()


def test_a_copy_of_a_dict_to_another(zarr_format: Any) -> None:
    one, two = {}, {}  # type: ignore[var-annotated]
    group = populated(one, zarr_format)
    assert stash.copy(one, two).keys() == group.keys()
    with pytest.raises(Invalid):
        stash.copy(one, one, overwrite=True)


# -- interrupted -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(PLACES))
@pytest.mark.parametrize("dies", [False, True], ids=["fails once", "is dead from then on"])
def test_a_failure_of_any_request_to_the_target(kind: str, dies: bool) -> None:
    origin = MemoryDriver({})
    MAKERS[kind](origin)
    for number in range(300):
        inner = MemoryDriver({})
        met: list[Call] = []

        def when(call: Call, number: int = number, met: list[Call] = met) -> Fault | None:
            if call.number == number or (dies and call.number > number):
                met.append(call)
                return "error"
            return None

        with suppress(StashError):
            stash.copy(origin, FailingDriver(inner, when))
        if plain(inner) != plain(origin):
            for opener in (stash.open, stash.open_group, stash.open_records):
                with pytest.raises((NotFound, Corrupt)):
                    opener(inner)  # type: ignore[operator]
        stash.copy(origin, inner, overwrite=True)
        assert plain(inner) == plain(origin)
        if not met:
            break
    assert 8 < number < 299


def copy_and_die(origin: Path, target: Path, number: int) -> None:
    stash.copy(origin, Dying(FileDriver(target), number))


@pytest.mark.skipif(os.name != "posix", reason="fork")
@pytest.mark.parametrize("kind", ["group", "records"])
def test_a_kill_between_any_two_steps(kind: str, tmp_path: Path) -> None:
    MAKERS[kind](FileDriver(tmp_path / "from"))
    whole = plain(FileDriver(tmp_path / "from"))
    for number in range(300):
        target = tmp_path / str(number)
        process = fork.Process(target=copy_and_die, args=(tmp_path / "from", target, number))
        process.start()
        process.join()
        if plain(FileDriver(target)) != whole:
            for opener in (stash.open_group, stash.open_records):
                with pytest.raises((NotFound, Corrupt)):
                    opener(target)  # type: ignore[operator]
        stash.copy(tmp_path / "from", target, overwrite=True)
        assert plain(FileDriver(target)) == whole
        if process.exitcode == 0:
            break
    assert 8 < number < 299


# -- changed meanwhile -------------------------------------------------------------------------


class Meddling(CountingDriver):
    """Lets something happen when chunks are read."""

    def __init__(self, driver: Driver, *steps: Any) -> None:
        super().__init__(driver)
        self.steps = [*steps]

    def get_many(self, requests: Any) -> Any:
        if self.steps:
            self.steps.pop(0)()
        return super().get_many(requests)


def test_arrays_that_shrink_or_grow_meanwhile() -> None:
    inner = MemoryDriver({})
    array = stash.create_group(inner).create("x", 8, "i4", chunks=2)
    array[...] = range(8)

    def shrink() -> None:
        array.resize(3)

    def replace() -> None:
        stash.create(MemoryDriver(inner._mapping, prefix="x/"), 2, "i8", overwrite=True)[...] = 7

    copied = stash.copy(Meddling(inner, lambda: array.append([8, 9])), {})
    assert copied["x"][...].tolist() == [*range(8)]
    copied = stash.copy(Meddling(inner, shrink), {})
    assert copied["x"][...].tolist() == [0, 1, 2]
    copied = stash.copy(Meddling(inner, replace), {})
    assert copied["x"][...].tolist() == [7, 7]
    with pytest.raises(Conflict, match="deleted meanwhile"):
        stash.copy(Meddling(inner, lambda: stash.delete(inner, path="x")), {})


def test_records_that_grow_meanwhile() -> None:
    inner = MemoryDriver({})
    rows(inner)
    records = stash.open_records(inner, "r+")

    def more() -> None:
        records.append({"x": 9, "t": [7], "in": {"y": "d"}})

    copied = stash.copy(Meddling(inner, more, more), {})
    assert [copied[k]["x"] for k in range(len(copied))] == [0, 1, 2]
    assert copied[2]["in"]["y"] == "c"


def test_what_is_not_whole_is_not_copied() -> None:
    inner = MemoryDriver({})
    group = populated(inner)
    group.create("bad", 3, "i4")
    inner.put("bad/zarr.json", b'{"zarr_format": 3, "node_type"')
    target = MemoryDriver({})
    with pytest.raises(Corrupt, match=r"bad.*exclude="):
        stash.copy(inner, target)
    assert stored(target) == {}
    assert "bad" not in stash.copy(inner, target, exclude="bad")


# -- costs -------------------------------------------------------------------------------------


def test_costs_are_those_of_what_is_stored() -> None:
    inner = MemoryDriver({})
    group = stash.create_group(inner)
    group.create("x", (10**6, 10**6), "i4", chunks=10)[5, 5] = 1
    counting = CountingDriver(inner)
    stash.copy(counting, {})
    assert counting.counts["get_many"].keys == 1
    assert counting.reads.keys < 20


class Unlisted(CountingDriver):
    """Cannot list."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        from dataclasses import replace

        self.capabilities = replace(driver.capabilities, lists=False)

    def list(self, prefix: str = "") -> Iterator[str]:
        raise AssertionError("listed")


def test_of_who_cannot_list_consolidated_metadata_says_what_is_there(zarr_format: Any) -> None:
    inner = MemoryDriver({})
    group = populated(inner, zarr_format)
    with pytest.raises(Invalid, match=r"consolidate\(\)"):
        stash.copy(Unlisted(inner), {})
    group.consolidate()
    target = MemoryDriver({})
    stash.copy(Unlisted(inner), target)
    assert plain(target) == plain(inner)


def test_a_bar_counts_bytes(capsys: Any, tmp_path: Path) -> None:
    populated(tmp_path / "g")
    stash.copy(tmp_path / "g", {}, progress=True)
    assert "copy: 100%" in capsys.readouterr().err
