"""Records below a location: views, writers, loaders and other processes find them."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.errors import Closed, Conflict, NotFound
from tests.support.every_place import KINDS, place

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

PATH = "runs/my first"
SCHEMA: dict[str, Any] = {
    "x": ((3,), "float32"),
    "label": "int64",
    "tok": stash.ragged("int32"),
    "cap": str,
    "next": {"x": ((3,), "float32")},
}


def rows(first: int, count: int) -> dict[str, Any]:
    numbers = np.arange(first, first + count)
    wide = np.repeat(numbers, 3).reshape(-1, 3)
    return {
        "x": wide,
        "label": numbers,
        "tok": [np.full(n % 4, n) for n in numbers],
        "cap": [f"row {n}" for n in numbers],
        "next": {"x": wide + 1},
    }


def check(records: Any, labels: Any) -> None:
    found = records[:]
    assert found["label"].tolist() == list(labels)
    wanted = rows(0, max(labels, default=0) + 1)
    assert found["cap"].tolist() == [wanted["cap"][n] for n in labels]
    assert [t.tolist() for t in found["tok"]] == [wanted["tok"][n].tolist() for n in labels]
    assert np.array_equal(found["next"]["x"], wanted["next"]["x"][list(labels)])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_on_every_driver(kind: str, tmp_path: Path, request: Any) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        stash.create_group(driver)
        made = stash.create_records(driver, SCHEMA, path=PATH, rows_per_chunk=4)
        if not driver.capabilities.locks:  # rows cannot be added
            assert len(stash.open_records(driver, path=PATH)) == 0
            return
        made.extend(rows(0, 6))
        with made.writer() as writer:
            writer.extend(rows(6, 4))
        assert made.append(stash.save_records({}, rows(10, 1), SCHEMA)[0]) == 10
        count = len(made)
        opened = stash.open_records(driver, "r+", path=PATH)
        check(opened, range(count))
        check(stash.open_records(driver, path=PATH).where([7, 2, 2]), [7, 2, 2])
        opened[2:4] = rows(2, 2)
        opened["label"][3] = 3
        check(opened, range(count))
        fields = stash.open_group(driver, path=PATH).keys()
        assert fields == ["cap", "label", "next", "tok", "x"]
        array = stash.open(driver, path=f"{PATH}/next/x")
        assert np.array_equal(array[:], rows(0, count)["next"]["x"])
        opened.add_field("extra", "int8", np.arange(count))
        opened.rename_field("extra", "more/extra")
        opened.refresh()
        check(opened, range(count))
        assert opened[:]["more"]["extra"].tolist() == list(range(count))
        opened.drop_field("more/extra")
        assert stash.open_group(driver, path=PATH).keys() == fields


def test_series_views_and_splits(tmp_path: Path) -> None:
    stash.save_records(tmp_path, rows(0, 20), SCHEMA, path=PATH)
    records = stash.open_records(tmp_path, path=PATH)
    assert records["tok"].lengths().tolist() == [n % 4 for n in range(20)]
    assert records["cap"][3] == "row 3"
    parts = records.split({"train": 0.5, "val": 0.5}, seed=1)
    alone = stash.open_records(tmp_path / PATH).split({"train": 0.5, "val": 0.5}, seed=1)
    for name, part in parts.items():
        again = pickle.loads(pickle.dumps(part))
        assert again[:]["label"].tolist() == alone[name][:]["label"].tolist()
    assert repr(records) == repr(stash.open_records(tmp_path / PATH))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.timeout(150)
def test_workers_read_every_row_once(tmp_path: Path, method: str) -> None:
    stash.save_records(tmp_path, rows(0, 64), SCHEMA, path=PATH)
    records = stash.open_records(tmp_path, path=PATH).select("x", "label", "next")
    records[:]  # the parent has read before
    loader = DataLoader(
        records, batch_size=16, num_workers=2, multiprocessing_context=method, shuffle=True
    )
    seen: list[int] = []
    for batch in loader:
        assert torch.equal(batch["x"][:, 0].to(torch.int64), batch["label"])
        assert torch.equal(batch["next"]["x"][:, 2].to(torch.int64), batch["label"] + 1)
        seen += batch["label"].tolist()
    assert sorted(seen) == list(range(64))


def test_what_happens_to_the_place_is_told(tmp_path: Path) -> None:
    stash.save_records(tmp_path, rows(0, 4), SCHEMA, path=PATH)
    records = stash.open_records(tmp_path, "r+", path=PATH)
    records[0]
    stash.save_records(tmp_path, {"other": [1]}, path=PATH)
    with pytest.raises((Conflict, NotFound), match="my first"):
        records[0]
    records = stash.open_records(tmp_path, path=PATH)
    del stash.open_group(tmp_path, "r+")[PATH]
    with pytest.raises((Conflict, NotFound), match="my first"):
        records[0]
    with pytest.raises(NotFound, match="my first"):
        stash.open_records(tmp_path, path=PATH)
    records.close()
    with pytest.raises(Closed, match="my first"):
        records[0]


def test_others_read_the_fields(tmp_path: Path) -> None:
    stash.save_records(tmp_path, rows(0, 9), SCHEMA, path=PATH)
    stash.open_records(tmp_path, "r+", path=PATH).extend(rows(9, 3))
    group = zarr.open_group(tmp_path, mode="r")
    assert np.array_equal(group[f"{PATH}/next/x"][:], rows(0, 12)["next"]["x"])
    assert group[f"{PATH}/label"].shape == (12,)
