"""W5: what becomes of a handle in a ``DataLoader``'s worker processes."""

from __future__ import annotations

import multiprocessing
import pickle
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..peer import OURS
from . import data
from .bench import Bench, gather, now
from .child import Child, Failed, State
from .image_loader import ImageLoader, Images
from .image_loaders import by_name, everyone

MODULE = "benchmarks.training.workers"
METHODS = ("fork", "forkserver", "spawn")
SPEC = Images(rows=2048, batch=32, chunk=64, pool=16)
QUICK_LIBRARIES = ("tensorstash", "zarr-python", "TensorStore", "h5py")
PATIENCE = 45
"""Seconds for a batch, after which its worker counts as hanging."""


def contestants(bench: Bench) -> list[Any]:
    """One loader a library, of those that a ``DataLoader`` takes."""
    found = {}
    for one in everyone():
        takes = type(one).dataset is not ImageLoader.dataset
        if takes and (one.library not in found or one.variant == "DataLoader"):
            found[one.library] = one
        if one.name == "Lance: Permutation, transform":  # its default makes lists, slowly
            found[one.library] = one
    return [
        one
        for name, one in found.items()
        if bench.wants(name) and (not bench.quick or name in QUICK_LIBRARIES)
    ]


# -- in the child, which is the parent of the workers ---------------------------------------


def trials(
    state: State, name: str, path: str, method: str, touched: bool, repeats: int, count: int
) -> list[dict[str, Any]]:
    """Open, touch or not, and let ``count`` workers deliver four batches; ``repeats`` times."""
    del state
    loader = by_name(name)
    multiprocessing.set_forkserver_preload(["torch"])  # as a training script would have
    return [_trial(loader, path, method, touched, count) for _ in range(repeats)]


def _trial(loader: Any, path: str, method: str, touched: bool, count: int) -> dict[str, Any]:
    handle = loader.open(Path(path), SPEC)
    if touched:
        loader.touch(handle)
    size: Any = None
    found: dict[str, Any] = {"outcome": "ok"}
    start = time.perf_counter()
    try:
        batches = loader.dataset(handle, SPEC, count, method)
        try:
            size = len(pickle.dumps(batches.dataset))
        except Exception as error:
            size = f"{type(error).__name__}"
        start = time.perf_counter()
        batches.timeout = PATIENCE
        labels = []
        for batch in batches:
            label = batch["label"] if hasattr(batch, "keys") else batch[1]
            if not labels:
                found["first"] = time.perf_counter() - start
                found["resident"] = _resident()
            labels.append(np.asarray(label).reshape(-1))
            if len(labels) == 4:
                break
        seen = np.concatenate(labels)
        if len(np.unique(seen)) != len(seen) or not 0 <= seen.min() <= seen.max() < SPEC.rows:
            found["outcome"] = "wrong rows"
    except Exception as error:
        found |= {"outcome": _outcome(error), "error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        for process in multiprocessing.active_children():
            process.kill()
    return {**found, "pickle": size}


def _outcome(error: Exception) -> str:
    text = str(error)
    if "timed out" in text:
        return "hang"
    if "exited unexpectedly" in text or "killed by signal" in text:
        return "crash"
    return "error"


def _resident() -> float:
    """Bytes that a worker has for itself, on average."""
    sizes = []
    for process in multiprocessing.active_children():
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                sizes.append(int(line.split()[1]) << 10)
    count = len(multiprocessing.active_children())
    return sum(sizes) / count if count else 0.0


# -- in the parent --------------------------------------------------------------------------


def measure(bench: Bench) -> dict[str, Any]:
    """Every library, start method, and both kinds of parents."""
    repeats = 3 if bench.quick else 4 * bench.rounds
    count = 1 if bench.quick else 2
    source = bench.folder / "w5.npy"
    data.images(source, SPEC.rows, False)
    lines: list[dict[str, Any]] = []
    for one in contestants(bench):
        line: dict[str, Any] = {"library": one.library, "variant": one.variant, "cells": []}
        lines.append(line)
        if one.missing():
            line["error"] = one.missing()
            continue
        path = bench.folder / "w5" / "".join(c if c.isalnum() else "-" for c in one.name)
        with Child(bench.folder / "w5.log", bench.cores[-1]) as child:
            task = "benchmarks.training.images:write"
            errors = gather([(child, task, (one.name, str(source), str(path), SPEC))], 600)
        line["error"] = errors[0]
        for method in METHODS if not errors[0] else ():
            times = 1 if bench.quick and method != "fork" else repeats
            if one.library == OURS and not bench.quick:
                times = 20
            for touched in (False, True):
                if now() > bench.until:
                    continue
                line["cells"].append(_cell(bench, one, path, method, touched, times, count))
    return {"repeats": repeats, "workers": count, "lines": lines}


def _cell(
    bench: Bench, one: Any, path: Path, method: str, touched: bool, times: int, count: int
) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    while len(found) < times:
        # A few in one process, as in a program of several epochs; a new one where that ended.
        part = min(5, times - len(found))
        with Child(bench.folder / "w5.log", bench.cores[-1]) as child:
            arguments = (one.name, str(path), method, touched, part, count)
            try:
                found += child.call(
                    f"{MODULE}:trials", *arguments, seconds=part * (PATIENCE + 30) + 60
                )
            except Failed as failed:
                outcome = "hang" if "hangs" in str(failed) else "crash"
                outcome = outcome if "crash" in str(failed) or outcome == "hang" else "error"
                found.append({"outcome": outcome, "error": f"the parent: {failed}"})
    outcomes = [trial["outcome"] for trial in found]
    counts = {word: outcomes.count(word) for word in dict.fromkeys(outcomes)}
    bench.say(f"W5 {one.name}, {method}, {'read' if touched else 'not read'} before: {counts}")
    errors = [trial["error"] for trial in found if "error" in trial]
    return {
        "method": method,
        "touched": touched,
        "outcomes": counts,
        "first": _median([t["first"] for t in found if "first" in t]),
        "resident": _median([t["resident"] for t in found if "resident" in t]),
        "pickle": next((t["pickle"] for t in found if t.get("pickle") is not None), None),
        "error": errors[0] if errors else "",
    }


def _median(values: list[float]) -> float | None:
    return float(statistics.median(values)) if values else None
