"""Names of what a repository stores: sessions, commits, pages and chunks.

An object is named by the session that stored it and a number that counts within it. Neighbours
in a table have neighbouring numbers, so that a reference takes two to four bytes; random names or
digests would take twelve to twenty, which nothing shrinks.
"""

from __future__ import annotations

import re
import secrets
from typing import NamedTuple

from ..errors import Corrupt, Invalid, short

SESSION_BYTES = 13
"""Bytes of a session's id where it is stored: 100 bits, the highest four of 104 are zero."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_LETTERS = 20
_BITS = 5 * _LETTERS
_SESSION = re.compile(f"[{_ALPHABET}]{{{_LETTERS}}}")
_COMMIT = re.compile(rf"([{_ALPHABET}]{{{_LETTERS}}})(?:-([2-9]|[1-9][0-9]{{1,8}}))?")

MOST_NUMBER = 1 << 62
"""Numbers of objects of a session are below this."""

MOST_NBYTES = 1 << 50
"""Bytes of one object are below this."""

MOST_TOTAL = 1 << 62
"""Chunks of an array, and their bytes, are below this."""


class Reference(NamedTuple):
    """Names one stored object: ``number`` counts within ``session``; ``nbytes`` is its size."""

    session: str
    number: int
    nbytes: int


def new_session() -> str:
    """A new id: 20 characters of Crockford's base 32, in lower case."""
    return _spelled(secrets.randbits(_BITS))


def new_repo() -> bytes:
    """The 16 random bytes that tell a repository from another one at the same place."""
    return secrets.token_bytes(16)


def is_session(text: str) -> bool:
    """Whether ``text`` has the form of a session's id."""
    return _SESSION.fullmatch(text) is not None


def is_commit(text: str) -> bool:
    """Whether ``text`` has the form of a commit's id."""
    return _COMMIT.fullmatch(text) is not None


def commit_id(session: str, attempt: int = 1) -> str:
    """The id of the commit of ``session`` at its ``attempt``-th try, counted from 1: each lost race
    makes another document, and none of them ever changes."""
    return session if attempt == 1 else f"{session}-{attempt}"


def split_commit_id(commit: str) -> tuple[str, int]:
    """The session and the attempt of a commit's id; Invalid where it is none."""
    found = _COMMIT.fullmatch(commit)
    if found is None:
        raise Invalid(
            f"{short(commit)} cannot be a commit's id: these are {_LETTERS} letters and digits, "
            "such as '7zqk3m0v5c2h9x1r8t4w'"
        )
    return found[1], int(found[2] or 1)


def page_key(reference: Reference) -> str:
    """Where the page is stored, below the repository's root."""
    return f"page/{reference.session}/{reference.number}"


def chunk_key(reference: Reference) -> str:
    """Where the chunk is stored, below the repository's root."""
    return f"chunk/{reference.session}/{reference.number}"


def commit_key(commit: str) -> str:
    """Where the commit is stored, below the repository's root."""
    return f"commit/{commit}"


def session_key(session: str) -> str:
    """Where a transaction under way is stored, below the repository's root."""
    return f"session/{session}"


def to_bytes(session: str) -> bytes:
    """The 13 bytes of a session's id; they sort as the texts do."""
    value = 0
    for letter in session:
        value = value << 5 | _VALUES[letter]
    return value.to_bytes(SESSION_BYTES, "big")


def from_bytes(data: bytes, what: str) -> str:
    """The session's id of 13 bytes; Corrupt, naming ``what``, where they are none."""
    value = int.from_bytes(data, "big")
    if len(data) != SESSION_BYTES or value >> _BITS:
        raise Corrupt(f"{what} holds {data.hex()} where a session's id must be", key=what)
    return _spelled(value)


def _spelled(value: int) -> str:
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(_BITS - 5, -1, -5))
