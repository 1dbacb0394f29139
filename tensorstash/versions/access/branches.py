"""Branches and tags of one repository: which commits they name, and how that changes."""

from __future__ import annotations

import difflib
from datetime import datetime

from ...driver import Request, Tag, get_at_most
from ...errors import AlreadyExists, Conflict, Corrupt, Invalid, NotFound
from ..commit import Commit
from ..ids import commit_key
from .names import check_name, decode_name, wanted
from .objects import Objects
from .pointers import MOST, Pointer, pointer_key

_NEAR = 3


def read_branch(objects: Objects, name: str) -> tuple[Pointer, Tag]:
    """The commit that a branch names, and the version of the branch's document.

    Raises:
        NotFound: there is no such branch. Conflict: the repository was made anew.
    """
    key = pointer_key("branch", name)
    found = get_at_most(objects.driver, key, MOST)
    if found is None:
        raise NotFound(f"no branch {name!r} in {objects.driver.url}; branches() lists them")
    pointer = Pointer.parse(found[0], key)
    if pointer.repo != objects.repo:
        raise Conflict(
            f"the repository at {objects.driver.url} was made anew since it was opened: open it "
            "again, and repeat the change",
            key=key,
        )
    return pointer, found[1]


class Branches:
    """The names of commits in ``objects``."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.driver = objects.driver

    def commit(self, version: str | datetime) -> Commit:
        """The commit of a version."""
        kinds, name, time = wanted(version)
        if kinds == ("commit",):
            return self.objects.commit(name)
        if kinds == ("time",):
            assert time is not None
            newest = self.objects.commit(read_branch(self.objects, name)[0].commit)
            if newest.summary.time <= time:
                return newest
            found = newest.log.at(time, self.objects.load)
            if found is None:
                raise NotFound(f"{self.driver.url} has no version of {time} on branch {name!r}")
            return self.objects.commit(found.id)
        keys = [pointer_key(kind, name) for kind in kinds]
        there: dict[str, Pointer] = {}
        for i, pair in self.driver.get_many_tagged([Request(key, most=MOST) for key in keys]):
            if pair is not None:
                there[kinds[i]] = self._checked(Pointer.parse(pair[0], keys[i]), keys[i])
        if len(there) > 1:
            raise Invalid(
                f"{name!r} is both a tag and a branch; say 'tag:{name}' or 'branch:{name}'"
            )
        for kind, pointer in there.items():
            try:
                return self.objects.commit(pointer.commit)
            except NotFound as error:
                raise Corrupt(
                    f"{kind} {name!r} names commit {pointer.commit}, which is missing: {error}",
                    key=commit_key(pointer.commit),
                ) from error
        raise self._unknown(kinds, name)

    def _checked(self, pointer: Pointer, key: str) -> Pointer:
        if pointer.repo != self.objects.repo:
            raise Conflict(
                f"{key} in {self.driver.url} is of repository {pointer.repo.hex()}, not of "
                f"{self.objects.repo.hex()}: it was made anew, or copied there; open it again",
                key=key,
            )
        return pointer

    def _unknown(self, kinds: tuple[str, ...], name: str) -> NotFound:
        known = [each for kind in kinds for each in self.names(kind)]
        near = difflib.get_close_matches(name, known, _NEAR)
        hint = (
            f"did you mean {', '.join(map(repr, near))}?" if near else "branches() and tags() list"
        )
        return NotFound(f"no {' or '.join(kinds)} {name!r} in {self.driver.url}; {hint}")

    def names(self, kind: str) -> list[str]:
        """Names of branches, or of tags, sorted."""
        keys, _ = self.driver.list_dir(f"{kind}/")
        return sorted(name for key in keys if (name := decode_name(key)) is not None)

    def pointers(self, kind: str) -> dict[str, str]:
        """Ids of commits by name, sorted."""
        names = self.names(kind)
        keys = [pointer_key(kind, name) for name in names]
        found = dict[str, str]()
        for i, pair in self.driver.get_many_tagged([Request(key, most=MOST) for key in keys]):
            if pair is not None:
                found[names[i]] = Pointer.parse(pair[0], keys[i]).commit
        return {name: found[name] for name in names if name in found}

    def name(self, kind: str, name: str, at: str | datetime) -> None:
        """Name a version; nothing may have the name."""
        key, other = pointer_key(kind, check_name(name, kind)), "branch" if kind == "tag" else "tag"
        kept = self.driver.kept(key)
        if kept is not None:
            raise Invalid(f"{self.driver.url} keeps names such as {kept!r} for itself")
        commit = self.commit(at)
        if self.driver.tag(pointer_key(other, name)) is not None:
            raise AlreadyExists(f"{self.driver.url} has a {other} {name!r}; choose another name")
        self.put(key, commit, None, name)
        # Whoever named the other kind so at the same moment sees this one, or is seen.
        if self.driver.tag(pointer_key(other, name)) is not None:
            self.driver.delete(key)
            raise AlreadyExists(f"{self.driver.url} has a {other} {name!r}; choose another name")

    def put(self, key: str, commit: Commit, tag: Tag | None, name: str) -> None:
        """Have a branch or tag name a commit, if it is at ``tag``."""
        value = Pointer(self.objects.repo, commit.summary.id, commit.summary.number).encode()
        try:
            self.driver.replace(key, value, tag)
        except Conflict as error:
            if tag is None:
                raise AlreadyExists(f"{self.driver.url} has {name!r} already") from error
            raise Conflict(
                f"branch {name!r} was changed by somebody else meanwhile; repeat the call", key=key
            ) from error

    def delete(self, kind: str, name: str) -> None:
        """Forget a name."""
        key = pointer_key(kind, check_name(name, kind))
        if self.driver.tag(key) is None:
            raise self._unknown((kind,), name)
        self.driver.delete(key)
