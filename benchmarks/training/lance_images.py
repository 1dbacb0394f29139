"""Images from LanceDB: ``Permutation`` and ``StreamingDataset``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import Array
from .data import PIXELS, parts
from .image_loader import Batch, ImageLoader, Images, served

WIDTH = int(np.prod(PIXELS))


def columns(batch: Any) -> Batch:
    """An Arrow batch as two tensors, without a copy where there can be none."""
    import torch

    image = batch.column("image").flatten().to_numpy(zero_copy_only=False)
    label = batch.column("label").to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(image.reshape(-1, *PIXELS))), torch.from_numpy(label.copy())


def rows(batch: Any) -> list[Batch]:
    """An Arrow batch as a list of rows, as ``StreamingDataset`` wants it."""
    return list(zip(*columns(batch), strict=True))


def _same(batch: Any) -> Any:
    return batch


def _lists(batch: Any) -> Batch:
    """The default: rows as dicts of Python lists, made tensors here."""
    import torch

    image = torch.tensor([row["image"] for row in batch], dtype=torch.uint8)
    return image.reshape(-1, *PIXELS), torch.tensor([row["label"] for row in batch])


class LanceImages(ImageLoader):
    """One way to read the table."""

    library = "Lance"
    modules = ("lancedb", "lance", "pyarrow", "torch")

    def write(self, path: Path, images: Array, spec: Images) -> None:
        import lancedb
        import pyarrow as pa

        start, table = 0, None
        for part in parts(images, 4096):
            flat = pa.array(np.ascontiguousarray(part).reshape(-1))
            values = pa.table(
                {
                    "image": pa.FixedSizeListArray.from_arrays(flat, WIDTH),
                    "label": np.arange(start, start + len(part)),
                }
            )
            start += len(part)
            if table is None:
                table = lancedb.connect(str(path)).create_table("t", values)
            else:
                table.add(values)

    def open(self, path: Path, spec: Images) -> Any:
        import lancedb

        return lancedb.connect(str(path)).open_table("t"), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        table, spec = handle
        if "Streaming" not in self.variant:
            yield from self.dataset(handle, spec, 0, None)
            return
        from lancedb.streaming import StreamingDataset
        from torch.utils.data import DataLoader

        plain = self.how == "defaults"
        how: dict[str, Any] = {} if plain else {"transform": rows}
        if self.order == "own":
            how["shuffle_clump_size"] = spec.chunk
        data = StreamingDataset(table, epoch=number, **how)
        collate = {"collate_fn": _lists} if plain else {}
        yield from DataLoader(data, batch_size=spec.batch, **collate)

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        from lancedb.permutation import Permutation

        table = Permutation.identity(handle[0])
        if self.how != "defaults":
            table = table.with_transform(columns)
        collate = _lists if self.how == "defaults" else _same
        return served(table, spec, workers, context, collate_fn=collate)

    def touch(self, handle: Any) -> None:
        handle[0].head(1)


def loaders() -> list[ImageLoader]:
    """All of them."""
    return [
        LanceImages("Permutation", "defaults", "exact", "lance"),
        LanceImages("Permutation, transform", "fast", "exact", "lance"),
        LanceImages("StreamingDataset", "defaults", "exact", "lance"),
        LanceImages("StreamingDataset, transform", "fast", "exact", "lance"),
        LanceImages("StreamingDataset, clumps", "fast", "own", "lance"),
    ]
