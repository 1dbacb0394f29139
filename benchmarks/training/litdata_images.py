"""Images from LitData."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..samples import Array
from .image_loader import Batch, ImageLoader, Images


class LitImages(ImageLoader):
    """``StreamingDataset`` and its ``StreamingDataLoader``."""

    library = "LitData"
    modules = ("litdata", "torch")

    def write(self, path: Path, images: Array, spec: Images) -> None:
        from litdata.streaming.writer import BinaryWriter

        how = {"compression": "zstd:1"} if "zstd" in self.store else {}
        writer = BinaryWriter(str(path), chunk_bytes="64MB", **how)
        for i in range(spec.rows):
            writer[i] = {"image": images[i], "label": i}
        writer.done()
        writer.merge()

    def open(self, path: Path, spec: Images) -> Any:
        return path, spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        for batch in self.dataset(handle, handle[1], 0, None, seed=number):
            yield batch["image"], batch["label"]

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any, seed: int = 42) -> Any:
        from litdata import StreamingDataLoader, StreamingDataset

        how = {} if self.how == "defaults" else {"item_shuffle_window": "full"}
        data = StreamingDataset(str(handle[0]), shuffle=True, seed=seed, **how)
        return StreamingDataLoader(
            data, batch_size=spec.batch, num_workers=workers, multiprocessing_context=context
        )


def loaders() -> list[ImageLoader]:
    """All of them."""
    return [
        LitImages("window 256", "defaults", "own", "litdata"),
        LitImages("window 256, zstd", "other", "own", "litdata-zstd"),
        LitImages("full window", "fast", "own", "litdata"),
    ]
