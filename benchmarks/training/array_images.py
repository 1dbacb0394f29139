"""Images from plain array libraries: single rows in a ``DataLoader``, rows of a batch in one read,
and a pool of whole chunks written by hand, as users write these."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import fill
from ..flat_peers import H5py, Memmap
from ..layout import Layout
from ..peer import Peer
from ..samples import Array
from ..zarr_peers import TensorStore, ZarrPython
from .data import PIXELS
from .image_loader import Batch, ImageLoader, Images, served

CODEC = "lz4"
PEERS: dict[str, type[Peer]] = {
    "zarr-python": ZarrPython,
    "TensorStore": TensorStore,
    "h5py": H5py,
    "np.memmap": Memmap,
}


class Rows:
    """A map-style dataset of single rows, as in every library's tutorial."""

    def __init__(self, peer: Peer, images: Any, labels: Array) -> None:
        self.peer, self.images, self.labels = peer, images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Batch:
        image = self.peer.read(self.images, (slice(i, i + 1),))[0]
        return image, self.labels[i]


class ArrayImages(ImageLoader):
    """One of these libraries."""

    packed = "blosc-lz4, shuffle"

    def __init__(self, library: str, variant: str, how: str, order: str, rows: str) -> None:
        """``rows``: ``chunk``, ``one`` (a row a chunk) or ``raw`` (uncompressed)."""
        peer = PEERS[library]()
        super().__init__(variant, how, order, f"{peer.format}-{rows}")
        self.library, self.modules = library, (peer.module,)
        self.peer, self._rows = peer, rows
        if rows == "raw":
            self.packed = "no"

    def _layout(self, spec: Images) -> Layout:
        chunk = {"chunk": spec.chunk, "one": 1, "raw": spec.chunk}[self._rows]
        codec = "raw" if self._rows == "raw" else CODEC
        return Layout((spec.rows, *PIXELS), "u1", (chunk, *PIXELS), codec)

    def write(self, path: Path, images: Array, spec: Images) -> None:
        layout = self._layout(spec)
        handle = self.peer.create(path / "image", layout)
        fill(self.peer, handle, images, layout)
        self.peer.close(handle)
        np.save(path / "label.npy", np.arange(spec.rows))

    def open(self, path: Path, spec: Images) -> Any:
        return self.peer.open(path / "image"), np.load(path / "label.npy"), spec

    def epoch(self, handle: Any, number: int) -> Iterator[Batch]:
        images, labels, spec = handle
        random = np.random.default_rng(number)
        if self.order == "pool":
            return self._pooled(images, labels, spec, random)
        if self.how == "defaults":
            return iter(self.dataset(handle, spec, 0, None))
        return self._taken(images, labels, spec, random)

    def dataset(self, handle: Any, spec: Images, workers: int, context: Any) -> Any:
        images, labels, _ = handle
        return served(Rows(self.peer, images, labels), spec, workers, context)

    def touch(self, handle: Any) -> None:
        self.peer.read(handle[0], (slice(0, 1),))

    def _taken(self, images: Any, labels: Array, spec: Images, random: Any) -> Iterator[Batch]:
        """Exact: the rows of a batch in one read."""
        import torch

        order = random.permutation(spec.rows)
        for start in range(0, spec.rows, spec.batch):
            rows = order[start : start + spec.batch]
            values = self.peer.take(images, rows)
            yield torch.from_numpy(values), torch.from_numpy(labels[rows])

    def _pooled(self, images: Any, labels: Array, spec: Images, random: Any) -> Iterator[Batch]:
        """Whole chunks in random order, as many as the pool holds, their rows shuffled together;
        chunks are read by a thread a core."""
        import torch

        size = spec.chunk
        starts = random.permutation(-(-spec.rows // size)) * size
        slots = np.empty((spec.pool * size, *PIXELS), np.uint8)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for first in range(0, len(starts), spec.pool):
                group = starts[first : first + spec.pool]
                rows = np.concatenate([np.arange(s, min(s + size, spec.rows)) for s in group])
                ends = np.cumsum([min(size, spec.rows - s) for s in group])

                def read(start: int, end: int, rows: Array = rows) -> None:
                    count = min(size, spec.rows - start)
                    box = (slice(start, start + count),)
                    slots[end - count : end] = self.peer.read(images, box)

                list(threads.map(read, group.tolist(), ends.tolist()))
                order = random.permutation(len(rows))
                for at in range(0, len(order), spec.batch):
                    part = order[at : at + spec.batch]
                    yield torch.from_numpy(slots[part]), torch.from_numpy(labels[rows[part]])


def loaders() -> list[ImageLoader]:
    """All of them."""
    found: list[ImageLoader] = [ArrayImages("np.memmap", "rows", "fast", "exact", "raw")]
    for library in ("TensorStore", "zarr-python", "h5py"):
        found += [
            ArrayImages(library, "single rows", "defaults", "exact", "chunk"),
            ArrayImages(library, "batch of rows", "fast", "exact", "chunk"),
            ArrayImages(library, "chunks of 1 row", "fast", "exact", "one"),
            ArrayImages(library, "pool by hand", "fast", "pool", "chunk"),
        ]
    return found
