"""Arrays on a web server: what is read, what is asked for it, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Changed, Request, Span
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Denied, DriverError, Invalid, TimedOut, Unavailable, Unsupported
from tensorstash.registry import connect


@dataclass
class Web:
    """A web server over a dict, that can be made to misbehave."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etag: str = "strong"
    failures: list[int] = field(default_factory=list)
    always: int = 0
    delay: float = 0.0
    shift: int = 0
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0
    port: int = 0
    now: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    counting: Any = field(default_factory=threading.Lock)
    most: int = 0  # requests that were under way at once

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/data"


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            key = unquote(self.path).removeprefix("/data/")
            web.asked.append((self.command, key, self.headers.get("Range", "")))
            web.now += 1
            web.most = max(web.most, web.now)
            web.over.wait(web.delay)
            web.now -= 1
            failure = web.always or (web.failures.pop(0) if web.failures else 0)
            if failure:
                return self.answer(failure, b"")
            value = web.files.get(key)
            if value is None:
                return self.answer(404, b"not here")
            headers = {}
            if web.etag:
                mark = '"' + hashlib.md5(value).hexdigest() + '"'
                headers["ETag"] = mark if web.etag == "strong" else "W/" + mark
                if self.headers.get("If-None-Match") == mark:
                    return self.answer(304, b"", headers)
            wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if not wanted or not web.ranges:
                return self.answer(200, value, headers)
            start, last = wanted.groups()
            span = Span(int(start), int(last) + 1 if last else None) if start else Span(-int(last))
            first, stop = span.resolve(len(value))
            if first >= stop:
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(value)}"})
            first, stop = first + web.shift, stop + web.shift
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(value)}"
            return self.answer(206, value[first:stop], headers)

        def answer(self, status: int, body: bytes, headers: Any = None) -> None:
            self.send_response(status)
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            if status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                with web.counting:  # before who reads it can go on
                    web.sent += len(body)
                try:
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

    return Handler


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(web))
    server.daemon_threads = True
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield web
    web.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


VALUE = bytes(range(256)) * 4


@pytest.mark.parametrize("value", [VALUE, b"0123456789", b""])
def test_spans(web: Web, value: bytes) -> None:
    web.files["k"] = value
    driver = connect(web.url, {})
    tag = driver.tag("k")
    spans = [Span(0), Span(0, 10), Span(3, 7), Span(5), Span(-3), Span(-2000), Span(2, 2)]
    spans += [Span(10), Span(1024), Span(5000, 6000), Span(-5, 8)]
    for span in spans:
        start, stop = span.resolve(len(value))
        assert driver.get("k", span) == value[start:stop]
        assert driver.get_tagged("k", span) == (value[start:stop], tag)
        assert [*driver.get_many([Request("k", span)])] == [(0, value[start:stop])]
    assert driver.get("absent") is driver.get("absent", Span(0, 4)) is driver.tag("absent") is None
    assert driver.get_ranges("absent", [Span(0, 1)]) is None
    found = driver.get_ranges("k", [Span(2, 4), Span(-2), Span(0)], tag)
    assert found == ([value[2:4], value[-2:], value], tag)


def test_weird_keys(web: Web) -> None:
    driver = connect(web.url, {})
    for key in ("with space", "ünï/cødé", "100%", "a%2Fb", "c#1?x=y&z", "a+b=c", "semi;at@:"):
        web.files = {key: key.encode()}
        assert driver.get(key) == key.encode()
    for key in ("", "../x", "/abs", "a//b"):
        with pytest.raises(Invalid):
            driver.get(key)


def test_many_at_once_in_a_window(web: Web) -> None:
    web.files = {f"c/{i}": b"%d" % i * 100 for i in range(64)}
    web.delay = 0.02
    driver = connect(web.url, {})
    assert driver.capabilities.concurrency == 16
    found = dict(driver.get_many_tagged(Request(key) for key in web.files))
    assert 1 < web.most <= 16
    assert [bytes(found[i][0]) for i in range(64)] == [*web.files.values()]
    # A version that the asker holds moves no bytes.
    sent = web.sent
    asked = [Request(key, None, found[i][1]) for i, key in enumerate(web.files)]
    assert all(pair == (b"", asked[i].unless) for i, pair in driver.get_many_tagged(asked))
    assert web.sent == sent


def test_a_server_that_ignores_range_is_noticed(web: Web) -> None:
    web.files["k"] = bytes(20_000_000)
    web.files["small"] = VALUE
    web.ranges = False
    driver = connect(web.url, {})
    for call in (driver.get, driver.get_tagged):
        with pytest.raises(Unsupported, match=r"ignores Range.*whole=True"):
            call("k", Span(0, 10))
    assert driver.traffic is not None
    assert driver.traffic.bytes_read == 0
    assert driver.get("small") == VALUE
    allowed = connect(web.url, {"whole": True})
    assert allowed.get("small", Span(5, 9)) == VALUE[5:9]
    assert allowed.get_tagged("small", Span(-5)) == (VALUE[-5:], driver.tag("small"))


