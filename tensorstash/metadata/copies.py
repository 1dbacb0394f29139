"""Consolidated metadata above a node: a copy that goes before what it shows is changed.

Readers go by such a copy alone, so one that is out of date shows arrays that are no more, and
hides those that are new. Whoever changes a node's metadata therefore looks at the groups above it
first, up to the root of the driver, and deletes the copies there: a writer that is killed between
leaves none. Where there has been a copy, it looks again after the change, for who consolidated in
between had read what was there before.

The copy in the document of records is none of these: it is what publishes their fields.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from ..driver import Driver, Request, Span, Tag, pause
from ..errors import Conflict, StashError
from . import consolidated, zarr2, zarr3

_TRIES = 200
_KEPT = 10_000

_logger = logging.getLogger("tensorstash")


@dataclass
class _Seen:
    """What one driver, and so one handle and its members, has learned."""

    clean: dict[str, Tag] = field(default_factory=dict)
    """Documents of groups that have no copy to delete, by key, in which version."""
    copies: bool = False
    """Whether there has been one."""
    records: set[str] = field(default_factory=set)
    """Where records are, whose own changes see to the copies below them."""


_seen: WeakKeyDictionary[Driver, _Seen] = WeakKeyDictionary()


@contextmanager
def dropped(
    driver: Driver, path: str, zarr_format: int | None = None, *, own: bool = False
) -> Iterator[None]:
    """For the block, which changes the metadata of the node at ``path`` (empty or ending in
    ``/``): there is no copy of it. See :func:`drop`."""
    again = drop(driver, path, zarr_format, own=own)
    yield
    if not again:
        return
    try:
        drop(driver, path, zarr_format, own=own)
    except StashError as error:
        # What was asked for has happened; whoever changes something next looks again.
        _logger.warning("consolidated metadata above %r may be out of date: %s", path, error)


def drop(driver: Driver, path: str, zarr_format: int | None = None, *, own: bool = False) -> bool:
    """Delete all copies of what is stored at ``path``. ``zarr_format``: of the node (``None``:
    it may be of either); ``own``: there may be one in a group of Zarr v2 at ``path`` itself,
    which repeats the group's own attributes. One request for all groups above, none where there
    are none; a document that was looked at is not read again while its version is the same.
    Returns whether there has been a copy anywhere below this driver."""
    above = _above(path)
    known = _seen.get(driver)
    if known is not None:
        above = above[: next((k for k, g in enumerate(above) if g in known.records), None)]
    documents = [group + zarr3.KEY for group in above if zarr_format != 2]
    copies = [group + zarr2.CONSOLIDATED for group in above if zarr_format != 3]
    if own:
        copies.append(path + zarr2.CONSOLIDATED)
    if not documents and not copies:
        return False
    seen = _seen.setdefault(driver, _Seen())
    for attempt in range(_TRIES):
        try:
            _drop(driver, documents, copies, seen)
        except Conflict:  # someone has changed a group's document since it was read
            pause(attempt)
        else:
            return seen.copies
    key = documents[0]
    raise Conflict(f"the metadata at key {key!r} is changed by others without a break", key=key)


def expect(driver: Driver) -> None:
    """A copy is about to be stored."""
    _seen.setdefault(driver, _Seen()).copies = True


def publishes(driver: Driver, path: str) -> None:
    """Records are at ``path``, and this driver is their handle's."""
    _seen.setdefault(driver, _Seen()).records.add(path)


def _drop(driver: Driver, documents: list[str], copies: list[str], seen: _Seen) -> None:
    """Look at the ``documents`` of groups of Zarr v3, and at ``copies`` beside those of v2."""
    if len(seen.clean) > _KEPT:
        seen.clean.clear()
    limit = driver.metadata_limit
    requests = [Request(key, None, seen.clean.get(key), limit) for key in documents]
    requests += [Request(key, Span(0, 1)) for key in copies]
    # All answers before the first change, which may be on the same connection.
    for i, found in [*driver.get_many_tagged(requests)]:
        key, unless = requests[i].key, requests[i].unless
        if found is None or (unless is not None and found[1] == unless):
            continue
        if i >= len(documents):
            seen.copies = True
            driver.delete(key)  # whichever it is: to have none is never wrong
            continue
        data, tag = found
        plain = consolidated.without_copy(data)
        if plain is not None:
            seen.copies = True
            tag = driver.replace(key, plain, tag)
        seen.clean[key] = tag


def _above(path: str) -> list[str]:
    """The groups above a path, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join([*parts[:k], ""]) for k in range(len(parts))]
