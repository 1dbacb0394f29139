"""Metadata documents of arrays and groups, to and from a driver."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from .driver import Buffer, Driver, Request, Span, Tag, located
from .dtype import short
from .errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    StashError,
    Unsupported,
)
from .formats import trailer, zarr2, zarr3
from .formats.document import GroupDocument
from .formats.trailer import Trailer
from .spec import ArraySpec

Content = ArraySpec | GroupDocument

_TRIES = 200

_REMAINDER = re.compile(r"c(\.\d+)*|zarr\.json|\.z(array|group|attrs|metadata)|\d+(\.\d+)*")
"""Names that a node that was deleted halfway leaves behind, beside members of a group."""


class Node(NamedTuple):
    """What is stored at a path, the tag of the document that says so, and what a holder of its
    lock wrote behind it."""

    content: Content
    tag: Tag
    trailer: Trailer = trailer.NONE


def load(driver: Driver, path: str, *, allow_pickle: bool = False) -> Node | None:
    """The array or group at ``path`` (empty or ending in ``/``), Zarr v3 before v2; ``None``
    when there is neither."""
    return _parse(driver, path, driver.get_tagged(path + zarr3.KEY), allow_pickle)


def load_each(
    driver: Driver, paths: Sequence[str], *, allow_pickle: bool = False
) -> Iterator[tuple[str, Node | StashError]]:
    """``(path, node)`` for those of ``paths`` that hold one, in their order; the error instead of
    the node where it cannot be read. All are asked for at once."""
    documents = dict(driver.get_many_tagged(Request(path + zarr3.KEY) for path in paths))
    for i, path in enumerate(paths):
        try:
            node = _parse(driver, path, documents[i], allow_pickle)
        except (Corrupt, Invalid, Unsupported) as error:
            yield path, error
        else:
            if node is not None:
                yield path, node


def _parse(
    driver: Driver, path: str, found: tuple[Buffer, Tag] | None, allow_pickle: bool
) -> Node | None:
    """The node whose ``zarr.json`` is ``found``; where there is none, what v2's documents say."""
    try:
        if found is not None:
            return Node(zarr3.parse(found[0])[1], found[1], trailer.decode(found[0]))
        found = driver.get_tagged(path + zarr2.ARRAY)
        if found is not None:
            attributes = driver.get(path + zarr2.ATTRS)
            spec = zarr2.parse_array(found[0], attributes, allow_pickle=allow_pickle)
            return Node(spec, found[1], trailer.decode(found[0]))
        found = driver.get_tagged(path + zarr2.GROUP)
        if found is not None:
            attributes, members = driver.get(path + zarr2.ATTRS), None
            members = driver.get(path + zarr2.CONSOLIDATED)
            return Node(zarr2.parse_group(found[0], attributes, members), found[1])
    except (Invalid, Unsupported) as error:
        raise type(error)(f"in {located(driver, path)}: {error}") from error
    except Corrupt as error:
        key = error.key if error.key.startswith(path) else path + error.key
        raise Corrupt(f"in {located(driver, path)}: {error}", key=key) from error
    return None


def require(driver: Driver, path: str, *, allow_pickle: bool = False) -> Node:
    """:func:`load`, or :class:`~tensorstash.errors.NotFound`."""
    node = load(driver, path, allow_pickle=allow_pickle)
    if node is None:
        raise NotFound(
            f"no Zarr array or group at {located(driver, path)}: no zarr.json, .zarray or .zgroup; "
            'check the path, or create it (mode="a" or "w", or create())'
        )
    return node


def create(driver: Driver, path: str, content: Content, *, overwrite: bool = False) -> Tag:
    """Store a new node, with a group for every ancestor that has none (Zarr v3 core: there are
    no implicit groups). Of several creators one wins; the others get
    :class:`~tensorstash.errors.AlreadyExists`."""
    document, attributes = _documents(content)
    exists = load_any(driver, path)
    if exists and not overwrite:
        raise _exists(driver, path)
    if overwrite:
        if not exists:
            _refuse_foreign(driver, path)
        delete(driver, path)
    for ancestor in _ancestors(path):
        group = GroupDocument(zarr_format=content.zarr_format)
        key = ancestor + (zarr3.KEY if content.zarr_format == 3 else zarr2.GROUP)
        if driver.tag(key) is None:
            with suppress(Conflict):  # another creator was first: the group is there
                _put_new(driver, key, zarr3.encode(_documents(group)[0]))
    try:
        tag = _put_new(driver, path + _key(content), zarr3.encode(document))
    except Conflict:
        raise _exists(driver, path) from None
    if attributes is not None:  # by the one who won
        driver.put(path + zarr2.ATTRS, zarr3.encode(attributes))
    return tag


def delete(driver: Driver, path: str) -> None:
    """Remove a node and everything below it, its document first: what a kill leaves of it is
    no array that reads as fill."""
    for key in (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP):
        driver.delete(path + key)
    driver.delete_prefix(path)


