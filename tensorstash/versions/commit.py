"""A commit: who, when and why, the tree, what changed. (Signatures; bodies follow.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ids import Reference
from .pages import Load, NewPages
from .refs import Refs
from .table import ChunkTable, Index
from .tree import Tree


@dataclass(frozen=True)
class Summary:
    """What a log shows of a commit. ``time`` has a time zone (UTC when read); ``metadata`` is
    anything that JSON has."""

    id: str
    number: int
    parents: tuple[str, ...]
    time: datetime
    author: str = ""
    message: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ArrayChange:
    """Chunks of one array that were written or deleted, by page: positions, sorted.
    ``block``: the shape of its pages."""

    block: Index
    pages: Mapping[Index, NDArray[np.uint16]]


@dataclass(frozen=True, eq=False)
class Changes:
    """What a commit changed against its first parent. ``documents``: key to "created", "changed"
    or "deleted". ``arrays``: by the array's path as keys have it ("u/", "" for the root)."""

    documents: Mapping[str, str]
    arrays: Mapping[str, ArrayChange]


@dataclass(frozen=True, eq=False)
class Dead:
    """What the first parent's version has and this one has not; also pages of lost attempts of this
    session. ``tables``: arrays deleted whole: everything that their tables refer to."""

    chunks: Refs
    pages: Refs
    tables: Sequence[ChunkTable] = ()


@dataclass(frozen=True, eq=False)
class Log:
    """The ancestors along first parents. ``Log()``: of the first commit."""

    def after(self, parent: Summary, new: NewPages) -> Log:
        """The log of a commit whose first parent is ``parent``, which has this log."""

    def ancestors(self, load: Load) -> Iterator[Summary]:
        """Newest first; at most one page for each 64."""

    def numbered(self, number: int, load: Load) -> Summary | None:
        """The ancestor with that number; a few pages however long the history."""

    def at(self, time: datetime, load: Load) -> Summary | None:
        """The newest ancestor that is not younger than ``time``; a few pages."""


@dataclass(frozen=True, eq=False)
class Commit:
    """One commit. Never changed."""

    summary: Summary
    tree: Tree
    log: Log
    changes: Any  # Changes, or where they are: see read_changes
    dead: Any

    @staticmethod
    def make(
        summary: Summary, tree: Tree, log: Log, changes: Changes, dead: Dead, new: NewPages
    ) -> Commit:
        """A commit to be stored; what is too large for its own object becomes pages."""

    def pack(self, repo: bytes) -> bytes:
        """The bytes to be stored as ``commit/<id>``."""

    @staticmethod
    def unpack(data: bytes, repo: bytes, what: str) -> Commit: ...

    def read_changes(self, load: Load) -> Changes: ...

    def read_dead(self, load: Load) -> Iterator[Dead]:
        """Piece by piece."""
