"""Puts to Redis: alone or many at once, with a condition or without."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice

from tensorstash.driver import REPAIR, Buffer, Parts, Put, Tag, flat
from tensorstash.drivers.redis.client import RedisClient, RedisRequest
from tensorstash.drivers.redis.commands import (
    ABSENT,
    ANY,
    DELETE,
    PATCH,
    PUT,
    RedisCommand,
    command,
    run,
)
from tensorstash.drivers.redis.keys import RedisKeys
from tensorstash.drivers.redis.parser import ReplyLimit
from tensorstash.drivers.redis.replies import done, flag, patched
from tensorstash.errors import Conflict, Corrupt, DriverError, Invalid, Unsupported, counted

LARGEST = 512 << 20
"""Bytes of a value: what a server takes unless it was told otherwise."""

ROUND_BYTES = 8 << 20
"""Bytes stored in one round trip; a value alone may be larger."""
COMMAND_BYTES = 256 << 10
ROUND_KEYS = 1000

_NEVER = b"no version"


class RedisWriting:
    """Writes through one client."""

    def __init__(self, client: RedisClient, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys

    def put(self, put: Put) -> Tag:
        """Store, under a condition or none, and return the new version."""
        [(_, version)] = self._each([(0, put, _data(put.key, put.value))])
        if version is None:
            raise Conflict(
                f"{put.key!r} was written by someone else first; read it again", key=put.key
            )
        return version

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        """Store each under its condition, several a round trip: ``(i, new version or None)``."""
        batch: list[tuple[int, Put, bytes]] = []
        size, keys = 0, set[str]()
        for i, put in enumerate(puts):
            data = _data(put.key, put.value)
            full = size + len(data) > ROUND_BYTES or len(batch) == ROUND_KEYS
            # Two puts of one key in a batch that is repeated would look like another writer's.
            if batch and (full or put.key in keys):
                yield from self._each(batch)
                batch, size, keys = [], 0, set()
            batch.append((i, put, data))
            size += len(data)
            keys.add(put.key)
        if batch:
            yield from self._each(batch)

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        """Store each, several a round trip."""
        batch: list[tuple[str, bytes]] = []
        size = 0
        for key, value in items:
            data = _data(key, value)
            if batch and (size + len(data) > ROUND_BYTES or len(batch) == ROUND_KEYS):
                self._round(batch)
                batch, size = [], 0
            batch.append((key, data))
            size += len(data)
        self._round(batch)

    def put_parts(self, values: Iterable[Parts]) -> None:
        """Write parts of values, several a round trip, each value's with a new version."""
        batch: list[Parts] = []
        size = 0
        for value in values:
            for piece in _pieces(value):
                nbytes = sum(len(data) for _, data in piece.parts)
                if batch and (size + nbytes > ROUND_BYTES or len(batch) == ROUND_KEYS):
                    self._patch(batch)
                    batch, size = [], 0
                batch.append(piece)
                size += nbytes
        if batch:
            self._patch(batch)

    def _patch(self, batch: list[Parts]) -> None:
        expire = self._client.options.expire
        lasts = b"0" if expire is None else b"%d" % max(int(expire * 1000), 1)
        steps: list[RedisCommand] = []
        keys: list[bytes] = []
        args: list[bytes] = []
        size = 0

        def end() -> None:
            if keys:
                number = len(keys) // 2
                limit = ReplyLimit(elements=number)
                steps.append(run(PATCH, patched(number), (*keys,), lasts, *args, limit=limit))

        for key, nbytes, fill, parts in batch:
            # Of a size that the server can carry out while the next one is sent.
            if keys and (size > COMMAND_BYTES or self._client.options.cluster):
                end()
                keys, args, size = [], [], 0
            keys += self._keys.pair(key)
            fill = fill if any(fill) else b""
            args += (os.urandom(12), b"%d" % nbytes, fill, b"%d" % len(parts))
            for start, data in parts:
                args += (b"%d" % start, bytes(data))
                size += len(data)
        end()
        replies, _ = self._client.execute(_request(batch[0].key, len(batch)), steps)
        sizes = [each for reply in replies for each in reply]
        for value, stored in zip(batch, sizes, strict=True):
            if stored == -1:
                continue
            if len(value.parts) == 1 and len(value.parts[0][1]) == value.nbytes:
                self.put(Put(value.key, value.parts[0][1]))  # all of it: repaired
                continue
            raise Corrupt(
                f"{counted(stored, 'byte is', 'bytes are')} stored at key {value.key!r}, "
                f"{value.nbytes} make a chunk" + REPAIR,
                key=value.key,
            )

    def delete_each(self, pairs: Iterable[tuple[str, Tag]]) -> Iterator[tuple[str, Tag]]:
        """Drop what is still of these versions; yields what is stored in another one."""
        source = iter(pairs)
        while batch := [*islice(source, ROUND_KEYS)]:
            steps = [
                run(DELETE, flag, self._keys.pair(key), tag if isinstance(tag, bytes) else _NEVER)
                for key, tag in batch
            ]
            more = f"and {len(batch) - 1} more" if len(batch) > 1 else ""
            request = RedisRequest("delete", batch[0][0], writes=True, detail=more)
            replies, _ = self._client.execute(request, steps)
            for pair, reply in zip(batch, replies, strict=True):
                if not reply:
                    yield pair

    def _each(self, batch: list[tuple[int, Put, bytes]]) -> Iterator[tuple[int, Tag | None]]:
        versions = [os.urandom(12) for _ in batch]
        steps = [
            self._conditional(put, data, version)
            for (_, put, data), version in zip(batch, versions, strict=True)
        ]
        request = _request(batch[0][1].key, len(batch))
        replies, repeated = self._client.execute(request, steps)
        for n, (i, put, _) in enumerate(batch):
            if not replies[n] and n in repeated:
                raise DriverError(
                    f"write {put.key!r} at {self._client.place.server}: the reply was lost, and "
                    "since then another writer stored a value, so whether it was carried out is "
                    "unknown; read it again",
                    key=put.key,
                    driver="redis",
                )
            yield i, versions[n] if replies[n] else None

    def _conditional(self, put: Put, data: bytes, version: bytes) -> RedisCommand:
        key, _, if_absent, if_tag = put
        if if_absent:
            if if_tag is not None:
                raise Invalid(f"put of {key!r} takes if_absent or if_tag, not both")
            return self._script(key, data, version, ABSENT)
        if if_tag is None:
            return self._step(key, data, version)
        return self._script(key, data, version, if_tag if isinstance(if_tag, bytes) else _NEVER)

    def _round(self, batch: list[tuple[str, bytes]]) -> None:
        if not batch:
            return
        request = _request(batch[0][0], len(batch))
        options = self._client.options
        if options.cluster or options.expire is not None:
            steps = [self._step(key, data, os.urandom(12)) for key, data in batch]
        else:
            steps = self._together(batch)
        self._client.execute(request, steps)

    def _together(self, batch: list[tuple[str, bytes]]) -> list[RedisCommand]:
        """Commands of a size that the server can carry out while the next one is sent."""
        steps: list[RedisCommand] = []
        args: list[bytes] = []
        size = 0
        versions = os.urandom(12 * len(batch))
        for i, (key, data) in enumerate(batch):
            if args and size + len(data) > COMMAND_BYTES:
                steps.append(command(b"MSET", done, *args))
                args, size = [], 0
            place, tag = self._keys.pair(key)
            args += (place, data, tag, versions[12 * i : 12 * i + 12])
            size += len(data)
        return [*steps, command(b"MSET", done, *args)]

    def _step(self, key: str, data: bytes, version: bytes) -> RedisCommand:
        if self._client.options.expire is not None:
            return self._script(key, data, version, ANY)
        place, tag = self._keys.pair(key)
        return command(b"MSET", done, place, data, tag, version)

    def _script(self, key: str, data: bytes, version: bytes, expected: bytes) -> RedisCommand:
        expire = self._client.options.expire
        milliseconds = b"0" if expire is None else b"%d" % max(int(expire * 1000), 1)
        return run(PUT, flag, self._keys.pair(key), data, version, expected, milliseconds)


def _pieces(value: Parts) -> Iterator[Parts]:
    """``value`` in steps that the server can carry out while others wait."""
    if value.nbytes > LARGEST:
        raise _too_large(value.key, value.nbytes)
    some: list[tuple[int, Buffer]] = []
    size = 0
    for start, data in value.parts:
        flat_data = flat(data)
        if some and (size + len(flat_data) > ROUND_BYTES or len(some) == ROUND_KEYS):
            yield value._replace(parts=some)
            some, size = [], 0
        some.append((start, flat_data))
        size += len(flat_data)
    if some or not value.parts:
        yield value._replace(parts=some)


def _request(key: str, count: int) -> RedisRequest:
    more = f"and {count - 1} more" if count > 1 else ""
    return RedisRequest("write", key, writes=True, detail=more)


def _data(key: str, value: Buffer) -> bytes:
    size = len(value) if type(value) is bytes else memoryview(value).nbytes
    if size > LARGEST:
        raise _too_large(key, size)
    return bytes(value)


def _too_large(key: str, size: int) -> Unsupported:
    return Unsupported(
        f"{key!r} has {counted(size, 'byte')}, and Redis takes {LARGEST} a value; use "
        f"smaller chunks"
    )
