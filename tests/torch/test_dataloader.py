"""A plain DataLoader under every start method, the parent having read before or not: every row
arrives exactly once, and what goes wrong in a worker arrives as what it is.

``TENSORSTASH_TRIALS=20`` repeats the matrix so many times.
"""

from __future__ import annotations

import collections
import hashlib
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

import tensorstash as stash
from tensorstash.errors import Conflict, Corrupt, DriverError, NotFound
from tensorstash.testing.counting import FailingDriver
from tensorstash.torch import ArrayDataset

TRIALS = int(os.environ.get("TENSORSTASH_TRIALS", "1"))
ROWS = 400
METHODS = multiprocessing.get_all_start_methods()

# A worker that hangs fails the test: DataLoader's timeout (below) and this one.
pytestmark = [pytest.mark.usefixtures("quick_end"), pytest.mark.timeout(60 + 60 * TRIALS)]


def make(folder: Path, sharded: bool = False) -> None:
    """Images whose pixels are made from their row, 128 KiB a chunk so that threads start."""
    images = np.random.default_rng(0).integers(0, 2**16, (ROWS, 32, 32), "uint16")
    images[:, 0, 0] = np.arange(ROWS)
    layout: dict[str, Any] = {"chunks": (64, 32, 32)}
    if sharded:
        layout = {"chunks": (16, 32, 32), "shards": (64, 32, 32)}
    group = stash.create_group(folder / "set")
    group.create("images", images.shape, images.dtype, **layout)[...] = images
    group.create("labels", (ROWS,), "int64", chunks=100)[...] = np.arange(ROWS)


def touch(array: stash.Array) -> str:
    """Read as a program does before it trains: the pool's threads are started."""
    digest = hashlib.sha256(array[...].tobytes()).hexdigest()
    assert any(thread.name.startswith("tensorstash") for thread in threading.enumerate())
    return digest


def epoch(dataset: Any, method: str | None, workers: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=37,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        timeout=60 if workers else 0,
        **options,
    )


def check(batches: Iterator[Any], wanted: str) -> None:
    """Every row once, with its own label, and bit for bit what was stored."""
    found = [
        (int(label), image)
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    ]
    found.sort(key=lambda pair: pair[0])
    assert [label for label, _ in found] == list(range(ROWS))
    assert all(int(image[0, 0]) == label for label, image in found)
    stacked = torch.stack([image for _, image in found])
    assert hashlib.sha256(stacked.numpy().tobytes()).hexdigest() == wanted


