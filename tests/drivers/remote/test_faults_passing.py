"""The network breaks for a moment, at each request of an operation in turn: nobody notices, and
nothing is lost or done twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tensorstash.errors import Corrupt, DriverError, StashError
from tests.servers.fault import Fault
from tests.support.remote import KINDS, Line, line
from tests.support.remote_operations import CHUNKED, OPERATIONS, READS, SHARDED, WRITES, Site, warm

PATIENT = 20.0


@dataclass(frozen=True)
class Nth(Fault):
    """Strikes one request only: the one after ``skip`` others."""

    skip: int = 0
    seen: list[bytes] = field(default_factory=list, compare=False)

    def matches(self, start: bytes) -> bool:
        self.seen.append(start[:100])
        return len(self.seen) == self.skip + 1


@pytest.fixture(scope="module", params=KINDS)
def wire(request: pytest.FixtureRequest) -> Iterator[Line]:
    with line(request.param, request.getfixturevalue) as made:
        warm(made)
        yield made


@pytest.fixture(autouse=True)
def healed(wire: Line) -> Iterator[None]:
    yield
    wire.proxy.fault = Fault()


ONCE: dict[str, tuple[dict[str, Any], int]] = {
    "reply lost": ({"drop_reply": True}, 1),
    "reset mid-request": ({"cut_request_after": 10}, 3),
    "reset mid-body": ({"cut_after": 10}, 1),
}
"""What strikes one request, and whether it strikes each in turn or only every so many."""
CELLS = [(name, "reset mid-body") for name in READS]
CELLS += [(name, fault) for name in WRITES for fault in ("reply lost", "reset mid-request")]


@pytest.mark.parametrize(("name", "fault"), CELLS)
def test_any_one_request_may_fail(wire: Line, name: str, fault: str) -> None:
    operation = OPERATIONS[name]
    settings, step = ONCE[fault]
    site = Site(wire, PATIENT, dict(operation.layout))
    for skip in range(0, 60, step):
        strike = Nth(skip=skip, **settings)
        wire.proxy.fault = strike
        result = operation.act(site)
        wire.proxy.fault = Fault()
        operation.check_done(site, result)
        if len(strike.seen) <= skip:
            assert skip
            return
        if name in WRITES:
            site = Site(wire, PATIENT, dict(operation.layout))
    raise AssertionError("so many requests")


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_server_that_is_busy_now_and_then(wire: Line, name: str) -> None:
    if wire.far.kind == "redis":
        pytest.skip("an answer of HTTP")
    operation = OPERATIONS[name]
    site = Site(wire, PATIENT, dict(operation.layout))
    with wire.proxy.broken(slow_down=0.3):
        result = operation.act(site)
    operation.check_done(site, result)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_server_that_is_away_for_a_moment(wire: Line, name: str) -> None:
    operation = OPERATIONS[name]
    site = Site(wire, PATIENT, dict(operation.layout))
    wire.proxy.fault = Fault(refuse=True)
    back = threading.Timer(0.3, setattr, (wire.proxy, "fault", Fault()))
    back.start()
    result = operation.act(site)
    back.join()
    operation.check_done(site, result)


def test_appends_while_connections_break_land_once(wire: Line) -> None:
    """Counted: each row of each append is there exactly once, in the order of one writer."""
    site = Site(wire, PATIENT, CHUNKED)
    for turn in range(12):
        wire.proxy.fault = Fault(drop_reply=True, times=1 + turn % 3)
        assert site.array.append(np.full((2, 6), turn)) == 12 + 2 * turn
    wire.proxy.fault = Fault()
    found = site.stored("a")
    assert found is not None
    assert found[12:, 0].tolist() == [turn for turn in range(12) for _ in range(2)]


# -- flipped bytes -----------------------------------------------------------------------------

FLIPPED = {name: READS[name] for name in ("read all", "read slice", "read shards")}
MERGES = {name: OPERATIONS[name] for name in ("merge", "merge shards")}


@pytest.mark.parametrize("offset", [50, 70, 90])
@pytest.mark.parametrize("name", [*FLIPPED, *MERGES])
def test_a_flipped_byte_of_a_chunk_is_noticed(wire: Line, name: str, offset: int) -> None:
    operation = OPERATIONS[name]
    site = Site(wire, PATIENT, dict(operation.layout))
    with wire.proxy.broken(flip=offset, only="/c/"):
        with pytest.raises(Corrupt) as caught:
            operation.act(site)
        assert wire.proxy.counts.struck
    assert "c/" in str(caught.value)
    operation.check_failed(site)  # nor was it written back
    operation.check_done(site, operation.act(site))


def test_a_chain_without_checksum_does_not_notice(wire: Line) -> None:
    """Documented, so known to be so: no client of S3 compares a checksum of its own."""
    site = Site(wire, PATIENT, {**CHUNKED, "codecs": ["bytes"]})
    with wire.proxy.broken(flip=60, only="/c/"):
        assert (site.array[...] != site.model).any()
    assert np.array_equal(site.array[...], site.model)


@pytest.mark.parametrize("layout", [CHUNKED, SHARDED], ids=["chunks", "shards"])
def test_whatever_byte_is_flipped_cells_are_right_or_refused(
    wire: Line, layout: dict[str, Any]
) -> None:
    """Heads of replies, lengths, shard indices."""
    site = Site(wire, 3.0, layout)
    for offset in [*range(24), 40, 80, -1, -4, -20]:
        with wire.proxy.broken(flip=offset, times=1, only="/c/"):
            try:
                found = site.array[...]
            except (Corrupt, DriverError):
                continue
        assert np.array_equal(found, site.model), offset
    assert np.array_equal(site.array[...], site.model)


def test_a_flipped_byte_of_metadata_is_refused_or_another_digit(wire: Line) -> None:
    """Zarr's metadata has no checksum: of a number in it nobody can tell. Never anything worse."""
    site = Site(wire, 3.0, CHUNKED)
    url, good = f"{site.url}/a", site.array.spec
    other = refused = 0
    for offset in range(10, 700, 13):
        with wire.proxy.broken(flip=offset, times=1):
            try:
                other += site.far.open(url).spec != good
            except StashError:
                refused += 1
    assert other <= 3 < 40 < refused
