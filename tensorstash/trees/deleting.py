"""Deleting arrays, groups and records, with all that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..create import check_above
from ..driver import located
from ..errors import AlreadyExists, Invalid, NotFound, ReadOnly
from ..location import Location, resolve
from ..metadata import node
from ..metadata.belongings import Belongings
from ..metadata.consolidated import place_path


def delete(
    location: Location,
    *,
    path: str = "",
    options: Mapping[str, Any] | None = None,
    missing_ok: bool = False,
) -> None:
    """Delete an array, a group or records, with everything that belongs to it.

    Until the last of it is gone, every reader refuses what is left, and if a delete fails or is
    killed in between, the next one finishes it. Files that are not Zarr's are never deleted: where
    some lie among the rest, nothing is. Of a symbolic link to a node the link goes, and what it
    leads to stays. Handles that were opened before raise ``NotFound`` or ``Conflict``.

    Args:
        location: what to delete, or what it lies in: a path, a URL such as ``"s3://bucket/x"``, a
            ``pathlib.Path``, a ``dict`` or a driver.
        path: where below the location it is, such as ``"raw/image"``; consolidated metadata of
            the groups on the way, which shows it, goes too.
        options: keyword arguments of the driver.
        missing_ok: do nothing where nothing is stored, rather than raise ``NotFound``.

    Raises:
        NotFound: no array, group or records are stored there.
        Invalid: it is a field of records; ``drop_field`` drops those.
        AlreadyExists: files of other programs are stored there; nothing was deleted.
        ReadOnly: the place cannot be written to.
        Conflict: others changed it meanwhile.

    >>> a = stash.create("memory://old", 3, "int8")
    >>> stash.delete("memory://old")
    >>> stash.exists("memory://old")
    False
    """
    driver, at = resolve(location, options), place_path(path)
    if not node.load_any(driver, at):
        if missing_ok:
            return
        raise NotFound(
            f"no Zarr array, group or records at {located(driver, at)}; check the path, or give "
            "missing_ok=True"
        )
    if not driver.capabilities.writable:
        raise ReadOnly(f"{located(driver, at)} cannot be deleted: {driver.url} is read-only")
    check_above(driver, at, overwrite=True)
    try:
        node.delete(driver, at, spare=refuse_if_field)
    except AlreadyExists:
        # What nothing explains may be what others are deleting: so it is looked at once more. Where
        # they deleted all of the node, what is left there is not of it.
        if node.load_any(driver, at):
            node.delete(driver, at, spare=refuse_if_field)
    if not at:
        driver.remove_root()


def refuse_if_field(found: Belongings) -> bool:
    """What is asked of what is there before it is marked."""
    if found.is_field:
        raise Invalid(
            f"{located(found.driver, found.path)} is a field of records, which name it still; "
            "open_records() and drop_field() it"
        )
    return False
