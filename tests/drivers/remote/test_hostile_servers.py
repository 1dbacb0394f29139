"""Servers that send without end, announce what never comes, or say what cannot be: every read ends
by a bound, with an error of ours, and takes no more memory than what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.driver import Driver, Request, Span, get_at_most
from tensorstash.drivers import body
from tensorstash.drivers.s3 import listing, retry
from tensorstash.errors import Corrupt, DriverError, StashError, TimedOut, Unsupported
from tensorstash.registry import connect
from tests.servers.hostile import Hostile, Speak, chunked_without_end, reply
from tests.support.memory import at_most

MIB = 1 << 20
ETAG = {
    "ETag": '"0123456789abcdef0123456789abcdef"',
    "Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
}
CLIENTS = ("http", "s3fs", "obstore")


@pytest.fixture
def serve() -> Iterator[Callable[..., Hostile]]:
    with ExitStack() as stack:

        def start(speak: Speak, **options: Any) -> Hostile:
            return stack.enter_context(closing(Hostile(speak, **options)))

        yield start


@pytest.fixture(params=CLIENTS)
def client(request: Any) -> str:
    name: str = request.param
    return name


def driver(server: Hostile, client: str, **options: Any) -> Driver:
    given: dict[str, Any] = {"timeout": 20.0}
    if client == "http":
        store = connect(f"{server.url}/data", given | options)
    else:
        given |= {"endpoint": server.url, "key": "k" * 16, "secret": "s" * 20}
        given |= {"region": "us-east-1", "client": client, "unsafe": True, "idle": 20.0}
        store = connect("s3://bucket/root", given | options)
    # What a client is made from, and imports, takes its own memory, once.
    speak, server.speak = server.speak, lambda _: [reply("200 OK", b"warm", **ETAG)]
    while not _warm(store):
        pass
    server.speak, server.sent = speak, 0
    server.requests.clear()
    return store


def _warm(store: Driver) -> bool:
    """Whether it answers; on a slow machine not within the time limit of a first request."""
    try:
        return store.get("warm") == b"warm"
    except TimedOut:
        return False


def endless(status: str = "200 OK", **headers: str) -> Speak:
    head = reply(status, Transfer_Encoding="chunked", **(ETAG | headers))
    return lambda _: chunked_without_end(head)


def announced(nbytes: int, sent: bytes | None = None, **headers: str) -> Speak:
    """Says how much comes, and sends ``sent`` and ends, or does not end."""

    def speak(_: bytes) -> Iterable[bytes]:
        yield reply("200 OK", Content_Length=str(nbytes), **(ETAG | headers))
        if sent is not None:
            yield sent
            raise ConnectionAbortedError
        while True:
            yield b"x" * MIB

    return speak


# -- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    "speak",
    [
        pytest.param(endless(), id="chunked"),
        pytest.param(endless(Content_Length="5"), id="chunked-with-a-length"),
        pytest.param(announced(900_000_000_000), id="announced"),
        pytest.param(announced(2 * MIB), id="twice-as-much"),
    ],
)
def test_a_value_has_no_more_bytes_than_it_can(
    serve: Callable[..., Hostile], client: str, speak: Speak, tagged: bool
) -> None:
    server = serve(speak)
    # What is malformed is asked for again until the time is up.
    with (
        closing(driver(server, client, timeout=5.0)) as store,
        at_most(8 * MIB),
        pytest.raises((Corrupt, DriverError)) as caught,
    ):
        if tagged:
            get_at_most(store, "k", MIB)
        else:
            list(store.get_many([Request("k", most=MIB)]))
    assert "can" in str(caught.value) or "Content-Length" in str(caught.value), caught.value
    assert server.sent < 64 * MIB


def test_a_body_without_end_ends_at_the_limit_that_is_documented(
    serve: Callable[..., Hostile], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert body.UNTOLD == 256 * MIB
    for client in ("http", "s3fs"):
        server = serve(endless())
        with (
            closing(driver(server, client)) as store,
            at_most(body.UNTOLD + 8 * MIB),
            pytest.raises(DriverError, match=f"where there can be {body.UNTOLD}; check"),
        ):
            store.get("k")


def test_an_announced_length_is_no_reason_to_allocate_it(
    serve: Callable[..., Hostile], client: str
) -> None:
    for nbytes, error in ((8 << 30, DriverError), (900_000_000_000, DriverError)):
        server = serve(announced(nbytes, sent=b"0123456789"))
        with closing(driver(server, client, timeout=0.5)) as store, at_most(24 * MIB):
            with pytest.raises(error):
                store.get("k")
            with pytest.raises(StashError):
                get_at_most(store, "k", 64 * MIB)


@pytest.mark.parametrize(
    ("span", "good"), [(Span(2, 10), "2-9"), (Span(-8), "92-99"), (Span(2), "2-99")]
)
def test_a_part_has_no_more_bytes_than_were_asked_for(
    serve: Callable[..., Hostile], client: str, span: Span, good: str
) -> None:
    multipart = {"Content_Type": "multipart/byteranges; boundary=x"}
    speaks = [
        endless("206 Partial Content", Content_Range=f"bytes {good}/100"),
        endless("206 Partial Content", Content_Range=f"bytes {good}/100", Content_Length="8"),
        endless("206 Partial Content", **multipart),
        endless("206 Partial Content", Content_Range="bytes 0-99/100"),
        endless("206 Partial Content", Content_Range="bytes 2-899999999999/900000000000"),
        endless("206 Partial Content", Content_Range="bytes 9-2/100"),
        endless("206 Partial Content", Content_Range=f"bytes 2-9/{'9' * 5000}"),
        endless("206 Partial Content"),
        endless("299 Sure"),
    ]
    for i, speak in enumerate(speaks):
        server = serve(speak)
        with closing(driver(server, client, timeout=2.0)) as store, at_most(24 * MIB):
            try:
                found = store.get("k", span)
            except StashError:
                continue
            # Out of a whole or larger part these bytes may be cut; never more.
            assert i in (3, 4) and found is not None and len(found) <= 98, i


def test_a_server_that_sends_everything_for_a_part(
    serve: Callable[..., Hostile], client: str
) -> None:
    server = serve(announced(100 << 30))
    with closing(driver(server, client)) as store, at_most(24 * MIB):
        if client == "http":
            with pytest.raises(Unsupported, match="ignores Range"):
                store.get("k", Span(2, 10))
        else:
            assert bytes(store.get("k", Span(2, 10)) or b"") == b"x" * 8
    assert server.sent < 64 * MIB


@pytest.mark.parametrize("client", ["http", "s3fs"])  # obstore shows no status of a reply
def test_a_206_that_nobody_asked_for_is_no_value(
    serve: Callable[..., Hostile], client: str
) -> None:
    part = {"Content_Range": "bytes 0-1/9"}
    server = serve(lambda _: [reply("206 Partial Content", b"ab", **part, **ETAG)])
    with closing(driver(server, client)) as store, pytest.raises(DriverError):
        store.get("k")


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "400 Bad", "301 Moved"])
def test_words_about_an_error_end(serve: Callable[..., Hostile], client: str, status: str) -> None:
    if client == "obstore":
        pytest.skip("reads them for `idle` seconds: see its module")
    server = serve(endless(status))
    with closing(driver(server, client, timeout=1.0)) as store, at_most(2 * body.PAGE + 8 * MIB):
        try:
            assert store.get("k") is None and (client, status[:3]) == ("http", "404")
        except StashError:
            assert (client, status[:3]) != ("http", "404")


def test_headers_end(serve: Callable[..., Hostile], client: str) -> None:
    def speak(_: bytes) -> Iterable[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        while True:
            yield b"X-More: " + b"y" * 4000 + b"\r\n"

    server = serve(speak)
    with (
        closing(driver(server, client, timeout=1.0)) as store,
        at_most(24 * MIB),
        pytest.raises(StashError),
    ):
        store.get("k")


def test_a_head_of_an_absurd_length(serve: Callable[..., Hostile]) -> None:
    server = serve(lambda _: [reply("200 OK", Content_Length="9" * 15, **ETAG)])
    with closing(driver(server, "http")) as store, at_most(8 * MIB):
        assert store.tag("k") == ("etag", ETAG["ETag"])


def test_arrays_of_such_a_server(serve: Callable[..., Hostile], client: str) -> None:
    server = serve(endless())
    with (
        closing(driver(server, client)) as store,
        at_most(300 * MIB),
        pytest.raises(StashError),
    ):
        stash.open(store, "r")


# -- listings --------------------------------------------------------------------------------------


def page(
    keys: list[str], token: str | None = None, folders: tuple[str, ...] = (), **more: str
) -> bytes:
    inner = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    inner += "".join(
        f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in folders
    )
    truncated = more.get("truncated", "false" if token is None else "true")
    inner += f"<IsTruncated>{truncated}</IsTruncated>"
    if token is not None:
        inner += f"<NextContinuationToken>{token}</NextContinuationToken>"
    text = f"<?xml version='1.0'?><ListBucketResult>{inner}</ListBucketResult>"
    return reply("200 OK", text.encode(), Content_Type="application/xml")


def _counting(make: Callable[[int], bytes]) -> Speak:
    count = iter(range(1 << 40))
    return lambda _: [make(next(count))]


LISTINGS: dict[str, tuple[Callable[[], Speak], str]] = {
    "the same page": (lambda: _counting(lambda n: page(["root/a", "root/b"], "t")), "out of order"),
    "the same token": (lambda: _counting(lambda n: page([f"root/{n:09}"], "t")), "repeats"),
    "two tokens in turn": (
        lambda: _counting(lambda n: page([f"root/{n:09}"], str(n % 2))),
        "repeats",
    ),
    "nothing, for ever": (lambda: _counting(lambda n: page([], f"t{n}")), "without a name"),
    "cut short": (lambda: _counting(lambda n: page(["root/a"], truncated="true")), "cut short"),
    "from elsewhere": (lambda: _counting(lambda n: page(["other/a"])), "from elsewhere"),
    "unsorted": (lambda: _counting(lambda n: page(["root/b", "root/a"])), "out of order"),
    "twice": (lambda: _counting(lambda n: page(["root/a", "root/a"])), "out of order"),
    "the same folders": (
        lambda: _counting(lambda n: page([], f"t{n}", ("root/x/",))),
        "out of order|from elsewhere",
    ),
    "without end": (
        lambda: (
            lambda _: chunked_without_end(
                reply("200 OK", Transfer_Encoding="chunked", Content_Type="application/xml")
            )
        ),
        "does not end",
    ),
}


@pytest.mark.parametrize("name", LISTINGS)
@pytest.mark.parametrize("s3_client", ["s3fs", "obstore"])
def test_listings_of_s3_end(
    serve: Callable[..., Hostile], s3_client: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_EMPTY", 20)
    make, said = LISTINGS[name]
    for call in (
        lambda store: [*store.list()],
        lambda store: [*store.sizes()],
        lambda store: store.list_dir(),
        lambda store: store.delete_prefix(""),
    ):
        server = serve(make())
        with (
            closing(driver(server, s3_client)) as store,
            at_most(96 * MIB),
            pytest.raises(DriverError, match=said),
        ):
            call(store)
        assert len(server.requests) < 60
        assert not any(b"other" in each for each in server.requests)  # nothing is deleted there


BARE = {
    "folders without names": b"<ListBucketResult><CommonPrefixes/></ListBucketResult>",
    "keys without names": b"<ListBucketResult><Contents/></ListBucketResult>",
    "an upload without a name": b"<InitiateMultipartUploadResult/>",
    "a result of nothing": b"<DeleteResult><Error/></DeleteResult>",
}
USES: dict[str, Callable[[Driver], object]] = {
    "get": lambda store: store.get("k"),
    "part": lambda store: store.get("k", Span(0, 4)),
    "tag": lambda store: store.tag("k"),
    "put": lambda store: store.put("k", b"x"),
    "put large": lambda store: store.put("k", bytes(20 * MIB)),
    "put if": lambda store: store.put("k", b"x", if_absent=True),
    "delete": lambda store: store.delete_many(["k", "l"]),
    "list": lambda store: [*store.list()],
    "list_dir": lambda store: store.list_dir(),
}


@pytest.mark.parametrize("said", BARE)
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
@pytest.mark.parametrize("s3_client", ["s3fs", "obstore"])
def test_answers_that_lack_what_they_must_say(
    serve: Callable[..., Hostile],
    monkeypatch: pytest.MonkeyPatch,
    s3_client: str,
    status: str,
    said: str,
) -> None:
    monkeypatch.setattr(retry, "SLOWEST", float(1 << 40))  # no 20 s more for a large put
    server = serve(lambda _: [])
    with closing(driver(server, s3_client, timeout=0.3)) as store:
        server.speak = lambda _: [reply(status, BARE[said], Content_Type="application/xml")]
        for use in USES.values():
            try:
                use(store)
            except StashError as error:
                assert "\n" not in str(error)


def test_good_listings_are_whole(serve: Callable[..., Hostile]) -> None:
    pages = [page(["root/a", "root/b"], "1"), page([], "2"), page(["root/c"])]
    server = serve(_counting(lambda n: pages[n % 3]))
    with closing(driver(server, "s3fs")) as store:
        assert [*store.list()] == ["a", "b", "c"]


def test_pages_of_a_web_server_lead_nowhere_else(serve: Callable[..., Hostile]) -> None:
    links = [
        "",
        ".",
        "./",
        "..",
        "../",
        "/",
        "/data",
        "/data/",
        "/data/ok",
        "/elsewhere/x",
        "deep/er",
    ]
    links += ["//127.0.0.9/data/x", "http://127.0.0.9/data/x", "good", "folder/", "a%2Fb", "%2e%2e"]
    links += ["?C=N;O=D", "#top", "good?x=1", "good", "http://[::1", "javascript:x", "%00", "é"]
    text = "".join(f'<a href="{link}">{link}</a>' for link in links).encode()
    server = serve(lambda _: [reply("200 OK", text, Content_Type="text/html")])
    with closing(driver(server, "http", index_pages=True)) as store:
        keys, folders = store.list_dir()
        assert [*keys] == ["good", "ok", "é"] and [*folders] == ["folder"]
        with pytest.raises(DriverError, match="more than 256 deep"):
            [*store.list()]  # each folder holds a folder
    server = serve(endless(Content_Type="text/html"))
    with (
        closing(driver(server, "http", index_pages=True)) as store,
        at_most(24 * MIB),
        pytest.raises(DriverError, match=f"more than {body.PAGE} bytes"),
    ):
        store.list_dir()


def test_a_folder_of_fsspec_that_holds_itself() -> None:
    import fsspec

    class Looped(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "looped"

        def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
            return [
                {"name": f"{path}/again", "type": "directory", "size": 0},
                {"name": f"{path}/file", "type": "file", "size": 1},
            ]

    store = connect("fsspec://top", {"fs": Looped()})
    with pytest.raises(DriverError, match="more than 256 deep"):
        [*store.list()]


def test_files_of_other_stores_are_read_no_further(tmp_path: Path) -> None:
    import fsspec
    from zarr.storage import LocalStore

    class Endless(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "endless"

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "type": "file", "size": None}

        def _open(self, *_: Any, **__: Any) -> Any:
            return open("/dev/zero", "rb")

    (tmp_path / "k").symlink_to("/dev/zero")
    for store in (connect("fsspec://top", {"fs": Endless()}), connect_zarr(LocalStore(tmp_path))):
        with closing(store), at_most(16 * MIB):
            for ask in (
                lambda store=store: get_at_most(store, "k", MIB),
                lambda store=store: [*store.get_many([Request("k", most=MIB)])],
            ):
                with pytest.raises(Corrupt, match="more than the 1048576"):
                    ask()


def connect_zarr(store: Any) -> Driver:
    return connect("zarr://", {"store": store})
