"""Consolidated metadata, and groups between zarr-python and us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import NotFound
from tensorstash.testing.counting import Count, CountingDriver
from tests.groups import populated

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")


# -- consolidated metadata ---------------------------------------------------------------------


def test_a_consolidated_group_is_one_read(zarr_format: Any) -> None:
    driver = CountingDriver(MemoryDriver())
    populated(driver, zarr_format).consolidate()
    driver.reset()
    group = stash.open_group(driver)
    opened = driver.reads
    assert opened.calls <= (1 if zarr_format == 3 else 5)
    driver.reset()
    assert list(group) == ["empty", "raw", "time"]
    assert group.tree().count("\n") == 5
    assert "raw/image" in group
    assert "raw/nope" not in group
    image = group["raw"]["image"]
    assert (image.shape, image.chunks, image.attrs["unit"]) == ((4, 6), (2, 3), "K")
    assert group["empty"].attrs["note"] == "nothing yet"
    with pytest.raises(NotFound):
        group["raw/nope"]
    assert driver.counts == {}
    assert (image[...] == 7).all()
    assert driver.reads.keys == 4
    assert driver.counts["list_dir"] == Count()


def test_a_writer_sees_past_consolidated_metadata(zarr_format: Any) -> None:
    group = populated({}, zarr_format)
    group.consolidate()
    group.create("later", (2,), "i4")
    del group["raw"]
    group["time"].append([4])
    assert list(group) == ["empty", "later", "time"]
    assert group["time"].shape == (5,)
    assert "raw" in stash.open_group(group.driver)  # as of then
    group.attrs["more"] = 1
    assert "raw" in stash.open_group(group.driver)  # still consolidated
    group.consolidate()
    again = stash.open_group(group.driver)
    assert list(again) == ["empty", "later", "time"]
    assert again["time"].shape == (5,)
    assert again.attrs["more"] == 1


@pytest.mark.parametrize("consolidated", [False, True])
def test_zarr_reads_our_groups(tmp_path: Path, zarr_format: Any, consolidated: bool) -> None:
    group = populated(tmp_path / "g", zarr_format)
    if consolidated:
        group.consolidate()
    theirs = zarr.open_group(
        str(tmp_path / "g"), mode="r", zarr_format=zarr_format, use_consolidated=consolidated
    )
    assert dict(theirs.attrs) == {"title": "run"}
    assert sorted(theirs.keys()) == ["empty", "raw", "time"]
    np.testing.assert_array_equal(theirs["raw/image"][...], np.full((4, 6), 7))
    assert dict(theirs["raw/image"].attrs) == {"unit": "K"}
    assert dict(theirs["empty"].attrs) == {"note": "nothing yet"}
    assert theirs["time"][...].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("consolidated", [False, True])
def test_we_read_zarrs_groups(tmp_path: Path, zarr_format: Any, consolidated: bool) -> None:
    theirs = zarr.create_group(str(tmp_path / "g"), zarr_format=zarr_format, attributes={"a": 1})
    image = theirs.create_array("raw/image", shape=(4, 6), chunks=(2, 3), dtype="u2")
    image[...] = 7
    image.attrs["unit"] = "K"
    theirs.create_group("empty")
    if consolidated:
        zarr.consolidate_metadata(str(tmp_path / "g"), zarr_format=zarr_format)
    for mode in ("r", "r+"):
        group = stash.open_group(tmp_path / "g", mode)  # type: ignore[arg-type]
        assert dict(group.attrs) == {"a": 1}
        assert [name for name, _ in group.walk()] == ["empty", "raw", "raw/image"]
        assert (group["raw/image"][...] == 7).all()
        assert dict(group["raw"]["image"].attrs) == {"unit": "K"}
