"""Images from MosaicML Streaming's MDS files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..samples import Array
from .image_loader import Batch, ImageLoader, Images
from .mosaic import streaming


class MosaicImages(ImageLoader):
    """``StreamingDataset`` over local shards, uncompressed: its local copies always are."""

    library = "MDS"
    modules = ("streaming", "torch")

    def write(self, path: Path, images: Array, spec: Images) -> None:
        fields = {"image": "ndarray:uint8:3,64,64", "label": "int"}
        with streaming().MDSWriter(out=str(path), columns=fields) as writer:
            for i in range(spec.rows):
                writer.write({"image": images[i], "label": i})

    def open(self, path: Path, spec: Images) -> Any:
        streaming().base.util.clean_stale_shared_memory()
        return self._data(path, spec), spec

    def _data(self, path: Path, spec: Images) -> Any:
        algorithm = {} if self.how == "defaults" else {"shuffle_algo": self.variant}
        return streaming().StreamingDataset(
            local=str(path), shuffle=True, batch_size=spec.batch, **algorithm
        )

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        data, spec = handle
        data.next_epoch = number
        for batch in self.dataset(handle, spec, 0, None):
            yield batch["image"], batch["label"]

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        return streaming().StreamingDataLoader(
            handle[0],
            batch_size=spec.batch,
            num_workers=workers,
            multiprocessing_context=context,
        )

    def touch(self, handle: Any) -> None:
        handle[0][0]


def loaders() -> list[ImageLoader]:
    """All of them."""
    return [
        MosaicImages("py1e", "defaults", "own", "mds"),
        MosaicImages("py1s", "fast", "own", "mds"),
    ]
