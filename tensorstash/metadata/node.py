"""Metadata documents of arrays and groups, to and from a driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from operator import lt
from typing import Any, NamedTuple

from ..driver import Buffer, Check, Driver, Request, Span, Tag, get_at_most, held, located, pause
from ..errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    DriverError,
    Invalid,
    NoMemory,
    NotFound,
    StashError,
    TimedOut,
    Unavailable,
    Unsupported,
    counted,
    short,
)
from . import trailer, zarr2, zarr3
from .belongings import look, nothing_there
from .copies import drop, dropped
from .document import GroupDocument
from .mark import Layout, Marked, is_records
from .spec import ANOTHER, ArraySpec, difference, is_another
from .trailer import Trailer
from .unfinished import Alone, Claim, Spare, claim, finish, put_instead, remove, still_ours

Content = ArraySpec | GroupDocument

_TRIES = 200


class Node(NamedTuple):
    """What is stored at a path, the tag of the document that says so, and what a holder of its
    lock wrote behind it."""

    content: Content
    tag: Tag
    trailer: Trailer = trailer.NONE


def load(driver: Driver, path: str, *, allow_pickle: bool | None = False) -> Node | None:
    """The array or group at ``path`` (empty or ending in ``/``), Zarr v3 before v2; ``None``
    when there is neither. ``allow_pickle``: whether its chunks may be pickles, which run code
    when decoded; ``None``: its metadata may say so, and no chunk of it can be decoded."""
    return _parse(driver, path, _document(driver, path + zarr3.KEY), allow_pickle)


def load_each(
    driver: Driver, paths: Sequence[str], *, allow_pickle: bool | None = False
) -> Iterator[tuple[str, Node | StashError]]:
    """``(path, node)`` for those of ``paths`` that hold one, in their order; the error instead of
    the node where it cannot be read, which hides none of the others. All are asked for at once,
    and again one by one where that fails. A backend that cannot be reached for two in a row is
    down, and that is raised."""
    documents: dict[int, tuple[Buffer, Tag] | None] = {}
    wanted = [Request(path + zarr3.KEY, most=driver.metadata_limit) for path in paths]
    with suppress(DriverError, Corrupt, Invalid):  # of one of them: below, when its turn comes
        for i, found in driver.get_many_tagged(wanted):
            documents[i] = found
    down = 0
    for i, path in enumerate(paths):
        try:
            found = documents[i] if i in documents else _document(driver, path + zarr3.KEY)
            node = _parse(driver, path, found, allow_pickle)
        except (DriverError, Corrupt, Invalid, Unsupported) as error:
            down = down + 1 if isinstance(error, TimedOut | Unavailable) else 0
            if down == 2:
                raise
            yield path, error
        else:
            down = 0
            if node is not None:
                yield path, node


def _parse(
    driver: Driver, path: str, found: tuple[Buffer, Tag] | None, allow_pickle: bool | None
) -> Node | None:
    """The node whose ``zarr.json`` is ``found``; where there is none, what v2's documents say."""
    try:
        if found is not None:
            return _node(zarr3.parse(found[0])[1], found)
        found = _document(driver, path + zarr2.ARRAY)
        if found is not None:
            attributes = _bytes(_document(driver, path + zarr2.ATTRS))
            spec = zarr2.parse_array(found[0], attributes, allow_pickle=allow_pickle)
            return _node(spec, found)
        found = _document(driver, path + zarr2.GROUP)
        if found is not None:
            attributes = _bytes(_document(driver, path + zarr2.ATTRS))
            members = _bytes(_document(driver, path + zarr2.CONSOLIDATED))
            return Node(zarr2.parse_group(found[0], attributes, members), found[1])
    except (Invalid, Unsupported) as error:
        raise type(error)(f"in {located(driver, path)}: {error}") from error
    except NoMemory:
        raise
    except MemoryError as error:
        raise NoMemory(
            f"no memory for the metadata in {located(driver, path)}; open it where there is more"
        ) from error
    except Corrupt as error:
        key = error.key if error.key.startswith(path) else path + error.key
        raise Corrupt(f"in {located(driver, path)}: {error}", key=key) from error
    return None


