"""Replies of a Redis server that announce what never comes, or never end: no more is taken than the
command can return, and the error says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tensorstash.driver import Driver, Request, Span, get_at_most
from tensorstash.drivers.redis import listing, parser
from tensorstash.errors import Corrupt, DriverError, StashError
from tensorstash.registry import connect
from tests.servers.hostile import Hostile
from tests.support.memory import at_most

MIB = 1 << 20


@pytest.fixture
def serve() -> Iterator[Callable[..., Hostile]]:
    with ExitStack() as stack:

        def start(begin: bytes, go_on: bytes = b"", times: int = -1) -> Hostile:
            """Replies begin with ``begin``; then comes ``go_on``, without end if need be."""

            def speak(_: bytes) -> Iterable[bytes]:
                yield begin
                left = times
                while go_on and left:
                    yield go_on
                    left -= 1

            return stack.enter_context(closing(Hostile(speak, http=False)))

        yield start


@pytest.fixture(params=["hiredis", "exact"])
def reader(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "exact":
        monkeypatch.setattr(parser, "_hiredis", None)


def driver(server: Hostile, **options: Any) -> Driver:
    return connect(f"redis://{server.address}/0/p", {"timeout": 1.0, **options})


MANY = [Request(f"c/{i}") for i in range(500)]
CALLS: dict[str, Callable[[Driver], object]] = {
    "get": lambda store: store.get("k"),
    "part": lambda store: store.get("k", Span(2, 10)),
    "tagged": lambda store: store.get_tagged("k"),
    "most": lambda store: get_at_most(store, "k", MIB),
    "many": lambda store: [*store.get_many(MANY)],
    "many parts": lambda store: [*store.get_many(Request(f"c/{i}", Span(0, 9)) for i in range(99))],
    "many tagged": lambda store: [*store.get_many_tagged(MANY)],
    "tag": lambda store: store.tag("k"),
    "list": lambda store: [*store.list()],
    "sizes": lambda store: [*store.sizes()],
    "put": lambda store: store.put("k", b"1"),
    "put if absent": lambda store: store.put("k", b"1", if_absent=True),
    "put_many": lambda store: store.put_many([("k", b"1")]),
    "delete": lambda store: store.delete("k"),
}
REPLIES: dict[str, tuple[bytes, bytes]] = {
    "a string of 900 GB": (b"$900000000000\r\n", b"x" * MIB),
    "an array of 900 GB": (b"*2\r\n$900000000000\r\n", b"x" * MIB),
    "after a version": (b"*2\r\n$12\r\nabcdefghijkl\r\n$900000000000\r\n", b"x" * MIB),
    "a thousand million elements": (b"*1000000000\r\n", b":1\r\n" * 1000),
    "them within": (b"*2\r\n*1000000000\r\n", b":1\r\n" * 1000),
    "them in RESP3": (b">1000000000\r\n", b":1\r\n" * 1000),
    "a map": (b"%1000000000\r\n", b":1\r\n" * 1000),
    "a verbatim text": (b"=900000000000\r\n", b"x" * MIB),
    "nested for ever": (b"*1\r\n", b"*1\r\n" * 1000),
    "a status without end": (b"+", b"x" * MIB),
    "an error without end": (b"-ERR ", b"x" * MIB),
    "a number without end": (b":1", b"0" * MIB),
    "a number of 5000 digits": (b":" + b"1" * 5000 + b"\r\n", b""),
    "a length without end": (b"$1", b"0" * MIB),
    "a negative length": (b"$-2\r\n", b"x" * MIB),
    "no length": (b"$1_0\r\n", b"x" * MIB),
    "nothing that is known": (b"?", b"\0" * MIB),
}


@pytest.mark.parametrize("name", REPLIES)
def test_replies_end(serve: Callable[..., Hostile], name: str, reader: None) -> None:
    begin, go_on = REPLIES[name]
    with at_most(80 * MIB):
        for call in CALLS.values():
            server = serve(begin, go_on)
            with closing(driver(server, timeout=0.2)) as store, pytest.raises(StashError):
                call(store)


def test_a_value_has_no_more_bytes_than_it_can(serve: Callable[..., Hostile]) -> None:
    server = serve(b"*2\r\n$2097152\r\n", b"x" * MIB)
    with closing(driver(server)) as store, at_most(8 * MIB):
        with pytest.raises(Corrupt, match="'k' has 2097152 bytes, more than the 1048576"):
            get_at_most(store, "k", MIB)
        with pytest.raises(Corrupt) as caught:
            [*store.get_many([Request("a", most=MIB), Request("b", most=MIB)])]
        assert caught.value.key == "a"
    server = serve(b"$536870913\r\n", b"x" * MIB)
    with (
        closing(driver(server)) as store,
        at_most(8 * MIB),
        pytest.raises(Corrupt, match="more than the 536870912 it can have"),
    ):
        store.get("k")


def test_an_announced_length_is_no_reason_to_allocate_it(serve: Callable[..., Hostile]) -> None:
    server = serve(b"$536870912\r\n0123456789")
    with (
        closing(driver(server, timeout=0.3)) as store,
        at_most(8 * MIB),
        pytest.raises(DriverError),
    ):
        store.get("k")


def test_much_that_is_right_is_read_exactly(redis_url: str) -> None:
    with closing(connect(redis_url, {})) as store:
        small = {f"c/{i}": b"*1000000\r\n*999999999\r\n$5\r\n" for i in range(200)}
        store.put_many(small.items())
        store.put_many((f"d/{i}", bytes([i]) * MIB) for i in range(80))
        for _ in range(2):
            found = dict(store.get_many(map(Request, small)))
            assert {*found.values()} == {*small.values()}
        first = [Request(f"d/{i}") for i in range(80)]
        found = dict(store.get_many(first))
        assert [found[i] for i in range(80)] == [bytes([i]) * MIB for i in range(80)]
        with pytest.raises(Corrupt, match="'c/7' has 26 bytes, more than the 25"):
            [*store.get_many([Request(key, most=25 if key == "c/7" else 26) for key in small])]


@pytest.mark.parametrize("names", [0, 1])
def test_a_scan_ends(
    serve: Callable[..., Hostile], names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = b"$3\r\np/a\r\n" * names
    server = serve(b"*2\r\n$1\r\n7\r\n*%d\r\n%b" % (names, name))
    with closing(driver(server)) as store:
        for call in (store.list, store.sizes):
            with pytest.raises(DriverError, match="repeats a cursor"):
                [*call()]
        with pytest.raises(DriverError, match="repeats a cursor"):
            store.list_dir()
    count = iter(range(1, 1 << 40))
    server.speak = lambda _: [b"*2\r\n$%d\r\n%d\r\n*0\r\n" % (len(str(n := next(count))), n)]
    monkeypatch.setattr(listing, "_EMPTY_PAGES", 50)
    with closing(driver(server)) as store, pytest.raises(DriverError, match="never says that"):
        [*store.list()]
