"""Who goes on in the middle of an epoch."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..peer import OURS
from .mosaic import streaming
from .resumer import Resumer, Running, loaded

SPLITS = 12
"""Divisible by all numbers of ranks and workers: Lance's splits and HF's shards."""


class Ours(Resumer):
    """Our loader: threads, so that there are no workers to count."""

    library = OURS
    variant = "Loader"
    modules = ("tensorstash", "torch")
    workers = False

    def write(self, path: Path, rows: int) -> None:
        import tensorstash as stash

        numbers = {"id": np.arange(rows), "x": np.zeros((rows, 16), "f4")}
        stash.save_records(str(path / "records"), numbers, rows_per_chunk=64)

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        import tensorstash as stash
        from tensorstash.torch import Loader

        loader = Loader(
            stash.open_records(str(path / "records")),
            batch,
            shuffle=True,
            seed=5,
            rank=rank,
            world_size=ranks,
            threads=workers or None,
        )
        if saved is not None:
            loader.load_state_dict(loaded(saved))
        return Running((found["id"] for found in loader), loader.state_dict)


class OursThreads(Ours):
    """The same, with other numbers of threads in place of workers."""

    variant = "Loader, threads for workers"
    workers = True
    ranks = ""


class OursWorkers(Ours):
    """Our order in torch's own loader: a second sampler follows what was yielded, for the first
    one is ahead of it."""

    variant = "ShuffleBatchSampler in DataLoader"
    workers = True
    ranks = ""

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        import torch

        import tensorstash as stash
        from tensorstash.torch import ShuffleBatchSampler

        records = stash.open_records(str(path / "records"))
        ahead, behind = (ShuffleBatchSampler(records, batch, seed=5) for _ in range(2))
        if saved is not None:
            ahead.load_state_dict(loaded(saved))
            behind.load_state_dict(loaded(saved))
        loader = torch.utils.data.DataLoader(records, batch_sampler=ahead, num_workers=workers)
        pairs = zip(loader, behind, strict=True)
        return Running((found["id"] for found, _ in pairs), behind.state_dict)


class OursStateful(Ours):
    """Our order in torchdata's loader, which refuses other numbers of workers."""

    variant = "ShuffleBatchSampler in StatefulDataLoader"
    modules = ("tensorstash", "torch", "torchdata")
    workers = True
    ranks = ""

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        from torchdata.stateful_dataloader import StatefulDataLoader

        import tensorstash as stash
        from tensorstash.torch import ShuffleBatchSampler

        records = stash.open_records(str(path / "records"))
        sampler = ShuffleBatchSampler(records, batch, seed=5)
        loader = StatefulDataLoader(records, batch_sampler=sampler, num_workers=workers)
        if saved is not None:
            loader.load_state_dict(loaded(saved))
        return Running((found["id"] for found in loader), loader.state_dict)


class Mosaic(Resumer):
    """MDS: its state goes to every rank and worker."""

    library = "MDS"
    variant = "StreamingDataset, py1e"
    modules = ("streaming", "torch")
    ranks = "processes"

    def write(self, path: Path, rows: int) -> None:
        with streaming().MDSWriter(out=str(path), columns={"id": "int"}, size_limit=8192) as out:
            for i in range(rows):
                out.write({"id": i})

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        if ranks == 1:
            streaming().base.util.clean_stale_shared_memory()
        data = streaming().StreamingDataset(local=str(path), shuffle=True, batch_size=batch)
        loader = streaming().StreamingDataLoader(data, batch_size=batch, num_workers=workers)
        if saved is not None:
            loader.load_state_dict(loaded(saved))
        return Running((found["id"] for found in loader), loader.state_dict)


class Lit(Resumer):
    """LitData's loader and its state."""

    library = "LitData"
    variant = "StreamingDataLoader"
    modules = ("litdata", "torch")
    ranks = "processes"

    def write(self, path: Path, rows: int) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(path), chunk_size=256)
        for i in range(rows):
            writer[i] = {"id": i}
        writer.done()
        writer.merge()

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        import torch
        from litdata import StreamingDataLoader, StreamingDataset

        if ranks > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
        # Unless told, it drops the last batch on several ranks and keeps it on one, and then
        # refuses the state of the one on the other.
        data = StreamingDataset(str(path), shuffle=True, seed=5, drop_last=True)
        loader = StreamingDataLoader(data, batch_size=batch, num_workers=workers)
        if saved is not None:
            loader.load_state_dict(loaded(saved))
        return Running((found["id"] for found in loader), loader.state_dict)


