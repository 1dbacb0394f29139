"""zarr's stores as drivers of ours."""

from __future__ import annotations

from pathlib import Path

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
