"""Locks on servers that offer nothing but conditional puts: leases.

A lock is an object that its holder renews. A waiter that sees the object unchanged for the
whole length of a lease, on its own clock, may take it over; so clocks need not agree, and the
lock of a holder that died is free after that time. A holder that was stopped for longer has
lost its lock, and is told so by its :data:`~tensorstash.driver.Check`.

A released lock stays as a small object that says it is free: a conditional delete, which not
every server offers, would be needed to remove it safely.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakValueDictionary

from tensorstash.driver import Buffer, Check, Tag, held
from tensorstash.errors import Conflict, DriverError

_FIRST_WAIT = 0.02
_LONGEST_WAIT = 1.0

_logger = logging.getLogger("tensorstash")


class Store(NamedTuple):
    """The two requests that a lease is made of: ``read(place)`` answers the object and its tag;
    ``swap(place, value, tag)`` puts where the object is absent (``None``) or still ``tag``, else
    raises :class:`~tensorstash.errors.Conflict`."""

    read: Callable[[str], tuple[Buffer, Tag] | None]
    swap: Callable[[str, bytes, Tag | None], Tag]


def now() -> float:
    """Seconds that pass also while the machine sleeps, where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@contextmanager
def lease(
    store: Store, place: str, key: str, url: str, seconds: float, timeout: float | None
) -> Iterator[Check]:
    """Hold ``place`` alone; :class:`~tensorstash.errors.Conflict` after ``timeout`` seconds of
    waiting. Threads of one process wait for each other without a request."""
    end = None if timeout is None else now() + timeout
    with turns((url, place), key, url, timeout):
        holder = _Holder(
            store, place, key, seconds, *_acquire(store, place, key, url, seconds, end)
        )
        holder.start()
        try:
            yield holder.check
        finally:
            holder.release()


class _Holder:
    """A lease that is held: renewed by a thread until it is released."""

    def __init__(
        self,
        store: Store,
        place: str,
        key: str,
        seconds: float,
        owner: str,
        tag: Tag,
        sent: float,
    ) -> None:
        self._store, self._place, self._key = store, place, key
        self._seconds = seconds
        self._owner, self._tag, self._counter = owner, tag, 0
        # A waiter counts from when it saw our renewal, which is after we sent it.
        self._until = sent + seconds - min(seconds / 6, 5.0)
        self._lost = False
        self._pid = os.getpid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="tensorstash-lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        if self._lost or os.getpid() != self._pid or now() >= self._until:
            raise Conflict(
                f"the lock of {self._key!r} was lost: this process was stopped, or could not "
                f"reach the server, for longer than the lease of {self._seconds:g} s; repeat the "
                "call, or raise option 'lease'",
                key=self._key,
            )

    def release(self) -> None:
        if os.getpid() != self._pid:  # a child forked meanwhile does not hold it
            return
        self._over.set()
        self._thread.join()
        if self._lost or now() >= self._until:
            return
        try:
            self._store.swap(self._place, _body("", self._counter + 1), self._tag)
        except (Conflict, DriverError) as error:
            _logger.debug("the lock of %r was not released but will lapse: %s", self._key, error)

    def _renew(self) -> None:
        while not self._over.wait(self._seconds / 3):
            sent = now()
            try:
                self._counter += 1
                body = _body(self._owner, self._counter)
                self._tag = self._store.swap(self._place, body, self._tag)
            except Conflict:
                self._lost = True
                return
            except Exception as error:  # it is tried again while the lease lasts
                _logger.debug("the lock of %r was not renewed: %s", self._key, error)
                self._adopt()
            else:
                self._until = sent + self._seconds - min(self._seconds / 6, 5.0)

    def _adopt(self) -> None:
        """After an answer that was lost: our renewal may have been stored."""
        try:
            found = self._store.read(self._place)
        except Exception:
            return
        if found is not None and _owner_of(found[0]) == self._owner:
            self._tag = found[1]


def _acquire(
    store: Store, place: str, key: str, url: str, seconds: float, end: float | None
) -> tuple[str, Tag, float]:
    """``(owner, tag, when it was asked for)`` of a lease that is ours now."""
    owner = secrets.token_hex(8)
    seen: Tag | None = None
    since = 0.0
    wait = _FIRST_WAIT
    while True:
        asked = now()
        found = store.read(place)
        if found is not None and (seen is None or found[1] != seen):
            seen, since = found[1], now()
        free = found is None or not _owner_of(found[0]) or asked - since >= seconds
        if free:
            sent = now()
            try:
                tag = store.swap(place, _body(owner, 0), None if found is None else found[1])
            except Conflict:
                pass  # another waiter was first
            else:
                return owner, tag, sent
        left = float("inf") if end is None else end - now()
        if left <= 0:
            raise Conflict(
                f"{key!r} in {url} was still locked by another writer; wait longer, or see who "
                "holds it",
                key=key,
            )
        time.sleep(min(random.uniform(wait / 2, wait), left))
        wait = min(2 * wait, _LONGEST_WAIT)


def _body(owner: str, counter: int) -> bytes:
    return json.dumps({"owner": owner, "counter": counter, "id": secrets.token_hex(4)}).encode()


def _owner_of(data: Buffer) -> str:
    """Who holds the lock; empty when it is free, and when it is no lock of ours, say damaged."""
    try:
        found = json.loads(bytes(data))
        return str(found["owner"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


class _Process:
    """Locks between the threads of one process. A forked child starts afresh: what its
    parent's other threads held at the fork would never be released there."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.locks: WeakValueDictionary[tuple[str, str], threading.Lock] = WeakValueDictionary()


_processes: dict[int, _Process] = {}


@contextmanager
def turns(name: tuple[str, str], key: str, url: str, timeout: float | None) -> Iterator[Check]:
    """Hold ``name`` alone among the threads of this process."""
    pid = os.getpid()
    process = _processes.get(pid) or _processes.setdefault(pid, _Process())
    with process.guard:
        lock = process.locks.get(name) or threading.Lock()
        process.locks[name] = lock
    if not lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
        raise Conflict(
            f"{key!r} in {url} was still locked by another thread after {timeout} s; wait longer, "
            "or see who holds it",
            key=key,
        )
    try:
        yield held
    finally:
        lock.release()
