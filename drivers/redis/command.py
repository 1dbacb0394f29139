"""One command to a Redis server, and what a server answered."""

from __future__ import annotations

from typing import Any, NamedTuple

from tensorstash.drivers.redis.parser import LITTLE, Room
from tensorstash.drivers.redis.replies import Fits
from tensorstash.drivers.redis.scripts import Script


class RedisCommand(NamedTuple):
    """``args`` as they are sent; ``key`` decides about the node of a cluster (empty: any);
    ``fits`` tells a reply from what is none; ``script`` is what ``args`` run, for a server that
    does not know it yet; ``room`` is what the reply may take."""

    key: bytes
    args: tuple[bytes, ...]
    fits: Fits
    script: Script | None = None
    room: Room = LITTLE

    def spelled_out(self) -> RedisCommand:
        """The same with the script's text instead of its name."""
        if self.script is None:
            return self
        return self._replace(args=(b"EVAL", self.script.body, *self.args[2:]))


def run(
    script: Script, fits: Fits, keys: tuple[bytes, ...], *args: bytes, room: Room = LITTLE
) -> RedisCommand:
    """The command that runs ``script``."""
    count = b"%d" % len(keys)
    sent = (b"EVALSHA", script.name, count, *keys, *args)
    return RedisCommand(keys[0], sent, fits, script, room)


def command(name: bytes, fits: Fits, key: bytes, *args: bytes, room: Room = LITTLE) -> RedisCommand:
    """The command ``name key args...``."""
    return RedisCommand(key, (name, key, *args), fits, None, room)


def weigh(value: Any) -> int:
    """The bytes in an answer."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(len(each) if type(each) is bytes else weigh(each) for each in value)
    return 0
