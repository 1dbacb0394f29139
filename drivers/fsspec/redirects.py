"""Redirects of fsspec's HTTP filesystem: what follows to another origin, and what does not.

aiohttp takes ``Authorization`` and ``Cookie`` away there, but sends on every other header that
the user gave, and the login and cookies of the session anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import TraceConfig
from multidict import CIMultiDict
from yarl import URL

from tensorstash.errors import Denied, DriverError

_OURS = {"accept-encoding", "if-none-match", "range"}
"""Headers that every request sets itself; aiohttp adds its own to those that are left."""


def guarded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an ``HTTPFileSystem``, so that what the user gave for one origin stays there."""
    found = dict(options)
    client = dict(found.get("client_kwargs") or {})
    # Those of a session go along to every origin; those of a request end where it is left.
    if "cookies" in client:
        found.setdefault("cookies", client.pop("cookies"))
    for login in (found.pop("auth", None), client.pop("auth", None)):
        if login is not None:
            found["headers"] = {"Authorization": login.encode(), **(found.get("headers") or {})}
    config = TraceConfig()
    config.on_request_redirect.append(_redirected)
    client["trace_configs"] = [*client.get("trace_configs", ()), config]
    found["client_kwargs"] = client
    return found


async def _redirected(_: object, __: object, params: Any) -> None:
    location = params.response.headers.get("Location") or params.response.headers.get("URI")
    if location is not None:
        follow(params.url, location, params.headers)


def follow(url: URL, location: str, headers: CIMultiDict[str]) -> None:
    """Take from ``headers``, with which ``url`` was asked, what must not go to ``location``;
    :class:`Denied` where it must not be asked at all."""
    try:
        target = url.join(URL(location))
        same = target.origin() == url.origin()
    except ValueError as error:
        raise DriverError(
            f"{url.host} redirects to an address that is none; correct it there", driver="http"
        ) from error
    if same:
        return
    if url.scheme == "https" and target.scheme != "https":
        raise Denied(
            f"{url.host} redirects to {target.host} without TLS, where anyone on the way could "
            "change what is read; correct it there, or give the http:// URL itself",
            driver="https",
        )
    for name in [name for name in headers if name.lower() not in _OURS]:
        headers.popall(name, None)