def _node(content: Content, found: tuple[Buffer, Tag]) -> Node:
    """A node with what stands behind its document."""
    behind = trailer.decode(found[0])
    if isinstance(content, ArraySpec):
        content = replace(
            content, reach=behind.reach, identity=behind.identity, of_records=behind.field
        )
    return Node(content, found[1], behind)


def _document(driver: Driver, key: str) -> tuple[Buffer, Tag] | None:
    """A document and its tag, when it is not larger than any is."""
    try:
        return get_at_most(driver, key, driver.metadata_limit)
    except Corrupt as error:
        raise _too_large(driver, key) from error


def _too_large(driver: Driver, key: str) -> Corrupt:
    most = driver.metadata_limit
    return Corrupt(
        f"the document at key {key!r} has more than {counted(most, 'byte')}; restore it, or "
        f"open it with "
        f'limits={{"metadata": ...}} if it is as it should be',
        key=key,
    )


def _bytes(found: tuple[Buffer, Tag] | None) -> Buffer | None:
    return None if found is None else found[0]


def require(driver: Driver, path: str, *, allow_pickle: bool | None = False) -> Node:
    """:func:`load`, or :class:`~tensorstash.errors.NotFound`."""
    node = load(driver, path, allow_pickle=allow_pickle)
    if node is None:
        raise nothing_there(driver, path)
    return node


def require_array(
    driver: Driver, path: str, allow_pickle: bool, identity: bytes | None = None
) -> Node:
    """As :func:`require`; ``Invalid`` where a group is there, or an array whose codec and dtype the
    registry does not allow together; ``Conflict`` where it is another than ``identity`` says."""
    node = require(driver, path, allow_pickle=allow_pickle)
    if isinstance(node.content, ArraySpec):
        if is_another(identity, node.content.identity):
            raise _changed(driver, path, ANOTHER)
        node.content.check_pair()
        return node
    call = "open_records" if is_records(node.content.attributes) else "open_group"
    raise Invalid(f"{located(driver, path)} is a group; open it with {call}()")


def reread(
    driver: Driver, path: str, known: Content, found: tuple[Buffer, Tag] | None = None
) -> Node:
    """What is stored at ``path`` now, for a handle that knows it as ``known``: an array with the
    codecs that the handle has, which are what the stored ones say, so that what it may not run
    stays so. :class:`~tensorstash.errors.Conflict` where it is something else by now: another
    kind, another dtype, stored in another way, or created anew. ``found``: its document, where it
    was read a moment ago."""
    try:
        if found is None or known.zarr_format != 3:
            node = require(driver, path, allow_pickle=None)
        else:
            parsed = _parse(driver, path, found, None)
            assert parsed is not None
            node = parsed
    except (Invalid, Unsupported) as error:
        raise _changed(driver, path, f"it can be read no longer ({error})") from error
    except Corrupt as error:
        if not isinstance(error.__cause__, Marked):
            raise
        raise _changed(driver, path, str(error.__cause__)) from error
    now = node.content
    if isinstance(known, ArraySpec):
        if not isinstance(now, ArraySpec):
            raise _changed(driver, path, "the array is now a group")
        what = difference(known, now)
        if what is not None:
            raise _changed(driver, path, what)
        return node._replace(content=replace(now, codecs=known.codecs))
    if isinstance(now, ArraySpec):
        raise _changed(driver, path, "the group is now an array")
    if now.zarr_format != known.zarr_format:
        versions = f"Zarr v{known.zarr_format} is now v{now.zarr_format}"
        raise _changed(driver, path, versions)
    return node


def reread_copied(
    driver: Driver, path: str, known: ArraySpec, found: tuple[Buffer, Tag] | None = None
) -> Node:
    """As :func:`reread`, of an array that is ``known`` from the consolidated metadata of a group
    above. It must not be shorter: what is absent then would read as fill."""
    try:
        node = reread(driver, path, known, found)
        shape = node.content.shape if isinstance(node.content, ArraySpec) else ()
        if any(map(lt, shape, known.shape)):
            raise Conflict(f"its shape is {shape} by now, not {known.shape}")
    except (Conflict, NotFound) as error:
        raise type(error)(
            f"{located(driver, path)} is not what the consolidated metadata of a group above says; "
            'open the group with mode="r+", which looks past that, and consolidate() it again: '
            f"{error}"
        ) from error
    return node


