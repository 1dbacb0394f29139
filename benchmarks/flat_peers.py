"""Single-file peers: HDF5 through h5py and PyTables, and a mapped ``.npy`` as the ceiling.

HDF5 has no shards: it is given the inner chunks, and its B-tree is its index.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .layout import Layout
from .peer import CACHE, Peer, sorted_take
from .samples import Array


class H5py(Peer):
    """h5py; blosc and zstd through hdf5plugin where installed, else raw only."""

    name = "h5py"
    format = "h5"
    module = "h5py"
    package = "h5py"
    caches = True
    keeps = True

    def __init__(self) -> None:
        try:
            import hdf5plugin
        except ImportError:
            self._filters: dict[str, Any] = {"raw": {}}
        else:
            blosc = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
            self._filters = {"raw": {}, "lz4": blosc, "zstd": hdf5plugin.Zstd(clevel=1)}

    def handles(self, layout: Layout) -> bool:
        return layout.codec in self._filters

    def create(self, path: Path, layout: Layout) -> Any:
        import h5py

        file = h5py.File(path, "w", libver="latest")
        return file.create_dataset(
            "a",
            shape=layout.shape,
            dtype=layout.dtype,
            chunks=layout.chunks,
            maxshape=layout.shape if layout.shape[0] else (None, *layout.shape[1:]),
            **self._filters[layout.codec],
        )

    def open(self, path: Path, cached: bool = False) -> Any:
        import h5py

        if cached:
            return h5py.File(path, "r", rdcc_nbytes=CACHE, rdcc_nslots=100_003)["a"]
        return h5py.File(path, "r")["a"]

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        values: Array = handle[where]
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        return sorted_take(handle.__getitem__, rows)

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle[where] = values
        handle.file.flush()

    def append(self, handle: Any, rows: Array) -> Any:
        start = handle.shape[0]
        handle.resize(start + len(rows), axis=0)
        handle[start:] = rows
        handle.file.flush()
        return handle

    def close(self, handle: Any) -> None:
        handle.file.close()


class PyTables(Peer):
    """PyTables; its own blosc for both codecs (``zstd`` is blosc-zstd, level 1)."""

    name = "PyTables"
    format = "pytables"
    module = "tables"
    package = "tables"
    keeps = True

    def handles(self, layout: Layout) -> bool:
        return True

    def create(self, path: Path, layout: Layout) -> Any:
        import tables

        names = {"lz4": ("blosc:lz4", 5), "zstd": ("blosc:zstd", 1)}
        lib, level = names.get(layout.codec, ("zlib", 0))
        filters = tables.Filters(complevel=level, complib=lib, shuffle=level > 0)
        atom = tables.Atom.from_dtype(np.dtype(layout.dtype))
        tables.set_blosc_max_threads(len(os.sched_getaffinity(0)))
        file = tables.open_file(str(path), "w")
        make = file.create_carray if layout.shape[0] else file.create_earray
        return make(file.root, "a", atom, layout.shape, filters=filters, chunkshape=layout.chunks)

    def open(self, path: Path, cached: bool = False) -> Any:
        import tables

        tables.set_blosc_max_threads(len(os.sched_getaffinity(0)))
        return tables.open_file(str(path), "r").root.a

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        values: Array = handle[where]
        return values

    def take(self, handle: Any, rows: Array) -> Array:
        rest = (slice(None),) * (len(handle.shape) - 1)
        return sorted_take(lambda unique: handle[(unique.tolist(), *rest)], rows)

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle[where] = values
        handle.flush()

    def append(self, handle: Any, rows: Array) -> Any:
        handle.append(rows)
        handle.flush()
        return handle

    def close(self, handle: Any) -> None:
        handle._v_file.close()


class Memmap(Peer):
    """A mapped ``.npy``: the ceiling for raw. Reads are page faults, so "bytes read" is 0."""

    name = "np.memmap"
    format = "npy"
    module = "numpy"
    package = "numpy"
    codecs = ("raw",)

    def handles(self, layout: Layout) -> bool:
        return layout.codec == "raw"

    def create(self, path: Path, layout: Layout) -> Any:
        return np.lib.format.open_memmap(
            str(path), mode="w+", dtype=np.dtype(layout.dtype), shape=layout.shape
        )

    def open(self, path: Path, cached: bool = False) -> Any:
        return np.load(path, mmap_mode="r")

    def read(self, handle: Any, where: tuple[Any, ...]) -> Array:
        return np.array(handle[where])

    def take(self, handle: Any, rows: Array) -> Array:
        return np.asarray(handle[rows])

    def write(self, handle: Any, where: tuple[Any, ...], values: Array) -> None:
        handle[where] = values

    def append(self, handle: Any, rows: Array) -> Any:
        raise NotImplementedError("a mapped file does not grow")
