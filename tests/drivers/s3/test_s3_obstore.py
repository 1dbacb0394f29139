"""Two client libraries, one S3 driver: the same requests get the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from tensorstash.driver import Span
from tensorstash.drivers.s3.client import Client, Failed, Found
from tensorstash.drivers.s3.obstore import client as s3_obstore
from tensorstash.drivers.s3.obstore.client import ObstoreClient
from tensorstash.drivers.s3.options import Settings
from tensorstash.drivers.s3.s3fs import client as s3_s3fs
from tensorstash.testing.driver_values import _WEIRD
from tests.servers.rgw import Rgw
from tests.servers.s3 import S3

T = TypeVar("T")

MAKERS = {"s3fs": s3_s3fs.make, "obstore": s3_obstore.make}
DIGITS = b"0123456789"

Make = Callable[[Settings], Client]


@pytest.fixture(params=[*MAKERS])
def make(request: Any) -> Make:
    return MAKERS[request.param]


@pytest.fixture(params=["s3", "rgw"])
def server(request: Any) -> S3:
    found: S3 = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def buckets() -> dict[str, str]:
    return {}


@pytest.fixture
def bucket(server: S3, boto: Any, buckets: dict[str, str]) -> Iterator[str]:
    """One for all tests of a server, which bounds their number; empty at the end of each."""
    name = buckets.get(server.endpoint)
    if name is None:
        name = buckets[server.endpoint] = server.make_bucket()
    yield name
    for one in boto.list_objects_v2(Bucket=name).get("Contents", ()):
        boto.delete_object(Bucket=name, Key=one["Key"])


@pytest.fixture
def boto(server: S3) -> Iterator[Any]:
    client = server.client()
    yield client
    client.close()


@pytest.fixture
def settings(server: S3, bucket: str) -> Settings:
    return at(server, bucket)


def at(server: S3, bucket: str) -> Settings:
    return Settings(bucket, idle=5.0, **server.options)


def ask(make: Make, settings: Settings, work: Callable[[Client], Awaitable[T]]) -> T:
    async def main() -> T:
        client = make(settings)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(main())


def kind(make: Make, settings: Settings, work: Callable[[Client], Awaitable[Any]]) -> str:
    with pytest.raises(Failed) as caught:
        ask(make, settings, work)
    text = f"{caught.value} {caught.value.__cause__}"
    assert settings.secret is None or settings.secret not in text
    return caught.value.kind


def plain(found: Found | None) -> tuple[bytes, str, int] | None:
    return None if found is None else (bytes(found.data), found.etag, found.size)


REQUESTS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "get": lambda client: client.get("k"),
    "get part": lambda client: client.get("k", Span(2, 4)),
    "head": lambda client: client.head("k"),
    "put": lambda client: client.put("k", b"1"),
    "put if absent": lambda client: client.put("k", b"1", if_absent=True),
    "put if etag": lambda client: client.put("k", b"1", if_etag="0" * 32),
    "delete": lambda client: client.delete(["k"]),
    "delete two": lambda client: client.delete(["k", "l"]),
    "list": lambda client: client.page("", True),
}

SPANS = [Span(0), Span(0, 1), Span(2, 5), Span(2, 50), Span(9, 10), Span(10, 11), Span(50, 60)]
SPANS += [Span(3, 3), Span(5, 2), Span(4), Span(10), Span(11), Span(-4), Span(-40), Span(-1)]
SPANS += [Span(-6, 7), Span(-6, 2), Span(0, 10), Span(0, 1 << 40)]


# -- answers ----------------------------------------------------------------------------


def test_values_and_parts(make: Make, settings: Settings, boto: Any) -> None:
    etags = {
        value: boto.put_object(Bucket=settings.bucket, Key=f"v{len(value)}", Body=value)["ETag"]
        for value in (DIGITS, b"", b"x")
    }

    async def work(client: Client) -> None:
        for value, etag in etags.items():
            for span in [None, *SPANS]:
                found = await client.get(f"v{len(value)}", span)
                part = value[slice(*(span or Span(0)).resolve(len(value)))]
                assert plain(found) == (part, etag.strip('"'), len(value)), span
        for span in [None, *SPANS]:
            assert await client.get("absent", span) is None, span

    ask(make, settings, work)


def test_what_the_asker_holds_is_not_sent_again(make: Make, settings: Settings) -> None:
    async def work(client: Client) -> None:
        old = await client.put("k", DIGITS)
        assert '"' not in old
        for span in (None, Span(2, 4), Span(-3), Span(3)):
            same = await client.get("k", span, old)
            assert same is not None and (bytes(same.data), same.etag) == (b"", old)
            assert await client.get("absent", span, old) is None
        new = await client.put("k", b"abcdefghij")
        assert new != old
        assert plain(await client.get("k", None, old)) == (b"abcdefghij", new, 10)
        assert plain(await client.get("k", Span(-3), old)) == (b"hij", new, 10)

    ask(make, settings, work)


def test_marks(make: Make, settings: Settings, boto: Any) -> None:
    async def work(client: Client) -> None:
        for key, value in {"a": DIGITS, "empty": b""}.items():
            etag = await client.put(key, value, mark="m-1", if_absent=True)
            head = await client.head(key)
            assert head is not None and head[:3] == (etag, len(value), "m-1")
        etag = await client.put("a", b"x")
        head = await client.head("a")
        assert head is not None and head[:3] == (etag, 1, None)
        assert await client.head("absent") is None

    ask(make, settings, work)
    metadata = boto.head_object(Bucket=settings.bucket, Key="empty")["Metadata"]
    assert metadata == {"tensorstash-mark": "m-1"}


def test_conditions(make: Make, settings: Settings) -> None:
    async def work(client: Client) -> None:
        async def refused(**condition: Any) -> None:
            with pytest.raises(Failed) as caught:
                await client.put(condition.pop("key", "k"), b"lost", **condition)
            assert caught.value.kind == "precondition"

        first = await client.put("k", b"1", if_absent=True)
        await refused(if_absent=True)
        second = await client.put("k", b"2", if_etag=first)
        await refused(if_etag=first)
        await refused(key="absent", if_etag=first)
        assert plain(await client.get("k")) == (b"2", second, 1)
        assert await client.get("absent") is None

    ask(make, settings, work)


@pytest.mark.parametrize("value", [bytearray(b"abc"), memoryview(b"xabcx")[1:4], b"", bytearray()])
def test_any_buffer_is_stored(make: Make, settings: Settings, value: Any) -> None:
    async def work(client: Client) -> None:
        etag = await client.put("k", value)
        assert plain(await client.get("k")) == (bytes(value), etag, len(value))

    ask(make, settings, work)


def test_deleting(make: Make, settings: Settings, boto: Any) -> None:
    async def work(client: Client) -> None:
        keys = ["a", "b & <c>", "d/\x7f", "e/f"]
        for key in keys:
            await client.put(key, b"1")
        await client.delete(["a", "never", *keys[1:3]])
        await client.delete(["a"])

    ask(make, settings, work)
    left = boto.list_objects_v2(Bucket=settings.bucket)["Contents"]
    assert [one["Key"] for one in left] == ["e/f"]


@pytest.mark.parametrize("key", [*_WEIRD, "%", "%25", "a/.../b", " lead", "trail ", "é", "e\u0301"])
def test_keys_are_exact(make: Make, settings: Settings, boto: Any, key: str) -> None:
    key = f"w/{key}"
    assert s3_obstore.expressible(key)

    async def work(client: Client) -> None:
        etag = await client.put(key, b"ours")
        (stored,) = boto.list_objects_v2(Bucket=settings.bucket)["Contents"]
        assert (stored["Key"], stored["ETag"].strip('"')) == (key, etag)
        boto.put_object(Bucket=settings.bucket, Key=key, Body=b"theirs")
        found = await client.get(key)
        assert found is not None and bytes(found.data) == b"theirs"
        assert [*(await client.page("w/", False)).keys] == [(key, 6)]
        await client.delete([key])
        assert "Contents" not in boto.list_objects_v2(Bucket=settings.bucket)

    ask(make, settings, work)


@pytest.mark.parametrize("key", ["/a", "a/", "a//b", "a/./b", "../a", "a/..", "a\tb", "\uffff", ""])
def test_keys_that_obstore_cannot_express(key: str) -> None:
    assert not s3_obstore.expressible(key)


def test_listings_with_the_keys_of_others(make: Make, settings: Settings, boto: Any) -> None:
    for key in ("f/a//b", "f/dir/", "f/x", "f/sub/y", "g"):
        boto.put_object(Bucket=settings.bucket, Key=key, Body=b"1")

    async def work(client: Client) -> None:
        every = await client.page("f/", False)
        assert sorted(key for key, _ in every.keys) == ["f/a//b", "f/dir/", "f/sub/y", "f/x"]
        page = await client.page("f/", True)
        assert [*page.keys] == [("f/x", 1)]
        assert sorted(page.folders) == ["f/a/", "f/dir/", "f/sub/"]
        assert page.after is None

    ask(make, settings, work)


def test_parts(make: Make, settings: Settings) -> None:
    async def work(client: Client) -> None:
        upload = await client.begin_parts("k", mark="m")
        pieces = [b"a" * (5 << 20), b"b" * 100]
        etags = [await client.put_part("k", upload, n, p) for n, p in enumerate(pieces, 1)]
        etag = await client.end_parts("k", upload, etags, if_absent=True)
        head = await client.head("k")
        assert head is not None and head[:3] == (etag, (5 << 20) + 100, "m")
        found = await client.get("k", Span(-101))
        assert found is not None and bytes(found.data) == b"a" + b"b" * 100
        await client.abort_parts("k", await client.begin_parts("k"))

    ask(make, settings, work)


# -- failures ---------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [*REQUESTS])
def test_a_missing_bucket_is_no_missing_key(make: Make, server: S3, request_: str) -> None:
    settings = at(server, "no-such-bucket-here")
    assert kind(make, settings, REQUESTS[request_]) == "no bucket"


@pytest.mark.parametrize("request_", [*REQUESTS])
def test_denied_stays_denied(make: Make, server: S3, settings: Settings, request_: str) -> None:
    wrong = replace(settings, secret="not-the-secret", token="some-token")
    assert kind(make, wrong, REQUESTS[request_]) == "denied"
    unknown = replace(settings, key="AKIANOBODY")
    assert kind(make, unknown, REQUESTS[request_]) == "denied"
    if isinstance(server, Rgw):  # moto answers 500
        anonymous = replace(settings, key=None, secret=None, anon=True)
        assert kind(make, anonymous, REQUESTS[request_]) == "denied"


def test_ordinary_requests_do_not_need_s3fs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ObstoreClient, "_spare", lambda self: pytest.fail("s3fs was asked"))

    async def work(client: Client) -> None:
        etag = await client.put("k", DIGITS, if_absent=True, mark="m")
        await client.put("k", DIGITS, if_etag=etag)
        for span in (None, Span(2, 5), Span(-3), Span(-30), Span(4), Span(2, 50)):
            assert await client.get("k", span) is not None
        assert await client.head("k") is not None
        assert await client.get("absent", Span(-3)) is None
        await client.delete(["k", "l"])

    ask(s3_obstore.make, settings, work)
