"""W3: windows of a long series: from random starts, and overlapping ones in order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from . import data
from .bench import Bench, Entry, entry, line_of, outcome, stored
from .child import State
from .gauge import Gauge
from .quality import quality
from .window_readers import CHUNK, LENGTH, WIDTH, by_name, everyone

MODULE = "benchmarks.training.windows"
FIGURES = ("rate", "cpu_us", "amplification", "peak", "first", "chunks", "distinct", "batches")
BATCH, STRIDE = 64, 16


# -- in the child ---------------------------------------------------------------------------


def write(state: State, name: str, source: str, path: str) -> None:
    """Store the series."""
    del state
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    by_name(name).write(Path(path), np.load(source, mmap_mode="r"))


def _open(state: State, name: str, path: str, nbytes: int) -> tuple[Any, Any]:
    if name not in state:
        reader = by_name(name)
        state[name] = reader, reader.open(Path(path), nbytes // 4)
    reader, handle = state[name]
    return reader, handle


def read(
    state: State, name: str, source: str, path: str, verb: str, limit: float, turn: int
) -> dict[str, Any]:
    """Batches for ``limit`` seconds; ``verb``: ``random`` or ``overlapping``."""
    values = np.load(source, mmap_mode="r")
    reader, handle = _open(state, name, path, values.nbytes)
    before = reader.decoded(handle)
    starts: list[Any] = []
    done, first = 0, 0.0
    kept: list[tuple[Any, Any]] = []
    with Gauge() as gauge:
        if verb == "random":
            batches = reader.random(handle, len(values), BATCH, turn)
        else:
            batches = reader.overlapping(handle, len(values), BATCH, STRIDE)
        for windows, begin in batches:
            done += 1
            first = first or gauge.elapsed
            if begin is not None:
                starts.append(begin)
            if turn == 0 and len(kept) < 2:
                kept.append((windows, begin))
            if gauge.elapsed > limit:
                break
    batches.close()
    after = reader.decoded(handle)
    for windows, begin in kept:
        _compare(windows, begin, values)
    count = done * BATCH
    found = {
        **gauge.as_dict(),
        "rate": count / gauge.wall,
        "cpu_us": gauge.cpu / count * 1e6,
        "amplification": gauge.read / (count * LENGTH * WIDTH * 4),
        "first": first,
    }
    if before is not None and after is not None and starts:
        if verb == "random":  # nothing is kept from one batch to the next
            touched = sum(len(_chunks(begin)) for begin in starts)
        else:
            touched = len(_chunks(np.concatenate(starts)))
        found |= {"chunks": (after - before) / done, "distinct": touched / done, "batches": done}
    if verb == "random" and starts:
        found["quality"] = quality(np.concatenate(starts), BATCH, len(values))
    return found


def _chunks(starts: Any) -> Any:
    """The chunks that windows lie in."""
    return np.unique(np.concatenate([starts // CHUNK, (starts + LENGTH - 1) // CHUNK]))


def _compare(windows: Any, begin: Any, values: Any) -> None:
    got = np.asarray(windows).reshape(-1, LENGTH, WIDTH)
    if begin is None:  # it does not tell where its windows begin: that each is one will do
        steps = np.abs(np.diff(got.astype("f8"), axis=1)).max()
        if steps > 9.01 / 256:
            raise ValueError("windows with gaps")
        return
    for window, start in zip(got, np.asarray(begin), strict=True):
        if not np.array_equal(window, values[start : start + LENGTH]):
            raise ValueError("wrong windows")


# -- in the parent --------------------------------------------------------------------------


def _line(one: Any, made: Entry) -> dict[str, Any]:
    return line_of(one, made.readings, made.error, FIGURES)


def measure(bench: Bench) -> dict[str, Any]:
    """Both ways, on one core and on all."""
    count = 1_000_000 if bench.quick else 20_000_000
    limit = 0.12 if bench.quick else 3.0
    folder = bench.folder / "w3"
    folder.mkdir()
    source = folder / "series.npy"
    data.series(source, count, WIDTH)
    readers = [one for one in everyone() if bench.wants(one.library)]
    here = [one for one in readers if not one.missing()]
    sets = []
    for cores in bench.cores:
        with bench.children([one.library for one in here], cores) as children:
            paths = {one.name: folder / "stored" / one.store for one in here}
            todo = {
                paths[one.name]: (one.library, (one.name, str(source)))
                for one in here
                if not paths[one.name].exists()
            }
            failed = stored(children, MODULE, todo)
            for verb in ("random", "overlapping"):
                field = [
                    (
                        one,
                        entry(
                            one.name,
                            children[one.library],
                            f"{MODULE}:read",
                            *(one.name, str(source), str(paths[one.name]), verb),
                            8 * limit if one.order == "pool" else limit,  # first it fills the pool
                        ),
                        paths[one.name],
                    )
                    for one in here
                    if verb in one.verbs
                ]
                title = f"W3 {verb}, {cores} cores"
                results = outcome(bench, title, field, failed, _line)
                sets.append({"cores": cores, "verb": verb, "results": results})
    shutil.rmtree(folder)
    return {
        "steps": count,
        "width": WIDTH,
        "length": LENGTH,
        "batch": BATCH,
        "stride": STRIDE,
        "chunk": CHUNK,
        "sets": sets,
        "absent": {one.library: one.missing() for one in readers if one.missing()},
    }
