"""How to make a filesystem again in another process, without the secrets it was made with."""

from __future__ import annotations

import inspect
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from urllib.parse import unquote

import fsspec
from fsspec.asyn import AsyncFileSystem

from tensorstash.drivers import loop
from tensorstash.errors import Invalid

Options: TypeAlias = Mapping[str, Any]
Connection: TypeAlias = Callable[[], Mapping[str, Any]]

_LOGIN = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]*)://([^/@:]*)(?::([^/@]*))?@")

_HTTP = {"http", "https"}

# What may travel in a pickle. Anything else may be a secret under a name of some library's own.
_PLAIN = {
    *("endpoint_url", "project", "account_name", "account_host", "region", "host", "username"),
    *("user", "org", "repo", "sha", "ref", "revision", "consistency", "location", "protocol"),
    *("target_protocol", "remote_protocol", "compression", "path", "domain", "share", "mode"),
    *("cache_storage", "fo", "bucket", "instance", "kerb_ticket_lifetime", "requester_pays"),
}


@dataclass(frozen=True)
class Recipe:
    """A URL and its options, or the class of a filesystem with its arguments.

    ``connection`` returns further options, secrets among them, once in each process.
    """

    url: str = ""
    make: Callable[..., Any] | None = None
    path: str = ""
    options: Options = field(default_factory=dict, repr=False)
    connection: Connection | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the filesystem is called; of one that only changes paths, the one within."""
        if self.make is None:
            return (self.url.partition("://")[0].partition("::")[0],)
        within = self.options.get("fs")
        if isinstance(within, Recipe):
            return within.names
        names = self.make.protocol  # type: ignore[attr-defined]
        return (names,) if isinstance(names, str) else tuple(names)

    @property
    def _class(self) -> Any:
        return self.make or fsspec.get_filesystem_class(
            self.url.partition("://")[0].partition("::")[0]
        )

    @property
    def place(self) -> str:
        """The URL, for messages."""
        return self.url if self.make is None else f"{self.names[0]}://{self.path.lstrip('/')}"

    def open(self) -> tuple[Any, str]:
        """The filesystem, made anew, and the path in it."""
        options = self._guarded({**self.options, **self._more()})
        if issubclass(self._class, AsyncFileSystem):
            # Finalizers in a forked child would close what belongs to the loop of its parent.
            options["loop"] = loop.current().started()
        if self.make is None:
            # One shared with other users of fsspec might be the parent's of a forked child.
            fs, path = fsspec.core.url_to_fs(self.url, **options, skip_instance_cache=True)
        else:
            made = {name: _made(value) for name, value in options.items()}
            fs, path = self.make(**made, skip_instance_cache=True), self.path
        return fs, path

    def without_secrets(self) -> Recipe:
        """What may be pickled: options that are no secret by any name."""
        return replace(self, options=_harmless(self.options))

    def _guarded(self, options: dict[str, Any]) -> dict[str, Any]:
        """The same, where any filesystem among them is fsspec's for HTTP with its guard."""
        for name in ("target", "remote"):
            if options.get(f"{name}_protocol") in _HTTP:
                options[f"{name}_options"] = _guarded(options.get(f"{name}_options") or {})
        first, *rest = _schemes(self.url)
        if self.make is None:
            for scheme in _HTTP.intersection(rest):
                options[scheme] = _guarded(options.get(scheme) or {})
        http = first in _HTTP if self.make is None else _is_http(self.make)
        return _guarded(options) if http else options

    def _more(self) -> Options:
        if self.connection is None:
            return {}
        found = self.connection()
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise Invalid(
                f"connection returned {type(found).__name__}; it returns a dict of options by name"
            )
        return found


def of_url(url: str, options: Options, connection: Connection | None) -> Recipe:
    """A login within the URL becomes options, which no message, log or pickle shows."""
    logins: dict[str, dict[str, Any]] = {}

    def take(match: re.Match[str]) -> str:
        scheme, user, password = match.groups()
        if password is None:
            return match.group()
        logins[scheme] = _login(scheme, user, password)
        return f"{scheme}://"

    clean = _LOGIN.sub(take, url)
    outer = url.partition("://")[0]
    for scheme, login in logins.items():
        if scheme == outer:
            options = {**login, **options}
        else:
            options = {**options, scheme: {**login, **options.get(scheme, {})}}
    return Recipe(url=clean, options=options, connection=connection)


def of_filesystem(fs: Any, path: str, connection: Connection | None) -> Recipe:
    """``fs`` is not used itself: its connections, and its kept listings, stay its owner's."""
    arguments = dict(fs.storage_options)
    if fs.storage_args:
        names = list(inspect.signature(type(fs).__init__).parameters)[1:]
        arguments.update(zip(names, fs.storage_args, strict=False))
    for name in ("skip_instance_cache", "asynchronous", "loop"):
        arguments.pop(name, None)
    for name, value in arguments.items():
        if isinstance(value, fsspec.AbstractFileSystem):
            arguments[name] = of_filesystem(value, "", None)
    return Recipe(make=type(fs), path=path, options=arguments, connection=connection)


def _login(scheme: str, user: str, password: str) -> dict[str, Any]:
    user, password = unquote(user), unquote(password)
    if scheme in ("http", "https"):
        basic = b64encode(f"{user}:{password}".encode()).decode()
        return {"headers": {"Authorization": f"Basic {basic}"}}
    return {"username": user, "password": password}


def _schemes(url: str) -> list[str]:
    """The schemes of a chained URL."""
    return [part.partition("://")[0] for part in url.split("::")]


def _guarded(options: Options) -> dict[str, Any]:
    from tensorstash.drivers.fsspec.redirects import guarded  # aiohttp, only where it is used

    return guarded(options)


def _is_http(make: Any) -> bool:
    names = getattr(make, "protocol", ())
    names = {names} if isinstance(names, str) else {*names}
    return (
        bool(names & _HTTP)
        and hasattr(make, "_cat_file")
        and "client_kwargs" in (inspect.signature(make.__init__).parameters)
    )


def _made(value: Any) -> Any:
    return value.open()[0] if isinstance(value, Recipe) else value


def _harmless(options: Options) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Recipe):
            kept[name] = value.without_secrets()
        elif isinstance(value, Mapping):
            kept[name] = _harmless(value)
        elif _is_plain(name, value):
            kept[name] = value
    return kept


def _is_plain(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return name in _PLAIN and not _LOGIN.search(value)
    return value is None or isinstance(value, bool | int | float)
