"""Locks for drivers that have none: alone among the threads of one process, where asked for."""

from __future__ import annotations

import os
import threading

from tensorstash.driver import Check, check_key, held, take
from tensorstash.drivers.waiting import late
from tensorstash.errors import Unsupported


class ThreadLocks:
    """Names that one thread of this process holds at a time; a forked child starts afresh."""

    def __init__(self) -> None:
        self._locks: dict[tuple[int, str], threading.Lock] = {}

    def hold(self, key: str, url: str, unsafe: bool, timeout: float | None) -> ThreadTurn:
        """Hold ``key``, where the user said by ``unsafe`` that no other process writes."""
        place = (os.getpid(), check_key(key))
        if not unsafe:
            raise Unsupported(
                f"{url} offers no lock, which append and resize need; use file, s3 or redis, or "
                "the option unsafe=True when no other process writes"
            )
        # setdefault is atomic: two first users agree on one.
        return ThreadTurn(self._locks.setdefault(place, threading.Lock()), key, url, timeout)


class ThreadTurn:
    """``lock``, which stands for ``key`` in this process, held in a ``with`` block."""

    def __init__(self, lock: threading.Lock, key: str, url: str, timeout: float | None) -> None:
        self._lock, self._key, self._url, self._timeout = lock, key, url, timeout
        self._turn: object = None

    def __enter__(self) -> Check:
        self._turn = take(self._lock, self._timeout)
        if self._turn is None:
            who = f"another thread of process {os.getpid()}"
            raise late(self._key, self._url, self._timeout or 0, who)
        return held

    def __exit__(self, *exc: object) -> None:
        self._turn = None