def _changed(driver: Driver, path: str, what: str) -> Conflict:
    return Conflict(
        f"{located(driver, path)} was replaced since this handle was opened: {what}; open it again",
        key=path,
    )


def create(driver: Driver, path: str, content: Content, *, overwrite: bool = False) -> Tag:
    """Store a new node, with a group for every ancestor that has none (Zarr v3 core: there are
    no implicit groups). Of several creators one wins; the others get
    :class:`~tensorstash.errors.AlreadyExists`, or with ``overwrite`` replace what it has stored:
    the node there and what belongs to it goes first, in any case whole.
    :class:`~tensorstash.errors.AlreadyExists` too where something else is stored there."""
    document, attributes = _documents(content)
    data = zarr3.encode(document) + _behind(content)
    check_place(driver, path)
    if overwrite:
        remove_link(driver, path)  # what it leads to is not replaced, and not looked at
    exists = load_any(driver, path)
    if exists and not overwrite:
        raise exists_already(driver, path)
    if not exists:
        if overwrite:
            look(driver, path)
        try:
            with dropped(driver, path, content.zarr_format, own=_may_have_copy(content)):
                make_ancestors(driver, path, content)
                tag = driver.replace(path + _key(content), data, None)
                if attributes is not None:  # by the one who won
                    driver.put(path + zarr2.ATTRS, zarr3.encode(attributes))
        except Conflict:
            if not overwrite:
                raise exists_already(driver, path) from None
        else:
            return tag
    with (
        _making(driver, path, content, "replace", fresh=False) as made,
        dropped(driver, path, content.zarr_format),
    ):
        return _finish(made, content)


@contextmanager
def making(
    driver: Driver,
    path: str,
    content: Content,
    what: str,
    *,
    overwrite: bool = False,
    spare: Spare = None,
) -> Iterator[Check]:
    """Create a node that is whole, and can be opened, when the block ends; before, and where it
    does not end well, it is marked as unfinished by ``what`` (``"copy"``). What is yielded is to be
    called before each step; it raises where another took its place. ``spare``: as of ``claim``."""
    check_place(driver, path)
    if overwrite:
        remove_link(driver, path)
    elif load_any(driver, path):
        raise exists_already(driver, path)
    try:
        with _making(driver, path, content, what, fresh=not overwrite, spare=spare) as made:
            try:
                yield made.check
                made.check()
            except StashError as error:
                _tell(error, made)
                raise
            try:
                with dropped(driver, path, content.zarr_format):
                    _finish(made, content)
            except DriverError as error:
                _tell(error, made)
                raise
    except _Taken:
        raise exists_already(driver, path) from None


def delete(
    driver: Driver, path: str, known: Mapping[str, ArraySpec] | None = None, spare: Spare = None
) -> None:
    """Remove a node and what belongs to it; of a link to a node, the link.
    :class:`~tensorstash.errors.AlreadyExists` where something else is stored there, which stays, as
    does all the rest. ``known``: arrays there by their path from ``path``, whose documents may be
    missing. ``spare``: whether what is there shall stay. What a kill leaves is marked: no array
    that reads as fill, and deleted by the next that is asked to."""
    if remove_link(driver, path) or (not path and driver.remove_link("")):
        return
    below = layouts(known or {})
    if not present(driver, path) and not look(driver, path, below).chunks:
        return
    with Alone(driver, locked(driver, path)) as check:
        made = claim(driver, path, "delete", check, known=below, spare=spare)
        if made is None:
            return
        remove(made)
    driver.prune(path)  # the lock is no more


def layouts(arrays: Mapping[str, Content]) -> dict[str, tuple[Layout, ...]]:
    """How the chunks of arrays are named, by path from where they are deleted or made."""
    return {
        path and path.rstrip("/") + "/": (Layout.of(spec),)
        for path, spec in arrays.items()
        if isinstance(spec, ArraySpec)
    }


def mark(driver: Driver, path: str, what: str, coming: Mapping[str, ArraySpec]) -> None:
    """Mark the place of a node whose arrays ``coming`` are stored before their documents, with
    groups above it. Nothing is stored there."""
    check_place(driver, path)
    make_ancestors(driver, path, GroupDocument(), drops=True)
    claim(driver, path, what, held, coming=layouts(coming), fresh=True)


