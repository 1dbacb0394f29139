"""Names of what the Redis driver stores: the value, beside it its version, and locks.

The value of key ``a/b/0`` is stored at ``a/b/0`` itself. Its version stands in the same
folder, so that rights given by prefix cover it, and in the same cluster slot, so that both
are read and written in one step: at ``a/b/.tag{a/b/0}``. All of it follows from the key alone.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from functools import lru_cache
from itertools import chain, count

from tensorstash.driver import check_key, check_prefix
from tensorstash.errors import Invalid

SLOT_COUNT = 16384
"""Parts of a cluster's keys."""

_OURS = re.compile(r"(?:^|/)\.(?:tag|lock)\{")
_GLOB = re.compile(r"([*?\[\]\\])")


class RedisKeys:
    """The names below one prefix, which is empty or ends in ``/``."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._skip = len(prefix)

    def value(self, key: str) -> bytes:
        """Where the value of ``key`` is; :class:`Invalid` for names that are kept for versions
        and locks, and for text that is no UTF-8."""
        return encode(self._place(key), key)

    def pair(self, key: str) -> tuple[bytes, bytes]:
        """Where the value of ``key`` and its version are."""
        place = self._place(key)
        value = encode(place, key)
        if "{" in place or "}" in place:
            return value, encode(companion(place), key)
        folder, slash, _ = value.rpartition(b"/")
        return value, b"%b%b.tag{%b}" % (folder, slash, value)

    def lock(self, key: str) -> bytes:
        """Where the lock of ``key`` is."""
        folder, name = split(self._place(key))
        return encode(f"{folder}.lock{{{name}}}", key)

    def below(self, prefix: str) -> bytes:
        """The pattern for ``SCAN MATCH`` of everything that starts with ``prefix``."""
        return encode(_GLOB.sub(r"\\\1", self.prefix + check_prefix(prefix)), prefix) + b"*"

    def key(self, place: bytes) -> str | None:
        """The key whose value is at ``place``; ``None`` for versions, locks, and what others
        stored under names that are no keys."""
        name = place.decode("utf-8", "surrogateescape")[self._skip :]
        if is_ours(name):
            return None
        try:
            return check_key(name)
        except Invalid:
            return None

    def _place(self, key: str) -> str:
        if is_ours(check_key(key)):
            raise Invalid(f"key {key!r}: names like .tag{{...}} are kept for versions; use another")
        return self.prefix + key


def encode(place: str, key: str) -> bytes:
    """The bytes of a name; :class:`Invalid` for text that is no UTF-8."""
    try:
        return place.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Invalid(f"key {key!r} is not UTF-8 text; use another") from None


def is_ours(name: str) -> bool:
    """Whether a name is that of a version or a lock."""
    return (".tag{" in name or ".lock{" in name) and _OURS.search(name) is not None


def is_lock(place: bytes) -> bool:
    """Whether a name is that of a lock."""
    return b".lock{" in place and is_ours(place.decode("utf-8", "surrogateescape"))


def split(place: str) -> tuple[str, str]:
    """A name as folder (empty or ending in ``/``) and the rest."""
    folder, slash, name = place.rpartition("/")
    return folder + slash, name


def slot(place: bytes) -> int:
    """The cluster slot of a name: that of what stands between its first braces, if anything."""
    start = place.find(b"{")
    if start >= 0:
        stop = place.find(b"}", start + 1)
        if stop > start + 1:
            place = place[start + 1 : stop]
    return crc_hqx(place, 0) % SLOT_COUNT


def companion(place: str) -> str:
    """Where the version of the value at ``place`` is."""
    if "{" in place or "}" in place:
        return _companion(place)
    return f"{split(place)[0]}.tag{{{place}}}"


@lru_cache(4096)
def _companion(place: str) -> str:
    # Braces of its own change which part of a name decides about its slot: take the first
    # number that gives the same one.
    folder, name = split(place)
    wanted = slot(place.encode("utf-8", "surrogateescape"))
    within = re.search(r"\{([^}]+)\}", place)
    for tag in chain([within[1]] if within else [], map(str, count())):
        found = f"{folder}.tag{{{tag}}}{name}"
        if slot(found.encode("utf-8", "surrogateescape")) == wanted:
            return found
    raise AssertionError("the numbers do not end")
