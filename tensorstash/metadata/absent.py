"""What to tell where nothing is stored."""

from __future__ import annotations

from ..driver import Driver, located
from ..errors import NotFound
from ..urls import told

REPOSITORY = "tensorstash-repo.json"
"""The document that a place has which holds versions of a tree, rather than the tree."""


def nothing_there(driver: Driver, path: str) -> NotFound:
    """There is no array or group at ``path``."""
    where = located(driver, path)
    if driver.tag(path + REPOSITORY) is not None:
        return NotFound(
            f"{where} is a repository of versions, not an array or group: name what is in it, as "
            "path='...' with version='main', or open_repo() it"
        )
    file = told(where)
    return NotFound(
        f"no Zarr array or group there: {file}"
        if file
        else f"no Zarr array or group at {where}: no zarr.json, .zarray or .zgroup; "
        "check the path, or create it (create(), create_group(), create_records())"
    )
