"""How pages come and go: what reads and stores them is handed in, so that all else is arithmetic.

What a page holds follows from who refers to it. So whoever asks for pages says in which form, and
gets them decoded; a cache may keep them under their reference alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..driver import REPAIR, Buffer
from ..errors import Corrupt, counted
from .container import Kind, pack, unpack
from .ids import Reference, page_key

T = TypeVar("T")


@dataclass(frozen=True)
class Form(Generic[T]):
    """What pages of one kind hold: ``most`` raw bytes; ``parse`` makes of them, and of the page's
    key for messages, what is returned to those who asked."""

    kind: Kind
    most: int
    parse: Callable[[bytes, str], T]

    def decode(self, data: Buffer, repo: bytes, what: str) -> T:
        """What the stored bytes ``data`` of the object ``what`` hold."""
        return self.parse(unpack(data, self.kind, repo, what, self.most), what)

    def read(self, reference: Reference, data: Buffer | None, repo: bytes) -> T:
        """What the page at ``reference`` holds, of which ``data`` is stored (``None``: nothing).

        Raises:
            Corrupt: it is missing, of another size, or damaged.
        """
        what = page_key(reference)
        if data is None:
            raise Corrupt(f"{what} is missing{REPAIR}", key=what)
        if len(data) != reference.nbytes:
            nbytes = counted(len(data), "byte")
            raise Corrupt(f"{what} has {nbytes}, not {reference.nbytes}{REPAIR}", key=what)
        return self.decode(data, repo, what)


class Load(Protocol):
    """Returns what the pages at ``references`` hold, in their order; several are one request where
    the driver can. Corrupt where one is missing or its size is not the reference's."""

    def __call__(self, references: Sequence[Reference], form: Form[T], /) -> Sequence[T]:
        """See the class."""


class NewPages:
    """The pages that a session is about to store, numbered from ``first`` on.

    ``stored`` are the references and bytes so far; take them out as soon as they are put, if there
    are many. ``session`` is the session's id, ``repo`` the repository's 16 bytes.
    """

    def __init__(self, repo: bytes, session: str, first: int = 0) -> None:
        self.repo = repo
        self.session = session
        self.next = first
        self.stored: list[tuple[Reference, bytes]] = []

    def add(self, form: Form[T], raw: Buffer) -> Reference:
        """Keep one more page to be stored, and return its reference."""
        data = pack(form.kind, self.repo, raw, form.most)
        reference = Reference(self.session, self.next, len(data))
        self.next += 1
        self.stored.append((reference, data))
        return reference

    def retract(self, reference: Reference) -> bool:
        """Take the page that was added last back, if it is this one and was not taken out."""
        if not self.stored or self.stored[-1][0] != reference:
            return False
        self.stored.pop()
        self.next -= 1
        return True

    def items(self) -> list[tuple[str, bytes]]:
        """Keys and values to be put, all at once or in any order: nothing refers to them yet."""
        return [(page_key(reference), data) for reference, data in self.stored]
