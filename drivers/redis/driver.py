"""Keys to Redis keys, one a value and one beside it for its version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tensorstash.cached import PerProcess
from tensorstash.driver import (
    Buffer,
    Capabilities,
    Driver,
    Parts,
    Put,
    Request,
    Span,
    Tag,
    Traffic,
    check_prefix,
)
from tensorstash.drivers.lease import LeaseLock
from tensorstash.drivers.redis.client import RedisClient, RedisRequest
from tensorstash.drivers.redis.keys import RedisKeys, is_ours
from tensorstash.drivers.redis.listing import RedisListing, drop
from tensorstash.drivers.redis.lock import lease
from tensorstash.drivers.redis.options import Connection, RedisPlace, options_of
from tensorstash.drivers.redis.reading import RedisReading
from tensorstash.drivers.redis.writing import RedisWriting
from tensorstash.errors import Invalid


class RedisDriver(Driver):
    """One Redis key a value, and one beside it for its version.

    Tags are 12 random bytes, new with every put. A batch is one round trip of up to 16 MiB.
    ``list_dir`` looks at the names of all keys of the database, as Redis has no folders.
    """

    # A further range of a value costs the server and us 2 us, as 1 KiB over a wire does.
    capabilities = Capabilities(
        gap_bytes=1024, concurrency=16, leases=True, in_place=True, folders=False
    )

    def __init__(
        self,
        place: RedisPlace,
        options: Mapping[str, Any],
        connection: Connection | None = None,
    ) -> None:
        """See :func:`tensorstash.drivers.redis.connect`."""
        if connection is not None and not callable(connection):
            raise Invalid(f"connection is a function, not {type(connection).__name__}")
        if options_of(options, f"driver {place.scheme!r}").cluster and (place.db or place.path):
            raise Invalid("a Redis cluster has database 0 only, and no sockets")
        self.scheme = place.scheme
        self._place = place
        self._given = dict(options)
        self._connection = connection
        self._keys = RedisKeys(place.prefix and place.prefix + "/")
        client = partial(RedisClient, place, self._given, connection)
        self._processes = PerProcess(partial(_Process, client, self._keys))

    @property
    def url(self) -> str:
        """``redis://host:port/db/prefix``, without user and password."""
        return self._place.url

    @property
    def traffic(self) -> Traffic:
        """Round trips and bytes of this process (keys and versions included)."""
        return self._process.client.traffic

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

    def get_parts(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        """In order, up to 1,000 values or 16 MiB a round trip; by GETRANGE."""
        return self._process.reading.many(requests, loose=True)

    def gather(
        self,
        wanted: Sequence[tuple[str, Sequence[int]]],
        nbytes: int,
        beside: Request | None = None,
    ) -> tuple[Sequence[Buffer | None], tuple[Buffer, Tag] | None]:
        """By a script, up to 1,000 values or 16 MiB a round trip."""
        return self._process.reading.gather(wanted, nbytes, beside)

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

    def put_parts(self, values: Iterable[Parts]) -> None:
        """In order, up to 1,000 values or 8 MiB a round trip; each value's parts in one step, which
        gives it another version."""
        self._process.writing.put_parts(values)

    def flush(self, prefix: str) -> None:
        """Nothing: whoever replied has it, and the server decides when its disk has."""

    def delete(self, key: str) -> None:
        """Drop value and version."""
        drop(self._process.client, RedisRequest("delete", key, writes=True), self._keys.pair(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        """Drop values and versions, 1,000 values a round trip."""
        batch: list[bytes] = []
        request = RedisRequest("delete", "", writes=True)
        for key in keys:
            request = request if batch else RedisRequest("delete", key, writes=True)
            batch += self._keys.pair(key)
            if len(batch) == 2000:
                drop(self._process.client, request, batch)
                batch = []
        drop(self._process.client, request, batch)

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

    def lock(self, key: str, timeout: float | None = None) -> LeaseLock:
        """Hold the name ``key`` alone, for the option ``lease`` seconds at a time, prolonged by a
        thread; the lock of a holder that died is free after that."""
        return lease(self._process.client, key, self._keys.lock(key), timeout)

    # -- handle -------------------------------------------------------------------

    def close(self) -> None:
        """Close idle connections."""
        self._process.client.close()

    @property
    def _process(self) -> _Process:
        return self._processes.here()

    def __reduce__(self) -> tuple[Callable[..., RedisDriver], tuple[Any, ...]]:
        """Without the password."""
        given = {name: value for name, value in self._given.items() if name != "password"}
        return type(self), (self._place, given, self._connection)


class _Process:
    """What one process uses."""

    def __init__(self, connect: Callable[[], RedisClient], keys: RedisKeys) -> None:
        self.client = client = connect()
        self.reading = RedisReading(client, keys)
        self.writing = RedisWriting(client, keys)
        self.listing = RedisListing(client, keys)
