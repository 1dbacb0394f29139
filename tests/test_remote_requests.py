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
SHARD = 4 * 4 * 8 * 8 * 8 + 16 * 16 + 4  # its pieces, then its index with a checksum
INDEX = 16 * 16 + 4
PIECE = 8 * 8 * 8
SOME = np.random.default_rng(1).permutation(N)[:24]


@pytest.fixture(scope="module", params=KINDS)
def wire(request: pytest.FixtureRequest) -> Iterator[Line]:
    with line(request.param, request.getfixturevalue) as made:
        warm(made)
        yield made


@pytest.fixture(scope="module")
def urls(wire: Line) -> dict[str, str]:
    """The same numbers in 16 chunks, and in 4 shards of 16 pieces each."""
    layouts: dict[str, dict[str, Any]] = {
        "chunks": {"chunks": (16, 16)},
        "shards": {"chunks": (8, 8), "shards": (32, 32)},
    }
    found = {}
    for name, layout in layouts.items():
        url = wire.near.fresh()
        wire.near.create((N, N), "i8", url=url, codecs=["bytes"], **layout)[...] = numbers((N, N))
        found[name] = wire.far_url(url)
    return found


def cost(wire: Line, array: stash.Array, where: Any, way: str) -> tuple[int, int]:
    """Requests and bytes of values."""
    before = array.stats
    wire.proxy.forget()
    found = (array if way == "basic" else array.oindex)[where]
    counts, after = wire.proxy.counts, array.stats
    wanted = numbers((N, N))
    same = wanted[where] if way == "basic" else wanted[np.ix_(*where)]
    assert np.array_equal(found, same)
    assert counts.requests == after.requests - before.requests
    nbytes = after.bytes_read - before.bytes_read
    assert nbytes <= counts.bytes_down
    assert after.retries == before.retries
    return counts.requests, nbytes


SELECTIONS: dict[str, tuple[Any, str]] = {
    "element": (np.s_[5, 9], "basic"),
    "row": (np.s_[5], "basic"),
    "column": (np.s_[:, 9], "basic"),
    "box": (np.s_[10:20, 30:34], "basic"),
    "random rows": (np.s_[SOME], "basic"),
    "patches": ((np.arange(0, 8), np.r_[0:8, 40:48]), "outer"),
    "whole": (np.s_[...], "basic"),
}

# By S3: one request a chunk; of a shard one for its index and one for each run of its pieces. By
# Redis: one round trip for the chunks; for shards one for the indices and one for the pieces.
CHUNKS: dict[str, tuple[int, int]] = {
    "element": (1, 1 * CHUNK),
    "row": (4, 4 * CHUNK),
    "column": (4, 4 * CHUNK),
    "box": (4, 4 * CHUNK),
    "random rows": (16, 16 * CHUNK),
    "patches": (2, 2 * CHUNK),
    "whole": (16, 16 * CHUNK),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_of_chunks(wire: Line, urls: dict[str, str], name: str) -> None:
    array = wire.far.open(urls["chunks"])
    found = cost(wire, array, *SELECTIONS[name])
    print(wire.far.kind, name, found, CHUNKS[name])


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_of_shards(wire: Line, urls: dict[str, str], name: str) -> None:
    array = wire.far.open(urls["shards"])
    found = cost(wire, array, *SELECTIONS[name])
    print(wire.far.kind, "shards", name, found)


def test_open(wire: Line, urls: dict[str, str]) -> None:
    wire.proxy.forget()
    array = wire.far.open(urls["chunks"])
    print(wire.far.kind, "open", wire.proxy.counts, array.stats)
    array = wire.far.open(urls["chunks"], "r+")
    wire.proxy.forget()
    array[5] = 1
    print(wire.far.kind, "merge row", wire.proxy.counts, array.stats)
    wire.proxy.forget()
    array[0:16] = numbers((N, N))[0:16]
    print(wire.far.kind, "whole chunks", wire.proxy.counts, array.stats)
    wire.proxy.forget()
    made = stash.create(wire.far.fresh(), (N, N), "i8", options=wire.far.options)
    print(wire.far.kind, "create", wire.proxy.counts)
    wire.proxy.forget()
    made.append(numbers((4, N)))
    print(wire.far.kind, "append", wire.proxy.counts)
    wire.proxy.forget()
    made.append(numbers((4, N)))
    print(wire.far.kind, "append", wire.proxy.counts)
    wire.proxy.forget()
    list(array.driver.list(""))
    print(wire.far.kind, "list", wire.proxy.counts)
