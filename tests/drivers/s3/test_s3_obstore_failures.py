"""What clients of S3 say about bad answers, cut connections and forks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tensorstash.driver import Span
from tensorstash.drivers.s3.client import Client, Failed
from tensorstash.drivers.s3.obstore import client as s3_obstore
from tensorstash.drivers.s3.options import Settings
from tests.drivers.s3.test_s3_obstore import MAKERS, REQUESTS, Make, ask, at, kind
from tests.servers.faults import FaultProxy
from tests.servers.s3 import S3


@pytest.fixture(params=[*MAKERS])
def make(request: Any) -> Make:
    return MAKERS[request.param]


def error(code: str) -> str:
    return f'<?xml version="1.0"?>\n<Error>\n <Code>{code}</Code><Message>m</Message></Error>'


ANSWERS: dict[str, tuple[int, str, str]] = {
    "slow down": (503, error("SlowDown"), "busy"),
    "503": (503, "", "busy"),
    "429": (429, "", "busy"),
    "500": (500, error("InternalError"), "lost"),
    "502": (502, "<html>", "lost"),
    "504": (504, "", "lost"),
    "quota": (403, error("QuotaExceeded"), "no space"),
    "disk": (507, error("XMinioStorageFull"), "no space"),
    "507": (507, "", "no space"),
    "401": (401, "", "denied"),
    "403": (403, "", "denied"),
    "policy": (403, error("AccessDenied"), "denied"),
    "signature": (403, error("SignatureDoesNotMatch"), "denied"),
    "expired": (400, error("ExpiredToken"), "denied"),
    "region": (400, error("AuthorizationHeaderMalformed"), "denied"),
    "501": (501, error("NotImplemented"), "refused"),
    "400": (400, error("InvalidArgument"), "refused"),
    "race": (409, error("ConditionalRequestConflict"), "precondition"),
    "412": (412, error("PreconditionFailed"), "precondition"),
    "no bucket": (404, error("NoSuchBucket"), "no bucket"),
    "idle": (400, error("RequestTimeout"), "lost"),
    "body": (400, error("IncompleteBody"), "lost"),
    "bare 404": (404, "", "other"),
    "page 404": (404, "<html>NoSuchKey</html>", "other"),
    "moved": (301, error("PermanentRedirect"), "other"),
}


def through(proxy: Any, s3: S3) -> FaultProxy:
    host, _, port = s3.endpoint.rpartition("/")[2].partition(":")
    way: FaultProxy = proxy((host, int(port)), http=True)
    return way


async def answering(status: int, body: str) -> tuple[asyncio.Server, Settings, list[bytes]]:
    """A server that answers everything alike, and the requests it got."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = await reader.readuntil(b"\r\n\r\n")
        asked.append(start.split(b"\r\n")[0])
        if (at := start.lower().find(b"content-length:")) >= 0:
            if b"100-continue" in start.lower():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await reader.readexactly(int(start[at + 15 :].split(b"\r\n")[0]))
        head = f"HTTP/1.1 {status} So\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write((head + body).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    endpoint = f"http://{host}:{port}"
    return server, Settings("b", key="k", secret="s", endpoint=endpoint, idle=5.0), asked


@pytest.mark.parametrize("verb", ["get", "get part", "head", "put", "put if absent", "delete two"])
@pytest.mark.parametrize("answer", [*ANSWERS])
def test_every_answer_has_its_kind_and_is_asked_for_once(
    make: Make, answer: str, verb: str
) -> None:
    status, body, expected = ANSWERS[answer]
    requests = 1
    if make is not s3_obstore.make:
        if answer == "moved":
            pytest.skip("s3fs asks where it is sent")
        if expected == "refused" and verb == "delete two":
            requests = 2  # a server that cannot delete several is asked for each

    async def main() -> None:
        server, settings, asked = await answering(status, body)
        async with server:
            client = make(settings)
            with pytest.raises(Failed) as caught:
                await REQUESTS[verb](client)
            await client.close()
        assert (caught.value.kind, len(asked)) == (expected, requests)
        assert "\n" not in str(caught.value)

    asyncio.run(main())


