"""Rows in place on Redis: by SETRANGE in a script that moves the version, read by GETRANGE."""

from __future__ import annotations

import uuid
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.driver import Driver, Parts, Span
from tensorstash.errors import Conflict, Corrupt, Invalid
from tensorstash.registry import connect
from tensorstash.testing.counting import CountingDriver
from tests.in_place.steps import step
from tests.support.layouts import EXAMPLES
from tests.support.oracle import numpy_index, same, shapes
from tests.support.races import fork, in_processes

SERVER: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def _server(valkey_server: Any) -> None:
    SERVER["url"] = valkey_server.fresh


def place() -> Driver:
    return connect(f"{SERVER['url']()}/{uuid.uuid4().hex}", {"lease": 1.5})


@settings(max_examples=max(10, EXAMPLES // 3))
@given(st.data())
def test_every_selection_is_numpys_through_every_handle(data: Any) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=6, min_dims=1))
    dtype = np.dtype(data.draw(st.sampled_from(["u1", "i2", "f4", "c16"])))
    fill = data.draw(st.sampled_from([0, 1]))
    chunks = tuple(data.draw(st.integers(1, 7)) for _ in shape)
    driver = place()
    first = stash.create(driver, shape, dtype, chunks=chunks, fill_value=fill, in_place=True)
    other = stash.open(driver, "r+", cache="1MiB")
    model = np.full(shape, fill, dtype)
    for _ in range(data.draw(st.integers(1, 4))):
        handle = data.draw(st.sampled_from([first, other]))
        model = step(data, handle, model, fill, (first, other))
        same(other[...], model)
        index = data.draw(numpy_index(model.shape))
        same(first[index], model[index])
    driver.close()


def test_rows_cost_few_round_trips_and_their_own_bytes() -> None:
    driver = place()
    a = stash.create(driver, (10_000, 500), "f4", chunks=(64, 500), in_place=True)
    rows = np.random.default_rng(0).choice(10_000, 200, replace=False)
    model = np.random.default_rng(1).standard_normal((200, 500), np.float32)
    a[rows] = model
    before = driver.traffic
    requests, sent, got = before.requests, before.bytes_written, before.bytes_read
    a[rows] = model
    assert driver.traffic.requests - requests == 2  # whether it is the same array, and the rows
    assert driver.traffic.bytes_written - sent < 1.2 * model.nbytes
    requests = driver.traffic.requests
    same(a[rows], model)
    assert driver.traffic.requests - requests == 1
    assert driver.traffic.bytes_read - got < 1.2 * model.nbytes
    unwritten = np.setdiff1d(np.arange(10_000), rows)[:3]
    assert not a[unwritten].any()


def test_records_and_a_setter() -> None:
    driver = place()
    r = stash.create_records(driver, {"x": "i4", "y": ((3,), "f4")}, 6, in_place=True)
    reader = stash.open_records(driver, cache="1MiB")
    put = r.setter()
    put(2, {"x": 5, "y": [1, 2, 3]})
    put(-1, {"x": np.int32(6), "y": np.ones(3, np.float32)})
    r[[0, 1]] = {"x": [7, 8], "y": np.zeros((2, 3))}
    r["x"][3] = 9
    assert reader["x"][:].tolist() == [7, 8, 5, 9, 0, 6]
    assert r.append({"x": 1, "y": [4, 4, 4]}) == 6
    assert reader.refresh()[6]["y"].tolist() == [4, 4, 4]
    assert reader[2]["y"].tolist() == [1, 2, 3]
    r.flush()
    with pytest.raises(Invalid):
        put(1, {"x": "a", "y": [1, 2, 3]})
    stash.create_records(driver, {"x": "i4", "y": ((3,), "f4")}, 6, in_place=True, overwrite=True)
    with pytest.raises(Conflict):
        put(2, {"x": 5, "y": [1, 2, 3]})
    driver.close()


