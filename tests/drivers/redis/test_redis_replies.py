"""Replies of Redis with damaged or missing bytes: never a wrong value, a stray error or a hang."""

from __future__ import annotations

import select
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import pytest

from tensorstash.driver import Driver, Put, Request, Span
from tensorstash.drivers.redis import replies as redis_replies
from tensorstash.errors import DriverError, Unavailable
from tensorstash.registry import connect
from tests.servers.port import HOST
from tests.servers.redis import Redis

Edit = Callable[[bytes], bytes | None]
"""A reply as it arrives; ``None`` keeps silent."""


_PATIENCE = 0.2
"""Seconds until a client that asks no more is taken for waiting. Too short only weakens a test."""


class Meddler:
    """A way to a server on which the next reply is edited once. A client that then waits for bytes
    that do not come is cut off, so that no test depends on the client's time limit."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.edits: list[Edit] = []
        self.replies: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection((HOST, self._port)) as server:
            while request := client.recv(1 << 20):
                server.sendall(request)
                reply = server.recv(1 << 20)  # small replies come whole
                self.replies.append(reply)
                edited = self.edits.pop()(reply) if self.edits else reply
                if edited is None:
                    select.select([client], [], [], _PATIENCE)
                    return
                client.sendall(edited)
                if len(edited) < len(reply):
                    return
                if edited != reply and not select.select([client], [], [], _PATIENCE)[0]:
                    return


def structure(reply: bytes) -> list[int]:
    """The offsets of what is no content: types, lengths, ends of lines."""
    offsets: list[int] = []
    at = 0
    while at < len(reply):
        end = reply.index(b"\r\n", at) + 2
        number = reply[at : at + 1] == b":"
        offsets += [at, end - 2, end - 1] if number else range(at, end)
        if reply[at : at + 1] == b"$" and reply[at + 1 : at + 2] != b"-":
            size = int(reply[at + 1 : end - 2])
            offsets += (end + size, end + size + 1)
            end += size + 2
        at = end
    return offsets


VALUES = {f"c/{i}": bytes([65 + i]) * size for i, size in enumerate((11, 120, 0, 1, 9, 10))}
REQUESTS = [*map(Request, VALUES), Request("none")]
CALLS: dict[str, Callable[[Driver], Any]] = {
    "get": lambda driver: driver.get("c/0"),
    "absent": lambda driver: driver.get("none"),
    "span": lambda driver: driver.get("c/1", Span(3, 13)),
    "many": lambda driver: [found and found[0] for _, found in driver.get_many_tagged(REQUESTS)],
    "ranges": lambda driver: driver.get_ranges("c/1", [Span(0, 5), Span(-12)]),
    "tag": lambda driver: driver.tag("c/5"),
    "list": lambda driver: sorted(driver.list("c/")),
    "sizes": lambda driver: sorted(driver.sizes("c/")),
    "put": lambda driver: driver.put("p/0", b"1") and driver.get("p/0"),
    "put_many": lambda driver: driver.put_many([("p/1", b"1"), ("p/2", b"2")]),
    "put_each": lambda driver: [tag is None for _, tag in driver.put_each(puts())],
    "lock": lambda driver: locked(driver),
    "delete": lambda driver: driver.delete("none"),
}


def puts() -> list[Put]:
    names = [f"p/{uuid.uuid4().hex}" for _ in range(3)]
    return [Put("p/3", b"3"), *(Put(name, name.encode(), if_absent=True) for name in names)]


def locked(driver: Driver) -> None:
    with driver.lock("k", 5) as check:
        check()


@pytest.fixture
def place(redis_url: str, valkey_server: Redis) -> Iterator[tuple[str, int]]:
    connect(redis_url, {}).put_many(VALUES.items())
    yield redis_url.rpartition("/")[2], valkey_server.port


def outcome(place: tuple[str, int], name: str, edit: Edit | None) -> tuple[Any, bytes]:
    """What the call answers when its first reply is edited, or our error; the reply."""
    prefix, port = place
    with closing(Meddler(port)) as meddler:
        options = {"timeout": 30, "lease": 30}
        driver = connect(f"redis://{HOST}:{meddler.port}/0/{prefix}", options)
        meddler.edits = [edit] if edit else []
        found: Any
        try:
            found = CALLS[name](driver)
        except DriverError as error:
            found = error
        # What is left of the connection must not answer the next request.
        assert isinstance(found, DriverError) or driver.get("c/4") == VALUES["c/4"]
        driver.close()
        return found, b"".join(meddler.replies[:1])


def flip(offset: int, mask: int) -> Edit:
    return lambda reply: reply[:offset] + bytes([reply[offset] ^ mask]) + reply[offset + 1 :]


@pytest.mark.parametrize("name", CALLS)
def test_damaged_lengths_are_noticed(place: tuple[str, int], name: str) -> None:
    expected, reply = outcome(place, name, None)
    edits: list[tuple[object, Edit]] = []
    for n, offset in enumerate(structure(reply)):
        edits += [((offset, 1 << bit), flip(offset, 1 << bit)) for bit in {0, n % 3, 3 + n % 5}]
    for offset in range(0, len(reply), 1 + len(reply) // 40):
        edits.append((offset, lambda reply, offset=offset: reply[:offset]))
    edits += [("silent", lambda reply: None), ("more", lambda reply: reply + b"$1\r\nx\r\n")]

    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda each: outcome(place, name, each[1])[0], edits)]
    wrong = [
        (what, answer)
        for (what, _), answer in zip(edits, answers, strict=True)
        if answer != expected and not isinstance(answer, DriverError)
    ]
    assert not wrong
    repeated = [answer for answer in answers if answer == expected]
    assert len(repeated) > len(answers) / 2  # an error is the exception


def test_a_server_of_another_kind() -> None:
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(1000)
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        driver = connect(f"redis://{HOST}:{listener.getsockname()[1]}/0", {"timeout": 1.0})
        with pytest.raises(Unavailable, match="a Redis server listens there"):
            driver.get("k")
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [[0, 16383]],
        [[0, 16383, [b"host", 99999]]],
        [[0, 99999, [b"host", 7000]]],
        [[9, 3, [b"host", 7000]]],
        [[0, 16383, [b"h\0st", 7000]]],
        [[0, 16383, [b"\xff", 7000]]],
        [[b"0", 16383, [b"host", 7000]]],
    ],
)
def test_maps_of_clusters(reply: Any) -> None:
    assert not redis_replies.slots(reply)
    assert redis_replies.slots([[0, 16383, [b"host", 7000, b"id"], [None, 7001]]])
