"""Limits on memory: of a process, and of handles within it; what is kept, and what calls take."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any
from weakref import ReferenceType, ref

from ..cached import PerProcess
from ..coerce import parse_bytes
from ..errors import Invalid, NoMemory, counted, short
from ..turn import turn
from .ledger import KEPT, KINDS, Entry, Ledger, Shrinks, room, total, units
from .returned import return_freed

_POLL = 0.05  # seconds after which one that waits looks again, whether it was woken or not
_NO_LIMIT = 1 << 62
_NOWHERE: tuple[int, list[dict[int, Entry]]] = (0, [])
_ASIDE = 4  # the part of a limit that caches give way to, for more than one chunk

_numbers = itertools.count()
_local = threading.local()


class Budget:
    """A limit on the bytes that are held at once in each process: of a handle, within that of the
    process. A forked child, and a pickle's other end, begin with nothing held."""

    def __init__(self, limit: int | None) -> None:
        """At most ``limit`` bytes (``None``: any number) and one chunk."""
        self.limit = limit
        self._ledgers = PerProcess(Ledger)
        if limit is not None:
            return_freed()

    @property
    def limited(self) -> bool:
        """Whether there is a limit: this one's, or the process'."""
        return self.limit is not None or PROCESS.limit is not None

    @property
    def least(self) -> int | None:
        """The lower of the limits: this one's and the process'."""
        return min((limit for limit, _ in self.limits()), default=None)

    def ledgers(self) -> list[Ledger]:
        """Where what is held is noted: of the handle, and of the process."""
        here = [self._ledgers.here()]
        return here if self is PROCESS else [*here, PROCESS._ledgers.here()]

    def limits(self) -> list[tuple[int, Ledger]]:
        """The limits that there are, each with who has what of it."""
        both = (PROCESS,) if self is PROCESS else (self, PROCESS)
        return [(b.limit, b._ledgers.here()) for b in both if b.limit is not None]

    def account(self, kind: str, cache: Shrinks | None = None) -> Account:
        """For one that keeps bytes of a kind from call to call, a ``cache`` for example."""
        return Account(self, kind, cache)

    def room(self, part: int = KEPT, mine: int = 0) -> int | None:
        """Bytes that one who keeps ``mine`` may keep; see :func:`room`."""
        rooms = [room(limit, ledger.now(), part, mine) for limit, ledger in self.limits()]
        return min((found for found in rooms if found is not None), default=None)

    def give_way(self, nbytes: int = 0) -> None:
        """Have caches drop what is in the way of ``nbytes`` more, the largest first."""
        for limit, ledger in self.limits():
            excess = total(ledger.now()) + nbytes - limit
            if excess <= 0:
                continue
            with turn(ledger.lock):
                caches = [*ledger.caches]
            for cache in sorted(caches, key=lambda cache: -cache.nbytes):
                excess -= cache.shrink(excess)
                if excess <= 0:
                    break

    def share(
        self,
        kind: str,
        each: int,
        most: int = 1,
        chunk: int = 0,
        place: Callable[[], str] = str,
        wait: bool = True,
    ) -> Share:
        """Bytes for a call, in a ``with`` block, which is given a number of units.

        Args:
            kind: one of :data:`KINDS`.
            each: bytes of a unit: what one thread takes, or one request.
            most: units that the call has use for.
            chunk: bytes of one chunk: where these alone are more than a limit,
                :class:`~tensorstash.errors.NoMemory` is raised.
            place: says where the chunk is stored.
            wait: for other calls to end; else there may be no units.

        Returns:
            The context: units from 1 to ``most``; 0 where none are to be had without waiting.
        """
        return Share(self, kind, max(1, each), max(1, most), (chunk, place), wait)

    def use(self) -> dict[str, int]:
        """Bytes by kind, and the ``total``."""
        found = dict.fromkeys(KINDS, 0)
        for entry in self._ledgers.here().now():
            found[entry.kind] += entry.nbytes
        return {**found, "total": sum(found.values())}

    def __repr__(self) -> str:
        return f"Budget({self.limit})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_process, ()) if self is PROCESS else (Budget, (self.limit,))


