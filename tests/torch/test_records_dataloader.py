"""Records in torch's DataLoader as it is: default collate, every start method, the parent having
read before or not, each row once and whole; what goes wrong in a worker arrives as what it is."""

from __future__ import annotations

import functools
import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.errors import Corrupt, InvalidSelection, NotFound, Unsupported
from tests.support.remote import remote

ROWS = 300
METHODS = multiprocessing.get_all_start_methods()
SCHEMA: dict[str, Any] = {
    "image": ((16, 16, 8), "uint8"),
    "label": "int64",
    "half": ((2,), "bfloat16"),
    "name": str,
    "when": "datetime64[s]",
    "done": bool,
    "next": {"image": ((4,), "float32"), "deep": {"u": "uint8"}},
    "tok": stash.ragged("int32"),
    "meta": stash.json,
}
FIXED = ("image", "label", "half", "name", "when", "done", "next")

pytestmark = [pytest.mark.usefixtures("quick_end"), pytest.mark.timeout(150)]


def make(place: Any, rows: int = ROWS, **how: Any) -> stash.Records:
    """Every field of a row follows from its label."""
    records = stash.create_records(place, SCHEMA, rows_per_chunk=64, **how)
    numbers = np.arange(rows)
    image = np.random.default_rng(0).integers(0, 256, (rows, 16, 16, 8)).astype("u1")
    image[:, 0, 0, 0] = numbers % 256
    records.extend(
        {
            "image": image,
            "label": numbers,
            "half": torch.tensor(numbers % 64)[:, None].expand(-1, 2).to(torch.bfloat16),
            "name": [f"row {i}" for i in numbers],
            "when": numbers.astype("M8[s]"),
            "done": numbers % 3 == 0,
            "next": {"image": np.repeat(numbers, 4).reshape(-1, 4), "deep": {"u": numbers % 200}},
            "tok": [np.full(i % 5, i) for i in numbers],
            "meta": [{"n": int(i)} for i in numbers],
        }
    )
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loader") / "r"
    make(place)
    return place


def loader(records: Any, method: str | None, workers: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        records,
        batch_size=64,
        shuffle=True,
        num_workers=workers if method else 0,
        multiprocessing_context=method,
        timeout=60 if method else 0,
        **options,
    )


def labels_of(batches: Any) -> list[int]:
    """The labels that arrived, every field of each row being its own."""
    seen: list[int] = []
    for batch in batches:
        label = batch["label"]
        assert batch["image"].dtype == torch.uint8
        assert torch.equal(batch["image"][:, 0, 0, 0], (label % 256).to(torch.uint8))
        assert batch["half"].dtype == torch.bfloat16
        assert torch.equal(batch["half"][:, 1].to(torch.int64), label % 64)
        assert batch["name"] == [f"row {i}" for i in label.tolist()]
        assert torch.equal(batch["when"], label)
        assert torch.equal(batch["done"], label % 3 == 0)
        assert torch.equal(batch["next"]["image"][:, 3].to(torch.int64), label)
        assert torch.equal(batch["next"]["deep"]["u"].to(torch.int64), label % 200)
        seen += label.tolist()
    return seen


def touch(records: stash.Records) -> None:
    """Read as a program does before it trains: the pool's threads are started."""
    records[:]
    assert any(thread.name.startswith("tensorstash") for thread in threading.enumerate())


# -- every row once ----------------------------------------------------------------------------


def test_without_workers(folder: Path) -> None:
    for cache in (0, "16MiB"):
        records = stash.open_records(folder, cache=cache).select(*FIXED)
        assert sorted(labels_of(loader(records, None))) == list(range(ROWS))


@pytest.mark.parametrize(
    ("method", "touched"),
    [(method, touched) for method in METHODS for touched in (False, True)
     if touched or method != "forkserver"],
)  # fmt: skip
def test_every_start_method(folder: Path, method: str, touched: bool) -> None:
    records = stash.open_records(folder).select(*FIXED)
    if touched:
        touch(records)
    assert sorted(labels_of(loader(records, method))) == list(range(ROWS))
    assert records[5]["label"] == 5  # and the parent goes on


def test_workers_that_stay(folder: Path) -> None:
    records = stash.open_records(folder, cache="16MiB").select(*FIXED)
    touch(records)
    batches = loader(records, "fork", persistent_workers=True)
    for _ in range(2):
        assert sorted(labels_of(batches)) == list(range(ROWS))


def test_a_parent_whose_threads_read_on_while_workers_start(folder: Path) -> None:
    records = stash.open_records(folder, cache="1MiB").select(*FIXED)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            records.refresh()
            records[::7]

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(2):
            assert sorted(labels_of(loader(records, "fork"))) == list(range(ROWS))
    finally:
        stop.set()
        for reader in readers:
            reader.join()


@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_views(folder: Path, method: str | None) -> None:
    records = stash.open_records(folder).select(*FIXED)
    train, val = records.split({"train": 0.8, "val": 0.2}, seed=1).values()
    chosen = records.where(np.random.default_rng(0).permutation(ROWS)[:200])
    found = labels_of(loader(train, method))
    assert len(found) == 240
    assert sorted(found + labels_of(loader(val, None))) == list(range(ROWS))
    some = chosen.where(slice(0, 100))
    assert sorted(labels_of(loader(some, method, 1))) == sorted(some["label"][:].tolist())


