"""S4: random rows of a table, as a DataLoader asks for them."""

from __future__ import annotations

from functools import cache

import numpy as np

from . import samples
from .cases import FASTEST, FLOOR, Case, Goal, Workload
from .datasets import Dataset
from .layout import Layout
from .setting import Setting, floors, race, readers

table = cache(samples.rows)
WIDTH = 512
BATCH = 256


def layouts(count: int, codec: str) -> dict[str, Layout]:
    """By the words of the table."""
    shape = (count, WIDTH)
    return {
        "64-row chunks": Layout(shape, "f4", (64, WIDTH), codec),
        "1024-row chunks": Layout(shape, "f4", (1024, WIDTH), codec),
        "16 rows in shards": Layout(shape, "f4", (16, WIDTH), codec, (1024, WIDTH)),
    }


def rows(setting: Setting) -> Workload:
    """S4."""
    count = 20_000 if setting.quick else 100_000
    values = table(count, WIDTH)
    work = Workload(
        "S4", f"{BATCH} random rows of {count} x {WIDTH} float32 in one call; times per row"
    )
    random = np.random.default_rng(6)
    unsorted = random.choice(count, BATCH, replace=False)
    repeated = random.choice(unsorted[: BATCH // 4], BATCH)
    batches = {"sorted": np.sort(unsorted), "unsorted": unsorted, "repeated": repeated}
    for codec in ("lz4",) if setting.quick else ("raw", "lz4"):
        for words, layout in layouts(count, codec).items():
            data = Dataset(setting.folder / "rows", values, layout)
            for order, batch in batches.items():
                expected = values[batch]
                field = [
                    *readers(data, setting.peers, ("take", batch), expected),
                    *floors(data, ("take", batch), expected),
                ]
                name = f"{codec}, {words}, {order}"
                results = race(setting, f"S4 {name}", field)
                limit = 0.75 if words.startswith("1024-row") else 0.6
                goals = (Goal(FASTEST, limit), Goal(FLOOR, 1.2))
                size = expected.nbytes
                work.cases.append(Case("S4", name, results, goals, BATCH, size))
    work.note = (
        f"Repeated: {BATCH} draws with replacement from {BATCH // 4} rows, unsorted. h5py and "
        "PyTables want increasing indices: they get the sorted unique rows, and NumPy puts them "
        "in place. HDF5 has no shards: it has 16-row chunks there."
    )
    return work
