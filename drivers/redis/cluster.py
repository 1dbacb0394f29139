"""Which node of a Redis cluster serves which slots, as the nodes themselves say."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import AskError, ClusterDownError

from tensorstash.drivers.redis.commands import RedisCommand
from tensorstash.drivers.redis.keys import SLOT_COUNT, slot
from tensorstash.drivers.redis.parser import ReplyLimit
from tensorstash.drivers.redis.replies import done, slots

Address = tuple[str, int]

ASKING = RedisCommand(b"", (b"ASKING",), done)
SLOTS = RedisCommand(
    b"", (b"CLUSTER", b"SLOTS"), slots, limit=ReplyLimit(elements=1 << 19, nbytes=16 << 20)
)


class RedisCluster(NamedTuple):
    """Ranges of slots, sorted: where each begins and ends, and its primary."""

    starts: Sequence[int]
    ends: Sequence[int]
    owners: Sequence[Address]

    def owner(self, key: bytes) -> Address:
        """The node that serves ``key``."""
        number = slot(key)
        i = bisect_right(self.starts, number) - 1
        if i < 0 or number > self.ends[i]:
            raise ClusterDownError(f"no node serves slot {number}")
        return self.owners[i]

    @property
    def whole(self) -> bool:
        """Whether every slot is served."""
        return sum(self.ends) - sum(self.starts) + len(self.ends) == SLOT_COUNT

    @property
    def primaries(self) -> list[Address]:
        """Every node that serves slots."""
        return sorted({*self.owners})


def cluster_of(answer: Any, asked: Address) -> RedisCluster:
    """From what ``CLUSTER SLOTS`` answered to one who asked at ``asked``."""
    ranges = sorted(
        (int(start), int(end), ((primary[0] or b"").decode() or asked[0], int(primary[1])))
        for start, end, primary, *_ in answer
    )
    if not ranges:
        raise ClusterDownError("no node serves any slot")
    starts, ends, owners = zip(*ranges, strict=True)
    return RedisCluster(starts, ends, owners)


def redirected(error: AskError, asked: Address) -> Address:
    """Where a ``MOVED`` or ``ASK`` points."""
    return error.host or asked[0], error.port
