"""Changes that all fields of records see at once: rows added, fields added, dropped, renamed.

One document, the group's, says how many rows there are and what every field is; one conditional
put of it publishes a change. Rows are stored beyond the edge of every field before, where no
reader looks, so that no reader sees a row of which a field is missing, and a change that fails
or is killed leaves the records as they were. The fields' own documents, for those who open one
field alone, follow after: what they show is never ahead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..array import Array
from ..driver import Check, Driver, Put, Request, Tag, held, located
from ..engine.fence import Fence, until_alone
from ..engine.look import Found, Look
from ..engine.resize import write_beyond
from ..errors import Conflict, Invalid, NotFound, StashError, Unsupported
from ..handle import Settings
from ..metadata import trailer, zarr3
from ..metadata.document import GroupDocument, decode, template
from ..metadata.mark import is_marked
from ..metadata.node import Node, is_current, remembers, require, reread, update
from ..metadata.spec import ArraySpec, difference
from ..threads import spread
from .catalog import (
    VALUES,
    Catalog,
    arrays_of,
    changed_fields,
    from_document,
    is_same_array,
    member_documents,
    to_document,
    value_counts,
    with_row_sizes,
    with_rows,
    with_value_counts,
)
from .column import Column, FieldArray
from .schema import Fields

_logger = logging.getLogger("tensorstash")

_GROUP = GroupDocument()
"""What the handle of records knows of the node: that it is a group of Zarr v3."""


def load(driver: Driver, path: str, known: Catalog | None = None, found: Found = None) -> Catalog:
    """The records at ``path``: one small read. ``known``: those of a handle, in whose place
    nothing else may have been put. ``found``: the document, where it was read a moment ago."""
    where = located(driver, path)
    if known is not None:
        return _of(reread(driver, path, _GROUP, found), where)
    node = require(driver, path)
    if not isinstance(node.content, GroupDocument):
        raise Invalid(f"{where} is an array; open it with open()")
    return replace(from_document(node.content, where), tag=node.tag)


def _of(node: Node, where: str) -> Catalog:
    """The records of a document that was read again."""
    return replace(_catalog(node.content, where), tag=node.tag)


def _catalog(content: Any, where: str) -> Catalog:
    """The records of a group's document that was read again, for a handle that had read them."""
    try:
        return from_document(content, where)
    except (Invalid, Unsupported) as error:
        raise Conflict(
            f"{where} was replaced since this handle was opened: it can be read no longer "
            f"({error}); open it again"
        ) from error


def extend(
    latest: LatestCatalog, settings: Settings, known: Catalog, columns: Mapping[str, Column],
    values: Mapping[str, Any], count: int,
) -> tuple[Catalog, int]:  # fmt: skip
    """Add ``count`` rows of checked ``values``; returns the records as they then are, and where
    the rows begin. Writers take turns by the driver's lock. ``known``: what the caller's handle
    goes by; where nobody else has changed the document since that was stored, it is not read and
    compared again."""
    driver, path = latest.driver, latest.path
    rows: dict[str, Any] = {}

    def as_known() -> tuple[dict[str, Any], dict[str, ArraySpec]]:
        specs = {
            a: array.spec
            for name, c in columns.items()
            for a, array in zip(arrays_of(name, c.field), c.arrays, strict=True)
        }
        return {name: column.field for name, column in columns.items()}, specs

    def reserve(name: str) -> None:
        try:
            rows[name] = columns[name].reserve(values[name])
        except NotFound:
            restore_members(driver, path, *as_known())
            rows[name] = columns[name].reserve(values[name])

    for_each_field(driver, list(columns), reserve)

    def add(before: Catalog, check: Check) -> Catalog:
        same = before is known
        if not same:
            _check_same_fields(before, *as_known(), located(driver, path))

        def store(name: str) -> None:
            inner = arrays_of(name, before.fields[name])[-1]
            spec = before.specs[inner]
            array = columns[name].arrays[-1]
            one = same and count == 1 and isinstance(array, FieldArray)
            if one and array.put_beyond(before.rows, rows[name][0], check):  # type: ignore[attr-defined]
                return
            if not same:
                array = member_array(driver, path, inner, settings, spec)
            write_beyond(spec, rows[name], 0, array.make_writer, check)

        for_each_field(driver, list(rows), store)
        after = with_rows(before, before.rows + count)
        if "ragged" not in before.kinds:
            return after
        ends = {name: int(rows[name][:, 1].max(initial=0)) for name in value_counts(before)}
        return with_row_sizes(with_value_counts(after, ends), before.rows, ends)

    after = change_fields(driver, path, add, settings.lock_timeout, latest)
    return after, after.rows - count