class Account:
    """What one holder keeps from call to call. It is nothing once this is collected as garbage."""

    __slots__ = ("__weakref__", "_budget", "_cache", "_kind", "_number", "_places")

    def __init__(self, budget: Budget, kind: str, cache: Shrinks | None) -> None:
        self._budget = budget
        self._kind = kind
        self._number = next(_numbers)
        self._cache: ReferenceType[Shrinks] | None = None if cache is None else ref(cache)
        self._places: tuple[int, list[dict[int, Entry]]] = 0, []
        self._here()

    def _here(self) -> list[dict[int, Entry]]:
        pid, places = self._places
        if pid == os.getpid():
            return places
        ledgers = self._budget.ledgers()
        cache = None if self._cache is None else self._cache()
        if cache is not None:
            for ledger in ledgers:
                with turn(ledger.lock):
                    ledger.caches.add(cache)
        self._places = os.getpid(), [ledger.entries for ledger in ledgers]
        return self._places[1]

    def set(self, nbytes: int) -> None:
        """So many bytes are kept now."""
        for entries in self._here():
            if nbytes:
                entries[self._number] = Entry(self._kind, nbytes, False)
            else:
                entries.pop(self._number, None)

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._budget.limited

    def room(self, part: int = KEPT) -> int | None:
        """Bytes that this one may keep in all; ``None``: any number."""
        mine = self._here()[0].get(self._number)
        return self._budget.room(part, 0 if mine is None else mine.nbytes)

    def most(self, asked: int, part: int) -> int:
        """Bytes that this one keeps at most, of ``asked``; one at least."""
        if not self._budget.limited:
            return asked
        found = self.room(part)
        return asked if found is None else max(1, min(asked, found))

    def __del__(self) -> None:
        # Each step is one call of C, which takes no lock: the collector runs anywhere.
        for entries in getattr(self, "_places", _NOWHERE)[1]:
            entries.pop(self._number, None)


def check_fits(limit: int | None, nbytes: int, place: Callable[[], str]) -> None:
    """:class:`~tensorstash.errors.NoMemory` where a chunk alone is more than the limit."""
    if limit is not None and nbytes > limit:
        raise NoMemory(
            f"one chunk of {place()} has {counted(nbytes, 'byte')}, and the memory limit is "
            f"{limit}; raise memory_limit, or store smaller chunks"
        )


