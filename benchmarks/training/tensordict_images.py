"""Images from TensorDict: mapped files, and its Zarr backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..samples import Array
from .data import PIXELS, parts
from .image_loader import Batch, ImageLoader, Images, served


def _same(batch: Any) -> Any:
    return batch


class TensorDictMapped(ImageLoader):
    """``memmap``: one uncompressed file a field."""

    library = "TensorDict memmap"
    modules = ("tensordict", "torch")

    def write(self, path: Path, images: Array, spec: Images) -> None:
        import torch
        from tensordict import TensorDict

        shape = torch.Size([spec.rows])
        like = TensorDict(
            {
                "image": torch.zeros((), dtype=torch.uint8).expand(spec.rows, *PIXELS),
                "label": torch.zeros((), dtype=torch.int64).expand(spec.rows),
            },
            batch_size=shape,
        )
        stored = like.memmap_like(str(path))
        start = 0
        for part in parts(images, 1024):
            stop = start + len(part)
            stored["image"][start:stop] = torch.from_numpy(part.copy())
            stored["label"][start:stop] = torch.arange(start, stop)
            start = stop

    def open(self, path: Path, spec: Images) -> Any:
        from tensordict import TensorDict

        return TensorDict.load_memmap(str(path)), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        import torch

        stored, spec = handle
        if self.how == "defaults":
            batches = iter(self.dataset(handle, spec, 0, None))
        else:
            order = torch.randperm(spec.rows, generator=torch.Generator().manual_seed(number))
            batches = (stored[rows] for rows in order.split(spec.batch))
        for batch in batches:
            yield batch["image"], batch["label"]

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        return served(handle[0], spec, workers, context, collate_fn=_same)


class TensorDictZarr(TensorDictMapped):
    """``PersistentTensorDict(backend="zarr")``."""

    library = "TensorDict zarr"
    modules = ("tensordict", "torch", "zarr")

    def write(self, path: Path, images: Array, spec: Images) -> None:
        import torch
        from tensordict import PersistentTensorDict, TensorDict

        # Its documents create from what is in memory, or from a schema, and assign.
        values = TensorDict(
            {
                "image": torch.from_numpy(images[:].copy()),
                "label": torch.arange(spec.rows),
            },
            batch_size=[spec.rows],
        )
        how = {} if self.how == "defaults" else {"chunks": (spec.chunk,)}
        made = PersistentTensorDict.from_dict(values, str(path / "td.zarr"), backend="zarr", **how)
        close = getattr(made, "close", None)
        if close is not None:
            close()

    def open(self, path: Path, spec: Images) -> Any:
        from tensordict import PersistentTensorDict

        where = str(path / "td.zarr")
        opened = PersistentTensorDict(
            filename=where, batch_size=[spec.rows], backend="zarr", mode="r"
        )
        return opened, spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        import torch

        stored, spec = handle
        order = torch.randperm(spec.rows, generator=torch.Generator().manual_seed(number))
        for rows in order.split(spec.batch):
            if self.how == "defaults":
                batch = stored[rows].to_tensordict()
                yield batch["image"], batch["label"]
            else:
                yield stored.get_at("image", rows), stored.get_at("label", rows)


def loaders() -> list[ImageLoader]:
    """All of them."""
    return [
        TensorDictMapped("DataLoader", "defaults", "exact", "memmap"),
        TensorDictMapped("rows", "fast", "exact", "memmap"),
        TensorDictZarr("td[rows]", "defaults", "exact", "tdzarr-default"),
        TensorDictZarr("get_at", "fast", "exact", "tdzarr-chunks"),
    ]
