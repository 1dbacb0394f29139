"""Names to leaves: a codec name to its codec, a URL scheme to its driver.

The core never imports a leaf by name. ``drivers/x.py`` serves ``x://`` and exposes
``connect(rest, **options) -> Driver``; ``codecs/y.py`` serves codec ``"y"`` and exposes
``make(name, configuration) -> Codec``. Installed packages add theirs through the entry
point groups ``tensorstash.drivers`` and ``tensorstash.codecs``, whose objects are those
same two functions.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .codec import Codec
from .driver import Driver
from .errors import Invalid, Unsupported

_CORE_CODECS = {"sharding_indexed": "tensorstash.shard"}
"""Codecs that are layout rather than arithmetic, and so live in the core."""


def make_codec(name: str, configuration: Mapping[str, Any] | None = None) -> Codec:
    """The codec that a metadata document calls ``name``.

    Looked up among our own, then entry points, then numcodecs' registry (``numcodecs.*``),
    then zarr's registry when zarr is installed. Unknown names raise
    :class:`~tensorstash.errors.Unsupported` with the nearest known name.
    """
    return _codec_factory(name)(name, configuration or {})


def connect(url: str, options: Mapping[str, Any]) -> Driver:
    """The driver that serves ``url`` (``scheme://rest``)."""
    scheme, _, rest = url.partition("://")
    try:
        return _driver_factory(scheme)(rest, **options)
    except TypeError as error:
        if "argument" in str(error):
            raise Invalid(f"driver {scheme!r}: {error}") from error
        raise


@cache
def _codec_factory(name: str) -> Callable[[str, Mapping[str, Any]], Codec]:
    if name in _CORE_CODECS:
        found = importlib.import_module(_CORE_CODECS[name]).make
    else:
        found = _leaf("tensorstash.codecs", name, "make") or _leaf(
            "tensorstash.codecs", "foreign", "find"
        )(name)
    if found is None:
        raise Unsupported(f"no codec {name!r}{_nearest(name, 'tensorstash.codecs')}")
    return found  # type: ignore[no-any-return]


@cache
def _driver_factory(scheme: str) -> Callable[..., Driver]:
    found = _leaf("tensorstash.drivers", scheme, "connect")
    if found is None:
        raise Unsupported(f"no driver for {scheme}://{_nearest(scheme, 'tensorstash.drivers')}")
    return found  # type: ignore[no-any-return]


def _leaf(package: str, name: str, attribute: str) -> Any:
    module = name.replace("-", "_")
    if module.isidentifier():
        try:
            return getattr(importlib.import_module(f"{package}.{module}"), attribute, None)
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{module}":
                raise Unsupported(
                    f"{package.rpartition('.')[2][:-1]} {name!r} needs the package "
                    f"{error.name!r}: pip install {error.name}"
                ) from error
    for entry in entry_points(group=package):
        if entry.name == name:
            return entry.load()
    return None


def _nearest(name: str, package: str) -> str:
    known = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__))
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