def update(
    driver: Driver,
    path: str,
    change: Callable[[Any], Content],
    *,
    allow_pickle: bool = False,
    known: Node | None = None,
) -> Node:
    """Replace a node's document by ``change`` of it, in one step against every other writer:
    ``change`` is called again on what another writer stored first. ``known``: the node as it
    was read a moment ago, which saves a read."""
    for attempt in range(_TRIES):
        node, known = known or require(driver, path, allow_pickle=allow_pickle), None
        content = change(node.content)
        try:
            return put(driver, path, node, content, node.trailer)
        except Conflict:
            time.sleep(random.uniform(0, min(0.0005 * 2**attempt, 0.05)))
    key = lock_key(path, content)
    raise Conflict(f"the metadata at key {key!r} is changed by others without a break", key=key)


def put(driver: Driver, path: str, node: Node, content: Content, behind: Trailer) -> Node:
    """Store ``content`` in place of ``node``, and ``behind`` it a trailer; once:
    :class:`~tensorstash.errors.Conflict` where something else is stored by now."""
    data = zarr3.encode(_documents(content)[0]) + trailer.encode(behind)
    key = path + _key(content)
    if driver.capabilities.conditional_put:
        return Node(content, driver.put(key, data, if_tag=node.tag), behind)
    return Node(content, driver.put(key, data), behind)


def update_attributes(
    driver: Driver, path: str, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Replace a node's attributes by ``change`` of them, in one step."""
    node = require(driver, path, allow_pickle=True)
    if node.content.zarr_format == 3:
        update(
            driver,
            path,
            lambda content: replace(content, attributes=change(dict(content.attributes))),
        )
        return
    key = path + zarr2.ATTRS
    for attempt in range(_TRIES):
        found = driver.get_tagged(key)
        content = require(driver, path, allow_pickle=True).content
        content = replace(content, attributes=change(dict(content.attributes)))
        data = zarr3.encode(_attributes(content))
        try:
            if not driver.capabilities.conditional_put:
                driver.put(key, data)
            elif found is None:
                driver.put(key, data, if_absent=True)
            else:
                driver.put(key, data, if_tag=found[1])
            return
        except Conflict:
            time.sleep(random.uniform(0, min(0.0005 * 2**attempt, 0.05)))
    raise Conflict(f"the attributes at key {key!r} are changed by others without a break", key=key)


def load_any(driver: Driver, path: str) -> bool:
    """Whether a node's document is stored at ``path``, readable or not."""
    keys = (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP)
    found = driver.get_many_tagged([Request(path + key, Span(0, 1)) for key in keys])
    answers = dict(found)  # all of them: to leave early would cancel what is on its way
    return any(document is not None for document in answers.values())


def lock_key(path: str, content: Content) -> str:
    """The key whose lock guards a node's shape."""
    return path + _key(content)


def _documents(content: Content) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A node's document, and for v2 its attributes when it has any."""
    if content.zarr_format == 3:
        if isinstance(content, ArraySpec):
            return zarr3.array_document(content), None
        return zarr3.group_document(content), None
    attributes = _attributes(content) or None
    if isinstance(content, ArraySpec):
        return zarr2.array_document(content), attributes
    return zarr2.group_document(content), attributes


def _attributes(content: Content) -> dict[str, Any]:
    if isinstance(content, ArraySpec):
        return zarr2.attributes_document(content)
    return dict(content.attributes)


def _key(content: Content) -> str:
    if content.zarr_format == 3:
        return zarr3.KEY
    return zarr2.ARRAY if isinstance(content, ArraySpec) else zarr2.GROUP


def _put_new(driver: Driver, key: str, data: bytes) -> Tag:
    if driver.capabilities.conditional_put:
        return driver.put(key, data, if_absent=True)
    return driver.put(key, data)


def _ancestors(path: str) -> list[str]:
    parts = path.rstrip("/").split("/")[:-1] if path else None
    if parts is None:
        return []
    return ["", *("/".join(parts[: k + 1]) + "/" for k in range(len(parts)))]


def _refuse_foreign(driver: Driver, path: str) -> None:
    """Replacing deletes everything below ``path``: never what is no remainder of a node."""
    keys, folders = driver.list_dir(path)
    foreign = [name for name in (*keys, *folders) if not _REMAINDER.fullmatch(name)]
    if foreign:
        raise AlreadyExists(
            f"{located(driver, path)} is no Zarr array or group but holds {short(foreign)}, which "
            "replacing would delete; choose another place, or delete that yourself"
        )


def _exists(driver: Driver, path: str) -> AlreadyExists:
    return AlreadyExists(
        f"a Zarr array or group is at {located(driver, path)} already; open it, or replace it "
        'with overwrite=True (mode="w")'
    )
