"""Names to leaves: a codec name to its codec, a URL scheme to its driver.

The core never imports a leaf by name. The folder ``drivers/x/`` serves ``x://`` and exposes
``connect(rest, **options) -> Driver``; some serve other schemes too (``_ALIASES``). ``codecs/y.py``
serves codec ``"y"`` and exposes ``make(name, configuration) -> Codec``. Installed packages add
theirs through the entry point groups ``tensorstash.drivers`` and ``tensorstash.codecs``, whose
objects are those same two functions.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from .codec import Codec, reason, split
from .driver import Driver
from .errors import Invalid, StashError, Unsupported, short

_CORE_CODECS = {"sharding_indexed": "tensorstash.sharding"}
"""Codecs that are layout rather than arithmetic, and so live in the core."""

_ALIASES = {
    "https": ("http", "connect_https"),
    "rediss": ("redis", "connect_rediss"),
    "unix": ("redis", "connect_unix"),
}
"""Schemes that the driver of another one serves: its module, and the function for them."""

_EXTRAS = {
    "aiobotocore": "s3",
    "aiohttp": "fsspec",
    "fsspec": "fsspec",
    "hiredis": "redis",
    "obstore": "s3-fast",
    "redis": "redis",
    "s3fs": "s3",
    "zarr": "zarr",
}
"""Which of our extras installs the module that a leaf misses."""


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
    factory = _driver_factory(scheme)
    if options:
        _, *takes = inspect.signature(factory).parameters.values()
        known = [option.name for option in takes]
        wrong = [name for name in options if name not in known]
        if wrong and not any(option.kind is option.VAR_KEYWORD for option in takes):
            raise Invalid(
                f"driver {scheme!r} has no option {short(wrong[0])}; it takes "
                f"{', '.join(known) or 'none'}"
            )
    return factory(rest, **options)


_NAMES = {"data", "dir", "local", "reference", "generic"}
"""Schemes of fsspec's that are as likely the beginning of a file's name (``data:2024.zarr``)."""


def serves(scheme: str, slash: bool) -> bool:
    """Whether a driver serves ``scheme``, installed or not. Where no slash follows it, what may be
    a plain name is none."""
    if not slash and scheme in _NAMES:
        return False
    try:
        _driver_factory(scheme)
    except Unsupported as error:
        return error.__cause__ is not None  # it lacks a library
    return True


def foreign() -> Any:
    """The module that makes codecs of numcodecs' own configurations, imported when it is needed."""
    return importlib.import_module("tensorstash.codecs.foreign")


def disk_cache() -> Any:
    """The class of drivers that keep another's values on this machine, imported when it is needed,
    as its checksum library is."""
    return importlib.import_module("tensorstash.drivers.diskcache.driver").DiskCache


def versions() -> Any:
    """The module of repositories, imported when one is named."""
    return importlib.import_module("tensorstash.versions.repo")


@cache
def _codec_factory(name: str) -> Callable[[str, Mapping[str, Any]], Codec]:
    if name in _CORE_CODECS:
        found = importlib.import_module(_CORE_CODECS[name]).make
    else:
        found = _leaf("tensorstash.codecs", name, "make") or foreign().find(name)
    if found is None:
        known = [*_CORE_CODECS, *_leaves("tensorstash.codecs", "make")]
        others = foreign().names()
        raise Unsupported(f"no codec {short(name)}{_nearest(name, known, others)}")
    return found  # type: ignore[no-any-return]


@cache
def _driver_factory(scheme: str) -> Callable[..., Driver]:
    module, attribute = _ALIASES.get(scheme, (scheme, "connect"))
    found = _leaf("tensorstash.drivers", scheme, attribute, module) or _leaf(
        "tensorstash.drivers", "fsspec", "find"
    )(scheme)
    if found is None:
        known = sorted([*_leaves("tensorstash.drivers", "connect"), *_ALIASES])
        raise Unsupported(f"no driver for {short(scheme + '://')}{_nearest(scheme, known)}")
    return found  # type: ignore[no-any-return]


def _leaf(package: str, name: str, attribute: str, module: str | None = None) -> Any:
    """The function ``attribute`` of what serves ``name``: a module of ``package`` (by default that
    of its name), or else an entry point."""
    module = (module or name).replace("-", "_")
    if module.isidentifier():
        try:
            return getattr(importlib.import_module(f"{package}.{module}"), attribute, None)
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{module}":
                library = str(error.name).partition(".")[0]
                extra = _EXTRAS.get(library)
                install = f"'tensorstash[{extra}]'" if extra else library
                raise Unsupported(
                    f"{package.rpartition('.')[2][:-1]} {name!r} needs the package "
                    f"{library!r}: pip install {install}"
                ) from error
    # On use: it is slow to import, and few have any.
    metadata = importlib.import_module("importlib.metadata")
    for entry in metadata.entry_points(group=package):
        if entry.name == name:
            return entry.load()
    return None


def _leaves(package: str, attribute: str) -> list[str]:
    """The names that the modules of ``package`` serve; a message is worth importing them all."""
    found = []
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        try:
            leaf = importlib.import_module(f"{package}.{module.name}")
        except ImportError:  # it needs a library that is not installed, and says so when named
            found.append(module.name)
            continue
        if hasattr(leaf, attribute):
            found.append(module.name)
    return sorted(name.replace("_", "-") for name in found)


def _nearest(name: str, known: Iterable[str], others: Iterable[str] = ()) -> str:
    """A hint: the name most like ``name``, whatever its prefix, or else all that are ``known``."""
    stems = {full.rpartition(".")[2]: full for full in (*others, *known)}
    close = difflib.get_close_matches(name.rpartition(".")[2][:400], stems, 1)
    return f"; did you mean {stems[close[0]]!r}?" if close else f"; known: {', '.join(known)}"


# -- chains of codecs, as metadata documents spell them (Zarr v3 core, "Codecs") -------


def parse_codecs(value: Any) -> tuple[Codec, ...]:
    """The chain that a ``codecs`` list describes, its order checked. A codec that need not be
    understood and is not known is left out."""
    if not isinstance(value, list) or not value:
        raise Invalid(f"codecs are {short(value)}, not a non-empty list")
    chain: list[Codec] = []
    for item in value:
        name, configuration, optional = extension(item, "codec")
        try:
            chain.append(make(name, configuration))
        except Unsupported:
            if not optional:
                raise
    split(chain)
    return tuple(chain)


def make(name: str, configuration: Mapping[str, Any]) -> Codec:
    """The codec, with whatever its maker raises turned into our errors."""
    try:
        return make_codec(name, configuration)
    except (StashError, MemoryError):
        raise
    except RecursionError as error:
        raise Unsupported("a codec chain nests too deeply to be read") from error
    except Exception as error:  # third-party codecs raise what they like
        detail = reason(error)
        raise Invalid(
            f"codec {short(name)} cannot have {short(configuration)}: {detail}"
        ) from error


def extension(value: Any, what: str) -> tuple[str, Mapping[str, Any], bool]:
    """Name, configuration and whether it may be ignored, of an extension object or shorthand."""
    if isinstance(value, str):
        return value, {}, False
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise Invalid(f"{what} {short(value)} is neither a name nor an object with one")
    for key in value:
        if key not in ("name", "configuration", "must_understand"):
            raise Invalid(f"{what} {short(value['name'])} has an unknown key {short(key)}")
    configuration = value.get("configuration", {})
    understand = value.get("must_understand", True)
    if not isinstance(configuration, dict) or not isinstance(understand, bool):
        raise Invalid(f"{what} {short(value)}: configuration is an object, must_understand a bool")
    return value["name"], configuration, not understand
