"""Images from records of ours: our loader, and torch's own ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..layout import Layout
from ..peer import OURS
from ..samples import Array
from .data import PIXELS, parts
from .image_loader import Batch, ImageLoader, Images, Mapped


class OurImages(Mapped):
    """One way to store and read them."""

    library = OURS
    modules = ("tensorstash", "torch")
    packed = "blosc-lz4"

    def __init__(self, variant: str, how: str, order: str, store: str) -> None:
        super().__init__(variant, how, order, store)
        others = {"stash-raw": "no", "stash-chunk": "blosc-lz4, shuffle"}
        self.packed = others.get(store, self.packed)

    def write(self, path: Path, images: Array, spec: Images) -> None:
        import tensorstash as stash

        schema = {"image": (PIXELS, "uint8"), "label": ((), "int64")}
        single = {"image": 1, "label": 1024}
        height = {"auto": None, "chunk": spec.chunk, "one": single, "raw": spec.chunk}
        how: dict[str, Any] = {"rows_per_chunk": height[self.store.split("-")[1]]}
        if self.store.endswith("one"):
            how["rows_per_shard"] = 1024
        if self.store.endswith("raw"):
            how["codecs"] = None
        if self.store.endswith("chunk"):
            how["codecs"] = {"image": Layout((spec.rows, *PIXELS), "u1", PIXELS, "lz4").inner}
        records = stash.create_records(str(path / "records"), schema, 0, **how)
        start = 0
        with records.writer() as writer:
            for part in parts(images, 1024):
                numbers = np.arange(start, start + len(part))
                writer.extend({"image": part, "label": numbers})
                start += len(part)

    def open(self, path: Path, spec: Images) -> Any:
        import tensorstash as stash
        from tensorstash.torch import Loader

        records = stash.open_records(str(path / "records"))
        how: dict[str, Any] = {"shuffle": "exact"} if self.order == "exact" else {"shuffle": True}
        if "ahead" in self.variant:
            how["prefetch"] = 0
        return records, Loader(records, spec.batch, seed=1, **how), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        _, batches, spec = handle
        if self.variant == "DataLoader":
            batches = self.dataset(handle, spec, 0, None)
        else:
            batches.set_epoch(number)
        for batch in batches:
            yield batch["image"], batch["label"]


def loaders() -> list[ImageLoader]:
    """All of them."""
    return [
        OurImages("Loader", "defaults", "pool", "stash-auto"),
        OurImages("Loader, peers' chunks and codec", "fast", "pool", "stash-chunk"),
        OurImages("Loader, peers' chunks, nothing ahead", "fast", "pool", "stash-chunk"),
        OurImages("Loader, uncompressed", "other", "pool", "stash-raw"),
        OurImages("Loader, exact", "defaults", "exact", "stash-auto"),
        OurImages("Loader, exact, chunks of 1 row", "fast", "exact", "stash-one"),
        OurImages("DataLoader", "defaults", "exact", "stash-auto"),
    ]
