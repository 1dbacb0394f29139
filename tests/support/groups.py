"""A group to test with."""

from __future__ import annotations

from typing import Any

import tensorstash as stash


def populated(place: Any, zarr_format: Any = 3) -> stash.Group:
    group = stash.create_group(place, {"title": "run"}, zarr_format=zarr_format)
    group.create("raw/image", (4, 6), "u2", chunks=(2, 3), attributes={"unit": "K"})[...] = 7
    group.create("raw/mask", (4, 6), "b1")
    group.create("time", (4,), "f8")[...] = [0, 1, 2, 3]
    group.create_group("empty", {"note": "nothing yet"})
    return group