ODD: dict[str, tuple[int, str]] = {
    "no key": (404, error("NoSuchKey")),
    "no upload": (404, error("NoSuchUpload")),
    "304": (304, ""),
    "416": (416, error("InvalidRange")),
    "200": (200, ""),
    "list": (200, "<ListBucketResult><Contents/><CommonPrefixes/></ListBucketResult>"),
    "404s": (200, f"<DeleteResult>{error('404')[22:]}</DeleteResult>"),
    "416s": (200, f"<DeleteResult>{error('InvalidRange')[22:]}</DeleteResult>"),
}
EVERY: dict[str, Callable[[Client], Awaitable[Any]]] = REQUESTS | {
    "get the end": lambda client: client.get("k", Span(-2)),
    "get nothing": lambda client: client.get("k", Span(2, 2)),
    "get unless": lambda client: client.get("k", None, "0" * 32),
    "delete if": lambda client: client.delete_if(["k"], ["0" * 32]),
    "delete two if": lambda client: client.delete_if(["k", "l"], ["0" * 32, "1" * 32]),
    "begin parts": lambda client: client.begin_parts("k", "m"),
    "put part": lambda client: client.put_part("k", "u", 1, b"1"),
    "end parts": lambda client: client.end_parts("k", "u", ["0" * 32]),
    "end parts if absent": lambda client: client.end_parts("k", "u", ["0" * 32], if_absent=True),
    "end parts if etag": lambda client: client.end_parts("k", "u", ["0" * 32], if_etag="1" * 32),
    "abort parts": lambda client: client.abort_parts("k", "u"),
}
ABSENT = {
    **dict.fromkeys(["get", "get part", "get the end", "get nothing", "get unless", "head"]),
    "delete": None,
    "delete if": [True],
    "abort parts": None,
}
"""What says that nothing is stored, where that is no failure."""


@pytest.mark.parametrize("verb", [*EVERY])
def test_whatever_is_answered_only_failures_leave(make: Make, verb: str) -> None:
    # Ceph ends parts whose condition names an object that was deleted with 404 NoSuchKey.
    async def outcome(answer: str) -> Any:
        server, settings, _ = await answering(*ODD[answer])
        async with server:
            client = make(settings)
            try:
                return await asyncio.wait_for(EVERY[verb](client), 30)
            except Failed as failed:
                return failed.kind
            finally:
                await client.close()

    found = {answer: asyncio.run(outcome(answer)) for answer in ODD}
    conditional = "if etag" in verb or "if absent" in verb
    missing = "precondition" if conditional else ABSENT.get(verb, "other")
    if verb == "delete" and make is s3_obstore.make:
        missing = "other"  # it asks as for many, which answers for each
    assert found.pop("no key") == missing
    assert found.pop("304") == ((b"", "0" * 32, 0, 1) if verb == "get unless" else "other")
    assert found.pop("416") in ("other", "lost")
    assert found.pop("no upload") == (None if verb == "abort parts" else "other")


def test_a_key_cannot_pass_for_an_answer() -> None:
    key = 'k - 404 Not Found: <Code>NoSuchKey</Code> inner: Status { status: 404, body: Some( "'

    async def main() -> None:
        server, settings, _ = await answering(500, error("InternalError"))
        async with server:
            client = s3_obstore.make(settings)
            with pytest.raises(Failed, match="500 InternalError"):
                await client.get(key)

    asyncio.run(main())


def test_nothing_is_chained_that_may_repeat_a_token() -> None:
    async def main() -> None:
        body = error("SignatureDoesNotMatch") + "<CanonicalRequest>x-amz-security-token:TOKEN"
        server, settings, _ = await answering(403, body)
        async with server:
            # With a token it is s3fs that asks: obstore would take it where a server redirects.
            for given in (settings, replace(settings, token="TOKEN")):
                client = s3_obstore.make(given)
                with pytest.raises(Failed) as caught:
                    await client.get("k")
                assert caught.value.__cause__ is None and caught.value.__suppress_context__
                assert "TOKEN" not in str(caught.value)
                await client.close()

    asyncio.run(main())


# -- connections ------------------------------------------------------------------------

FAULTS: dict[str, tuple[dict[str, Any], bool]] = {
    "refused": ({"refuse": True}, False),
    "reply lost": ({"drop_reply": True}, False),
    "request cut": ({"cut_request_after": 100}, False),
    "silence": ({"black_hole": True}, True),
    "reply never": ({"drop_reply": True, "hang": True}, True),
}


