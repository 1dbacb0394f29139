"""Who reads windows of a series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import fill
from ..layout import Layout
from ..peer import OURS
from ..samples import Array
from .contestant import Contestant
from .row_peers import PEERS

LENGTH, WIDTH, CHUNK = 512, 8, 8192
Windows = Iterator[tuple[Any, Any]]
"""Batches of windows, and where these begin (``None``: that is not told)."""


class WindowReader(Contestant):
    """A library, used in one way."""

    verbs: tuple[str, ...] = ("random", "overlapping")

    def __init__(self, variant: str, how: str, store: str, order: str = "exact") -> None:
        self.variant, self.how, self.store, self.order = variant, how, store, order

    def write(self, path: Path, series: Array) -> None:
        """Store the series."""
        raise NotImplementedError

    def open(self, path: Path, nbytes: int) -> Any:
        """A handle; ``nbytes`` is what a cache may hold where there is one."""
        raise NotImplementedError

    def random(self, handle: Any, steps: int, batch: int, seed: int) -> Windows:
        """Batches of windows that begin anywhere, without end."""
        raise NotImplementedError

    def overlapping(self, handle: Any, steps: int, batch: int, stride: int) -> Windows:
        """Batches of all windows ``stride`` steps apart, in order."""
        raise NotImplementedError

    def decoded(self, handle: Any) -> int | None:
        """Chunks that were decoded so far, where it can be told."""
        del handle
        return None


class ArrayWindows(WindowReader):
    """An array library: a read a window, or one for all that a batch of overlapping ones spans."""

    def __init__(self, library: str, variant: str, how: str, *, cached: bool = False) -> None:
        self.peer = PEERS[library]()
        super().__init__(variant, how, f"series-{self.peer.format}")
        self.library, self.modules, self.cached = library, (self.peer.module,), cached
        if variant == "a read a batch":
            self.verbs = ("overlapping",)

    def _layout(self, steps: int) -> Layout:
        codec = "raw" if "raw" in self.peer.codecs and len(self.peer.codecs) == 1 else "lz4"
        return Layout((steps, WIDTH), "f4", (CHUNK, WIDTH), codec)

    def write(self, path: Path, series: Array) -> None:
        layout = self._layout(len(series))
        handle = self.peer.create(path, layout)
        fill(self.peer, handle, series, layout)
        self.peer.close(handle)

    def open(self, path: Path, nbytes: int) -> Any:
        return self.peer.open_kept(path, nbytes if self.cached else 0)

    def _batch(self, handle: Any, starts: Array) -> Any:
        import torch

        boxes = [(slice(start, start + LENGTH),) for start in starts.tolist()]
        out = np.empty((len(starts), LENGTH, WIDTH), np.float32)
        for at, window in zip(out, self.peer.reads(handle, boxes), strict=True):
            at[...] = window
        return torch.from_numpy(out)

    def random(self, handle: Any, steps: int, batch: int, seed: int) -> Windows:
        random = np.random.default_rng(seed)
        while True:
            starts = random.integers(0, steps - LENGTH, batch)
            yield self._batch(handle, starts), starts

    def overlapping(self, handle: Any, steps: int, batch: int, stride: int) -> Windows:
        import torch

        whole = self.variant == "a read a batch"
        count = (steps - LENGTH) // stride + 1
        for first in range(0, count - batch, batch):
            starts = np.arange(first, first + batch) * stride
            if whole:
                part = self.peer.read(handle, (slice(starts[0], starts[-1] + LENGTH),))
                views = np.lib.stride_tricks.sliding_window_view(part, LENGTH, 0)[::stride]
                yield torch.from_numpy(views.transpose(0, 2, 1).copy()), starts
            else:
                yield self._batch(handle, starts), starts

    def decoded(self, handle: Any) -> int | None:
        found: int | None = self.peer.decoded(handle)
        return found


class OurWindows(WindowReader):
    """``Windows`` of an array of ours, by our loader or in exact random batches."""

    library = OURS
    modules = ("tensorstash", "torch")

    def write(self, path: Path, series: Array) -> None:
        import tensorstash as stash

        path.mkdir(parents=True)
        ArrayWindows(OURS, "", "").write(path / "x", series)
        # Which step each is: a shuffled loader is asked for it too, so that it can be checked.
        stash.save(str(path / "at"), np.arange(len(series), dtype="i4"), chunks=(CHUNK,))

    def open(self, path: Path, nbytes: int) -> Any:
        import tensorstash as stash

        return stash.open(str(path / "x")), stash.open(str(path / "at"))

    def random(self, handle: Any, steps: int, batch: int, seed: int) -> Windows:
        from tensorstash.torch import Loader, Windows, to_tensor

        series, at = handle
        windows = Windows(series, LENGTH)
        if self.order == "pool":
            spread = Windows({"x": series, "at": at}, LENGTH)
            for loaded in Loader(spread, batch, shuffle=True, seed=seed):
                yield loaded["x"], loaded["at"][:, 0].numpy()
            return
        random = np.random.default_rng(seed)
        while True:
            starts = random.integers(0, len(windows), batch)
            (values,) = windows.take(starts).values()
            yield to_tensor(values), starts

    def overlapping(self, handle: Any, steps: int, batch: int, stride: int) -> Windows:
        from tensorstash.torch import Loader, Windows

        windows = Windows(handle[0], LENGTH, stride)
        first = 0
        for loaded in Loader(windows, batch):
            values = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
            yield values, (np.arange(first, first + len(values)) * stride)
            first += len(values)

    def decoded(self, handle: Any) -> int | None:
        return int(handle[0].stats.chunks)


class SliceWindows(WindowReader):
    """torchrl's ``SliceSampler`` over a ``LazyMemmapStorage``: uncompressed."""

    library = "torchrl"
    modules = ("torchrl", "tensordict", "torch")
    verbs = ("random",)
    episode = 100_000

    def write(self, path: Path, series: Array) -> None:
        path.mkdir(parents=True)
        np.save(path / "series.npy", series)

    def open(self, path: Path, nbytes: int) -> Any:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer
        from torchrl.data.replay_buffers.samplers import SliceSampler

        series = np.load(path / "series.npy", mmap_mode="r")
        count = len(series)
        cached = {"cache_values": True} if self.how == "fast" else {}
        buffer = TensorDictReplayBuffer(
            storage=LazyMemmapStorage(count, scratch_dir=str(path / f"buffer-{self.how}")),
            sampler=SliceSampler(slice_len=LENGTH, end_key="done", **cached),
            batch_size=64 * LENGTH,
        )
        for start in range(0, count, self.episode):
            part = torch.from_numpy(np.array(series[start : start + self.episode]))
            done = torch.zeros(len(part), 1, dtype=torch.bool)
            done[-1] = True
            buffer.extend(TensorDict({"obs": part, "done": done}, batch_size=[len(part)]))
        return buffer

    def random(self, handle: Any, steps: int, batch: int, seed: int) -> Windows:
        while True:
            yield handle.sample()["obs"], None


