"""W8: a replay buffer that is filled: single rows of a long one, and batches at its end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..redis_peers import HOST
from .bench import Bench, entry, extent, middle, race
from .child import State
from .fillers import by_name, everyone
from .gauge import Gauge

MODULE = "benchmarks.training.filling"
CHUNK, BLOCKS, BATCH = 64, 8, 64
SIZES = (1_000, 10_000, 100_000)
LARGE = 1_000_000
"""Ours alone."""


def row(side: int, seed: int, count: int | None = None) -> dict[str, Any]:
    """A row of noise, or ``count`` of them as columns."""
    random = np.random.default_rng(seed)
    lead = () if count is None else (count,)
    return {
        "obs": random.integers(0, 256, (*lead, side, side, 3), dtype=np.uint8),
        "action": random.standard_normal((*lead, 4), dtype=np.float32),
        "reward": np.float32(seed) if count is None else np.full(count, seed, np.float32),
    }


# -- in the child ---------------------------------------------------------------------------


def rows(
    state: State, name: str, place: str, size: int, side: int, limit: float, turn: int
) -> dict[str, Any]:
    """Assign rows anywhere in eight chunks for ``limit`` seconds."""
    filler = by_name(name)
    random = np.random.default_rng(turn)
    if turn == 0:
        handle = filler.create(place, size, side)
        starts = np.linspace(0, size - CHUNK, BLOCKS).astype(int) // CHUNK * CHUNK
        state[place] = handle, starts
        # A chunk that is there costs more than one that is not; a slow one is not asked twice.
        for start in starts[: 1 if filler.whole else None]:
            filler.put(handle, int(start), filler.row(row(side, int(start))))
    handle, starts = state[place]
    at = (starts[random.integers(0, BLOCKS, 4000)] + random.integers(0, CHUNK, 4000)).tolist()
    values = [filler.row(row(side, i)) for i in range(16)]
    done = 0
    before = _traffic(place) if filler.redis else 0
    with Gauge() as gauge:
        for k, i in enumerate(at):
            filler.put(handle, i, values[k % 16])
            done += 1
            if gauge.elapsed > limit:
                break
    if turn == 0:
        _compare(filler.get(handle, at[done - 1]), row(side, (done - 1) % 16))
    return _figures(gauge, done, limit, _traffic(place) - before if filler.redis else None)


def batches(
    state: State, name: str, place: str, size: int, side: int, limit: float, turn: int
) -> dict[str, Any]:
    """Append batches of 64 rows for ``limit`` seconds to what has ``size`` rows."""
    filler = by_name(name)
    if turn == 0:
        state[place] = filler.create_growing(place, size, side)
    handle = state[place]
    values = [filler.columns(row(side, i, BATCH)) for i in range(4)]
    done = 0
    before = _traffic(place) if filler.redis else 0
    with Gauge() as gauge:
        while gauge.elapsed < limit and done < 200:
            handle = filler.append(handle, values[done % 4])
            done += 1
    state[place] = handle
    return _figures(gauge, done * BATCH, limit, _traffic(place) - before if filler.redis else None)


def _traffic(place: str) -> int:
    """Bytes that the server has received and sent so far."""
    import redis

    with redis.Redis(HOST, int(place.split("/")[0])) as client:
        told = client.info("stats")
    return int(told["total_net_input_bytes"]) + int(told["total_net_output_bytes"])


def _figures(gauge: Gauge, rows: int, limit: float, traffic: int | None) -> dict[str, Any]:
    moved = gauge.read + gauge.written if traffic is None else traffic
    return {
        "ms": gauge.wall / rows * 1e3,
        "cpu_ms": gauge.cpu / rows * 1e3,
        "touched": moved / rows,
        "peak": gauge.peak,
        "cut": gauge.wall > 10 * limit,  # too slow to be asked often
    }


def _compare(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if not np.array_equal(np.asarray(got[key]).reshape(np.shape(value)), value):
            raise ValueError(f"{key} is not what was written")


# -- in the parent --------------------------------------------------------------------------


def measure(bench: Bench) -> dict[str, Any]:
    """Rows at several lengths, and appends; on disk and in Redis."""
    side = 16 if bench.quick else 84
    limit = 0.1 if bench.quick else 2.0
    sizes = SIZES[:2] if bench.quick else SIZES
    folder = bench.folder / "w8"
    folder.mkdir()
    fillers = [one for one in everyone() if bench.wants(one.library)]
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        port = _server(stack) if any(one.redis for one in fillers) else 0
        here = [one for one in fillers if not one.missing() and (port or not one.redis)]
        cores = bench.cores[-1]
        children = stack.enter_context(bench.children([one.library for one in here], cores))
        for one in here:
            entries, keys = [], []
            for verb in one.verbs:
                lengths = [*sizes, LARGE] if one.large else list(sizes)
                for size in lengths if verb == "rows" else sizes[-1:]:
                    task = f"{MODULE}:{verb}"
                    place = _place(one, folder, port, f"{size}-{verb}")
                    arguments = (one.name, place, size, side, limit)
                    entries.append(entry(one.name, children[one.library], task, *arguments))
                    keys.append((verb, str(size)))
            race(bench, entries, 600)  # the lengths of one library take turns
            line = found.setdefault(one.name, {"rows": {}, "batches": {}})
            for (verb, size), made in zip(keys, entries, strict=True):
                cell = line[verb][size] = _cell(made.readings, made.error)
                told = cell["error"] or f"{cell['ms']:.3f} ms, {cell['touched'] / 1e3:.0f} kB"
                bench.say(f"W8 {one.name}, {verb}, {int(size):,}: {told}")
    lines = []
    for one in fillers:
        line = found.get(one.name, {"rows": {}, "batches": {}})
        why = one.missing() or ("no server" if one.redis and not port else "")
        lines.append(
            {
                "library": one.library,
                "variant": one.variant,
                "how": one.how,
                "redis": one.redis,
                "error": why,
                **line,
            }
        )
    return {
        "side": side,
        "row_bytes": side * side * 3 + 20,
        "chunk": CHUNK,
        "batch": BATCH,
        "sizes": [*sizes, LARGE],
        "lines": lines,
    }


def _place(one: Any, folder: Path, port: int, words: str) -> str:
    name = "".join(c if c.isalnum() else "-" for c in f"{one.name}-{words}")
    return f"{port}/{name}" if one.redis else str(folder / name)


def _server(stack: ExitStack) -> int:
    """A Redis server's port; 0 where there is none."""
    try:
        from tests.servers.valkey import valkey

        server = valkey()
    except BaseException as error:  # a skip of the tests is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return 0
    stack.callback(server.close)
    return int(server.port)


def _cell(readings: list[dict[str, Any]], error: str) -> dict[str, Any]:
    names = ("ms", "cpu_ms", "touched", "peak")
    return {
        "error": error,
        **{name: middle(readings, name) for name in names},
        "range": extent(readings, "ms"),
    }
