"""Moves of whole trees: renamed where that is one step, else copied, compared and deleted; one of
the two places is whole at every instant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Conflict, Corrupt, Invalid, NotFound, StashError
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tensorstash.trees import moving
from tests.support.every_place import KINDS, place, stored
from tests.support.groups import populated
from tests.trees.test_copying import plain
from tests.trees.test_deleting import MAKERS, rows


@pytest.fixture(params=KINDS)
def driver(request: Any, tmp_path: Path) -> Iterator[Driver]:
    with place(request.param, tmp_path, request.getfixturevalue) as found:
        yield found


@pytest.mark.parametrize("kind", MAKERS)
def test_to_and_from_every_driver(driver: Driver, kind: str) -> None:
    origin, back = MemoryDriver({}), MemoryDriver({})
    MAKERS[kind](origin)
    whole = plain(origin)
    stash.move(origin, driver)
    assert plain(driver) == whole
    assert stored(origin) == {}
    stash.move(driver, back)
    assert plain(back) == whole
    assert stored(driver) == {}
    with pytest.raises(NotFound):
        stash.move(driver, back)


@pytest.mark.parametrize("kind", MAKERS)
def test_within_one_place_nothing_is_copied(kind: str, tmp_path: Path) -> None:
    for one, other in (
        (FileDriver(tmp_path / "a"), FileDriver(tmp_path / "b/c")),
        (MemoryDriver({}), MemoryDriver({})),
    ):
        MAKERS[kind](one)
        whole = stored(one)
        counting = CountingDriver(one)
        stash.move(counting, other)
        assert stored(other) == whole  # byte for byte, identities too
        assert stored(one) == {}
        assert counting.counts["get_many"].keys == 0
    assert not (tmp_path / "a").exists()


def test_onto_what_is_there(tmp_path: Path) -> None:
    for one, other in (
        (FileDriver(tmp_path / "a"), FileDriver(tmp_path / "b")),
        (FileDriver(tmp_path / "a2"), MemoryDriver({})),
        (MemoryDriver({}), MemoryDriver({})),
    ):
        populated(one)
        stash.save(other, [1, 2, 3])
        before = stored(one), stored(other)
        with pytest.raises(AlreadyExists):
            stash.move(one, other)
        assert (stored(one), stored(other)) == before
        stash.move(one, other, overwrite=True)
        assert plain(other) == {key: value.rstrip() for key, value in before[0].items()}
        assert stored(one) == {}


def test_handles_on_the_old_place_never_read_fill(tmp_path: Path) -> None:
    for one, other in (
        (FileDriver(tmp_path / "a"), FileDriver(tmp_path / "b")),
        (MemoryDriver({}), MemoryDriver({})),
    ):
        array = stash.save(one, [1, 2, 3, 4], chunks=2)
        stash.move(one, other)
        with pytest.raises((NotFound, Conflict)):
            array[...]
        with suppress(NotFound, Conflict):
            array[:2] = 9
        with pytest.raises(NotFound):
            stash.open(one)
        assert stash.open(other)[...].tolist() == [1, 2, 3, 4]


def test_fields_of_records_stay(tmp_path: Path) -> None:
    rows(tmp_path / "r")
    before = stored(FileDriver(tmp_path / "r"))
    for path in ("x", "t", "t/values"):
        with pytest.raises(Invalid, match=r"drop_field\(\)"):
            stash.move(tmp_path / "r", tmp_path / "other", path=path)
    with pytest.raises(Invalid, match=r"is a field of records"):
        stash.move(tmp_path / "r/x", tmp_path / "other")
    assert stored(FileDriver(tmp_path / "r")) == before


def test_files_of_others_are_renamed_and_never_deleted(tmp_path: Path) -> None:
    one = FileDriver(tmp_path / "a")
    populated(one)
    one.put("notes.txt", b"precious")
    with pytest.raises(AlreadyExists, match="notes"):
        stash.move(one, {})
    stash.move(one, tmp_path / "b")
    assert (tmp_path / "b/notes.txt").read_bytes() == b"precious"


class Apart(FailingDriver):
    """Cannot rename."""

    def rename(self, prefix: str, target: Driver, target_prefix: str) -> bool:
        return False


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("kind", ["array", "v2", "group", "group v2", "records"])
def test_a_failure_of_any_request(kind: str, side: str) -> None:
    for number in range(400):
        one, other = MemoryDriver({}), MemoryDriver({})
        MAKERS[kind](one)
        whole = plain(one)
        met: list[Call] = []

        def when(call: Call, number: int = number, met: list[Call] = met) -> Fault | None:
            if call.number >= number:
                met.append(call)
                return "error"
            return None

        never = lambda call: None  # noqa: E731
        source = Apart(one, when if side == "source" else never)
        target = FailingDriver(other, when if side == "target" else never)
        with suppress(StashError):
            stash.move(source, target)
        for at in (one, other):
            if plain(at) != whole:
                for opener in (stash.open, stash.open_group, stash.open_records):
                    with pytest.raises((NotFound, Corrupt)):
                        opener(at)  # type: ignore[operator]
        assert whole in (plain(one), plain(other))
        if stash.exists(one):
            stash.move(Apart(one, never), other, overwrite=plain(other) == whole == plain(one))
        assert plain(other) == whole
        assert stored(one) == {}
        if not met:
            break
    assert 5 < number < 399


def apart(mapping: dict[str, Any]) -> Apart:
    return Apart(MemoryDriver(mapping), lambda call: None)


def test_a_move_that_was_killed_is_repeated_to_its_own_target_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(Exception):
        pass

    def killed(made: object) -> None:
        raise Killed

    place: dict[str, Any] = {}
    values = np.arange(6, dtype="i4")
    stash.save(apart(place), values, chunks=2)
    with monkeypatch.context() as patched:
        patched.setattr("tensorstash.trees.moving.remove", killed)
        with pytest.raises(Killed):
            stash.move(apart(place), "memory://moved/here")
    stash.save("memory://moved/elsewhere", [7])
    for target in ("memory://moved/elsewhere", "memory://moved/nowhere"):
        with pytest.raises(Corrupt, match="moved to memory://moved/here; if that is there"):
            stash.move(apart(place), target)
    stash.move(apart(place), "memory://moved/here", overwrite=True)
    assert not stash.exists(place)
    assert stash.load("memory://moved/here").tolist() == values.tolist()


def test_of_two_moves_to_one_place_the_second_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds the first one's copy under way, and that whole when its own turn comes."""
    one: dict[str, Any] = {}
    other: dict[str, Any] = {}
    stash.save(apart(one), [1, 2, 3])
    stash.save(apart(other), [4, 5])
    real = moving.what_is_unfinished
    target = "memory://both/here"

    def looked(driver: Any, path: str) -> str | None:
        found = real(driver, path)
        if driver.url == target and not asked:
            asked.append(True)
            stash.move(apart(one), target)
            return "copy"  # as it was a moment ago
        return found

    asked: list[bool] = []
    monkeypatch.setattr(moving, "what_is_unfinished", looked)
    with pytest.raises(AlreadyExists):
        stash.move(apart(other), target)
    assert stash.load(target).tolist() == [1, 2, 3]
    assert stash.load(other).tolist() == [4, 5]
