"""Each fault of the proxy does what it says, seen through a plain client."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.servers import link
from tests.servers.fault import Fault
from tests.servers.faults import FaultProxy, Proxies
from tests.servers.http import Http
from tests.servers.port import HOST
from tests.servers.redis import Redis
from tests.servers.s3 import S3

FILE = bytes(range(256)) * 400


@pytest.fixture
def web(http_server: Http, proxy: Proxies) -> FaultProxy:
    http_server.files["f"] = FILE
    return proxy((HOST, int(http_server.url.rpartition(":")[2])), http=True)


@pytest.fixture
def line(valkey_server: Redis, proxy: Proxies) -> FaultProxy:
    with valkey_server.client() as client:
        client.flushall()
    return proxy((HOST, valkey_server.port))


@contextmanager
def dialled(through: FaultProxy, patience: float = 10) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, through.port), timeout=patience) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What arrives until the other side ends the connection in order."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def get(through: FaultProxy, more: str = "") -> bytes:
    with dialled(through) as connection:
        connection.sendall(
            f"GET /f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n".encode()
        )
        return everything(connection)


def put(through: FaultProxy, name: str, body: bytes) -> bytes:
    with dialled(through) as connection:
        head = f"PUT /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return everything(connection)


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def ask(connection: socket.socket, *commands: str) -> bytes:
    connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
    return connection.recv(1 << 16)


def seconds(work: Callable[[], Any]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which proxies chose to sleep: a slow machine makes them no more."""
    found: list[float] = []

    async def sleep(delay: float) -> None:
        found.append(delay)
        await asyncio.sleep(delay)

    monkeypatch.setattr(link, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return found


def test_without_a_fault_everything_passes_and_is_counted(web: FaultProxy) -> None:
    assert body(get(web)) == FILE
    counts = web.counts
    assert (counts.connections, counts.requests, counts.struck) == (1, 1, 0)
    assert counts.bytes_down > len(FILE)
    assert counts.bytes_up > 0
    web.forget()
    assert web.counts.requests == 0


def test_requests_of_one_connection_are_counted_apart(web: FaultProxy) -> None:
    with dialled(web) as connection:
        for _ in range(3):
            connection.sendall(b"HEAD /f HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert (web.counts.connections, web.counts.requests) == (1, 3)


def test_a_chunked_upload_arrives_whole_and_is_one_request(
    web: FaultProxy, http_server: Http
) -> None:
    head = b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    with dialled(web) as connection:
        connection.sendall(head + b"3\r\nabc\r\n0\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 201")
    assert http_server.files["c"] == b"abc"
    assert web.counts.requests == 1
    assert web.counts.bytes_up == len(head) + 13


def test_a_pipeline_is_one_round_trip(line: FaultProxy) -> None:
    with dialled(line) as connection:
        assert ask(connection, "PING", "PING", "PING").startswith(b"+PONG")
        time.sleep(0.05)
        ask(connection, "PING")
    assert line.counts.requests == 2


def test_latency_delays_each_request_once(
    web: FaultProxy, line: FaultProxy, asked: list[float]
) -> None:
    for through in (web, line):
        through.fault = Fault(latency=0.5)
    assert seconds(lambda: get(web)) >= 0.5
    assert sum(asked) < 0.9
    asked.clear()
    with dialled(line) as connection:
        assert seconds(lambda: ask(connection, "PING", "PING")) >= 0.5
    assert sum(asked) < 0.9


def test_latency_is_not_doubled_by_a_client_that_asks_whether_to_continue(
    s3: S3, proxy: Proxies, asked: list[float]
) -> None:
    through = proxy(s3.address, http=True)
    bucket = s3.make_bucket()
    with closing(s3.through(through.endpoint).client()) as client:
        client.put_object(Bucket=bucket, Key="k", Body=FILE)
        asked.clear()
        with through.broken(latency=0.6):
            spent = seconds(lambda: client.put_object(Bucket=bucket, Key="k", Body=FILE))
    assert spent >= 0.6
    assert sum(asked) < 1.1
    assert through.counts.requests == 2


def test_latency_lets_requests_overlap(web: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    together = asyncio.Event()
    count = iter(range(1, 1000))

    async def sleep(delay: float) -> None:  # nobody's is over before all eight have begun
        if delay > 1:
            if next(count) == 8:
                together.set()
            await together.wait()

    monkeypatch.setattr(link, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    web.fault = Fault(latency=600)
    with ThreadPoolExecutor(8) as pool:
        assert [body(answer) for answer in pool.map(lambda _: get(web), range(8))] == [FILE] * 8


def test_bandwidth_holds_for_each_connection_or_for_all(
    web: FaultProxy, asked: list[float]
) -> None:
    def two() -> None:
        with ThreadPoolExecutor(2) as pool:
            assert [body(answer) for answer in pool.map(get, [web, web])] == [FILE, FILE]

    web.fault = Fault(bandwidth=len(FILE) / 0.5)
    assert seconds(two) >= 0.5
    assert sum(asked) < 1.2  # half a second for each
    web.fault = Fault(shared_bandwidth=len(FILE) / 0.5)
    assert seconds(two) >= 1


def test_bandwidth_holds_for_uploads(web: FaultProxy, http_server: Http) -> None:
    web.fault = Fault(bandwidth=len(FILE) / 0.2)
    assert seconds(lambda: put(web, "u", FILE)) >= 0.2
    assert http_server.files["u"] == FILE


def test_refuse_resets_and_listens_no_more_until_it_ends(line: FaultProxy) -> None:
    with dialled(line) as connection:
        ask(connection, "PING")
        with line.broken(refuse=True):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
            with pytest.raises(ConnectionRefusedError):
                get(line)
    with dialled(line) as connection:
        assert ask(connection, "PING") == b"+PONG\r\n"


def test_reset_connections_is_for_once(line: FaultProxy) -> None:
    with dialled(line) as connection:
        ask(connection, "PING")
        line.reset_connections()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with dialled(line) as connection:
        assert ask(connection, "PING") == b"+PONG\r\n"


@pytest.mark.parametrize("after", [0, 1, 70_000])
def test_cut_ends_a_body_after_so_many_bytes(web: FaultProxy, after: int) -> None:
    web.fault = Fault(cut_after=after, orderly=True)
    assert body(get(web)) == FILE[:after]
    web.fault = Fault(cut_after=after)
    with pytest.raises(ConnectionResetError):
        get(web)


def test_cut_counts_from_the_start_of_each_reply(line: FaultProxy) -> None:
    line.fault = Fault(cut_after=8, orderly=True)
    with dialled(line) as connection:
        assert ask(connection, "PING") == b"+PONG\r\n"
        assert ask(connection, "PING") == b"+PONG\r\n"
        assert ask(connection, "ECHO 0123456789") == b"$10\r\n012"
        assert connection.recv(1) == b""


def test_an_upload_is_cut_before_the_server_has_it(web: FaultProxy, http_server: Http) -> None:
    web.fault = Fault(cut_request_after=1000)
    with pytest.raises(ConnectionResetError):
        put(web, "u", FILE)
    assert "u" not in http_server.files


def test_flip_changes_one_bit_of_the_body(web: FaultProxy) -> None:
    web.fault = Fault(flip=70_000)
    got = body(get(web))
    assert [n for n, (a, b) in enumerate(zip(got, FILE, strict=True)) if a != b] == [70_000]


def test_a_dropped_reply_comes_after_the_server_acted(line: FaultProxy) -> None:
    line.fault = Fault(drop_reply=True, times=1)
    with dialled(line) as connection, pytest.raises(ConnectionResetError):
        ask(connection, "INCR n")
    with dialled(line) as connection:
        assert ask(connection, "GET n") == b"$1\r\n1\r\n"


def test_a_dropped_reply_can_leave_the_client_waiting(line: FaultProxy) -> None:
    line.fault = Fault(drop_reply=True, hang=True, times=1)
    with dialled(line, 0.5) as connection, pytest.raises(TimeoutError):
        ask(connection, "INCR n")
    with dialled(line) as connection:
        assert ask(connection, "GET n") == b"$1\r\n1\r\n"


def test_a_black_hole_accepts_and_passes_nothing_on(line: FaultProxy) -> None:
    line.fault = Fault(black_hole=True, times=1)
    with dialled(line, 0.5) as connection, pytest.raises(TimeoutError):
        ask(connection, "INCR n")
    with dialled(line) as connection:
        assert ask(connection, "GET n") == b"$-1\r\n"


def test_a_black_hole_swallows_what_was_under_way(line: FaultProxy) -> None:
    with dialled(line, 4.0) as connection:
        ask(connection, "PING")
        line.fault = Fault(latency=2.0)
        connection.sendall(b"PING\r\n")
        time.sleep(0.05)
        line.fault = Fault(black_hole=True)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_slow_down_hits_the_same_fraction_of_requests_every_time(
    web: FaultProxy, http_server: Http, proxy: Proxies
) -> None:
    def statuses(through: FaultProxy) -> list[bytes]:
        through.fault = Fault(slow_down=0.3)
        return [get(through).partition(b"\r\n")[0] for _ in range(60)]

    port = int(http_server.url.rpartition(":")[2])
    first, second = statuses(web), statuses(proxy((HOST, port), http=True))
    assert first == second
    assert 8 <= first.count(b"HTTP/1.1 503 Slow Down") <= 28
    assert web.counts.struck == first.count(b"HTTP/1.1 503 Slow Down")
    assert len(http_server.requests) == 120 - 2 * web.counts.struck


def test_slow_down_swallows_uploads_and_keeps_the_connection(
    web: FaultProxy, http_server: Http
) -> None:
    web.fault = Fault(slow_down=1, times=1)
    with dialled(web) as connection:
        for expected in (b"HTTP/1.1 503", b"HTTP/1.1 201"):
            connection.sendall(b"PUT /u HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            assert connection.recv(1 << 16).startswith(expected)
    assert http_server.requests == ["PUT u"]


def test_botocore_sees_slow_down_as_from_the_server(s3: S3, proxy: Proxies) -> None:
    errors = pytest.importorskip("botocore.exceptions")
    through = proxy(s3.address, http=True, fault=Fault(slow_down=1))
    with closing(s3.through(through.endpoint).client()) as client:
        with pytest.raises(errors.ClientError, match="SlowDown"):
            client.put_object(Bucket="b", Key="k", Body=FILE)
        with pytest.raises(errors.ClientError, match="503"):
            client.head_object(Bucket="b", Key="k")


def test_only_and_times_choose_the_requests(web: FaultProxy) -> None:
    web.fault = Fault(cut_after=0, orderly=True, only=r"^GET .*\r\nX-Mark: yes", times=1)
    assert body(get(web)) == FILE
    assert body(get(web, "X-Mark: yes\r\n")) == b""
    assert body(get(web, "X-Mark: yes\r\n")) == FILE
    assert web.counts.struck == 1


def test_a_server_that_is_not_there_resets(proxy: Proxies) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        through = proxy(taken.getsockname())
        with pytest.raises(ConnectionResetError), dialled(through) as connection:
            connection.recv(1)


def test_a_unix_socket_can_stand_behind_it(valkey_server: Redis, proxy: Proxies) -> None:
    through = proxy(valkey_server.socket, fault=Fault(latency=0.05))
    with dialled(through) as connection:
        assert ask(connection, "PING") == b"+PONG\r\n"


def test_a_closed_proxy_refuses(valkey_server: Redis) -> None:
    with FaultProxy((HOST, valkey_server.port)) as through, dialled(through) as connection:
        ask(connection, "PING")
        through.close()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            get(through)
