"""Names of branches and tags, and what a text may mean that names a version."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote, unquote

from ...errors import Invalid, counted, short
from ..ids import is_commit

MAIN = "main"
"""The branch that every repository has at first."""

_MOST = 100
_MOST_STORED = 200  # of the 255 bytes that a file's name has


class Wanted(NamedTuple):
    """What a user asks for: ``name`` is that of one of ``kinds`` ("tag", "branch", "commit",
    "time"); ``time``, on the branch ``name``."""

    kinds: tuple[str, ...]
    name: str
    time: datetime | None = None


def check_name(name: object, what: str) -> str:
    """``name``, if a ``what`` ("branch", "tag") can have it.

    Raises:
        Invalid: it cannot; the message says why.
    """
    if not isinstance(name, str) or not name:
        raise Invalid(f"the name of a {what} is a text, not {short(name)}")
    why = None
    if len(name) > _MOST:
        why = f"it has {len(name)} characters, the most is {_MOST}"
    elif any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        why = "it has control characters"
    elif name in (".", ".."):
        why = "it stands for a folder"
    elif name != name.strip():
        why = "it begins or ends with a blank"
    elif is_commit(name):
        why = "it has the form of a commit's id"
    elif name.partition(":")[0] in _FORCED and ":" in name:
        why = f"{name.partition(':')[0]}: says which kind of version is meant"
    if why is not None:
        raise Invalid(f"a {what} cannot be named {short(name)}: {why}; choose another name")
    try:
        stored = encode_name(name)
    except UnicodeEncodeError:
        raise Invalid(
            f"a {what} cannot be named {short(name)}: it cannot be spelled in UTF-8; "
            "choose another name"
        ) from None
    if len(stored) > _MOST_STORED:
        size = counted(len(stored), "byte")
        raise Invalid(
            f"a {what} cannot be named {short(name)}: it is stored as {size}, the most is "
            f"{_MOST_STORED}; choose a shorter name"
        )
    return name


def encode_name(name: str) -> str:
    """A name as the last part of a key: letters, digits, ``_``, ``-``, and dots but the first."""
    stored = quote(name, safe="").replace("~", "%7E")
    return "%2E" + stored[1:] if stored[0] == "." else stored


def decode_name(stored: str) -> str | None:
    """The name that is stored so; ``None`` for keys that name nothing."""
    try:
        name = unquote(stored, errors="strict")
        return name if name and encode_name(name) == stored else None
    except UnicodeError:
        return None


def wanted(version: object) -> Wanted:
    """What ``version`` means: a commit's id, else a tag or a branch; ``branch:``, ``tag:``,
    ``commit:`` and ``time:`` before it say which; a ``datetime`` is a time, on ``main``.

    Raises:
        Invalid: it names no version.
    """
    if isinstance(version, datetime):
        return Wanted(("time",), MAIN, _aware(version))
    if not isinstance(version, str) or not version:
        raise Invalid(
            f"a version is a commit's id, a tag, a branch or a time, not {short(version)}"
        )
    kind, colon, rest = version.partition(":")
    if not colon or kind not in _FORCED:
        if is_commit(version):
            return Wanted(("commit",), version)
        return Wanted(("tag", "branch"), check_name(version, "version"))
    if kind == "commit":
        if not is_commit(rest):
            raise Invalid(f"{short(rest)} has not the form of a commit's id")
        return Wanted(("commit",), rest)
    if kind != "time":
        return Wanted((kind,), check_name(rest, kind))
    text, _, branch = rest.partition("@")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f"{short(text)} does not say a time; write it as in 'time:2026-11-01T12:00'"
        ) from None
    return Wanted(("time",), check_name(branch or MAIN, "branch"), _aware(time))


def _aware(time: datetime) -> datetime:
    """A time without a zone is UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


_FORCED = ("branch", "tag", "commit", "time")
