"""The loader's order in torch's own DataLoader, and in torchdata's StatefulDataLoader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

import tensorstash as stash
from tensorstash.errors import Invalid
from tensorstash.torch import ArrayDataset, Loader, ShuffleBatchSampler, ShuffleSampler

ROWS = 1000

# torchdata 0.11 calls a function that newer torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


class Rows(Dataset[Any]):
    """Returns numbers and lists of them, as records do."""

    def __init__(self, array: stash.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> Any:
        return torch.from_numpy(np.asarray(self.array[rows]))


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> stash.Array:
    folder: Path = tmp_path_factory.mktemp("samplers") / "x"
    return stash.save(folder, np.arange(ROWS), chunks=16)


OPTIONS: dict[str, Any] = {"lanes": 8, "pool": 16, "seed": 3}


def wanted(array: stash.Array, epoch: int = 0, batch: int = 20, **options: Any) -> list[list[int]]:
    loader = Loader(array, batch, shuffle=True, **OPTIONS, **options)
    loader.set_epoch(epoch)
    return [found.tolist() for found in loader]


def test_batches_are_the_loaders(array: stash.Array) -> None:
    sampler = ShuffleBatchSampler(array, 20, **OPTIONS)
    assert len(sampler) == 50
    for epoch in range(3):
        found = list(sampler)
        assert found == wanted(array, epoch)
        assert all(type(row) is int for batch in found for row in batch)
    sampler.set_epoch(1)
    assert list(sampler) == wanted(array, 1)
    assert sampler.quality()["blocks_per_batch"] > 10


def test_rows_are_the_loaders(array: stash.Array) -> None:
    sampler = ShuffleSampler(array, 20, **OPTIONS)
    assert len(sampler) == ROWS
    assert list(sampler) == [row for batch in wanted(array) for row in batch]
    exact = ShuffleSampler(array, shuffle="exact")
    assert sorted(exact) == list(range(ROWS))
    assert list(ShuffleSampler(array, shuffle=False)) == list(range(ROWS))


@pytest.mark.parametrize("workers", [0, 2])
def test_with_torchs_own_loader(array: stash.Array, workers: int) -> None:
    data = Rows(array)
    options: dict[str, Any] = {"num_workers": workers}
    batches = ShuffleBatchSampler(array, 20, **OPTIONS)
    rows = ShuffleSampler(array, 20, **OPTIONS)
    for loader in (
        DataLoader(data, batch_size=None, sampler=batches, **options),
        DataLoader(data, batch_sampler=ShuffleBatchSampler(data.array, 20, **OPTIONS), **options),
        DataLoader(ArrayDataset(array), batch_size=20, sampler=rows, **options),
        DataLoader(
            ArrayDataset(array),
            batch_sampler=ShuffleBatchSampler(ArrayDataset(array), 20, **OPTIONS),
            **options,
        ),
    ):
        assert len(loader) == 50
        for epoch in range(2):
            assert [batch.tolist() for batch in loader] == wanted(array, epoch)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks(array: stash.Array, world: int) -> None:
    options: dict[str, Any] = {"world_size": world, "drop_last": True}
    found: list[int] = []
    for rank in range(world):
        batches = ShuffleBatchSampler(array, 20, rank=rank, **OPTIONS, **options)
        rows = ShuffleSampler(array, 20, rank=rank, **OPTIONS, **options)
        mine = list(batches)
        assert mine == wanted(array, rank=rank, **options)
        assert list(rows) == [row for batch in mine for row in batch]
        assert len(rows) == 20 * len(batches) == 20 * len(mine)
        found += [row for batch in mine for row in batch]
    assert len(found) == len(set(found)) == ROWS - batches.dropped


# -- torchdata ---------------------------------------------------------------------------------


def stateful(array: stash.Array, how: str, workers: int, **options: Any) -> StatefulDataLoader:
    data: Any = Rows(array)
    if how == "batches":
        given: dict[str, Any] = {
            "batch_size": None,
            "sampler": ShuffleBatchSampler(array, 20, **OPTIONS),
        }
    elif how == "batch sampler":
        given = {"batch_sampler": ShuffleBatchSampler(array, 20, **OPTIONS)}
    else:
        given = {"batch_size": 20, "sampler": ShuffleSampler(array, 20, **OPTIONS)}
    return StatefulDataLoader(data, num_workers=workers, **given, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("how", ["batches", "batch sampler", "rows"])
def test_a_stateful_loader_resumes_in_mid_epoch(array: stash.Array, how: str, workers: int) -> None:
    loader = stateful(array, how, workers)
    first = iter(loader)
    found = [next(first).tolist() for _ in range(7)]
    state = loader.state_dict()
    rest = [batch.tolist() for batch in first]
    assert found + rest == wanted(array)
    again = stateful(array, how, workers)
    again.load_state_dict(state)
    assert [batch.tolist() for batch in again] == rest
    assert [batch.tolist() for batch in again] == wanted(array, 1)
    assert [batch.tolist() for batch in loader] == wanted(array, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_after_an_epochs_end(array: stash.Array, workers: int) -> None:
    loader = stateful(array, "batches", workers)
    assert [batch.tolist() for batch in loader] == wanted(array)
    again = stateful(array, "batches", workers)
    again.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in again] == wanted(array, 1)
    assert [batch.tolist() for batch in again] == wanted(array, 2)


def test_a_state_asked_for_before_the_first_batch_loses_none(array: stash.Array) -> None:
    loader = stateful(array, "batches", 0)
    state = loader.state_dict()
    assert [batch.tolist() for batch in loader] == wanted(array)
    loader.load_state_dict(state)
    assert [batch.tolist() for batch in loader] == wanted(array)


def test_workers_that_stay(array: stash.Array) -> None:
    loader = stateful(array, "batches", 2, persistent_workers=True)
    for epoch in range(2):
        assert [batch.tolist() for batch in loader] == wanted(array, epoch)


# -- states of the samplers themselves ---------------------------------------------------------


def test_states_are_those_of_the_loader(array: stash.Array) -> None:
    sampler = ShuffleBatchSampler(array, 20, **OPTIONS)
    batches = iter(sampler)
    found = [next(batches) for _ in range(3)]
    state = json.loads(json.dumps(sampler.state_dict()))
    loader = Loader(array, 50, shuffle=True, **OPTIONS)
    loader.load_state_dict(state)
    rest = [row for batch in loader for row in batch.tolist()]
    assert sorted([row for batch in found for row in batch] + rest) == list(range(ROWS))


def test_a_state_within_a_batch(array: stash.Array) -> None:
    alone = ShuffleSampler(array, 20, **OPTIONS)
    rows = iter(alone)
    found = [next(rows) for _ in range(33)]
    again = ShuffleSampler(array, 20, **OPTIONS)
    again.load_state_dict(alone.state_dict())
    assert sorted(found + list(again)) == list(range(ROWS))
    # Of several ranks, what a rank has of a batch is no run of positions.
    one = ShuffleSampler(array, 20, rank=0, world_size=2, **OPTIONS)
    rows = iter(one)
    for _ in range(20):
        next(rows)
    assert one.state_dict()["position"] == 40
    next(rows)
    with pytest.raises(Invalid, match="of several ranks there is a state only between batches"):
        one.state_dict()
    one.set_epoch(3)
    assert one.state_dict()["epoch"] == 3


def test_iterators_that_are_never_used_begin_nothing(array: stash.Array) -> None:
    sampler = ShuffleBatchSampler(array, 20, **OPTIONS)
    for _ in range(3):
        iter(sampler)
    assert list(sampler) == wanted(array)


def test_what_has_no_rows_is_refused(array: stash.Array) -> None:
    with pytest.raises(Invalid, match="has no rows to load"):
        ShuffleSampler(7)
    with pytest.raises(Invalid, match="batch_size is a whole number from 1 on"):
        ShuffleBatchSampler(array, 0)
