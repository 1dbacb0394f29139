"""The requests' own rules, with a client that answers as told: no server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tensorstash.drivers.s3 import requests as module
from tensorstash.drivers.s3.client import Failed, Found, Head, Page
from tensorstash.drivers.s3.options import Limits, Settings
from tensorstash.drivers.s3.requests import Requests
from tensorstash.errors import Conflict


class Stub:
    """Fails the first ``times`` requests with ``kind``."""

    quoted = can_unquote = amazon = True

    def __init__(self, kind: str, times: int) -> None:
        self.kind: Any = kind
        self.left = times

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def send(*args: Any, **how: Any) -> Any:
            if self.left:
                self.left -= 1
                raise Failed(self.kind, "409 ConcurrentModification")
            answers = {"get": Found(b"1", "e", 1), "head": Head("e", 1, None)}
            return answers.get(name, Page([], [], None) if name == "page" else "e")

        return send


def requests(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Requests:
    made = Requests("s3fs", Settings("bucket"), "root/", "s3://bucket/root", Limits(timeout=5))
    shared = SimpleNamespace(client=stub, under_way=0, sent=1, probing=asyncio.Lock())
    monkeypatch.setattr(made, "shared", lambda: shared)
    monkeypatch.setattr(module, "_found", {})
    return made


CALLS: dict[str, Callable[[Requests], Any]] = {
    "get": lambda r: r.get("k", None, None),
    "tag": lambda r: r.tag("k"),
    "page": lambda r: r.page("", False, None),
    "put": lambda r: r.put("k", b"1"),
    "delete": lambda r: r.delete(["k"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_without_a_condition_a_race_is_run_again(call: str, monkeypatch: Any) -> None:
    # Ceph answers 409 to plain requests, reads too, while another writer is at work.
    stub = Stub("precondition", 2)
    asked = requests(stub, monkeypatch)
    asyncio.run(CALLS[call](asked))
    assert stub.left == 0 and asked.traffic.requests == 3 and asked.traffic.retries == 2


def test_with_a_condition_it_is_a_conflict_at_once(monkeypatch: Any) -> None:
    asked = requests(Stub("precondition", 9), monkeypatch)
    with pytest.raises(Conflict, match="read it again"):
        asyncio.run(asked.put_if("k", b"1", "old"))
    assert asked.traffic.requests == 1
