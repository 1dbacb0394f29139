"""Every way that S3 says no, as the right error, in time, and without a secret."""

from __future__ import annotations

import json
import logging
import os
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.driver import Request, Span
from tensorstash.drivers import s3 as s3_driver
from tensorstash.drivers.s3.client import Failed
from tensorstash.drivers.s3.driver import S3Driver
from tensorstash.drivers.s3.requests import Requests
from tensorstash.errors import (
    Conflict,
    Denied,
    DriverError,
    Invalid,
    NoSpace,
    NotFound,
    Unavailable,
    Unsupported,
)
from tests.servers.rgw import Rgw
from tests.servers.s3 import S3

CLIENTS = ("s3fs", "obstore")


@pytest.fixture(params=CLIENTS)
def client(request: Any) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["s3", "rgw"])
def server(request: Any) -> S3:
    found: S3 = request.getfixturevalue(request.param)
    return found


def connect(server: S3, client: str, bucket: str, **options: Any) -> S3Driver:
    return s3_driver.connect(f"{bucket}/root", **(server.options | {"client": client} | options))


def everything(driver: S3Driver) -> list[Any]:
    """Each verb once."""
    return [
        lambda: driver.get("k"),
        lambda: driver.get("k", Span(0, 3)),
        lambda: driver.tag("k"),
        lambda: [*driver.get_many([Request("k")])],
        lambda: driver.get_ranges("k", [Span(0, 1), Span(3, 4)]),
        lambda: driver.put("k", b"1"),
        lambda: driver.put("k", b"1", if_absent=True),
        lambda: driver.put_many([("k", b"1")]),
        lambda: driver.delete("k"),
        lambda: driver.delete_many(["k", "l"]),
        lambda: [*driver.list()],
        lambda: driver.list_dir(),
    ]


def test_wrong_secret_and_unknown_key(server: S3, client: str) -> None:
    bucket = server.make_bucket()
    for wrong in ({"secret": "not-the-secret"}, {"key": "nobody-by-that-key"}):
        driver = connect(server, client, bucket, **wrong)
        for call in everything(driver):
            with pytest.raises(Denied) as caught:
                call()
            assert "not-the-secret" not in str(caught.value) and server.key not in str(caught.value)
        assert driver.traffic.retries == 0
        driver.close()


def test_a_missing_bucket_is_not_an_absent_key(server: S3, client: str) -> None:
    driver = connect(server, client, "no-such-bucket-here")
    for call in everything(driver):
        with pytest.raises(NotFound, match="no bucket 'no-such-bucket-here'"):
            call()
    with pytest.raises(NotFound, match="no bucket"):
        stash.open(driver)
    driver.close()


def test_without_the_right_to_list_a_missing_key_is_not_absent(rgw: Rgw, client: str) -> None:
    bucket = rgw.make_bucket()
    reader = rgw.make_user()
    boto = rgw.client()
    boto.put_object(Bucket=bucket, Key="root/there", Body=b"1")
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/{reader.user}"]},
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    boto.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    boto.close()
    driver = connect(reader, client, bucket)
    assert bytes(driver.get("there") or b"") == b"1"
    for call in (lambda: driver.get("not there"), lambda: driver.tag("not there")):
        with pytest.raises(Denied, match=r"absent and they lack s3:ListBucket"):
            call()
    with pytest.raises(Denied):
        driver.put("k", b"1")
    with pytest.raises(Denied):
        [*driver.list()]
    driver.close()


def allowed(rgw: Rgw, *actions: str) -> tuple[Rgw, str]:
    """A user who may do these with the objects of a bucket, and not list them."""
    bucket, user = rgw.make_bucket(), rgw.make_user()
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/{user.user}"]},
        "Action": [f"s3:{action}" for action in actions],
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    boto = rgw.client()
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    boto.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    boto.close()
    return user, bucket


def test_denied_reads_are_absent_where_one_wants_that(rgw: Rgw, client: str) -> None:
    reader, bucket = allowed(rgw, "GetObject")
    owner = connect(rgw, client, bucket)
    array = stash.create(owner, (6,), "i4", chunks=(2,))
    array[2:4] = 7
    driver = connect(reader, client, bucket, denied_is_absent=True)
    assert stash.load(driver).tolist() == [0, 0, 7, 7, 0, 0]
    assert pickle.loads(pickle.dumps(driver))._denied_is_absent  # its keys do not travel
    assert driver.get("not there") is None and driver.tag("not there") is None
    assert driver.get_ranges("not there", [Span(0, 2), Span(3, 4)]) is None
    with pytest.raises(NotFound):
        stash.open(f"s3://{bucket}/nothing", options={**reader.options, "denied_is_absent": True})
    for call in (
        lambda: driver.put("k", b"1"),
        lambda: driver.put("k", b"1", if_absent=True),
        lambda: driver.delete("zarr.json"),
        lambda: [*driver.list()],
    ):
        with pytest.raises(Denied):
            call()
    assert owner.get("zarr.json") is not None and owner.get("k") is None
    for wrong in ({"secret": "not-the-secret"}, {"key": "nobody-by-that-key"}):
        stranger = connect(reader, client, bucket, denied_is_absent=True, **wrong)
        with pytest.raises(Denied):
            stranger.get("zarr.json")
        stranger.close()
    driver.close()
    owner.close()


