"""The types a caller sees, for mypy (`make lint`); never imported.

Each ``assert_type`` fails the check when a public annotation changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, assert_type

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
    g.create("y", 3, "f4", chunks=2, zarr_format=3)
    g.create("y", 3, "f4", chunk=2)  # type: ignore[call-arg]


def trees(place: Path) -> None:
    assert_type(stash.exists(place, path="raw"), bool)
    assert_type(stash.ls(place), list[stash.Entry])
    for entry in stash.walk(place, include="raw/**", exclude=["*.tmp"], fields=True):
        assert_type(entry.path, str)
        assert_type(entry.kind, Literal["array", "group", "records", "unreadable"])
        assert_type(entry.shape, tuple[int, ...] | None)
    stash.delete(place, path="raw", missing_ok=True)
    stash.walk(place, include=3)  # type: ignore[arg-type]


def options(place: Path) -> None:
    """What is not ignored is refused, and an ignore that is of no use is refused too."""
    stash.create(place, 3, "u1", chunks=2, codecs="zstd", cache="1GiB", options={"key": "k"})
    stash.create(place, 3, "u1", chunk=2)  # type: ignore[call-arg]
    stash.create(place, 3, "u1", order="X")  # type: ignore[arg-type]
    stash.open(place, "a", shape=3, dtype="u1", immutable=True, cache_dir=place)
    stash.open(place, missing="ignore")  # type: ignore[arg-type]
    stash.save(place, [1, 2], dtype="i8", shards=4, write_fill=True)
    stash.save(place, [1, 2], immutable=True)  # type: ignore[call-arg]
    stash.load(place, threads=2, limits={"chunk": "4GiB"})
    stash.load(place, chunks=2)  # type: ignore[call-arg]
    stash.copy(place, "memory://x", dtype="f4", codecs=None)
    stash.copy(place, "memory://x", shape=3)  # type: ignore[call-arg]
    stash.create_group(place, options={}, limits=None)
    stash.open_group(place, cach="1GiB")  # type: ignore[call-arg]


def records(place: Path) -> None:
    r = stash.create_records(place, {"x": int}, rows_per_chunk=8, attributes={"a": 1})
    assert_type(r, stash.Records)
    assert_type(stash.open_records(place, allow_pickle=True), stash.Records)
    stash.create_records(place, {"x": int}, chunks=8)  # type: ignore[call-arg]
    stash.save_records(place, {"x": [1]}, codecs={"x": "zstd"}, threads=1)
    r.add_field("y", float, codecs="zstd", fill_value=0.5)
    r.add_field("y", float, chunks=2)  # type: ignore[call-arg]
    r.attrs.update(unit="mm", scale=[1, 2], more={"a": None}, mean=np.float32(1))
    r.attrs.update(unit=place)  # type: ignore[arg-type]
