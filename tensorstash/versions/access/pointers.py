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


def encode_repo(repo: bytes) -> bytes:
    """The repository's own document."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"format": FORMAT, "repo": repo.hex(), "created": created}).encode()


def parse_repo(data: Buffer) -> bytes:
    """The repository's 16 bytes.

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
    return _repo(document.get("repo"), REPO_KEY)


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