def for_each_field(driver: Driver, names: list[str], work: Callable[[str], None]) -> None:
    """Do something with every field: in a remote store, with all at once."""
    capabilities = driver.capabilities
    threads = 1 if capabilities.local else min(len(names), capabilities.concurrency)
    spread(names, lambda: work, threads, waits=True)


def restore_members(
    driver: Driver, path: str, fields: Mapping[str, Any], specs: Mapping[str, ArraySpec]
) -> None:
    """Have the documents of single fields that are missing: their creator was killed halfway."""
    write_members(driver, path, load_unchanged(driver, path, fields, specs), shapes=False)


def load_unchanged(
    driver: Driver, path: str, fields: Mapping[str, Any], specs: Mapping[str, ArraySpec]
) -> Catalog:
    """The records as they are now, when their fields are those that a handle knows."""
    node = reread(driver, path, _GROUP)
    catalog = _of(node, located(driver, path))
    _check_same_fields(catalog, fields, specs, located(driver, path))
    return catalog


def _check_same_fields(
    catalog: Catalog, fields: Mapping[str, Any], specs: Mapping[str, ArraySpec], where: str
) -> None:
    """Refuse rows for records that have other fields by now, or store them in another way."""
    changed = catalog.fields != fields
    what = ""
    for name, spec in specs.items() if not changed else ():
        found = difference(spec, catalog.specs[name])
        if found is not None:
            changed, what = True, f" ({name!r}: {found})"
    if changed:
        raise Conflict(
            f"the fields of {where} changed since they were opened{what}; refresh() and repeat "
            "the call"
        )


def change_fields(
    driver: Driver,
    path: str,
    make: Callable[[Catalog, Check], Catalog],
    lock_timeout: float | None,
    grows: LatestCatalog | None = None,
) -> Catalog:
    """Replace the records' document by what ``make`` returns, while no other writer changes rows
    or fields; then bring the fields' own documents after it. ``grows``: ``make`` does nothing but
    add rows, and what is stored is kept there, for the next time."""
    with driver.lock(path + zarr3.KEY, lock_timeout) as check:
        return until_alone(check, lambda: _change(driver, path, make, check, grows))


def _change(
    driver: Driver,
    path: str,
    make: Callable[[Catalog, Check], Catalog],
    check: Check,
    grows: LatestCatalog | None,
) -> Catalog:
    last = None if grows is None else grows.last
    if last is not None and is_current(driver, path, last.node):
        node, before = last.node, last.catalog
    else:
        node, last = reread(driver, path, _GROUP), None
        before = _catalog(node.content, located(driver, path))
    fence = Fence(driver, path, node, check, eager=False)
    published = before
    after = make(before, fence)
    fence()

    def publish(content: Any) -> GroupDocument:
        nonlocal published, last
        if content is not node.content:
            last = None  # others have changed the rest of the document since
        if last is not None and last.even:
            published = after
            assert isinstance(node.content, GroupDocument)
            return node.content  # in place of what ``text`` tells, which nobody reads here
        where = located(driver, path)
        now = before if content is node.content else _catalog(content, where)
        if now.rows != before.rows or now.fields != before.fields:
            raise Conflict(
                f"{where} was changed while its lock was held: another program does not use "
                "the lock; repeat the call",
                key=path + zarr3.KEY,
            )
        merged = replace(after, attributes=now.attributes, document=now.document)
        there = {path: n for path, n in value_counts(now).items() if path in merged.fields}
        published = with_value_counts(merged, there)
        return to_document(published)

    def text(content: Any) -> bytes | None:
        if last is None or not last.even or content is not node.content:
            return None
        return last.text(after.rows)

    stored = fence.publish(publish, text)
    published = replace(published, tag=stored.tag)
    if grows is not None and remembers(driver, stored.tag):
        grows.last = last = Last(stored, published, last)
    try:
        write_members(driver, path, published, check=check, last=last)
    except StashError as error:
        # What was asked for has happened; the next change puts this right.
        _logger.warning("the documents of single fields lag behind: %s", error)
    return published


