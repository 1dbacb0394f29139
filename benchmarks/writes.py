"""S7: the whole of S1, one row at a time, a thousand appends."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import samples
from .cases import FASTEST, FASTEST_ZARR, FLOOR, FLOORS, Case, Check, Goal, Workload
from .floor import Floor
from .layout import CODECS, Layout
from .peer import OURS, Peer
from .samples import Array
from .setting import Setting, cores, race
from .slices import volume
from .timing import Contestant

WIDTH, CHUNK, STEP = 512, 64, 10
Job = Callable[[Peer, Any, Array], None]
_fresh = itertools.count()


def contestant(
    folder: Path, peer: Peer, layout: Layout, values: Array, job: Job, sizes: dict[str, int]
) -> Contestant:
    """``job`` into a new array each time; what it wrote is read back and compared once, and its
    size noted in ``sizes``."""

    def prepare() -> tuple[Path, Any]:
        path = folder / f"{next(_fresh)}.{peer.format}"
        return path, peer.create(path, layout)

    def run(ready: tuple[Path, Any]) -> Path:
        path, handle = ready
        job(peer, handle, values)
        return path

    def check(path: Path) -> None:
        handle = peer.open(path)
        stored = peer.read(handle, (slice(None),) * values.ndim)
        peer.close(handle)
        if not np.array_equal(stored, values):
            raise AssertionError("wrong values")
        files = path.rglob("*") if path.is_dir() else [path]
        sizes[peer.name] = sum(file.stat().st_size for file in files if file.is_file())

    return Contestant(peer.name, run, prepare, lambda ready: _drop(ready[0]), check, warm=False)


def _drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def bare(folder: Path, layout: Layout, values: Array) -> list[Contestant]:
    """The floor of a full write, with one thread and with one a core."""

    def writer(name: str, threads: int) -> Contestant:
        return Contestant(
            name,
            lambda path: Floor(path, layout, threads).write(values),
            lambda: folder / f"{next(_fresh)}.bare",
            _drop,
            warm=False,
        )

    return [writer(name, threads) for name, threads in zip(FLOORS, (1, cores()), strict=True)]


def whole(peer: Peer, handle: Any, values: Array) -> None:
    """Everything in one assignment."""
    peer.write(handle, (slice(None),) * values.ndim, values)
    peer.close(handle)


def single(peer: Peer, handle: Any, values: Array) -> None:
    """Row by row, each stored (and seen by other processes) when its call returns."""
    for i in range(len(values)):
        peer.write(handle, (i,), values[i])
    peer.close(handle)


def grow(peer: Peer, handle: Any, values: Array) -> None:
    """Ten rows at a time, each stored when its call returns."""
    for start in range(0, len(values), STEP):
        handle = peer.append(handle, values[start : start + STEP])
    peer.close(handle)


def single_buffered(peer: Peer, handle: Any, values: Array) -> None:
    """Row by row, stored at the end: a writer, a transaction, HDF5's chunk cache."""
    if peer.name == OURS:
        with handle.writer() as writer:
            for i in range(len(values)):
                writer[i] = values[i]
    elif peer.name == "TensorStore":
        import tensorstore as ts

        with ts.Transaction() as transaction:
            view = handle.with_transaction(transaction)
            for i in range(len(values)):
                view[i] = values[i]
    else:
        for i in range(len(values)):
            handle[i] = values[i]
    peer.close(handle)


def grow_buffered(peer: Peer, handle: Any, values: Array) -> None:
    """Ten rows at a time, stored at the end."""
    parts = [values[start : start + STEP] for start in range(0, len(values), STEP)]
    if peer.name == OURS:
        with handle.writer() as writer:
            for part in parts:
                writer.append(part)
    elif peer.name == "TensorStore":
        import tensorstore as ts

        with ts.Transaction() as transaction:
            stop = 0
            for part in parts:
                start, stop = stop, stop + len(part)
                handle = handle.resize(exclusive_max=[stop, WIDTH]).result()
                handle.with_transaction(transaction)[start:stop] = part
    elif peer.format == "h5":
        for part in parts:
            start = handle.shape[0]
            handle.resize(start + len(part), axis=0)
            handle[start:] = part
    else:
        for part in parts:
            handle.append(part)
    peer.close(handle)


def writes(setting: Setting) -> Workload:
    """S7."""
    work = Workload(
        "S7", "full write of S1; one row at a time; appends of 10 rows; times per row or append"
    )
    folder = setting.folder / "writes"
    folder.mkdir(exist_ok=True)
    values = volume(setting.edge)
    for codec in CODECS:
        layout = Layout(values.shape, "u2", (64,) * 3, codec)
        field = [
            contestant(folder, peer, layout, values, whole, {})
            for peer in setting.peers
            if peer.handles(layout)
        ]
        field += bare(folder, layout, values)
        results = race(setting, f"S7 full write, {codec}", field)
        goals = (Goal(FASTEST_ZARR, 0.8), Goal(FLOOR, 1.2))
        case = Case("S7", f"full write, {codec}", results, goals, payload=values.nbytes)
        work.cases.append(case)
    count = 256 if setting.quick else 4096
    appends = 50 if setting.quick else 1000
    rows = samples.rows(max(count, appends * STEP), WIDTH)
    jobs: list[tuple[str, Job, Array, bool]] = [
        (f"{count} single rows", single, rows[:count], False),
        (f"{count} single rows, writer", single_buffered, rows[:count], True),
        (f"{appends} appends", grow, rows[: appends * STEP], False),
        (f"{appends} appends, writer", grow_buffered, rows[: appends * STEP], True),
    ]
    for name, job, part, buffered in jobs:
        height = 0 if job in (grow, grow_buffered) else len(part)
        layout = Layout((height, WIDTH), "f4", (CHUNK, WIDTH), "lz4")
        peers = [
            peer
            for peer in setting.peers
            if peer.handles(layout) and not (buffered and peer.name.startswith("zarr"))
        ]
        sizes: dict[str, int] = {}
        field = [contestant(folder, peer, layout, part, job, sizes) for peer in peers]
        results = race(setting, f"S7 {name}", field)
        operations = len(part) if job in (single, single_buffered) else appends
        case = Case("S7", name, results, (Goal(FASTEST, 0.9),), operations, part.nbytes)
        work.cases.append(case)
        if buffered and case.ours:
            factor = case.ours.written / sizes[OURS]
            text = f"{name}: bytes written ≤ 1.1x payload (as compressed)"
            work.checks.append(Check(text, f"{factor:.2f}x", factor <= 1.1))
    work.note = (
        f'Rows of {WIDTH} float32 into {CHUNK}-row chunks, blosc-lz4. Without "writer" every '
        "call's rows are in the file when it returns (h5py and PyTables flush). With it they may "
        "be buffered to the end: our writer, TensorStore's transaction, HDF5's chunk cache; "
        "zarr-python has no such thing. Nobody syncs to the device (TensorStore: "
        "`file_io_sync` off). The floor: copy, encode, write, rename."
    )
    return work
