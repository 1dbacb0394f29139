"""A server is killed with ``kill -9`` in the middle of writes, and started again: what was said to
be stored is there, the rest is whole or absent, and the same handles go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tensorstash.errors import Conflict, DriverError
from tests.servers.process import Process
from tests.servers.rgw import Rgw
from tests.servers.valkey import valkey
from tests.support.races import blocks_of
from tests.support.remote import Remote, on_redis, on_s3


@pytest.fixture(params=["s3fs", "obstore", "redis"])
def mortal(request: pytest.FixtureRequest) -> Iterator[tuple[Remote, Process]]:
    """A place on a server that keeps what it acknowledged, and the server's process."""
    if request.param == "redis":
        with closing(valkey(settings={"appendonly": "yes", "appendfsync": "no"})) as server:
            yield on_redis(server).having(timeout=10.0, lease=2.0), server.process
        return
    gateway: Rgw = request.getfixturevalue("rgw")
    other = gateway.another()
    with closing(other):
        assert other.process is not None
        place = on_s3(other, request.param, gateway.make_bucket())
        yield place.having(timeout=10.0, lease=2.0), other.process


def while_it_dies(process: Process, work: Callable[[], bool]) -> None:
    """``work()`` again and again until it says it is done, while the server is killed twice."""
    done = threading.Event()

    def strike() -> None:
        for _ in range(2):
            time.sleep(0.15)
            process.kill()
            time.sleep(0.15)
            process.start()
        done.set()

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not (work() and done.is_set()):
            assert time.monotonic() < end
    finally:
        thread.join()


def test_appends(mortal: tuple[Remote, Process]) -> None:
    place, process = mortal
    array = place.create((0, 3), "i8", chunks=(7, 3))
    said: list[int] = []
    doubtful: list[int] = []

    def append() -> bool:
        turn = len(said) + len(doubtful) + 1
        block = np.full((10, 3), turn)
        block[:, 1] = np.arange(10)
        try:
            array.append(block)
        except (DriverError, Conflict):
            doubtful.append(turn)
        else:
            said.append(turn)
        return bool(said)

    while_it_dies(process, append)
    found = blocks_of(array.refresh()[...])
    assert len({*found}) == len(found), "appended twice"
    assert {*said} <= {*found} <= {*said, *doubtful}
    assert found == sorted(found)


@pytest.mark.parametrize("layout", [{"chunks": (4, 4)}, {"chunks": (2, 4), "shards": (4, 8)}])
def test_writes_of_whole_chunks_and_of_parts(
    mortal: tuple[Remote, Process], layout: dict[str, Any]
) -> None:
    place, process = mortal
    array = place.create((8, 8), "i8", **layout)
    array[...] = 1
    state = {"sure": 1, "last": 1}

    def write() -> bool:
        state["last"] += 1
        try:
            if state["last"] % 2:
                array[...] = state["last"]
            else:
                array[1:7] = state["last"]
                array[[0, 7]] = state["last"]
        except DriverError:
            return False
        state["sure"] = state["last"]
        return True

    while_it_dies(process, write)
    assert state["sure"] == state["last"]
    assert (array[...] == state["last"]).all()
    assert (place.open(array.driver.url)[...] == state["last"]).all()
