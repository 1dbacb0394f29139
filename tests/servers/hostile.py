"""A server in a thread that says whatever a test wants it to, for as long as anyone listens."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.servers.port import HOST

Speak = Callable[[bytes], Iterable[bytes]]
"""What to send, piece by piece, to a request as it arrived. The connection stays open then."""


class Hostile:
    """``speak`` gets each request (of HTTP: line and headers; of Redis: what came at once).

    ``requests`` holds them, ``sent`` counts bytes that were taken by the kernel to be sent.
    """

    def __init__(self, speak: Speak, http: bool = True, host: str = HOST) -> None:
        self.speak = speak
        self.requests: list[bytes] = []
        self.sent = 0
        self._http = http
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"{host}:{self.port}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while request := self._request(client):
                self.requests.append(request)
                for piece in self.speak(request):
                    client.sendall(piece)
                    self.sent += len(piece)

    def _request(self, client: socket.socket) -> bytes:
        data = client.recv(1 << 16)
        while self._http and data and b"\r\n\r\n" not in data:
            more = client.recv(1 << 16)
            if not more:
                return b""
            data += more
        if self._http and data:
            head, _, body = data.partition(b"\r\n\r\n")
            length = next(
                (
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            if len(body) < length and b"100-continue" in head.lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            while len(body) < length and (more := client.recv(1 << 16)):
                body += more
            return head + b"\r\n\r\n" + body
        return data


def reply(status: str, body: bytes = b"", **headers: str) -> bytes:
    """A reply of HTTP with its length; ``headers`` by names with ``_`` for ``-``."""
    lines = [f"HTTP/1.1 {status}", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked_without_end(head: bytes) -> Iterable[bytes]:
    """``head`` (of a reply with ``Transfer-Encoding: chunked``), then chunks until nobody
    listens."""
    yield head
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    while True:
        yield chunk
