"""A loader inside an IterableDataset: workers share the rows out, or are told to."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

import tensorstash as stash
from tensorstash.errors import Invalid
from tensorstash.torch import Loader, ShuffleBatchSampler
from tests.torch.worker_ends import collect_left_workers

ROWS = 120

pytestmark = [
    pytest.mark.usefixtures("quick_end"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class Stream(IterableDataset[Any]):
    """Batches of a loader that is made in the worker (``how``), or was before."""

    def __init__(self, records: Any, how: str, rank: int = 0, world: int = 1) -> None:
        self.records, self.how, self.rank, self.world = records, how, rank, world
        self.loader = Loader(records, 5, shuffle=True) if how == "made before" else None
        self.begun = iter(records.iter_batches(5)) if how == "begun before" else None

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        ranks = {"rank": self.rank, "world_size": self.world}
        if self.how == "ranks" and info is not None:
            ranks["rank"] = self.rank * info.num_workers + info.id
            ranks["world_size"] = self.world * info.num_workers
        if self.how == "sampler":
            return iter(ShuffleBatchSampler(self.records, 5))
        if self.how == "iter_batches":
            return iter(self.records.iter_batches(5, shuffle=True))
        return iter(self.begun or self.loader or Loader(self.records, 5, shuffle=True, **ranks))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place: Path = tmp_path_factory.mktemp("workers") / "r"
    return stash.save_records(place, {"id": np.arange(ROWS)}, rows_per_chunk=8)


def ids(loader: Any) -> list[int]:
    return [i for batch in loader for i in (batch if isinstance(batch, list) else batch["id"])]


EVERY = ("made in the worker", "made before", "begun before", "iter_batches", "sampler")


@pytest.mark.parametrize("how", EVERY)
@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
def test_a_loader_that_gives_each_worker_every_row_is_refused(
    records: Any, how: str, kind: Any
) -> None:
    with pytest.raises(Invalid, match="each of 2 workers iterates the IterableDataset"):
        ids(kind(Stream(records, how), batch_size=None, num_workers=2))


@pytest.mark.parametrize("how", [*EVERY, "ranks"])
@pytest.mark.parametrize("workers", [0, 1])
def test_alone_it_gives_each_row_once(records: Any, how: str, workers: int) -> None:
    found = ids(DataLoader(Stream(records, how), batch_size=None, num_workers=workers))
    assert sorted(map(int, found)) == list(range(ROWS))


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (1, 4), (2, 2), (3, 2)])
def test_workers_as_ranks(records: Any, world: int, workers: int) -> None:
    found: list[int] = []
    for rank in range(world):
        stream = Stream(records, "ranks", rank, world)
        found += map(int, ids(DataLoader(stream, batch_size=None, num_workers=workers)))
    assert sorted(found) == list(range(ROWS))
    # Ranks that leave their workers out are refused: some worker of each sees it.
    for rank in range(world):
        with pytest.raises(Invalid, match=f"of rank {rank} of {world}"):
            stream = Stream(records, "made in the worker", rank, world)
            ids(DataLoader(stream, batch_size=None, num_workers=workers))


def test_workers_that_an_error_leaves_are_collected_in_the_main_thread(records: Any) -> None:
    before = multiprocessing.active_children()
    gc.disable()
    try:
        with pytest.raises(Invalid):
            ids(DataLoader(Stream(records, "sampler"), batch_size=None, num_workers=2))
        assert len(multiprocessing.active_children()) == len(before) + 2
        collect_left_workers()
        assert len(multiprocessing.active_children()) == len(before)
    finally:
        gc.enable()
