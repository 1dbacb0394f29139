"""W1: images and labels in shuffled batches."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from ..peer import OURS
from ..samples import Array
from . import data
from .bench import Bench, Entry, entry, extent, gather, middle, race
from .child import State
from .gauge import Gauge
from .image_loader import Images
from .image_loaders import by_name, everyone
from .quality import check, of_random, quality

MODULE = "benchmarks.training.images"
FULL = Images(rows=65_536, batch=64, chunk=64, pool=256)
QUICK = Images(rows=2_048, batch=32, chunk=8, pool=128)


def spec(bench: Bench) -> Images:
    """Of this run."""
    return QUICK if bench.quick else FULL


# -- in the child ---------------------------------------------------------------------------


def write(state: State, name: str, source: str, path: str, spec: Images) -> int:
    """Store the images; answers the bytes that lie on disk then."""
    del state
    target = Path(path)
    target.mkdir(parents=True, exist_ok=True)
    by_name(name).write(target, np.load(source, mmap_mode="r"), spec)
    return data.stored(target)


def epoch(
    state: State, name: str, source: str, path: str, spec: Images, limit: float, turn: int
) -> dict[str, Any]:
    """One epoch, cut off after ``limit`` seconds; opened anew, and its values checked, in the
    first turn."""
    loader = by_name(name)
    handle, opened = state.get(name), 0.0
    if handle is None:
        with Gauge() as gauge:
            handle = state[name] = loader.open(Path(path), spec)
        opened = gauge.wall
    sample: list[tuple[Any, Any]] = []
    labels: list[Any] = []
    first, cut = 0.0, False
    with Gauge() as gauge:
        batches = loader.epoch(handle, turn)
        for image, label in batches:
            labels.append(label)
            first = first or gauge.elapsed
            if len(sample) < 3 and turn == 0:
                sample.append((image, label))
            if gauge.elapsed > limit:
                cut = True
                break
    with contextlib.suppress(AttributeError):
        batches.close()  # type: ignore[attr-defined]
    order = np.concatenate([np.asarray(label) for label in labels]).astype(np.int64)
    if wrong := check(order, spec.rows, complete=not cut):
        raise ValueError(wrong)
    _compare(sample, np.load(source, mmap_mode="r"))
    count = len(order)
    return {
        **gauge.as_dict(),
        "records": count,
        "rate": count / gauge.wall,
        "cpu_us": gauge.cpu / count * 1e6,
        "amplification": gauge.read / (count * (int(np.prod(data.PIXELS)) + 8)),
        "first": opened + first if turn == 0 else first,
        "opened": opened,
        "cut": cut,
        "quality": quality(order, spec.batch, spec.rows),
    }


def _compare(sample: list[tuple[Any, Any]], source: Array) -> None:
    for image, label in sample:
        got = np.asarray(image).reshape(len(label), *data.PIXELS)
        if got.dtype == np.int64:
            got = got.astype(np.uint8)  # some answer these as int64
        if not np.array_equal(got, source[np.asarray(label)]):
            raise ValueError("wrong images")


# -- in the parent --------------------------------------------------------------------------


def measure(bench: Bench) -> dict[str, Any]:
    """All contestants, on one core and on all, on data of two kinds."""
    shape = spec(bench)
    kinds = [False] if bench.quick else [False, True]
    sets = []
    for noisy in kinds:
        word = "noisy" if noisy else "smooth"
        source = bench.folder / f"images-{word}.npy"
        data.images(source, shape.rows, noisy)
        for count in bench.cores if not noisy else bench.cores[-1:]:
            results = _contest(bench, shape, source, word, count)
            sets.append({"data": word, "cores": count, "results": results})
        source.unlink()
    return {
        "rows": shape.rows,
        "batch": shape.batch,
        "chunk": shape.chunk,
        "pool": shape.pool,
        "bytes": shape.rows * (int(np.prod(data.PIXELS)) + 8),
        "random": of_random(shape.batch, shape.rows),
        "sets": sets,
    }


def _contest(
    bench: Bench, shape: Images, source: Path, word: str, count: int
) -> list[dict[str, Any]]:
    limit = 0.2 if bench.quick else 5.0
    loaders = [
        one
        for one in everyone()
        if bench.wants(one.library) and not (bench.quick and one.how == "other")
    ]
    here = [one for one in loaders if not one.missing()]
    with bench.children([one.library for one in here], count) as children:
        stores: dict[str, tuple[Any, Path]] = {}
        for one in here:
            stores.setdefault(one.store, (one, _path(bench, word, one)))  # one for all who share it
        todo = [(one, path) for one, path in stores.values() if not path.exists()]
        tasks = [
            (children[one.library], f"{MODULE}:write", (one.name, str(source), str(path), shape))
            for one, path in todo
        ]
        failed = dict(zip([path for _, path in todo], gather(tasks, 1200), strict=True))
        entries: list[Entry] = []
        for one in here:
            path = _path(bench, word, one)
            fills = (
                one.order == "pool" or one.library == OURS
            )  # much is read before the first batch
            patience = 8 * limit if fills else limit
            arguments = (one.name, str(source), str(path), shape, patience)
            made = entry(one.name, children[one.library], f"{MODULE}:epoch", *arguments)
            made.error = failed.get(path, "")
            entries.append(made)
        race(bench, entries, 10 * limit + 120)
    found = []
    for one in loaders:
        made = next((e for e in entries if e.name == one.name), None)
        line: dict[str, Any] = {
            "library": one.library,
            "variant": one.variant,
            "how": one.how,
            "order": one.order,
            "packed": one.packed,
            "error": one.missing() if made is None else made.error,
        }
        if made is not None and not made.error:
            line |= _summary(made) | {"stored": data.stored(_path(bench, word, one))}
        found.append(line)
        told = line["error"] or f"{line['rate']:.0f}/s, blocks {line['quality']['blocks']:.1f}"
        bench.say(f"W1 {word}, {count} cores, {one.name}: {told}")
    return found


def _path(bench: Bench, word: str, one: Any) -> Path:
    return bench.folder / f"w1-{word}" / str(one.store)


def _summary(made: Entry) -> dict[str, Any]:
    readings = made.readings
    names = ("rate", "wall", "cpu_us", "amplification", "read", "peak", "first", "records")
    return {
        **{name: middle(readings, name) for name in names},
        "range": extent(readings, "rate"),
        "rounds": len(readings),
        "cut": any(r["cut"] for r in readings),
        "quality": readings[-1]["quality"],
    }
