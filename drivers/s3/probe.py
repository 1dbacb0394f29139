"""Finding out whether an S3 server keeps the conditions of a put.

Some ignore them and overwrite (rclone), some refuse them (Swift), some compare ETags with
their quotes and so never find them equal (Ceph before 19). Documentation does not tell; a
small object of our own does.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from tensorstash.drivers.s3.client import Client, Failed

_WRONG = "0123456789abcdef0123456789abcdef"


class Send(Protocol):
    """Sees to it that a request is counted and logged."""

    async def __call__(self, verb: str, work: Awaitable[Any], /) -> Any:
        """What ``work`` answers."""


@dataclass(frozen=True)
class Conditions:
    """How conditional puts must be sent, or why they must not be relied on."""

    quoted: bool = True
    missing: str = ""


async def probe(send: Send, client: Client, place: str) -> Conditions:
    """Try conditions on an object at ``place`` followed by a random name; 5 requests, or 6.
    Raises :class:`Failed` where a request fails for another reason."""
    key = place + secrets.token_hex(8)
    try:
        etag = await send("PUT", client.put(key, b"1", if_absent=True))
    except Failed as failed:
        if failed.kind == "refused":
            return Conditions(missing="refuses If-None-Match")
        raise
    try:
        if await _holds(send, client.put(key, b"2", if_absent=True)):
            return Conditions(missing="ignores If-None-Match")
        if await _holds(send, client.put(key, b"3", if_etag=_WRONG)):
            return Conditions(missing="ignores If-Match")
        if await _holds(send, client.put(key, b"4", if_etag=etag)):
            return Conditions()
        if client.can_unquote:
            client.quoted = False
            if await _holds(send, client.put(key, b"5", if_etag=etag)):
                return Conditions(quoted=False)
            client.quoted = True
        return Conditions(missing="never finds If-Match to hold")
    except _Refused as refused:
        return Conditions(missing=f"refuses {refused}")
    finally:
        await send("DELETE", client.delete([key]))


class _Refused(Exception):
    """The server does not know a header."""


async def _holds(send: Send, put: Awaitable[str]) -> bool:
    """Whether a put on some condition is carried out."""
    try:
        await send("PUT", put)
    except Failed as failed:
        if failed.kind == "precondition":
            return False
        if failed.kind == "refused":
            raise _Refused("the headers of conditional puts") from failed
        raise
    return True
