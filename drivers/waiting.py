"""Waiting for a lock that another holds: for how long, and who that is."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress

from tensorstash.errors import TimedOut

_TELL_AFTER = 2.0  # seconds of waiting that are worth a line in the log
_LONGEST = 160  # characters of a holder's own words

_log = logging.getLogger("tensorstash")


def me() -> str:
    """This process, in words for whoever waits for it."""
    return _told(os.getpid(), os.uname().nodename, time.time())


def said(words: bytes | str) -> str:
    """What a holder wrote about itself, fit for a message: one short line."""
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST]) or "another writer"


def of_file(status: os.stat_result, since: float | None = None) -> str:
    """Who holds the ``flock`` on this file or folder, as far as this system knows; ``since``
    when, where that is known."""
    with suppress(OSError, ValueError):
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks") as file:
            rows = [line.split() for line in file]
        # number: FLOCK ADVISORY WRITE pid device:inode ...; "->" marks those that wait.
        flocks = [row for row in rows if len(row) > 5 and row[1] == "FLOCK"]
        exact = [row[4] for row in flocks if row[5] == place]
        # Some file systems tell stat another device than the lock table.
        loose = [row[4] for row in flocks if row[5].endswith(f":{status.st_ino}")]
        for pid in (exact or loose)[:1]:
            return _told(int(pid), os.uname().nodename, since)
    return "another writer, in another container or on another host"


def _told(pid: int, host: str, since: float | None) -> str:
    begun = "" if since is None else time.strftime(", since %FT%TZ", time.gmtime(since))
    return f"process {pid} on {host}{begun}"


class Waiting:
    """One wait for the lock of ``key``; begun when made. ``holder`` is asked who holds it."""

    def __init__(
        self,
        key: str,
        url: str,
        timeout: float | None,
        holder: Callable[[], str],
        pauses: tuple[float, float],
    ) -> None:
        """``pauses``: the first and the longest, in seconds."""
        self._key, self._url, self._timeout, self._holder = key, url, timeout, holder
        self._begun = time.monotonic()
        self._pause, self._longest = pauses
        self._told = False

    def begin(self) -> None:
        """Count from now."""
        self._begun = time.monotonic()

    def pause(self) -> float:
        """Seconds to wait before the next attempt; :class:`TimedOut` where none are left."""
        waited = time.monotonic() - self._begun
        left = float("inf") if self._timeout is None else self._timeout - waited
        if left <= 0:
            raise late(self._key, self._url, self._timeout or 0, self._holder())
        if waited > _TELL_AFTER and not self._told:
            self._told = True
            _log.warning("waiting for the lock of %r in %s: %s", self._key, self._url, self._who())
        pause, self._pause = self._pause, min(2 * self._pause, self._longest)
        return min(random.uniform(pause / 2, pause), left)

    def _who(self) -> str:
        return f"it is held by {self._holder()}"


def late(key: str, url: str, timeout: float, holder: str) -> TimedOut:
    """The error of a wait that took too long."""
    return TimedOut(
        f"{key!r} in {url} was still locked by {holder} after {timeout:g} s of waiting; wait "
        "longer (lock_timeout=), or see whether that one still runs",
        key=key,
        driver=url.partition(":")[0],
    )
