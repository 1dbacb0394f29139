"""The driver for a location, with a cache on the local disk where one is asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .driver import Driver
from .formats import zarr2, zarr3
from .location import Location, resolve
from .values import parse_bytes

_DOCUMENTS = frozenset({zarr3.KEY, zarr2.ARRAY, zarr2.GROUP, zarr2.ATTRS, zarr2.CONSOLIDATED})


def reach(
    location: Location,
    options: Mapping[str, Any] | None,
    cache_dir: str | os.PathLike[str] | None,
    cache_dir_bytes: int | str,
    immutable: bool,
) -> Driver:
    """:func:`resolve`, behind a ``DiskCache`` in ``cache_dir`` of at most
    ``cache_dir_bytes``; what is on this machine already needs none. ``immutable``: what it holds
    is not compared with what is stored, but for metadata."""
    driver = resolve(location, options)
    if cache_dir is None or driver.capabilities.local:
        return driver
    from .diskcache import DiskCache  # its checksum library is not needed before

    limit = parse_bytes(cache_dir_bytes)
    return DiskCache(driver, os.fspath(cache_dir), limit, immutable, _DOCUMENTS)
