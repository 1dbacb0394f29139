"""W2: random rows of a matrix, and single columns of the same matrix."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import fill
from ..layout import Layout
from ..peer import OURS
from ..samples import Array
from . import data
from .bench import Bench, Entry, entry, extent, middle, outcome, stored
from .child import State
from .gauge import Gauge
from .row_peers import PEERS

MODULE = "benchmarks.training.vectors"
WIDTH, BATCH = 256, 256
SHAPES = {
    "256 rows": ((256, WIDTH), None),
    "16 rows": ((16, WIDTH), None),
    "16 rows in shards of 4096": ((16, WIDTH), (4096, WIDTH)),
    "raw": ((4096, WIDTH), None),
}


@dataclass(frozen=True, slots=True)
class Way:
    """A library, how it stores the matrix, and whether it keeps decoded chunks."""

    library: str
    shape: str
    how: str
    cached: bool = False

    @property
    def name(self) -> str:
        """Words for a table."""
        shape = {"raw": "uncompressed", "own": "as it comes"}.get(self.shape, self.shape)
        return f"{self.library}: {shape}{', cache of a quarter' if self.cached else ''}"


def ways() -> list[Way]:
    """All contestants."""
    found = [Way(OURS, "256 rows", "other")]
    found += [
        Way(OURS, "16 rows in shards of 4096", "fast"),
        Way(f"{OURS} records", "own", "defaults"),
    ]
    found += [Way(OURS, "256 rows", "other", cached=True)]
    for library in ("zarr-python", "TensorStore"):
        found += [
            Way(library, "256 rows", "defaults"),
            Way(library, "16 rows in shards of 4096", "fast"),
        ]
    found.append(Way("TensorStore", "256 rows", "fast", cached=True))
    for library in ("h5py", "PyTables"):
        found += [Way(library, "256 rows", "defaults"), Way(library, "16 rows", "fast")]
    found.append(Way("h5py", "256 rows", "fast", cached=True))
    return [*found, Way("Lance", "own", "defaults"), Way("np.memmap", "raw", "ceiling")]


def _layout(way: Way, rows: int) -> Layout:
    chunks, shards = SHAPES.get(way.shape, SHAPES["256 rows"])
    codec = "raw" if way.shape == "raw" else "lz4"
    return Layout((rows, WIDTH), "f4", chunks, codec, shards)


# -- in the child ---------------------------------------------------------------------------


def write(state: State, way: Way, source: str, path: str) -> None:
    """Store the matrix."""
    del state
    values = np.load(source, mmap_mode="r")
    peer, layout = PEERS[way.library](), _layout(way, len(values))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handle = peer.create(Path(path), layout)
    fill(peer, handle, values, layout)
    peer.close(handle)


def _open(state: State, way: Way, path: str, nbytes: int) -> tuple[Any, Any]:
    if way not in state:
        peer = PEERS[way.library]()
        state[way] = peer, peer.open_kept(Path(path), nbytes // 4 if way.cached else 0)
    peer, handle = state[way]
    return peer, handle


def rows(state: State, way: Way, source: str, path: str, limit: float, turn: int) -> dict[str, Any]:
    """Batches of random rows for ``limit`` seconds, other ones in every turn."""
    values: Array = np.load(source, mmap_mode="r")
    peer, handle = _open(state, way, path, values.nbytes)
    random = np.random.default_rng(turn)
    batches = [random.integers(0, len(values), BATCH) for _ in range(2000)]
    if not np.array_equal(np.asarray(peer.take(handle, batches[0])), values[batches[0]]):
        raise ValueError("wrong rows")
    before = peer.decoded(handle)
    done = 0
    with Gauge() as gauge:
        for batch in batches:
            peer.take(handle, batch)
            done += 1
            if gauge.elapsed > limit:
                break
    count = done * BATCH
    height = peer.height(handle) or _layout(way, len(values)).chunks[0]
    wanted = sum(len(np.unique(b // height)) for b in batches[:done])
    after = peer.decoded(handle)
    return {
        **gauge.as_dict(),
        "rate": count / gauge.wall,
        "cpu_us": gauge.cpu / count * 1e6,
        "amplification": gauge.read / (count * WIDTH * 4),
        "chunks": (after - before) / done if after is not None and before is not None else None,
        "distinct": wanted / done,
    }


def column(
    state: State, way: Way, source: str, path: str, limit: float, turn: int
) -> dict[str, Any]:
    """One whole column, another in every turn; the limit bounds nothing here."""
    del limit
    values: Array = np.load(source, mmap_mode="r")
    peer, handle = _open(state, way, path, values.nbytes)
    at = (turn * 37) % WIDTH
    with Gauge() as gauge:
        found = np.asarray(peer.read(handle, (slice(None), slice(at, at + 1))))
    if turn == 0 and not np.array_equal(found.reshape(-1), values[:, at]):
        raise ValueError("wrong column")
    return {
        **gauge.as_dict(),
        "rate": len(values) / gauge.wall,
        "cpu_us": gauge.cpu / len(values) * 1e6,
        "amplification": gauge.read / (len(values) * 4),
    }


# -- in the parent --------------------------------------------------------------------------


def measure(bench: Bench) -> dict[str, Any]:
    """Rows and a column, on one core and on all."""
    count = 65_536 if bench.quick else 1_000_000
    limit = 0.12 if bench.quick else 3.0
    folder = bench.folder / "w2"
    folder.mkdir()
    source = folder / "matrix.npy"
    data.matrix(source, count, WIDTH)
    here = [way for way in ways() if bench.wants(way.library)]
    why = {way: PEERS[way.library]().missing() for way in here}
    running = [way for way in here if not why[way]]
    sets = []
    for cores in bench.cores:
        with bench.children([way.library for way in running], cores) as children:
            paths = {way: _path(folder, way) for way in running}
            todo = {
                paths[way]: (way.library, (way, str(source)))
                for way in running
                if not paths[way].exists()
            }
            failed = stored(children, MODULE, todo)
            for verb in ("rows", "column"):
                field = [
                    (
                        way,
                        entry(
                            way.name,
                            children[way.library],
                            f"{MODULE}:{verb}",
                            *(way, str(source), str(paths[way]), limit),
                        ),
                        paths[way],
                    )
                    for way in running
                ]
                title = f"W2 {verb}, {cores} cores"
                results = outcome(bench, title, field, failed, _line)
                sets.append({"cores": cores, "verb": verb, "results": results})
    shutil.rmtree(folder)
    absent = {way.library: text for way, text in why.items() if text}
    return {"rows": count, "width": WIDTH, "batch": BATCH, "sets": sets, "absent": absent}


def _path(folder: Path, way: Way) -> Path:
    words = f"{PEERS[way.library].format}-{way.shape}"
    return folder / "".join(c if c.isalnum() else "-" for c in words)


def _line(way: Way, made: Entry) -> dict[str, Any]:
    names = ("rate", "cpu_us", "amplification", "peak", "chunks", "distinct")
    return {
        "library": way.library,
        "variant": way.name.split(": ", 1)[1],
        "how": way.how,
        "error": made.error,
        **{name: middle(made.readings, name) for name in names},
        "range": extent(made.readings, "rate"),
    }
