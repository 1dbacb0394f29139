"""A proxy on a loopback port that does to requests and replies what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.servers.fault import Counts, Fault
from tests.servers.link import Link, Shared, reset
from tests.servers.port import HOST

_HEALTHY = Fault()


class FaultProxy:
    """A proxy in a thread of its own, in front of ``upstream``: ``(host, port)`` or the path of a
    unix socket. What it does is :attr:`fault`, which can be replaced at any time.

    With ``http`` it tells requests apart, as ``slow_down`` and exact counts need. ``seed`` decides
    which requests a fraction hits.
    """

    def __init__(
        self,
        upstream: tuple[str, int] | Path,
        *,
        http: bool = False,
        fault: Fault = _HEALTHY,
        seed: int = 0,
    ) -> None:
        self._upstream = upstream
        self._fault = _HEALTHY
        self._struck = 0
        self._random = random.Random(seed)
        self._shared = Shared(http, self._begin, lambda: self._fault)
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._listen())
        self.fault = fault

    @property
    def endpoint(self) -> str:
        """Where the proxy listens, as an ``http://`` URL."""
        return f"http://{HOST}:{self.port}"

    @property
    def counts(self) -> Counts:
        """What has passed since the start or :meth:`forget`: a copy."""
        return replace(self._shared.counts)

    def forget(self) -> None:
        """Count from zero again."""
        self._shared.counts = Counts()

    @property
    def fault(self) -> Fault:
        """What goes wrong now; assign another to change it, for connections that are open too."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._do(self._switch(fault))

    @contextlib.contextmanager
    def broken(self, **faults: Any) -> Iterator[FaultProxy]:
        """For a while, these fields of :attr:`fault` besides what was there."""
        before = self._fault
        self.fault = replace(before, **faults)
        try:
            yield self
        finally:
            self.fault = before

    def reset_connections(self) -> None:
        """Reset what is connected now; new connections are as before."""
        self._do(self._reset_all())

    def close(self) -> None:
        """Reset everything and stop."""
        if self._loop.is_closed():
            return
        self._do(self._close_listener())
        self._do(self._reset_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _begin(self, start: bytes) -> Fault:
        """What strikes the request that begins with ``start``."""
        fault = self._fault
        spent = fault.times is not None and self._struck >= fault.times
        if not fault.strikes or spent or not fault.matches(start):
            return _HEALTHY
        if fault.slow_down and self._random.random() >= fault.slow_down:
            fault = replace(fault, slow_down=0.0)
            if not fault.strikes:
                return _HEALTHY
        self._struck += 1
        self._shared.counts.struck += 1
        return fault

    async def _switch(self, fault: Fault) -> None:
        self._fault, self._struck = fault, 0
        if fault.refuse:
            await self._close_listener()
            await self._reset_all()
        elif self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, HOST, self.port, limit=1 << 20, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close_listener(self) -> None:
        if self._server is not None:
            for listener in self._server.sockets:
                # A forked child may hold the socket too: closing alone would leave it listening.
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self._server = None

    async def _reset_all(self) -> None:
        links = list(self._links.items())
        for task, writer in links:
            reset(writer)
            task.cancel()
        await asyncio.gather(*(task for task, _ in links), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = writer
        self._shared.counts.connections += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            back, upstream = await self._connect()
            await Link(self._shared, (reader, writer), (back, upstream)).run()
        except OSError:  # the server is not there: its client would be reset
            reset(writer)
        except asyncio.CancelledError:
            pass  # reset on purpose; asyncio would report a cancelled handler as an error
        finally:
            del self._links[task]
            for end in (writer, upstream):
                if end is not None:
                    end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, Path):
            return await asyncio.open_unix_connection(self._upstream, limit=1 << 20)
        return await asyncio.open_connection(*self._upstream, limit=1 << 20)


Proxies = Callable[..., FaultProxy]
"""What the fixture ``proxy`` gives: a maker of proxies that end with the test."""
