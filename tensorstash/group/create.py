"""Creating and opening groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Unpack

from ..create import Place, check_above, open_place
from ..errors import AlreadyExists, Invalid, NotFound
from ..location import Location
from ..metadata import node
from ..metadata.document import GroupDocument, as_plain
from ..options import OpenOptions, PlaceOptions, only, shown
from .group import Group

GroupMode = Literal["r", "r+", "a", "w", "x"]


@shown(PlaceOptions, open_place)
def create_group(
    location: Location,
    attributes: Mapping[str, Any] | None = None,
    *,
    zarr_format: Literal[2, 3] | None = None,
    overwrite: bool = False,
    **how: Unpack[PlaceOptions],
) -> Group:
    """Create a group and return a handle that reads and writes it.

    Args:
        location: where to store it: a path, a URL such as ``"s3://bucket/x"``, a
            ``pathlib.Path``, a ``dict`` or a driver.
        attributes: the first user attributes, a dict of what JSON can hold.
        zarr_format: 3, or 2 for readers that do not know version 3; its members are stored alike.
            By default 3, or that of the group above it.
        overwrite: replace the array or group that is there, with everything below it.
        path: where below the location, such as ``"raw/images"``; the groups above that are missing
            are created too.
        options: keyword arguments of the driver.
        limits, memory_limit: how much memory may be taken, as for ``tensorstash.open``.

    Returns:
        A handle opened for reading and writing.

    Raises:
        AlreadyExists: an array or group is stored there, and ``overwrite`` is false.
        Invalid: an argument is wrong, JSON cannot hold an attribute, or ``path`` lies in an array.

    >>> g = stash.create_group("memory://run", {"model": "small"})
    >>> g.attrs["model"]
    'small'
    """
    place = open_place(location, "r+", **only(how, PlaceOptions, "create_group"))
    return _create(place, attributes, zarr_format, overwrite)


def _create(
    place: Place,
    attributes: Mapping[str, Any] | None,
    zarr_format: Literal[2, 3] | None,
    overwrite: bool,
) -> Group:
    driver, path, settings = place
    above = check_above(driver, path, zarr_format, overwrite)
    document = GroupDocument(
        as_plain(dict(attributes or {})), zarr_format=zarr_format or above or 3
    )
    node.create(driver, path, document, overwrite=overwrite)
    return Group(driver, path, settings, document)


@shown(OpenOptions, open_place)
def open_group(
    location: Location,
    mode: GroupMode = "r",
    *,
    zarr_format: Literal[2, 3] | None = None,
    **how: Unpack[OpenOptions],
) -> Group:
    """Open a stored group and return a handle; this costs one small read.

    Args:
        location: where it is stored, as for :func:`create_group`.
        mode: ``"r"`` reads, ``"r+"`` also writes, ``"a"`` creates the group when nothing is there,
            ``"w"`` replaces what is there, ``"x"`` creates and never replaces.
        zarr_format: what a new group is stored as, 3 or 2, as for :func:`create_group`.
        path: where below the location it is stored, as for :func:`create_group`.
        version: of a repository, which version: see ``Repo``.
        cache: as for ``tensorstash.open``, for each array that is reached from here.
        options, limits, memory_limit, threads, lock_timeout, immutable, missing, allow_pickle,
            cache_dir, cache_dir_bytes: how the driver and all handles below, together, behave, as
            ``tensorstash.open`` explains.

    Returns:
        A handle on the group, which hands its settings on to all members that it opens.

    Raises:
        NotFound: nothing is stored there, and ``mode`` does not create.
        AlreadyExists: ``mode`` is ``"x"``, and an array or group is stored there.
        Invalid: an argument is wrong, or an array is stored there.
        Corrupt: the stored metadata is damaged.

    >>> place = {}
    >>> a = stash.create_group(place).create("raw/image", (2, 2), "uint8")
    >>> stash.open_group(place)["raw/image"].shape
    (2, 2)
    """
    if mode not in ("r", "r+", "a", "w", "x"):
        raise Invalid(f"mode {mode!r} is not one of 'r', 'r+', 'a', 'w', 'x'")
    writes = "r" if mode == "r" else "r+"
    place = open_place(location, writes, **only(how, OpenOptions, "open_group"))
    if mode in ("w", "x"):
        return _create(place, None, zarr_format, overwrite=mode == "w")
    try:
        return Group(*place).refresh()
    except NotFound:
        if mode != "a":
            raise
    try:
        return _create(place, None, zarr_format, overwrite=False)
    except AlreadyExists:
        return Group(*place).refresh()
