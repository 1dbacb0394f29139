"""A small HTTP file server in a thread, in the several ways that web servers are."""

from __future__ import annotations

import base64
import hashlib
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.servers.port import HOST


@dataclass
class Http:
    """A running server of ``files`` (path without the first ``/`` to bytes; a ``PUT`` adds one).

    All of this can be changed while it runs. ``ranges`` off: ``Range`` is ignored and 200 comes
    with the whole file. ``lengths`` off: no ``Content-Length``, the connection ends with the body.
    ``tags`` off: no ``ETag``. ``listing``: a folder's path answers with links. ``password``: what
    basic authentication must be (``user:password``). ``status``: what everything answers.
    ``requests`` has a line ``"GET path bytes=0-9"`` for each, ``sent`` counts body bytes.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    tags: bool = True
    listing: bool = True
    password: str | None = field(default=None, repr=False)
    status: int | None = None
    requests: list[str] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self._server = _Server((HOST, 0), partial(_Handler, self))
        self.url = f"http://{HOST}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that vanish in the middle are what tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave as two writes: without this the second waits for an acknowledgement.
    disable_nagle_algorithm = True

    def __init__(self, server: Http, *arguments: Any) -> None:
        self._http = server
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_PUT(self) -> None:
        data = self._uploaded()
        if not self._refused():
            self._http.files[self._path] = data
            self._send(201, b"", body=True)

    def _uploaded(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def _path(self) -> str:
        return unquote(self.path.partition("?")[0]).removeprefix("/")

    def _refused(self) -> bool:
        http = self._http
        http.requests.append(
            " ".join(filter(None, (self.command, self._path, self.headers.get("Range"))))
        )
        wanted = f"Basic {base64.b64encode((http.password or '').encode()).decode()}"
        if http.status is not None:
            self._send(http.status, b"", body=True)
        elif http.password is not None and self.headers.get("Authorization") != wanted:
            self._send(401, b"", body=True, **{"WWW-Authenticate": 'Basic realm="tests"'})
        else:
            return False
        return True

    def _answer(self, body: bool) -> None:
        if self._refused():
            return
        http, path = self._http, self._path
        data = http.files.get(path)
        if data is None:
            page = (
                self._page(path) if http.listing and path in ("", f"{path.rstrip('/')}/") else b""
            )
            headers = {"Content-Type": "text/html"} if page else {}
            self._send(200 if page else 404, page, body, **headers)
            return
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {"ETag": tag} if http.tags else {}
        if http.tags and self.headers.get("If-None-Match") == tag:
            self._send(304, b"", body, **headers)
            return
        if not http.ranges:
            self._send(200, data, body, **headers)
            return
        headers["Accept-Ranges"] = "bytes"
        wanted = self.headers.get("Range")
        span = _span(wanted, len(data)) if wanted else None
        if span is None:
            self._send(200, data, body, **headers)
        elif span.start >= len(data):
            self._send(416, b"", body, **headers, **{"Content-Range": f"bytes */{len(data)}"})
        else:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(data)}"
            self._send(206, data[span.start : span.stop], body, **headers)

    def _page(self, folder: str) -> bytes:
        """Links to what is in a folder, as nginx and Apache show it; nothing if nothing is."""
        inside = [name.removeprefix(folder) for name in self._http.files if name.startswith(folder)]
        names = sorted({name.partition("/")[0] + "/" * ("/" in name) for name in inside})
        return "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()

    def _send(self, status: int, data: bytes, body: bool, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self._http.lengths:
            self.send_header("Content-Length", str(len(data)))
        elif status != 304:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if body and status != 304:
            self._http.sent += len(data)
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _span(header: str, size: int) -> range | None:
    """The bytes that a ``Range`` header asks for; ``None`` if it is not one plain range."""
    unit, _, spec = header.partition("=")
    start, dash, stop = spec.partition("-")
    if unit.strip() != "bytes" or not dash or "," in spec:
        return None
    if not start:
        return range(max(0, size - int(stop)), size)
    return range(int(start), min(size, int(stop) + 1) if stop else size)
