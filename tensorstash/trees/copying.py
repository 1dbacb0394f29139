"""Copying whole trees: byte for byte, chunks before the documents that show them, the root last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from secrets import token_hex
from typing import Any

from ..driver import Driver, Request, located, pause
from ..engine.chunks import largest
from ..errors import Conflict, DriverError, Invalid, StashError
from ..memory import Budget
from ..metadata import mark, node, trailer, zarr2, zarr3
from ..metadata.belongings import PROBE, Belongings
from ..metadata.copies import dropped
from ..metadata.document import GroupDocument
from ..metadata.spec import ArraySpec, difference
from ..metadata.unfinished import Alone, Claim, Spare, claim, put_instead, remove, still_ours
from ..threads import spread
from .apart import apart_from, refuse_inside
from .documents_copied import copied
from .members import NODES, Inside, Member, Tree, chunks, look
from .patterns import Choice

_BYTES = 64 << 20  # of chunks that are read before they are stored
_AT_ONCE = 256
_TRIES = 5

Bar = Callable[[int], object]
"""Told how many bytes more are done."""


@dataclass(frozen=True)
class Place:
    """``path`` of ``driver``: empty, or ending in ``/``."""

    driver: Driver
    path: str = ""

    def __str__(self) -> str:
        return located(self.driver, self.path)


def copy_tree(
    source: Place,
    target: Place,
    *,
    budget: Budget,
    choice: Choice | None = None,
    overwrite: bool = False,
    spare: Spare = None,
    bar: Bar | None = None,
) -> Tree:
    """Copy the array, group or records at ``source``, with all below that is wanted, to
    ``target``; returns what was copied. Every document is of one moment, and none is stored before
    the chunks that it shows; chunks that others write meanwhile may be in the copy or not.
    ``spare``: as of ``claim``."""
    first = _check(source, target)
    wanted = Choice() if choice is None else choice
    if overwrite:
        node.remove_link(target.driver, target.path)
    elif node.load_any(target.driver, target.path):
        raise node.exists_already(target.driver, target.path)
    apart = apart_from(source.driver, source.path + first)

    def stays(found: Belongings) -> bool:
        return apart(found) or (spare is not None and spare(found))

    try:
        with Alone(target.driver, node.locked(target.driver, target.path)) as check:
            fresh = not overwrite
            there = overwrite and node.load_any(target.driver, target.path)
            for attempt in range(_TRIES):
                tree = _looked(source, target, wanted, there=there)
                if not attempt:
                    kind = GroupDocument(zarr_format=2 if zarr3.KEY not in tree[""].files else 3)
                    node.make_ancestors(target.driver, target.path, kind, drops=True)
                with _claimed(target, tree, check, fresh, stays) as made:
                    _copy_chunks(source, target, tree, made, budget, bar)
                    if _is_current(source, tree):
                        with dropped(target.driver, target.path):
                            _publish(made, target, tree)
                        return tree
                fresh, there = False, True
                pause(attempt)
    except BaseException:
        if not node.load_any(target.driver, target.path):
            target.driver.prune(target.path)
            if not target.path:
                target.driver.remove_root()
        raise
    raise Conflict(
        f"{source} is replaced or shrunk by others without a break; copy it when they are done: "
        f"{target} is {mark.Mark.new('copy', {}).advice}"
    )


def _check(source: Place, target: Place) -> str:
    """The name of the source's own document, if it may be copied there."""
    present = node.present(source.driver, source.path)
    if not present:
        node.require(source.driver, source.path)  # raises
        raise Conflict(f"{source} was created a moment ago; repeat the call")
    node.check_place(target.driver, target.path)
    first = present[0].rpartition("/")[2]
    refuse_inside(source.driver, present[0], target.driver, target.path)
    if source.driver is target.driver and target.path.startswith(source.path):
        raise Invalid(f"{source} cannot be copied into itself, as {target}; copy it elsewhere")
    return first