def opened(folder: Path, cache: int | str = 0) -> tuple[stash.Array, stash.Array]:
    return (
        stash.open(folder / "set" / "images", cache=cache),
        stash.open(folder / "set" / "labels", cache=cache),
    )


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same set in chunks and in shards, with the checksum of its images."""
    sets = []
    for sharded in (False, True):
        folder = tmp_path_factory.mktemp("loader")
        make(folder, sharded)
        images = stash.load(folder / "set" / "images")
        sets.append((folder, hashlib.sha256(images.tobytes()).hexdigest()))
    return sets


@pytest.fixture(params=[0, 1], ids=["chunks", "shards"])
def stored(every: Any, request: pytest.FixtureRequest) -> Any:
    return every[request.param]


@pytest.fixture
def chunked(every: Any) -> Any:
    return every[0]


@pytest.fixture
def sharded_set(every: Any) -> Any:
    return every[1]


def test_without_workers(stored: Any) -> None:
    folder, wanted = stored
    check(epoch(ArrayDataset(*opened(folder)), None, 0), wanted)
    check(epoch(ArrayDataset(*opened(folder, "16MiB")), None, 0), wanted)


@pytest.mark.parametrize("touched", [False, True], ids=["untouched", "touched"])
@pytest.mark.parametrize("method", METHODS)
def test_every_row_once(chunked: Any, method: str, touched: bool) -> None:
    folder, wanted = chunked
    for _ in range(TRIALS):
        images, labels = opened(folder)
        if touched:
            assert touch(images) == wanted
        check(epoch(ArrayDataset(images, labels), method), wanted)
        if touched:
            assert touch(images) == wanted  # and the parent goes on


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_stay(sharded_set: Any, method: str) -> None:
    folder, wanted = sharded_set
    images, labels = opened(folder, "64MiB")
    touch(images)
    loader = epoch(ArrayDataset(images, labels), method, persistent_workers=True)
    for _ in range(2):
        check(loader, wanted)


def test_a_parent_that_reads_on_while_workers_start(stored: Any) -> None:
    # A fork in the midst of another thread's read may copy any lock in its locked state.
    folder, wanted = stored
    images, labels = opened(folder, "1MiB")
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            images[::7]

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(3 * TRIALS):
            check(epoch(ArrayDataset(images, labels), "fork"), wanted)
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def as_pair(image: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"image": image.float() / 2**16, "label": label}


@pytest.mark.parametrize("method", METHODS)
def test_views_and_transforms(chunked: Any, method: str) -> None:
    folder, _ = chunked
    images, labels = opened(folder)
    touch(images)
    dataset = ArrayDataset(images.lazy[100:, ::2, ::-1], labels.lazy[100:], transform=as_pair)
    seen: collections.Counter[int] = collections.Counter()
    for batch in epoch(dataset, method):
        assert batch["image"].shape[1:] == (16, 32)
        assert batch["image"].dtype == torch.float32
        for image, label in zip(batch["image"], batch["label"], strict=True):
            seen[int(label)] += 1
            assert int(image[0, -1] * 2**16) == int(label)
    assert seen == dict.fromkeys(range(100, ROWS), 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_small_set_in_memory_reaches_every_worker(method: str) -> None:
    array = stash.save({}, np.arange(300).reshape(100, 3), chunks=(10, 3))
    found = torch.cat(list(epoch(ArrayDataset(array), method)))
    assert torch.equal(found[found[:, 0].argsort()], torch.arange(300).reshape(100, 3))


def test_workers_read_with_one_thread(chunked: Any) -> None:
    folder, _ = chunked
    images, _ = opened(folder)
    touch(images)

    def threads(image: torch.Tensor) -> int:
        assert get_worker_info() is not None
        names = [thread.name for thread in threading.enumerate()]
        return sum(name.startswith("tensorstash") for name in names)

    for dataset in (
        ArrayDataset(images, transform=threads),
        ArrayDataset(images.lazy[:], transform=threads),
    ):
        assert sum(int(batch.sum()) for batch in epoch(dataset, "fork")) == 0
    assert images.settings.threads is None  # of the parent's own handle


# -- what goes wrong in a worker ---------------------------------------------------------------
# One worker: torch does not stop another cleanly that is still starting.


@pytest.mark.parametrize(
    ("method", "sharded"),
    [(None, False), (None, True), ("fork", False), ("forkserver", True), ("spawn", False)],
)
def test_damage_arrives_with_its_fields(tmp_path: Path, sharded: bool, method: Any) -> None:
    make(tmp_path, sharded)
    damaged = tmp_path / "set" / "images" / "c" / "2" / "0" / "0"
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    loader = epoch(ArrayDataset(*opened(tmp_path)), method, 1 if method else 0)
    with pytest.raises(Corrupt) as caught:
        list(loader)
    error = caught.value
    place = (8, 0, 0) if sharded else (2, 0, 0)
    assert (error.key, error.chunk, error.codec) == ("c/2/0/0", place, "crc32c")
    assert str(place) in str(error)
    assert "\n" not in str(error)
    assert "restore it" in str(error)
    if method:
        assert "Original Traceback" in error.__notes__[0]  # torch's text, where it happened
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, Corrupt)
    assert (str(again), again.key, again.chunk) == (str(error), error.key, error.chunk)


class Told:
    """A fault for every read of a chunk; picklable, as drivers for spawn must be."""

    def __init__(self, fault: Any) -> None:
        self.fault = fault

    def __call__(self, use: Any) -> Any:
        return self.fault if use.key.startswith("c/") else None


class Pickled(FailingDriver):
    def __reduce__(self) -> Any:
        return Pickled, (self.driver, self.when)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_errors_arrive_as_what_they_are(method: str, tmp_path: Path) -> None:
    array = stash.save(tmp_path / "a", np.arange(100), chunks=10)
    for fault, kind in (("error", DriverError), (Conflict("late", key="c/0"), Conflict)):
        broken = Pickled(array.driver, Told(fault))
        with pytest.raises(kind) as caught:
            list(epoch(ArrayDataset(stash.open(broken)), method, 1))
        assert caught.value.key.startswith("c/")
        assert "\n" not in str(caught.value)
    (tmp_path / "a" / "c" / "3").unlink()
    with pytest.raises(NotFound, match="c/3"):
        list(epoch(ArrayDataset(stash.open(tmp_path / "a", missing="raise")), method, 1))


def test_a_dataset_that_cannot_be_sent_says_so_in_the_parent() -> None:
    array = stash.save({}, np.arange(1 << 18), codecs=None)
    with pytest.raises(NotImplementedError, match="save it to a file, or start workers with fork"):
        list(epoch(ArrayDataset(array), "spawn", 1))
    assert sum(len(batch) for batch in epoch(ArrayDataset(array.lazy[:100]), "fork")) == 100
