"""What is stored at several paths, from their documents, which are asked for together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from ..driver import Buffer, Driver, Request, get_at_most
from ..errors import (
    Corrupt,
    DriverError,
    Invalid,
    StashError,
    TimedOut,
    Unavailable,
    Unsupported,
)
from ..metadata import zarr2, zarr3
from ..metadata.consolidated import Members
from ..metadata.document import GroupDocument
from ..metadata.mark import is_records
from ..metadata.node import Content
from ..metadata.spec import ArraySpec

Found: TypeAlias = Content | StashError
"""A node, or why it cannot be read."""

_V2 = (zarr2.ARRAY, zarr2.GROUP, zarr2.ATTRS, zarr2.CONSOLIDATED)
_UNREADABLE = (Corrupt, Invalid, Unsupported, DriverError)


def read(driver: Driver, paths: Sequence[str], zarr_format: int = 3) -> list[Found | None]:
    """What is at each of ``paths``; ``None`` where no node is. One batch of requests, and where
    ``zarr_format`` is 3, one more for those that have no ``zarr.json``: it comes before what
    Zarr v2 has. A server that cannot be reached is no matter of one path, and raised."""
    first = (zarr3.KEY,) if zarr_format == 3 else (zarr3.KEY, *_V2)
    found = _documents(driver, [path + name for path in paths for name in first])
    others = [path for path in paths if found[path + zarr3.KEY] is None]
    if others and zarr_format == 3:
        found |= _documents(driver, [path + name for path in others for name in _V2])
    return [_content(found, path) for path in paths]


def copied(group: GroupDocument) -> Members | None:
    """The members of a group that its own document describes; of records, all their fields."""
    if group.consolidated is None:
        return None
    members = Members.of(group.consolidated)
    if not is_records(group.attributes):
        return members
    more = group.attributes["tensorstash"].get("members")  # of types that Zarr has no name for
    if not isinstance(more, Mapping) or not more:
        return members
    return Members.of({**dict(members.stored()), **more})


def copied_member(members: Members, name: str, zarr_format: int) -> Found:
    """A direct member, from a copy of its document; a group with those below it."""
    try:
        document = members[name]
        if zarr_format == 2:
            content: Content = zarr2.parse_documents(document, allow_pickle=None)[1]
        else:
            content = zarr3.parse_document(document)[1]
        if isinstance(content, ArraySpec):
            content.check_pair()
            return content
    except _UNREADABLE as error:
        return error
    below = members.below(name)
    return GroupDocument(content.attributes, below, content.zarr_format, content.document)


def _documents(driver: Driver, keys: Sequence[str]) -> dict[str, Buffer | StashError | None]:
    """All documents at once; where that fails, each alone, so that it is known which do."""
    found: dict[str, Buffer | StashError | None] = {}
    most = driver.metadata_limit
    try:
        for i, pair in driver.get_many_tagged(Request(key, most=most) for key in keys):
            found[keys[i]] = None if pair is None else pair[0]
    except (TimedOut, Unavailable):
        raise
    except _UNREADABLE:
        for key in keys:
            if key not in found:
                found[key] = _alone(driver, key, most)
    return found


def _alone(driver: Driver, key: str, most: int) -> Buffer | StashError | None:
    try:
        pair = get_at_most(driver, key, most)
    except (TimedOut, Unavailable):
        raise
    except _UNREADABLE as error:
        return error
    return None if pair is None else pair[0]


def _content(found: Mapping[str, Buffer | StashError | None], path: str) -> Found | None:
    def stored(name: str) -> Buffer | None:
        document = found.get(path + name)
        if isinstance(document, StashError):
            raise document
        return document

    try:
        if (document := stored(zarr3.KEY)) is not None:
            content: Content = zarr3.parse(document)[1]
        elif (document := stored(zarr2.ARRAY)) is not None:
            content = zarr2.parse_array(document, stored(zarr2.ATTRS), allow_pickle=None)
        elif (document := stored(zarr2.GROUP)) is not None:
            members = stored(zarr2.CONSOLIDATED)
            content = zarr2.parse_group(document, stored(zarr2.ATTRS), members)
        else:
            return None
        if isinstance(content, ArraySpec):
            content.check_pair()
    except _UNREADABLE as error:
        return error
    return content
