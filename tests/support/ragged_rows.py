"""Records of one ragged field, and what its rows must be."""

from __future__ import annotations

from typing import Any

import numpy as np

import tensorstash as stash
from tests.support.oracle import same

ROWS = 9


def made(ndim: int = 1, rows: int = ROWS, **how: Any) -> stash.Records:
    how = {"rows_per_chunk": 4, **how}
    return stash.create_records({}, {"t": stash.ragged("int32", ndim)}, rows, **how)


def holds(records: stash.Records, wanted: list[np.ndarray]) -> None:
    found = records[:]["t"]
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        same(a, b)
    assert records.lengths("t").tolist() == [len(row) for row in wanted]
