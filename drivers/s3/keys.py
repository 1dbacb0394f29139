"""Which object names are keys, and which the S3 driver keeps for itself."""

from __future__ import annotations

from tensorstash.driver import check_key
from tensorstash.errors import Invalid

HIDDEN = ".tensorstash"
"""The folder, at any depth, whose objects are the driver's own."""


def owned(key: str) -> str:
    """``key`` itself; :class:`~tensorstash.errors.Invalid` where it cannot be the user's."""
    if HIDDEN in key and HIDDEN in key.split("/"):
        raise Invalid(f"key {key!r} is in a folder that s3:// keeps for itself; use another name")
    return check_key(key)


def is_key(name: str) -> bool:
    """Whether the name of an object is a key: others may have put ``a//b`` or ``a/`` there."""
    try:
        owned(name)
    except Invalid:
        return False
    return True


def lock_place(key: str) -> str:
    """The object that locks ``key``: beside it, so that drivers with other roots share it."""
    folder, slash, name = owned(key).rpartition("/")
    return f"{folder}{slash}{HIDDEN}/lock/{name}"


def is_lock(name: str) -> bool:
    """Whether the name of an object is that of a lock."""
    return f"/{HIDDEN}/lock/" in f"/{name}"
