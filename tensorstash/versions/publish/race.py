"""The end of a transaction: one conditional put, repeated on top of what others committed first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from ...driver import Driver, Tag, pause
from ...errors import Conflict, DriverError
from ..access.branches import read_branch
from ..access.draft import Draft
from ..access.objects import Objects
from ..access.pointers import Pointer, pointer_key
from ..access.snapshot import TABLE, Snapshot
from ..changes import Changes
from ..commit import Commit
from ..ids import commit_id
from ..log import Summary
from ..pages import NewPages
from ..tree import differences
from .building import Built, Ready, build
from .conflicts import Clash, Documents, clash

_REMEMBERED = 64  # pages
_FREE = 3  # races lost before a lock is taken
_TRIES = 1000
_REPEATS = 4  # of a put of which nobody knows whether it was done


class Publisher:
    """Commits ``draft`` to the branch ``name``, which was at ``tag`` when the draft was begun."""

    def __init__(
        self, objects: Objects, draft: Draft, name: str, tag: Tag, summary: Summary
    ) -> None:
        self.objects = objects
        self.driver: Driver = objects.driver
        self.draft = draft
        self.name = name
        self.key = pointer_key("branch", name)
        self.tag = tag
        self.summary = summary
        self.head = draft.base
        self.new = NewPages(objects.repo, draft.session)
        self.ready = Ready()
        self.now = draft.base.commit
        self.mine = Changes()

    def run(self) -> Commit:
        """Return the commit once it is there.

        Raises:
            Conflict: somebody else has changed the same, or the branch is another one by now.
        """
        own = self.draft.changed_documents()
        with ExitStack() as stack:
            for attempt in range(1, _TRIES + 1):
                if attempt == _FREE + 1 and self.driver.capabilities.locks:
                    # The condition stays what guards; the lock is for turns.
                    stack.enter_context(self.driver.lock(self.key))
                    self.rebase(own)
                made = self.store(attempt)
                if self.put(made):
                    return made.commit
                if self.landed(made.commit):
                    return made.commit
                self.rebase(own, made.changes)
                if attempt <= _FREE:
                    pause(attempt)
        raise Conflict(f"{self.key} is changed by others without a break", key=self.key)

    def store(self, attempt: int) -> Built:
        """Everything but the branch: nobody sees it yet."""
        id = commit_id(self.draft.session, attempt)
        made = build(self.draft, self.head, replace(self.summary, id=id), self.new, self.ready)
        items = self.new.items()
        if items:
            self.driver.put_many(items)
        for reference, data in self.new.stored[:_REMEMBERED]:
            self.objects.keep_page(reference, data)
        self.new.stored.clear()
        data = made.commit.pack(self.objects.repo)
        self.driver.put(made.commit.key, data)
        self.objects.keep(made.commit, len(data))
        return made

    def put(self, made: Built) -> bool:
        """Publish; ``False`` where another was first. A put of which the answer was lost is
        repeated under the same condition: it is done once, or was done."""
        summary = made.commit.summary
        value = Pointer(self.objects.repo, summary.id, summary.number).encode()
        for repeat in range(_REPEATS):
            try:
                self.driver.replace(self.key, value, self.tag)
            except Conflict:
                return False
            except DriverError:
                if repeat == _REPEATS - 1:
                    raise
                pause(repeat + 4)
            else:
                return True
        raise AssertionError

    def landed(self, mine: Commit) -> bool:
        """Whether the branch has this commit in its history: its put was done, and the answer was
        lost. Learns what the branch is now."""
        pointer, self.tag = read_branch(self.objects, self.name)
        if pointer.commit == mine.summary.id:
            return True
        self.now = self.objects.commit(pointer.commit)
        return _has(self.now, mine.summary, self.objects)

    def rebase(self, own: Documents, mine: Changes | None = None) -> None:
        """Go on from where the branch is now, if nothing that was changed since matters."""
        if mine is None:
            pointer, self.tag = read_branch(self.objects, self.name)
            self.now = self.objects.commit(pointer.commit)
            if self.now.summary.id == self.head.id:
                return
            mine = self.mine
        self.mine = mine
        old, now = self.head, Snapshot(self.objects, self.now)
        if now.id == old.id:
            return
        if not _has(self.now, old.commit.summary, self.objects):
            raise Conflict(
                f"branch {self.name!r} was reset: {old.id}, from which this transaction "
                "began, is not in its history any more; repeat the change",
                key=self.key,
            )
        between = self.objects.commits([each.id for each in self.between(old)])
        theirs = [each.read_changes(self.objects.load) for each in between]
        their = documents_between(old, now)
        found = clash(mine, own, theirs, their)
        if found is not None:
            raise self.refused(found, between)
        for each in theirs:
            self.ready.keep_untouched(each)
        self.head = now

    def between(self, old: Snapshot) -> Iterator[Summary]:
        """What was committed after ``old``, newest first."""
        yield self.now.summary
        for each in self.now.log.ancestors(self.objects.load):
            if each.number <= old.commit.summary.number:
                return
            yield each

    def refused(self, found: Clash, between: list[Commit]) -> Conflict:
        """What to tell: which commit it was."""
        first = between[-1]
        for each in reversed(between):
            changes = each.read_changes(self.objects.load)
            if found.path in changes.arrays or any(
                key.startswith(found.path) for key in changes.documents
            ):
                first = each
                break
        theirs, mine = first.summary, self.summary
        return Conflict(
            f"commit {theirs.id}{_by(theirs)} on branch {self.name!r} changed {found.what}, as did "
            f"this transaction {self.draft.session}{_by(mine)}: nothing was committed; look at "
            f"what is there now, and repeat the change",
            key=self.key,
        )


def documents_between(old: Snapshot, new: Snapshot) -> dict[str, tuple[bytes | None, bytes | None]]:
    """Documents that two versions differ in."""
    return {
        key: (before, after)
        for key, before, after in differences(old.tree, new.tree, old.load)
        if not (key.endswith("/" + TABLE) or key == TABLE)
    }


def _has(commit: Commit, other: Summary, objects: Objects) -> bool:
    """Whether ``other`` is ``commit``, or one of its ancestors."""
    if commit.summary.number <= other.number:
        return commit.summary.id == other.id
    found = commit.log.numbered(other.number, objects.load)
    return found is not None and found.id == other.id


def _by(summary: Summary) -> str:
    return f" by {summary.author}" if summary.author else ""
