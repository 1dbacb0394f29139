"""The S3 clients of this process, shared by all drivers of one bucket and identity: making one
costs more than a hundred requests."""

from __future__ import annotations

import asyncio
import importlib.util
from collections import OrderedDict
from typing import Any

from tensorstash.cached import PerProcess
from tensorstash.drivers import loop
from tensorstash.drivers.s3.client import Client
from tensorstash.drivers.s3.options import Settings
from tensorstash.errors import Invalid, Unsupported

KINDS = ("auto", "s3fs", "obstore")
_MOST = 16


class Shared:
    """A client and who uses it. Touched in the event loop only."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.sent = 0
        self.under_way = 0
        self.closed = False
        self.probing = asyncio.Lock()

    async def retire(self) -> None:
        """Close once nothing is under way; whoever comes next gets another one."""
        if self.closed:
            return
        self.closed = True
        while self.under_way:
            await asyncio.sleep(0.01)
        await self.client.close()


class Pool:
    """At most 16 clients, the least recently used closed first."""

    def __init__(self) -> None:
        self._clients: OrderedDict[Any, Shared] = OrderedDict()
        self._retiring: set[asyncio.Future[None]] = set()

    def get(self, kind: str, settings: Settings, environment: Any) -> Shared:
        """The client for these settings; to be called in the event loop."""
        name = (kind, settings, environment)
        shared = self._clients.get(name)
        if shared is None or shared.closed:
            shared = self._clients[name] = Shared(_module(kind).make(settings))
        self._clients.move_to_end(name)
        if len(self._clients) > _MOST:
            _, oldest = self._clients.popitem(last=False)
            self._retiring.add(task := asyncio.ensure_future(oldest.retire()))
            task.add_done_callback(self._retiring.discard)
        return shared

    async def close(self) -> None:
        """Close every client, in use or not: the process ends. At once, as one whose server is
        gone may fail or take its time."""
        left = [shared for shared in self._clients.values() if not shared.closed]
        for shared in left:
            shared.closed = True
        closing = [shared.client.close() for shared in left]
        await asyncio.gather(*closing, *self._retiring, return_exceptions=True)


def _begin() -> Pool:
    pool = Pool()
    loop.current().at_exit(pool.close)  # also where another thread's is kept: it has no clients
    return pool


_pools = PerProcess(_begin)


def current() -> Pool:
    """This process' clients."""
    return _pools.here()


def choose(kind: str) -> str:
    """``s3fs`` or ``obstore``, its library imported: which one ``kind`` means in this process.

    ``auto`` is obstore where it is installed and can be used: in a child forked from a process
    that used it its threads are gone, and a request would wait for them for ever.
    """
    try:
        if kind == "s3fs" or (kind == "auto" and not importlib.util.find_spec("obstore")):
            _module("s3fs")
            return "s3fs"
        if _module("obstore").usable():
            return "obstore"
        if kind == "auto":
            _module("s3fs")
            return "s3fs"
    except ModuleNotFoundError as error:
        raise Unsupported(
            f"s3:// needs the package {error.name!r}: pip install {error.name}"
        ) from error
    raise Unsupported(
        "obstore cannot be used in a child forked from a process that used it; give "
        'client="auto" or "s3fs", or start workers with spawn or forkserver'
    )


def check_kind(kind: str) -> str:
    """``kind`` itself, or :class:`~tensorstash.errors.Invalid`."""
    if kind not in KINDS:
        raise Invalid(f"option 'client' of s3:// is one of {', '.join(KINDS)}")
    return kind


def _module(kind: str) -> Any:
    if kind == "s3fs":
        from tensorstash.drivers.s3.s3fs import client as s3fs

        return s3fs
    from tensorstash.drivers.s3.obstore import client as obstore

    return obstore
