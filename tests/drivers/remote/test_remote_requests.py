"""What selections of arrays on S3 and Redis cost: exact numbers of requests and bytes, counted by a
proxy, by the driver and by the array alike, and the same for both clients of S3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tests.support.remote import KINDS, Line, line, numbers
from tests.support.remote_operations import warm

N = 64
CHUNK = 16 * 16 * 8
BIG = 512
PIECE = 32 * 32 * 8
INDEX = 64 * 16 + 4
SOME = np.random.default_rng(1).permutation(N)[:24]


@pytest.fixture(scope="module", params=KINDS)
def wire(request: pytest.FixtureRequest) -> Iterator[Line]:
    with line(request.param, request.getfixturevalue) as made:
        warm(made)
        yield made


@pytest.fixture(scope="module")
def url(wire: Line) -> str:
    """16 chunks."""
    url = wire.near.fresh()
    array = wire.near.create((N, N), "i8", url=url, chunks=16, codecs=["bytes"])
    array[...] = numbers((N, N))
    return wire.far_url(url)


@pytest.fixture(scope="module")
def big(wire: Line) -> str:
    """4 shards of 64 pieces each. With 2 ** 20 bytes between what is wanted, it pays for S3 to
    ask twice; a shard here is 524,288 bytes and its index."""
    url = wire.near.fresh()
    array = wire.near.create((BIG, BIG), "i8", url=url, chunks=32, shards=256, codecs=["bytes"])
    array[...] = numbers((BIG, BIG))
    return wire.far_url(url)


def cost(wire: Line, array: stash.Array, work: Any) -> tuple[int, int, int]:
    """Requests, bytes of values read and written: the proxy, the driver and the array agree."""
    traffic = array.driver.traffic
    assert traffic is not None
    before, sent = array.stats, traffic.requests
    wire.proxy.forget()
    work()
    counts, after = wire.proxy.counts, array.stats
    traffic = array.driver.traffic
    assert traffic is not None
    requests = after.requests - before.requests
    assert counts.requests == requests == traffic.requests - sent
    assert after.retries == before.retries
    read, written = (
        after.bytes_read - before.bytes_read,
        after.bytes_written - before.bytes_written,
    )
    assert read <= counts.bytes_down
    assert written <= counts.bytes_up
    return requests, read, written


def reading(wire: Line, array: stash.Array, where: Any) -> tuple[int, int]:
    """Requests and bytes of one selection, which is compared with NumPy."""
    wanted = numbers(array.shape)[where]

    def read() -> None:
        assert np.array_equal(array[where], wanted)

    requests, nbytes, written = cost(wire, array, read)
    assert not written or wire.far.kind == "redis"
    return requests, nbytes


SELECTIONS: dict[str, tuple[Any, int]] = {
    "element": (np.s_[5, 9], 1),
    "row": (np.s_[5], 4),
    "column": (np.s_[:, 9], 4),
    "box": (np.s_[10:20, 30:34], 4),
    "random rows": (np.s_[SOME], 16),
    "strided": (np.s_[::32, ::32], 4),
    "whole": (np.s_[...], 16),
}
"""What is read, and how many chunks that are."""
TAG = 12
ROUNDS = {"random rows": 2, "whole": 2}
"""Of Redis, a first batch is a small one: how large the values are is not known yet."""


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_of_chunks(wire: Line, url: str, name: str) -> None:
    """S3: a request a chunk, and one beside them that asks whether it is this array still. Redis: a
    round trip, whatever the number of chunks."""
    where, chunks = SELECTIONS[name]
    found = reading(wire, wire.far.open(url), where)
    if wire.far.kind == "redis":
        assert found == (ROUNDS.get(name, 1), chunks * (CHUNK + TAG) + TAG)
    else:
        assert found == (chunks + 1, chunks * CHUNK)


@dataclass(frozen=True)
class Cost:
    """Of how many shards so many ``pieces`` each are wanted, which lie in so many ``runs``; what
    lies between them is fetched too where a request costs more: ``span`` pieces."""

    shards: int
    pieces: int
    runs: int
    span: int


SHARDED: dict[str, tuple[Any, Cost]] = {
    "element": (np.s_[5, 9], Cost(1, pieces=1, runs=1, span=1)),
    "row": (np.s_[5], Cost(2, pieces=8, runs=1, span=8)),
    "column": (np.s_[:, 9], Cost(2, pieces=8, runs=8, span=57)),
    "box": (np.s_[30:34, 30:34], Cost(1, pieces=4, runs=2, span=10)),
    "patches": (np.s_[[0, 300, 500], [0, 10, 500]], Cost(3, pieces=1, runs=1, span=1)),
    "whole": (np.s_[...], Cost(4, pieces=64, runs=0, span=64)),
}


@pytest.mark.parametrize("name", SHARDED)
def test_selections_of_shards(wire: Line, big: str, name: str) -> None:
    """S3: two requests a shard, its index and the span of its pieces. Redis: a round trip for all
    indices and one for all runs. Shards that are wanted whole are read so."""
    where, cost = SHARDED[name]
    found = reading(wire, wire.far.open(big), where)
    trips = 2 if cost.runs else 1
    if wire.far.kind == "redis":
        nbytes = INDEX + cost.pieces * PIECE + (1 + cost.runs) * TAG
        assert found == (trips, cost.shards * nbytes + TAG)
    else:
        assert found == (trips * cost.shards + 1, cost.shards * (INDEX + cost.span * PIECE))


def test_open_costs_one_request(wire: Line, url: str, big: str) -> None:
    for place in (url, big):
        wire.proxy.forget()
        array = wire.far.open(place)
        assert wire.proxy.counts.requests == array.stats.requests == 1
        assert array.stats.bytes_read < 2048


WRITES: dict[str, tuple[Callable[[stash.Array], Any], int, int]] = {
    # Is it this array still? Asked before what is put, with what is read.
    "whole": (lambda array: array.__setitem__(..., 1), 17, 2),
    "one chunk": (lambda array: array.__setitem__((slice(16), slice(16)), 2), 2, 2),
    # Each chunk is read and put on condition that nobody else wrote.
    "row": (lambda array: array.__setitem__(5, 3), 9, 2),
    "element": (lambda array: array.__setitem__((5, 5), 4), 3, 2),
    # The lock, the metadata, four chunks, the metadata again, the lock.
    "append": (lambda array: array.append(numbers((16, N))), 10, 6),
}
"""What is done, and its requests: to S3 and to Redis."""


def test_writes(wire: Line) -> None:
    array = wire.far.create((N, N), "i8", chunks=16, codecs=["bytes"])
    warm_up = wire.far.create((4,), "i8")
    warm_up.append([1])  # scripts of Redis are sent once
    for name, (work, by_s3, by_redis) in WRITES.items():
        requests, _, written = cost(wire, array, partial(work, array))
        assert requests == (by_redis if wire.far.kind == "redis" else by_s3), name
        chunks = {"whole": 16, "one chunk": 1, "element": 1}.get(name, 4)
        assert chunks * CHUNK <= written < chunks * (CHUNK + 256) + 2048
