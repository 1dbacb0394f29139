"""The types a caller sees, for mypy (`make lint`); never imported.

Each ``assert_type`` fails the check when a public annotation changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import tensorstash as stash


def arrays(place: Path) -> None:
    a = stash.create(place, shape=(4, 4), dtype="uint8", chunks=(2, 2))
    assert_type(a, stash.Array)
    assert_type(stash.open(place, mode="r+"), stash.Array)
    assert_type(stash.open("file:///x.zarr"), stash.Array)
    assert_type(a.shape, tuple[int, ...])
    assert_type(a.ndim, int)
    assert_type(a.dtype, np.dtype[Any])
    assert_type(stash.load(place), NDArray[Any])
    a[1:, ::2] = 3
    assert_type(a.mmap(0), NDArray[Any])


def groups(place: Path) -> None:
    g = stash.create_group(place)
    assert_type(g, stash.Group)
    assert_type(stash.open_group(place), stash.Group)
    assert_type(g.create("x", shape=(2,), dtype="f4"), stash.Array)