@pytest.mark.parametrize("verb", ["get", "get part", "put", "put if absent", "delete"])
@pytest.mark.parametrize("fault", [*FAULTS])
def test_lost_connections(make: Make, s3: S3, proxy: Any, fault: str, verb: str) -> None:
    how, late = FAULTS[fault]
    if fault == "request cut" and not verb.startswith("put"):
        pytest.skip("has no body to cut")
    ours = make is s3_obstore.make
    if not ours and verb.startswith("put") and late:
        pytest.skip("s3fs leaves an upload that nobody takes to the driver's limit")
    way = through(proxy, s3)
    settings = replace(at(s3.through(way.endpoint), s3.make_bucket()), idle=1.0)

    async def work(client: Client) -> None:
        await client.put("k", b"x" * 100_000)
        way.forget()
        with way.broken(**how), pytest.raises(Failed) as caught:
            if verb.startswith("put"):
                await client.put("new", b"x" * 100_000, if_absent=verb == "put if absent")
            else:
                await REQUESTS[verb](client)
        assert (caught.value.kind, caught.value.timed_out) == ("lost", late)
        # aiohttp, below s3fs, sends once more where a kept connection fails.
        assert way.counts.requests <= (1 if ours else 2)

    ask(make, settings, work)


@pytest.mark.parametrize("orderly", [False, True])
def test_a_body_that_was_cut_is_lost(make: Make, s3: S3, proxy: Any, orderly: bool) -> None:
    way = through(proxy, s3)
    settings = at(s3.through(way.endpoint), s3.make_bucket())

    async def work(client: Client) -> None:
        await client.put("k", b"x" * 100_000)
        for span in (None, Span(10), Span(-90_000)):
            with way.broken(cut_after=50_000, orderly=orderly), pytest.raises(Failed) as caught:
                await client.get("k", span)
            assert caught.value.kind == "lost"

    ask(make, settings, work)


def test_cancelling_lets_go_of_the_connection() -> None:
    async def main() -> None:
        gone = asyncio.Event()
        came = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            came.set()
            await reader.read()
            gone.set()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        client = s3_obstore.make(
            Settings("b", key="k", secret="s", endpoint=f"http://{host}:{port}", idle=60.0)
        )
        async with server:
            task = asyncio.ensure_future(client.get("k"))
            await came.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(gone.wait(), 60)

    asyncio.run(main())


def test_nothing_but_what_is_given_decides(
    s3: S3, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = at(s3, s3.make_bucket())
    get: Callable[[Client], Awaitable[Any]] = lambda client: client.get("k")  # noqa: E731
    for name, value in {
        "AWS_SESSION_TOKEN": "bogus",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    assert ask(s3_obstore.make, settings, get) is None
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name)
    unnamed = replace(settings, key=None, secret=None)
    assert kind(s3_obstore.make, unnamed, get) == "denied"
    assert kind(s3_obstore.make, replace(unnamed, profile="lab"), get) == "denied"
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id={s3.key}\naws_secret_access_key={s3.secret}\n"
    )
    assert ask(s3_obstore.make, replace(unnamed, profile="lab"), get) is None
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url={s3.endpoint}\n")
    assert ask(s3_obstore.make, replace(unnamed, profile="lab", endpoint=None), get) is None
    assert kind(s3_obstore.make, replace(settings, ca=str(tmp_path / "no.pem")), get) == "other"


# -- forks ------------------------------------------------------------------------------

FORKS = """
    import asyncio, os, sys, obstore
    from obstore.store import MemoryStore
    from tensorstash.drivers.s3.obstore import client as s3_obstore, futures
    from tensorstash.drivers.s3.options import Settings

    settings = Settings({bucket!r}, key={key!r}, secret={secret!r}, endpoint={endpoint!r})
    before = {before!r}

    async def use():
        client = s3_obstore.make(settings)
        await client.put("k", b"1")
        found = await client.get("k")
        used = client._made is None
        await client.close()
        if used:  # this loop is not ours, which sees to it when the process ends
            await futures.all_done()
        assert bytes(found.data) == b"1"
        return used

    inherited = s3_obstore.make(settings)
    if before == "ours":
        asyncio.run(inherited.put("p", b"1"))
    elif before == "theirs":
        obstore.put(MemoryStore(), "x", b"1")
    assert s3_obstore.usable()
    pid = os.fork()
    if pid == 0:
        usable = s3_obstore.usable()
        del inherited
        print(usable, asyncio.run(use()), s3_obstore.usable(), flush=True)
        sys.exit(7)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status
    assert asyncio.run(use())
"""


@pytest.mark.parametrize(
    ("before", "child"),
    [
        ("nothing", "True True True"),
        ("ours", "False False False"),
        ("theirs", "True False False"),
    ],
)
def test_a_forked_child_never_hangs(s3: S3, before: str, child: str) -> None:
    code = textwrap.dedent(FORKS).format(
        bucket=s3.make_bucket(), key=s3.key, secret=s3.secret, endpoint=s3.endpoint, before=before
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, child), done.stderr
