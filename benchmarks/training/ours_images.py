"""Images from records of ours: our loader, and torch's own ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..peer import OURS
from ..samples import Array
from .data import PIXELS, parts
from .image_loader import Batch, ImageLoader, Images


class OurImages(ImageLoader):
    """One way to store and read them."""

    library = OURS
    modules = ("tensorstash", "torch")
    packed = "blosc-lz4, shuffle"

    def write(self, path: Path, images: Array, spec: Images) -> None:
        import tensorstash as stash

        schema = {"image": (PIXELS, "uint8"), "label": ((), "int64")}
        height = {"auto": None, "chunk": spec.chunk, "one": 1, "raw": spec.chunk}
        how: dict[str, Any] = {"rows_per_chunk": height[self.store.split("-")[1]]}
        if self.store.endswith("raw"):
            how["codecs"] = None
            self.packed = "no"
        records = stash.create_records(str(path / "records"), schema, 0, **how)
        start = 0
        with records.writer() as writer:
            for part in parts(images, 1024):
                numbers = np.arange(start, start + len(part))
                writer.extend({"image": part, "label": numbers})
                start += len(part)

    def open(self, path: Path, spec: Images) -> Any:
        import tensorstash as stash

        return stash.open_records(str(path / "records")), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        records, spec = handle
        if self.variant == "DataLoader":
            batches = self.dataset(handle, spec, 0, None)
        else:
            from tensorstash.torch import Loader

            order = {"shuffle": "exact"} if self.order == "exact" else {"shuffle": True}
            batches = Loader(records, spec.batch, seed=1, **order)
            batches.set_epoch(number)
        for batch in batches:
            yield batch["image"], batch["label"]

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        import torch

        return torch.utils.data.DataLoader(
            handle[0],
            batch_size=spec.batch,
            shuffle=True,
            num_workers=workers,
            multiprocessing_context=context,
        )

    def touch(self, handle: Any) -> None:
        handle[0][0]


def loaders() -> list[ImageLoader]:
    """All of them."""
    return [
        OurImages("Loader", "defaults", "pool", "stash-auto"),
        OurImages("Loader, peers' chunks", "fast", "pool", "stash-chunk"),
        OurImages("Loader, uncompressed", "other", "pool", "stash-raw"),
        OurImages("Loader, exact", "defaults", "exact", "stash-auto"),
        OurImages("Loader, exact, chunks of 1 row", "fast", "exact", "stash-one"),
        OurImages("DataLoader", "defaults", "exact", "stash-auto"),
    ]
