"""Arrays on a web server over TLS; see ``http.py``."""

from __future__ import annotations

from typing import Any

from tensorstash.drivers import http
from tensorstash.drivers.fsspec.recipe import Connection


def connect(
    rest: str,
    *,
    whole: bool = False,
    index_pages: bool = False,
    connection: Connection | None = None,
    timeout: float = 50.0,
    weak_tags: bool = False,
    **options: Any,
) -> http.HttpDriver:
    """What lies below ``https://rest``; the options are those of ``http``."""
    return http.connect_url(
        f"https://{rest}", whole, index_pages, connection, timeout, weak_tags, options
    )
