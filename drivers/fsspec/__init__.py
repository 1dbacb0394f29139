"""Any place that fsspec serves: ``gs://``, ``az://``, ``hf://``, ``ftp://``, chained URLs, or an
fsspec filesystem of yours.

fsspec offers neither a compare-and-swap nor locks, so arrays here are for one writer at a
time, and ``append`` and ``resize`` want the option ``unsafe=True``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec
from fsspec.registry import known_implementations, registry

from tensorstash.driver import Driver
from tensorstash.drivers.fsspec.driver import FsspecDriver
from tensorstash.drivers.fsspec.options import Connection, of_filesystem, of_url

__all__ = ["FsspecDriver", "connect", "find"]


def find(scheme: str) -> Callable[..., Driver] | None:
    """The factory for a scheme (also ``simplecache::https``), or ``None`` when fsspec does not
    know it."""
    if any(
        name not in known_implementations and name not in registry for name in scheme.split("::")
    ):
        return None

    def connect_url(
        rest: str,
        *,
        connection: Connection | None = None,
        timeout: float = 50.0,
        weak_tags: bool = False,
        unsafe: bool = False,
        **options: Any,
    ) -> FsspecDriver:
        recipe = of_url(f"{scheme}://{rest}", options, connection)
        return FsspecDriver(recipe, timeout=timeout, weak_tags=weak_tags, unsafe=unsafe)

    return connect_url


def connect(
    rest: str,
    *,
    fs: fsspec.AbstractFileSystem,
    connection: Connection | None = None,
    timeout: float = 50.0,
    weak_tags: bool = False,
    unsafe: bool = False,
) -> FsspecDriver:
    """What lies below the path ``rest`` of ``fs``, a filesystem object made by the caller."""
    recipe = of_filesystem(fs, rest, connection)
    return FsspecDriver(recipe, timeout=timeout, weak_tags=weak_tags, unsafe=unsafe)
