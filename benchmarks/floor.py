"""The floor: what the reads, decodes and writes cost by themselves, in a plain loop of C.

One open, one read and one close a file, a decode into reused memory, one copy into the output,
names made as it goes (``floor.c``). Nothing is checked, locked or kept (shard indices excepted:
they are read once, before the clock runs). Of raw chunks only the span of bytes that the selection
needs is read, of a Blosc chunk of which less than half is wanted that alone is decoded. Decoders
and encoders are numcodecs', the ones that the kernel calls.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numcodecs.zstd
import numpy as np

from .layout import Layout
from .samples import Array

CODECS = {"raw": 0, "lz4": 1, "zstd": 2}
"""As in ``floor.c``."""
FUNCTIONS = {
    "blosc_decompress": (numcodecs.blosc, "blosc_decompress_ctx"),
    "blosc_getitem": (numcodecs.blosc, "blosc_getitem"),
    "blosc_compress": (numcodecs.blosc, "blosc_compress_ctx"),
    "zstd_dctx": (numcodecs.zstd, "ZSTD_createDCtx"),
    "zstd_decompress": (numcodecs.zstd, "ZSTD_decompressDCtx"),
    "zstd_cctx": (numcodecs.zstd, "ZSTD_createCCtx"),
    "zstd_compress": (numcodecs.zstd, "ZSTD_compressCCtx"),
}
"""What the loop calls, in the order of its ``Library``, and the modules that export it."""


@cache
def loop() -> ctypes.CDLL:
    """``floor.c``, compiled once a process."""
    folder = Path(tempfile.mkdtemp(prefix="floor-"))
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    built = folder / "floor.so"
    source = Path(__file__).with_suffix(".c")
    flags = ["-O3", "-shared", "-fPIC", "-pthread", "-o", str(built), str(source)]
    subprocess.run([*compiler, *flags], check=True)
    library = ctypes.CDLL(str(built))
    library.floor_new.restype = ctypes.c_void_p
    built.unlink()
    folder.rmdir()
    return library


@cache
def _functions() -> Array:
    """Addresses of :data:`FUNCTIONS`."""
    found = [
        ctypes.cast(getattr(ctypes.CDLL(module.__file__), name), ctypes.c_void_p).value
        for module, name in FUNCTIONS.values()
    ]
    return np.array(found, np.uint64)


def _numbers(values: Sequence[int]) -> Array:
    return np.array(values, np.int64)


def _at(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Floor:
    """Bare reads and writes of one Zarr v3 array on the local disk."""

    def __init__(self, path: Path, layout: Layout, threads: int = 1) -> None:
        self.layout = layout
        self.root = os.fsencode(f"{path}/c/")
        files = [p for p in path.rglob("c/**/*") if p.is_file()]
        limit = max((p.stat().st_size for p in files), default=0)
        inner = None
        self.index = _numbers([])
        if layout.shards:
            inner = [s // c for s, c in zip(layout.shards, layout.chunks, strict=True)]
            grid = [-(-n // s) for n, s in zip(layout.shape, layout.shards, strict=True)]
            slots = math.prod(inner)
            names = ["/".join(map(str, at)) for at in np.ndindex(*grid)]
            tails = [(path / "c" / name).read_bytes()[-16 * slots - 4 : -4] for name in names]
            self.index = np.frombuffer(b"".join(tails), "<i8")
        # What C goes on pointing to is the index alone.
        shape, chunks, per_shard = map(_numbers, (layout.shape, layout.chunks, inner or ()))
        self.c = ctypes.c_void_p(
            loop().floor_new(
                _at(_functions()),
                ctypes.c_int64(len(layout.shape)),
                _at(shape),
                _at(chunks),
                _at(per_shard) if inner else None,
                ctypes.c_int64(layout.itemsize),
                ctypes.c_int64(CODECS[layout.codec]),
                ctypes.c_int64(limit),
                ctypes.c_int64(threads),
                _at(self.index),
            )
        )

    def read(self, where: tuple[Any, ...]) -> Array:
        """A box of slices (step 1) and integers."""
        layout = self.layout
        fixed = tuple(i for i, w in enumerate(where) if not isinstance(w, slice))
        low, high = [], []
        for i, size in enumerate(layout.shape):
            w = where[i] if i < len(where) else slice(None)
            start, stop = w.indices(size)[:2] if isinstance(w, slice) else (w, w + 1)
            low.append(start)
            high.append(stop)
        lows, highs = _numbers(low), _numbers(high)
        out = np.empty(highs - lows, layout.dtype)
        if loop().floor_read(self.c, self.root, _at(lows), _at(highs), _at(out)):
            raise OSError("the floor could not read it all")
        return out.squeeze(fixed) if fixed else out

    def reads(self, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        """Boxes one by one."""
        return [self.read(box) for box in boxes]

    def take(self, rows: Array) -> Array:
        """Rows of a 2-d array, each chunk read once."""
        layout = self.layout
        unique, back = np.unique(rows, return_inverse=True)
        unique = np.ascontiguousarray(unique, np.int64)
        out = np.empty((len(unique), *layout.shape[1:]), layout.dtype)
        cuts = np.flatnonzero(np.diff(unique // layout.chunks[0])) + 1
        bounds = np.concatenate([[0], cuts, [len(unique)]]).astype(np.int64)
        count = ctypes.c_int64(len(bounds) - 1)
        if loop().floor_take(self.c, self.root, _at(unique), _at(bounds), count, _at(out)):
            raise OSError("the floor could not read it all")
        return out if np.array_equal(unique, rows) else out[back]

    def write(self, values: Array) -> None:
        """The whole array, contiguous."""
        if loop().floor_write(self.c, self.root, _at(values)):
            raise OSError("the floor could not write it all")
