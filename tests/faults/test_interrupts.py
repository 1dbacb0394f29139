"""After an interrupt, wherever it came: no lock held, no thread left, nothing left open, the store
in the old state or the new one, and the handle as good as before."""

from __future__ import annotations

import fcntl
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.lease import Lease, LeaseLock
from tensorstash.drivers.posix import flock
from tensorstash.drivers.posix.descriptor import Descriptor
from tensorstash.drivers.thread_lock import ThreadTurn
from tensorstash.drivers.waiting import Waiting
from tensorstash.registry import connect
from tensorstash.testing.driver_races import run_in_processes
from tensorstash.turn import take, turn, wait
from tests.servers.cluster import Cluster
from tests.servers.redis import Redis
from tests.servers.s3 import S3
from tests.support.interrupt_cases import (
    CASES,
    Append,
    Case,
    Delete,
    Load,
    Lock,
    Merge,
    PutTag,
    Records,
    Shared,
    Waited,
)
from tests.support.interrupts import (
    Place,
    descriptors,
    in_thread,
    interrupted,
    leftovers,
    own_threads,
    places,
    uncollected,
    until,
)

WHOLE = os.environ.get("TENSORSTASH_CAMPAIGN") == "whole"

_OPTIONS = {"lease": 60.0}
"""A lock that is left held does not lapse before the test notices."""

_USUAL = 120
"""Places of one operation that the usual run tries, spread evenly."""

_MANY = None if WHOLE else 1_200
"""Those that the long run tries: nearly all of most operations, of 3,400 that a row of records has
a third."""


# Far away each place takes its time: the ways to lock and to put, unless more is asked for.
FAR = CASES if WHOLE else [PutTag, Lock, Append]

_spawn = multiprocessing.get_context("spawn")


def _neighbour(pipe: Any) -> None:
    """A process that locks what it is told to."""
    while True:
        url, options, key = pipe.recv()
        try:
            with connect(url, options).lock(key, 20):
                pass
            pipe.send("locked")
        except BaseException as error:
            pipe.send(repr(error))


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Callable[[str, dict[str, Any], str], None]]:
    mine, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_neighbour, args=(theirs,), daemon=True)
    process.start()

    def lock(url: str, options: dict[str, Any], key: str) -> None:
        mine.send((url, options, key))
        assert mine.poll(60), "another process hangs"
        assert mine.recv() == "locked"

    yield lock
    process.kill()
    process.join()


def _hangs(*_: Any) -> None:
    raise AssertionError("it hangs")


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    """Against an operation that hangs after an interrupt; no place takes as long."""
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


Fresh: TypeAlias = Callable[[], tuple[str, dict[str, Any], Path | None]]
"""A place nobody used, its options, and where its files are."""


