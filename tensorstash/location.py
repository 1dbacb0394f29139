"""From what a user names a place with to the driver that serves it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeAlias

from .driver import Driver
from .dtype import short
from .errors import Invalid
from .registry import connect

Location: TypeAlias = str | os.PathLike[str] | MutableMapping[str, Any] | Driver
"""A path, a URL, a ``pathlib.Path``, a ``dict`` (or any mutable mapping), or a driver."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def resolve(location: Location, options: Mapping[str, Any] | None = None) -> Driver:
    """The driver rooted at ``location``. ``options`` go to the driver; nothing is read yet."""
    if not isinstance(options or {}, Mapping) or not all(isinstance(n, str) for n in options or ()):
        raise Invalid(f"options are a dict of the driver's options by name, not {short(options)}")
    if isinstance(location, Driver):
        if options:
            raise Invalid("options belong to the driver, which is made already")
        return location
    if isinstance(location, MutableMapping):
        return connect("memory://", {**(options or {}), "mapping": location})
    try:
        name = os.fspath(location)
    except TypeError:
        raise Invalid(
            f"a location is a path, a URL, a dict or a driver, not {type(location).__name__}"
        ) from None
    if isinstance(name, bytes) or not name:
        raise Invalid(f"a location is a non-empty text, not {name!r}")
    if _URL.match(name):
        return connect(name, options or {})
    return connect("file://" + os.path.abspath(os.path.expanduser(name)), options or {})