def test_conditions_hold_where_denied_reads_are_absent(rgw: Rgw, client: str) -> None:
    writer, bucket = allowed(rgw, "GetObject", "PutObject", "DeleteObject")
    driver = connect(writer, client, bucket, denied_is_absent=True)
    tag = driver.put("k", b"1", if_absent=True)
    with pytest.raises(Conflict):
        driver.put("k", b"2", if_absent=True)
    driver.put("k", b"3", if_tag=tag)
    with pytest.raises(Conflict):
        driver.put("k", b"4", if_tag=tag)
    assert bytes(driver.get("k") or b"") == b"3"
    blind, place = allowed(rgw, "PutObject", "DeleteObject")
    owner = connect(rgw, client, place)
    owner.put("k", b"theirs")
    other = connect(blind, client, place, denied_is_absent=True)
    assert other.get("k") is None  # the danger that the docs state
    with pytest.raises(Conflict):
        other.put("k", b"mine", if_absent=True)
    assert bytes(owner.get("k") or b"") == b"theirs"
    for each in (driver, owner, other):
        each.close()


def test_a_put_whose_outcome_is_hidden_ends(monkeypatch: pytest.MonkeyPatch, client: str) -> None:
    """The answer is lost, and a look at what is there is denied: it went round without end."""
    sent: list[str] = []

    async def send(self: Requests, n: int, verb: str, *rest: Any, **options: Any) -> Any:
        sent.append(verb)
        assert len(sent) < 20
        if verb == "HEAD":
            return None  # denied, and so absent
        raise Failed("lost" if sent.count("PUT") == 1 else "precondition", "said")

    async def kept(self: Requests) -> None:
        return None

    monkeypatch.setattr(Requests, "_send", send)
    monkeypatch.setattr(Requests, "_conditions", kept)
    driver = s3_driver.connect("b/x", client=client, denied_is_absent=True)
    with pytest.raises(DriverError, match="outcome unknown"):
        driver.put("k", b"1", if_absent=True)
    assert sent == ["PUT", "HEAD", "PUT"]
    driver.close()


def test_denied_is_absent_is_checked() -> None:
    with pytest.raises(Invalid, match="not both"):
        s3_driver.connect("b/x", unsafe=True, denied_is_absent=True)
    with pytest.raises(Invalid, match="True or False"):
        s3_driver.connect("b/x", denied_is_absent="yes")  # type: ignore[arg-type]


def test_a_full_quota_is_no_space(rgw: Rgw, client: str) -> None:
    user = rgw.make_user()
    bucket = user.make_bucket()
    scope = ("--quota-scope=user", f"--uid={user.user}")
    rgw.admin("quota", "set", *scope, "--max-size=100000")
    rgw.admin("quota", "enable", *scope)
    driver = connect(user, client, bucket)
    with pytest.raises(NoSpace, match="quota"):
        for i in range(40):
            driver.put(f"k/{i}", bytes(20_000))
    assert driver.traffic.retries == 0
    driver.close()


def test_a_server_that_keeps_saying_slow_down_ends_in_time(rgw: Rgw, client: str) -> None:
    user = rgw.make_user()
    scope = ("--ratelimit-scope=user", f"--uid={user.user}")
    rgw.admin("ratelimit", "set", *scope, "--max-read-ops=2")
    rgw.admin("ratelimit", "enable", *scope)
    driver = connect(user, client, user.make_bucket(), timeout=2.0)
    driver.put("k", b"1")
    with pytest.raises(Unavailable, match="503"):
        for _ in range(10):
            driver.get("k")
    assert driver.traffic.retries > 0
    driver.close()


class _Expired(BaseHTTPRequestHandler):
    """A server for which every token has expired."""

    def do_GET(self) -> None:
        body = b"<Error><Code>ExpiredToken</Code><Message>it has expired</Message></Error>"
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def test_an_expired_token_is_denied(client: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Expired)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    driver = s3_driver.connect(
        "bucket", key="k", secret="s", token="long-gone", endpoint=endpoint, client=client
    )
    try:
        with pytest.raises(Denied, match="ExpiredToken") as caught:
            driver.get("k")
        assert "long-gone" not in str(caught.value)
        assert driver.traffic.requests == 1
    finally:
        driver.close()
        server.shutdown()
        server.server_close()


