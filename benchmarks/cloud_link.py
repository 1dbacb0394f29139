"""A slow link to a server, in a process of its own, that counts what goes through it."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True, slots=True)
class Passed:
    """What went through since it was last forgotten. ``requests``: over HTTP every request, by
    method in ``verbs``; else round trips. Bytes with all headers."""

    requests: int = 0
    sent: int = 0
    received: int = 0
    connections: int = 0
    verbs: dict[str, int] = field(default_factory=dict)


class Link:
    """A proxy in front of ``address`` that adds ``latency`` seconds to every answer and lets
    ``bandwidth`` bytes a second through, all connections together, each way."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        latency: float = 0.0,
        bandwidth: float | None = None,
        http: bool = True,
    ) -> None:
        # Not forked: this process may have threads by now.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, address, latency, bandwidth, http), daemon=True
        )
        self._process.start()
        theirs.close()
        self.port: int = self._pipe.recv()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Count from zero."""
        self._ask("forget")

    @property
    def passed(self) -> Passed:
        """The counts."""
        passed: Passed = self._ask("passed")
        return passed

    def _ask(self, word: str) -> Any:
        self._pipe.send(word)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._pipe.send("close")
        self._process.join(10)
        self._process.kill()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _serve(
    pipe: Connection, address: tuple[str, int], latency: float, bandwidth: float | None, http: bool
) -> None:
    # The parent has no use for the servers' modules, which are the tests'.
    from tests.servers.fault import Fault
    from tests.servers.faults import FaultProxy

    verbs: Counter[str] = Counter()

    class Counting(FaultProxy):
        """Counts by method, too."""

        def _begin(self, start: bytes) -> Fault:
            if http:
                verbs[start.split(b" ", 1)[0].decode("latin-1")] += 1
            return super()._begin(start)

    fault = Fault(latency=latency, shared_bandwidth=bandwidth)
    with Counting(address, http=http, fault=fault) as proxy:
        pipe.send(proxy.port)
        with suppress(EOFError):
            while (word := pipe.recv()) != "close":
                if word == "forget":
                    proxy.forget()
                    verbs.clear()
                    pipe.send(None)
                else:
                    c = proxy.counts
                    counts = (c.requests, c.bytes_up, c.bytes_down, c.connections)
                    pipe.send(Passed(*counts, dict(verbs)))