def publish_value_counts(driver: Driver, path: str, lengths: Mapping[str, int]) -> Catalog:
    """Have the records' document know ragged values up to these lengths: writing a longer row has
    added some. Readers of ours look for themselves; others go by this document."""
    where = located(driver, path)
    widened: list[Catalog] = []

    def publish(content: Any) -> GroupDocument:
        widened.append(with_value_counts(_catalog(content, where), lengths))
        return to_document(widened[-1])

    tag = update(driver, path, publish, like=_GROUP).tag
    return replace(widened[-1], tag=tag)


class Member(NamedTuple):
    """A field's own document as it was stored last, with which ``tag``, and as a text in which the
    number of rows is to be filled in, ``behind`` which stands the trailer."""

    tag: Tag
    document: Mapping[str, Any]
    behind: bytes
    text: Callable[[int], bytes] | None = None

    def grown(self, rows: int) -> Member:
        """The same with a text."""
        rest = self.document["shape"][1:]
        text = template(lambda n: {**self.document, "shape": [n, *rest]}, rows)
        return self._replace(text=text)


class Last:
    """What an append stored last: the records' document and those of the fields. For the next one
    through the same handle, which need not read and spell them out again where they are still
    there, by their tags. ``even``: nothing but the number of rows changes in them."""

    def __init__(self, node: Node, catalog: Catalog, before: Last | None) -> None:
        """``before``: that of the append before, where nobody changed the records in between."""
        self.node = node
        self.catalog = catalog
        self.even = "ragged" not in catalog.kinds
        self.members: dict[str, Member] = {} if before is None else before.members
        self._text: Callable[[int], bytes] | None = None
        if before is not None:
            self._text = before._text

    def text(self, rows: int) -> bytes:
        """The records' document with so many rows."""
        if self._text is None:
            known = self.catalog
            self._text = template(lambda n: _group_document(with_rows(known, n)), rows)
        return self._text(rows)

    def grow_members(self, driver: Driver, path: str, rows: int) -> None:
        """Store the documents of fields with so many rows; those that others changed since, and
        that are to be read first, are forgotten."""
        for name, member in [*self.members.items()]:
            known = member if member.text is not None else member.grown(rows)
            assert known.text is not None
            try:
                tag = driver.put(
                    f"{path}{name}/{zarr3.KEY}", known.text(rows) + known.behind, if_tag=known.tag
                )
                self.members[name] = known._replace(tag=tag)
            except Conflict:
                del self.members[name]


def _group_document(catalog: Catalog) -> Mapping[str, Any]:
    return zarr3.group_document(to_document(catalog))


