"""Several processes write to one array at the same time, and nothing is lost.

First, four processes write interleaved rows: every chunk is changed by all of them. Then they
append to one array, all at once. At the end every row must be there, exactly once.

    python examples/many_writers.py
"""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import numpy as np

import tensorstash as stash

WRITERS = 4
ROWS = 64
APPENDS = 5
BATCH = 10


def write_rows(place: Path, writer: int) -> None:
    """Write every fourth row, one at a time, into chunks that the others write too."""
    array = stash.open(place, mode="r+")
    for row in range(writer, ROWS, WRITERS):
        array[row] = writer * 1000 + row


def append_rows(place: Path, writer: int) -> None:
    """Append batches that say who wrote them."""
    array = stash.open(place, mode="r+")
    for batch in range(APPENDS):
        array.append(np.full((BATCH, 2), (writer, batch), "int32"))


def at_once(target: object, place: Path) -> None:
    """Run ``target`` in several processes that start together."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=target, args=(place, writer))  # type: ignore[arg-type]
        for writer in range(WRITERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, process


def main() -> None:
    """Write together, append together, check every row."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "shared-chunks.zarr"
        stash.create(place, shape=(ROWS, 100), dtype="int32", chunks=(16, 100), fill_value=-1)
        at_once(write_rows, place)
        rows = np.arange(ROWS)
        wanted = np.repeat((rows % WRITERS * 1000 + rows)[:, None], 100, axis=1)
        assert np.array_equal(stash.load(place), wanted)
        print(f"{WRITERS} processes wrote {ROWS} interleaved rows of 4 chunks: none was lost")

        place = Path(folder) / "log.zarr"
        stash.create(place, shape=(0, 2), dtype="int32", chunks=(16, 2))
        at_once(append_rows, place)
        log = stash.load(place)
        assert log.shape == (WRITERS * APPENDS * BATCH, 2)
        # Each append is one piece: ten equal rows, wherever it landed.
        pieces = log.reshape(-1, BATCH, 2)
        assert (pieces == pieces[:, :1]).all()
        assert {tuple(piece[0]) for piece in pieces.tolist()} == {
            (writer, batch) for writer in range(WRITERS) for batch in range(APPENDS)
        }
        print(f"{WRITERS * APPENDS} appends of {BATCH} rows at once: all {len(log)} rows are there")


if __name__ == "__main__":
    main()
