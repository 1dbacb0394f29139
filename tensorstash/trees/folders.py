"""Which names may be members of a group, by what a driver lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..driver import Driver
from ..metadata.belongings import DOCUMENTS

Folders: TypeAlias = Callable[[str], Sequence[str]]
"""Of a path (empty, or ending in ``/``) the names of what is directly below it, sorted."""


def one_by_one(driver: Driver) -> Folders:
    """A listing for each that is asked for."""
    return lambda path: driver.list_dir(path)[1]


def folders_of(driver: Driver, at: str) -> Folders:
    """For a walk from ``at`` on: where it costs as much to list one group as to list all, all is
    listed once, and what may be a node is remembered."""
    if driver.capabilities.folders:
        return one_by_one(driver)
    known: dict[str, list[str]] | None = None

    def names(path: str) -> Sequence[str]:
        nonlocal known
        if known is None:
            known = _all(driver, at)
        return known.get(path, ())

    return names


def _all(driver: Driver, at: str) -> dict[str, list[str]]:
    """Below ``at``, of each path what is directly below it and holds a document."""
    nodes: set[str] = set()
    for key in driver.list(at):
        folder, _, name = key.rpartition("/")
        if name in DOCUMENTS and len(folder) > len(at):
            nodes.add(folder)
    known: dict[str, list[str]] = {}
    for folder in sorted(nodes):
        above, slash, name = folder.rpartition("/")
        known.setdefault(above + slash, []).append(name)
    return known
