"""Puts to Redis: alone or many at once, with a condition or without."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tensorstash.driver import Buffer, Tag
from tensorstash.drivers.redis_command import RedisCommand, command, run
from tensorstash.drivers.redis_keys import RedisKeys
from tensorstash.drivers.redis_link import Errand, RedisLink
from tensorstash.drivers.redis_scripts import ABSENT, ANY, PUT
from tensorstash.errors import Conflict, DriverError, Unsupported

LARGEST = 512 << 20
"""Bytes of a value: what a server takes unless it was told otherwise."""

ROUND_BYTES = 8 << 20
"""Bytes stored in one round trip; a value alone may be larger."""
COMMAND_BYTES = 256 << 10
ROUND_KEYS = 1000

_NEVER = b"no version"


class RedisWriting:
    """Writes through one link."""

    def __init__(self, link: RedisLink, keys: RedisKeys) -> None:
        self._link = link
        self._keys = keys

    def put(self, key: str, value: Buffer, *, if_absent: bool, if_tag: Tag | None) -> Tag:
        """Store, under a condition or none, and answer the new version."""
        data, version = _data(key, value), os.urandom(12)
        errand = Errand("write", key, writes=True)
        if not if_absent and if_tag is None:
            self._link.ask(errand, [self._step(key, data, version)])
            return version
        expected = ABSENT if if_absent else if_tag if isinstance(if_tag, bytes) else _NEVER
        step = self._script(key, data, version, expected)
        [stored], repeated = self._link.ask(errand, [step])
        if stored:
            return version
        if repeated:
            raise DriverError(
                f"{errand} at {self._link.place.server}: the reply was lost, and since then "
                "another writer stored a value, so whether it was carried out is unknown; read "
                "it again",
                key=key,
                driver="redis",
            )
        raise Conflict(f"{key!r} was written by someone else first; read it again", key=key)

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

    def _round(self, batch: list[tuple[str, bytes]]) -> None:
        if not batch:
            return
        more = f"and {len(batch) - 1} more" if len(batch) > 1 else ""
        errand = Errand("write", batch[0][0], writes=True, detail=more)
        options = self._link.options
        if options.cluster or options.expire is not None:
            steps = [self._step(key, data, os.urandom(12)) for key, data in batch]
        else:
            steps = self._together(batch)
        self._link.ask(errand, steps)

    def _together(self, batch: list[tuple[str, bytes]]) -> list[RedisCommand]:
        """Commands of a size that the server can carry out while the next one is sent."""
        steps: list[RedisCommand] = []
        args: list[bytes] = []
        size = 0
        versions = os.urandom(12 * len(batch))
        for i, (key, data) in enumerate(batch):
            if args and size + len(data) > COMMAND_BYTES:
                steps.append(command(b"MSET", *args))
                args, size = [], 0
            place, tag = self._keys.pair(key)
            args += (place, data, tag, versions[12 * i : 12 * i + 12])
            size += len(data)
        return [*steps, command(b"MSET", *args)]

    def _step(self, key: str, data: bytes, version: bytes) -> RedisCommand:
        if self._link.options.expire is not None:
            return self._script(key, data, version, ANY)
        place, tag = self._keys.pair(key)
        return command(b"MSET", place, data, tag, version)

    def _script(self, key: str, data: bytes, version: bytes, expected: bytes) -> RedisCommand:
        expire = self._link.options.expire
        milliseconds = b"0" if expire is None else b"%d" % max(int(expire * 1000), 1)
        return run(PUT, self._keys.pair(key), data, version, expected, milliseconds)


def _data(key: str, value: Buffer) -> bytes:
    data = value if type(value) is bytes else bytes(memoryview(value))
    if len(data) > LARGEST:
        raise Unsupported(
            f"{key!r} has {len(data)} bytes, and Redis takes {LARGEST} a value; use smaller chunks"
        )
    return data
