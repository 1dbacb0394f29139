"""zarr_store's methods for calling threads, and zarr's fused pipeline, which calls them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid
from tensorstash.testing.counting import CountingDriver
from tensorstash.zarr_adapter import DriverStore, zarr_store
from tests.support import shm_names
from tests.support.far import FarDriver

FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"
fused_only = pytest.mark.skipif(
    not hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"),
    reason="the fused pipeline came with zarr 3.3, for Python 3.12 and newer",
)
VALUE = bytes(range(64))
RANGES = (
    None,
    *(RangeByteRequest(*ends) for ends in ((0, 64), (3, 9), (5, 5), (60, 99), (64, 70), (80, 90))),
    *(OffsetByteRequest(offset) for offset in (0, 7, 64, 99)),
    *(SuffixByteRequest(suffix) for suffix in (0, 1, 64, 99)),
)


@pytest.fixture(params=["file", "memory", "dict", "shm", "redis", "s3", "zarr"])
def store(request: Any, tmp_path: Path) -> Iterator[DriverStore]:
    kind, options = request.param, {}
    if kind == "redis":
        where: Any = request.getfixturevalue("redis_url")
    elif kind == "s3":
        s3 = request.getfixturevalue("s3")
        options = {"endpoint": s3.endpoint, "key": s3.key, "secret": s3.secret}
        where = f"s3://{s3.make_bucket()}/root"
    elif kind == "shm":
        where = f"shm://{request.getfixturevalue('shm_name')}"
    else:
        where = {
            "file": tmp_path / "a",
            "memory": MemoryDriver(),
            "dict": {},
            "zarr": zarr.storage.MemoryStore(),
        }[kind]
    store = zarr_store(where, options=options)
    yield store
    if kind == "shm":
        store.driver.close()


@pytest.fixture
def shm_name() -> Iterator[str]:
    yield from shm_names.fresh()


def result(work: Callable[[], Any]) -> Any:
    """What it returned, or the class and text of what it raised."""
    try:
        value = work()
    except Exception as error:
        return type(error), str(error)
    return value and (type(value), value.to_bytes())


def test_the_synchronous_methods_do_as_the_asynchronous_do(store: DriverStore) -> None:
    prototype, data = default_buffer_prototype(), cpu.Buffer.from_bytes(VALUE)
    store.set_sync("c/0", data)
    asyncio.run(store.set("c/1", data))
    for key in ("c/0", "c/1", "absent", "c", "", "/a", "a//b", "../a"):
        for part in RANGES:
            theirs = result(lambda: asyncio.run(store.get(key, prototype, part)))  # noqa: B023
            found = result(lambda: store.get_sync(key, prototype=prototype, byte_range=part))  # noqa: B023
            assert found == theirs, (key, part)
    assert store.get_sync("c/0").to_bytes() == VALUE
    with pytest.raises(TypeError, match="byte_range"):
        store.get_sync("c/0", byte_range=(0, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Buffer"):
        store.set_sync("c/0", b"")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="key"):
        store.set_sync("a//b", data)
    for key in ("absent", "", "a//b", "c/0"):
        store.delete_sync(key)
    assert not asyncio.run(store.exists("c/0")) and asyncio.run(store.exists("c/1"))
    shut = store.with_read_only(True)
    for refused in (lambda: shut.set_sync("c/1", data), lambda: shut.delete_sync("c/1")):
        with pytest.raises(ValueError, match="read-only"):
            refused()
    assert shut.get_sync("c/1").to_bytes() == VALUE


class Noted(DriverStore):
    """Counts its calls by name."""

    def __init__(self, driver: Any) -> None:
        super().__init__(driver)
        self.calls: Counter[str] = Counter()

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        self.calls["get"] += "/c/" in f"/{key}"
        return await super().get(key, *args, **options)

    async def set(self, key: str, value: Any) -> None:
        self.calls["set"] += "/c/" in f"/{key}"
        await super().set(key, value)

    async def delete(self, key: str) -> None:
        self.calls["delete"] += "/c/" in f"/{key}"
        await super().delete(key)

    def get_sync(self, key: str, **options: Any) -> Any:
        self.calls["get_sync"] += "/c/" in f"/{key}"
        return super().get_sync(key, **options)

    def set_sync(self, key: str, value: Any) -> None:
        self.calls["set_sync"] += "/c/" in f"/{key}"
        super().set_sync(key, value)

    def delete_sync(self, key: str) -> None:
        self.calls["delete_sync"] += "/c/" in f"/{key}"
        super().delete_sync(key)


def use(store: Noted, shards: tuple[int, int] | None) -> dict[str, Counter[str]]:
    """Write, change a part of, clear and read an array of 16 chunks; the calls of each step."""
    values = np.arange(1, 40 * 40 + 1, dtype="f4").reshape(40, 40)
    array = zarr.create_array(store, shape=(40, 40), chunks=(10, 10), shards=shards, dtype="f4")
    calls = {}

    def step(name: str) -> None:
        calls[name] = +store.calls
        store.calls.clear()

    store.calls.clear()
    array[...] = values
    step("write")
    assert np.array_equal(array[...], values)
    step("read")
    values[3:5, 3:5] = array[3:5, 3:5] = -1
    step("change")
    values[:20, :20] = array[:20, :20] = 0
    step("clear")
    assert np.array_equal(array[...], values)
    assert np.array_equal(array.oindex[[1, 30], 5:25], values[[1, 30], 5:25])
    assert np.array_equal(stash.open(store.driver)[...], values)
    return calls


@fused_only
def test_the_fused_pipeline_calls_the_synchronous_methods() -> None:
    with zarr.config.set({"codec_pipeline.path": FUSED}):
        plain = use(Noted(MemoryDriver()), None)
        shards = use(Noted(MemoryDriver()), (20, 20))
    assert plain == {
        "write": {"set_sync": 16},
        "read": {"get_sync": 16},
        "change": {"get_sync": 1, "set_sync": 1},
        "clear": {"delete_sync": 4},
    }
    assert shards["write"] == {"set_sync": 4} and shards["read"] == {"get_sync": 4}
    assert shards["clear"] == {"delete_sync": 1}
    assert {name for step in shards.values() for name in step} <= set(plain["change"]) | {
        "delete_sync"
    }


@fused_only
def test_over_a_network_the_fused_pipeline_keeps_many_requests_under_way() -> None:
    with zarr.config.set({"codec_pipeline.path": FUSED}):
        calls = use(Noted(FarDriver()), None)
    assert calls["write"] == {"set": 16, "set_sync": 16} and calls["read"]["get"] == 16
    assert calls["clear"]["delete"] == 4


@pytest.mark.parametrize("shards", [None, (20, 20)])
def test_the_pipeline_of_always_calls_the_asynchronous_methods(shards: Any) -> None:
    calls = use(Noted(MemoryDriver()), shards)
    objects = 16 if shards is None else 4
    assert calls["write"]["set"] == calls["read"]["get"] == objects


@fused_only
def test_the_fused_pipeline_over_drivers(store: DriverStore) -> None:
    counted = CountingDriver(store.driver)
    with zarr.config.set({"codec_pipeline.path": FUSED}):
        use(Noted(counted), (20, 20))
