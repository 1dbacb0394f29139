"""Waiting for a lock: it ends in time, and says who holds it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers import waiting
from tensorstash.drivers.posix import flock
from tensorstash.drivers.redis.client import RedisClient
from tensorstash.drivers.redis.lock import RedisLease
from tensorstash.drivers.redis.options import RedisOptions, RedisPlace
from tensorstash.drivers.s3.lock import S3Lease, Store
from tensorstash.drivers.s3.options import Limits
from tensorstash.registry import connect
from tests.servers.redis import Redis


def _halted(context: Any, driver: Driver, how: signal.Signals) -> Any:
    """A process that has the lock, and was sent ``how``."""
    mine, theirs = context.Pipe()
    holder = context.Process(target=_stopped, args=(driver, "zarr.json", theirs))
    holder.start()
    assert mine.recv() == "held"
    os.kill(holder.pid, how)
    return holder


def _stopped(driver: Driver, key: str, pipe: Any) -> None:
    with driver.lock(key):
        pipe.send("held")
        signal.pause()


@pytest.mark.parametrize("scheme", ["file", "zip", "redis", "shm"])
def test_whoever_waits_for_a_stopped_holder_is_told_who_that_is(
    scheme: str, tmp_path: Path, valkey_server: Redis
) -> None:
    url = {
        "file": f"file://{tmp_path}/a",
        "zip": f"zip://{tmp_path}/a.zip",
        "redis": valkey_server.address + f"/i{uuid.uuid4().hex}",
        "shm": f"shm://i{uuid.uuid4().hex}",
    }[scheme]
    options = {"lease": 60.0} if scheme == "redis" else {}
    array = stash.create(url, (3,), "int32", options=options, lock_timeout=0.05)
    records = stash.create_records(url + "r", {"id": "int64"}, options=options, lock_timeout=0.05)
    context = multiprocessing.get_context("fork")
    for handle, calls in (
        (array, [lambda: array.append([1]), lambda: array.resize((2,))]),
        (
            records,
            [
                lambda: records.extend({"id": [1]}),
                lambda: records.add_field("x", "int8"),
                lambda: records.rename_field("id", "y"),
            ],
        ),
    ):
        holder = _halted(context, handle.driver, signal.SIGSTOP)
        try:
            for call in calls:
                with pytest.raises(stash.errors.TimedOut) as caught:
                    call()
                told = str(caught.value)
                assert f"process {holder.pid} on {os.uname().nodename}, since 20" in told
                assert "\n" not in told and "zarr.json" in told
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.join()
    assert (len(array), len(records)) == (3, 0)
    if scheme != "redis":  # there it lapses with the lease
        assert array.append([1]) == 3


def test_of_a_stopped_put_nobody_knows_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    driver = connect(f"zip://{path}", {})
    driver.put("k", b"1")
    monkeypatch.setattr(flock, "_PATIENCE", 0.05)
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(stash.errors.TimedOut) as caught:
            driver.put("k", b"2")
    told = str(caught.value)
    assert f"{str(path)!r} was still locked by process {os.getpid()} on" in told
    assert "since" not in told and "lock_timeout" not in told


@pytest.mark.parametrize("wrong", [-1, True, "1", float("nan"), float("inf")])
def test_a_limit_is_a_number_of_seconds(wrong: Any) -> None:
    with pytest.raises(stash.errors.Invalid, match="lock_timeout"):
        stash.create({}, (1,), "i4", lock_timeout=wrong)


def test_a_long_wait_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_TELL_AFTER", 0.0)
    driver = connect(f"file://{tmp_path}", {})
    with (
        driver.lock("k"),
        pytest.raises(stash.errors.TimedOut),
        driver.lock("k", timeout=0.05),
    ):
        raise AssertionError("two have it")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"held by process {os.getpid()} on" in caplog.text


def test_what_a_holder_says_of_itself_is_one_short_line() -> None:
    told = waiting.said(b"a\nb\x1b[31m" + b"x" * 1000)
    assert told.startswith("a?b?[31mxxx") and len(told) < 200


def test_after_a_writer_was_killed_the_next_one_waits_little_and_says_for_whom(
    valkey_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """With the lease as it is when nobody sets it."""
    url = valkey_server.address + f"/i{uuid.uuid4().hex}"
    array = stash.create(url, (3,), "int32")
    context = multiprocessing.get_context("fork")
    holder = _halted(context, array.driver, signal.SIGKILL)
    holder.join()
    begun = time.monotonic()
    with caplog.at_level("WARNING", "tensorstash"):
        assert array.append([1]) == 3
    assert time.monotonic() - begun < 20
    [line] = [r.getMessage() for r in caplog.records if "waiting for the lock" in r.getMessage()]
    assert f"process {holder.pid} on " in line


def test_a_lease_is_ten_seconds_and_renewed_every_two() -> None:
    client = RedisClient(RedisPlace("redis", "localhost", 6379), {}, None)
    assert RedisLease(client, "k", b"k").period == 2
    assert S3Lease(Store(lambda place: None, lambda place, value, tag: 1), "k", "k", 10).period == 2
    assert RedisOptions().lease == Limits().lease == 10
