"""Requests to Redis: sent together, repeated within a time limit, counted and logged."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from tensorstash.driver import Traffic, turn
from tensorstash.drivers.redis.cluster import (
    ASKING,
    SLOTS,
    Address,
    RedisCluster,
    cluster_of,
    redirected,
)
from tensorstash.drivers.redis.commands import RedisCommand, size_of
from tensorstash.drivers.redis.connections import RedisConnections, TimeIsUp, receive, send
from tensorstash.drivers.redis.errors import failed, judge
from tensorstash.drivers.redis.options import (
    Connection,
    RedisOptions,
    RedisPlace,
    from_factory,
    options_of,
)
from tensorstash.drivers.redis.parser import ReadAgain

_log = logging.getLogger("tensorstash")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
_PASSING = (AskError, MovedError, ReadAgain, NoScriptError)
_MOST_PASSING = 5
_REFUSED = (AuthenticationError, BusyLoadingError)
"""Errors of a connection that mean that nothing was carried out."""


_Routes = dict[Address, list[int]]


class RedisRequest(NamedTuple):
    """What commands are for, in logs and messages; whether they change anything."""

    verb: str
    key: str
    writes: bool = False
    detail: object = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.key!r}"


class Replies(NamedTuple):
    """One reply a command; ``repeated``: those whose earlier attempt may have been carried out."""

    replies: list[Any]
    repeated: set[int]


class RedisClient:
    """One process' requests to one place; may be used by many threads."""

    def __init__(
        self, place: RedisPlace, given: Mapping[str, Any], connection: Connection | None
    ) -> None:
        self.place = place
        self.traffic = Traffic()
        self._given = given
        self._connection = connection
        self._guard = threading.Lock()
        self._options: RedisOptions | None = None
        self._pools: dict[Address, RedisConnections] = {}
        self._cluster: RedisCluster | None = None

    @property
    def options(self) -> RedisOptions:
        """All options, those of the user's ``connection`` included, which is called now."""
        if self._options is None:
            with turn(self._guard):
                if self._options is None:
                    options = options_of({**from_factory(self._connection), **self._given}, "redis")
                    if options.password is None and "REDISCLI_AUTH" in os.environ:
                        options = replace(options, password=os.environ["REDISCLI_AUTH"])
                    self._options = options
        return self._options

    def close(self) -> None:
        """Close idle connections."""
        for pool in [*self._pools.values()]:
            pool.close()
        self._cluster = None

    def execute(
        self,
        request: RedisRequest,
        commands: Sequence[RedisCommand],
        *,
        node: Address | None = None,
    ) -> Replies:
        """Send the commands (to ``node``, or to those that serve their keys) and return the
        replies in order. Every command must bear repetition: it is repeated, after a pause, when
        no reply came and time is left. Raises :class:`DriverError` for the first that failed."""
        options = self.options
        start = time.monotonic()
        deadline = start + options.timeout
        attempt = _Attempt(commands, node)
        pause, number, passing = _FIRST_PAUSE, 0, 0
        before: Exception | None = None
        while True:
            number += 1
            begun = time.monotonic()
            self._try(attempt, deadline)
            self._count(request, attempt, number, time.monotonic() - begun)
            error = attempt.error
            if error is None and not attempt.open:
                return Replies(attempt.replies, attempt.lost)
            with turn(self._guard):
                self.traffic.retries += 1
            passing = passing + 1 if error is None or isinstance(error, _PASSING) else 0
            if 0 < passing <= _MOST_PASSING:
                continue
            error = error or ClusterDownError("the slots do not settle")
            if isinstance(error, TimeIsUp):
                error = before or error
            before = error
            retry_time = judge(error).retry_time
            if options.cluster and retry_time:
                retry_time = options.timeout  # a replica may be about to take over
            wait = pause * random.uniform(0.5, 1)
            if time.monotonic() + wait >= min(deadline, start + retry_time):
                with turn(self._guard):
                    self.traffic.retries -= 1
                attempt.error = None  # which keeps the frames that keep the attempt
                raise failed(
                    error,
                    str(request),
                    self.place.server,
                    request.key,
                    unknown=bool(attempt.lost) and request.writes,
                    secret=options.password,
                ) from error
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def nodes(self, request: RedisRequest) -> list[Address | None]:
        """Every server that holds a part of the keys; ``None`` is the only one."""
        if not self.options.cluster:
            return [None]
        [answer], _ = self.execute(request, [SLOTS])
        try:
            cluster = cluster_of(answer, (self.place.host, self.place.port))
            if not cluster.whole:
                raise ClusterDownError("some slots are served by no node")
        except ClusterDownError as error:
            raise failed(error, str(request), self.place.server, request.key) from error
        return [*cluster.primaries]

    # -- within -------------------------------------------------------------------

    def _try(self, attempt: _Attempt, deadline: float) -> None:
        """Send what has no reply yet, to all nodes before any reply is awaited."""
        attempt.error = None
        under_way = []
        try:
            routes, asking = self._routes(attempt, deadline)
        except (RedisError, OSError) as error:
            attempt.error = error
            return
        for address, chosen in routes.items():
            pool = self._pool(address)
            asked = pool.prepared([attempt.commands[i] for i in chosen])
            if asking:
                asked = [each for one in asked for each in (ASKING, one)]
            sent: Sequence[int] = ()
            connection: Any = None
            try:
                connection = pool.take(deadline)
                sent = chosen
                send(connection, asked, deadline)
            except (RedisError, OSError) as error:
                self._lose(attempt, error, connection, sent)
                continue
            except BaseException:
                if connection is not None:
                    connection.disconnect()
                raise
            with turn(self._guard):
                self.traffic.requests += 1
            under_way.append((address, pool, connection, chosen, asked))
        idle = self.options.timeout / 2
        while under_way:
            address, pool, connection, chosen, asked = under_way.pop(0)
            try:
                replies = receive(connection, asked, deadline, idle, attempt.exact)
            except (RedisError, OSError) as error:
                self._lose(
                    attempt, error, connection, () if isinstance(error, _REFUSED) else chosen
                )
                continue
            except BaseException:  # interrupted: unread replies must not meet the next request
                for _, _, each, _, _ in [(address, pool, connection, chosen, asked), *under_way]:
                    each.disconnect()
                raise
            pool.give(connection)
            if len(asked) > len(chosen):
                replies = replies[1::2]
            for i, reply in zip(chosen, replies, strict=True):
                self._settle(attempt, i, reply, address)
                script = attempt.commands[i].script
                if script is not None:
                    pool.knows(script, not isinstance(reply, NoScriptError))

    def _lose(
        self, attempt: _Attempt, error: Exception, connection: Any, sent: Sequence[int]
    ) -> None:
        if connection is not None:
            connection.disconnect()
        attempt.error = attempt.error or error
        attempt.exact |= isinstance(error, ReadAgain)
        attempt.lost.update(sent)
        self._cluster = None

    def _settle(self, attempt: _Attempt, i: int, reply: Any, address: Address) -> None:
        if not isinstance(reply, ResponseError):
            attempt.replies[i] = reply
            attempt.open.discard(i)
            return
        if attempt.error is None or _severity(reply) > _severity(attempt.error):
            attempt.error = reply
        if isinstance(reply, AskError):
            attempt.asking[i] = redirected(reply, address)
        if isinstance(reply, MovedError):
            self._cluster = None

    def _routes(self, attempt: _Attempt, deadline: float) -> tuple[_Routes, bool]:
        open_ = sorted(attempt.open)
        if attempt.node is not None:
            return {attempt.node: open_}, False
        if not self.options.cluster:
            return {(self.place.host, self.place.port): open_}, False
        moving, attempt.asking = attempt.asking, {}
        if moving:  # first those whose slot is being moved, as their node told us
            target = next(iter(moving.values()))
            return {target: [i for i in open_ if moving.get(i) == target]}, True
        cluster = self._cluster or self._discover(deadline)
        routes: _Routes = {}
        for i in open_:
            key = attempt.commands[i].key
            routes.setdefault(cluster.owner(key) if key else cluster.owners[0], []).append(i)
        return routes, False

    def _discover(self, deadline: float) -> RedisCluster:
        last: Exception | None = None
        for address in [*{(self.place.host, self.place.port): 0, **dict.fromkeys(self._pools, 0)}]:
            connection: Any = None
            try:
                pool = self._pool(address)
                connection = pool.take(deadline)
                send(connection, [SLOTS], deadline)
                [answer] = receive(connection, [SLOTS], deadline, self.options.timeout / 2)
                pool.give(connection)
                if isinstance(answer, ResponseError):
                    raise answer
                self._cluster = found = cluster_of(answer, address)
                return found
            except (RedisError, OSError) as error:
                if connection is not None and not isinstance(error, ResponseError):
                    connection.disconnect()
                last = error
        assert last is not None
        try:
            raise last
        finally:
            del last  # its traceback keeps this frame

    def _pool(self, address: Address) -> RedisConnections:
        pool = self._pools.get(address)
        if pool is None:
            host, port = address
            place = replace(self.place, host=host, port=port)
            pool = self._pools.setdefault(address, RedisConnections(place, self.options))
        return pool

    def _count(self, request: RedisRequest, attempt: _Attempt, number: int, seconds: float) -> None:
        read = size_of(attempt.replies) if attempt.error is None else 0
        writes = attempt.commands if request.writes else ()
        written = sum(sum(map(len, each.args)) for each in writes)
        with turn(self._guard):
            self.traffic.bytes_read += read
            self.traffic.bytes_written += written
        if _log.isEnabledFor(logging.DEBUG):
            outcome = "ok" if attempt.error is None else type(attempt.error).__name__
            _log.debug(
                "redis %s: %s, %d bytes, %.2f ms, attempt %d",
                f"{request} {request.detail}".rstrip(),
                outcome,
                written if request.writes else read,
                seconds * 1000,
                number,
            )


def _severity(error: Exception) -> int:
    """Of several errors the one decides that repeating helps least."""
    return 0 if isinstance(error, _PASSING) else 1 if judge(error).retry_time else 2


class _Attempt:
    """Commands on their way: what was answered so far, and what went wrong last."""

    def __init__(self, commands: Sequence[RedisCommand], node: Address | None) -> None:
        self.commands = commands
        self.node = node
        self.replies: list[Any] = [None] * len(commands)
        self.open = {*range(len(commands))}
        self.asking: dict[int, Address] = {}
        self.error: Exception | None = None
        self.exact = False
        self.lost: set[int] = set()
