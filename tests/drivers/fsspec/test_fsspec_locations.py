"""Objects of fsspec and zarr, and URLs, as locations."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.dirfs import DirFileSystem

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.fsspec import FsspecDriver
from tensorstash.drivers.http import HttpDriver
from tensorstash.drivers.zarr import ZarrDriver
from tensorstash.drivers.zip import ZipDriver
from tensorstash.errors import DriverError, Invalid, Unsupported
from tensorstash.location import resolve

VALUES = np.arange(600, dtype="i4").reshape(20, 30)


@pytest.fixture
def far() -> Iterator[Any]:
    """fsspec's memory, as a place far away."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_what_an_object_or_url_leads_to(tmp_path: Path, far: Any) -> None:
    local = fsspec.filesystem("file")
    leads: list[tuple[Any, type, str]] = [
        (local.get_mapper(str(tmp_path)), FileDriver, f"file://{tmp_path}"),
        (far.get_mapper("/a/b"), FsspecDriver, "memory://a/b"),
        (DirFileSystem("/a/b", far), FsspecDriver, "memory://"),
        ("gs://bucket/x", FsspecDriver, "gs://bucket/x"),
        ("abfs://box/x", FsspecDriver, "abfs://box/x"),
        ("hf://datasets/me/x", FsspecDriver, "hf://datasets/me/x"),
        ("simplecache::https://host/x", FsspecDriver, "simplecache::https://host/x"),
        ("https://host/x", HttpDriver, "https://host/x"),
        (f"zip://{tmp_path}/x.zip", ZipDriver, f"zip://{tmp_path}/x.zip"),
        (f"zip://in::{tmp_path}/x.zip", ZipDriver, f"zip://in::{tmp_path}/x.zip"),
        ("zip://in::gs://bucket/x.zip", FsspecDriver, "zip://in::gs://bucket/x.zip"),
        (zarr.storage.MemoryStore(), ZarrDriver, "zarr://MemoryStore"),
    ]
    for location, kind, url in leads:
        driver = resolve(location)
        assert (type(driver), driver.url) == (kind, url)
    with pytest.raises(Unsupported, match="no driver for"):
        resolve("nonsense://x")
    with pytest.raises(Unsupported, match="no driver for"):
        resolve("simplecache::nonsense://x")


@pytest.mark.parametrize("kind", ["mapper", "folder", "store"])
def test_arrays_in_a_filesystem(far: Any, kind: str) -> None:
    where: dict[str, Any] = {
        "mapper": far.get_mapper("/a"),
        "folder": DirFileSystem("/a", far),
        "store": zarr.storage.StorePath(zarr.storage.FsspecStore.from_url("memory://"), "a"),
    }
    stash.save(where[kind], VALUES, chunks=(8, 8), shards=(16, 16))
    array = stash.open(where[kind], mode="r+")
    assert np.array_equal(array[...], VALUES)
    array[3:5, 4] = 7
    assert array[4, 4] == 7
    with pytest.raises(Unsupported, match="unsafe=True"):
        array.append(VALUES)
    unsafe = stash.open(where[kind], mode="r+", options={"unsafe": True})
    unsafe.append(VALUES)
    assert np.array_equal(stash.open(where[kind])[20:], VALUES)


def test_a_mapping_that_raises_odd_errors() -> None:
    class Odd(UserDict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise ConnectionResetError("gone")

    stash.save(plain := UserDict[str, Any](), VALUES)
    odd = Odd()
    odd.data = plain.data
    with pytest.raises(DriverError, match=r"zarr\.json"):
        stash.open(odd)
    assert np.array_equal(stash.open(plain)[...], VALUES)


def test_a_zip_store_is_written_and_read(tmp_path: Path) -> None:
    with zarr.storage.ZipStore(tmp_path / "x.zip", mode="w") as store:
        stash.create(store, (20, 30), "i4", chunks=(8, 8))[...] = VALUES
    with zarr.storage.ZipStore(tmp_path / "x.zip", mode="r") as store:
        array = stash.open(store)
        assert np.array_equal(array[...], VALUES)
        assert np.array_equal(zarr.open_array(store, mode="r")[...], VALUES)
        assert np.array_equal(pickle.loads(pickle.dumps(array))[...], VALUES)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(array[3:9], VALUES[3:9]) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_an_icechunk_session_is_read(tmp_path: Path) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path)))
    session = repository.writable_session("main")
    zarr.create_array(session.store, shape=(20, 30), chunks=(8, 8), dtype="i4")[...] = VALUES
    session.commit("first")
    store = repository.readonly_session("main").store
    array = stash.open(store)
    assert np.array_equal(array[...], VALUES)
    assert resolve(store).tag("zarr.json") == resolve(store).tag("c/0/0") is not None
    with pytest.raises(Unsupported, match="connection"):
        pickle.dumps(array)


def test_secrets_stay_here() -> None:
    driver = resolve("sftp://me:hush@host/x", {"pkey": "hush", "port": 2222})
    assert isinstance(driver, FsspecDriver)
    assert driver.recipe.options["password"] == "hush"
    pickled = pickle.dumps(driver)
    assert b"hush" not in pickled
    assert len(pickled) < 2048
    assert "hush" not in driver.url + repr(driver) + repr(driver.recipe)
    assert pickle.loads(pickled).recipe.options == {"username": "me", "port": 2222}
    with pytest.raises(Invalid, match="connection returned list"):
        resolve("sftp://host/x", {"connection": list}).get("k")


def test_neither_library_is_imported_for_a_path(tmp_path: Path) -> None:
    code = (
        "import sys, tensorstash as stash\n"
        f"stash.save({str(tmp_path / 'a')!r}, __import__('numpy').zeros(3))\n"
        "assert not {'fsspec', 'zarr', 'aiohttp', 'xarray'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_named() -> None:
    for url, name in (("gs://bucket/a", "gcsfs"), ("az://container/a", "adlfs")):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(Unsupported, match=f"pip install {name}"):
                stash.open(url)
