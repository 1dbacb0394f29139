"""What takes memory, as a program: the most that one of them holds beyond its result.

``python -m tests.memory.workloads`` reads a JSON object from its standard input: ``work``,
``limit`` in bytes or ``null``, ``place`` (a folder or a URL), ``options`` for its driver, ``mib``
and ``chunk`` (bytes of all, and of one chunk, in MiB). With ``filling`` it stores what is to be
read, as another process than the one that is measured: memory that was had once may be had again
unseen. Else it prints a JSON object: ``peak`` in bytes, ``use`` after it.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import tensorstash as stash

MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """What is to be done, and where."""

    place: str
    options: dict[str, Any]
    limit: int | None
    mib: int
    chunk: float
    filling: bool

    @property
    def cells(self) -> int:
        """Of 4 bytes, in a chunk."""
        return int(self.chunk * MIB) // 4

    @property
    def length(self) -> int:
        """Cells in all."""
        return self.mib * MIB // 4

    def create(self, name: str = "a", shape: Any = None, **how: Any) -> stash.Array:
        how = {"chunks": self.cells, "overwrite": True, **how}
        shape = self.length if shape is None else shape
        return stash.create(f"{self.place}/{name}", shape, "f4", options=self.options, **how)

    def filled(self, width: int = 1, **how: Any) -> stash.Array:
        """Numbers that hardly compress, written a chunk (a shard) at a time; ``width``: in rows of
        so many."""
        if self.filling:
            rows = (self.length // width, width)[: 1 + (width > 1)]
            step = self.cells // width
            chunks = (step, width)[: 1 + (width > 1)]
            array, random = self.create(shape=rows, chunks=chunks, **how), np.random.default_rng(0)
            for where in ranges(rows[0], how.get("shards") or step):
                array[where] = random.random((where.stop - where.start, *rows[1:]), "f4")
        return self.opened()

    def opened(self, name: str = "a", **how: Any) -> stash.Array:
        array = stash.open(f"{self.place}/{name}", options=self.options, **how)
        assert len(array[:3]) == 3  # what is imported on first use
        return array


def ranges(count: int, step: int) -> list[slice]:
    return [slice(k, min(k + step, count)) for k in range(0, count, step)]


Work = Callable[[], Any]


def read(job: Job, **how: Any) -> Work:
    array = job.filled(**how)
    out = np.ones(array.shape, "f4")
    return lambda: (array.read(out=out),)


def read_cached(job: Job) -> Work:
    job.filled()
    array = job.opened(cache="16GiB")
    out = np.ones(array.shape, "f4")
    return lambda: (array.read(out=out), array.read(out=out))


def read_shards(job: Job) -> Work:
    return read(job, shards=8 * job.cells)


def gather(job: Job, cache: Any = 0) -> Work:
    job.filled()
    array = job.opened(cache=cache)
    rows = np.random.default_rng(1).permutation(np.arange(3, job.length, job.cells))
    return lambda: array[rows]


def gather_cached(job: Job) -> Work:
    return gather(job, "16GiB")


def write(job: Job, **how: Any) -> Work:
    array = job.create(**how)
    values = np.random.default_rng(0).random(job.length, "f4")
    array[:3] = 1
    return lambda: array.__setitem__(..., values)


def write_shards(job: Job) -> Work:
    return write(job, shards=8 * job.cells)


def merge(job: Job) -> Work:
    job.filled()
    array = stash.open(f"{job.place}/a", "r+", options=job.options)
    array[1 : 5 * job.cells : job.cells] = 1  # what is begun for a first one
    return lambda: array.__setitem__(slice(1, None, 3 * job.cells // 2), 0)


def writer(job: Job) -> Work:
    """Over a full grid, every chunk of which is filled bit by bit."""
    side = int(job.cells**0.5)
    columns = 16 * side
    array = job.create(shape=(job.length // columns, columns), chunks=(side, side))
    rows = np.random.default_rng(0).random((8, columns), "f4")

    def work() -> None:
        with array.writer("16GiB") as held:
            for k in range(0, array.shape[0] // 8 * 8, 8):
                held[k : k + 8, :-1] = rows[:, :-1]

    return work


def record_writer(job: Job) -> Work:
    records = stash.create_records(
        f"{job.place}/r",
        {"x": ((256,), "f4"), "y": ((256,), "f4")},
        rows_per_chunk=job.cells // 256,
        overwrite=True,
        options=job.options,
    )
    rows = np.random.default_rng(0).random((64, 256), "f4")

    def work() -> None:
        with records.writer("16GiB") as held:
            for _ in range(job.length // rows.size // 2):
                held.extend({"x": rows, "y": rows})

    return work


def loader(job: Job, **how: Any) -> Work:
    from tensorstash.torch import Loader

    made = Loader(job.filled(256), 64, threads=8, pool_bytes="4GiB", **how)
    return lambda: sum(len(batch) for batch in islice(made, 150))


def loader_shuffled(job: Job) -> Work:
    return loader(job, shuffle=True)


def loader_exact(job: Job) -> Work:
    return loader(job, shuffle="exact")


def copy(job: Job) -> Work:
    array = job.filled()
    if not job.filling:  # what is imported and begun for a first copy
        few = job.create("few", 8, chunks=8)
        few[...] = 1
        stash.copy(few, f"{job.place}/more", options=job.options, overwrite=True)
    return lambda: stash.copy(array, f"{job.place}/b", options=job.options, overwrite=True)


WORKS: dict[str, Callable[[Job], Work]] = {
    work.__name__: work
    for work in (
        *(read, read_cached, read_shards, gather, gather_cached, write, write_shards, merge),
        *(writer, record_writer, loader, loader_shuffled, loader_exact, copy),
    )
}


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


def main() -> None:
    asked = json.load(sys.stdin)
    work = asked.pop("work")
    job = Job(**asked)
    run = WORKS[work](job)
    if job.filling:
        return
    stash.memory_limit(job.limit)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    found = run()
    peak = status("VmHWM") - before
    if isinstance(found, np.ndarray):
        peak -= found.nbytes
    print(json.dumps({"peak": peak, "use": stash.memory_use()}))


if __name__ == "__main__":
    main()