def test_other_bytes_than_those_asked_for_are_an_error(web: Web) -> None:
    web.files["k"] = VALUE
    web.shift = 1
    with pytest.raises(DriverError, match="other bytes"):
        connect(web.url, {}).get("k", Span(3, 9))


@pytest.mark.parametrize("etag", ["", "weak"])
def test_versions_without_a_strong_etag(web: Web, etag: str) -> None:
    web.files["k"] = VALUE
    web.etag = etag
    driver = connect(web.url, {})
    whole = driver.get_tagged("k")
    assert whole is not None and whole[0] == VALUE and whole[1] == driver.tag("k")
    assert driver.get("k", Span(1, 3)) == VALUE[1:3]
    with pytest.raises(Unsupported, match="names no version"):
        driver.get_tagged("k", Span(1, 3))
    assert connect(web.url, {"whole": True}).get_tagged("k", Span(1, 3)) == (VALUE[1:3], whole[1])
    if etag:
        weak = connect(web.url, {"weak_tags": True})
        assert weak.get_tagged("k", Span(1, 3)) == (VALUE[1:3], weak.tag("k"))
    web.files["k"] = VALUE[::-1]
    assert driver.tag("k") != whole[1]


def test_parts_of_two_versions_are_noticed(web: Web) -> None:
    web.files["k"] = VALUE
    driver = connect(web.url, {})
    tag = driver.tag("k")
    web.files["k"] = VALUE[::-1]
    with pytest.raises(Changed):
        driver.get_ranges("k", [Span(0, 4), Span(8, 12)], tag)


@pytest.mark.parametrize(
    ("status", "error"), [(403, Denied), (401, Denied), (400, DriverError), (500, Unavailable)]
)
def test_only_not_found_is_absence(web: Web, status: int, error: type[Exception]) -> None:
    web.always = status
    driver = connect(web.url, {"timeout": 2.0 if status == 500 else 30.0})
    for call in (driver.get, driver.tag, driver.get_tagged):
        with pytest.raises(error, match=f"'{web.url}/k'.*{status}") as caught:
            call("k")
        assert type(caught.value) is error


def test_what_passes_is_tried_again(web: Web) -> None:
    web.files["k"] = VALUE
    web.failures = [503, 500, 429]
    driver = connect(web.url, {})
    assert driver.get("k") == VALUE
    assert driver.traffic is not None
    assert (driver.traffic.requests, driver.traffic.retries) == (4, 3)


def test_no_answer_ends_in_time(web: Web) -> None:
    web.files["k"] = VALUE
    web.delay = 250.0
    with pytest.raises(TimedOut):
        connect(web.url, {"timeout": 0.3}).get("k")
    with pytest.raises(Unavailable):
        connect("http://127.0.0.1:9/x", {"timeout": 0.3}).get("k")


def test_reads_arrays_by_url(web: Web) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, (20, 30)).astype("i4")
    memory = MemoryDriver()
    stash.save(memory, values, chunks=(8, 8), shards=(16, 16))
    web.files = {f"a/{key}": bytes(memory.get(key) or b"") for key in memory.list()}
    array = stash.open(web.url + "/a")
    assert np.array_equal(array[...], values)
    web.asked.clear()
    assert np.array_equal(array[3:5, 4:6], values[3:5, 4:6])
    look = ("GET", "a/zarr.json", "")  # if it is another version; threads send it with the rest
    web.asked.remove(look)
    assert all(asked for _, _, asked in web.asked)  # parts of the shard, never the whole
    with pytest.raises(Unsupported, match="read only"):
        stash.open(web.url + "/a", mode="r+")[0, 0] = 1
    with pytest.raises(Unsupported, match="index_pages"):
        [*connect(web.url, {}).list()]


def test_index_pages_can_be_a_listing(web: Web) -> None:
    web.files = {
        "": b'<a href="../">up</a><a href="?C=N;O=D">Name</a><a href="c/">c/</a>'
        b'<a href="zarr.json">zarr.json</a><a href="with%20space">with space</a>',
        "c/": b'<a href="0">0</a>',
        "zarr.json": b"{}",
    }
    driver = connect(web.url, {"index_pages": True})
    assert driver.list_dir("") == (["with space", "zarr.json"], ["c"])
    assert driver.list_dir("c/") == (["0"], [])
    assert sorted(driver.list()) == ["c/0", "with space", "zarr.json"]


def test_no_secret_is_shown_or_pickled(web: Web) -> None:
    web.files["k"] = VALUE
    url = web.url.replace("//", "//me:hush@")
    options = {"headers": {"Authorization": "hush"}, "timeout": 30.0}
    for driver in (connect(url, {}), connect(web.url, options)):
        assert driver.get("k") == VALUE
        assert b"hush" not in pickle.dumps(driver)
        assert "hush" not in repr(driver) + driver.url + repr(vars(driver)["recipe"])
        assert pickle.loads(pickle.dumps(driver)).get("k") == VALUE
    web.always = 403
    with pytest.raises(Denied) as caught:
        connect(url, {}).get("k")
    assert "hush" not in str(caught.value)
    with pytest.raises(Invalid, match="one object"):
        connect(web.url + "?sig=hush", {})
