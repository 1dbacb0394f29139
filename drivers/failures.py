"""What an exception out of fsspec, or of a library below it, means: absence or which error."""

from __future__ import annotations

import asyncio
import errno
import ftplib
import socket
from collections.abc import Iterator

from tensorstash.errors import Denied, DriverError, NoSpace, TimedOut, Unavailable, Unsupported

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_CONTAINER = {"NoSuchBucket", "ContainerNotFound", "NoSuchContainer"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNREACHED = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
_ADVICE = {
    Denied: "check the credentials and their rights",
    NoSpace: "free some space or raise the quota",
    TimedOut: "try again, or raise the option timeout",
    Unavailable: "check the address and the network, and try again",
    DriverError: "see the exception it was raised from",
}


def is_absence(error: BaseException) -> bool:
    """Whether ``error`` says for certain that nothing is stored there. Filesystems that turn
    any failure into "not found" keep the failure as its cause, which is looked at."""
    if isinstance(error, _ABSENT):
        kinds = {_kind(cause) for cause in _chain(error)}
        return kinds <= {None} and not any(_code(c) in _NO_CONTAINER for c in _chain(error))
    return isinstance(error, ftplib.error_perm) and str(error)[:3] == "550"


# What is asked of a place, in a sentence: "cannot ...".
_WORDS = {"exists": "look for", "info": "look at", "size": "look at"}


def failure(verb: str, place: str, key: str, scheme: str, error: BaseException) -> Exception:
    """``error`` as one of ours. Its own text is left out: it may hold a signed URL."""
    verb = _WORDS.get(verb, verb)
    if isinstance(error, NotImplementedError):
        return Unsupported(f"{scheme!r} cannot {verb} {place!r}; use another driver for that")
    kinds = [kind for cause in _chain(error) if (kind := _kind(cause)) is not None]
    kind = kinds[0] if kinds else DriverError
    status = next((s for cause in _chain(error) if (s := _status(cause)) is not None), None)
    if type(error).__name__ == "TooManyRedirects":
        status = None
    what = type(error).__name__ if status is None else f"the server answered {status}"
    return kind(
        f"cannot {verb} {place!r}: {what}; {_ADVICE[kind]}",
        key=key,
        driver=scheme,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from, at most a few."""
    cause: BaseException | None = error
    for _ in range(5):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _kind(error: BaseException) -> type[DriverError] | None:
    status = _status(error)
    if status is not None:
        return _kind_of_status(status)
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return TimedOut
    if isinstance(error, ConnectionError | socket.gaierror | EOFError | ftplib.error_temp):
        return Unavailable
    if isinstance(error, ftplib.error_perm):
        return Denied if str(error)[:3] in ("530", "532") else None
    if isinstance(error, PermissionError):
        return Denied
    if isinstance(error, OSError) and error.errno in _FULL:
        return NoSpace
    if isinstance(error, OSError) and error.errno in _UNREACHED:
        return Unavailable
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"ServerTimeoutError", "ReadTimeout", "ConnectTimeout", "ReadTimeoutError"}:
        return TimedOut
    if names & {"ClientConnectionError", "ClientPayloadError", "EndpointConnectionError"}:
        return Unavailable
    if names & {"NoCredentialsError", "AuthenticationException", "ClientAuthenticationError"}:
        return Denied
    # A plain OSError of the ssl and aiohttp libraries, among others
    return Unavailable if names & {"SSLError", "ServiceRequestError"} else None


def _kind_of_status(status: int) -> type[DriverError] | None:
    if status in (401, 403, 407):
        return Denied
    if status in (408, 504):
        return TimedOut
    if status == 507:
        return NoSpace
    return Unavailable if status == 429 or status >= 500 else None


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries: aiohttp, requests, gcsfs, azure and botocore."""
    for holder in (error, getattr(error, "response", None)):
        if isinstance(holder, dict):
            found = holder.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(found, int):
                return found
        for name in ("status", "status_code", "code"):
            found = getattr(holder, name, None)
            if isinstance(found, int):
                if 100 <= found < 600:
                    return found
                break  # of a request that had no answer
    return None


def _code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code"))
    return getattr(error, "error_code", None)
