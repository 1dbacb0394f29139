"""One connection through the fault proxy: requests go up, replies come down, some are struck."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from tests.servers.fault import Counts, Fault

_PIECE = 1 << 18
_HEALTHY = Fault()
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


class Severed(Exception):
    """The fault of this exchange ends the connection."""


@dataclass
class Exchange:
    """A request and its reply: the fault that strikes it, and how far each has come. Over HTTP
    the offset of a reply is unknown until its head is whole."""

    fault: Fault
    sent: int = 0
    received: int | None = 0
    answered: bool = False


@dataclass
class Pace:
    """When the next byte may pass, at a rate that can change between bytes."""

    free: float = 0.0

    async def wait(self, size: int, rate: float | None) -> None:
        """Return when ``size`` bytes have passed at ``rate`` bytes a second."""
        if rate is None:
            return
        now = time.monotonic()
        self.free = max(self.free, now) + size / rate
        await asyncio.sleep(self.free - now)


@dataclass
class Shared:
    """What the links of a proxy have in common."""

    http: bool
    begin: Callable[[bytes], Fault]
    fault: Callable[[], Fault]
    counts: Counts = field(default_factory=Counts)
    up: Pace = field(default_factory=Pace)
    down: Pace = field(default_factory=Pace)


class Link:
    """A client's connection and the one to the server behind it."""

    def __init__(
        self,
        shared: Shared,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._shared = shared
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._exchange: Exchange | None = None
        self._pace_up, self._pace_down = Pace(), Pace()

    async def run(self) -> None:
        """Pass on bytes until one side ends or a fault severs the two."""
        pumps = [asyncio.ensure_future(self._up()), asyncio.ensure_future(self._down())]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if any(isinstance(pump.exception(), Severed | ConnectionError) for pump in done):
                self.reset()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def reset(self) -> None:
        """Reset both connections."""
        reset(self._to_client)
        reset(self._to_server)

    # Up: the requests.

    async def _up(self) -> None:
        if self._shared.http:
            with contextlib.suppress(asyncio.IncompleteReadError):
                while True:
                    await self._request(await self._from_client.readuntil(b"\r\n\r\n"))
        else:
            while data := await self._from_client.read(_PIECE):
                if self._exchange is None or self._exchange.answered:
                    self._begin(data)
                await self._send(data)

    def _begin(self, start: bytes) -> Exchange:
        self._shared.counts.requests += 1
        self._exchange = Exchange(self._shared.begin(start))
        if self._shared.http:
            self._exchange.received = None
        return self._exchange

    async def _request(self, head: bytes) -> None:
        exchange = self._begin(head)
        if exchange.fault.slow_down:
            await self._slow_down(head)
            return
        exchange.sent = -len(head)
        await self._send(head)
        async for piece in self._body(head):
            await self._send(piece)

    async def _body(self, head: bytes) -> AsyncIterator[bytes]:
        if _CHUNKED.search(head):
            size = -1
            while size:
                line = await self._from_client.readuntil(b"\r\n")
                size = int(line.split(b";")[0], 16)
                yield line
                if size:
                    yield await self._from_client.readexactly(size + 2)
            while (line := await self._from_client.readuntil(b"\r\n")) != b"\r\n":
                yield line
            yield line
        elif found := _LENGTH.search(head):
            left = int(found[1])
            while left:
                piece = await self._from_client.read(min(left, _PIECE))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(piece)
                yield piece

    async def _slow_down(self, head: bytes) -> None:
        # A body that waits for leave to come may follow or not: nothing after it would make sense.
        waits = _EXPECTS.search(head) is not None
        last = waits or _CLOSES.search(head) is not None
        if not waits:
            async for _ in self._body(head):
                pass
        await asyncio.sleep(self._shared.fault().latency)
        lines = [b"HTTP/1.1 503 Slow Down", b"Content-Type: application/xml"]
        lines += [b"Content-Length: %d" % len(_SLOW_DOWN), *([b"Connection: close"] * last)]
        body = b"" if head.startswith(b"HEAD ") else _SLOW_DOWN
        answer = b"\r\n".join([*lines, b"", body])
        self._shared.counts.bytes_down += len(answer)
        self._to_client.write(answer)
        await self._to_client.drain()
        if last:
            raise asyncio.IncompleteReadError(b"", 0)

    async def _send(self, data: bytes) -> None:
        assert self._exchange is not None
        exchange, shared = self._exchange, self._shared
        if exchange.fault.black_hole or shared.fault().swallows_all:
            await asyncio.Event().wait()
        await self._pace_up.wait(len(data), shared.fault().bandwidth)
        await shared.up.wait(len(data), shared.fault().shared_bandwidth)
        cut = exchange.fault.cut_request_after
        if cut is not None and exchange.sent + len(data) > cut:
            self._to_server.write(data[: max(0, cut - exchange.sent)])
            await flush(self._to_server)
            raise Severed
        exchange.sent += len(data)
        shared.counts.bytes_up += len(data)
        self._to_server.write(data)
        await self._to_server.drain()

    # Down: the replies. They wait in a queue, so that latency delays but does not slow a stream.

    async def _down(self) -> None:
        waiting: asyncio.Queue[tuple[float, Exchange, bytes]] = asyncio.Queue(64)
        reader = asyncio.ensure_future(self._replies(waiting))
        try:
            while True:
                due, exchange, data = await waiting.get()
                if not data:
                    return
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._receive(exchange, data)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _replies(self, waiting: asyncio.Queue[tuple[float, Exchange, bytes]]) -> None:
        head = b""
        try:
            while data := await self._from_server.read(_PIECE):
                # A server may speak first; that is nobody's reply.
                exchange = self._exchange or Exchange(_HEALTHY)
                if exchange.received is None:
                    head += data
                    while b"\r\n\r\n" in head and re.match(rb"HTTP/1\.1 1\d\d", head):
                        interim, _, head = head.partition(b"\r\n\r\n")
                        await waiting.put((0.0, Exchange(_HEALTHY), interim + b"\r\n\r\n"))
                    if b"\r\n\r\n" not in head:
                        continue
                    exchange.received = -head.index(b"\r\n\r\n") - 4
                    data, head = head, b""
                exchange.answered = True
                due = time.monotonic() + self._shared.fault().latency
                await waiting.put((due, exchange, data))
        except ConnectionError:
            await waiting.put((0.0, Exchange(Fault(cut_after=0)), b"reset"))
        else:
            await waiting.put((0.0, Exchange(_HEALTHY), b""))

    async def _receive(self, exchange: Exchange, data: bytes) -> None:
        fault, shared, start = exchange.fault, self._shared, exchange.received or 0
        if (fault.drop_reply and fault.hang) or shared.fault().swallows_all:
            await asyncio.Event().wait()
        if fault.drop_reply:
            raise Severed
        await self._pace_down.wait(len(data), shared.fault().bandwidth)
        await shared.down.wait(len(data), shared.fault().shared_bandwidth)
        if fault.flip is not None and start <= fault.flip < start + len(data):
            flipped = bytearray(data)
            flipped[fault.flip - start] ^= 1
            data = bytes(flipped)
        if fault.cut_after is not None and start + len(data) > fault.cut_after:
            self._to_client.write(data[: max(0, fault.cut_after - start)])
            await flush(self._to_client)
            if not fault.orderly:
                raise Severed
            self._to_client.close()
            raise asyncio.IncompleteReadError(b"", 0)
        exchange.received = start + len(data)
        shared.counts.bytes_down += len(data)
        self._to_client.write(data)
        await self._to_client.drain()


async def flush(writer: asyncio.StreamWriter) -> None:
    """Let what was written arrive before a reset throws it away."""
    await writer.drain()
    await asyncio.sleep(0.01)


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a TCP reset; a unix socket just ends."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
