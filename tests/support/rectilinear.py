"""Arrays whose chunks are of listed lengths (Zarr's ``rectilinear`` grids), as others make them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tensorstash as stash


def listed(
    shape: Sequence[int], chunks: Sequence[Any], inner: Sequence[int] | None = None, **more: Any
) -> stash.Array:
    """An array of int32 in memory with ``chunks``: for each axis a length, or a list of lengths
    and of ``[length, count]``. ``inner``: they are shards, with chunks of this shape. Its lists
    are drawn out to the array's shape."""
    if inner is None:
        made = stash.create({}, shape, "i4", chunks=(1,) * len(shape), **more)
    else:
        made = stash.create({}, shape, "i4", chunks=inner, shards=inner, **more)
    document = json.loads(bytes(made.driver.get("zarr.json") or b""))
    lists = [covering(axis, n) for axis, n in zip(chunks, shape, strict=True)]
    grid = {"kind": "inline", "chunk_shapes": lists}
    document["chunk_grid"] = {"name": "rectilinear", "configuration": grid}
    made.driver.put("zarr.json", json.dumps(document).encode())
    return stash.open(made.driver, "r+")


def covering(axis: Any, length: int) -> Any:
    """The lengths of ``axis``, with more chunks of the first length until they cover ``length``."""
    if isinstance(axis, int):
        return axis
    runs = [run if isinstance(run, list) else [run, 1] for run in axis]
    missing = length - sum(edge * count for edge, count in runs)
    return axis if missing <= 0 else [*axis, [runs[0][0], -(-missing // runs[0][0])]]


def lists_of(array: stash.Array) -> Any:
    """The lengths as they are stored by now."""
    document = json.loads(bytes(array.driver.get("zarr.json") or b""))
    return document["chunk_grid"]["configuration"]["chunk_shapes"]
