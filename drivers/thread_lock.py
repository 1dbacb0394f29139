"""Locks for drivers that have none: alone among the threads of one process, where asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tensorstash.driver import Check, check_key, held
from tensorstash.errors import Conflict, Unsupported


class ThreadLocks:
    """Names that one thread of this process holds at a time; a forked child starts afresh."""

    def __init__(self) -> None:
        self._locks: dict[tuple[int, str], threading.Lock] = {}

    @contextmanager
    def hold(self, key: str, url: str, unsafe: bool, timeout: float | None) -> Iterator[Check]:
        """Hold ``key``, where the user said by ``unsafe`` that no other process writes."""
        place = (os.getpid(), check_key(key))
        if not unsafe:
            raise Unsupported(
                f"{url} offers no lock, which append and resize need; use file, s3 or redis, or "
                "the option unsafe=True when no other process writes"
            )
        # setdefault is atomic: two first users agree on one.
        lock = self._locks.setdefault(place, threading.Lock())
        if not lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            raise Conflict(
                f"{key!r} in {url} was still locked by another thread after {timeout} s; wait "
                "longer, or see who holds it",
                key=key,
            )
        try:
            yield held
        finally:
            lock.release()
