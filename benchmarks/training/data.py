"""The data of the training workloads: made here, from seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..samples import Array

PIXELS = (3, 64, 64)
PART = 4096


def images(path: Path, count: int, noisy: bool) -> None:
    """``count`` images (3, 64, 64) uint8 as a ``.npy``: noise of 8 bits all over (a compressor
    leaves about 95 %), or in a disc on an even ground, as in pictures of single things (45 %)."""
    random = np.random.default_rng(11)
    y, x = np.mgrid[-32:32, -32:32]
    ground = (40 + 0.5 * np.abs(x)[None] + np.array([0, 8, 16])[:, None, None]).astype("u1")
    disc = np.ones((64, 64), bool) if noisy else x**2 + y**2 < 24**2
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, *PIXELS))
    for start in range(0, count, PART):
        part = out[start : start + PART]
        part[...] = ground
        bits = random.integers(0, 200, (len(part), 3, int(disc.sum())), dtype=np.uint8)
        part[:, :, disc] += bits
    out.flush()


def matrix(path: Path, rows: int, width: int) -> None:
    """Smooth float32 rows: a slow walk in every column, in steps of 1/256, as a ``.npy``."""
    _walk(path, rows, width, 12)


def series(path: Path, steps: int, width: int) -> None:
    """A long float32 series of ``width`` channels, made alike."""
    _walk(path, steps, width, 13)


def _walk(path: Path, rows: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width))
    level = random.integers(-2000, 2000, width).astype("i4")
    step = max(1, (1 << 22) // width)
    for start in range(0, rows, step):
        part = out[start : start + step]
        walk = random.integers(-9, 10, part.shape, dtype="i4").cumsum(axis=0, dtype="i4") + level
        level = walk[-1]
        part[...] = walk
        part /= 256
    out.flush()


def lengths(count: int) -> Array:
    """How many tokens each of ``count`` documents has: lognormal, 278 on average, at least 1."""
    found = np.random.default_rng(14).lognormal(5.3, 0.8, count)
    return np.clip(found, 1, 8192).astype(np.int64)


def tokens(path: Path, total: int) -> None:
    """int32 tokens with Zipf's frequencies, as a ``.npy``."""
    random = np.random.default_rng(15)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=(total,))
    for start in range(0, total, 1 << 22):
        part = out[start : start + (1 << 22)]
        part[...] = np.minimum(random.zipf(1.2, len(part)), 50256)
    out.flush()


def parts(array: Array, rows: int) -> Iterator[Array]:
    """``array`` in pieces of ``rows``."""
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def stored(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