def check_place(driver: Driver, path: str) -> None:
    """:class:`~tensorstash.errors.Invalid` where a node at ``path`` would never be listed, for the
    driver takes its name for one of its own."""
    kept = driver.kept(path.rstrip("/"))
    if kept is not None:
        raise Invalid(
            f"{located(driver, path)} cannot be created: {driver.scheme}:// keeps names such as "
            f"{short(kept)} for itself, and would not list it; choose another name"
        )


def update(
    driver: Driver,
    path: str,
    change: Callable[[Any], Content],
    *,
    like: Content,
    known: Node | None = None,
    drops: bool = True,
    text: Callable[[Content], bytes | None] | None = None,
) -> Node:
    """Replace a node's document by ``change`` of it, in one step against every other writer:
    ``change`` is called again on what another writer stored first, as long as that is still
    ``like`` what the caller's handle knows (see :func:`reread`). ``known``: the node as it was
    read a moment ago, which saves a read. ``drops``: copies of it go before, in consolidated
    metadata of the groups above. ``text``: see :func:`put`."""
    for attempt in range(_TRIES):
        node, known = known or reread(driver, path, like), None
        content = change(node.content)
        try:
            if not drops:
                return put(driver, path, node, content, node.trailer, text)
            with dropped(driver, path, content.zarr_format):
                return put(driver, path, node, content, node.trailer, text)
        except Conflict:
            pause(attempt)
    key = lock_key(path, content)
    raise Conflict(f"the metadata at key {key!r} is changed by others without a break", key=key)


def put(
    driver: Driver,
    path: str,
    node: Node,
    content: Content,
    behind: Trailer,
    text: Callable[[Content], bytes | None] | None = None,
) -> Node:
    """Store ``content`` in place of ``node``, and ``behind`` it a trailer; once:
    :class:`~tensorstash.errors.Conflict` where something else is stored by now. ``text``: what
    returns its document as text, where the caller has that (``None``: it has not)."""
    data = None if text is None else text(content)
    if data is None:
        data = zarr3.encode(_documents(content)[0])
    data += trailer.encode(behind)
    return Node(content, driver.replace(path + _key(content), data, node.tag), behind)


def update_attributes(
    driver: Driver,
    path: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    like: Content | None = None,
) -> None:
    """Replace a node's attributes by ``change`` of them, in one step. ``like``: what the caller's
    handle knows of the node, which must not have become another (see :func:`reread`). No chunk
    is decoded, so that one of pickles needs no permission."""
    node = require(driver, path, allow_pickle=None) if like is None else reread(driver, path, like)
    like = node.content if like is None else like
    if node.content.zarr_format == 3:
        update(
            driver,
            path,
            lambda content: replace(content, attributes=change(dict(content.attributes))),
            like=like,
            known=node,
        )
        return
    key = path + zarr2.ATTRS
    for attempt in range(_TRIES):
        found = _document(driver, key)
        content = reread(driver, path, like).content
        content = replace(content, attributes=change(dict(content.attributes)))
        data = zarr3.encode(_attributes(content))
        try:
            with dropped(driver, path, 2, own=_may_have_copy(content)):
                driver.replace(key, data, found and found[1])
            return
        except Conflict:
            pause(attempt)
    raise Conflict(f"the attributes at key {key!r} are changed by others without a break", key=key)


def load_any(driver: Driver, path: str) -> bool:
    """Whether a node's document is stored at ``path``, readable or not."""
    return bool(present(driver, path))


def is_current(driver: Driver, path: str, node: Node) -> bool:
    """Whether ``node``, which this process stored, is what is stored still: one request that moves
    no bytes, where that is no round trip. Only of what was stored here: the tag of what others
    store in place, twice within one tick of the clock, may stay the same."""
    if node.content.zarr_format != 3 or not remembers(driver, node.tag):
        return False
    return bool(driver.tag(path + zarr3.KEY) == node.tag)


def remembers(driver: Driver, tag: Tag) -> bool:
    """Whether who stored something under ``tag`` may go by it, once the tag says that it is there
    still: where that is told without a round trip, and nobody else's can be taken for it."""
    able = driver.capabilities
    near = able.local and able.conditional_put and not able.leases and not able.content_tags
    return near and driver.is_lasting(tag)


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


def _behind(content: Content) -> bytes:
    """What stands behind the document of a new node."""
    identity = content.identity if isinstance(content, ArraySpec) else None
    return trailer.encode(Trailer(identity=identity or b""))


