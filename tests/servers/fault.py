"""What goes wrong on the way between a client and a server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Fault:
    """How a proxy treats requests; by default it only passes them on.

    Always: ``latency`` seconds before each reply begins to arrive, ``bandwidth`` bytes a second
    for each connection and direction, ``shared_bandwidth`` for all connections together.

    Of the requests whose first 4 KiB match the regular expression ``only``, the first ``times``
    (or all) are struck by the rest. Offsets count from the start of the body over HTTP, else from
    the start of the request or reply.

    - ``slow_down``: this fraction is answered ``503 SlowDown`` and never reaches the server (HTTP).
    - ``cut_request_after``: so many bytes go to the server, then both sides are reset.
    - ``cut_after``: so many bytes of the reply arrive, then a reset, or an orderly end with
      ``orderly``.
    - ``flip``: the byte of the reply at this offset has its lowest bit inverted.
    - ``drop_reply``: the server acts, and the connection is reset instead of its reply; with
      ``hang`` nothing comes, ever.
    - ``black_hole``: connections are accepted, nothing is passed on or answered.
    - ``refuse``: nothing listens, and what was connected is reset; ``only`` and ``times`` are
      not looked at.
    """

    latency: float = 0.0
    bandwidth: float | None = None
    shared_bandwidth: float | None = None
    only: str = ""
    times: int | None = None
    slow_down: float = 0.0
    cut_request_after: int | None = None
    cut_after: int | None = None
    orderly: bool = False
    flip: int | None = None
    drop_reply: bool = False
    hang: bool = False
    black_hole: bool = False
    refuse: bool = False

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        return re.compile(self.only.encode("latin-1"), re.DOTALL)

    def matches(self, start: bytes) -> bool:
        """Whether a request that begins with ``start`` is one of ``only``."""
        return self._pattern.search(start[:4096]) is not None

    @property
    def swallows_all(self) -> bool:
        """Whether it is a black hole for whatever is under way."""
        return self.black_hole and not self.only and self.times is None

    @property
    def strikes(self) -> bool:
        """Whether single requests are struck at all."""
        offsets = (self.cut_request_after, self.cut_after, self.flip)
        return (
            any(offset is not None for offset in offsets)
            or self.slow_down > 0
            or self.drop_reply
            or self.black_hole
        )


@dataclass
class Counts:
    """What went through a proxy. ``requests``: over HTTP every request; else round trips, so a
    pipeline is one. ``struck``: those that a fault hit. Bytes as the proxy passed them on."""

    connections: int = 0
    requests: int = 0
    struck: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
