"""Redis through a local socket: ``unix:///run/redis.sock?db=0&prefix=some/prefix``."""

from __future__ import annotations

from typing import Any

from tensorstash.drivers.redis import RedisDriver
from tensorstash.drivers.redis.options import Connection
from tensorstash.drivers.redis.place import unix_place


def connect(rest: str, *, connection: Connection | None = None, **options: Any) -> RedisDriver:
    """As :func:`tensorstash.drivers.redis.connect`; database and prefix are in the query."""
    return RedisDriver(unix_place(rest), options, connection)
