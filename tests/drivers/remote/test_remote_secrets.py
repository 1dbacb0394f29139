"""A secret that a user gives to any driver shows nowhere: not in ``repr``, URLs, errors with all
they were raised from, log records of anybody, or pickles."""

from __future__ import annotations

import gc
import logging
import pickle
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.errors import StashError
from tensorstash.registry import connect
from tests.servers.port import free_port
from tests.servers.redis import Redis
from tests.servers.s3 import S3
from tests.servers.valkey import valkey
from tests.support.remote import numbers

USER = "SECRETUSERKEY7531"
WORD = "s3cret/w:rd@9864"
TOKEN = "SECRETTOKEN4286=="
_PLAIN = (USER, WORD, TOKEN)
FORMS = {
    *_PLAIN,
    *(quote(word, safe="") for word in _PLAIN),
    *(b64encode(word.encode()).decode().rstrip("=") for word in _PLAIN),
    b64encode(f"{USER}:{WORD}".encode()).decode().rstrip("="),
    "w:rd@9864",
    quote("w:rd", safe=""),
}

Case = tuple[str, dict[str, Any]]


def login(user: str = "reader") -> str:
    """A user's name is no secret in itself."""
    return f"{user}:{quote(WORD, safe='')}"


def nowhere() -> dict[str, Case]:
    """Servers that are not there."""
    port = free_port()
    keys = {"key": USER, "secret": WORD, "token": TOKEN}
    at = f"http://127.0.0.1:{port}"
    s3 = {"endpoint": at, "timeout": 0.5, "idle": 0.3, **keys}
    redis = {"timeout": 0.5, "connect_timeout": 0.3}
    web = {"timeout": 0.5}
    nested = {"timeout": 1.0, "s3": {"endpoint_url": at, "key": USER, "secret": WORD}}
    return {
        "s3fs": ("s3://bucket/x", {**s3, "client": "s3fs"}),
        "obstore": ("s3://bucket/x", {**s3, "client": "obstore"}),
        "redis": (f"redis://127.0.0.1:{port}/0/x", {**redis, "username": "u", "password": WORD}),
        "redis url": (f"redis://{login()}@127.0.0.1:{port}/0/x", redis),
        "rediss": (f"rediss://{login()}@127.0.0.1:{port}/0/x", redis),
        "unix": ("unix:///nowhere.sock", {**redis, "password": WORD}),
        "http": (f"http://{login()}@127.0.0.1:{port}/x", web),
        "http headers": (f"{at}/x", {**web, "headers": {"Authorization": f"Bearer {TOKEN}"}}),
        "zip on s3": (f"zip://a.zip::s3://bucket/x-{port}", nested),
    }


def broken(bad: Any) -> dict[str, Case]:
    """Options and URLs that are refused."""
    return {
        "s3 alone": ("s3://bucket", {"secret": WORD}),
        "s3 type": ("s3://bucket", {"key": [USER], "secret": bad, "token": TOKEN}),
        "s3 url": (f"s3://{login()}@bucket/x", {}),
        "s3 endpoint": ("s3://bucket", {"endpoint": f"http://{login()}@host"}),
        "s3 option": ("s3://bucket", {"key": USER, "secret": WORD, "secrets": WORD}),
        "s3 connection": ("s3://bucket", {"connection": {"key": USER, "secret": WORD}}),
        "redis type": ("redis://host", {"password": bad}),
        "redis option": ("redis://host", {"password": WORD, "passwords": WORD}),
        "redis port": (f"redis://{login()}@host:none/0", {}),
        "redis db": (f"redis://{login()}@host:1/none", {}),
        "redis connection": ("redis://host", {"connection": {"password": WORD}}),
    }


class Watch:
    """Everything that could be shown."""

    def __init__(self, records: pytest.LogCaptureFixture) -> None:
        self._records = records
        self.texts: list[str] = []

    def during(self, work: Callable[[], Any]) -> StashError | None:
        try:
            work()
        except StashError as error:
            self.texts.append("".join(traceback.format_exception(error)))
            each: BaseException | None = error
            while each is not None:
                self.texts += [repr(each), str(each), repr(vars(each))]
                each = each.__cause__ or each.__context__
            self.texts.append(repr(pickle.dumps(error)))
            return error
        return None

    def show(self, *things: Any) -> None:
        for thing in things:
            self.texts += [repr(thing), str(thing), f"{thing}", repr(pickle.dumps(thing))]

    def check(self) -> None:
        self.texts += [record.getMessage() for record in self._records.records]
        self.texts += [repr(record.exc_info) for record in self._records.records]
        for text in self.texts:
            for form in FORMS:
                assert form not in text, (form, text[:2000])


