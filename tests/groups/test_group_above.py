"""Groups above members: all of them by a group's handle, none above a location that was named."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zarr

import tensorstash as stash


def members_without_a_warning(place: Path) -> set[str]:
    """What zarr-python finds below a group; it warns of what is no part of a hierarchy."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(place, mode="r", use_consolidated=False)
        return {name for name, _ in group.members(max_depth=None)}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_is_made_through_a_group_has_every_group_above_it(
    tmp_path: Path, zarr_format: Literal[2, 3]
) -> None:
    group = stash.create_group(tmp_path / "g", zarr_format=zarr_format)
    group.create("raw/deep/x", (4,), "int32")
    group.create("raw/y", (4,), "int32", overwrite=True)
    group.create_group("a/b/c")
    group.require_group("d/e").create("f/z", (4,), "int32")
    wanted = {"raw", "raw/deep", "raw/deep/x", "raw/y", "a", "a/b", "a/b/c"}
    wanted |= {"d", "d/e", "d/e/f", "d/e/f/z"}
    assert members_without_a_warning(tmp_path / "g") == wanted
    assert {name for name, _ in stash.open_group(tmp_path / "g").walk()} == wanted


def test_concurrent_creators_below_one_group_all_land(tmp_path: Path) -> None:
    stash.create_group(tmp_path / "g")
    begun = threading.Barrier(8)

    def make(k: int) -> None:
        group = stash.open_group(tmp_path / "g", "r+")
        begun.wait()
        group.create(f"raw/deep/x{k}", (4,), "int32")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))
    wanted = {"raw", "raw/deep", *(f"raw/deep/x{k}" for k in range(8))}
    assert members_without_a_warning(tmp_path / "g") == wanted


def test_nothing_is_written_above_the_place_that_was_named(tmp_path: Path) -> None:
    """As by zarr-python and TensorStore: a location that names an array is that array's alone."""
    stash.create(tmp_path / "ours/raw/x", (4,), "int32")
    stash.save(tmp_path / "ours/raw/y", np.arange(4))
    stash.create_group(tmp_path / "ours/raw/g")
    stash.create_records(tmp_path / "ours/raw/r", {"n": {"a": "int32"}})
    zarr.create_array(tmp_path / "theirs/raw/x", shape=(4,), dtype="int32")
    for place in ("ours", "theirs"):
        for above in ("", place, f"{place}/raw"):
            assert not [p for p in (tmp_path / above).iterdir() if p.is_file()], above
    assert members_without_a_warning(tmp_path / "ours/raw/r") == {"n", "n/a"}
    mapping: dict[str, bytes] = {}
    stash.create(mapping, (4,), "int32")  # the place's root is the array
    assert list(mapping) == ["zarr.json"]