@contextmanager
def _probe(source: Place, target: Place) -> Iterator[str]:
    """A name that is at the target meanwhile, where a node explains it;
    :class:`~tensorstash.errors.Invalid` where it was seen in the source."""
    name = PROBE + token_hex(8)
    target.driver.put(target.path + name, b"")
    try:
        yield name
    except Inside:
        raise Invalid(
            f"{source} cannot be copied into itself: {target} lies in it, by this name or another; "
            "copy it elsewhere"
        ) from None
    finally:
        target.driver.delete(target.path + name)


def check_apart(source: Place, target: Place) -> None:
    """:class:`~tensorstash.errors.Invalid` where what is stored at the target is in the source."""
    with _probe(source, target) as name:
        look(source.driver, source.path, Choice(), name)


def _looked(source: Place, target: Place, choice: Choice, there: bool) -> Tree:
    """The tree; where there is something at the target, that is not in it."""
    if there:
        with _probe(source, target) as name:
            tree = look(source.driver, source.path, choice, name)
    else:
        tree = look(source.driver, source.path, choice)
    for path in tree:
        node.check_place(target.driver, target.path + path)
    return tree


@contextmanager
def _claimed(
    target: Place, tree: Tree, check: Callable[[], None], fresh: bool, spare: Spare
) -> Iterator[Claim]:
    root = tree[""]
    v3 = mark.loaded(root.files[zarr3.KEY]) if zarr3.KEY in root.files else None
    coming = {path: member.layouts for path, member in tree.items()}
    try:
        made = claim(
            target.driver,
            target.path,
            "copy",
            check,
            document=v3,
            coming=coming,
            fresh=fresh,
            spare=spare,
        )
    except Conflict:
        if fresh and node.load_any(target.driver, target.path):
            raise node.exists_already(target.driver, target.path) from None
        raise
    assert made is not None
    try:
        yield made
    except (StashError, DriverError) as error:
        error.args = (f"{error}; {target} is now {made.mark.advice}", *error.args[1:])
        raise


# -- chunks ------------------------------------------------------------------------------------


def _copy_chunks(
    source: Place, target: Place, tree: Tree, made: Claim, budget: Budget, bar: Bar | None
) -> None:
    """Copy all chunks; nothing is left at the target where that lies in the source."""
    try:
        with _probe(source, target) as name:
            _put_chunks(source, target, tree, made.check, budget, bar, name)
    except Invalid as error:
        if isinstance(error.__context__, Inside):
            known = {path: member.layouts for path, member in tree.items()}
            gone = claim(target.driver, target.path, "delete", made.check, known=known)
            assert gone is not None
            remove(gone)
        raise


