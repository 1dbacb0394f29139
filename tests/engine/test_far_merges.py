"""Parts of many chunks written far away: read in one window, put in another, nothing lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Buffer, Put, Request, Tag
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Corrupt
from tensorstash.testing.driver_races import in_threads
from tests.support.far import FarDriver
from tests.support.oracle import same

MODEL = np.arange(1, 33 * 20 + 1, dtype="i4").reshape(33, 20)


class Batched(FarDriver):
    """Counts its windows; ``between`` runs after one was read and before it is put."""

    def __init__(self, driver: Any = None) -> None:
        super().__init__(driver)
        self.windows: list[str] = []
        self.between: Callable[[], None] = lambda: None

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        self.windows.append("get")
        return super().get_many_tagged(requests)

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        self.windows.append("put")
        between, self.between = self.between, lambda: None
        between()
        return super().put_each(puts)


def filled(**how: Any) -> tuple[stash.Array, Batched]:
    driver = Batched()
    stash.create(driver, MODEL.shape, "i4", chunks=(4, 5), **how)[...] = MODEL
    driver.reset()
    driver.windows.clear()
    return stash.open(driver, "r+"), driver


def test_many_parts_cost_two_windows() -> None:
    array, driver = filled()
    driver.reset()
    driver.windows.clear()
    model = MODEL.copy()
    for index in (np.s_[:, 3], np.s_[[1, 9, 30]], np.s_[::3, ::7]):
        driver.windows.clear()
        array[index] = model[index] = -model[index]
        assert driver.windows == ["get", "put"]
    same(stash.load(driver), model)


def test_one_part_costs_no_window() -> None:
    array, driver = filled()
    driver.reset()
    array[1, 1] = -5
    look = ("get", "zarr.json")  # is it this array still? With the chunk
    assert driver.sent == [("get", "c/0/0"), look, ("put", "c/0/0")]


@pytest.mark.parametrize("rival", ["change", "delete", "create"])
def test_what_another_writer_did_between_the_windows_is_kept(rival: str) -> None:
    array, driver = filled()
    if rival == "create":
        driver.driver.delete("c/0/0")
    other = stash.open(driver.driver, "r+")

    def between() -> None:
        if rival == "delete":
            driver.driver.delete("c/0/0")
        else:
            other[0, 0] = -77

    wanted = stash.load(driver.driver)
    driver.between = between
    array[3] = wanted[3] = np.arange(20)
    if rival == "delete":
        wanted[:4, :5] = 0
        wanted[3] = np.arange(20)
    else:
        wanted[0, 0] = -77
    same(stash.load(driver), wanted)


def test_threads_lose_nothing_of_each_others() -> None:
    _, driver = filled()

    def work(k: int) -> None:
        array = stash.open(driver, "r+")
        for row in range(k, 33, 4):
            array[row] = np.full(20, row * 10)

    in_threads(4, work)
    same(stash.load(driver), np.repeat(np.arange(33, dtype="i4")[:, None] * 10, 20, 1))


def test_without_conditions_it_is_put_all_the_same() -> None:
    from dataclasses import replace

    array, driver = filled()
    driver.capabilities = replace(driver.capabilities, conditional_put=False)
    model = MODEL.copy()
    array[:, 3] = model[:, 3] = 0
    same(stash.load(driver), model)


def test_parts_of_nothing_but_fill_store_nothing() -> None:
    driver = Batched(MemoryDriver())
    array = stash.create(driver, MODEL.shape, "i4", chunks=(4, 5))
    array[:, 3] = 0
    array[:32, :3] = 0
    assert [*driver.driver.list("c/")] == []
    array[...] = 0
    assert [*driver.driver.list("c/")] == []


def test_damage_in_a_batch_names_its_chunk_and_a_covering_write_repairs_it() -> None:
    array, driver = filled(codecs="zstd")
    for key in ("c/1/1", "c/8/1"):
        driver.driver.put(key, b"damaged")
    with pytest.raises(Corrupt, match=r"chunk \(1, 1\) at key 'c/1/1'"):
        array[:8, 7] = 1
    with pytest.raises(Corrupt, match="c/8/1"):
        array[32, 7:] = 1
    array[...] = MODEL
    same(stash.load(driver), MODEL)


def test_parts_of_many_shards_cost_two_windows_and_whole_shards_one_batch() -> None:
    model = np.random.default_rng(0).integers(0, 99, (64, 64))
    driver = Batched()
    stash.create(driver, model.shape, model.dtype, chunks=(4, 4), shards=(8, 8))[...] = model
    array = stash.open(driver, "r+")
    driver.windows.clear()
    driver.reset()
    array[::3] = model[::3] = -model[::3]
    assert driver.windows == ["get", "put"]
    driver.reset()
    array[8:24] = model[8:24] = 7
    assert driver.sent[0] == ("get", "zarr.json")
    assert [verb for verb, _ in driver.sent[1:]] == ["put"] * 16 and driver.most == 8
    same(stash.load(driver), model)
