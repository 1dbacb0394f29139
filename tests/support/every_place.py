"""A place of every kind of driver that stores: for what must hold on all of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import zarr

from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.fsspec import connect as fsspec_connect
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.drivers.shm import ShmDriver
from tensorstash.drivers.zarr import ZarrDriver
from tensorstash.drivers.zip import ZipDriver
from tensorstash.registry import connect

KINDS = ("file", "memory", "shm", "zip", "s3fs", "obstore", "redis", "fsspec", "zarr")


@contextmanager
def place(kind: str, folder: Path, fixture: Callable[[str], Any]) -> Iterator[Driver]:
    """An empty place; ``fixture`` is pytest's ``request.getfixturevalue``."""
    name = uuid.uuid4().hex
    if kind == "file":
        yield FileDriver(folder / name)
    elif kind == "memory":
        yield MemoryDriver({})
    elif kind == "shm":
        driver = ShmDriver(f"test-{name}")
        yield driver
        driver.close()
    elif kind == "zip":
        yield ZipDriver(folder / f"{name}.zip")
    elif kind in ("s3fs", "obstore"):
        server = fixture("s3")
        options = {**server.options, "client": kind, "lease": 2.0}
        driver = connect(f"s3://{server.make_bucket()}/{name}", options)
        yield driver
        driver.close()
    elif kind == "redis":
        driver = connect(fixture("valkey_server").fresh(), {"lease": 1.5})
        yield driver
        driver.close()
    elif kind == "fsspec":
        yield fsspec_connect(f"/{name}", fs=fsspec.filesystem("memory"), unsafe=True)
    else:
        yield ZarrDriver(zarr.storage.MemoryStore())


def stored(driver: Driver) -> dict[str, bytes]:
    """Everything at a place."""
    found = {key: driver.get(key) for key in driver.list()}
    return {key: bytes(value) for key, value in found.items() if value is not None}