def test_anonymous(rgw: Rgw, client: str) -> None:
    bucket = rgw.make_bucket()
    driver = s3_driver.connect(
        f"{bucket}/root", endpoint=rgw.endpoint, anon=True, client=client, region="us-east-1"
    )
    with pytest.raises(Denied):
        driver.get("k")
    boto = rgw.client()
    boto.put_object(Bucket=bucket, Key="root/k", Body=b"1", ACL="public-read")
    boto.close()
    assert bytes(driver.get("k") or b"") == b"1"
    driver.close()


def test_no_credentials_at_all(s3: S3, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    driver = s3_driver.connect("bucket/root", endpoint=s3.endpoint, client=client)
    with pytest.raises(Denied, match="no usable credentials"):
        driver.get("k")
    driver.close()


# -- servers without conditions -----------------------------------------------------------


def test_a_server_that_ignores_conditions_is_refused(rclone_s3: S3, client: str) -> None:
    driver = connect(rclone_s3, client, rclone_s3.make_bucket(), lease=2.0)
    driver.put("k", b"1")
    for call in (
        lambda: driver.put("k", b"2", if_absent=True),
        lambda: driver.put("k", b"2", if_tag="0" * 32),
        lambda: driver.lock("k").__enter__(),
    ):
        with pytest.raises(Unsupported, match=r"ignores If-None-Match.*unsafe"):
            call()
    assert bytes(driver.get("k") or b"") == b"1"
    assert [*driver.list()] == ["k"]
    driver.close()


def test_unsafe_writes_to_it_all_the_same(rclone_s3: S3, client: str) -> None:
    options = {**rclone_s3.options, "client": client, "unsafe": True}
    url = f"s3://{rclone_s3.make_bucket()}/root"
    array = stash.create(url, (10, 4), "int32", chunks=(4, 4), options=options)
    array[:] = 1
    array[2:3, 1:2] = 7
    array.append([[5, 5, 5, 5]])
    again = stash.open(url, options=options)
    assert again.shape == (11, 4)
    assert again[2].tolist() == [1, 7, 1, 1] and again[10].tolist() == [5] * 4


# -- what must not show --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "options", "said"),
    [
        ("", {}, "names no bucket"),
        ("/path", {}, "names no bucket"),
        ("key:secret@bucket/path", {}, "holds no credentials"),
        ("bucket/a/../b", {}, "'..'"),
        ("bucket", {"endpoint": "localhost:9000"}, "not like http"),
        ("bucket", {"endpoint": "http://me:hush@host"}, "holds credentials"),
        ("bucket", {"endpoint": "http://a", "endpoint_url": "http://a"}, "the same"),
        ("bucket", {"key": "alone"}, "belong together"),
        ("bucket", {"token": "alone"}, "needs 'key'"),
        ("bucket", {"anon": True, "key": "k", "secret": "s"}, "not both"),
        ("bucket", {"client": "boto"}, "one of auto"),
        ("bucket", {"timeout": 0}, "seconds"),
        ("bucket", {"lease": "long"}, "seconds"),
        ("bucket", {"concurrency": 0}, "integer from 1"),
        ("bucket", {"part_bytes": 1}, "integer from"),
        ("bucket", {"connection": {"key": "k"}}, "function"),
        ("bucket", {"verify": "no"}, "True or False"),
    ],
)
def test_wrong_options_are_named_at_once(rest: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        s3_driver.connect(rest, **options)
    assert "hush" not in str(caught.value) and "key:secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [["key"], {"colour": 1}, {"key": "alone"}, None])
def test_a_wrong_connection_is_invalid_when_it_is_called(answer: Any) -> None:
    driver = s3_driver.connect("bucket/root", connection=lambda: answer)
    with pytest.raises(Invalid):
        driver.get("k")


def test_secrets_show_nowhere(
    s3: S3, client: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket = s3.make_bucket()
    token = "a-session-token-to-keep"
    driver = connect(s3, client, bucket, token=token)
    shown = [repr(driver), driver.url, repr(driver._settings)]
    with caplog.at_level(logging.DEBUG, logger="tensorstash"):
        for call in everything(driver):
            try:
                call()
            except stash.StashError as error:
                while error is not None:
                    shown.append(f"{error!r} {error}")
                    error = error.__cause__  # type: ignore[assignment]
    assert len(caplog.records) >= len(everything(driver))
    shown += [record.getMessage() for record in caplog.records]
    shown += capfd.readouterr()
    driver.close()
    for text in shown:
        assert s3.secret not in text and token not in text
