"""The network breaks under arrays on S3 and Redis for as long as it takes: the right error in
time, never wrong data, and afterwards everything is there, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tensorstash.errors import Conflict, StashError, TimedOut, Unavailable
from tests.servers.fault import Fault
from tests.support.remote import KINDS, Line, line
from tests.support.remote_operations import OPERATIONS, Operation, Site, at_once, goes_on, warm


@pytest.fixture(scope="module", params=KINDS)
def wire(request: pytest.FixtureRequest) -> Iterator[Line]:
    with line(request.param, request.getfixturevalue) as made:
        warm(made)
        yield made


LASTING: dict[str, tuple[dict[str, Any], tuple[type[StashError], ...]]] = {
    "refused": ({"refuse": True}, (Unavailable, TimedOut)),
    "reset mid-body": ({"cut_after": 20}, (Unavailable, TimedOut)),
    "ends mid-body": ({"cut_after": 20, "orderly": True}, (Unavailable, TimedOut)),
    "reset mid-request": ({"cut_request_after": 20}, (Unavailable, TimedOut)),
    "black hole": ({"black_hole": True}, (TimedOut,)),
    "reply lost": ({"drop_reply": True}, (Unavailable, TimedOut)),
    "reply never comes": ({"drop_reply": True, "hang": True}, (TimedOut,)),
    "slow down": ({"slow_down": 1.0}, (Unavailable, TimedOut)),
}
PARTLY = ("reset mid-body", "ends mid-body", "reset mid-request")
"""Short requests and replies pass."""
SECONDS = 2.0
LIMIT = 120.0  # a guard against hanging


KEPT = ("tensorstash_", "tensorstash-loop", "asyncio_")
"""Threads that serve all arrays as long as the process lives."""


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_is_an_error_in_time(wire: Line, fault: str) -> None:
    settings, classes = LASTING[fault]
    if "slow_down" in settings and wire.far.kind == "redis":
        pytest.skip("an answer of HTTP")
    raised: dict[str, str] = {}
    before = {*threading.enumerate()}

    def work(site: Site, name: str, operation: Operation) -> None:
        barrier.wait(30)
        begun = time.monotonic()
        try:
            result = operation.act(site)
        except (*classes, Conflict) as error:
            assert not isinstance(error, Conflict) or "lock" in str(error), error
            seconds = time.monotonic() - begun
            raised[name] = str(error)
            operation.check_failed(site)
        else:
            seconds = time.monotonic() - begun
            assert fault in PARTLY, "it claims success"
            operation.check_done(site, result)
        assert seconds < LIMIT

    bad = Fault(**settings)
    barrier = threading.Barrier(len(OPERATIONS), lambda: setattr(wire.proxy, "fault", bad))
    wire.proxy.forget()
    try:
        sites = at_once(wire, SECONDS, work)
    finally:
        wire.proxy.fault = Fault()
    assert fault == "refused" or wire.proxy.counts.struck
    assert "read all" in raised or fault == "reset mid-request"
    for name, message in raised.items():
        assert "\n" not in message
        assert names_its_key(name, message), f"{name}: {message}"
    left = {thread.name for thread in {*threading.enumerate()} - before}
    assert not [name for name in left if not name.startswith(KEPT)], left
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(goes_on, sites.values(), [OPERATIONS[name] for name in sites]))


def names_its_key(name: str, message: str) -> bool:
    if name in ("list", "info", "tree"):
        return True
    return any(key in message for key in ("zarr.json", ".zgroup", ".zarray", "c/"))