def campaign(
    kind: type[Case],
    fresh: Fresh,
    most: int | None,
    neighbour: Callable[[str, dict[str, Any], str], None] | None = None,
) -> None:
    """Interrupt the operation at each of its places, or at ``most`` of them, each on a fresh
    place, and look what another finds there."""
    url, options, _ = fresh()
    case = kind(url, options)
    old = case.state(case.driver)
    case.run()  # once for imports, and what is made once a process
    new = case.state(case.connect())
    url, options, _ = fresh()
    case = kind(url, options)
    found = places(case.run)
    assert case.state(case.connect()) == new
    assert len(found) > 20
    del case
    for number, at in enumerate(found if most is None else found[:: -(-len(found) // most)]):
        signal.alarm(120)
        try:
            with uncollected(now=number % 50 == 0):
                opened = descriptors()
                driver = _interrupt(kind, fresh, at, old, new, None if number % 5 else neighbour)
                assert until(lambda: driver() is None), gc.get_referrers(driver())  # noqa: B023
                assert until(lambda: descriptors() == opened), descriptors()  # noqa: B023
        except BaseException as error:
            error.add_note(f"after an interrupt at {at}")
            raise


def _interrupt(
    kind: type[Case], fresh: Fresh, at: Place, old: Any, new: Any, neighbour: Any
) -> weakref.ref[Driver]:
    """A reference to the driver that was interrupted, of which nothing is left by now."""
    url, options, folder = fresh()
    case = kind(url, options)
    opened, threads = descriptors(), own_threads()
    came = interrupted(case.run, at)
    assert until(lambda: own_threads() == threads), own_threads()
    assert until(lambda: descriptors() == opened), descriptors()
    state = in_thread(lambda: _looked(case))
    assert state in ((old, new) if came else (new,)), state
    if neighbour is not None:
        neighbour(url, options, case.key)
    case.run()
    assert case.state(case.connect()) == new
    if folder is not None:
        [*case.driver.list()]
        assert leftovers(folder) == []
    return weakref.ref(case.driver)


def _looked(case: Case) -> Any:
    other = case.connect()
    if other.capabilities.locks:
        with other.lock(case.key, 20):
            pass
    return case.state(other)


def _folders(scheme: str, name: str, tmp_path: Path) -> Fresh:
    numbers = itertools.count()

    def fresh() -> tuple[str, dict[str, Any], Path]:
        folder = tmp_path / str(next(numbers))
        return f"{scheme}://{folder}{name}", {}, folder

    return fresh


def _named(start: str, options: dict[str, Any]) -> Fresh:
    numbers = itertools.count()
    return lambda: (f"{start}{uuid.uuid4().hex[:12]}-{next(numbers)}", options, None)


def _ids(kind: type[Case]) -> str:
    return kind.__name__


@pytest.mark.parametrize("kind", CASES, ids=_ids)
def test_file(kind: type[Case], tmp_path: Path, neighbour: Any) -> None:
    campaign(kind, _folders("file", "", tmp_path), _USUAL, neighbour)


@pytest.mark.parametrize("kind", [PutTag, Delete, Lock, Waited, Append, Merge], ids=_ids)
def test_zip(kind: type[Case], tmp_path: Path, neighbour: Any) -> None:
    campaign(kind, _folders("zip", "/a.zip", tmp_path), _USUAL, neighbour)


@pytest.mark.parametrize("kind", [PutTag, Lock, Waited, Append, Merge, Records, Load], ids=_ids)
def test_redis(kind: type[Case], valkey_server: Redis, neighbour: Any) -> None:
    campaign(kind, _named(valkey_server.address + "/i", _OPTIONS), _USUAL, neighbour)


@pytest.mark.parametrize("kind", [Lock, Waited, Append], ids=_ids)
def test_memory(kind: type[Case]) -> None:
    campaign(kind, _named("memory://i", {}), _USUAL)


@pytest.mark.parametrize("kind", [Shared], ids=_ids)
def test_shared_memory(kind: type[Case]) -> None:
    name = f"i{uuid.uuid4().hex[:8]}-"  # others may test at the same time
    campaign(kind, _named(f"shm://{name}", {}), _USUAL)
    connect(f"shm://{name}last", {})  # whoever comes next removes what an interrupt kept
    assert [each for each in os.listdir("/dev/shm") if f"-{name}" in each] == []


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES if WHOLE else CASES[:14], ids=_ids)
@pytest.mark.parametrize("scheme", ["file", "zip", "memory", "shm"])
def test_every_place(scheme: str, kind: type[Case], tmp_path: Path) -> None:
    if scheme in ("file", "zip"):
        fresh = _folders(scheme, "/a.zip" if scheme == "zip" else "", tmp_path)
    else:
        fresh = _named(f"{scheme}://i", {})
    campaign(kind, fresh, _MANY)


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES if WHOLE else CASES[:11], ids=_ids)
def test_every_place_on_redis(kind: type[Case], valkey_server: Redis) -> None:
    campaign(kind, _named(valkey_server.address + "/i", _OPTIONS), _MANY)


@pytest.mark.long
@pytest.mark.parametrize("kind", FAR, ids=_ids)
def test_a_cluster(kind: type[Case], redis_cluster: Cluster) -> None:
    start = f"{redis_cluster.nodes[0].address}/i"
    campaign(kind, _named(start, _OPTIONS | {"cluster": True}), _USUAL)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("kind", FAR, ids=_ids)
@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_s3(client: str, kind: type[Case], s3: S3) -> None:
    options = s3.options | _OPTIONS | {"client": client}
    campaign(kind, _named(f"s3://{s3.make_bucket()}/i", options), _USUAL)


# -- what an audit found ---------------------------------------------------------------------


def _interrupting(true: Callable[..., Any], after: bool) -> Callable[..., Any]:
    """``true``, of which the first call is interrupted, right before or after its work."""
    calls = itertools.count()

    def call(*args: Any, **options: Any) -> Any:
        if next(calls):
            return true(*args, **options)
        if after:
            true(*args, **options)
        raise KeyboardInterrupt

    return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["unlink", "link", "rename", "utime", "fstat"])
def test_a_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neighbour: Any, name: str, after: bool
) -> None:
    case = Append(f"file://{tmp_path}/a", {})
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, name, _interrupting(getattr(os, name), after))
        with suppress(KeyboardInterrupt):
            case.run()
    assert descriptors() == before
    neighbour(case.url, {}, case.key)
    in_thread(lambda: _looked(case))
    case.run()
    assert len(stash.open(case.connect())) == 11
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("after", [False, True])
def test_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neighbour: Any, after: bool
) -> None:
    case = Append(f"file://{tmp_path}/a", {})
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", _interrupting(fcntl.flock, after))
        with pytest.raises(KeyboardInterrupt):
            case.run()
    neighbour(case.url, {}, case.key)
    in_thread(lambda: _looked(case))


