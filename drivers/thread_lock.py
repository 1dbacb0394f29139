"""Locks between the threads of one process, for drivers that have none and for those whose own
lock is one of processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from weakref import WeakValueDictionary

from tensorstash.cached import PerProcess
from tensorstash.driver import Check, check_key, held, take, turn
from tensorstash.drivers.waiting import late
from tensorstash.errors import Unsupported


class _Locks:
    """The locks of one process. One is there while someone holds it or waits for it."""

    def __init__(self) -> None:
        self.guard = threading.RLock()  # a finalizer, or a signal, may ask for a lock within
        self.by_name: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()


class ThreadLocks:
    """Names that one thread of this process holds at a time; a forked child starts afresh."""

    def __init__(self) -> None:
        self._locks = PerProcess(_Locks)

    def hold(
        self, key: str, url: str, timeout: float | None, *, name: Hashable = None
    ) -> ThreadTurn:
        """Hold ``key`` (as ``name``, where keys of several places meet)."""
        here, name = self._locks.here(), name or check_key(key)
        with turn(here.guard):
            lock = here.by_name.get(name) or threading.Lock()
            here.by_name[name] = lock
        return ThreadTurn(lock, key, url, timeout)

    def hold_unsafe(self, key: str, url: str, unsafe: bool, timeout: float | None) -> ThreadTurn:
        """Hold ``key``, where the user said by ``unsafe`` that no other process writes."""
        if not unsafe:
            raise Unsupported(
                f"{url} offers no lock, which append and resize need; use file, s3 or redis, or "
                "the option unsafe=True when no other process writes"
            )
        return self.hold(key, url, timeout)


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
