"""Nodes that are not whole: marked before anything below them is changed, and until all is.

A delete marks the node, deletes what belongs to it, and the marked document last. A replacement, or
a copy, marks it, deletes what was there, stores what comes, and takes the mark away last. So at
every instant there is a document that explains every key below it, and no reader takes what is
half there for an array of fill values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from ..driver import Buffer, Check, Driver, Span, Tag, located, pause
from ..errors import AlreadyExists, Conflict, Unsupported
from . import mark, zarr2, zarr3
from .belongings import Belongings
from .copies import dropped
from .mark import Layouts, Mark

Spare: TypeAlias = Callable[[Belongings], bool] | None

_TRIES = 200
_AT_ONCE = 10_000  # keys of one delete
_PASSES = 10
_PATIENCE = 60.0  # seconds until whoever else changes the node is told of


@dataclass
class Claim:
    """A marked node: ``document`` is what its ``zarr.json`` is without the mark."""

    driver: Driver
    path: str
    mark: Mark
    document: Mapping[str, Any]
    tag: Tag
    check: Check

    @property
    def key(self) -> str:
        """Where the mark is."""
        return self.path + zarr3.KEY


class Alone:
    """Be the only one who replaces, deletes, appends to or resizes a node, where the driver can
    tell; ``keys``: those of its documents that are locked for it."""

    def __init__(self, driver: Driver, keys: Iterable[str]) -> None:
        wanted = keys if driver.capabilities.locks else ()
        self._locks = [driver.lock(key, _PATIENCE) for key in wanted]
        self._held: list[AbstractContextManager[Check]] = []

    def __enter__(self) -> Check:
        checks: list[Check] = []
        try:
            for lock in self._locks:
                checks.append(lock.__enter__())
                self._held.append(lock)
        except BaseException:
            self.__exit__()
            raise

        def check() -> None:
            for each in checks:
                each()

        return check

    def __exit__(self, *exc: object) -> None:
        # Not an ExitStack: what it keeps of an interrupt would keep the locks, too.
        if self._held:
            try:
                self._held.pop().__exit__(None, None, None)
            finally:
                self.__exit__()


def claim(
    driver: Driver,
    path: str,
    what: str,
    check: Check,
    *,
    document: Mapping[str, Any] | None = None,
    coming: Layouts | None = None,
    known: Layouts | None = None,
    fresh: bool = False,
    spare: Spare = None,
    target: str = "",
) -> Claim | None:
    """Mark the node at ``path``, with ``document`` for what it will be (``None``: nothing, or
    nothing of Zarr v3) and the layouts ``coming`` with it, and delete whatever is there: ``known``
    are nodes there that have no document. :class:`~tensorstash.errors.AlreadyExists` where it is
    not all a node's. ``fresh``: there is no node, and nothing to delete;
    :class:`~tensorstash.errors.Conflict` where there is one. ``spare``: asked of what is there
    before it is marked: whether it shall stay; then ``None`` is returned. ``target``: where what
    is moved is by now."""
    for attempt in range(_TRIES):
        found = Belongings(driver, path, dict(known or {}))
        if not fresh:
            found.look()
        if spare is not None and spare(found):
            return None
        if found.is_field and what in ("replace", "copy"):
            raise AlreadyExists(
                f"{located(driver, path)} is a field of records, which would read what replaces it "
                "as their own: drop_field() and add_field() change fields, save_records() all"
            )
        marker = Mark.new(what, _both(found.layouts, coming or {}), target)
        body = mark.stub(found.is_group) if document is None else document
        data = zarr3.encode(marker.on(body))
        try:
            with dropped(driver, path, own=path + zarr2.CONSOLIDATED in found.documents):
                check()
                tag = driver.replace(path + zarr3.KEY, data, found.tag)
        except Conflict:
            if fresh:
                raise
            pause(attempt)  # someone has changed the document since it was looked at
            continue
        made = Claim(driver, path, marker, body, tag, check)
        if found.tag is None and found.documents and driver.capabilities.leases:
            try:
                found.look_again()  # documents that no condition was about, as they are now
            except AlreadyExists:
                remove(made)
                raise
            still_ours(made)  # so none of it is a newer holder's
        _clear(made, found)
        return made
    raise Conflict(
        f"{located(driver, path)} is changed by others without a break; repeat the call",
        key=path + zarr3.KEY,
    )


def finish(made: Claim, behind: bytes = b"") -> Tag:
    """Take the mark away, keeping what someone has changed in the document meanwhile, and store
    ``behind`` it; returns the tag of the document."""
    document, tag = made.document, made.tag
    for attempt in range(_TRIES):
        made.check()
        try:
            return made.driver.replace(made.key, zarr3.encode(document) + behind, tag)
        except Conflict:
            document, tag = still_ours(made)
            pause(attempt)
    raise Conflict(f"the metadata at key {made.key!r} is changed by others without a break")


def remove(made: Claim) -> None:
    """Delete the marked document, the last that is left of a node or that stands before one of
    Zarr v2."""
    driver, tag = made.driver, made.tag
    if not driver.capabilities.leases:
        made.check()
        driver.delete(made.key)
        return
    for attempt in range(_TRIES):
        made.check()
        if not _drop(driver, {made.key: tag}):
            return
        _, tag = still_ours(made)
        pause(attempt)
    raise Conflict(f"the metadata at key {made.key!r} is changed by others without a break")


def still_ours(made: Claim) -> tuple[Mapping[str, Any], Tag]:
    """The document without the mark, and its tag; :class:`~tensorstash.errors.Conflict` where
    another has replaced it."""
    found = _stored(made.driver, made.key)
    document = mark.loaded(found and found[0])
    there = mark.mark_in(document)
    if found is None or there is None or there.token != made.mark.token:
        raise Conflict(
            f"{located(made.driver, made.path)} was replaced or deleted by someone else meanwhile; "
            "look at it, and repeat the call if need be",
            key=made.key,
        )
    return {name: value for name, value in document.items() if name != mark.FIELD}, found[1]


def what_is_unfinished(driver: Driver, path: str) -> str | None:
    """What was under way at ``path`` (``"copy"``, ``"delete"``, ``"replace"``, ``"field"``,
    ``"move"``), where the node is marked."""
    found = mark_at(driver, path)
    return None if found is None else found.what


def mark_at(driver: Driver, path: str) -> Mark | None:
    """The mark of the node at ``path``, if it bears one."""
    stored = _stored(driver, path + zarr3.KEY)
    return mark.mark_in(mark.loaded(stored and stored[0]))


def _stored(driver: Driver, key: str) -> tuple[Buffer, Tag] | None:
    """A document and its tag; of one that is too large to be read, what shows that it is."""
    return driver.get_tagged(key, Span(0, driver.metadata_limit))


def put_instead(made: Claim, key: str, data: bytes) -> Tag:
    """Store a document beside the mark, in place of whatever came there while the mark stands."""
    tag = None
    for attempt in range(_TRIES):
        made.check()
        try:
            return made.driver.replace(key, data, tag)
        except Conflict:
            tag = made.driver.tag(key)
            still_ours(made)
            pause(attempt)
    raise Conflict(f"the metadata at key {key!r} is changed by others without a break", key=key)


def _clear(made: Claim, found: Belongings) -> None:
    """Delete all that was found but the marked document: the other documents first, so that no
    reader finds an array of which chunks are gone."""
    left = _delete(made, found, (key for key in found.documents if key != made.key))
    left += _delete(made, found, iter(found.chunks))
    if left or found.more:
        # Until a listing shows no more: some skip names while others go.
        for _ in range(_PASSES):
            rest = (key for key in found.now() if key != made.key)
            if not _delete(made, found, rest, again=True):
                break
        else:
            raise Conflict(
                f"{located(made.driver, made.path)} is written by others without a break; "
                "stop them, and repeat the call"
            )
    if found.documents or found.chunks:
        made.driver.prune(made.path)


def _delete(made: Claim, found: Belongings, keys: Iterator[str], again: bool = False) -> int:
    """Delete ``keys``, in batches. A link to a folder goes itself, and nothing that it leads to.
    Where the lock can be lost, only what is still of the version that was found before the mark
    was put; or, found ``again`` after that, while the mark stands. Returns how many there were, or
    how many stay."""
    driver, count = made.driver, 0
    while batch := [*islice(keys, _AT_ONCE)]:
        made.check()
        if driver.capabilities.leases:
            if again:
                still_ours(made)  # so no newer holder's: the versions were learned before
            kept = _drop(driver, {key: found.tags.pop(key) for key in batch if key in found.tags})
            count += len(batch) if again else kept
            continue
        links = tuple(folder for folder in _folders(made.path, batch) if driver.remove_link(folder))
        driver.delete_many(key for key in batch if not (links and key.startswith(links)))
        count += len(batch) if again else 0
    return count


def _drop(driver: Driver, tags: Mapping[str, Tag]) -> int:
    """Delete what is still of these versions, where the lock can be lost and the server can do
    that; how many stay."""
    if driver.capabilities.leases and tags:
        with suppress(Unsupported):
            return sum(1 for _ in driver.delete_each(tags.items()))
    driver.delete_many(tags)
    return 0


def _folders(path: str, keys: Iterable[str]) -> list[str]:
    """The folders below ``path`` that ``keys`` lie in, those above before those in them."""
    found: dict[str, None] = {}
    for key in keys:
        folder = key[: key.rfind("/") + 1]
        while len(folder) > len(path) and folder not in found:
            found[folder] = None
            folder = folder[: folder.rfind("/", 0, -1) + 1]
    return sorted(found, key=len)


def _both(one: Layouts, other: Layouts) -> Layouts:
    return {
        path: tuple(dict.fromkeys((*one.get(path, ()), *other.get(path, ()))))
        for path in {**one, **other}
    }
