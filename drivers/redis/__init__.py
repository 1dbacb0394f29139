"""Values in Redis, Valkey or what speaks their protocol: ``redis://host:6379/0/some/prefix``.

``redis://[user:password@]host[:port][/db[/prefix]]``; ``rediss://`` is the same over TLS,
``unix:///path/of.sock?db=0&prefix=some/prefix`` a local socket. The prefix is taken as it is.
User and password are percent-decoded, or better given as options.

A value is stored plain at ``prefix/key``, so that any client can read it. Its version, which
conditions compare, stands beside it at ``prefix/folder/.tag{prefix/folder/key}``; a put stores
both in one step. What another program stored has no version: a digest of the bytes stands in.
A program that writes over a value of ours must drop its version too, or readers that keep
chunks will not notice.

What is durable is the server's matter. A put is in its memory when it returns: without an
append-only file, ``kill -9`` of the server loses what came after the last snapshot; with
``appendonly yes`` it loses nothing, and a power cut up to a second (``appendfsync everysec``)
or nothing (``always``). A failover may lose what a replica had not received. Either way a value
is whole, old or new. A server that evicts (``allkeys-lru``) forgets chunks, which then read as
fill values: use ``noeviction``, where a full server refuses puts with
:class:`~tensorstash.errors.NoSpace` and keeps what it has.
"""

from __future__ import annotations

from typing import Any

from tensorstash.drivers.redis.driver import RedisDriver
from tensorstash.drivers.redis.options import Connection, tcp_place, unix_place

__all__ = ["RedisDriver", "connect", "connect_rediss", "connect_unix"]


def connect(rest: str, *, connection: Connection | None = None, **options: Any) -> RedisDriver:
    """The values below a prefix of a Redis server. Nothing is sent before the first use.

    ``options`` are those of :class:`~tensorstash.drivers.redis.options.RedisOptions`.
    ``connection`` is a function that can be imported by name; called without arguments, once
    a process, it returns further options, the password say. It travels with pickles, which
    secrets do not.
    """
    place, credentials = tcp_place("redis", rest)
    return RedisDriver(place, {**credentials, **options}, connection)


def connect_rediss(
    rest: str, *, connection: Connection | None = None, **options: Any
) -> RedisDriver:
    """As :func:`connect`, over TLS: the options ``ca_certs``, ``certfile``, ``keyfile`` and
    ``verify`` are about the certificates."""
    place, credentials = tcp_place("rediss", rest)
    return RedisDriver(place, {**credentials, **options}, connection)


def connect_unix(rest: str, *, connection: Connection | None = None, **options: Any) -> RedisDriver:
    """As :func:`connect`, through the local socket ``/path.sock?db=0&prefix=some/prefix``."""
    return RedisDriver(unix_place(rest), options, connection)
