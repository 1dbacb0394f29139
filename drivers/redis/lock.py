"""Locks that Redis keeps: leases, prolonged while their holder lives."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tensorstash.driver import Check
from tensorstash.drivers.redis.command import run
from tensorstash.drivers.redis.link import Errand, RedisLink
from tensorstash.drivers.redis.replies import flag
from tensorstash.drivers.redis.scripts import HOLD, RELEASE
from tensorstash.errors import Conflict, DriverError

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1


@contextmanager
def lease(link: RedisLink, key: str, place: bytes, timeout: float | None) -> Iterator[Check]:
    """Hold the lock at ``place``. A thread prolongs it at every third of its term."""
    held = _Lease(link, key, place)
    end = None if timeout is None else time.monotonic() + max(timeout, 0)
    pause = _SHORTEST_PAUSE
    while not held.take():
        left = pause if end is None else end - time.monotonic()
        if left <= 0:
            raise Conflict(
                f"{key!r} at {link.place.url} was still locked by another after {timeout} s; "
                "wait longer, or see who holds it",
                key=key,
            )
        time.sleep(min(left, pause * random.uniform(0.5, 1)))
        pause = min(2 * pause, _LONGEST_PAUSE)
    pid, done = os.getpid(), threading.Event()
    threading.Thread(target=held.prolong, args=(done,), daemon=True).start()
    try:
        yield held.check
    finally:
        done.set()
        if os.getpid() == pid:  # a forked child leaves it to its parent
            held.release()


class _Lease:
    """One holder of one lock."""

    def __init__(self, link: RedisLink, key: str, place: bytes) -> None:
        self._link = link
        self._key = key
        self._place = place
        self._token = os.urandom(16)
        self._term = link.options.lease
        self._until = 0.0
        self._lost = False

    def take(self) -> bool:
        """Take the lock if it is free."""
        return self._hold(b"1")

    def check(self) -> None:
        """Raise :class:`Conflict` when the lock was lost."""
        # After two thirds of the term the thread should have prolonged it: it was stopped.
        late = time.monotonic() > self._until - self._term / 3
        if self._lost or (late and not self._hold(b"0")):
            raise Conflict(
                f"the lock of {self._key!r} at {self._link.place.url} was lost, as its holder did "
                f"not reach the server for {self._term} s; do it again",
                key=self._key,
            )

    def prolong(self, done: threading.Event) -> None:
        """Prolong until ``done``."""
        while not done.wait(self._term / 3):
            try:
                if not self._hold(b"0"):
                    return
            except DriverError:  # the holder's next check tries again
                continue

    def release(self) -> None:
        """Let the next one in. What cannot be told to the server ends with the term."""
        errand = Errand("unlock", self._key, writes=True)
        try:
            self._link.ask(errand, [run(RELEASE, flag, (self._place,), self._token)])
        except DriverError:
            return

    def _hold(self, fresh: bytes) -> bool:
        begun = time.monotonic()  # the server counts from later on
        term = b"%d" % max(int(self._term * 1000), 1)
        step = run(HOLD, flag, (self._place,), self._token, term, fresh)
        [answer], _ = self._link.ask(Errand("lock", self._key, writes=True), [step])
        if answer:
            self._until = begun + self._term
        elif fresh == b"0":
            self._lost = True
        return bool(answer)
