"""Arrays of which little is stored: who walks over them pays for what is stored."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine.stored import ascending
from tensorstash.errors import DriverError, NotFound
from tensorstash.testing.counting import CountingDriver

pytestmark = pytest.mark.usefixtures("both_paths")

SIDE = 1 << 20  # a grid of 2**40 cells, which no walk comes to the end of


def sparse(driver: Any, **options: Any) -> stash.Array:
    a = stash.create(driver, (SIDE * 4, SIDE * 4), "int32", chunks=(4, 4), **options)
    for i in 5, 77_777, 4_000_000:
        a[i, 3 * i % SIDE] = i
    return a


def same(one: stash.Array, other: stash.Array) -> bool:
    return all(
        one[i - 4 : i + 4, 3 * i % SIDE].tolist() == other[i - 4 : i + 4, 3 * i % SIDE].tolist()
        for i in (5, 77_777, 4_000_000)
    )


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"shards": (16, 16)}], ids=str)
@pytest.mark.parametrize("changes", [{}, {"chunks": (8, 2)}, {"chunks": (3, 5)}], ids=str)
def test_a_copy_costs_what_is_stored(
    options: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    if "shards" in options and changes == {"chunks": (3, 5)}:
        changes = {"chunks": (3, 5), "shards": (6, 5)}
    source, target = CountingDriver(FileDriver(tmp_path / "a")), CountingDriver(MemoryDriver())
    a = sparse(source, **options)
    source.reset()
    b = stash.copy(a, target, **changes)
    assert same(a, b)
    assert source.reads.keys + source.counts["list"].keys < 100
    assert target.counts["delete"].keys <= 1  # v2: the mark of what is not whole
    assert b.info().stored_chunks <= 12


def test_a_copy_of_little_of_a_small_grid_deletes_nothing() -> None:
    target = CountingDriver(MemoryDriver())
    a = stash.create({}, (1000,), "int32", chunks=(1,))
    a[7] = 1
    stash.copy(a, target)
    assert target.counts["delete"].keys == 0


def test_a_copy_to_another_fill_value_has_all_of_it() -> None:
    a = stash.create({}, (5000,), "int32", chunks=(2,))
    a[7] = 1
    b = stash.copy(a, {}, fill_value=9)
    np.testing.assert_array_equal(a[...], b[...])
    c = stash.copy(a, {}, dtype="float64")
    np.testing.assert_array_equal(a[...], c[...])


def test_a_copy_asks_for_every_chunk_where_missing_ones_are_errors(tmp_path: Path) -> None:
    stash.create(str(tmp_path / "a"), (5000,), "int32", chunks=(2,))[7] = 1
    with pytest.raises(NotFound):
        stash.copy(stash.open(str(tmp_path / "a"), missing="raise"), {})


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"shards": (16, 16)}], ids=str)
def test_blocks_that_are_stored_in_order(options: dict[str, Any], tmp_path: Path) -> None:
    driver = CountingDriver(FileDriver(tmp_path / "a"))
    a = sparse(driver, **options)
    driver.reset()
    places = []
    for where, block in a.iter_blocks():
        np.testing.assert_array_equal(a[where], block)
        assert block.any()
        places.append(tuple(part.start for part in where))
    assert len(places) == 3
    assert places == sorted(places)
    assert driver.counts["list"].calls == 1
    inner = [where for where, _ in a.iter_blocks(np.s_[6:80_000, :400_000])]
    assert len(inner) == 2


def test_links_that_lead_nowhere_are_not_left_out(tmp_path: Path) -> None:
    """As those of git-annex, until their files are fetched."""
    a = stash.create(str(tmp_path / "a"), (5000,), "int32", chunks=(1,))
    a[7] = 1
    (tmp_path / "a/c/9").symlink_to("nowhere")
    with pytest.raises(DriverError):
        stash.copy(a, {})
    with pytest.raises(DriverError):
        list(a.iter_blocks())


def test_blocks_with_those_that_are_absent() -> None:
    a = stash.create({}, (10,), "int32", chunks=(4,))
    a[5] = 1
    assert [w for w, _ in a.iter_blocks()] == [(slice(4, 8),)]
    assert [b.tolist() for _, b in a.iter_blocks(absent=True)] == [[0] * 4, [0, 1, 0, 0], [0, 0]]
    with pytest.raises(NotFound):
        list(stash.open(a.driver, missing="raise").iter_blocks())
    scalar = stash.create({}, (), "int32")
    assert [*scalar.iter_blocks()] == []
    scalar[...] = 3
    assert [(w, b.tolist()) for w, b in scalar.iter_blocks()] == [((), 3)]


class Unlisted(MemoryDriver):
    """As a web server."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = self.capabilities.__class__(shared=False, local=True, lists=False)


def test_where_nothing_is_listed_each_chunk_is_asked_for() -> None:
    a = stash.create(Unlisted(), (100,), "int32", chunks=(1,))
    a[50] = 1
    assert [w for w, _ in a.iter_blocks()] == [(slice(50, 51),)]
    assert stash.copy(a, {})[50] == 1


def test_info_counts_in_constant_memory_and_not_what_was_left_behind(tmp_path: Path) -> None:
    a = sparse(str(tmp_path / "a"))
    assert (a.info().stored_chunks, a.info().total_chunks) == (3, SIDE * SIDE)
    b = stash.create({}, (10,), "int32", chunks=(1,))
    b[...] = 1
    b.driver.put("c/10", b"left by an append that failed")
    assert b.info().stored_chunks == 10


def test_blocks_begin_at_once_and_in_little_memory() -> None:
    a = stash.create({}, (1 << 22,), "int8", chunks=(1,))
    a[1 << 21] = 1
    tracemalloc.start()
    try:
        assert len([*a.iter_blocks()]) == 1
        assert next(a.iter_blocks(absent=True))[1].tolist() == [0]
        stash.copy(a, {})
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(0, 10**20), max_size=60), st.integers(1, 8))
def test_numbers_in_order_from_several_passes(numbers: list[int], window: int) -> None:
    assert [*ascending(lambda: iter(numbers), window)] == sorted(set(numbers))


@settings(deadline=None)
@given(st.data())
def test_blocks_and_copies_against_the_grid(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    edges = st.tuples(*(st.integers(1, 7) for _ in shape))
    a = stash.create({}, shape, "int16", chunks=data.draw(edges))
    for _ in range(data.draw(st.integers(0, 4))):
        a[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] = data.draw(st.integers(1, 9))
    box = tuple(
        slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape
    )
    found = [(w, b.tolist()) for w, b in a.iter_blocks(box)]
    whole = [(w, b.tolist()) for w, b in a.iter_blocks(box, absent=True)]
    stored = [index for index in found if index in whole]
    assert stored == found == sorted(found, key=lambda pair: [part.start for part in pair[0]])
    assert [pair for pair in whole if np.any(pair[1])] == [p for p in found if np.any(p[1])]
    from tensorstash.trees import rewriting

    few, rewriting._FEW = rewriting._FEW, 0
    try:
        b = stash.copy(a, {}, chunks=data.draw(edges))
    finally:
        rewriting._FEW = few
    np.testing.assert_array_equal(a[...], b[...])