def write_members(
    driver: Driver,
    path: str,
    catalog: Catalog,
    shapes: bool = True,
    check: Check = held,
    last: Last | None = None,
) -> None:
    """Bring the fields' own documents, and those of the groups between, to what the records'
    document says, in ``shapes`` too for the holder of its lock. What others changed in them
    stays, and values only become more: some may be there of rows yet to be added. ``last``: what
    is known of them, and kept."""
    kept = {} if last is None or not last.even else last.members
    if last is not None and kept:
        last.grow_members(driver, path, catalog.rows)
        if kept.keys() >= catalog.specs.keys() and not any("/" in name for name in kept):
            return
    wanted = {n: each for n, each in member_documents(catalog).items() if n not in kept}
    growing = {f"{name}/{VALUES}" for name in value_counts(catalog)}
    names = list(wanted)
    keys = [f"{path}{name}/{zarr3.KEY}" for name in names]
    most = driver.metadata_limit
    found = dict(driver.get_many_tagged(Request(key, most=most) for key in keys))
    check()  # what was read is no newer holder's

    sent: list[tuple[str, Mapping[str, Any], bytes]] = []

    def puts() -> Iterator[Put]:
        for i, name in enumerate(names):
            stored = found[i]
            own = None if stored is None else decode(stored[0], keys[i])
            document = _member_document(
                own, wanted[name], catalog.specs.get(name), name in growing, shapes
            )
            behind = trailer.NONE if stored is None else trailer.decode(stored[0])
            identity = getattr(catalog.specs.get(name), "identity", None) or b""
            if behind.identity not in (b"", identity):  # left over from a field that was dropped
                document = wanted[name]
            if document is None:
                continue
            if document is wanted[name]:
                behind = replace(behind, identity=identity, field=True)
            # What was behind it stays: the array may have a holder of its own.
            sent.append((name, document, trailer.encode(behind)))
            data = zarr3.encode(document) + sent[-1][2]
            yield driver.replacing(keys[i], data, None if stored is None else stored[1])

    for i, tag in driver.put_each(puts()):
        name, document, tail = sent[i]
        if tag is not None and "shape" in document and remembers(driver, tag):
            kept[name] = Member(tag, document, tail)


_LAYOUT = ("node_type", "data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value")


def _member_document(
    own: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
    spec: ArraySpec | None,
    grows: bool,
    shapes: bool,
) -> Mapping[str, Any] | None:
    """What shall be stored in place of a member's ``own`` document; ``None``: nothing."""
    if own is None or is_marked(own) or not isinstance(own.get("shape", []), list):
        return wanted
    if spec is None and own.get("consolidated_metadata") is not None:  # of what has changed
        return {key: value for key, value in own.items() if key != "consolidated_metadata"}
    if not all(own.get(key) == wanted.get(key) for key in _LAYOUT) and not _is_array(own, spec):
        return wanted  # left over from something else that was deleted halfway
    shape = wanted.get("shape")
    if shape is not None and "shape" not in own:
        return {**own, "shape": shape}  # others have taken it out
    if shape is None or not shapes or own["shape"] == shape:
        return None
    return None if grows and own["shape"] > shape else {**own, "shape": shape}


def _is_array(document: Mapping[str, Any], spec: ArraySpec | None) -> bool:
    """Whether a document that others wrote describes the same array in other words."""
    try:
        _, found = zarr3.parse_document(document)
    except StashError:
        return False
    if spec is None or not isinstance(found, ArraySpec):
        return spec is None and isinstance(found, GroupDocument)
    return is_same_array(found, spec)


def member_array(
    driver: Driver, path: str, name: str, settings: Settings, spec: ArraySpec
) -> Array:
    """A handle on one array of the records."""
    return Array(driver, f"{path}{name}/", settings, spec)


# -- the document as last seen -------------------------------------------------------------------


