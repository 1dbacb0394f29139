"""Arrays in S3: many processes writing at once, DataLoaders, forks, and large values."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Request
from tensorstash.drivers import loop
from tensorstash.drivers import s3 as s3_driver
from tensorstash.drivers.s3.driver import S3Driver
from tensorstash.errors import DriverError, NotFound
from tests.servers.s3 import S3
from tests.support.races import fork, in_processes, in_threads, spawn

SHAPES: dict[str, dict[str, Any]] = {
    "chunk": {"chunks": (32, 16)},
    "shard": {"chunks": (4, 16), "shards": (32, 16)},
}


@pytest.fixture
def options(s3: S3, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options without keys: those are in the environment, for child processes too."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    return {"endpoint": s3.endpoint, "lease": 3.0}


@pytest.fixture
def url(s3: S3) -> str:
    return f"s3://{s3.make_bucket()}/a"


def write_rows(barrier: Any, url: str, options: dict[str, Any], k: int) -> None:
    array = stash.open(url, "r+", options=options)
    barrier.wait()
    for row in range(k, 32, 4):
        array[row] = row * 16 + np.arange(16)


def append_blocks(barrier: Any, url: str, options: dict[str, Any], k: int) -> None:
    array = stash.open(url, "r+", options=options)
    barrier.wait()
    for turn in range(3):
        array.append(np.full((2, 3), 10 * k + turn))


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("context", [fork, spawn], ids=["fork", "spawn"])
def test_processes_write_parts_of_one_object(
    url: str, options: dict[str, Any], layout: str, context: Any
) -> None:
    array = stash.create(url, (32, 16), "int32", options=options, **SHAPES[layout])
    assert array[:].sum() == 0  # the parent has used the driver
    in_processes(context, write_rows, *((url, options, k) for k in range(4)))
    assert (array[:] == np.arange(32 * 16).reshape(32, 16)).all()


@pytest.mark.parametrize("context", [fork, spawn], ids=["fork", "spawn"])
def test_appends_of_processes_all_land(url: str, options: dict[str, Any], context: Any) -> None:
    stash.create(url, (0, 3), "int32", chunks=(5, 3), options=options)
    in_processes(context, append_blocks, *((url, options, k) for k in range(4)))
    found = stash.open(url, options=options)[:]
    assert found.shape == (24, 3)
    assert (found[::2] == found[1::2]).all() and (found == found[:, :1]).all()
    assert sorted(found[::2, 0].tolist()) == [10 * k + turn for k in range(4) for turn in range(3)]


def test_threads_write_and_append(url: str, options: dict[str, Any]) -> None:
    array = stash.create(url, (0, 3), "int32", chunks=(5, 3), options=options)
    in_threads(4, lambda k: [array.append(np.full((1, 3), k)) for _ in range(3)] and None)
    assert sorted(stash.open(url, options=options)[:, 0].tolist()) == sorted([0, 1, 2, 3] * 3)


# -- forks ---------------------------------------------------------------------------------


def read_it(barrier: Any, driver: S3Driver) -> None:
    barrier.wait()
    found = {i: bytes(v or b"") for i, v in driver.get_many(Request(f"k/{i}") for i in range(20))}
    assert found == {i: b"%d" % i for i in range(20)}
    driver.put(f"child/{os.getpid()}", b"1", if_absent=True)
    driver.close()


def test_a_fork_while_another_thread_is_amid_a_request(url: str, options: dict[str, Any]) -> None:
    driver = s3_driver.connect(url.removeprefix("s3://"), **options)
    driver.put_many((f"k/{i}", b"%d" % i) for i in range(20))
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            dict(driver.get_many(Request(f"k/{i}") for i in range(20)))

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(3):
            in_processes(fork, read_it, (driver,), (driver,))
    finally:
        stop.set()
        thread.join()
    assert len([*driver.list("child/")]) == 6
    driver.close()


def test_a_batch_does_not_go_on_in_a_child(url: str, options: dict[str, Any]) -> None:
    driver = s3_driver.connect(url.removeprefix("s3://"), **options)
    driver.put("k", b"1")
    batch = driver.get_many(Request("k") for _ in range(100))
    next(batch)
    pid = os.fork()
    if pid == 0:
        try:
            next(batch)
        except DriverError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert len([*batch]) == 99
    driver.close()


def first_rows(url: str, options: dict[str, Any], i: int) -> np.ndarray:
    found: np.ndarray = stash.open(url, options=options)[i]
    return found


# Keys are in the environment here, which a fork server may have been started without:
# tests/loading/test_remote_loader.py has it with a connection factory.
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataloader_reads(url: str, options: dict[str, Any], method: str) -> None:
    torch = pytest.importorskip("torch")
    from tensorstash.torch import ArrayDataset

    array = stash.create(url, (40, 4), "float32", chunks=(4, 4), options=options)
    array[:] = np.arange(160).reshape(40, 4)
    assert array[3, 1] == 13
    loader = torch.utils.data.DataLoader(
        ArrayDataset(array), batch_size=8, num_workers=2, multiprocessing_context=method
    )
    rows = torch.cat([batch if torch.is_tensor(batch) else batch[0] for batch in loader])
    assert sorted(rows[:, 0].tolist()) == [4.0 * i for i in range(40)]


# -- pickles -------------------------------------------------------------------------------


def connection() -> dict[str, Any]:
    """What travels instead of keys."""
    names = ("endpoint", "key", "secret")
    return {name: os.environ[f"MY_{name.upper()}"] for name in names}


def test_pickles_carry_a_connection_and_no_secret(
    s3: S3, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.options.items():
        monkeypatch.setenv(f"MY_{name.upper()}", value)
    array = stash.create(url, (4,), "int32", options={"connection": connection})
    array[:] = 3
    data = pickle.dumps(array)
    assert len(data) < 2048 and s3.secret.encode() not in data
    assert pickle.loads(data)[:].tolist() == [3] * 4
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(partial(_total, data)) == 12
    given = s3_driver.connect(url.removeprefix("s3://"), **s3.options, token="a-token")
    data = pickle.dumps(given)
    assert s3.secret.encode() not in data and s3.key.encode() not in data and b"a-token" not in data


def _total(data: bytes) -> int:
    return int(pickle.loads(data)[:].sum())


# -- large values --------------------------------------------------------------------------


@pytest.fixture
def parts(url: str, options: dict[str, Any]) -> S3Driver:
    given = {"multipart_bytes": 5 << 20, "part_bytes": 5 << 20}
    return s3_driver.connect(url.removeprefix("s3://"), **options, **given)


def test_a_large_value_goes_up_in_parts(s3: S3, parts: S3Driver) -> None:
    value = os.urandom((11 << 20) + 5)
    tag = parts.put("big", value)
    assert str(tag).endswith("-3") and parts.tag("big") == tag
    assert bytes(parts.get("big") or b"") == value
    assert parts.put("big", value[:100], if_tag=tag) == parts.tag("big")
    # With a condition, in one piece: not every server keeps conditions at the end of parts.
    tag = parts.put("whole", value, if_absent=True)
    assert "-" not in str(tag) and bytes(parts.get("whole") or b"") == value
    parts.close()


def test_what_a_failed_upload_leaves_is_dropped(s3: S3, parts: S3Driver) -> None:
    parts.put("small", b"1")
    [requests] = parts._requests.values()
    client = requests.shared().client
    boto = s3.client()
    bucket = parts.url.split("/")[2]

    async def fails(*_: Any, **__: Any) -> str:
        assert boto.list_multipart_uploads(Bucket=bucket).get("Uploads")
        raise RuntimeError("no")

    client.end_parts = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no"):
        parts.put("big", bytes(11 << 20))
    assert not boto.list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert parts.get("big") is None
    boto.close()
    parts.close()


# -- the window ------------------------------------------------------------------------------


def test_a_window_left_early_takes_no_more(url: str, options: dict[str, Any]) -> None:
    driver = s3_driver.connect(url.removeprefix("s3://"), concurrency=8, **options)
    driver.put("k", b"1")
    taken = 0

    def requests() -> Any:
        nonlocal taken
        for _ in range(100_000):
            taken += 1
            yield Request("k")

    for n, (_, found) in enumerate(driver.get_many_tagged(requests())):
        assert found is not None and taken <= n + 9
        if n == 20:
            break
    assert taken <= 30
    assert driver.get("k") is not None
    driver.close()


def test_a_failing_item_ends_a_batch(url: str, options: dict[str, Any]) -> None:
    driver = s3_driver.connect(url.removeprefix("s3://"), **options)

    def items() -> Any:
        yield "a", b"1"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        driver.put_many(items())
    missing = s3_driver.connect("no-such-bucket-here/a", **options)
    with pytest.raises(NotFound):
        missing.put_many((f"k/{i}", b"1") for i in range(1000))
    driver.close()
    missing.close()


def test_heavy_results_narrow_the_window() -> None:
    under_way = most = 0

    async def get(item: int) -> int:
        nonlocal under_way, most
        import asyncio

        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        return 20 << 20

    found = [*loop.window(get, range(8), 8, lambda thing: thing if thing > 100 else 0)]
    assert sorted(i for i, _ in found) == [*range(8)] and most == 8
    most = 0
    found = [*loop.window(get, [40 << 20] * 30, 16, int)]
    assert len(found) == 30 and most == 4
