"""The loader: what can be loaded, what batches are, ranks, pinning, and what it says of itself."""

from __future__ import annotations

import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tensorstash as stash
from tensorstash.columns import Columns, Ragged
from tensorstash.errors import Invalid, NotFound
from tensorstash.torch import (
    ArrayDataset,
    Batch,
    Loader,
    Patches,
    ShuffleBatchSampler,
    Windows,
    mix,
)
from tests.support.counted import Counted, check_batch

ROWS = 1000


class Nested(Counted):
    """Presented as records are: text, ragged rows and fields within fields."""

    def made(self, rows: Any, out: Any) -> Columns:
        found = super().made(rows, out)
        found["next/row"] = np.asarray(rows) + 1
        found["half"] = np.asarray(rows).astype(ml_dtypes.bfloat16)
        return found

    def present(self, columns: Columns) -> Any:
        nested = {"/".join(k.split("/")[1:]): columns[k] for k in columns if "/" in k}
        return {**{k: v for k, v in columns.items() if "/" not in k}, "next": nested}


def test_batches_are_tensors_by_name() -> None:
    loader = Loader(Nested(ROWS, plain=False), 64, shuffle=True)
    batches = list(loader)
    assert len(batches) == len(loader) == 16
    for batch in batches:
        assert isinstance(batch, Batch)
        assert isinstance(batch["next"], Batch)
        assert batch["row"].dtype is torch.int64
        assert batch["image"].dtype is torch.uint16
        assert batch["half"].dtype is torch.bfloat16
        assert torch.equal(batch["next"]["row"], batch["row"] + 1)
        assert all(type(text) is str for text in batch["text"])
        assert batch["tokens"].layout is torch.jagged
        assert isinstance(batch["boxes"], list)
        plain = {
            **batch,
            "row": batch["row"].numpy(),
            "image": batch["image"].numpy(),
            "text": np.array(batch["text"], np.dtypes.StringDType()),
            "tokens": Ragged.of(batch["tokens"].unbind(), np.dtype("int32")),
            "boxes": Ragged.of(batch["boxes"], np.dtype("float32"), 2),
        }
        check_batch(plain)
    assert sorted(torch.cat([b["row"] for b in batches]).tolist()) == list(range(ROWS))


def test_a_transform_gets_batches_one_after_another_in_the_background() -> None:
    names = set()

    def transform(batch: Batch) -> Any:
        names.add(threading.current_thread().name)
        return batch["image"].float().mean(), batch["row"]

    found = [row for _, rows in Loader(Counted(ROWS), 10, transform=transform) for row in rows]
    assert [int(row) for row in found] == list(range(ROWS))
    assert names == {"tensorstash-feed"}
    list(Loader(Counted(20), 10, transform=transform, prefetch=0))
    assert threading.current_thread().name in names


def test_a_chosen_format_is_kept() -> None:
    source = Counted(20)
    source.format = "numpy"  # type: ignore[attr-defined]
    for batch in Loader(source, 10):
        assert type(batch["row"]) is np.ndarray
        assert type(batch) is dict


# -- what can be loaded ------------------------------------------------------------------------


def test_arrays_tensors_tuples_and_dicts(tmp_path: Path) -> None:
    x = np.arange(300.0).reshape(100, 3)
    y = torch.arange(100)
    stored = stash.save(tmp_path / "x", x, chunks=(7, 3))
    for given in (x, torch.from_numpy(x), stored, stored.lazy[:], ArrayDataset(stored)):
        batches = list(Loader(given, 13, shuffle=True))
        assert torch.equal(torch.cat(batches).sort(dim=0).values, torch.from_numpy(x))
    for given in ((stored, y), (x, y), ArrayDataset(stored, y)):
        for rows, numbers in Loader(given, 13, shuffle=True):
            assert torch.equal(rows, torch.from_numpy(x)[numbers])
    names = np.array([f"n{i}" for i in range(100)], np.dtypes.StringDType())
    for batch in Loader({"x": stored, "y": y, "name": names}, 13, shuffle="exact"):
        assert list(batch) == ["x", "y", "name"]
        assert torch.equal(batch["x"], torch.from_numpy(x)[batch["y"]])
        assert batch["name"] == [f"n{i}" for i in batch["y"].tolist()]


