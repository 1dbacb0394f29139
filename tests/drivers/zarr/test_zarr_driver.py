"""zarr's stores as drivers of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zarr

from tensorstash.driver import Driver
from tensorstash.drivers.zarr import ZarrDriver
from tensorstash.testing.driver import DriverContract


class TestMemoryStore(DriverContract):
    rounds = 100
    many = 100
    examples = 10

    @pytest.fixture
    def driver(self) -> Driver:
        return ZarrDriver(zarr.storage.MemoryStore())


class TestLocalStore(DriverContract):
    rounds = 100
    many = 100
    examples = 10

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Driver:
        return ZarrDriver(zarr.storage.LocalStore(tmp_path / "root"), "below/")


def test_a_folder_that_goes_while_a_store_makes_it_is_made_again(tmp_path: Path) -> None:
    class Busy(zarr.storage.LocalStore):
        tries = 0

        async def set(self, key: str, value: Any) -> None:
            Busy.tries += 1
            if Busy.tries < 3:  # as `Path.mkdir(exist_ok=True)` does where it is gone again
                raise FileExistsError(17, "File exists", "p")
            await super().set(key, value)

    driver = ZarrDriver(Busy(tmp_path))
    driver.put("p/x", b"1")
    assert (Busy.tries, driver.get("p/x")) == (3, b"1")
