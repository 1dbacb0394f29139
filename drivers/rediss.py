"""Redis over TLS: ``rediss://host:6379/0/some/prefix``; see ``redis.py``."""

from __future__ import annotations

from typing import Any

from tensorstash.drivers.redis import RedisDriver
from tensorstash.drivers.redis.options import Connection
from tensorstash.drivers.redis.place import tcp_place


def connect(rest: str, *, connection: Connection | None = None, **options: Any) -> RedisDriver:
    """As :func:`tensorstash.drivers.redis.connect`; the options ``ca_certs``, ``certfile``,
    ``keyfile`` and ``verify`` are about the certificates."""
    place, credentials = tcp_place("rediss", rest)
    return RedisDriver(place, {**credentials, **options}, connection)
