"""Connections to one Redis server.

redis-py's own client and pool are not used: they repeat commands whose reply was lost, unless
told otherwise in several places, and cost more than the command itself. Its connections are.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as Late
from redis.retry import Retry

from tensorstash.drivers.redis.commands import RedisCommand, Script
from tensorstash.drivers.redis.options import RedisOptions, RedisPlace
from tensorstash.drivers.redis.parser import BoundedParser, TooLarge

_PIECE = 64 << 10

Open: TypeAlias = Any
"""One of redis-py's connections, which its authors left without types."""


class TimeIsUp(Late):
    """The last attempt had no time left: what went wrong before says more."""


class RedisConnections:
    """Idle connections of one process to one server; each is used by one thread at a time."""

    def __init__(self, place: RedisPlace, options: RedisOptions) -> None:
        self.place = place
        self._options = options
        self._idle: list[Open] = []
        self._known: set[bytes] = set()
        # Before the collector finds them: in a cycle it may come to a socket first, which warns.
        weakref.finalize(self, _disconnect, self._idle, os.getpid()).atexit = False

    def take(self, deadline: float) -> Open:
        """A connection that is ready to send, to be given back with :meth:`give`."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            try:
                if not connection.can_read():
                    return connection
            except (redis.RedisError, OSError):  # closed by the server meanwhile
                pass
            connection.disconnect()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeIsUp("the time is up")
        connection = self._make(left)
        try:
            connection.connect()
        except (RedisError, OSError):
            raise
        except Exception as error:  # what the library did not expect of a greeting or an address
            connection.disconnect()
            raise InvalidResponse(f"the greeting was unreadable: {type(error).__name__}") from error
        return connection

    def give(self, connection: Open) -> None:
        """Keep a connection whose replies were all read."""
        self._idle.append(connection)

    def prepared(self, commands: Sequence[RedisCommand]) -> list[RedisCommand]:
        """The same, the first that runs a script the server may not know spelled out: what
        follows may then name it."""
        ready, told = [], set[bytes]()
        for each in commands:
            script = each.script
            if script is not None and script.name not in self._known and script.name not in told:
                told.add(script.name)
                each = each.spelled_out()
            ready.append(each)
        return ready

    def knows(self, script: Script, yes: bool) -> None:
        """Remember whether the server knows ``script``."""
        (self._known.add if yes else self._known.discard)(script.name)

    def close(self) -> None:
        """Close what is idle."""
        _disconnect(self._idle, os.getpid())

    def _make(self, seconds: float) -> Open:
        options, place = self._options, self.place
        settings: dict[str, Any] = {
            "db": place.db,
            "username": options.username,
            "password": options.password,
            "socket_timeout": min(options.timeout / 2, seconds),
            "socket_connect_timeout": min(options.connect_timeout, seconds),
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,  # no greeting to wait for, and every server speaks it
            "driver_info": None,  # two round trips saved
            "parser_class": BoundedParser,
        }
        if place.path:
            make: Any = redis.UnixDomainSocketConnection
            return make(path=place.path, **settings)
        settings |= {"host": place.host, "port": place.port, "socket_keepalive": True}
        if place.scheme != "rediss":
            make = redis.Connection
            return make(**settings)
        return redis.SSLConnection(
            ssl_ca_certs=options.ca_certs,
            ssl_certfile=options.certfile,
            ssl_keyfile=options.keyfile,
            ssl_cert_reqs="required" if options.verify else "none",
            ssl_check_hostname=options.verify,
            **settings,
        )


def _disconnect(idle: list[Open], pid: int) -> None:
    if os.getpid() == pid:  # a forked child leaves its parent's alone
        while idle:
            idle.pop().disconnect()


def send(connection: Open, commands: Sequence[RedisCommand], deadline: float) -> None:
    """Send all commands, before any reply is awaited."""
    _limit(connection, deadline)
    connection.send_packed_command(_packed(connection, commands))


def _packed(connection: Open, commands: Sequence[RedisCommand]) -> Iterator[bytes]:
    """Made while sending: the server works meanwhile, and no second copy of all is held."""
    pieces: list[bytes] = []
    size = 0
    for each in commands:
        for piece in connection.pack_command(*each.args):
            if pieces and size + len(piece) > _PIECE:
                yield b"".join(pieces)
                pieces, size = [], 0
            pieces.append(piece)
            size += len(piece)
    yield pieces[0] if len(pieces) == 1 else b"".join(pieces)


def receive(
    connection: Open,
    commands: Sequence[RedisCommand],
    deadline: float,
    idle: float,
    exact: bool = False,
) -> list[Any]:
    """One reply for each of ``commands``; a server's refusal stands among them as an exception.
    A server that says nothing for ``idle`` seconds is given up. :class:`InvalidResponse` when a
    reply does not fit its command, or more came than was asked for; one that is :class:`ReadAgain`
    asks for another try, with ``exact``."""
    found: list[Any] = []
    connection._parser.begin([each.limit for each in commands], exact)
    for each in commands:
        _limit(connection, deadline, idle)
        connection._parser.limit = each.limit
        try:
            reply = connection.read_response()
        except ResponseError as error:
            found.append(error)
            continue
        except TooLarge as error:
            error.command = each
            raise
        except (RedisError, OSError):
            raise
        except Exception as error:  # numbers and texts that the library could not read
            raise InvalidResponse(f"unreadable answer: {type(error).__name__}") from error
        if not each.validator(reply):
            raise InvalidResponse(f"an answer that does not fit {each.args[0].decode()}")
        found.append(reply)
    # A value cut short by a wrong length leaves its end behind.
    if connection.can_read():
        raise InvalidResponse("more came than was asked for")
    return found


def _limit(connection: Open, deadline: float, idle: float | None = None) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeIsUp("the time is up")
    sock = connection._sock
    if sock is None:
        raise Lost("the connection was closed")
    sock.settimeout(left if idle is None else min(left, idle))
