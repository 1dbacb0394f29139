"""Members of a group are renamed and copied within it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.errors import AlreadyExists, Invalid, NotFound, ReadOnly
from tests.support.every_place import KINDS, place, stored
from tests.support.groups import populated
from tests.trees.test_deleting import rows


@pytest.fixture(params=KINDS)
def driver(request: Any, tmp_path: Path) -> Iterator[Driver]:
    with place(request.param, tmp_path, request.getfixturevalue) as found:
        yield found


def test_rename_and_copy(driver: Driver, zarr_format: Any) -> None:
    group = populated(driver, zarr_format)
    group.create("a/x", 3, "i4")[...] = [1, 2, 3]
    group.consolidate()
    group.rename("a/x", "b/c/y")
    assert group.keys() == ["a", "b", "empty", "raw", "time"]
    assert stash.open_group(driver)["b/c/y"][...].tolist() == [1, 2, 3]  # type: ignore[index]
    assert "a/x" not in stash.open_group(driver)
    group.consolidate()
    group.copy("b", "d")
    assert stash.open_group(driver)["d/c/y"][...].tolist() == [1, 2, 3]  # type: ignore[index]
    with pytest.raises(AlreadyExists):
        group.rename("b", "d")
    group.rename("b", "d", overwrite=True)
    assert group.keys() == ["a", "d", "empty", "raw", "time"]


def test_what_is_refused_changes_nothing(driver: Driver) -> None:
    group = populated(driver)
    rows_of: dict[str, bytes] = {}
    rows(rows_of)
    for key, value in rows_of.items():
        driver.put("runs/" + key, value)
    before = stored(driver)
    for old, new in (("raw", "raw/in"), ("raw", "raw"), ("raw", "time/in")):
        for call in (group.rename, group.copy):
            with pytest.raises((Invalid, AlreadyExists)):
                call(old, new)
    for call in (group.rename, group.copy):
        with pytest.raises(NotFound):
            call("no", "other")
        with pytest.raises(Invalid):
            call("raw", "runs/x/deep")
        with pytest.raises(ReadOnly):
            getattr(stash.open_group(driver), call.__name__)("raw", "other")
    with pytest.raises(Invalid, match=r"drop_field\(\)"):
        group.rename("runs/x", "x")
    assert stored(driver) == before
