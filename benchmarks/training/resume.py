"""W6: an epoch that is broken off and goes on with other numbers of workers and ranks."""

from __future__ import annotations

import gc
import multiprocessing
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..samples import Array
from .bench import Bench, now
from .child import Child, Failed, State
from .resumers import by_name, everyone

MODULE = "benchmarks.training.resume"
BATCH = 48
"""Of all ranks together, whatever their number: a multiple of all of them and Lance's splits."""
WORKERS = ((1, 2), (1, 1), (1, 3))
WORLDS = ((1, 0), (2, 0), (4, 0))
"""Ranks, and workers of each: until 37 % of the epoch, until 60 %, to the end."""
PARTS = (0.37, 0.60)


# -- in the child ---------------------------------------------------------------------------


def write(state: State, name: str, path: str, rows: int) -> None:
    """Store rows of which each knows its number."""
    del state
    Path(path).mkdir(parents=True)
    by_name(name).write(Path(path), rows)


def phase(
    state: State,
    name: str,
    path: str,
    place: tuple[int, int, int],
    saved: bytes | None,
    steps: int | None,
) -> tuple[Array, bytes, float]:
    """One part of the epoch on one rank: the rows that came, the state after them, and the
    seconds until the first batch. ``place``: rank, ranks, workers."""
    resumer = by_name(name)
    method = "fork" if resumer.forks else "forkserver"
    multiprocessing.set_start_method(method, force=True)
    begin = time.perf_counter()
    running = resumer.start(Path(path), *place, BATCH // place[1], saved)
    rows: list[Array] = []
    first = 0.0
    while steps is None or len(rows) < steps:
        batch = running.next()
        if batch is None:
            break
        first = first or time.perf_counter() - begin
        rows.append(np.asarray(batch, np.int64).reshape(-1))
    blob = running.state() if steps is not None else b""
    with suppress(Exception):
        running.close()
    gc.collect()
    for process in multiprocessing.active_children():
        process.kill()
    return np.concatenate(rows) if rows else np.empty(0, np.int64), blob, first


def merge(state: State, name: str, blobs: list[bytes]) -> bytes:
    """The state to go on with, of those of all ranks."""
    del state
    return by_name(name).merge(blobs)


# -- in the parent --------------------------------------------------------------------------


def measure(bench: Bench) -> dict[str, Any]:
    """All contestants, both ways."""
    rows = 3_072 if bench.quick else 24_576
    lines = []
    for one in everyone():
        late = now() > bench.until
        if not bench.wants(one.library) or late or (bench.quick and one.ranks == "processes"):
            continue
        line: dict[str, Any] = {"library": one.library, "variant": one.variant}
        lines.append(line)
        if one.missing():
            line["error"] = one.missing()
            continue
        word = "".join(c if c.isalnum() else "-" for c in one.name)
        path = bench.folder / "w6" / word
        with Child(bench.folder / "w6.log", bench.cores[-1]) as child:
            try:
                child.call(f"{MODULE}:write", one.name, str(path), rows)
            except Failed as failed:
                line["error"] = str(failed)
                continue
        ways = {"workers": WORKERS if one.workers else (), "worlds": WORLDS if one.ranks else ()}
        for way, places in ways.items():
            line[way] = _run(bench, one, path, rows, places) if places else None
            told = line[way] and (line[way]["error"] or line[way]["words"])
            bench.say(f"W6 {one.name}, {way}: {told or 'has no such thing'}")
    return {"rows": rows, "batch": BATCH, "lines": lines}


def _run(
    bench: Bench, one: Any, path: Path, rows: int, places: tuple[tuple[int, int], ...]
) -> dict[str, Any]:
    total = rows // BATCH
    # After a whole number of rounds of all workers: Lance gives no state anywhere else.
    ends = [round(total * part / 6) * 6 for part in PARTS]
    steps = [ends[0], ends[1] - ends[0], None]
    came: list[Array] = []
    blob: bytes | None = None
    sizes, seconds = [], []
    try:
        for (ranks, workers), count in zip(places, steps, strict=True):
            answers = _phase(bench, one, path, (ranks, workers), blob, count)
            came += [ids for ids, _, _ in answers]
            seconds.append(max(first for _, _, first in answers))
            if count is not None:
                blob = _merged(bench, one, [b for _, b, _ in answers])
                sizes.append(len(blob or b""))
    except Failed as failed:
        return {"error": str(failed), "words": "failed"}
    seen = np.bincount(np.concatenate(came), minlength=rows)
    missing, repeated = int(np.sum(seen == 0)), int(np.sum(np.maximum(seen - 1, 0)))
    exact = not missing and not repeated
    words = "exact" if exact else f"{missing} rows missing, {repeated} repeated"
    return {
        "error": "",
        "exact": exact,
        "missing": missing,
        "repeated": repeated,
        "words": words,
        "state": max(sizes),
        "seconds": max(seconds[1:]),
    }


def _merged(bench: Bench, one: Any, blobs: list[bytes]) -> bytes:
    if len(blobs) == 1:
        return blobs[0]
    with Child(bench.folder / "w6.log", bench.cores[-1]) as child:
        answer: bytes = child.call(f"{MODULE}:merge", one.name, blobs)
    return answer


def _phase(
    bench: Bench,
    one: Any,
    path: Path,
    place: tuple[int, int],
    blob: bytes | None,
    steps: int | None,
) -> list[tuple[Array, bytes, float]]:
    ranks, workers = place
    port = _free_port()
    count = ranks if one.ranks == "processes" else 1
    with ExitStack() as stack:
        children = []
        for rank in range(count):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            given = environment if one.ranks == "processes" else {}
            made = Child(bench.folder / "w6.log", bench.cores[-1], given)
            children.append(stack.enter_context(made))
        tasks = [
            (f"{MODULE}:phase", one.name, str(path), (rank, ranks, workers), blob, steps)
            for rank in range(ranks)
        ]
        if count == 1:
            return [children[0].call(*task, seconds=120) for task in tasks]
        for child, task in zip(children, tasks, strict=True):
            child.send(*task)
        return [child.answer(120) for child in children]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
