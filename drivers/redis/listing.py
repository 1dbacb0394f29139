"""Walks over the names that Redis holds, by SCAN: in steps, never blocking the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tensorstash.drivers.redis.client import RedisClient, RedisRequest
from tensorstash.drivers.redis.commands import RedisCommand, command
from tensorstash.drivers.redis.keys import RedisKeys, encode, is_lock
from tensorstash.drivers.redis.parser import ReplyLimit
from tensorstash.drivers.redis.replies import count, scanned
from tensorstash.errors import DriverError

_COUNT = b"10000"  # names a step: a few ms of the server
_BATCH = 1000
_PAGE = ReplyLimit(elements=1 << 20, nbytes=64 << 20)
_EMPTY_PAGES = 1 << 20
"""Steps without a name of ours after which no server of 2^32 keys, the most, goes on."""


class RedisListing:
    """Listings through one client."""

    def __init__(self, client: RedisClient, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys

    def keys(self, prefix: str) -> Iterator[str]:
        """Every key that starts with ``prefix``, once."""
        seen: set[str] = set()  # SCAN may repeat what it said
        for page in self._pages(prefix, RedisRequest("list", prefix)):
            for place in page:
                key = self._keys.key(place)
                if key is not None and key not in seen:
                    seen.add(key)
                    yield key

    def folder(self, prefix: str) -> tuple[Sequence[str], Sequence[str]]:
        """Names directly below ``prefix``: keys and folders, both sorted."""
        skip = len(prefix)
        names: set[str] = set()
        folders: set[str] = set()
        for page in self._pages(prefix, RedisRequest("list", prefix)):
            for place in page:
                key = self._keys.key(place)
                if key is not None:
                    name, slash, _ = key[skip:].partition("/")
                    (folders if slash else names).add(name)
        return sorted(names), sorted(folders)

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every key with the bytes of its value."""
        batch: list[str] = []
        for key in self.keys(prefix):
            batch.append(key)
            if len(batch) == _BATCH:
                yield from self._sizes(batch)
                batch = []
        yield from self._sizes(batch)

    def clear(self, prefix: str) -> None:
        """Drop everything that starts with ``prefix``, but for locks: their holders live."""
        request = RedisRequest("delete", prefix, writes=True)
        for page in self._pages(prefix, request):
            places = [place for place in page if not is_lock(place)]
            for i in range(0, len(places), _BATCH):
                drop(self._client, request, places[i : i + _BATCH])

    def _sizes(self, batch: list[str]) -> list[tuple[str, int]]:
        if not batch:
            return []
        steps: list[RedisCommand] = []
        for key in batch:
            place = self._keys.value(key)
            steps += (command(b"EXISTS", count(1), place), command(b"STRLEN", count(), place))
        replies, _ = self._client.execute(RedisRequest("size", batch[0], detail=len(batch)), steps)
        there, sizes = replies[::2], replies[1::2]
        return [
            pair for pair, yes in zip(zip(batch, sizes, strict=True), there, strict=True) if yes
        ]

    def _pages(self, prefix: str, request: RedisRequest) -> Iterator[list[bytes]]:
        pattern = self._keys.below(prefix)
        validator = scanned(encode(self._keys.prefix + prefix, prefix))
        for node in self._client.nodes(request):
            cursor = b"0"
            walk = _Walk(str(request), self._client.place.server)
            while True:
                args = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _COUNT)
                [[cursor, names]], _ = self._client.execute(
                    request, [RedisCommand(b"", args, validator, limit=_PAGE)], node=node
                )
                yield names
                if cursor == b"0":
                    break
                walk.check(cursor, bool(names))


class _Walk:
    """A walk by SCAN, which ends: a cursor never comes again."""

    def __init__(self, what: str, server: str) -> None:
        self._what = what
        self._server = server
        self._seen: set[bytes] = set()
        self._empty = 0

    def check(self, cursor: bytes, found: bool) -> None:
        """:class:`DriverError` where what the server says next cannot be new."""
        self._empty = 0 if found else self._empty + 1
        if cursor in self._seen or self._empty > _EMPTY_PAGES:
            raise DriverError(
                f"{self._what} at {self._server} does not end: the server repeats a cursor of "
                "SCAN, or never says that it is done; check what server listens there",
                driver="redis",
            )
        self._seen.add(cursor)


def drop(client: RedisClient, request: RedisRequest, places: Sequence[bytes]) -> None:
    """Drop these names, whatever they hold, in the background of the server."""
    if not places:
        return
    if client.options.cluster:
        client.execute(request, [command(b"UNLINK", count(1), place) for place in places])
    else:
        client.execute(request, [command(b"UNLINK", count(len(places)), *places)])
