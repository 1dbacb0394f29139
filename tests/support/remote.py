"""Arrays on real servers, as tests see them: where they are, and who may open them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tests.servers.faults import FaultProxy
from tests.servers.port import HOST
from tests.servers.redis import Redis
from tests.servers.s3 import S3

KINDS = ("s3fs", "obstore", "redis")
"""The drivers, S3's with each of its clients."""


@dataclass(frozen=True)
class FromFile:
    """A connection factory: the options that only the file at ``path`` knows."""

    path: str

    def __call__(self) -> dict[str, Any]:
        options: dict[str, Any] = json.loads(Path(self.path).read_text())
        return options


@dataclass(frozen=True)
class Remote:
    """A place on a server where tests may put what they like. ``given`` are the options."""

    kind: str
    base: str
    given: Mapping[str, Any] = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.given)

    def fresh(self) -> str:
        """A URL that nothing else uses."""
        return f"{self.base}/{uuid.uuid4().hex[:12]}"

    def having(self, **more: Any) -> Remote:
        """The same place with further options."""
        return replace(self, given={**self.given, **more})

    def create(self, *args: Any, url: str | None = None, **how: Any) -> stash.Array:
        return stash.create(url or self.fresh(), *args, options=self.options, **how)

    def open(self, url: str, mode: Any = "r", **how: Any) -> stash.Array:
        return stash.open(url, mode, options=self.options, **how)

    def secretly(self, folder: Path) -> Remote:
        """The same place, its secrets in a file and a connection factory instead of options."""
        names = ("key", "secret", "username", "password")
        file = folder / f"{self.kind}.json"
        file.write_text(json.dumps({k: v for k, v in self.given.items() if k in names}))
        plain = {k: v for k, v in self.given.items() if k not in names}
        return replace(self, given={**plain, "connection": FromFile(str(file))})


def on_s3(server: S3, client: str, bucket: str | None = None) -> Remote:
    """A bucket of ``server``, reached with that client library: ``auto``, where it is obstore, is
    obstore but in children forked from a process that used it."""
    if client == "obstore":
        pytest.importorskip("obstore")
    base = f"s3://{bucket or server.make_bucket()}"
    choice = "auto" if client == "obstore" else client
    return Remote(client, base, {**server.options, "client": choice})


def on_redis(server: Redis, port: int | None = None) -> Remote:
    """A prefix of ``server``, reached at its port or another (a proxy's)."""
    base = f"redis://{HOST}:{port or server.port}/0/t-{uuid.uuid4().hex[:12]}"
    return Remote("redis", base, server.options)


def remote(kind: str, fixture: Callable[[str], Any]) -> Remote:
    """A fresh place of that kind; ``fixture`` is pytest's ``request.getfixturevalue``."""
    if kind == "redis":
        return on_redis(fixture("valkey_server"))
    return on_s3(fixture("s3"), kind)


@dataclass(frozen=True)
class Line:
    """A place reached in two ways: ``near`` straight, ``far`` through the proxy."""

    proxy: FaultProxy
    near: Remote
    far: Remote

    def far_url(self, url: str) -> str:
        """What is at ``url`` for ``near`` is there for ``far``."""
        return self.far.base + url.removeprefix(self.near.base)


@contextmanager
def line(kind: str, fixture: Callable[[str], Any]) -> Iterator[Line]:
    """A fresh place with a proxy before it."""
    server = fixture("valkey_server") if kind == "redis" else fixture("s3")
    near = remote(kind, fixture)
    address = (HOST, server.port) if kind == "redis" else server.address
    with FaultProxy(address, http=kind != "redis") as proxy:
        if kind == "redis":
            prefix = near.base.rpartition("/")[2]
            far = replace(near, base=f"redis://{HOST}:{proxy.port}/0/{prefix}")
        else:
            far = near.having(endpoint=proxy.endpoint)
        yield Line(proxy, near, far)


def within(seconds: float, kind: str) -> dict[str, Any]:
    """Options that give up after so many seconds, and free a dead process' lock after as many."""
    silence = "connect_timeout" if kind == "redis" else "idle"
    return {"timeout": seconds, silence: min(seconds / 2, 3.0), "lease": max(2.0, seconds / 2)}


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random cells, none of them zero: a fill value among them is a lost cell."""
    return np.random.default_rng(seed).integers(1, 2**62, shape)
