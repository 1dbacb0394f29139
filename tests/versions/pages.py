"""Pages of a repository in a dict, and what was read of them in how many calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tensorstash.versions.ids import Reference, new_session, page_key
from tensorstash.versions.pages import Form, NewPages

T = TypeVar("T")
REPO = bytes(range(16))


class Pages:
    """Holds what sessions store; ``load`` is handed to whoever reads it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.calls = 0
        self.read: list[Reference] = []

    def session(self) -> NewPages:
        """A new session's pages; :meth:`keep` stores them."""
        return NewPages(REPO, new_session())

    def keep(self, new: NewPages) -> None:
        """Store the pages of a session."""
        for key, data in new.items():
            assert key not in self.objects, f"{key} is stored twice"
            self.objects[key] = data
        new.stored.clear()

    def load(self, references: Sequence[Reference], form: Form[T]) -> Sequence[T]:
        """What is stored at ``references``."""
        assert references, "an empty call"
        self.calls += 1
        self.read += references
        return [self.one(reference, form) for reference in references]

    def one(self, reference: Reference, form: Form[T]) -> T:
        """One page."""
        return form.read(reference, self.objects.get(page_key(reference)), REPO)

    def forget(self) -> None:
        """Count anew."""
        self.calls = 0
        self.read = []
