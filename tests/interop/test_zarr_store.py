"""Our drivers as zarr stores: zarr's own store suite, zarr, xarray and dask on top."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, cpu
from zarr.testing.store import StoreTests

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.errors import Unsupported
from tensorstash.location import resolve
from tensorstash.zarr_adapter import DriverStore, zarr_store


def synchronous(cls: Any) -> Any:
    """zarr's suite is of coroutines: each test runs in a loop of its own."""

    def wrap(test: Any) -> Any:
        @functools.wraps(test)
        def run(*args: Any, **options: Any) -> None:
            asyncio.run(test(*args, **options))

        return run

    for name in dir(StoreTests):
        test = getattr(StoreTests, name)
        if name.startswith("test_") and inspect.iscoroutinefunction(test):
            setattr(cls, name, wrap(test))
    return cls


class Suite(StoreTests[Any, Any]):
    store_cls = DriverStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store(self, open_kwargs: dict[str, Any]) -> DriverStore:
        return asyncio.run(DriverStore.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> DriverStore:
        return DriverStore(**store_kwargs)

    async def set(self, store: DriverStore, key: str, value: Buffer) -> None:
        store.driver.put(store.path + key, value.to_bytes())

    async def get(self, store: DriverStore, key: str) -> Buffer:
        return cpu.Buffer.from_bytes(bytes(store.driver.get(store.path + key) or b""))

    def test_store_repr(self, store: DriverStore) -> None:
        assert store.driver.url in repr(store)

    def test_store_supports_writes(self, store: DriverStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: DriverStore) -> None:
        assert store.supports_listing


@synchronous
class TestFileStore(Suite):
    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        return {"driver": FileDriver(tmp_path / "root")}


@synchronous
class TestMemoryStore(Suite):
    @pytest.fixture
    def store_kwargs(self, request: Any) -> dict[str, Any]:
        driver = resolve("memory://zarr-" + request.node.name.replace("/", "-"))
        assert driver.scheme == "memory"
        driver.delete_prefix("")
        return {"driver": driver}


@synchronous
class TestStoreBelowAPath(Suite):
    """A store that shares its driver with what lies beside it."""

    @pytest.fixture
    def store_kwargs(self, request: Any) -> dict[str, Any]:
        driver = resolve("memory://zarr-below-" + request.node.name.replace("/", "-"))
        driver.delete_prefix("")
        driver.put_many((key, b"1") for key in ("zarr.json", "raw/imag", "raw/images/c"))
        return {"driver": driver, "path": "raw/image/"}


@synchronous
class TestRedisStore(Suite):
    @pytest.fixture
    def store_kwargs(self, redis_url: str) -> dict[str, Any]:
        return {"driver": resolve(redis_url)}


@synchronous
class TestS3Store(Suite):
    @pytest.fixture
    def store_kwargs(self, s3: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
        url = f"s3://{s3.make_bucket()}/root"
        return {"driver": resolve(url, {"endpoint": s3.endpoint})}


VALUES = np.arange(60 * 40, dtype="f4").reshape(60, 40)


def test_both_libraries_see_one_array(tmp_path: Path) -> None:
    store = zarr_store(tmp_path / "a")
    theirs = zarr.create_array(store, shape=(60, 40), chunks=(16, 16), dtype="f4")
    theirs[...] = VALUES
    ours = stash.open(tmp_path / "a", mode="r+")
    assert np.array_equal(ours[...], VALUES)
    ours[3:50:7, ::-1] = 5
    expected = VALUES.copy()
    expected[3:50:7] = 5
    assert np.array_equal(zarr.open_array(store)[...], expected)
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_array(zarr_store(tmp_path / "a", read_only=True), mode="r+")[0] = 1


def test_shards_are_read_in_parts(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", VALUES, chunks=(8, 8), shards=(32, 32))
    array = zarr.open_array(zarr_store(tmp_path / "a"), mode="r")
    assert np.array_equal(array[5:30, 3:20], VALUES[5:30, 3:20])


def test_groups_are_walked(tmp_path: Path) -> None:
    group = zarr.open_group(zarr_store(f"file://{tmp_path}/g"), mode="w")
    group.create_group("sub").create_array("x", shape=(4,), dtype="i4")[...] = [1, 2, 3, 4]
    assert [*zarr.open_group(zarr_store(tmp_path / "g"), mode="r").group_keys()] == ["sub"]
    assert stash.open(tmp_path / "g/sub/x")[1] == 2
    del group["sub"]
    assert not (tmp_path / "g/sub/x/zarr.json").exists()


def test_small_pickle(tmp_path: Path) -> None:
    store = zarr_store(tmp_path / "a", read_only=True)
    assert len(pickle.dumps(store)) < 2048
    again = pickle.loads(pickle.dumps(store))
    assert again == store and again.read_only
    assert store != zarr_store(tmp_path / "a")
    assert store != zarr_store(tmp_path / "b", read_only=True)
    assert zarr_store({}) != zarr_store({})


def test_what_the_driver_cannot_do_is_said(tmp_path: Path) -> None:
    store = zarr_store("http://127.0.0.1:9/x")
    assert store.read_only
    with pytest.raises(Unsupported, match="cannot list"):
        asyncio.run(store.is_empty(""))


def test_xarray_and_dask(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    dask_array = pytest.importorskip("dask.array")
    store = zarr_store(tmp_path / "x")
    time = np.arange(60)
    data = xarray.Dataset({"t": (("time", "x"), VALUES)}, {"time": time})
    data.chunk({"time": 15}).to_zarr(store, zarr_format=3, consolidated=False)
    back = xarray.open_zarr(store, consolidated=False)
    assert back.t.chunks is not None
    assert np.array_equal(back.t.sel(time=slice(10, 20)).values, VALUES[10:21])
    assert np.array_equal(stash.open(tmp_path / "x/t")[...], VALUES)
    array = dask_array.from_zarr(zarr.open_array(store, path="t", mode="r"))
    assert float(array.sum().compute(scheduler="processes", num_workers=2)) == VALUES.sum()


ODD = ("", "/", "//", "a/", "/a", "a//", "x//y", "//x", "..", "../x", "./x", "a/../x", "a//b", "/x")
ODD += ("zzz", "zzz/", " ", "a\0b", "a", "a/c", "a/c/", "x", "a\\b")


@pytest.mark.parametrize("key", ODD)
@pytest.mark.parametrize("place", ["files", "memory"])
def test_odd_keys_and_prefixes_are_as_in_zarrs_own_stores(
    key: str, place: str, tmp_path: Path
) -> None:
    mapping: dict[str, Any] = {}
    ours = zarr_store(tmp_path / "ours" if place == "files" else mapping)
    theirs = zarr.storage.MemoryStore()
    local = zarr.storage.LocalStore(tmp_path / "theirs")
    value, prototype = cpu.Buffer.from_bytes(b"v"), zarr.core.buffer.default_buffer_prototype()

    async def answers(store: Any) -> dict[str, Any]:
        found = await store.get(key, prototype)
        parts = await store.get_partial_values(prototype, [(key, None), ("x", None)])
        try:
            size: Any = await store.getsize(key)
        except FileNotFoundError:
            size = "absent"
        return {
            "get": found and found.to_bytes(),
            "parts": [part and part.to_bytes() for part in parts],
            "exists": await store.exists(key),
            "getsize": size,
            "list_prefix": sorted([item async for item in store.list_prefix(key)]),
            "list_dir": sorted([item async for item in store.list_dir(key)]),
            "is_empty": await store.is_empty(key),
        }

    async def run() -> None:
        for store in (ours, theirs, local):
            for name in ("a/b", "a/c/d", "x", "ab/q"):
                await store.set(name, value)
        found, expected = await answers(ours), await answers(theirs)
        if key.endswith("/") and key.strip("/") != "zzz":
            # Of more slashes than one zarr's stores make different things: here, of one.
            root = "" if not key.strip("/") else key.rstrip("/") + "/"
            for name in ("list_prefix", "is_empty"):
                del expected[name]
            names = sorted([item async for item in theirs.list_prefix(root)])
            assert found.pop("list_prefix") == names and not found.pop("is_empty")
            assert sorted([item async for item in local.list_prefix(key)]) == names
        assert found == expected
        await ours.delete(key if key != "x" else "")
        if key not in ("", "/", "//") and key.rstrip("/") not in ("a", "a/c", "x"):
            await ours.delete_dir(key)
        assert len([item async for item in ours.list()]) == 4
        if expected["get"] is None and key not in ("zzz", " ", "a", "a/c"):
            with pytest.raises(ValueError, match="key"):
                await ours.set(key, value)

    asyncio.run(run())
