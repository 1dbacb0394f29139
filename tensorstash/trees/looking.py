"""What is there: one place, its direct members, and all below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from ..driver import Driver, located
from ..errors import Invalid, StashError
from ..location import Location, resolve
from ..metadata import node
from ..metadata.consolidated import is_member_path, place_path
from ..metadata.document import GroupDocument
from ..metadata.spec import ArraySpec
from .documents import Found, copied, copied_member, read
from .entry import Entry, entry_of
from .folders import Folders, folders_of, one_by_one
from .patterns import Choice, Wanted

_AT_ONCE = 256  # members whose documents are asked for together


def exists(location: Location, *, path: str = "", options: Mapping[str, Any] | None = None) -> bool:
    """Tell whether an array, a group or records are stored at a place. One request.

    What is stored there need not be readable: damaged ones count, and copies and deletes that did
    not end, so that where this says no, :func:`create` can create.

    Args:
        location: a path, a URL such as ``"s3://bucket/x"``, a ``pathlib.Path``, a ``dict`` or a
            driver.
        path: where below the location, such as ``"raw/image"``.
        options: keyword arguments of the driver.

    Returns:
        Whether there is one.

    Raises:
        DriverError: the place cannot be looked at: then it is not known.
        Invalid: the location, ``path`` or an option is wrong.

    >>> a = stash.create("memory://here", 3, "int8")
    >>> stash.exists("memory://here"), stash.exists("memory://here", path="x")
    (True, False)
    """
    return node.load_any(resolve(location, options), place_path(path))


def ls(
    location: Location, *, path: str = "", options: Mapping[str, Any] | None = None
) -> list[Entry]:
    """List the direct members of a group; of records, the fields.

    One listing and one batch of requests for documents, whatever is stored in the members; where
    the group has consolidated metadata, neither.

    Args:
        location: where the group is stored, as for :func:`exists`.
        path: where below the location, such as ``"raw"``.
        options: keyword arguments of the driver.

    Returns:
        An entry for each member, sorted by name, also for those that cannot be opened.

    Raises:
        NotFound: nothing is stored there.
        Invalid: an array is stored there, or an argument is wrong.
        Corrupt: the metadata of the group itself is damaged.
        DriverError: the place cannot be listed.

    >>> g = stash.create_group("memory://listed")
    >>> a = g.create("x", 3, "int8")
    >>> stash.ls("memory://listed")
    [<Entry x  array  (3,) int8>]
    """
    driver, at = resolve(location, options), place_path(path)
    members = _members(driver, at, _group(driver, at), Choice(), one_by_one(driver))
    return [entry_of(name, found) for name, found, _ in members]


def walk(
    location: Location,
    *,
    path: str = "",
    options: Mapping[str, Any] | None = None,
    include: Wanted = None,
    exclude: Wanted = None,
    fields: bool = False,
) -> Iterator[Entry]:
    """Iterate over all that is stored below a group, depth first, each level sorted by name.

    It costs one listing and one batch of requests for each group, and holds little in memory
    however many there are: entries come as they are found. Chunks are never listed, and what lies
    below a group with consolidated metadata costs nothing.

    Patterns are those of ``pathlib.PurePosixPath.full_match``, on the paths of entries: ``"raw/*"``
    (what is directly in ``raw``), ``"raw/**"`` (all below it), ``"**/image"`` (at any depth),
    ``"run[0-9]?"``. Where nothing below a group can match, it is not listed.

    Args:
        location: where the group is stored, as for :func:`exists`.
        path: where below the location, such as ``"raw"``; paths of entries begin there.
        options: keyword arguments of the driver.
        include: only entries that match this pattern, or one of these.
        exclude: no entries that match this pattern, or one of these, and nothing below them.
        fields: also what is in records, which are one entry else. Those of records that are
            at the place itself are listed in any case.

    Returns:
        An iterator over entries. It raises ``DriverError`` where a group cannot be listed.

    Raises:
        NotFound: nothing is stored there.
        Invalid: an array is stored there, or an argument is wrong.
        Corrupt: the metadata of the group itself is damaged.

    >>> g = stash.create_group("memory://walked")
    >>> a, b = g.create("raw/x", 3, "int8"), g.create("raw/tmp/y", 3, "int8")
    >>> [entry.path for entry in stash.walk("memory://walked", exclude="**/tmp")]
    ['raw', 'raw/x']
    """
    choice = Choice.of(include, exclude)
    driver, at = resolve(location, options), place_path(path)
    return _walked(driver, at, _group(driver, at), choice, fields)


def _group(driver: Driver, at: str) -> GroupDocument:
    [found] = read(driver, [at])
    if found is None or isinstance(found, StashError):
        found = node.require(
            driver, at, allow_pickle=None
        ).content  # which raises it as opening does
    if isinstance(found, ArraySpec):
        raise Invalid(f"{located(driver, at)} is an array, with no members; open it with open()")
    return found


def _walked(
    driver: Driver, at: str, group: GroupDocument, choice: Choice, fields: bool
) -> Iterator[Entry]:
    folders = folders_of(driver, at)
    levels = [("", _members(driver, at, group, choice, folders))]
    while levels:
        prefix, members = levels[-1]
        for name, found, here in members:
            entry = entry_of(prefix + name, found)
            if here.is_wanted:
                yield entry
            holds = isinstance(found, GroupDocument) and (fields or entry.kind != "records")
            if holds and here.may_hold:
                assert isinstance(found, GroupDocument)
                below = f"{entry.path}/"
                levels.append((below, _members(driver, at + below, found, here, folders)))
                break
        else:
            levels.pop()


def _members(
    driver: Driver, at: str, group: GroupDocument, choice: Choice, folders: Folders
) -> Iterator[tuple[str, Found, Choice]]:
    """The direct members that are wanted, or may hold what is: names, what they are, and what of
    them is wanted."""
    members = copied(group)
    names = folders(at) if members is None else members.names()
    wanted = (
        (name, here)
        for name in names
        if is_member_path(name) and ((here := choice.below(name)).is_wanted or here.may_hold)
    )
    if members is not None:
        for name, here in wanted:
            yield name, copied_member(members, name, group.zarr_format), here
        return
    while page := [*islice(wanted, _AT_ONCE)]:
        paths = [f"{at}{name}/" for name, _ in page]
        for (name, here), found in zip(page, read(driver, paths, group.zarr_format), strict=True):
            if found is not None:
                yield name, found, here
