"""Reads of several windows look at the document last, and at one that says what is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import held
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Conflict, Corrupt
from tensorstash.metadata.node import layouts
from tensorstash.metadata.unfinished import claim
from tests.arrays.test_identity import STALE, places
from tests.support.far import FarDriver


class Between(FarDriver):
    """Does something after the window that a look travelled in, or when all else has waited."""

    do: Callable[[], Any] | None = None

    def get_many_tagged(self, requests: Any) -> Any:
        asked = [*requests]
        yield from super().get_many_tagged(iter(asked))
        if any(r.key == "zarr.json" and r.unless is not None for r in asked) and self.do:
            do, self.do = self.do, None
            do()


@pytest.mark.parametrize("at", [0, 20_001], ids=["stored", "later"])
@pytest.mark.parametrize("cache", [0, "1MiB"])
def test_shards_that_are_read_in_many_windows(at: int, cache: Any) -> None:
    """The look travels with the last of them: indices come first, and of the first shards nothing
    but those where nothing is stored."""
    driver = Between(MemoryDriver())
    made: Any = {"shape": (40_000,), "dtype": "i4", "chunks": (4,), "shards": (800,)}
    stash.create(driver, **made)[at:] = 1
    rows = [5, 800, 20_800, 39_000]
    for select in (slice(1, None, 800), rows, 39_000):
        old = stash.open(driver, cache=cache)

        def replace() -> None:
            stash.create(driver.driver, overwrite=True, **made)[:] = 2

        driver.do = replace
        try:
            found = old[select]
        except Conflict:
            assert driver.do is None
        else:
            assert 2 not in np.asarray(found)
        with pytest.raises(Conflict):
            old[5]
        driver.do = None
        stash.create(driver, overwrite=True, **made)[at:] = 1


class Behind(FarDriver):
    """Fields whose requests wait for the look, where that is asked for before them."""

    do: Callable[[], Any] | None = None

    def __init__(self) -> None:
        super().__init__(MemoryDriver())
        self.looked = threading.Event()

    def get_many_tagged(self, requests: Any) -> Any:
        todo = iter(requests)
        first = [request for _, request in zip("1", todo, strict=False)]
        if self.do and first and first[0].key != "zarr.json":
            self.looked.wait(0.1)
        asked = [*first, *todo]
        yield from super().get_many_tagged(iter(asked))
        if self.do and any(r.key == "zarr.json" and r.unless is not None for r in asked):
            do, self.do = self.do, None
            do()
            self.looked.set()


def test_fields_that_are_read_one_after_another_are_looked_at_last() -> None:
    def values(by: int) -> dict[str, Any]:
        return {"a": np.full(40, by), "t": [np.full(3, by) for _ in range(40)], "s": [f"{by}"] * 40}

    for names in (["a"], ["a", "t"], ["t"], ["a", "t", "s"]):
        driver = Behind()
        stash.save_records(driver, values(1), rows_per_chunk=8)
        old = stash.open_records(driver).select(*names)
        driver.do = lambda driver=driver: stash.save_records(driver.driver, values(2))
        try:
            found = old[:]
        except STALE:
            continue
        assert "2" not in "".join(map(str, found.values())), names
        assert driver.do is None  # it was looked at
        with pytest.raises(STALE):
            old[:]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["memory", "file", "far"])
@pytest.mark.parametrize("zarr_format", [3, 2])
@pytest.mark.parametrize("what", ["replace", "delete"])
def test_an_array_that_is_being_replaced(
    tmp_path: Path, which: int, zarr_format: Any, what: str
) -> None:
    place = places(tmp_path)[which]
    made: Any = {"shape": (10,), "dtype": "i4", "chunks": (4,), "zarr_format": zarr_format}
    old = stash.create(place, **made)
    old[:] = 1
    claim(old.driver, "", what, held, known=layouts({"": old.spec}))  # by who is killed
    uses: list[Callable[[], Any]] = [
        lambda: old[:],
        lambda: old.__setitem__(3, 2),
        lambda: old.append([1]),
        lambda: old.attrs.update(a=1),
        lambda: old.refresh(),
        lambda: list(old.iter_blocks()),
        lambda: old.info(),
    ]
    for use in uses:
        with pytest.raises(Conflict, match="replaced"):
            use()
    with pytest.raises(Corrupt, match="unfinished"):
        stash.open(place)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["memory", "file", "far"])
def test_what_is_told_of_an_array_is_not_of_another(tmp_path: Path, which: int) -> None:
    place = places(tmp_path)[which]
    old = stash.create(place, (10,), "i4", chunks=(4,))
    assert old.info().stored_chunks == 0
    stash.create(place, (4,), "i4", chunks=(4,), overwrite=True)[:] = 1
    with pytest.raises(Conflict):
        old.info()
