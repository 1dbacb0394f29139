"""A byte-bounded cache of versioned values: decoded chunks, shard indices."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from ...driver import Tag
from ...memory import PROCESS, Budget
from ...threads import once
from ...turn import take, turn

_ENTRY = 640
"""Bytes that an entry takes beside its value: a name, a tag, and an array around the value."""


class Cache:
    """The most recently used values, together at most ``limit`` bytes. A value is kept with the
    tag of the stored version it came from and returned for that version only, so writers in
    other processes are noticed. Safe in threads; a forked child starts with an empty one. Fewer are
    kept where ``budget`` has no room for them.
    """

    def __init__(self, limit: int, budget: Budget = PROCESS) -> None:
        self.limit = limit
        self._budget = budget
        self._empty()
        self._account = budget.account("caches", self)  # last: others may ask it to give way

    def _reset(self) -> None:
        """In a forked child, whose parent may have held the lock; by one thread alone."""
        once(self._forget)

    def _forget(self) -> None:
        if self._pid != os.getpid():
            self._empty()

    def _empty(self) -> None:
        self._lock = threading.Lock()
        self.entries: OrderedDict[Hashable, tuple[Tag, Any, int]] = OrderedDict()
        """Tag, value and bytes by key, what was used last at the end: the kernel looks here too."""
        self._flights: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._pid = os.getpid()  # last: until then other threads come here too

    def here(self) -> None:
        """See that a forked child has one of its own, before :attr:`entries` are looked at."""
        if self._pid != os.getpid():
            self._reset()

    def peek(self, key: Hashable) -> tuple[Tag, Any] | None:
        """The kept tag and value, whatever version they are of."""
        if self._pid != os.getpid():
            self._reset()
        # Each of these is one step for other threads, and between them an entry may only go.
        entries = self.entries
        found = entries.get(key)
        if found is None:
            return None
        try:  # noqa: SIM105 - this is every cached read, and costs nothing
            entries.move_to_end(key)
        except KeyError:  # evicted meanwhile
            pass
        return found[0], found[1]

    def get(self, key: Hashable, tag: Tag) -> Any | None:
        """The value kept for version ``tag`` of ``key``."""
        found = self.peek(key)
        if found is not None and found[0] == tag:
            self.hits += 1
            return found[1]
        self.misses += 1
        return None

    def put(self, key: Hashable, tag: Tag, value: Any, nbytes: int) -> None:
        """Keep ``value``, dropping the least recently used; one above the limit is not kept."""
        self.put_all([(key, tag, value, nbytes)])

    def put_all(self, values: Sequence[tuple[Hashable, Tag, Any, int]]) -> None:
        """As :meth:`put` each key, tag, value and number of bytes."""
        if self._pid != os.getpid():
            self._reset()
        gone = []  # freed without the lock
        with turn(self._lock):
            entries = self.entries
            for key, tag, value, nbytes in values:
                old = entries.pop(key, None)
                if old is not None:
                    self.nbytes -= old[2]
                    gone.append(old)
                if nbytes <= self.limit:
                    entries[key] = (tag, value, nbytes)
                    self.nbytes += nbytes
                    while self.nbytes > self.limit:
                        _, old = entries.popitem(last=False)
                        self.nbytes -= old[2]
                        gone.append(old)
            self._note()
        del gone
        if self._budget.limited:
            self._budget.give_way()

    def shrink(self, nbytes: int) -> int:
        """Drop what was used least recently, ``nbytes`` of it or a little more; returns how many
        went."""
        if self._pid != os.getpid():
            self._reset()
        gone = 0
        with turn(self._lock):
            while gone < nbytes and self.entries:
                _, (_, _, size) = self.entries.popitem(last=False)
                self.nbytes -= size
                gone += size + _ENTRY
            self._note()
        return gone

    def _note(self) -> None:
        self._account.set(self.nbytes + _ENTRY * len(self.entries))

    def drop(self, key: Hashable) -> None:
        """Forget one value."""
        if self._pid != os.getpid():
            self._reset()
        with turn(self._lock):
            old = self.entries.pop(key, None)
            if old is not None:
                self.nbytes -= old[2]
                self._note()

    def flight(self, key: Hashable) -> _Flight:
        """One thread at a time fetches ``key``; the others find it kept when they get in."""
        if self._pid != os.getpid():
            self._reset()
        with turn(self._lock):
            lock = self._flights.get(key) or threading.Lock()
            self._flights[key] = lock
        return _Flight(lock)

    def rights(self, keys: Iterable[Hashable]) -> dict[Hashable, object]:
        """Those of ``keys`` that no thread fetches now, as in its :meth:`flight` until what is
        returned for it is gone. Nobody is waited for."""
        if self._pid != os.getpid():
            self._reset()
        found: dict[Hashable, object] = {}
        with turn(self._lock):
            for key in keys:
                lock = self._flights.get(key) or threading.Lock()
                self._flights[key] = lock
                right = take(lock, 0)
                if right is not None:
                    found[key] = right
        return found

    def __reduce__(self) -> tuple[type[Cache], tuple[int, Budget]]:
        return Cache, (self.limit, self._budget)


class _Flight:
    """A turn at ``lock``, which is there while someone has it or waits for it."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._turn: object = None

    def __enter__(self) -> None:
        self._turn = take(self._lock, None)

    def __exit__(self, *exc: object) -> None:
        self._turn = None