class Lance(Resumer):
    """LanceDB's streaming loader: splits that all ranks and workers must divide."""

    library = "Lance"
    variant = f"StreamingDataLoader, {SPLITS} splits"
    modules = ("lancedb", "torch")
    forks = False

    def write(self, path: Path, rows: int) -> None:
        import lancedb
        import pyarrow as pa

        lancedb.connect(str(path)).create_table("t", pa.table({"id": np.arange(rows)}))

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        import lancedb
        from lancedb.streaming import StreamingDataLoader, StreamingDataset

        table = lancedb.connect(str(path)).open_table("t")
        data = StreamingDataset(
            table, num_splits=SPLITS, shuffle_seed=5, rank=rank, world_size=ranks
        )
        if saved is not None:
            data.load_state_dict(loaded(saved))
        loader = StreamingDataLoader(data, batch_size=batch, num_workers=workers)
        return Running((found["id"] for found in loader), data.state_dict)

    def merge(self, blobs: list[bytes]) -> bytes:
        from lancedb.streaming import StreamingDataset

        return pickle.dumps(StreamingDataset.merge_state_dicts([loaded(b) for b in blobs]))


class Grain(Resumer):
    """Grain's iterators: a slice of the shuffled data a rank, ``mp_prefetch`` for workers."""

    library = "Grain"
    variant = "IterDataset"
    modules = ("grain", "array_record", "torch")

    def write(self, path: Path, rows: int) -> None:
        np.save(path / "id.npy", np.arange(rows))

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        import grain

        data = grain.MapDataset.source(np.load(path / "id.npy")).shuffle(seed=5)
        found = data[rank::ranks].to_iter_dataset().batch(batch)
        if workers:
            found = found.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        iterator = iter(found)
        if saved is not None:
            iterator.set_state(loaded(saved))
        return Running(iterator, iterator.get_state, getattr(iterator, "close", lambda: None))


class Face(Resumer):
    """Hugging Face's iterable dataset in torchdata's loader, as its documents say."""

    library = "HF Datasets"
    variant = "IterableDataset in StatefulDataLoader"
    modules = ("datasets", "torchdata", "torch")

    def write(self, path: Path, rows: int) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_dict({"id": np.arange(rows)}).save_to_disk(str(path / "saved"))

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        import datasets
        from datasets.distributed import split_dataset_by_node
        from torchdata.stateful_dataloader import StatefulDataLoader

        data = datasets.load_from_disk(str(path / "saved")).to_iterable_dataset(num_shards=SPLITS)
        data = data.shuffle(seed=5, buffer_size=1000)
        if ranks > 1:
            data = split_dataset_by_node(data, rank=rank, world_size=ranks)
        loader = StatefulDataLoader(data, batch_size=batch, num_workers=workers)
        if saved is not None:
            loader.load_state_dict(loaded(saved))
        return Running((found["id"] for found in loader), loader.state_dict)


class TorchData(Resumer):
    """A map-style dataset in torchdata's loader, with a ``DistributedSampler`` for ranks."""

    library = "torchdata"
    variant = "StatefulDataLoader"
    modules = ("torchdata", "torch")

    def write(self, path: Path, rows: int) -> None:
        np.save(path / "id.npy", np.arange(rows))

    def start(
        self, path: Path, rank: int, ranks: int, workers: int, batch: int, saved: bytes | None
    ) -> Running:
        import torch
        from torch.utils.data import TensorDataset
        from torchdata.stateful_dataloader import StatefulDataLoader
        from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

        data = TensorDataset(torch.from_numpy(np.load(path / "id.npy")))
        sampler = StatefulDistributedSampler(
            data, num_replicas=ranks, rank=rank, shuffle=True, seed=5
        )
        loader = StatefulDataLoader(data, batch_size=batch, sampler=sampler, num_workers=workers)
        if saved is not None:
            loader.load_state_dict(loaded(saved))
        ids: Iterator[Any] = (found[0] for found in loader)
        return Running(ids, loader.state_dict)


def everyone() -> list[Resumer]:
    """All contestants, ours first, whether installed or not."""
    return [
        Ours(),
        OursThreads(),
        OursWorkers(),
        OursStateful(),
        Mosaic(),
        Lit(),
        Lance(),
        Grain(),
        Face(),
        TorchData(),
    ]


def by_name(name: str) -> Resumer:
    """The contestant of that name."""
    return next(one for one in everyone() if one.name == name)
