"""Locks that Redis keeps: leases, prolonged while their holder lives."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from tensorstash.drivers.lease import Lease, LeaseLock
from tensorstash.drivers.redis.client import RedisClient, RedisRequest
from tensorstash.drivers.redis.commands import HOLD, RELEASE, command, run
from tensorstash.drivers.redis.replies import flag, value
from tensorstash.drivers.waiting import Waiting, me, said
from tensorstash.errors import Conflict, DriverError

_PAUSES = (0.002, 0.1)


def lease(client: RedisClient, key: str, place: bytes, timeout: float | None) -> LeaseLock:
    """Hold the lock at ``place``. A thread prolongs it at every fifth of its term."""
    lock = RedisLease(client, key, place)
    return LeaseLock(lock, Waiting(key, client.place.url, timeout, lock.holder, _PAUSES))


class RedisLease(Lease):
    """One holder of one lock."""

    def __init__(self, client: RedisClient, key: str, place: bytes) -> None:
        self._client = client
        self._key = key
        self._place = place
        # Who waits for the lock can read in it who holds it.
        self._token = os.urandom(16).hex().encode() + b" " + me().encode()
        self._term = client.options.lease
        self.period = self._term / 5
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
                f"the lock of {self._key!r} at {self._client.place.url} was lost, as its holder "
                f"did not reach the server for {self._term} s; do it again",
                key=self._key,
            )

    def prolong(self) -> bool:
        """Prolong the lock."""
        return self._hold(b"0")

    def release(self) -> None:
        """Let the next one in. What cannot be told to the server ends with the term."""
        request = RedisRequest("unlock", self._key, writes=True)
        with suppress(DriverError):
            self._client.execute(request, [run(RELEASE, flag, (self._place,), self._token)])

    def holder(self) -> str:
        """Who holds it, by its own words."""
        with suppress(DriverError):
            [found], _ = self._client.execute(
                RedisRequest("lock", self._key), [command(b"GET", value, self._place)]
            )
            return said((found or b"").partition(b" ")[2])
        return said("")

    def _hold(self, fresh: bytes) -> bool:
        begun = time.monotonic()  # the server counts from later on
        term = b"%d" % max(int(self._term * 1000), 1)
        step = run(HOLD, flag, (self._place,), self._token, term, fresh)
        [answer], _ = self._client.execute(RedisRequest("lock", self._key, writes=True), [step])
        if answer:
            self._until = begun + self._term
        elif fresh == b"0":
            self._lost = True
        return bool(answer)
