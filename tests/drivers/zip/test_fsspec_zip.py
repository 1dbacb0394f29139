"""Datasets in one zip file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.zip import ZipDriver
from tensorstash.errors import Corrupt, Unsupported
from tensorstash.registry import connect
from tensorstash.testing.driver import DriverContract

VALUES = np.arange(600, dtype="i4").reshape(20, 30)


class TestZip(DriverContract):
    rounds = 200
    many = 200
    examples = 10

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Driver:
        return ZipDriver(tmp_path / "data.zip", "inner")


def test_zarr_reads_and_writes_the_same_file(tmp_path: Path) -> None:
    url = f"zip://{tmp_path}/data.zip"
    stash.save(url, VALUES, chunks=(8, 8), shards=(16, 16))
    with zipfile.ZipFile(tmp_path / "data.zip") as archive:
        assert archive.testzip() is None
    store = zarr.storage.ZipStore(tmp_path / "data.zip", mode="r")
    assert np.array_equal(zarr.open_array(store, mode="r")[...], VALUES)
    store.close()
    array = stash.open(url, mode="r+")
    array.append(VALUES[:3])
    array[0, 0] = -1
    assert stash.open(url).shape == (23, 30)
    with zarr.storage.ZipStore(tmp_path / "other.zip", mode="w") as store:
        zarr.create_array(store, shape=(20, 30), chunks=(8, 8), dtype="i4")[...] = VALUES
    assert np.array_equal(stash.open(f"zip://{tmp_path}/other.zip")[...], VALUES)


def test_deflated_members_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/k", bytes(1000) + b"end")
        archive.mkdir("a/folder") if hasattr(archive, "mkdir") else None
    driver = connect(f"zip://a::{tmp_path}/x.zip", {})
    assert driver.get("k") == bytes(1000) + b"end"
    assert [*driver.list()] == ["k"]
    driver.put("l", b"2")
    assert zipfile.ZipFile(tmp_path / "x.zip").read("a/k")[-3:] == b"end"


@pytest.mark.parametrize("lost", [1, 30, 100, 200])
def test_what_a_killed_writer_leaves_is_read_and_repaired(tmp_path: Path, lost: int) -> None:
    driver = ZipDriver(tmp_path / "x.zip")
    for i in range(5):
        driver.put(f"k{i}", b"%d" % i * 100)
    size = os.path.getsize(tmp_path / "x.zip")
    os.truncate(tmp_path / "x.zip", size - lost)
    assert sorted(driver.list()) == [f"k{i}" for i in range(5)]
    driver.put("new", b"value")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 6


def test_damage_is_noticed(tmp_path: Path) -> None:
    driver = ZipDriver(tmp_path / "x.zip")
    driver.put("k", b"0123456789")
    with open(tmp_path / "x.zip", "r+b") as file:
        file.seek(35)
        file.write(b"!")
    with pytest.raises(Corrupt, match="checksum"):
        driver.get("k")


def test_dead_bytes_go(tmp_path: Path) -> None:
    driver = ZipDriver(tmp_path / "x.zip")
    driver.put("kept", b"kept")
    for _ in range(40):
        driver.put("k", bytes(200_000))
    assert os.path.getsize(tmp_path / "x.zip") < 3_000_000
    assert driver.get("kept") == b"kept"
    assert sorted(os.listdir(tmp_path)) == ["x.zip"]


def test_an_archive_elsewhere_is_read(tmp_path: Path) -> None:
    stash.save(f"zip://{tmp_path}/x.zip", VALUES, chunks=(8, 8))
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/far/x.zip", (tmp_path / "x.zip").read_bytes())
    try:
        array = stash.open("zip://::memory://far/x.zip")
        assert np.array_equal(array[...], VALUES)
        assert array[3, 4] == VALUES[3, 4]
        with pytest.raises(Unsupported, match="read only"):
            stash.open("zip://::memory://far/x.zip", mode="r+")[...] = 1
    finally:
        fs.rm("/far", recursive=True)