def halved(batch: Any) -> Any:
    return {"x": batch["image"].float() / 2, "label": batch["label"], "name": batch["name"]}


@pytest.mark.parametrize("method", [None, "fork"])
def test_transforms_and_formats(folder: Path, method: str | None) -> None:
    view = stash.open_records(folder).select(*FIXED).with_format("torch").with_transform(halved)
    seen: list[int] = []
    for batch in loader(view, method):
        assert batch["x"].dtype == torch.float32
        assert torch.equal(batch["x"][:, 0, 0, 0] * 2, (batch["label"] % 256).float())
        assert batch["name"] == [f"row {i}" for i in batch["label"].tolist()]
        seen += batch["label"].tolist()
    assert sorted(seen) == list(range(ROWS))


def as_they_are(rows: list[Any]) -> list[Any]:
    return rows


@pytest.mark.parametrize("method", [None, "fork"])
def test_rows_of_different_sizes_with_a_collate_of_ones_own(
    folder: Path, method: str | None
) -> None:
    records = stash.open_records(folder).select("label", "tok", "meta")
    seen = []
    for rows in loader(records, method, collate_fn=as_they_are):
        for row in rows:
            label = int(row["label"])
            assert row["tok"].dtype == torch.int32
            assert row["tok"].tolist() == [label] * (label % 5)
            assert row["meta"] == {"n": label}
            seen.append(label)
    assert sorted(seen) == list(range(ROWS))


# A socket of another test's driver may be collected here, in a cycle, before its owner closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "method"),
    [("redis", "fork"), ("redis", "spawn"), ("s3fs", "spawn"), ("obstore", "fork")],
)
def test_from_afar(kind: str, method: str, request: Any, tmp_path: Path) -> None:
    place = remote(kind, request.getfixturevalue)
    if method == "spawn":  # options that are secret do not travel
        place = place.secretly(tmp_path)
    url = place.fresh()
    make(url, 130, options=place.options)
    records = stash.open_records(url, options=place.options).select(*FIXED)
    if method == "fork":
        records[:5]
    assert sorted(labels_of(loader(records, method, 1))) == list(range(130))


def place_in(path: str) -> Any:
    return json.loads(Path(path).read_text())


def test_a_connection_factory_is_called_in_the_worker(folder: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    note.write_text(json.dumps(str(folder)))
    elsewhere = stash.open_records(make({}, 1).driver)
    elsewhere.source.table.adopt(stash.open_records(folder).source.table.catalog)
    view = elsewhere.select(*FIXED).with_connection_factory(
        functools.partial(place_in, str(note))
    )  # fmt: skip
    assert sorted(labels_of(loader(view, "spawn", 1))) == list(range(ROWS))


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "fork"])
def test_damage_arrives_with_its_fields(tmp_path: Path, method: str | None) -> None:
    make(tmp_path / "r")
    damaged = tmp_path / "r" / "image" / "c" / "2" / "0" / "0" / "0"
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    records = stash.open_records(tmp_path / "r").select(*FIXED)
    with pytest.raises(Corrupt) as caught:
        list(loader(records, method, 1))
    error = caught.value
    assert (error.key, error.chunk) == ("image/c/2/0/0/0", (2, 0, 0, 0))
    assert "\n" not in str(error)


@pytest.mark.parametrize("method", [None, "fork"])
def test_records_that_vanish_in_mid_epoch(tmp_path: Path, method: str | None) -> None:
    make(tmp_path / "r")
    records = stash.open_records(tmp_path / "r", missing="raise").select(*FIXED)
    batches = iter(loader(records, method, 1, prefetch_factor=1 if method else None))
    next(batches)
    records.driver.delete_prefix("")
    with pytest.raises(NotFound, match=r"/c/\d|no Zarr array or group at"):
        list(batches)


def test_rows_that_are_not_there(folder: Path) -> None:
    records = stash.open_records(folder).select("label")
    for wrong in ([0, 300], [-301]):
        with pytest.raises(InvalidSelection, match="out of range for 300 rows"):
            records.__getitems__(wrong)
    assert [int(row["label"]) for row in records.__getitems__([-1, 0, 299])] == [299, 0, 299]
    assert records.__getitems__([]) == []


def test_what_torch_cannot_hold_is_named() -> None:
    records = stash.create_records({}, {"raw": "r24", "n": "i4"}, 3)
    with pytest.raises(Unsupported, match="field 'raw'") as caught:
        list(loader(records, None))
    assert "\n" not in str(caught.value)
    assert len(list(loader(records.select("n"), None))) == 1


def test_reading_in_a_worker_leaves_the_users_handle_as_it_is(folder: Path) -> None:
    records = stash.open_records(folder, threads=2).select("label", "tok")
    label, settings = records["label"], records.settings
    windows = records.select("label").windows(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorstash.records.source.in_worker", lambda: True)
        assert [int(row["label"]) for row in records.__getitems__([3, 1])] == [3, 1]
        assert records[5]["tok"].tolist() == []
        assert windows[4]["label"].tolist() == [4, 5]
        assert len(list(records.where([2, 0]))) == 2
    assert records.settings is settings and settings.threads == 2
    assert records["label"] is label and label.settings.threads == 2