@pytest.fixture
def watch(caplog: pytest.LogCaptureFixture) -> Iterator[Watch]:
    caplog.set_level(logging.DEBUG)
    made = Watch(caplog)
    yield made
    gc.collect()
    made.check()


def everything(driver: Driver) -> list[Callable[[], Any]]:
    def locked() -> None:
        with driver.lock("zarr.json", 0.3):
            pass

    return [
        lambda: driver.get("a"),
        lambda: [*driver.get_many_tagged([])],
        lambda: driver.put("a", b"1"),
        lambda: driver.put("b", b"1", if_absent=True),
        lambda: driver.delete("a"),
        lambda: [*driver.list("")],
        lambda: driver.list_dir(""),
        locked,
        lambda: stash.create(driver, (4,), "i8", overwrite=True),
        lambda: stash.open(driver)[...],
        lambda: stash.open_group(driver).tree(),
    ]


@pytest.mark.parametrize("name", nowhere())
def test_where_no_server_is(name: str, watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    url, options = nowhere()[name]
    if name == "zip on s3":
        # Not through our driver: botocore's own records have the name of the key.
        caplog.set_level(logging.INFO, logger="botocore")
    if name == "obstore":
        pytest.importorskip("obstore")
    made: list[Driver] = []
    watch.during(lambda: made.append(connect(url, options)))
    failures = 0
    for driver in made:
        watch.show(driver)
        watch.texts.append(driver.url)
        # Opening an archive far away is tried again by libraries, for seconds.
        calls = everything(driver) if name != "zip on s3" else everything(driver)[5:6]
        for call in calls:
            failures += watch.during(call) is not None
        watch.during(partial(pickle.loads(pickle.dumps(driver)).get, "a"))
        driver.close()
    assert failures or not made


@pytest.mark.parametrize("name", broken(None))
@pytest.mark.parametrize("bad", [b"s3cret/w:rd@9864", ["s3cret/w:rd@9864"]], ids=["bytes", "list"])
def test_options_that_are_refused(name: str, bad: Any, watch: Watch) -> None:
    url, options = broken(bad)[name]
    assert watch.during(lambda: stash.open(url, options=options)) is not None


# -- servers that are there --------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Redis]:
    with closing(valkey(password=WORD)) as server:
        yield server


def used(url: str, options: dict[str, Any], watch: Watch) -> None:
    """A life of an array, and of its handle elsewhere."""
    group = stash.create_group(url, options=options)
    array = group.create("a", (8, 8), "i8", chunks=(4, 4))
    array[...] = numbers((8, 8))
    array[1:3] = 4
    array.append(numbers((2, 8)))
    kept = stash.open(f"{url}/a", options=options, cache="1MiB")
    assert kept[...].shape == (10, 8)
    watch.show(group, array, kept, array.driver, kept.info(), kept.stats, array.spec)
    assert len(pickle.dumps(kept)) < 2048
    assert len(pickle.dumps(group)) < 2048
    watch.texts.append(group.tree())
    array.driver.delete("a/c/0/0")
    array.driver.put("a/c/0/0", b"damaged")
    assert watch.during(lambda: array[...]) is not None
    assert watch.during(lambda: stash.open(f"{url}/none", options=options)) is not None
    assert watch.during(lambda: stash.create(url, (1,), "i8", options=options)) is not None


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_s3(s3: S3, client: str, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    if client == "obstore":
        pytest.importorskip("obstore")
    monkeypatch.setattr(f"{__name__}.FORMS", FORMS | {s3.secret, s3.key})
    bucket = f"s3://{s3.make_bucket()}"
    used(f"{bucket}/x", {**s3.options, "client": client}, watch)
    for wrong in ({"key": USER}, {"secret": WORD}):
        options = {**s3.options, "client": client, **wrong}
        work = partial(stash.open, f"{bucket}/x/a", options=options)
        assert watch.during(work) is not None


def test_redis(guarded: Redis, watch: Watch) -> None:
    used(guarded.fresh(), guarded.options, watch)
    wrong = {"password": f"{TOKEN}{USER}"}
    assert watch.during(lambda: stash.open(guarded.fresh(), options=wrong)) is not None
    inside = guarded.fresh().replace("redis://", f"redis://:{quote(WORD, safe='')}@")
    used(inside, {}, watch)
