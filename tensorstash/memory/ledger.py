"""Who has what of a budget in one process, and what another may have: arithmetic, and a table."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from queue import SimpleQueue
from typing import NamedTuple, Protocol
from weakref import WeakSet

KINDS = ("caches", "in_flight", "native", "pools", "prefetched", "writers")
"""What memory is held for."""

KEPT = 2
"""The part of a limit, one in so many, that pools, writers and batches may have together."""

_STALE = 2.0  # seconds without a look after which one that waits has lost its place


class Entry(NamedTuple):
    """Bytes that somebody has; ``passing``: only until a call returns."""

    kind: str
    nbytes: int
    passing: bool


def total(entries: Iterable[Entry]) -> int:
    """Bytes in all."""
    return sum(entry.nbytes for entry in entries)


def units(limit: int | None, entries: Iterable[Entry], each: int, most: int) -> int:
    """How many units of ``each`` bytes a call may have now, of ``most`` that it has use for: half
    of what fits, as others may come; one where no other call has anything; 0: it must wait."""
    if limit is None:
        return most
    entries = [*entries]
    fit = (limit - total(entries)) // max(1, each)
    if fit > 0:
        return min(most, (fit + 1) // 2)
    return 0 if any(entry.passing for entry in entries) else 1


def room(
    limit: int | None, entries: Iterable[Entry], part: int = KEPT, mine: int = 0
) -> int | None:
    """Bytes that one who keeps ``mine`` may keep beside what others do, but for caches, which give
    way; ``None``: any number. No more than one ``part``-th of the limit is kept in all."""
    if limit is None:
        return None
    kept = total(e for e in entries if not e.passing and e.kind != "caches")
    return max(0, limit // part - kept + mine)


class Shrinks(Protocol):
    """A cache, which gives way to others."""

    nbytes: int

    def shrink(self, nbytes: int) -> int:
        """Drop so many bytes of what is kept, or a few more; returns how many went."""
        ...


class Ledger:
    """Who has what of a budget in one process. An entry is made, changed and removed in one step
    each, so that no interrupt leaves a part of one; sums are worked out when they are needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[int, Entry] = {}
        self.waiting: dict[int, tuple[SimpleQueue[None], float]] = {}
        self.caches: WeakSet[Shrinks] = WeakSet()

    def now(self) -> list[Entry]:
        """All entries."""
        return list(self.entries.values())

    def is_first(self, me: int) -> bool:
        """Whether nobody waits for longer."""
        dead = time.monotonic() - _STALE
        for number, (_, seen) in list(self.waiting.items()):
            if number == me:
                return True
            if seen >= dead:
                return False
            self.waiting.pop(number, None)  # one that was interrupted, or is stopped
        return True

    def wake(self) -> None:
        """Have whoever waits for longest look again."""
        for queue, _ in list(self.waiting.values())[:1]:
            queue.put(None)
