"""Finding out whether an S3 server keeps the conditions of a put, and those of deletes.

Some ignore them and overwrite (rclone), some refuse them (Swift), some compare ETags with
their quotes and so never find them equal (Ceph before 19). Documentation does not tell; a
small object of our own does.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tensorstash.drivers.s3.client import Client, Failed

_WRONG = "0123456789abcdef0123456789abcdef"


class Send(Protocol):
    """Sees to it that a request is counted and logged."""

    async def __call__(self, verb: str, work: Awaitable[Any], /) -> Any:
        """What ``work`` returns."""


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


Deletes = Literal["many", "one", "none"]
"""Whether conditions are kept by requests that delete many objects, one, or none at all."""


async def probe_deletes(send: Send, client: Client, place: str) -> Deletes:
    """Try to delete an object at ``place`` followed by a random name on conditions that do not
    hold; 3 requests, or 5."""
    key = place + secrets.token_hex(8)
    found: Deletes = "none"
    tries: tuple[tuple[Deletes, list[str]], ...] = (("many", [key, key + "-"]), ("one", [key]))
    try:
        for found, keys in tries:
            etag = await send("PUT", client.put(key, b"1"))
            if etag and await _keeps(send, client, keys):
                return found
        return "none"
    finally:
        await send("DELETE", client.delete([key]))


async def _keeps(send: Send, client: Client, keys: list[str]) -> bool:
    try:
        gone = await send("DELETE", client.delete_if(keys, [_WRONG] * len(keys)))
    except Failed as failed:
        if failed.kind in ("refused", "other"):
            return False
        raise
    return not gone[0]


async def probe_parts(send: Send, client: Client, place: str) -> bool:
    """Whether parts become an object only where a condition holds; 5 requests, or 6."""
    key = place + secrets.token_hex(8)
    await send("PUT", client.put(key, b"1"))
    try:
        upload = await send("BEGIN", client.begin_parts(key))
        etag = await send("PART", client.put_part(key, upload, 1, b"2"))
        try:
            await send("END", client.end_parts(key, upload, [etag], if_etag=_WRONG))
        except Failed as failed:
            if failed.kind not in ("precondition", "refused", "other"):
                raise
            await send("ABORT", client.abort_parts(key, upload))
            return failed.kind == "precondition"
        return False
    except Failed as failed:
        if failed.kind in ("refused", "other"):
            return False
        raise
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
