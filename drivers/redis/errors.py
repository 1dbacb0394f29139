"""What went wrong with a Redis request, in our words."""

from __future__ import annotations

import math
from typing import NamedTuple

import redis.exceptions as theirs

from tensorstash.drivers.redis.parser import TooLarge
from tensorstash.errors import Denied, DriverError, NoSpace, TimedOut, Unavailable

_SHORT = 5.0


class Verdict(NamedTuple):
    """What an error of redis-py means: our class, what to do next, and for how many seconds
    trying again may help."""

    error: type[DriverError]
    advice: str
    retry_time: float = 0.0


_DENIED = Verdict(
    Denied, "check username and password (a pickled driver carries none: pass connection=)"
)
_RIGHTS = Verdict(Denied, "ask for the right, or use the prefix this user may use")
_REPLICA = Verdict(Denied, "this server is a read-only replica, connect to the primary")
_FULL = Verdict(NoSpace, "raise maxmemory or free some, what was stored is intact")
_DISK = Verdict(NoSpace, "free disk space on the server, what was stored is intact")
_SAVING = Verdict(Unavailable, "the server cannot save and refuses writes, see its log")
_BUSY = Verdict(Unavailable, "wait until the server is ready, see its log", math.inf)
_TLS = Verdict(Unavailable, "check the option ca_certs and the server's certificate")
_LOST = Verdict(Unavailable, "check that the server runs and can be reached", _SHORT)
_GARBLED = Verdict(
    Unavailable, "check that a Redis server listens there, and what is between it and here", _SHORT
)
# Damage on the way may be gone at once; a server that lies will lie again.
_LARGE = Verdict(
    DriverError, "check what server listens there, and what is stored under this key", 0.05
)
_SLOW = Verdict(TimedOut, "see whether the server is overloaded, or raise timeout", math.inf)
_TYPE = Verdict(DriverError, "another program uses this key, delete it or use another prefix")
_DB = Verdict(DriverError, "use a database number the server has")
_OTHER = Verdict(DriverError, "see the server's log")

_BY_CLASS: tuple[tuple[type[Exception], Verdict], ...] = (
    (theirs.AuthenticationError, _DENIED),
    (theirs.AuthorizationError, _RIGHTS),
    (theirs.NoPermissionError, _RIGHTS),
    (theirs.ReadOnlyError, _REPLICA),
    (theirs.OutOfMemoryError, _FULL),
    (theirs.BusyLoadingError, _BUSY),
    (theirs.MasterDownError, _BUSY),
    (theirs.ClusterDownError, _BUSY),
    (theirs.TryAgainError, _BUSY),
    (theirs.AskError, _BUSY),  # MovedError too: slots are on the move
    (TooLarge, _LARGE),
    (theirs.InvalidResponse, _GARBLED),
    (theirs.TimeoutError, _SLOW),
    (TimeoutError, _SLOW),
)

_BY_WORD: tuple[tuple[str, Verdict], ...] = (
    ("CERTIFICATE_VERIFY_FAILED", _TLS),
    ("SSL", _TLS),
    ("No space left", _DISK),
    ("OOM ", _FULL),
    ("MISCONF", _SAVING),
    ("BUSY ", _BUSY),
    ("NOREPLICAS", _BUSY),
    ("max number of clients", _BUSY),
    ("WRONGTYPE", _TYPE),
    ("READONLY", _REPLICA),
    ("NOPERM", _RIGHTS),
    ("user executing the script can't", _RIGHTS),
    ("DB index", _DB),
    ("Invalid Database", _DB),
)


def judge(error: BaseException) -> Verdict:
    """What ``error`` means."""
    for kind, verdict in _BY_CLASS:
        if isinstance(error, kind):
            return verdict
    text = str(error)
    for word, verdict in _BY_WORD:
        if word in text:
            return verdict
    return _LOST if isinstance(error, theirs.ConnectionError | OSError) else _OTHER


def failed(
    error: BaseException,
    what: str,
    server: str,
    key: str,
    *,
    unknown: bool = False,
    secret: str | None = None,
) -> DriverError:
    """The error to raise. With ``unknown`` a write may have been carried out."""
    verdict = judge(error)
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    if secret and secret in reason:
        reason = type(error).__name__
    fate = "; whether it was carried out is unknown" if unknown else ""
    return verdict.error(
        f"{what} at {server} failed ({reason}){fate}; {verdict.advice}", key=key, driver="redis"
    )
