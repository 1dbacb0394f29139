"""A commit: who, when and why, the tree of entries, what changed, and the history.

::

    sections: varint; and of each: id u8, its bytes, sized
        1 summary  2 tree  3 changes  4 dead  5 log
        from 128 on: a reader that does not know one passes over it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..driver import REPAIR, Buffer
from ..errors import Corrupt, Unsupported
from ..metadata.document import decode
from .binary import Reader, sized, varint
from .changes import CHANGES, DEAD, Changes, Dead, Pieces
from .container import Kind, pack, unpack
from .ids import commit_key
from .log import Log, Summary, as_text
from .pages import Load, NewPages
from .tree import Tree

MOST = 1 << 20
"""Raw bytes of a commit. Each section is bound: the largest together have a quarter of it."""

_SUMMARY, _TREE, _CHANGES, _DEAD, _LOG = range(1, 6)
_OPTIONAL = 128
_MOST_SECTIONS = 256


@dataclass(frozen=True, eq=False)
class Commit:
    """One commit. Never changed."""

    summary: Summary
    tree: Tree
    changes: Pieces[Changes]
    dead: Pieces[Dead]
    log: Log

    @classmethod
    def make(
        cls, summary: Summary, tree: Tree, log: Log, changes: Changes, dead: Dead, new: NewPages
    ) -> Commit:
        """A commit to be stored; of ``changes`` and ``dead``, what is large becomes pages of
        ``new``. ``log`` is that of its first parent :meth:`~.log.Log.after` that parent.

        Raises:
            Invalid: message or metadata are too large, or have no form in JSON; there are more
                changes than a commit can hold.
        """
        summary.check()
        return cls(
            summary,
            tree,
            Pieces.of(CHANGES, changes.pieces(), new),
            Pieces.of(DEAD, dead.pieces(), new),
            log,
        )

    def pack(self, repo: bytes) -> bytes:
        """What to store as ``commit/<id>``."""
        sections = {
            _SUMMARY: as_text(self.summary.document()),
            _TREE: self.tree.encode(),
            _CHANGES: self.changes.encode(),
            _DEAD: self.dead.encode(),
            _LOG: self.log.encode(),
        }
        parts = [varint(len(sections))]
        for section, data in sections.items():
            parts += (bytes((section,)), sized(data))
        return pack(Kind.COMMIT, repo, b"".join(parts), MOST)

    @classmethod
    def unpack(cls, data: Buffer, repo: bytes, id: str) -> Commit:
        """What is stored as ``commit/<id>``.

        Raises:
            Corrupt: it is damaged, or another commit.
            Conflict: it belongs to another repository.
            Unsupported: a newer version of tensorstash stored it.
        """
        what = commit_key(id)
        reader = Reader(unpack(data, Kind.COMMIT, repo, what, MOST), what)
        sections: dict[int, bytes] = {}
        for _ in range(reader.varint(_MOST_SECTIONS)):
            section = reader.byte()
            if section in sections:
                reader.fail(f"has section {section} twice")
            sections[section] = reader.sized(MOST)
        reader.end()
        newer = [section for section in sections if _LOG < section < _OPTIONAL]
        if newer:
            raise Unsupported(
                f"{what} has section {newer[0]}, which this version of tensorstash does not know; "
                "use a newer tensorstash"
            )
        missing = [section for section in range(_SUMMARY, _LOG + 1) if section not in sections]
        if missing:
            reader.fail(f"has no section {missing[0]}")
        summary = Summary.read(decode(sections[_SUMMARY], what), what)
        if summary.id != id:
            raise Corrupt(f"{what} is commit {summary.id}{REPAIR}", key=what)
        return cls(
            summary,
            Tree.parse(sections[_TREE], what),
            Pieces.parse(CHANGES, sections[_CHANGES], what),
            Pieces.parse(DEAD, sections[_DEAD], what),
            Log.parse(sections[_LOG], what),
        )

    @property
    def key(self) -> str:
        """Where it is stored, below the repository's root."""
        return commit_key(self.summary.id)

    def read_changes(self, load: Load) -> Changes:
        """What it changed against its first parent."""
        return Changes.joined(self.changes.read(load, self.key))

    def read_dead(self, load: Load) -> Iterator[Dead]:
        """What its first parent refers to and it does not, piece by piece."""
        return self.dead.read(load, self.key)