def test_stored_arrays_are_read_by_their_chunks(tmp_path: Path) -> None:
    x = np.arange(64 * 100).reshape(64 * 10, 10)
    array = stash.save(tmp_path / "x", x, chunks=(32, 10))
    loader = Loader(array, 20, shuffle=True, lanes=4, pool=8)
    assert loader.quality()["blocks"] == 20
    before = array.stats.chunks
    found = torch.cat(list(loader))
    assert torch.equal(found[found[:, 0].argsort()], torch.from_numpy(x))
    assert array.stats.chunks - before == 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "3 has no rows to load: give records, an array, or a tuple or dict of arrays"),
        ((), "rows need at least one array"),
        ({}, "rows need at least one array"),
        ((np.zeros(3), np.zeros(4)), "the arrays have different lengths: {'0': 3, '1': 4}"),
        (np.zeros(()), "array '0' has no axis"),
        ({"a": [1, 2]}, "array 'a' is [1, 2]: give an array, a tensor or a stored one"),
        (ArrayDataset(np.zeros(3), transform=print), "the transform of an ArrayDataset gets rows"),
    ],
)
def test_what_cannot_be_loaded(given: Any, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        Loader(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_vanishes_in_mid_epoch(tmp_path: Path) -> None:
    stash.save(tmp_path / "x", np.ones((2000, 1 << 13)), chunks=(10, 1 << 13))
    array = stash.open(tmp_path / "x", missing="raise")
    loader = Loader(array, 10, shuffle=True, lanes=4, pool=4)
    batches = iter(loader)
    first = [next(batches) for _ in range(3)]
    shutil.rmtree(tmp_path / "x" / "c")
    with pytest.raises(NotFound, match="c/"):
        list(batches)
    assert loader.state_dict()["position"] >= 10 * len(first)


# -- ranks -------------------------------------------------------------------------------------


def test_ranks_are_those_of_torch_distributed(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_rank", lambda: 2)
            patch.setattr(torch.distributed, "get_world_size", lambda: 4)
            loader = Loader(Counted(ROWS), 10, drop_last=True)
            assert (loader.rank, loader.world_size, len(loader)) == (2, 4, 25)
            assert Loader(Counted(ROWS), rank=0, world_size=1).world_size == 1
    finally:
        torch.distributed.destroy_process_group()
    assert Loader(Counted(ROWS)).world_size == 1
    with pytest.raises(Invalid, match="rank and world_size belong together"):
        Loader(Counted(ROWS), rank=1)


def test_ranks_have_equal_work() -> None:
    loaders = [Loader(Counted(103), 10, shuffle=True, rank=r, world_size=4) for r in range(4)]
    every = []
    for loader in loaders:
        assert (loader.padded, loader.dropped, len(loader)) == (1, 0, 3)
        with pytest.warns(UserWarning, match="1 of 103 rows comes twice"):
            every.append([batch["row"].tolist() for batch in loader])
    assert [[len(b) for b in batches] for batches in every] == [[10, 10, 6]] * 4
    assert {row for batches in every for batch in batches for row in batch} == set(range(103))
    # The row that comes twice is the epoch's first.
    alone = next(iter(Loader(Counted(103), 40, shuffle=True, lanes=64)))["row"].tolist()
    last = [row for batches in every for row in batches[-1]]
    assert len({*last} & {*alone}) == 1


# -- pinning -----------------------------------------------------------------------------------


def test_without_an_accelerator_nothing_is_pinned() -> None:
    with pytest.warns(UserWarning, match="pin_memory needs an accelerator"):
        loader = Loader(Counted(20), 10, pin_memory=True)
    assert not next(iter(loader))["row"].is_pinned()


def test_pinning_happens_in_the_background_on_this_rank_s_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: dict[str, list[int]] = {}
    pinned = []

    def choose(device: int) -> None:
        devices.setdefault(threading.current_thread().name, []).append(device)

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(threading.current_thread().name)
        return tensor

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "set_device_index", choose)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batches = list(Loader(Counted(50), 10, pin_memory=True))
    assert len(batches) == 5
    assert devices == {"tensorstash-feed": [3]}
    assert pinned == ["tensorstash-feed"] * 10


# -- what it says of itself --------------------------------------------------------------------


def test_quality_is_that_of_the_order() -> None:
    loader = Loader(Counted(64 * 1024, 64), 256, shuffle=True, pool=256)
    quality = loader.quality()
    assert quality == {
        "order": "pooled",
        "blocks": 1024,
        "lanes": 64,
        "pool": 256,
        "pool_wanted": 256,
        "cut_by_budget": False,
        "blocks_per_batch": quality["blocks_per_batch"],
        "blocks_per_batch_min": quality["blocks_per_batch_min"],
        "blocks_per_batch_random": quality["blocks_per_batch_random"],
        "inflation": quality["inflation"],
        "read_amplification": 1.0,
        "blocks_read": 0,
    }
    assert 165 < quality["blocks_per_batch"] < 185
    assert quality["blocks_per_batch_min"] > 100
    # 1024 * (1 - C(65536 - 64, 256) / C(65536, 256))
    assert quality["blocks_per_batch_random"] == pytest.approx(226.8, abs=0.5)
    assert 1.15 < quality["inflation"] < np.sqrt(1 + 256 / 256)
    good = Loader(Counted(64 * 1024, 64), 64, shuffle=True).quality()
    assert (good["pool"], good["blocks_per_batch"], good["blocks_per_batch_min"]) == (256, 64, 64)
    assert good["inflation"] < 1.02
    plain = Loader(Counted(64 * 1024, 64), 64).quality()
    assert plain["blocks_per_batch"] == 1
    assert plain["inflation"] == pytest.approx(8, rel=0.02)
    exact = Loader(Counted(64 * 1024, 64), 64, shuffle="exact", pool_bytes=0).quality()
    assert exact["inflation"] == 1.0
    assert exact["read_amplification"] == pytest.approx(62 * 1024 / 1024, rel=0.05)


def test_a_loader_goes_to_another_process() -> None:
    loader = Loader(np.arange(100), 10, shuffle=True)
    again = pickle.loads(pickle.dumps(loader))
    assert [b.tolist() for b in again] == [b.tolist() for b in loader]
    again.load_state_dict(loader.state_dict())


def test_what_is_shown_of_sources_and_loaders() -> None:
    records = stash.save_records("memory://shown", {"x": np.arange(100.0), "y": np.arange(100)})
    array = stash.save("memory://shown-array", np.zeros((10, 20, 30)))
    told = "<tensorstash.Records 100 rows of x, y at memory://shown>"
    for made, wanted in (
        (
            Loader(records, 8, shuffle=True),
            f"<tensorstash.Loader batches of 8, shuffled, of {told}>",
        ),
        (
            Loader(array, 4, rank=1, world_size=2),
            "<tensorstash.Loader batches of 4, in order, rank 1 of 2, of <10 rows>>",
        ),
        (
            Loader({"a": array}, 2, shuffle="exact"),
            "<tensorstash.Loader batches of 2, shuffled exactly, of <10 rows of arrays a>>",
        ),
        (Windows(records, 8, 2), f"<tensorstash.Windows of 8 rows, 2 apart, of {told}>"),
        (Patches(array, (5, 5), count=3), "<tensorstash.Patches 3 of (5, 5) anywhere in (20, 30)>"),
        (
            mix({"a": records, "b": records}, weights=[1, 3]),
            "<tensorstash.Mix 133 rows, 25.0% of 'a', 75.0% of 'b'>",
        ),
        (
            ArrayDataset(array, np.arange(10)),
            "<tensorstash.ArrayDataset 10 rows of (20, 30) float64, () int64>",
        ),
    ):
        assert repr(made) == wanted


def test_what_torchs_loader_takes_is_answered_with_what_there_is() -> None:
    rows = np.arange(8)
    with pytest.raises(TypeError, match=r"^Loader\(\) got .* 'num_workers'; .*threads="):
        Loader(rows, 2, num_workers=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Loader\(\) got .* 'collate_fn'; .*transform="):
        Loader(rows, 2, collate_fn=list)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^ShuffleBatchSampler\(\) got .* 'what'$"):
        ShuffleBatchSampler(rows, 2, what=1)  # type: ignore[call-arg]
    with pytest.raises(Invalid, match="transform is a function, not 3"):
        Loader(rows, 2, transform=3)  # type: ignore[arg-type]
