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
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from tensorstash.driver import Buffer, Tag
from tensorstash.drivers.lease import Lease, LeaseLock
from tensorstash.drivers.thread_lock import ThreadLocks, ThreadTurn
from tensorstash.drivers.waiting import Waiting, me, said
from tensorstash.errors import Conflict, DriverError

LARGEST = 4096
"""Bytes of a lock, at most."""
_PAUSES = (0.02, 1.0)

_logger = logging.getLogger("tensorstash")


class Store(NamedTuple):
    """The two requests that a lease is made of: ``read(place)`` returns the object and its tag;
    ``swap(place, value, tag)`` puts where the object is absent (``None``) or still ``tag``, else
    raises :class:`~tensorstash.errors.Conflict`."""

    read: Callable[[str], tuple[Buffer, Tag] | None]
    swap: Callable[[str, bytes, Tag | None], Tag]


def now() -> float:
    """Seconds that pass also while the machine sleeps, where the system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def lease(
    store: Store, place: str, key: str, url: str, seconds: float, timeout: float | None
) -> LeaseLock:
    """Hold ``place`` alone; :class:`~tensorstash.errors.TimedOut` after ``timeout`` seconds of
    waiting. Threads of one process wait for each other without a request."""
    lock = S3Lease(store, place, key, seconds)
    waiting = Waiting(key, url, timeout, lock.holder, _PAUSES)
    return LeaseLock(lock, waiting, turns((url, place), key, url, timeout))


class S3Lease(Lease):
    """One holder of one lock."""

    def __init__(self, store: Store, place: str, key: str, seconds: float) -> None:
        self._store, self._place, self._key = store, place, key
        self._seconds = seconds
        self.period = seconds / 5
        self._owner, self._me, self._counter = secrets.token_hex(8), me(), 0
        self._tag: Tag | None = None
        self._until = 0.0
        self._lost = False
        self._pid = os.getpid()
        self._seen: Tag | None = None
        self._since = 0.0
        self._holder = ""

    def take(self) -> bool:
        """Take it where it is free, or was not renewed for as long as it lasts."""
        asked = now()
        found = self._store.read(self._place)
        if found is not None and (self._seen is None or found[1] != self._seen):
            self._seen, self._since = found[1], now()
        owner, self._holder = ("", "") if found is None else _parsed(found[0])
        if owner and asked - self._since < self._seconds:
            return False
        sent = now()
        try:
            tag = None if found is None else found[1]
            self._tag = self._store.swap(
                self._place, _body(self._owner, self._counter, self._me), tag
            )
        except Conflict:
            return False  # another waiter was first
        self._renewed(sent)
        return True

    def prolong(self) -> bool:
        """Renew it. After an answer that was lost, the renewal may have been stored."""
        sent = now()
        try:
            self._counter += 1
            self._tag = self._store.swap(
                self._place, _body(self._owner, self._counter, self._me), self._tag
            )
        except Conflict:
            self._lost = True
            return False
        except Exception:
            self._adopt()
            raise
        self._renewed(sent)
        return True

    def check(self) -> None:
        """Raise :class:`~tensorstash.errors.Conflict` when it was lost."""
        if self._lost or os.getpid() != self._pid or now() >= self._until:
            raise Conflict(
                f"the lock of {self._key!r} was lost: this process was stopped, or could not "
                f"reach the server, for longer than the lease of {self._seconds:g} s; repeat the "
                "call, or raise option 'lease'",
                key=self._key,
            )

    def release(self) -> None:
        """Say that it is free."""
        if self._tag is None:
            self._adopt()  # the attempt to take it failed, perhaps only its answer
        elif self._lost or now() >= self._until:
            return
        if self._tag is None:
            return
        try:
            self._counter += 1
            self._store.swap(self._place, _body("", self._counter, self._me), self._tag)
        except (Conflict, DriverError) as error:
            _logger.debug("the lock of %r was not released but will lapse: %s", self._key, error)

    def holder(self) -> str:
        """Who holds it, by its own words."""
        return said(self._holder)

    def _renewed(self, sent: float) -> None:
        # A waiter counts from when it saw our renewal, which is after we sent it.
        self._until = sent + self._seconds - min(self._seconds / 6, 5.0)

    def _adopt(self) -> None:
        """After an answer that was lost: what we sent may have been stored."""
        try:
            found = self._store.read(self._place)
        except Exception:
            return
        if found is not None and _parsed(found[0])[0] == self._owner:
            self._tag = found[1]


def retire(store: Store, place: str) -> bool:
    """Take a lock that is free, for ever: whether it was, and now nobody else can have it, so that
    it may be deleted. The object of a lock that is held stays, for its holder lives."""
    found = store.read(place)
    if found is None or not _is_free(found[0]):
        return False
    try:
        store.swap(place, _body(secrets.token_hex(8), 0, me()), found[1])
    except Conflict:  # someone was first
        return False
    return True


def _body(owner: str, counter: int, holder: str) -> bytes:
    """``id`` makes every one another, so that its tag is another too."""
    content = {"owner": owner, "counter": counter, "id": secrets.token_hex(4)}
    return json.dumps(content | ({"holder": holder} if owner else {})).encode()


def _parsed(data: Buffer) -> tuple[str, str]:
    """Who holds the lock, by its mark and its words; empty when it is free, and when it is no
    lock of ours, say damaged."""
    try:
        found = json.loads(bytes(data))
        return str(found["owner"]), str(found.get("holder", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", ""


def _is_free(data: Buffer) -> bool:
    """Whether this is a lock of ours that was released; what else may be there is not ours."""
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("owner") == "" and "counter" in found


_locks = ThreadLocks()


def turns(name: tuple[str, str], key: str, url: str, timeout: float | None) -> ThreadTurn:
    """Hold ``name`` alone among the threads of this process."""
    return _locks.hold(key, url, timeout, name=name)
