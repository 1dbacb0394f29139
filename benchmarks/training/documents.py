"""W4: documents of different lengths, as lists, padded and jagged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import Array
from . import data
from .bench import Bench, Entry, entry, line_of, outcome, stored
from .child import State
from .document_readers import by_name, everyone
from .gauge import Gauge
from .quality import quality

MODULE = "benchmarks.training.documents"
FIGURES = ("rate", "tokens", "cpu_us", "amplification", "peak", "first")
BATCH = 32
FORMS = ("list", "padded", "jagged")


# -- in the child ---------------------------------------------------------------------------


def _source(source: str) -> tuple[Array, Array]:
    folder = Path(source)
    return np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "offsets.npy")


def write(state: State, name: str, source: str, path: str) -> None:
    """Store the documents."""
    del state
    Path(path).mkdir(parents=True)
    by_name(name).write(Path(path), *_source(source))


def read(
    state: State, name: str, source: str, path: str, form: str, limit: float, turn: int
) -> dict[str, Any]:
    """Batches for ``limit`` seconds, or one epoch if that is shorter."""
    tokens, offsets = _source(source)
    if name not in state:
        reader = by_name(name)
        state[name] = reader, reader.open(Path(path), offsets)
    reader, handle = state[name]
    seen: list[Array] = []
    kept: list[tuple[Any, Array]] = []
    first, total = 0.0, 0
    with Gauge() as gauge:
        batches = reader.batches(handle, form, BATCH, turn)
        for batch, rows in batches:
            first = first or gauge.elapsed
            seen.append(rows)
            if turn == 0 and len(kept) < 2:
                kept.append((batch, rows))
            if gauge.elapsed > limit:
                break
    batches.close()
    order = np.concatenate(seen)
    count = len(order)
    if reader.tells:
        if len(np.unique(order)) != count:
            raise ValueError("documents came more than once")
        for batch, rows in kept:
            _compare(batch, rows, form, tokens, offsets)
        total = int(np.diff(offsets)[order].sum())
    else:
        total = count * reader.block
    return {
        **gauge.as_dict(),
        "rate": count / gauge.wall,
        "tokens": total / gauge.wall,
        "cpu_us": gauge.cpu / count * 1e6,
        "amplification": gauge.read / (total * 4),
        "first": first,
        "quality": quality(order, BATCH, len(offsets) - 1) if reader.tells else None,
    }


def _compare(batch: Any, rows: Array, form: str, tokens: Array, offsets: Array) -> None:
    wanted = [tokens[offsets[i] : offsets[i + 1]] for i in rows.tolist()]
    if form == "jagged":
        found = [np.asarray(part) for part in batch.unbind()]
    elif form == "padded":
        found = [np.asarray(row[: len(w)]) for row, w in zip(batch, wanted, strict=True)]
    else:
        found = [np.asarray(part) for part in batch]
    for got, want in zip(found, wanted, strict=True):
        if not np.array_equal(got, want):
            raise ValueError("wrong documents")


# -- in the parent --------------------------------------------------------------------------


def _line(one: Any, made: Entry) -> dict[str, Any]:
    return line_of(one, made.readings, made.error, FIGURES)


def measure(bench: Bench) -> dict[str, Any]:
    """The three forms, on one core and on all."""
    count = 20_000 if bench.quick else 200_000
    limit = 0.1 if bench.quick else 3.0
    folder = bench.folder / "w4"
    folder.mkdir()
    offsets = np.concatenate([[0], np.cumsum(data.lengths(count))])
    np.save(folder / "offsets.npy", offsets)
    data.tokens(folder / "tokens.npy", int(offsets[-1]))
    readers = [one for one in everyone() if bench.wants(one.library)]
    here = [one for one in readers if not one.missing()]
    sets = []
    for cores in bench.cores:
        with bench.children([one.library for one in here], cores) as children:
            paths = {one.name: folder / "stored" / one.word for one in here}
            todo = {
                paths[one.name]: (one.library, (one.name, str(folder)))
                for one in here
                if not paths[one.name].exists()
            }
            failed = stored(children, MODULE, todo)
            for form in FORMS:
                field = [
                    (
                        one,
                        entry(
                            one.name,
                            children[one.library],
                            f"{MODULE}:read",
                            *(one.name, str(folder), str(paths[one.name]), form),
                            12 * limit if one.fills else limit,
                        ),
                        paths[one.name],
                    )
                    for one in here
                ]
                title = f"W4 {form}, {cores} cores"
                results = outcome(bench, title, field, failed, _line)
                sets.append({"cores": cores, "verb": form, "results": results})
    shutil.rmtree(folder)
    return {
        "documents": count,
        "tokens": int(offsets[-1]),
        "bytes": int(offsets[-1]) * 4,
        "batch": BATCH,
        "sets": sets,
        "absent": {one.library: one.missing() for one in readers if one.missing()},
    }
