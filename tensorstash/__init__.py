"""tensorstash: chunked N-dimensional arrays on disk, in memory and in the cloud, as plain Zarr.

Arrays: ``create``, ``open``, ``save``, ``load`` and ``copy``. Groups of arrays: ``create_group``
and ``open_group``. Rows of named fields: ``create_records``, ``open_records``, ``save_records``.
``tensorstash.torch`` has the loader, ``tensorstash.errors`` all errors, and
``tensorstash.testing`` the tests for your own drivers and codecs.
"""

import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .array import Array
from .create import create, load, open, save
from .driver import Driver
from .engine.stats import Stats
from .errors import (
    AlreadyExists,
    Closed,
    Conflict,
    Corrupt,
    Denied,
    DriverError,
    Invalid,
    InvalidSelection,
    NoMemory,
    NoSpace,
    NotFound,
    ReadOnly,
    StashError,
    StashPerformanceWarning,
    TimedOut,
    Unavailable,
    Unsupported,
)
from .explain import Explanation, Info
from .group import Group, create_group, open_group
from .location import Location
from .log import log_requests
from .memory import memory_limit, memory_use
from .transfer import copy, move
from .trees import Entry, delete, exists, ls, walk
from .view import View

if TYPE_CHECKING:
    from .records import Ragged, Records, create_records, json, open_records, ragged, save_records
    from .versions import Repo, Transaction, Version, create_repo, open_repo

__version__ = "0.1.0"

# Imported on use: whoever works with arrays need not wait for them.
_RECORDS = frozenset(
    ("Ragged", "Records", "create_records", "json", "open_records", "ragged", "save_records")
)

_VERSIONS = frozenset(("Repo", "Transaction", "Version", "create_repo", "open_repo"))

__all__ = [
    "AlreadyExists",
    "Array",
    "Closed",
    "Conflict",
    "Corrupt",
    "Denied",
    "Driver",
    "DriverError",
    "Entry",
    "Explanation",
    "Group",
    "Info",
    "Invalid",
    "InvalidSelection",
    "NoMemory",
    "NoSpace",
    "NotFound",
    "Ragged",
    "ReadOnly",
    "Records",
    "Repo",
    "StashError",
    "StashPerformanceWarning",
    "Stats",
    "TimedOut",
    "Transaction",
    "Unavailable",
    "Unsupported",
    "Version",
    "View",
    "copy",
    "create",
    "create_group",
    "create_records",
    "create_repo",
    "delete",
    "exists",
    "json",
    "load",
    "log_requests",
    "ls",
    "memory_limit",
    "memory_use",
    "move",
    "open",
    "open_group",
    "open_records",
    "open_repo",
    "ragged",
    "save",
    "save_records",
    "walk",
    "zarr_store",
]

if os.environ.get("TENSORSTASH_LOG"):
    log_requests()


def __getattr__(name: str) -> Any:
    if name not in _RECORDS | _VERSIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "tensorstash.records" if name in _RECORDS else "tensorstash.versions"
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_RECORDS, *_VERSIONS})


def zarr_store(
    location: Location,
    *,
    path: str = "",
    version: Any = None,
    options: Mapping[str, Any] | None = None,
    read_only: bool = False,
) -> Any:
    """Return a store of zarr-python for a location, for use with zarr, xarray and dask.

    Nothing is read yet. What is written through the store follows the rules of zarr-python: if
    several writers write parts of one chunk at the same time, writes may be lost.

    Args:
        location: a path, a URL such as ``"s3://bucket/x"``, a ``pathlib.Path``, a ``dict`` or a
            driver.
        path: where below the location, such as ``"raw"``, the root of the store is.
        version: of a repository, which version: see ``Repo``.
        options: keyword arguments of the driver.
        read_only: refuse to write through the store.

    Returns:
        A ``zarr.abc.store.Store``, for use with ``zarr.open``, ``xarray.open_zarr`` and the like.

    Raises:
        ModuleNotFoundError: zarr is not installed.
        Invalid: the location or an option is wrong.

    >>> import zarr
    >>> saved = stash.save("numbers", np.arange(3))
    >>> zarr.open_array(stash.zarr_store("numbers"), mode="r")[:].tolist()
    [0, 1, 2]
    """
    return importlib.import_module("tensorstash.zarr_adapter").zarr_store(
        location, path=path, version=version, options=options, read_only=read_only
    )
