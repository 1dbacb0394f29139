"""Whether all that versions refer to is there, and whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...driver import Request, Span
from ...errors import Conflict, Corrupt, NotFound, Unsupported, counted
from ..access.objects import Objects
from ..access.snapshot import Snapshot
from ..commit import Commit
from ..ids import chunk_key, commit_key
from ..refs import Refs

_AT_ONCE = 256
_WRONG = (Corrupt, Conflict, NotFound, Unsupported)


class Damage(NamedTuple):
    """What is wrong with one object."""

    key: str
    why: str


def check(objects: Objects, heads: Sequence[str], *, history: bool) -> list[Damage]:
    """Look at all that commits refer to; with their ``history``, along all parents."""
    found: dict[str, Damage] = {}
    seen, wanted = set[str](), [*heads]
    known: set[tuple[str, int]] = set()
    while wanted:
        id = wanted.pop()
        if id in seen:
            continue
        seen.add(id)
        try:
            commit = objects.commit(id)
        except _WRONG as error:
            _note(found, commit_key(id), error)
            continue
        if history:
            wanted += commit.summary.parents
        _check_commit(objects, commit, found, known)
    return list(found.values())


def _check_commit(
    objects: Objects, commit: Commit, found: dict[str, Damage], known: set[tuple[str, int]]
) -> None:
    snapshot = Snapshot(objects, commit)
    try:
        for path in snapshot.tables_below(""):
            try:
                for _, refs in snapshot.stored(path):
                    _check_chunks(objects, refs, found, known)
            except _WRONG as error:
                _note(found, path, error)
        for _ in snapshot.documents_below(""):
            pass
        commit.read_changes(objects.load)
        for _ in commit.read_dead(objects.load):
            pass
    except _WRONG as error:
        _note(found, commit.key, error)


def _check_chunks(
    objects: Objects, refs: Refs, found: dict[str, Damage], known: set[tuple[str, int]]
) -> None:
    """Whether chunks are there, with the size that they had: of each, its last byte is read."""
    new = [each for each in refs if each[:2] not in known]
    known.update(each[:2] for each in new)
    for at in range(0, len(new), _AT_ONCE):
        some = new[at : at + _AT_ONCE]
        asked = [
            Request(chunk_key(each), Span(max(each.nbytes - 1, 0), each.nbytes + 1))
            for each in some
        ]
        for i, data in objects.driver.get_many(asked):
            key, nbytes = asked[i].key, some[i].nbytes
            if data is None:
                found[key] = Damage(key, "is missing")
            elif len(data) != min(nbytes, 1):
                found[key] = Damage(key, f"has not the {counted(nbytes, 'byte')} that it had")


def _note(found: dict[str, Damage], key: str, error: Exception) -> None:
    key = getattr(error, "key", "") or key
    found[key] = Damage(key, str(error))
