"""What the probe of an S3 server finds out, with both client libraries, of servers that keep the
conditions of a put, ignore them, refuse them, or compare ETags in a way of their own."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.errors import Conflict, Unsupported
from tensorstash.registry import connect


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Bucket)
        self.kind = kind
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.turn = threading.Lock()


class _Bucket(BaseHTTPRequestHandler):
    """As much of S3 as conditional puts need."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        absent, wanted = self.headers.get("If-None-Match"), self.headers.get("If-Match")
        kind = self.server.kind
        if (absent or wanted) and kind == "refuses":
            return self.refuse(501, "NotImplemented")
        with self.server.turn:
            found = self.server.objects.get(self.path)
            etag = "" if found is None else hashlib.md5(found[0]).hexdigest()
            stands = etag if kind in ("raw", "deaf") else f'"{etag}"'
            if kind != "ignores" and absent and found is not None:
                return self.refuse(412, "PreconditionFailed")
            keeps = kind not in ("ignores", "half")
            if keeps and wanted and (found is None or kind == "deaf" or wanted != stands):
                return self.refuse(412, "PreconditionFailed")
            marks = {k: v for k, v in self.headers.items() if k.lower().startswith("x-amz-meta")}
            self.server.objects[self.path] = body, marks
        return self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def do_GET(self) -> None:
        found = self.server.objects.get(self.path)
        if found is None:
            return self.refuse(404, "NoSuchKey")
        body, marks = found
        etag, modified = f'"{hashlib.md5(body).hexdigest()}"', "Fri, 20 Nov 2026 12:00:00 GMT"
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = body[int(first or 0) : int(last) + 1 if last else None]
        where = f"bytes {first or 0}-{int(first or 0) + len(part) - 1}/{len(body)}"
        extra = {"Content_Range": where} if "Range" in self.headers else {}
        status = 206 if extra else 200
        return self.answer(status, part, ETag=etag, Last_Modified=modified, **extra, **marks)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self.answer(204)

    def do_POST(self) -> None:  # delete of several
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        keys = re.findall(r"<Key>(.*?)</Key>", asked)
        for key in keys:
            self.server.objects.pop(f"/bucket/{key}", None)
        gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self.answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())


@contextmanager
def bucket(kind: str, client: str) -> Iterator[Driver]:
    if client == "obstore":
        pytest.importorskip("obstore")
    with _Server(kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        options = {"endpoint": endpoint, "key": "k", "secret": "s", "client": client}
        driver = connect("s3://bucket/x", {**options, "region": "us-east-1", "timeout": 5.0})
        try:
            yield driver
        finally:
            driver.close()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
@pytest.mark.parametrize("kind", ["keeps", "raw"])
def test_servers_that_keep_conditions_quoted_or_not(kind: str, client: str) -> None:
    # Ceph 16 and 18 compare If-Match with the bare ETag, and so never find a quoted one.
    with bucket(kind, client) as driver:
        first = driver.put("k", b"1", if_absent=True)
        second = driver.put("k", b"2", if_tag=first)
        for call in (
            lambda: driver.put("k", b"3", if_tag=first),
            lambda: driver.put("k", b"3", if_absent=True),
        ):
            with pytest.raises(Conflict):
                call()
        assert driver.get_tagged("k") == (b"2", second)
        assert driver.traffic is not None and driver.traffic.retries == 0


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ignores", "ignores If-None-Match"),
        ("half", "ignores If-Match"),
        ("refuses", "refuses If-None-Match"),
        ("deaf", "never finds If-Match to hold"),
    ],
)
def test_servers_that_do_not_are_refused_by_name(kind: str, said: str, client: str) -> None:
    with bucket(kind, client) as driver:
        driver.put("k", b"1")
        for call in (
            lambda: driver.put("k", b"2", if_absent=True),
            lambda: driver.lock("k").__enter__(),
            lambda: stash.create(driver, (4,), "i4"),
        ):
            with pytest.raises(Unsupported, match=rf"{said}.*unsafe"):
                call()
        assert driver.get("k") == b"1"


def test_a_process_tries_a_server_once() -> None:
    with bucket("keeps", "s3fs") as driver:
        assert driver.get("a") is None and driver.traffic is not None
        assert driver.traffic.requests == 1
        driver.put("a", b"1", if_absent=True)
        assert driver.traffic.requests == 1 + 5 + 1
        driver.put("b", b"1", if_absent=True)
        assert driver.traffic.requests == 1 + 5 + 2
