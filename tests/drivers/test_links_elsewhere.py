"""Links in folders that another library writes to for us: fsspec's local filesystem, zarr's local
stores. As on ``file://``, nothing is written or deleted through them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import obstore
import pytest
import zarr
from fsspec.implementations.dirfs import DirFileSystem
from zarr.storage import FsspecStore, LocalStore, LoggingStore, ObjectStore

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.errors import AlreadyExists, Denied, StashError
from tensorstash.registry import connect
from tests.drivers.test_links import fingerprint

DATA = np.arange(6)
LOCAL = fsspec.filesystem("file")


def by_fsspec(root: str, fs: Any = LOCAL) -> Driver:
    return connect(f"fsspec://{root}", {"fs": fs, "unsafe": True})


def by_zarr(store: Any, path: str = "") -> Driver:
    return connect(f"zarr://{path}", {"store": store, "unsafe": True})


PLACES: dict[str, Callable[[str], Driver]] = {
    "fsspec": by_fsspec,
    "fsspec in a folder": lambda root: by_fsspec("", DirFileSystem(path=root, fs=LOCAL)),
    "local://": lambda root: connect(f"local://{root}", {"unsafe": True}),
    "zarr": lambda root: by_zarr(LocalStore(root)),
    "zarr, below": lambda root: by_zarr(LocalStore(os.path.dirname(root)), "g"),
    "zarr, wrapped": lambda root: by_zarr(LoggingStore(LocalStore(root), log_level="ERROR")),
    "zarr over fsspec": lambda root: by_zarr(
        FsspecStore.from_url(f"file://{root}", storage_options={"auto_mkdir": True})
    ),
    "zarr over obstore": lambda root: by_zarr(ObjectStore(obstore.store.LocalStore(root))),
}

LINKS: dict[str, Callable[[str, str], None]] = {
    "a member": lambda at, to: (shutil.rmtree(at), os.symlink(to, at))[1],
    "chunks": lambda at, to: (shutil.rmtree(f"{at}/c"), os.symlink(f"{to}/c", f"{at}/c"))[1],
    "a chunk": lambda at, to: (os.unlink(f"{at}/c/1"), os.symlink(f"{to}/c/1", f"{at}/c/1"))[1],
    "a document": lambda at, to: (
        os.unlink(f"{at}/zarr.json"),
        os.symlink(f"{to}/zarr.json", f"{at}/zarr.json"),
    )[1],
}

CHANGES: dict[str, Callable[[stash.Group], Any]] = {
    "write": lambda g: g["m"].__setitem__(..., 7),
    "part": lambda g: g["m"].__setitem__(3, 7),
    "append": lambda g: g["m"].append(DATA),
    "resize": lambda g: g["m"].resize((2,)),
    "attributes": lambda g: g["m"].attrs.update(a=1),
    "delete": lambda g: g.__delitem__("m"),
    "replace": lambda g: g.create("m", (3,), "f4", overwrite=True).__setitem__(..., 9),
    "replace by a group": lambda g: g.create_group("m", overwrite=True),
    "replace above": lambda g: stash.save(g.driver, DATA),
    "delete all": lambda g: g.driver.delete_prefix(""),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("place", PLACES)
def test_what_links_lead_to_stays(tmp_path: Path, place: str, link: str) -> None:
    precious = tmp_path / "precious"
    stash.save(str(precious), DATA, chunks=2)
    before = fingerprint(precious)
    for name, change in CHANGES.items():
        own = stash.create_group(str(tmp_path / "g"), overwrite=True)
        own.create("m", (6,), "i8", chunks=2)[...] = DATA
        LINKS[link](str(tmp_path / "g/m"), str(precious))
        group = stash.open_group(PLACES[place](str(tmp_path / "g")), "r+")
        try:
            change(group)
        except StashError as error:
            assert isinstance(error, Denied | AlreadyExists), (name, error)
        else:
            assert name == "delete all" or np.array_equal(stash.load(str(precious)), DATA)
        assert fingerprint(precious) == before, name
        shutil.rmtree(tmp_path / "g")


@pytest.mark.parametrize("place", PLACES)
def test_they_are_read_through_and_removed_alone(tmp_path: Path, place: str) -> None:
    stash.save(str(tmp_path / "precious"), DATA, chunks=2)
    before = fingerprint(tmp_path / "precious")
    stash.create_group(str(tmp_path / "g")).create("own", 3, "i4")[...] = 1
    os.symlink("../precious", tmp_path / "g/m")
    group = stash.open_group(PLACES[place](str(tmp_path / "g")), "r+")
    assert np.array_equal(group["m"][...], DATA)
    del group["m"]
    assert not os.path.lexists(tmp_path / "g/m")
    assert group["own"][...].tolist() == [1, 1, 1]
    assert fingerprint(tmp_path / "precious") == before


def test_a_folder_within_a_read_only_store_is_not_changed(tmp_path: Path) -> None:
    stash.create_group(str(tmp_path / "g"))
    os.symlink("/nowhere", tmp_path / "g/m")
    store = zarr.storage.LocalStore(tmp_path / "g", read_only=True)
    with pytest.raises(StashError):
        stash.create(by_zarr(store, "m"), 3, "i4", overwrite=True)
    assert os.path.lexists(tmp_path / "g/m")
