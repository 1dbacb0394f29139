"""The small documents of a repository: its own, and which commit a branch or a tag names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import NamedTuple

from ...driver import REPAIR, Buffer
from ...errors import Corrupt, Unsupported, short
from ...metadata.belongings import REPOSITORY
from ...metadata.document import decode
from ..ids import is_commit
from .names import encode_name

REPO_KEY = REPOSITORY
FORMAT = 1
MOST = 64 << 10
"""Bytes of such a document."""


class Pointer(NamedTuple):
    """Which commit a branch or tag names; ``number`` is the commit's, ``repo`` the repository's
    bytes, so that nobody writes on in one that was made anew."""

    repo: bytes
    commit: str
    number: int

    def encode(self) -> bytes:
        """As it is stored."""
        document = {"repo": self.repo.hex(), "commit": self.commit, "number": self.number}
        return json.dumps(document).encode()

    @classmethod
    def parse(cls, data: Buffer, key: str) -> Pointer:
        """What is stored at ``key``; Corrupt where that names no commit."""
        document = decode(bytes(data), key)
        commit, number = document.get("commit"), document.get("number")
        repo = _repo(document.get("repo"), key)
        if not isinstance(commit, str) or not is_commit(commit):
            raise Corrupt(
                f"{key} names {short(commit)} where a commit must be named{REPAIR}", key=key
            )
        if type(number) is not int or number < 0:
            raise Corrupt(f"{key} has the number {short(number)}{REPAIR}", key=key)
        return cls(repo, commit, number)


def pointer_key(kind: str, name: str) -> str:
    """Where the branch or tag ``name`` is stored."""
    return f"{kind}/{encode_name(name)}"


class Founding(NamedTuple):
    """What a repository says of itself: its bytes, and id and time of its first commit, so that
    whoever finds it without a branch can finish what created it."""

    repo: bytes
    first: str
    created: datetime

    def encode(self) -> bytes:
        """As it is stored."""
        created = self.created.astimezone(UTC).isoformat(timespec="microseconds")
        document = {"format": FORMAT, "repo": self.repo.hex(), "created": created}
        return json.dumps(document | {"first": self.first}).encode()


def parse_repo(data: Buffer) -> Founding:
    """The repository's own document.

    Raises:
        Corrupt: the document is damaged. Unsupported: its format is a newer one.
    """
    document = decode(bytes(data), REPO_KEY)
    found = document.get("format")
    if type(found) is int and found > FORMAT:
        raise Unsupported(
            f"{REPO_KEY} has format {found}, this version of tensorstash reads format {FORMAT}; "
            "use a newer tensorstash"
        )
    if found != FORMAT:
        raise Corrupt(f"{REPO_KEY} has format {short(found)}{REPAIR}", key=REPO_KEY)
    first, created = document.get("first"), document.get("created")
    try:
        time = datetime.fromisoformat(created) if isinstance(created, str) else None
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise Corrupt(f"{REPO_KEY} has the time {short(created)}{REPAIR}", key=REPO_KEY)
    if not isinstance(first, str) or not is_commit(first):
        raise Corrupt(
            f"{REPO_KEY} names {short(first)} where a commit must be named{REPAIR}", key=REPO_KEY
        )
    return Founding(_repo(document.get("repo"), REPO_KEY), first, time)


def _repo(text: object, key: str) -> bytes:
    try:
        repo = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        repo = b""
    if len(repo) != 16:
        raise Corrupt(
            f"{key} names {short(text)} where a repository must be named{REPAIR}", key=key
        )
    return repo