def _attributes(content: Content) -> dict[str, Any]:
    if isinstance(content, ArraySpec):
        return zarr2.attributes_document(content)
    return dict(content.attributes)


def _key(content: Content) -> str:
    if content.zarr_format == 3:
        return zarr3.KEY
    return zarr2.ARRAY if isinstance(content, ArraySpec) else zarr2.GROUP


def _ancestors(path: str) -> list[str]:
    parts = path.rstrip("/").split("/")[:-1] if path else None
    if parts is None:
        return []
    return ["", *("/".join(parts[: k + 1]) + "/" for k in range(len(parts)))]


def make_ancestors(driver: Driver, path: str, content: Content, drops: bool = False) -> None:
    """``drops``: copies of what is stored above go before, where something is to be made."""
    for ancestor in _ancestors(path):
        group = GroupDocument(zarr_format=content.zarr_format)
        key = ancestor + (zarr3.KEY if content.zarr_format == 3 else zarr2.GROUP)
        if driver.tag(key) is None:
            if drops:
                drop(driver, path, content.zarr_format)
            with suppress(Conflict):  # another creator was first: the group is there
                driver.replace(key, zarr3.encode(_documents(group)[0]), None)


def _may_have_copy(content: Content) -> bool:
    """Whether a ``.zmetadata`` may repeat a node's documents."""
    return content.zarr_format == 2 and isinstance(content, GroupDocument)


def present(driver: Driver, path: str) -> list[str]:
    """Which documents of a node are stored at ``path``."""
    keys = [path + name for name in (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP)]
    found = driver.get_many_tagged([Request(key, Span(0, 1)) for key in keys])
    answers = dict(found)  # all of them: to leave early would cancel what is on its way
    return [key for i, key in enumerate(keys) if answers[i] is not None]


def remove_link(driver: Driver, path: str) -> bool:
    """Remove the link that stands for the node, if it is one."""
    if driver.linked(path) is not None:
        drop(driver, path)
    return bool(path) and driver.remove_link(path)  # the root is where its user wants it


def locked(driver: Driver, path: str) -> list[str]:
    """The keys to lock for replacing what is at ``path``: of everyone who does, the first; the
    others are those of who appends to it."""
    return list(dict.fromkeys([path + zarr3.KEY, *present(driver, path)]))


class _Taken(Exception):
    """A node is there already."""


@contextmanager
def _making(
    driver: Driver, path: str, content: Content, what: str, *, fresh: bool, spare: Spare = None
) -> Iterator[Claim]:
    v3 = _documents(content)[0] if content.zarr_format == 3 else None
    coming = layouts({"": content} if isinstance(content, ArraySpec) else {})
    with Alone(driver, locked(driver, path)) as check:
        make_ancestors(driver, path, content, drops=True)
        if fresh and load_any(driver, path):
            raise _Taken
        try:
            made = claim(
                driver, path, what, check, document=v3, coming=coming, fresh=fresh, spare=spare
            )
        except Conflict:
            if fresh:
                raise _Taken from None
            raise
        assert made is not None
        yield made


def _tell(error: StashError, made: Claim) -> None:
    """Have an error say how to go on."""
    where = located(made.driver, made.path)
    error.args = (f"{error}; {where} is now {made.mark.advice}", *error.args[1:])


def _finish(made: Claim, content: Content) -> Tag:
    """Have the node whole: of Zarr v2, whose documents bear no mark, these come last, and what
    marks it goes."""
    if content.zarr_format == 3:
        return finish(made, _behind(content))
    document, attributes = _documents(content)
    if attributes is None and made.driver.capabilities.leases:
        attributes = {}  # where there are none, an older holder's could yet be stored
    still_ours(made)
    if attributes is not None:
        put_instead(made, made.path + zarr2.ATTRS, zarr3.encode(attributes))
    data = zarr3.encode(document) + _behind(content)
    tag = put_instead(made, made.path + _key(content), data)
    remove(made)
    return tag


def exists_already(driver: Driver, path: str) -> AlreadyExists:
    """The error for who would create there."""
    return AlreadyExists(
        f"a Zarr array or group is at {located(driver, path)} already; open it, or replace it "
        'with overwrite=True (mode="w")'
    )
