"""``zarr_store(path=)``: a store whose root lies below a location's."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from zarr.core.buffer import cpu

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid
from tests.support.every_place import stored

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

DATA = np.arange(24, dtype="int32").reshape(4, 6)


def test_what_lies_beside_is_not_seen(tmp_path: Path) -> None:
    stash.save(tmp_path, DATA, path="raw/image")
    stash.save(tmp_path, DATA, path="raw/image2")
    stash.save(tmp_path, DATA, path="rawer")
    store = stash.zarr_store(tmp_path, path="raw")
    group = zarr.open_group(store)
    assert sorted(group) == ["image", "image2"]
    group.create_array("new", shape=(2,), dtype="i4")[:] = [1, 2]
    group.require_group("deep").create_array("x", shape=(2,), dtype="i4")
    assert stash.load(tmp_path, path="raw/new").tolist() == [1, 2]
    asyncio.run(store.delete_dir("image"))
    assert stash.open_group(tmp_path, path="raw").keys() == ["deep", "image2", "new"]
    asyncio.run(store.clear())
    assert stash.open_group(tmp_path).keys() == ["rawer"]


def test_consolidated_metadata_is_of_the_group_below() -> None:
    driver = MemoryDriver({})
    stash.save(driver, DATA, path="raw/image")
    zarr.consolidate_metadata(stash.zarr_store(driver, path="raw"))
    group = zarr.open_consolidated(stash.zarr_store(driver, path="raw"))
    assert np.array_equal(np.asarray(group["image"]), DATA)
    assert stash.open_group(driver, path="raw").document.consolidated is not None
    assert stash.open_group(driver).document.consolidated is None


def test_the_same_place_is_equal_however_it_is_named(tmp_path: Path) -> None:
    root = tmp_path / "with space % ü"
    stash.save(root, DATA, path="raw/image")
    below = stash.zarr_store(root, path="raw")
    assert below == stash.zarr_store(root, path="/raw/") == stash.zarr_store(root / "raw")
    assert below != stash.zarr_store(root)
    assert below != stash.zarr_store(root, path="raw/image")
    assert below != stash.zarr_store(root, path="raw", read_only=True)
    for again in (pickle.loads(pickle.dumps(below)), below.with_read_only(True)):
        assert again.path == "raw/"
        assert sorted(zarr.open_group(again, mode="r")) == ["image"]
    one, other = {}, {}  # type: ignore[var-annotated]
    assert stash.zarr_store(one, path="x") == stash.zarr_store(one, path="x")
    assert stash.zarr_store(one, path="x") != stash.zarr_store(one, path="y")
    assert stash.zarr_store(one, path="x") != stash.zarr_store(other, path="x")
    assert repr(below).endswith("/raw>")


def test_xarray_opens_what_is_below(tmp_path: Path) -> None:
    values = xarray.Dataset({"t": (("y", "x"), DATA)}, coords={"y": np.arange(4)})
    values.to_zarr(stash.zarr_store(tmp_path, path="model/run"), consolidated=False)
    values.to_zarr(stash.zarr_store(tmp_path, path="model/other"))
    for consolidated, path in ((False, "model/run"), (True, "model/other")):
        store = stash.zarr_store(tmp_path, path=path, read_only=True)
        found = xarray.open_zarr(store, consolidated=consolidated)
        xarray.testing.assert_identical(found.load(), values)
    assert np.array_equal(stash.load(tmp_path, path="model/run/t"), DATA)
    store = stash.zarr_store(tmp_path, path="model/run")
    tree = xarray.open_datatree(store, engine="zarr", consolidated=False)
    assert list(tree.data_vars) == ["t"]


def test_keys_cannot_leave_the_root() -> None:
    driver = MemoryDriver({})
    stash.save(driver, DATA, path="raw/image")
    stash.save(driver, DATA, path="secret")
    store, before = stash.zarr_store(driver, path="raw"), stored(driver)
    value = cpu.Buffer.from_bytes(b"1")
    for key in ("", "/zarr.json", "../secret/zarr.json", "a/../../secret/zarr.json", "a//b"):
        assert asyncio.run(store.get(key, cpu.buffer_prototype)) is None
        assert not asyncio.run(store.exists(key))
        asyncio.run(store.delete(key))
        with pytest.raises(Invalid):
            asyncio.run(store.set(key, value))
        with pytest.raises(Invalid):
            asyncio.run(store.set_if_not_exists(key, value))
    for prefix in ("..", "../secret", "a//b"):
        assert asyncio.run(store.is_empty(prefix))
        asyncio.run(store.delete_dir(prefix))
    assert stored(driver) == before
