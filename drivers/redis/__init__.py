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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tensorstash.cached import PerProcess
from tensorstash.driver import (
    Buffer,
    Capabilities,
    Driver,
    Put,
    Request,
    Span,
    Tag,
    Traffic,
    check_prefix,
)
from tensorstash.drivers.keeper import Kept
from tensorstash.drivers.redis.keys import RedisKeys, is_ours
from tensorstash.drivers.redis.link import Errand, RedisLink
from tensorstash.drivers.redis.listing import RedisListing, drop
from tensorstash.drivers.redis.lock import lease
from tensorstash.drivers.redis.options import Connection, options_of
from tensorstash.drivers.redis.place import RedisPlace, tcp_place
from tensorstash.drivers.redis.reading import RedisReading
from tensorstash.drivers.redis.writing import RedisWriting
from tensorstash.errors import Invalid


def connect(rest: str, *, connection: Connection | None = None, **options: Any) -> RedisDriver:
    """The values below a prefix of a Redis server. Nothing is sent before the first use.

    ``options`` are those of :class:`~tensorstash.drivers.redis.options.RedisOptions`.
    ``connection`` is a function that can be imported by name; called without arguments, once
    a process, it answers further options, the password say. It travels with pickles, which
    secrets do not.
    """
    place, credentials = tcp_place("redis", rest)
    return RedisDriver(place, {**credentials, **options}, connection)


class RedisDriver(Driver):
    """One Redis key a value, and one beside it for its version.

    Tags are 12 random bytes, new with every put. A batch is one round trip of up to 16 MiB.
    ``list_dir`` looks at the names of all keys of the database, as Redis has no folders.
    """

    # A further range of a value costs the server and us 2 us, as 1 KiB over a wire does.
    capabilities = Capabilities(gap_bytes=1024, concurrency=16, leases=True)

    def __init__(
        self,
        place: RedisPlace,
        options: Mapping[str, Any],
        connection: Connection | None = None,
    ) -> None:
        """See :func:`connect`."""
        if connection is not None and not callable(connection):
            raise Invalid(f"connection is a function, not {type(connection).__name__}")
        if options_of(options, f"driver {place.scheme!r}").cluster and (place.db or place.path):
            raise Invalid("a Redis cluster has database 0 only, and no sockets")
        self.scheme = place.scheme
        self._place = place
        self._given = dict(options)
        self._connection = connection
        self._keys = RedisKeys(place.prefix and place.prefix + "/")
        link = partial(RedisLink, place, self._given, connection)
        self._processes = PerProcess(partial(_Process, link, self._keys))

    @property
    def url(self) -> str:
        """``redis://host:port/db/prefix``, without user and password."""
        return self._place.url

    @property
    def traffic(self) -> Traffic:
        """Round trips and bytes of this process (keys and versions included)."""
        return self._process.link.traffic

    # -- reading ------------------------------------------------------------------

    def get(self, key: str, span: Span | None = None) -> Buffer | None:
        """The value, or bytes ``span`` of it, as ``bytes``."""
        if span is None:
            return self._process.reading.value(key)
        found = self._process.reading.one(Request(key, span))
        return None if found is None else found[0]

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        """The value, or bytes ``span`` of it, with its version, in one round trip."""
        return self._process.reading.one(Request(key, span))

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        """In order, up to 1,000 values or 16 MiB a round trip."""
        plain = (each if each[2] is None else each._replace(unless=None) for each in requests)
        for i, found in self._process.reading.many(plain, tags=False):
            yield i, None if found is None else found[0]

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """In order, up to 1,000 values or 16 MiB a round trip."""
        return self._process.reading.many(requests)

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        """Parts of one version, in one step of the server for every 16 MiB."""
        if not spans:
            return super().get_ranges(key, spans, tag)
        return self._process.reading.ranges(key, spans, tag)

    def tag(self, key: str) -> Tag | None:
        """The stored version."""
        return self._process.reading.tag(key)

    # -- writing ------------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        """Store value and version in one step. :class:`Unsupported` beyond 512 MiB."""
        return self._process.writing.put(Put(key, value, if_absent, if_tag))

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Store each, up to 1,000 values or 8 MiB a round trip."""
        self._process.writing.put_many(items)

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        """In order, up to 1,000 values or 8 MiB a round trip."""
        return self._process.writing.put_each(puts)

    def delete(self, key: str) -> None:
        """Drop value and version."""
        drop(self._process.link, Errand("delete", key, writes=True), self._keys.pair(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Drop values and versions, 1,000 values a round trip."""
        batch: list[bytes] = []
        errand = Errand("delete", "", writes=True)
        for key in keys:
            errand = errand if batch else Errand("delete", key, writes=True)
            batch += self._keys.pair(key)
            if len(batch) == 2000:
                drop(self._process.link, errand, batch)
                batch = []
        drop(self._process.link, errand, batch)

    def delete_each(self, pairs: Iterable[tuple[str, Tag]]) -> Iterator[tuple[str, Tag]]:
        """In order, 1,000 values a round trip."""
        return self._process.writing.delete_each(pairs)

    def delete_prefix(self, prefix: str) -> None:
        """Drop everything below ``prefix`` except locks that are held."""
        self._process.listing.clear(check_prefix(prefix))

    def kept(self, key: str) -> str | None:
        """Names of versions and locks. (These need no pruning: a version goes with its value, and
        a lock by itself.)"""
        names = f"{self._keys.prefix}{key}".split("/")
        return next((name for name in names if is_ours(name)), None)

    # -- listing ------------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        """Every key below ``prefix``, by SCAN."""
        return self._process.listing.keys(check_prefix(prefix))

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        """Names directly below ``prefix``, by SCAN."""
        return self._process.listing.folder(check_prefix(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every key below ``prefix`` with its size, without reading values."""
        return self._process.listing.sizes(check_prefix(prefix))

    # -- locking ------------------------------------------------------------------

    def lock(self, key: str, timeout: float | None = None) -> Kept:
        """Hold the name ``key`` alone, for the option ``lease`` seconds at a time, prolonged by a
        thread; the lock of a holder that died is free after that."""
        return lease(self._process.link, key, self._keys.lock(key), timeout)

    # -- handle -------------------------------------------------------------------

    def close(self) -> None:
        """Close idle connections."""
        self._process.link.close()

    @property
    def _process(self) -> _Process:
        return self._processes.here()

    def __reduce__(self) -> tuple[Callable[..., RedisDriver], tuple[Any, ...]]:
        """Without the password."""
        given = {name: value for name, value in self._given.items() if name != "password"}
        return type(self), (self._place, given, self._connection)


class _Process:
    """What one process uses."""

    def __init__(self, connect: Callable[[], RedisLink], keys: RedisKeys) -> None:
        self.link = link = connect()
        self.reading = RedisReading(link, keys)
        self.writing = RedisWriting(link, keys)
        self.listing = RedisListing(link, keys)