class Share:
    """Bytes of a call under way: see :meth:`Budget.share`."""

    __slots__ = (
        *("__weakref__", "_above", "_budget", "_chunk", "_each", "_kind", "_ledgers", "_most"),
        *("_number", "_pid", "_taken", "_wait", "spare"),
    )

    def __init__(
        self,
        budget: Budget,
        kind: str,
        each: int,
        most: int,
        chunk: tuple[int, Callable[[], str]],
        wait: bool,
    ) -> None:
        self._budget = budget
        self._kind = kind
        self._each = each
        self._most = most
        self._chunk = chunk
        self._wait = wait
        self._number = next(_numbers)
        self._ledgers: list[Ledger] = []
        self._above: Share | None = None
        self._taken = 0
        self._pid = 0
        self.spare = 0
        """Bytes that nothing within has taken yet."""

    def __enter__(self) -> int:
        limits = self._budget.limits()
        if not limits:
            return self._most
        least = min(limit for limit, _ in limits)
        check_fits(least, *self._chunk)
        self._pid = os.getpid()
        found = getattr(_local, "share", None)
        above: Share | None = None if found is None else found()
        try:
            if above is not None and above._pid == self._pid:
                count = self._within(limits, above)
            else:  # there is none, or it is one of before a fork
                count = self._alone(limits, least)
            if count:
                self.spare = count * self._each
                _local.share = ref(self)
        except BaseException:
            self._leave()
            raise
        return count

    def _alone(self, limits: list[tuple[int, Ledger]], least: int) -> int:
        self._budget.give_way(max(self._each, min(least // _ASIDE, self._most * self._each)))
        count = self._most
        for limit, ledger in limits:
            count = self._take(limit, ledger, count)
            if not count:
                self._leave()
                return 0
        for ledger in self._ledgers:  # the last limit may have left fewer
            ledger.entries[self._number] = Entry(self._kind, count * self._each, True)
        return count

    def _take(self, limit: int, ledger: Ledger, most: int) -> int:
        queue = SimpleQueue[None]()
        try:
            while True:
                with turn(ledger.lock):
                    count = 0
                    if ledger.is_first(self._number):
                        count = units(limit, ledger.now(), self._each, most)
                    if count:
                        self._ledgers.append(ledger)
                        ledger.entries[self._number] = Entry(self._kind, count * self._each, True)
                    elif self._wait:
                        ledger.waiting[self._number] = queue, time.monotonic()
                if count or not self._wait:
                    return count
                with suppress(Empty):
                    queue.get(timeout=_POLL)
                limit = self._budget_limit(limit, ledger)
                self._budget.give_way(self._each)
        finally:
            if ledger.waiting.pop(self._number, None) is not None:
                ledger.wake()

    def _budget_limit(self, limit: int, ledger: Ledger) -> int:
        """The limit as it is now, which another thread may have changed."""
        return next((now for now, its in self._budget.limits() if its is ledger), _NO_LIMIT)

    def _within(self, limits: list[tuple[int, Ledger]], above: Share) -> int:
        """Within another share of this thread: what that has left, and more where there is any; one
        unit in any case, for while this waits nobody gives anything back."""
        self._budget.give_way(max(0, self._each - above.spare))
        count = self._most
        for limit, ledger in limits:
            free = max(0, limit - total(ledger.now()))
            count = max(1, min(count, (above.spare + free // 2) // self._each))
        self._above = above
        self._taken = min(above.spare, count * self._each)
        above.spare -= self._taken
        for _, ledger in limits:
            more = count * self._each
            if self._above._number in ledger.entries:
                more -= self._taken
            self._ledgers.append(ledger)
            ledger.entries[self._number] = Entry(self._kind, more, True)
        return count

    def __exit__(self, *exc: object) -> None:
        if not self._ledgers:
            return
        above, self._above = self._above, None
        if above is not None:
            above.spare += self._taken
        _local.share = None if above is None else ref(above)
        self._leave()

    def _leave(self) -> None:
        for ledger in self._ledgers:
            ledger.entries.pop(self._number, None)
            ledger.wake()
        self._ledgers.clear()  # last: what an interrupt leaves goes with this

    def __del__(self) -> None:
        # One that an interrupt ended between its steps, the first perhaps.
        for ledger in getattr(self, "_ledgers", ()):
            ledger.entries.pop(self._number, None)


# -- the process' --------------------------------------------------------------------------

PROCESS = Budget(None)
"""What all handles of this process have together."""

_said: list[int | None] = []
"""What was said of it, where anything was."""


def _process() -> Budget:
    return PROCESS


def budget_of(given: int | str | None) -> Budget:
    """The budget of a handle for which a user gave ``memory_limit``: without, the process'."""
    return PROCESS if given is None else Budget(_parsed(given))


def _parsed(given: int | str) -> int:
    found = parse_bytes(given)
    if found < 1:
        raise Invalid(f"memory_limit={short(given)} leaves nothing; give bytes, or text as '2GiB'")
    return found


def set_limit(limit: int | str | None) -> None:
    """Set the limit of this process."""
    found = None if limit is None else _parsed(limit)
    _said[:] = [found]
    PROCESS.limit = found
    if found is not None:
        return_freed()
        PROCESS.give_way()


def outgoing() -> int | None:
    """The limit that goes with a handle's pickle: to a process that multiprocessing is starting."""
    context = sys.modules.get("multiprocessing.context")
    spawning = context is not None and context.get_spawning_popen() is not None
    return PROCESS.limit if spawning else None


def incoming(limit: int | None) -> None:
    """The limit that came with a handle, which holds where nobody has said another here."""
    if limit is not None and not _said:
        set_limit(limit)
