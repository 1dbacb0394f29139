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
    """Threads that write at once, objects that are merged together, and objects that each thread
    has sent and knows nothing of yet (``None``: as many as the driver likes)."""

    threads: int
    batch: int
    window: int | None = None


def divided(units: int, threads: int, batch: int, concurrency: int) -> Steps:
    """The steps for which there is memory for ``units`` objects, of ``threads`` and ``batch`` that
    are worth having."""
    threads = min(threads, max(1, units // concurrency), units)
    window = units // threads
    return Steps(threads, min(batch, units), None if window > concurrency else window)


@contextmanager
def steps(budget: Budget, target: Target, count: int, threads: int, batch: int) -> Iterator[Steps]:
    """Memory for a write of ``count`` objects, and in which steps it goes."""
    if not budget.limited:
        yield Steps(threads, batch)
        return
    nbytes, capabilities = target.object_bytes, target.driver.capabilities
    concurrency = 1 if capabilities.local else max(1, capabilities.concurrency)
    most = min(count, max(batch, threads * (concurrency + 1)))
    place = partial(located, target.driver, target.path)
    with budget.share("in_flight", COPIES * nbytes, most, nbytes, place) as units:
        yield divided(units, threads, batch, concurrency)


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
