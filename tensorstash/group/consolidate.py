"""Consolidated metadata: the documents of all members, copied into their group's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..array import Array
from ..driver import Driver, get_at_most
from ..metadata import node, zarr2, zarr3
from ..metadata.document import GroupDocument

if TYPE_CHECKING:
    from .group import Group


def documents(group: Group, members: Mapping[str, Array | Group]) -> dict[str, Any]:
    """The documents of all ``members`` by path, as a copy in the document of ``group`` has them."""
    if group.zarr_format == 2:
        below = {path: _files(group.driver, member.path) for path, member in members.items()}
        return {"": _files(group.driver, group.path), **below}
    return {
        path: zarr3.array_document(member.spec)
        if isinstance(member, Array)
        else zarr3.group_document(member.document)
        for path, member in members.items()
    }


def put_copy(group: Group, found: dict[str, Any] | None) -> None:
    """Store ``found`` as the copy that ``group`` holds; ``None``: it holds none."""
    if group.zarr_format == 2:
        key = group.path + zarr2.CONSOLIDATED
        if found is None:
            group.driver.delete(key)
        else:
            group.driver.put(key, zarr3.encode(zarr2.consolidated_document(found)))
        return
    node.update(
        group.driver,
        group.path,
        lambda known: GroupDocument(known.attributes, found, 3, known.document),
        like=group.document,
        drops=False,  # what is above shows the same members
    )


def _files(driver: Driver, path: str) -> dict[str, Any]:
    """A v2 node's documents by file name, decoded."""
    found = {}
    for name in (zarr2.ARRAY, zarr2.GROUP, zarr2.ATTRS):
        stored = get_at_most(driver, path + name, driver.metadata_limit)
        if stored is not None:
            found[name] = zarr2.decode(stored[0], name)
    return found
