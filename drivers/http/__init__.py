"""Arrays on a web server: ``http://`` and ``https://``, read only, by fsspec's HTTP client.

A plain server lists nothing reliably: opening an array by its URL needs no listing, walking a
group does, unless its metadata is consolidated.

A body is read no further than what was asked for can be long: the part, the bytes that the
request says a value can have, or else what Content-Length announces, as it arrives; one without
an end is cut at 256 MiB. Redirects are followed, ten of them at most; another origin (scheme,
host or port) gets no header, cookie or login that the user gave, and https:// never leads to
http://. The tag is the ETag of where they end.
"""

from __future__ import annotations

from typing import Any

from tensorstash.drivers.fsspec.options import Connection, of_url
from tensorstash.drivers.http.driver import HttpDriver
from tensorstash.errors import Invalid

__all__ = ["HttpDriver", "connect", "connect_https"]


def connect(
    rest: str,
    *,
    whole: bool = False,
    index_pages: bool = False,
    connection: Connection | None = None,
    timeout: float = 50.0,
    weak_tags: bool = False,
    **options: Any,
) -> HttpDriver:
    """What lies below ``http://rest``. Options beside these are those of fsspec's
    ``HTTPFileSystem``: ``headers``, ``client_kwargs``, ``ssl``.

    A server that cannot send part of a value raises :class:`Unsupported`; with ``whole`` the
    value is read whole then, and cut here. ``index_pages`` takes the links of the server's
    pages for a listing. With ``weak_tags`` a time or a weak ETag counts as a version.
    """
    return _connect(f"http://{rest}", whole, index_pages, connection, timeout, weak_tags, options)


def connect_https(
    rest: str,
    *,
    whole: bool = False,
    index_pages: bool = False,
    connection: Connection | None = None,
    timeout: float = 50.0,
    weak_tags: bool = False,
    **options: Any,
) -> HttpDriver:
    """As :func:`connect`, of what lies below ``https://rest``."""
    return _connect(f"https://{rest}", whole, index_pages, connection, timeout, weak_tags, options)


def _connect(
    url: str,
    whole: bool,
    index_pages: bool,
    connection: Connection | None,
    timeout: float,
    weak_tags: bool,
    options: dict[str, Any],
) -> HttpDriver:
    if "?" in url or "#" in url:
        raise Invalid(
            "a URL with '?' or '#' names one object, not a place that holds an array; give what "
            "the server asks for as options={'headers': ...}"
        )
    recipe = of_url(url, options, connection)
    return HttpDriver(
        recipe, timeout=timeout, weak_tags=weak_tags, whole=whole, index_pages=index_pages
    )
