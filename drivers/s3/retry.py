"""Repeating a request until it succeeds, is refused for good, or its time is up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

from tensorstash.drivers.s3.client import Failed

_T = TypeVar("_T")

SLOWEST = float(1 << 20)
"""Bytes a second below which a body counts as stuck: a big one gets more time than a small one."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

_limit: ContextVar[_Limit] = ContextVar("tensorstash_limit")


async def repeat(attempt: Callable[[int], Awaitable[_T]], limit: float) -> _T:
    """What ``attempt(n)`` (n from 1) returns, called again while it fails as ``busy`` or ``lost``.

    Pauses are random between nothing and a bound that doubles (full jitter), so that clients
    that failed together do not come back together. After ``limit`` seconds in all, or where the
    next pause would end beyond them, the last :class:`Failed` is raised; its ``timed_out`` is set
    where an answer was still awaited then.
    """
    clock = asyncio.get_running_loop().time
    last: Failed | None = None
    try:
        async with asyncio.timeout(limit) as timeout:
            allowed = _Limit(timeout)
            token = _limit.set(allowed)
            try:
                n = 1
                while True:
                    allowed.nbytes = 0
                    try:
                        return await attempt(n)
                    except Failed as failed:
                        if failed.kind not in ("busy", "lost"):
                            raise
                        last = failed
                    pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**n))
                    if clock() + pause >= (timeout.when() or 0):
                        raise last
                    await asyncio.sleep(pause)
                    n += 1
            finally:
                _limit.reset(token)
    except TimeoutError:
        if last is not None and last.kind == "busy":
            raise last from None  # it answers, and says why
        raise Failed("lost", f"no answer within {limit:g} s", timed_out=True) from last


class _Limit:
    """The limit of a :func:`repeat`, which grows with the largest body of an attempt: not with
    each attempt, or a server that cuts every body short would never be given up."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self._timeout = timeout
        self._granted = 0.0
        self.nbytes = 0

    def grow(self) -> None:
        """Grant the time that ``nbytes`` may take."""
        seconds, when = self.nbytes / SLOWEST, self._timeout.when()
        if seconds > self._granted and when is not None:
            self._timeout.reschedule(when + seconds - self._granted)
            self._granted = seconds


def came(nbytes: int) -> None:
    """Called by a client of each piece of a body that has come: the limit of the :func:`repeat`
    that it runs in grows by the time that may take, so that a body may be of any length."""
    limit = _limit.get(None)
    if limit is not None:
        limit.nbytes += nbytes
        limit.grow()


def expect(nbytes: int) -> None:
    """Called by a client that is about to read so many bytes of a body: the same before they
    come, for bytes of which it learns nothing before all are there."""
    if nbytes > SLOWEST:
        came(nbytes)