@pytest.mark.parametrize("after", [False, True])
def test_the_start_of_the_thread_that_keeps_a_lease(
    valkey_server: Redis, monkeypatch: pytest.MonkeyPatch, neighbour: Any, after: bool
) -> None:
    case = Append(valkey_server.address + f"/i{uuid.uuid4().hex}", _OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _interrupting(threading.Thread.start, after))
        with pytest.raises(KeyboardInterrupt):
            case.run()
    assert until(lambda: own_threads() == [])
    neighbour(case.url, _OPTIONS, case.key)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("where", ["flock.flock", "flock._is_at", "utime", "unlink"])
@pytest.mark.parametrize("scheme", ["file", "zip"])
def test_a_notebook_that_keeps_the_interrupt_keeps_no_lock(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: bool
) -> None:
    case = Append(f"{scheme}://{tmp_path}/a", {})
    name = where.rpartition(".")[2]
    owner: Any = {"flock.flock": fcntl, "flock._is_at": flock}.get(where, os)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _interrupting(getattr(owner, name), after))
        with pytest.raises(KeyboardInterrupt) as kept:
            case.run()
    with case.connect().lock(case.key, 0):
        pass
    assert kept.tb is not None


class Free(Lease):
    """A lease that is free."""

    period = 60.0

    def take(self) -> bool:
        return True

    def prolong(self) -> bool:
        return True

    def release(self) -> None: ...

    def check(self) -> None: ...


def _kept() -> tuple[LeaseLock, threading.Lock]:
    lock = threading.Lock()
    waiting = Waiting("k", "u://", None, lambda: "", (0.01, 0.01))
    return LeaseLock(Free(), waiting, ThreadTurn(lock, "k", "u://", None)), lock


@pytest.mark.parametrize("after", [False, True])
def test_a_notebook_that_keeps_the_interrupt_keeps_no_turn(
    monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    lease, lock = _kept()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _interrupting(threading.Thread.start, after))
        with pytest.raises(KeyboardInterrupt) as kept, lease:
            pass
    assert not lock.locked()
    assert kept.tb is not None


def test_where_no_thread_can_be_started_there_is_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lease, lock = _kept()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(stash.errors.DriverError, match="thread") as caught, lease:
        pass
    assert not lock.locked()
    assert isinstance(caught.value.__cause__, RuntimeError)


def _pipes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(flock, "_is_at", _interrupting(flock._is_at, False))
        with pytest.raises(KeyboardInterrupt):
            case.run()
    numbers = [number for _ in range(8) for number in os.pipe()]  # some number is used again
    child = os.fork()
    if not child:
        with suppress(OSError):
            for number in numbers:
                os.fstat(number)
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_keeps_what_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_processes(
        multiprocessing.get_context("fork"),
        1,
        _pipes,
        Append(f"file://{tmp_path}/a", {}),
        monkeypatch,
    )


# -- the pieces ------------------------------------------------------------------------------


def test_a_turn_ends_with_its_block_however_that_ends() -> None:
    for lock in (threading.Lock(), threading.RLock()):
        with turn(lock):
            assert not in_thread(lambda: lock.acquire(blocking=False))  # noqa: B023
        with pytest.raises(ZeroDivisionError), turn(lock):
            raise ZeroDivisionError
        held = take(lock, 0)
        assert held is not None
        assert in_thread(lambda: take(lock, 0.01)) is None  # noqa: B023
        del held
        assert in_thread(lambda: take(lock, 0) is not None)  # noqa: B023
        wait(lock)


@pytest.mark.parametrize("lock", [threading.Lock(), threading.RLock()])
def test_a_turn_ends_though_somebody_keeps_every_frame(lock: Any) -> None:
    # As the traceback of a finalizer does, from whichever frame the collector ran in.
    kept: list[FrameType] = []

    def is_free() -> bool:
        return in_thread(lambda: lock.acquire(blocking=False) and not lock.release())

    sys.setprofile(lambda frame, event, _: kept.append(frame))
    try:
        with turn(lock):
            assert not is_free()
        assert is_free()
        with suppress(ZeroDivisionError), turn(lock):
            raise ZeroDivisionError
        assert is_free()
        held = take(lock, None)
        assert held is not None
        assert not is_free()
        del held
        assert is_free()
    finally:
        sys.setprofile(None)
    assert {"turn", "take"} <= {frame.f_code.co_name for frame in kept}


def test_a_descriptor_is_closed_once_and_at_the_latest_when_it_goes(tmp_path: Path) -> None:
    before = descriptors()
    file = Descriptor(str(tmp_path), os.O_RDONLY | os.O_DIRECTORY)
    number = file.fileno()
    file.close()
    other = os.open(tmp_path, os.O_RDONLY)
    assert other == number
    file.close()
    del file
    os.close(other)  # was not closed in our stead
    held = [Descriptor(str(tmp_path), os.O_RDONLY)]
    assert descriptors() != before
    held.clear()
    assert descriptors() == before
