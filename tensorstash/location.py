"""From what a user names a place with to the driver that serves it."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias, runtime_checkable

from .driver import Driver
from .errors import Invalid, ReadOnly, short
from .registry import connect, serves, versions
from .urls import file_url, half, split


@runtime_checkable
class Filesystem(Protocol):
    """An fsspec filesystem object, as far as a location needs to know it."""

    protocol: str | tuple[str, ...]
    storage_options: dict[str, Any]


@runtime_checkable
class ZarrStore(Protocol):
    """A store of zarr-python, as far as a location needs to know it."""

    supports_writes: bool
    supports_listing: bool


Location: TypeAlias = (
    str | os.PathLike[str] | MutableMapping[str, Any] | Driver | Filesystem | ZarrStore
)
"""A path, a URL (also a chained one: ``zip://inner::s3://bucket/x.zip``), a ``pathlib.Path``, a
``dict`` or any mutable mapping, an fsspec mapper or filesystem, a zarr store, or a driver.

A mapping of the user's is as safe as its ``__setitem__``: conditions and locks hold between
the threads of this process that come through us, and a value that its owner replaces in
several steps may be read in between. An fsspec mapper is taken for the place it maps.
"""

_MAPPING = ("keys", "get", "__getitem__", "__setitem__", "__delitem__")  # dbm.gnu's are no class


def resolve(
    location: Location,
    options: Mapping[str, Any] | None = None,
    version: str | datetime | None = None,
    mode: str = "r",
) -> Driver:
    """The driver rooted at ``location``. ``options`` go to the driver; nothing is read yet, but to
    find a ``version`` of the repository there, which can only be read."""
    driver = _resolved(location, options)
    if version is None:
        return driver
    if mode != "r":
        raise ReadOnly(
            f"version {short(version)} of {driver.url} never changes: open it with mode='r', or "
            "write with open_repo(...).change()"
        )
    found: Driver = versions().version_driver(driver, version)
    return found


def _resolved(location: Location, options: Mapping[str, Any] | None) -> Driver:
    if not isinstance(options or {}, Mapping) or not all(isinstance(n, str) for n in options or ()):
        raise Invalid(f"options are a dict of the driver's options by name, not {short(options)}")
    if isinstance(location, Driver):
        if options:
            raise Invalid("options belong to the driver, which is made already")
        return location
    found = _foreign(location)
    if found is not None:
        return connect(found[0], {**(options or {}), **found[1]})
    if isinstance(location, MutableMapping) or all(hasattr(location, name) for name in _MAPPING):
        return connect("memory://", {**(options or {}), "mapping": location})
    try:
        name = os.fspath(location)  # type: ignore[arg-type]
    except TypeError:
        raise Invalid(
            "a location is a path, a URL, a dict, a driver or a store, not "
            f"{type(location).__name__}"
        ) from None
    if isinstance(name, bytes) or not name:
        raise Invalid(f"a location is a non-empty text, not {name!r}")
    url = split(name.lstrip())
    if url is not None and name[0].isspace():
        raise Invalid(f"{name!r} begins with a blank; write {name.lstrip()!r}")
    for link in [name] if url is None else url[1].split("::")[1:]:
        refuse_half(link)
    if url is None:
        url = "file", file_url(os.path.abspath(os.path.expanduser(name))).removeprefix("file://")
    return connect("://".join(url), options or {})


def refuse_half(name: str) -> None:
    """:class:`Invalid` for what was meant as a URL and is none, such as ``s3:/bucket/x`` or
    ``Path("s3://bucket/x")``: it would become a folder named ``s3:``."""
    meant = None if split(name) else half(name)
    if meant is not None and serves(meant[0], meant[2]):
        scheme, rest, _ = meant
        rest = "/" + rest if scheme in ("file", "zip", "unix") else rest
        raise Invalid(
            f"{name!r} is not a URL, as '//' is missing; write '{scheme}://{rest}', as text (a "
            f"pathlib.Path drops a slash), or {'./' + name!r} for a folder of that name"
        )


def _foreign(location: Any) -> tuple[str, dict[str, Any]] | None:
    """URL and options for an object of fsspec's or zarr's, told by where its class was defined:
    neither library is imported for it. What is a directory is a ``file://`` like any other."""
    for kind in type(location).__mro__:
        match kind.__module__, kind.__name__:
            case "fsspec.mapping", "FSMap":
                return _in_filesystem(location.fs, location.root)
            case "fsspec.spec", "AbstractFileSystem":
                return _in_filesystem(location, "")
            case "zarr.abc.store", "Store":
                return "zarr://", {"store": location}
            case "zarr.storage._common", "StorePath":
                return f"zarr://{location.path}", {"store": location.store}
    return None


def _in_filesystem(fs: Any, root: str) -> tuple[str, dict[str, Any]]:
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        return file_url(os.path.abspath(root or "/")), {}
    return "fsspec://" + root, {"fs": fs}