def test_every_write_moves_the_version() -> None:
    driver = place()
    a = stash.create(driver, (4, 2), "i4", in_place=True)
    a[1] = 5
    tag = driver.tag("c/0/0")
    a[1] = 5
    assert driver.tag("c/0/0") != tag
    tag = driver.tag("c/0/0")
    a[2] = 6
    with pytest.raises(Conflict):  # one who read it before
        driver.put("c/0/0", bytes(32), if_tag=tag)
    assert a[:, 0].tolist() == [0, 5, 6, 0]


def test_parts_of_a_value() -> None:
    driver = place()
    parts = [(0, b"ab"), (5, memoryview(b"xyz"))]
    driver.put_parts([Parts("a/k", 9, b"\x01\x02\x03", parts), Parts("b", 4, b"\0", [(1, b"!")])])
    assert bytes(driver.get("a/k") or b"") == b"ab\x03\x01\x02xyz\x03"
    assert bytes(driver.get("b") or b"") == b"\0!\0\0"
    with pytest.raises(Corrupt, match="9 bytes are stored at key 'a/k', 8 make a chunk"):
        driver.put_parts([Parts("a/k", 8, b"\0", [(0, b"q")])])
    assert bytes(driver.get("a/k", Span(0, 2)) or b"") == b"ab"
    driver.put_parts([Parts("a/k", 4, b"\0", [(0, b"wxyz")])])  # all of it
    assert bytes(driver.get("a/k") or b"") == b"wxyz"
    big = np.random.default_rng(0).integers(0, 255, 9 << 20).astype("u1").data
    step = 1 << 20
    driver.put_parts(
        [Parts("big", len(big), b"\7", [(k, big[k : k + step]) for k in range(0, len(big), step)])]
    )
    assert bytes(driver.get("big") or b"") == bytes(big)
    driver.close()


def test_a_value_of_another_size_is_damage() -> None:
    driver = place()
    a = stash.create(driver, (4, 2), "i4", chunks=(2, 2), in_place=True)
    a[...] = 1
    for size in (1, 9, 40):
        driver.put("c/1/0", bytes(size))
        for use in (lambda: a.__setitem__(3, 1), lambda: a[...]):
            with pytest.raises(Corrupt) as caught:
                use()
            assert caught.value.chunk == (1, 0)
        assert a[1].tolist() == [1, 1]
        a[2:] = 7
        assert a[3].tolist() == [7, 7]


def write(barrier: Any, driver: Driver, k: int) -> None:
    a = stash.open(driver, "r+")
    barrier.wait()
    for row in range(k, 60, 3):
        if k == 2:
            a.append(np.full((1, 5), 1000 + row))
        else:
            a[row] = row


def test_rows_and_appends_by_several_processes_all_land() -> None:
    driver = place()
    a = stash.create(driver, (60, 5), "i4", chunks=(100, 5), in_place=True)
    in_processes(fork, write, *((driver, k) for k in range(3)))
    a.refresh()
    found = a[:, 4]
    assert [found[row] for row in range(60) if row % 3 != 2] == [r for r in range(60) if r % 3 != 2]
    assert found[60:].tolist() == [1000 + row for row in range(2, 60, 3)]
    driver.close()


def test_a_wrapped_driver_writes_in_place_too() -> None:
    driver = CountingDriver(place())
    a = stash.create(driver, (4, 2), "i4", in_place=True)
    a[1] = 5
    assert a[...].tolist() == [[0, 0], [5, 5], [0, 0], [0, 0]]
    assert a[[3, 1], 0].tolist() == [0, 5]


def test_many_chunks_are_read_at_once() -> None:
    driver, data = place(), np.arange(64 * 8, dtype="f4").reshape(64, 8) + 1
    stash.create(driver, data.shape, "f4", chunks=(8, 8), in_place=True)[:] = data
    for array in (stash.open(driver), stash.open(driver, cache="1MiB")):
        same(array[...], data)
        same(array[3:61:2, ::-1], data[3:61:2, ::-1])
        rows = [1, 2, 5]
        same(np.asarray(array.lazy[:, None][:, [0, 0, 0]][rows]), data[rows][:, None][:, [0, 0, 0]])
    copied = stash.copy(stash.open(driver), {})
    same(copied[...], data)