def _put_chunks(
    source: Place,
    target: Place,
    tree: Tree,
    check: Callable[[], None],
    budget: Budget,
    bar: Bar | None,
    probe: str,
) -> None:
    """As many at a time as there is memory for."""
    ends = source.driver, target.driver
    local = any(end.capabilities.local or end.capabilities.one_thread for end in ends)
    each = max((bytes_of(member) for member in tree.values()), default=1)
    most = 1 if all(end.capabilities.local for end in ends) else _AT_ONCE
    most = max(1, min(_AT_ONCE, most, _BYTES // each))
    if most == 1:
        most = max(1, min(_AT_ONCE, (1 << 20) // each))

    def batches() -> Iterator[list[str]]:
        keys = chunks(source.driver, source.path, tree, probe)
        while batch := [*islice(keys, most)]:
            yield batch

    def move(batch: list[str]) -> None:
        rest = batch
        while rest:
            with budget.share("in_flight", each, len(rest), each, partial(str, target)) as units:
                part, rest = rest[:units], rest[units:]
                check()
                _put_some(source, target, part, bar)

    spread(batches(), lambda: move, 1 if local else 2, waits=True)


def _put_some(source: Place, target: Place, keys: list[str], bar: Bar | None) -> None:
    asked = [Request(source.path + key) for key in keys]

    def values() -> Iterator[tuple[str, Any]]:
        for i, value in source.driver.get_many(asked):
            if value is not None:  # else deleted since it was listed
                if bar is not None:
                    bar(len(value))
                yield target.path + keys[i], value

    if target.driver.capabilities.local:
        target.driver.put_many(values())
    else:  # which takes more before it has stored one, in a thread that the source may need
        target.driver.put_many([(key, bytes(value)) for key, value in values()])


def bytes_of(member: Member) -> int:
    """Of the largest chunk of a node, about."""
    content = member.content
    if isinstance(content, ArraySpec):
        return max(1, min(largest(content, content.grid), _BYTES))
    return 1


# -- documents ---------------------------------------------------------------------------------


def _is_current(source: Place, tree: Tree) -> bool:
    """Whether what was copied is of the documents that were read first: these are stored still,
    or others by which nothing of it has gone."""
    members = [member for member in tree.values() if member.files and not member.is_field]
    most = source.driver.metadata_limit
    asked = (
        Request(source.path + member.path + member.document, None, member.tag, most)
        for member in members
    )
    changed = [
        (members[i], found)
        for i, found in source.driver.get_many_tagged(asked)
        if found is None or found[1] != members[i].tag
    ]
    for member, found in changed:
        if found is None:
            raise Conflict(
                f"{located(source.driver, source.path + member.path)} was deleted meanwhile; look "
                "at it, and copy again",
                key=source.path + member.path,
            )
        if not _has_grown(member, bytes(found[0])):
            return False
    return True


def _has_grown(member: Member, now: bytes) -> bool:
    """Whether a document says of the same node as before that it is as long, or longer."""
    before = member.files[member.document]
    if before == now:
        return True
    document = mark.loaded(now)
    if mark.is_marked(document) or not document:
        return False
    known = member.content
    if isinstance(known, ArraySpec):
        try:
            if member.document == zarr3.KEY:
                found = zarr3.parse(now)[1]
            else:
                attributes = member.files.get(zarr2.ATTRS)
                found = zarr2.parse_array(now, attributes, allow_pickle=None)
        except StashError:
            return False
        one, other = trailer.decode(before).identity, trailer.decode(now).identity
        if not isinstance(found, ArraySpec) or (one != other and other):
            return False
        longer = all(a <= b for a, b in zip(known.shape, found.shape, strict=False))
        return difference(known, found) is None and known.ndim == found.ndim and longer
    if not isinstance(known, GroupDocument) or not mark.is_group(document):
        return member.document == zarr2.GROUP and "zarr_format" in document
    if not member.is_records:
        return not mark.is_records(document.get("attributes"))
    own = [_entry(known.attributes), _entry(document.get("attributes"))]
    same = all(own[0].get(name) == own[1].get(name) for name in ("fields", "identities"))
    rows = [each.get("rows") for each in own]
    return same and all(type(n) is int for n in rows) and rows[0] <= rows[1]  # type: ignore[operator]


def _entry(attributes: object) -> Mapping[str, Any]:
    found = attributes.get("tensorstash") if isinstance(attributes, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _publish(made: Claim, target: Place, tree: Tree) -> None:
    """Store the documents, those below before those above; the root's in place of the mark."""
    documents = copied(tree, in_place=target.driver.capabilities.in_place)
    below = [*reversed([path for path in tree if path])]
    for first in (True, False):  # what explains others of Zarr v2 is there before these
        items = [
            (target.path + path + name, data)
            for path in below
            for name, data in documents[path].items()
            if (name in NODES) is first
        ]
        for k in range(0, len(items), _AT_ONCE):
            made.check()
            target.driver.put_many(items[k : k + _AT_ONCE])
    root = documents[""]
    still_ours(made)
    if zarr3.KEY in root:
        made.check()
        _, tag = still_ours(made)
        target.driver.replace(made.key, root[zarr3.KEY], tag)
        return
    for name, data in root.items():
        put_instead(made, target.path + name, data)
    remove(made)
