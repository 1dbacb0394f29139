"""How much of a write is under way at once, so that it stays within what memory there may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, Protocol

from ..driver import Buffer, Driver, Put, Tag, located
from .budget import Budget, check_fits

WRITERS = 4
"""The part of a limit, one in so many, that writers hold: they join it before it is stored."""

COPIES = 3
"""Of a stored object, at most, while it is written: as it was, as it will be, and encoded."""


class Target(Protocol):
    """Where objects are written to, and the bytes of the largest once decoded."""

    @property
    def driver(self) -> Driver:
        """Where they are stored."""
        ...

    @property
    def path(self) -> str:
        """Below the driver's root."""
        ...

    @property
    def object_bytes(self) -> int:
        """Of the largest."""
        ...


class Steps(NamedTuple):
    """Threads that write at once, objects that are merged together, objects that each thread has
    sent and knows nothing of yet (``None``: as many as the driver likes), and bytes that one thread
    may take to have more of them encoded, in place of one itself (``None``: any number)."""

    threads: int
    batch: int
    window: int | None = None
    room: int | None = None


def divided(units: int, threads: int, batch: int, concurrency: int) -> Steps:
    """The steps for which there is memory for ``units`` objects, of ``threads`` and ``batch`` that
    are worth having."""
    threads = min(threads, max(1, units // concurrency), units)
    window = units // threads
    return Steps(threads, min(batch, units), None if window > concurrency else window)


def room_ahead(how: Steps, units: int, nbytes: int, encoded: int, concurrency: int) -> int:
    """Bytes for the one thread that has objects encoded ahead, of ``units`` objects of ``nbytes``,
    which may be ``encoded`` bytes once they are, while the others are where they need most."""
    sent = concurrency if how.window is None else how.window
    making = (COPIES - 1) * nbytes
    return max(0, COPIES * units * nbytes - how.threads * (sent * encoded + making) + making)


@contextmanager
def steps(
    budget: Budget, target: Target, count: int, threads: int, batch: int, encoded: int = 0
) -> Iterator[Steps]:
    """Memory for a write of ``count`` objects, and in which steps it goes. ``encoded``: bytes of
    one that the kernel has encoded, at most; 0: it encodes none."""
    if not budget.limited:
        yield Steps(threads, batch)
        return
    nbytes, capabilities = target.object_bytes, target.driver.capabilities
    concurrency = 1 if capabilities.local else max(1, capabilities.concurrency)
    most = min(count, max(batch, threads * (concurrency + 1)))
    place = partial(located, target.driver, target.path)
    with budget.share("in_flight", COPIES * nbytes, most, nbytes, place) as units:
        if not encoded:
            yield divided(units, threads, batch, concurrency)
            return
        how = divided(units, min(threads, max(1, units // 2)), batch, concurrency)
        yield how._replace(room=room_ahead(how, units, nbytes, encoded, concurrency))


def check_chunk(budget: Budget, target: Target) -> None:
    """:class:`~tensorstash.errors.NoMemory` where there is no memory for one object."""
    check_fits(budget.least, target.object_bytes, partial(located, target.driver, target.path))


def put_many(driver: Driver, items: Iterable[tuple[str, Buffer]], window: int | None) -> None:
    """As :meth:`Driver.put_many`, with at most ``window`` under way."""
    if window is None:
        driver.put_many(items)
        return
    coming = iter(items)
    for first in coming:
        driver.put_many(chain((first,), islice(coming, window - 1)))


def put_each(
    driver: Driver, puts: Iterable[Put], window: int | None
) -> Iterator[tuple[int, Tag | None]]:
    """As :meth:`Driver.put_each`, with at most ``window`` under way."""
    if window is None:
        yield from driver.put_each(puts)
        return
    coming, before = iter(puts), 0
    for first in coming:
        for i, tag in driver.put_each(chain((first,), islice(coming, window - 1))):
            yield before + i, tag
        before += window
