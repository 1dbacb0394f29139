"""``info()`` says when metadata was last stored, where the store knows, and opening asks nothing
for it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.testing.counting import CountingDriver
from tests.servers.s3 import S3

THEN = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(("version", "name"), [(3, "zarr.json"), (2, ".zarray")])
def test_files(version: Any, name: str, tmp_path: Path) -> None:
    array = stash.create(str(tmp_path), (4,), "i4", zarr_format=version)
    os.utime(tmp_path / name, (THEN.timestamp(),) * 2)
    array[...] = 1  # elements leave the document as it is
    assert array.info().modified == THEN
    assert "changed    2020-01-02 03:04:05 UTC (its metadata)" in str(array.info())
    array.append([1])
    assert (array.info().modified or THEN) > THEN


def test_records(tmp_path: Path) -> None:
    made = stash.save_records(str(tmp_path), {"x": [1, 2]})
    os.utime(tmp_path / "zarr.json", (THEN.timestamp(),) * 2)
    assert made.info().modified == THEN
    assert "changed: 2020-01-02" in str(made.info())


def test_unknown() -> None:
    info = stash.create({}, (4,), "i4").info()
    assert info.modified is None
    assert "unknown" in str(info)
    assert "unknown" in str(stash.save_records({}, {"x": [1]}).info())


def test_opening_asks_for_no_time() -> None:
    inner = MemoryDriver()
    stash.create(inner, (4,), "i4")

    class Asked(CountingDriver):
        asked = 0

        def modified(self, key: str) -> float | None:
            self.asked += 1
            return 7.0

    driver = Asked(inner)
    array = stash.open(driver)
    assert array[...].tolist() == [0] * 4
    assert driver.asked == 0
    assert array.info().modified == datetime.fromtimestamp(7, UTC)
    assert driver.asked == 1


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_s3(s3: S3, client: str) -> None:
    place = f"s3://{s3.make_bucket()}/a"
    array = stash.create(place, (4,), "i4", options={**s3.options, "client": client})
    since = abs((array.info().modified or THEN) - datetime.now(UTC))
    assert since.total_seconds() < 120