class LatestCatalog:
    """The records' document as it was last seen: what their table and the handles on single fields
    share. It knows neither, so that a handle that is let go of is gone at once.

    ``now``: the document, as who looked last has seen it; which need not be what is gone by.
    ``last``: what the last append through this handle stored."""

    def __init__(self, driver: Driver, path: str, now: Catalog) -> None:
        self.driver = driver
        self.path = path
        self.now = now
        self.last: Last | None = None
        self._changes: tuple[Catalog, Catalog, dict[str, str | None]] | None = None
        self._document: tuple[Catalog, tuple[bytes, int, int, int] | None] | None = None

    def current(self) -> Catalog:
        """The document as it is now. One request that moves no bytes, while it is the one that was
        last seen."""
        now = self.now
        if now.tag is None or self.driver.tag(self.path + zarr3.KEY) != now.tag:
            now = self.now = load(self.driver, self.path, now)
        return now

    def document(self, known: Catalog) -> tuple[bytes, int, int, int] | None:
        """The path and tag of the document, while the one last seen is ``known``, for who compares
        it without asking the driver; ``None`` where that cannot be."""
        kept = self._document
        if self.now is not known:
            return None
        if kept is None or kept[0] is not known:
            folder, look = self.driver.local_path(self.path), None
            if folder is not None and self.driver.capabilities.in_place and known.tag is not None:
                look = (os.fsencode(folder + zarr3.KEY), *known.tag)  # type: ignore[misc]
            kept = self._document = known, look
        return kept[1]

    def look(self, verify: Callable[[Catalog], None]) -> Look:
        """The same, to be asked for together with what a call reads; another document than the one
        last seen is given to ``verify``."""
        known = self.now

        def changed(found: Found) -> None:
            self.now = now = load(self.driver, self.path, known, found)
            verify(now)

        return Look(self.driver, self.path + zarr3.KEY, known.tag, changed)

    def check(self, known: Catalog, names: Iterable[str]) -> None:
        """Raise where some of the fields that are ``known`` are others now, or no more."""
        self._compare(known, self.current(), names)

    def look_for_fields(self, known: Catalog, names: Iterable[str]) -> Look:
        """The same, to be asked for together with what a call reads."""
        self._compare(known, self.now, names)  # a field that was replaced does not come back
        return self.look(lambda now: self._compare(known, now, names))

    def _compare(self, known: Catalog, now: Catalog, names: Iterable[str]) -> None:
        if now is known:
            return
        changes = self._changes
        if changes is None or changes[0] is not known or changes[1] is not now:
            changes = self._changes = known, now, changed_fields(known, now)
        for name in names if changes[2] else ():
            if name in changes[2]:
                raise self.changed(name, changes[2][name], now)

    def changed(self, name: str, what: str | None, now: Catalog) -> StashError:
        """The error about a field that is another one by now, or none."""
        where = located(self.driver, self.path)
        if what is None:
            return missing_field(where, name, now.fields)
        return Conflict(
            f"field {name!r} of {where} was replaced since it was opened: {what}; refresh(), "
            "or open it again"
        )


class FieldGuard:
    """Tells whether the array ``name`` is the one that its handle knows, by the records' document:
    the array's own one follows late."""

    def __init__(self, latest: LatestCatalog, name: str) -> None:
        self._latest = latest
        self._name = name
        self._same: tuple[ArraySpec, Catalog] | None = None

    def check(self, spec: ArraySpec) -> None:
        """See :class:`~tensorstash.engine.look.Guard`."""
        self._compare(spec, self._latest.current())

    def look(self, spec: ArraySpec) -> Look:
        """See :class:`~tensorstash.engine.look.Guard`."""
        self._compare(spec, self._latest.now)
        return self._latest.look(lambda now: self._compare(spec, now))

    def _compare(self, spec: ArraySpec, now: Catalog) -> None:
        same = self._same
        if same is not None and same[0] is spec and same[1] is now:
            return
        other = now.specs.get(self._name)
        what = None if other is None else difference(spec, other)
        if other is None or what is not None:
            raise self._latest.changed(self._name, what, now)
        self._same = spec, now


def missing_field(where: str, name: str, fields: Fields) -> NotFound:
    """The error about a field that a view has and the records have no more."""
    known = ", ".join(map(repr, fields))
    return NotFound(
        f"{where} has no field {name!r} any more; there are: {known}; make the view again"
    )
