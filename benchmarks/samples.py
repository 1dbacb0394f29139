"""The data that is measured: real where it can be, and said so.

Photographs, digits: scikit-learn's packaged samples. Reanalysis: a NetCDF-3 cube of ERA-Interim
(u, v and z, packed int16), used where the file lies beside the checkout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
REANALYSIS = Path(__file__).parents[2] / "shared" / "data" / "eraint_uvz.nc"


def photographs() -> Array:
    """Two colour photographs, (2, 427, 640, 3) uint8."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


def digits() -> Array:
    """Scanned digits, (1797, 8, 8) float64 of whole numbers 0 to 16."""
    from sklearn.datasets import load_digits

    images: Array = load_digits().images
    return images


def volume(edge: int) -> Array:
    """A camera-like volume, (edge, edge, edge) uint16.

    The six colour planes of :func:`photographs` resampled to ``edge`` x ``edge``, blended
    smoothly from one to the next along axis 0, as photon counts of 20 to 275 with their shot
    noise (Poisson, by its normal limit). blosc-lz4 and zstd leave 54 and 57 % of it.
    """
    planes = np.concatenate([image.transpose(2, 0, 1) for image in photographs()])
    planes = np.stack([_resample(plane, edge) for plane in planes.astype("f4")])
    random = np.random.default_rng(1)
    out = np.empty((edge, edge, edge), "u2")
    for z, at in enumerate(np.linspace(0, len(planes) - 1, edge)):
        low = min(int(at), len(planes) - 2)
        counts = planes[low] + (planes[low + 1] - planes[low]) * np.float32(at - low)
        counts += 20
        counts += np.sqrt(counts) * random.standard_normal(counts.shape, "f4")
        np.clip(counts, 0, 65535, out=counts)
        out[z] = counts.astype("u2")
    return out


def _resample(plane: Array, edge: int) -> Array:
    """``plane`` at ``edge`` x ``edge`` points, bilinear."""
    for axis in (0, 1):
        at = np.linspace(0, plane.shape[axis] - 1, edge, dtype="f4")
        low = np.minimum(at.astype(int), plane.shape[axis] - 2)
        part = (at - low).astype("f4")
        part = part[:, None] if axis == 0 else part[None, :]
        plane = plane.take(low, axis) * (1 - part) + plane.take(low + 1, axis) * part
    return plane


def rows(count: int, width: int) -> Array:
    """Embedding-like rows, (count, width) float32: normal, rounded to 1/256 so that a
    compressor has something to do."""
    random = np.random.default_rng(2)
    values = random.standard_normal((count, width), dtype="f4")
    np.round(values * 256, out=values)
    values /= 256
    return values


def reanalysis() -> dict[str, Array]:
    """Packed int16 and unpacked float32 wind and geopotential, (18, 241, 480) each; empty
    where the file is absent."""
    if not REANALYSIS.exists():
        return {}
    from scipy.io import netcdf_file

    packed, unpacked = [], []
    with netcdf_file(str(REANALYSIS), mmap=False) as file:
        for name in ("u", "v", "z"):
            variable = file.variables[name]
            raw = variable.data.reshape(-1, *variable.shape[-2:])
            packed.append(raw.astype("i2"))
            unpacked.append((raw * variable.scale_factor + variable.add_offset).astype("f4"))
    return {
        "reanalysis int16": np.concatenate(packed),
        "reanalysis float32": np.concatenate(unpacked),
    }


def kinds(megabytes: int = 4) -> Iterator[tuple[str, Array]]:
    """Named arrays of about ``megabytes`` MiB each (photographs and digits are smaller)."""
    random = np.random.default_rng(3)
    size = megabytes << 20
    yield "photographs uint8", photographs()
    yield "photo volume uint16", volume(128)
    yield "digits float64", digits()
    yield from reanalysis().items()
    yield "random walk uint16", (random.integers(-3, 4, size // 2).cumsum() + 30000).astype("u2")
    yield "token ids int32", np.minimum(random.zipf(1.2, size // 4), 50256).astype("i4")
    yield "noise float32", random.standard_normal(size // 4, dtype="f4")
