"""Records through the loader: every kind of field, views, and what is read of what is stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid
from tensorstash.loading.loader import BatchLoader
from tensorstash.sources.arrays import as_source
from tensorstash.torch import Batch, Loader, ShuffleBatchSampler, Windows, mix
from tests.support.far import FarDriver
from tests.support.noting import Noting

ROWS = 700


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Any:
    numbers = np.arange(ROWS)
    made = stash.create_records(
        tmp_path_factory.mktemp("loader") / "records",
        {
            "image": ((64, 64), "uint8"),
            "label": ((), "int64"),
            "half": ((2,), "bfloat16"),
            "next": {"obs": ((3,), "float32")},
            "tokens": stash.ragged("int32"),
            "boxes": stash.ragged("float32", 2),
            "caption": str,
            "meta": stash.json,
            "blob": bytes,
        },
        rows_per_chunk=16,
    )
    made.extend(
        [
            {
                "image": np.full((64, 64), i % 256, "uint8"),
                "label": i,
                "half": torch.full((2,), float(i % 100), dtype=torch.bfloat16),
                "next": {"obs": np.full(3, i, "float32")},
                "tokens": np.arange(i % 9, dtype="int32") + i,
                "boxes": np.full((i % 3, 4), i, "float32"),
                "caption": f"row {i}",
                "meta": {"i": i},
                "blob": bytes([i % 256]) * (i % 5),
            }
            for i in numbers.tolist()
        ]
    )
    return made


def check(batch: Batch) -> list[int]:
    labels: list[int] = batch["label"].tolist()
    tokens = batch["tokens"]
    tokens = list(tokens) if isinstance(tokens, list) else list(tokens.unbind())
    assert batch["half"].dtype is torch.bfloat16
    for k, i in enumerate(labels):
        assert batch["image"][k].unique().tolist() == [i % 256]
        assert batch["half"][k].tolist() == [i % 100] * 2
        assert batch["next"]["obs"][k].tolist() == [i] * 3
        assert tokens[k].tolist() == list(range(i, i + i % 9))
        assert batch["boxes"][k].shape == (i % 3, 4)
        assert batch["caption"][k] == f"row {i}"
        assert batch["meta"][k] == {"i": i}
        assert batch["blob"][k] == bytes([i % 256]) * (i % 5)
    return labels


@pytest.mark.parametrize("shuffle", [False, True, "exact"])
def test_every_kind_of_field(records: Any, shuffle: Any) -> None:
    for view in (records, records.with_format("torch"), records.ragged_as("jagged")):
        loader = Loader(view, 33, shuffle=shuffle, lanes=8, pool=16)
        batches = list(loader)
        assert all(isinstance(batch, Batch) for batch in batches)
        assert sorted(row for batch in batches for row in check(batch)) == list(range(ROWS))
    assert batches[0]["tokens"].layout is torch.jagged
    (padded,) = Loader(records.ragged_as("padded").select("tokens"), ROWS)
    assert padded["tokens"].shape == (ROWS, 8)


def test_formats_and_transforms_are_the_views(records: Any) -> None:
    batch = next(iter(Loader(records.select("label").with_format("numpy"), 10)))
    assert type(batch["label"]) is np.ndarray
    rows = next(iter(Loader(records.select("label", "meta").with_format("python"), 10)))
    assert rows[3] == {"label": 3, "meta": {"i": 3}}
    view = records.select("label").with_transform(lambda columns: columns["label"] * 2)
    assert torch.equal(next(iter(Loader(view, 4))), torch.tensor([0, 2, 4, 6]))
    twice = Loader(records.select("label"), 4, transform=lambda batch: batch["label"] * 2)
    assert torch.equal(next(iter(twice)), torch.tensor([0, 2, 4, 6]))


def test_views_of_some_rows(records: Any) -> None:
    some = records.select("label").where(np.arange(ROWS) % 3 == 1)
    for shuffle in (False, True, "exact"):
        found = [i for batch in Loader(some, 20, shuffle=shuffle) for i in batch["label"].tolist()]
        assert sorted(found) == list(range(1, ROWS, 3))
    parts = records.select("label").split({"train": 0.8, "test": 0.2}, seed=1)
    found = [
        i
        for part in parts.values()
        for batch in Loader(part, 20, shuffle=True)
        for i in batch["label"].tolist()
    ]
    assert sorted(found) == list(range(ROWS))
    state = Loader(records.split({"train": 0.8, "test": 0.2}, seed=1)["train"], 20).state_dict()
    other = records.split({"train": 0.8, "test": 0.2}, seed=2)["train"]
    with pytest.raises(Invalid, match="the state is of other data"):
        Loader(other, 20).load_state_dict(state)


@pytest.mark.parametrize("far", [False, True])
def test_an_epoch_reads_every_chunk_once(far: bool) -> None:
    driver = Noting(FarDriver() if far else MemoryDriver())
    schema = {"image": ((32, 32), "uint8"), "label": ((), "int64")}
    made = stash.create_records(driver, schema, rows_per_chunk=8)
    images = np.arange(500, dtype="uint8")[:, None, None].repeat(32, 1).repeat(32, 2)
    made.extend({"image": images, "label": np.arange(500)})
    view = stash.open_records(driver).select("image")
    driver.reset()
    loader = Loader(view, 32, shuffle=True, lanes=8, pool=16)
    found = torch.cat([batch["image"][:, 0, 0] for batch in loader])
    assert sorted(found.tolist()) == sorted(images[:, 0, 0].tolist())
    chunks = [key for key in driver.read if "/c/" in key]
    assert len(chunks) == len(set(chunks)) == loader.quality()["blocks"] > 10
    assert not [key for key in chunks if "label" in key]


def test_columns_without_collate_and_resumed_in_workers(records: Any) -> None:
    view = records.select("label", "next/obs").with_format("torch")

    def loader() -> Any:
        sampler = ShuffleBatchSampler(view, 32, lanes=8, pool=16)
        return DataLoader(view, batch_size=None, sampler=sampler, num_workers=2)

    found = [i for batch in loader() for i in batch["label"].tolist()]
    assert sorted(found) == list(range(ROWS))
    wanted = [i for b in Loader(view, 32, shuffle=True, lanes=8, pool=16) for i in b["label"]]
    assert found == [int(i) for i in wanted]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_stateful_loader_of_records(records: Any) -> None:
    view = records.select("label")

    def loader(workers: int) -> Any:
        sampler = ShuffleBatchSampler(view, 32, lanes=8, pool=16)
        return StatefulDataLoader(view, batch_sampler=sampler, num_workers=workers)

    first = loader(2)
    batches = iter(first)
    found = [i for _ in range(5) for i in next(batches)["label"].tolist()]
    state = first.state_dict()
    again = loader(2)
    again.load_state_dict(state)
    found += [i for batch in again for i in batch["label"].tolist()]
    assert sorted(found) == list(range(ROWS))


def test_windows_and_mixtures_of_records(records: Any) -> None:
    view = records.select("label")
    windows = Windows(view, 8, 4)
    starts = []
    for batch in Loader(windows, 16, shuffle=True, lanes=4, pool=8):
        assert torch.equal(batch["label"], batch["label"][:, :1] + torch.arange(8))
        starts += batch["label"][:, 0].tolist()
    assert sorted(starts) == list(range(0, ROWS - 7, 4))
    mixed = mix({"a": view.where(np.arange(ROWS) < 300), "b": view}, {"a": 1, "b": 2}, seed=3)
    loader = Loader(mixed, 15, shuffle=True)
    batches = iter(loader)
    found = [i for _ in range(7) for i in next(batches)["label"].tolist()]
    state = json.loads(json.dumps(loader.state_dict()))
    rest = [i for batch in batches for i in batch["label"].tolist()]
    again = Loader(mixed, 10, shuffle=True)
    again.load_state_dict(state)
    assert sorted(i for batch in again for i in batch["label"].tolist()) == sorted(rest)
    assert len(found) + len(rest) == len(mixed)


def test_blocks_are_read_in_few_calls_more_and_more_at_a_time() -> None:
    """Each costs Python a fraction of a millisecond, and decoding a block less."""
    r = stash.create_records({}, {"x": ((1024,), "uint8"), "y": "int64"}, 0)
    x = np.random.default_rng(0).integers(0, 9, (4096, 1024), dtype=np.uint8)
    r.extend({"x": x, "y": np.arange(4096)})
    rows = 512  # of a block
    for source in (as_source(r), as_source((r["x"], r["y"]))):
        loader = BatchLoader(source, 64, shuffle=True, prefetch=0)
        inner, calls = loader.source, []
        take = inner.take_into

        def counted(rows: Any, out: Any, take: Any = take, calls: list[int] = calls) -> Any:
            calls.append(len(rows))
            return take(rows, out)

        patched = type(inner)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patched, "take_into", lambda self, *given: counted(*given))
            seen = [batch["y"] if isinstance(batch, dict) else batch[1] for batch in loader]
            assert sorted(np.concatenate(seen).tolist()) == list(range(4096))
        assert sum(calls) >= 4096 - rows  # but the first block
        assert len(calls) <= 4
