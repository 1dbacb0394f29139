"""Redirects: nothing that the user gave for one server goes to another, and S3 stays at home."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from tensorstash.driver import Driver, Span
from tensorstash.drivers.fsspec.redirects import follow
from tensorstash.errors import Denied, DriverError, StashError
from tensorstash.registry import connect
from tests.servers.hostile import Hostile, Speak, reply

ETAG = {"ETag": '"0123456789abcdef"', "Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
SECRETS = ("api-secret", "cookie-secret", "login-secret", "token-secret", "AKIDSECRET")
VALUE = b"0123456789"

Serve = Callable[..., Hostile]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(speak: Speak, **options: Any) -> Hostile:
            return stack.enter_context(closing(Hostile(speak, **options)))

        yield start


def value(request: bytes) -> list[bytes]:
    if b"range: bytes=2-4" in request.lower():
        part = {"Content_Range": "bytes 2-4/10"}
        return [reply("206 Partial Content", VALUE[2:5], **part, **ETAG)]
    return [reply("200 OK", b"" if request.startswith(b"HEAD") else VALUE, **ETAG)]


def to(target: str, status: str = "307 Temporary Redirect") -> Speak:
    return lambda _: [reply(status, Location=target)]


def shown(requests: list[bytes]) -> list[str]:
    return [secret for secret in SECRETS if any(secret.encode() in each for each in requests)]


with warnings.catch_warnings():  # of aiohttp's own name for it
    warnings.simplefilter("ignore", DeprecationWarning)
    LOGIN = aiohttp.BasicAuth("u", "login-secret")
    ENCODED = LOGIN.encode().encode()

OPTIONS: dict[str, dict[str, Any]] = {
    "headers": {"headers": {"X-Api-Key": "api-secret", "Authorization": "login-secret"}},
    "headers that aiohttp sets": {
        "headers": {"User-Agent": "api-secret", "Accept": "*/cookie-secret"}
    },
    "cookie": {"headers": {"Cookie": "a=cookie-secret"}},
    "session headers": {"client_kwargs": {"headers": {"X-Api-Key": "api-secret"}}},
    "session cookies": {"client_kwargs": {"cookies": {"a": "cookie-secret"}}},
    "session login": {"client_kwargs": {"auth": LOGIN}},
    "login": {"auth": LOGIN},
}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])  # another port, another host
@pytest.mark.parametrize("name", OPTIONS)
def test_another_origin_gets_nothing_of_the_users(serve: Serve, name: str, host: str) -> None:
    other = serve(value, host=host)
    server = serve(to(f"{other.url}/x"))
    with closing(connect(f"{server.url}/data", OPTIONS[name])) as store:
        assert store.get("k") == VALUE
        assert store.get("k", Span(2, 5)) == VALUE[2:5]  # the range goes along
        assert store.tag("k") == ("etag", ETAG["ETag"])
    assert len(other.requests) == 3 and not shown(other.requests)
    assert not any(ENCODED in each or b"authorization" in each.lower() for each in other.requests)
    assert not any(b"cookie" in each.lower() for each in other.requests)
    assert shown(server.requests) or any(ENCODED in each for each in server.requests)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_origin_keeps_them(serve: Serve, name: str) -> None:
    def speak(request: bytes) -> list[bytes]:
        return value(request) if b"/moved" in request else to("/moved")(request)  # type: ignore[return-value]

    server = serve(speak)
    with closing(connect(f"{server.url}/data", OPTIONS[name])) as store:
        assert store.get("k") == VALUE
    asked, moved = server.requests
    assert shown([moved]) == shown([asked]) and (ENCODED in asked) == (ENCODED in moved)


def test_back_again_is_still_another_origin(serve: Serve) -> None:
    server = serve(lambda _: [])
    other = serve(to(f"{server.url}/back"))
    server.speak = lambda request: (
        value(request) if b"/back" in request else to(f"{other.url}/x")(request)  # type: ignore[return-value]
    )
    with closing(connect(f"{server.url}/data", OPTIONS["headers"])) as store:
        assert store.get("k") == VALUE
    assert shown(server.requests[:1]) and not shown(server.requests[1:] + other.requests)


def test_redirects_end(serve: Serve) -> None:
    server = serve(to("/data/k"))
    with closing(connect(f"{server.url}/data", {})) as store, pytest.raises(DriverError):
        store.get("k")
    assert len(server.requests) <= 11
    for nowhere in ("", "ftp://127.0.0.1/x", "http://", "//[::1", "javascript:x"):
        server = serve(to(nowhere))
        place = connect(f"{server.url}/data", {"timeout": 1.0})
        with closing(place) as store, pytest.raises(StashError):
            store.get("k")


def test_tls_is_not_given_up() -> None:
    for target in ("http://safe.example/x", "http://other.example/x", "//other.example:80/x"):
        headers = CIMultiDict({"X-Api-Key": "api-secret", "Range": "bytes=0-1"})
        if target.startswith("//"):
            follow(URL("https://safe.example/a"), target, headers)
            assert [*headers] == ["Range"]
        else:
            with pytest.raises(Denied, match=r"safe\.example redirects to .* without TLS"):
                follow(URL("https://safe.example/a"), target, headers)


@pytest.mark.parametrize("scheme", ["zip::http", "simplecache::http"])
def test_http_below_another_filesystem(serve: Serve, scheme: str) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("k", VALUE)
    data = made.getvalue() if scheme.startswith("zip") else VALUE

    def whole(request: bytes) -> list[bytes]:
        if request.startswith(b"HEAD"):
            return [reply("200 OK", Content_Length=str(len(data)), Accept_Ranges="bytes", **ETAG)]
        wanted = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", request)
        if wanted is None:
            return [reply("200 OK", data, **ETAG)]
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        part = {"Content_Range": f"bytes {first}-{last}/{len(data)}"}
        return [reply("206 Partial Content", data[first : last + 1], **part, **ETAG)]

    other = serve(whole, host="127.0.0.2")
    server = serve(to(f"{other.url}/x"))
    address = server.url.partition("://")[2]
    place = f"{scheme}://{address}/a.zip" if scheme.startswith("zip") else f"{scheme}://{address}"
    with closing(connect(place, {"http": OPTIONS["headers"]})) as store:
        assert bytes(store.get("k") or b"") == VALUE
    assert other.requests and not shown(other.requests)
    assert shown(server.requests)


# -- S3 --------------------------------------------------------------------------------------------


def bucket(server: Hostile, client: str, token: bool) -> Driver:
    given = {"endpoint": server.url, "key": "AKIDSECRET", "secret": "s" * 20, "client": client}
    given |= {"region": "us-east-1", "unsafe": True, "timeout": 20.0, "idle": 20.0}
    if token:
        given["token"] = "token-secret"
    return connect("s3://bucket/root", given)


CALLS: dict[str, Callable[[Driver], object]] = {
    "get": lambda store: store.get("k"),
    "part": lambda store: store.get("k", Span(2, 5)),
    "tag": lambda store: store.tag("k"),
    "list": lambda store: [*store.list()],
    "list_dir": lambda store: store.list_dir(),
    "put": lambda store: store.put("k", b"data"),
    "delete": lambda store: store.delete("k"),
    "delete_many": lambda store: store.delete_many(["k", "l"]),
}


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 P"])
@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("s3_client", ["s3fs", "obstore"])
def test_s3_stays_with_its_endpoint(serve: Serve, s3_client: str, token: bool, status: str) -> None:
    # obstore cannot tell two ports of a host apart, so it is not used where a token could leave.
    host = "127.0.0.1" if token or s3_client == "s3fs" else "127.0.0.2"
    other = serve(value, host=host)
    server = serve(to(f"{other.url}/x", status))
    with closing(bucket(server, s3_client, token)) as store:
        for name, call in CALLS.items():
            with pytest.raises(Denied) as caught:
                call(store)
            assert server.address in str(caught.value) and other.address in str(caught.value), name
            assert not any(secret in str(caught.value) for secret in SECRETS)
    assert not other.requests


@pytest.mark.parametrize("s3_client", ["s3fs", "obstore"])
def test_s3_within_its_endpoint(serve: Serve, s3_client: str) -> None:
    def speak(request: bytes) -> list[bytes]:
        return value(request) if b" /moved" in request else to("/moved")(request)  # type: ignore[return-value]

    server = serve(speak)
    with closing(bucket(server, s3_client, token=True)) as store:
        assert bytes(store.get("k") or b"") == VALUE
        with pytest.raises(Denied):
            store.put("k", b"data")


def test_names_below_the_endpoints_are_its_own() -> None:
    from tensorstash.drivers.s3.s3fs.session import within

    first = URL("https://s3.example.org/b/k")
    for good in ("https://s3.example.org/x", "/x", "https://eu.s3.example.org/x"):
        assert within(first, first, good) is not None
    for bad in (
        *("http://s3.example.org/x", "https://s3.example.org:444/x", "https://example.org/x"),
        *("https://evils3.example.org/x", "https://s3.example.org.evil.net/x", "//evil.net/"),
        *("https://s3.example.org@evil.net/x", "https://[::1", "ftp://s3.example.org/x"),
    ):
        assert within(first, first, bad) is None, bad
    local = URL("http://127.0.0.1:9000/b/k")
    assert within(local, local, "http://9.127.0.0.1:9000/x") is None
