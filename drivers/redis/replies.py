"""What the replies of a Redis server must look like.

One that does not fit its command means that requests and replies are out of step, or that bytes
were damaged: nothing of that connection can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Validator = Callable[[Any], bool]

_VALUE = {bytes, type(None)}


def done(reply: Any) -> bool:
    """To a command that only confirms."""
    return bool(reply == b"OK")


def flag(reply: Any) -> bool:
    """To a script that returns yes or no."""
    return type(reply) is int and 0 <= reply <= 1


def patched(number: int) -> Validator:
    """To the script that writes parts of so many values."""
    return lambda reply: (
        type(reply) is list
        and len(reply) == number
        and all(type(each) is int and each >= -1 for each in reply)
    )


def count(most: int | None = None) -> Validator:
    """To a command that counts, up to ``most``."""
    return lambda reply: type(reply) is int and reply >= 0 and (most is None or reply <= most)


def value(reply: Any) -> bool:
    """To GET."""
    return type(reply) in _VALUE


def upto(size: int) -> Validator:
    """To GETRANGE of so many bytes."""
    return lambda reply: type(reply) is bytes and len(reply) <= size


def values(number: int) -> Validator:
    """To MGET of so many."""
    return lambda reply: (
        type(reply) is list and len(reply) == number and {*map(type, reply)} <= _VALUE
    )


def parts(sizes: Sequence[int | None], unless: bytes, only: bytes) -> Validator:
    """To the script READ: nothing, or the version and a part for each of ``sizes``, the most bytes
    it can have; a version alone where it is ``unless``, or not ``only``."""

    def valid(reply: Any) -> bool:
        if reply is None:
            return True
        if type(reply) is not list or not reply or {*map(type, reply)} != {bytes}:
            return False
        version = reply[0]
        if version == unless or (only and version != only):
            return len(reply) == 1
        return len(reply) == len(sizes) + 1 and all(
            size is None or len(part) <= size for part, size in zip(reply[1:], sizes, strict=True)
        )

    return valid


def scanned(prefix: bytes) -> Validator:
    """To SCAN: a cursor, and names that start with ``prefix``."""

    def valid(reply: Any) -> bool:
        if type(reply) is not list or [*map(type, reply)] != [bytes, list]:
            return False
        cursor, names = reply
        return cursor.isdigit() and all(
            type(name) is bytes and name.startswith(prefix) for name in names
        )

    return valid


def slots(reply: Any) -> bool:
    """To CLUSTER SLOTS."""
    return type(reply) is list and all(_is_range(each) for each in reply)


def _is_range(each: Any) -> bool:
    if type(each) is not list or len(each) < 3 or type(each[2]) is not list or len(each[2]) < 2:
        return False
    start, stop, (host, port, *_), *_ = each
    numbers = type(start) is type(stop) is type(port) is int
    named = host is None or (type(host) is bytes and host.isascii() and b"\0" not in host)
    return numbers and named and 0 <= start <= stop < 1 << 14 and 0 < port < 1 << 16
