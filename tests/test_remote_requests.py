"""What selections of arrays on S3 and Redis cost: exact numbers of requests and bytes, counted by a
proxy, by the driver and by the array alike, and the same for both clients of S3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tests.remote import KINDS, Line, line, numbers
from tests.remote_operations import warm

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
    """S3: a request a chunk. Redis: a round trip, whatever the number of chunks."""
    where, chunks = SELECTIONS[name]
    found = reading(wire, wire.far.open(url), where)
    if wire.far.kind == "redis":
        assert found == (ROUNDS.get(name, 1), chunks * (CHUNK + TAG))
    else:
        assert found == (chunks, chunks * CHUNK)


SHARDED: dict[str, tuple[Any, int, int]] = {
    "element": (np.s_[5, 9], 1, 1),
    "row": (np.s_[5], 2, 8),
    "column": (np.s_[:, 9], 2, 1 + 7 * 8),  # with the pieces that lie between
    "box": (np.s_[30:34, 30:34], 1, 10),
    "patches": (np.s_[[0, 300, 500], [0, 10, 500]], 3, 1),
    "whole": (np.s_[...], 4, 64),
}
"""What is read, how many shards that are, and of each how many pieces."""


@pytest.mark.parametrize("name", SHARDED)
def test_selections_of_shards(wire: Line, big: str, name: str) -> None:
    """S3: of each shard its index and one run of pieces. Redis: two round trips."""
    where, shards, pieces = SHARDED[name]
    found = reading(wire, wire.far.open(big), where)
    nbytes = shards * (INDEX + pieces * PIECE)
    if wire.far.kind == "redis":
        print(wire.far.kind, "shards", name, found, nbytes)
    elif name == "whole":
        assert found == (shards, nbytes)
    else:
        assert found == (2 * shards, nbytes)


def test_open_costs_one_request(wire: Line, url: str, big: str) -> None:
    for place in (url, big):
        wire.proxy.forget()
        array = wire.far.open(place)
        assert wire.proxy.counts.requests == array.stats.requests == 1
        assert array.stats.bytes_read < 2048


def test_writes(wire: Line) -> None:
    far = wire.far.create((N, N), "i8", chunks=16, codecs=["bytes"])
    print(wire.far.kind, "fresh whole", cost(wire, far, lambda: far.__setitem__(..., 1)))
    print(wire.far.kind, "whole", cost(wire, far, lambda: far.__setitem__(..., 1)))
    print(wire.far.kind, "row", cost(wire, far, lambda: far.__setitem__(5, 1)))
    print(wire.far.kind, "element", cost(wire, far, lambda: far.__setitem__((5, 5), 2)))
    print(wire.far.kind, "append", cost(wire, far, lambda: far.append(numbers((16, N)))))
    print(
        wire.far.kind,
        "create",
        cost(wire, far, lambda: stash.create(far.driver, (N,), "i8", overwrite=True)),
    )