class BatcherWindows(WindowReader):
    """xbatcher over a Zarr array that xarray has opened, lazily and without dask."""

    library = "xbatcher"
    modules = ("xbatcher", "xarray", "zarr")
    verbs = ("overlapping",)

    def write(self, path: Path, series: Array) -> None:
        import xarray

        values = xarray.Dataset({"x": (("time", "channel"), np.asarray(series))})
        values.to_zarr(str(path), encoding={"x": {"chunks": (CHUNK, WIDTH)}}, consolidated=False)

    def open(self, path: Path, nbytes: int) -> Any:
        import xarray

        opened = xarray.open_zarr(str(path), chunks=None, consolidated=False)["x"]
        return opened.load() if self.how == "other" else opened

    def overlapping(self, handle: Any, steps: int, batch: int, stride: int) -> Windows:
        import torch
        import xbatcher

        windows = xbatcher.BatchGenerator(
            handle,
            input_dims={"time": LENGTH, "channel": WIDTH},
            input_overlap={"time": LENGTH - stride},
        )
        for first in range(0, len(windows) - batch, batch):
            values = [windows[i].values for i in range(first, first + batch)]
            yield torch.from_numpy(np.stack(values)), np.arange(first, first + batch) * stride


def everyone() -> list[WindowReader]:
    """All contestants, ours first, whether installed or not."""
    found: list[WindowReader] = [
        OurWindows("Windows", "defaults", "series-ours"),
        OurWindows("Windows, pooled Loader", "fast", "series-ours", "pool"),
    ]
    found[1].verbs = ("random",)
    for library in ("zarr-python", "TensorStore", "h5py", "np.memmap"):
        how = "ceiling" if library == "np.memmap" else "defaults"
        found.append(ArrayWindows(library, "a read a window", how))
        found.append(ArrayWindows(library, "a read a batch", "fast"))
    for library in ("TensorStore", "h5py"):
        found.append(ArrayWindows(library, "cache of a quarter", "fast", cached=True))
    return [
        *found,
        SliceWindows("SliceSampler", "defaults", "torchrl"),
        SliceWindows("SliceSampler, cache_values", "fast", "torchrl"),
        BatcherWindows("BatchGenerator", "defaults", "xbatcher"),
    ]


def by_name(name: str) -> WindowReader:
    """The contestant of that name."""
    return next(one for one in everyone() if one.name == name)
