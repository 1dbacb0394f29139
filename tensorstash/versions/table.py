"""The chunks of one array: pages of references, of pages, and so on. (Signatures; bodies follow.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ids import Reference
from .pages import Load, NewPages
from .refs import PageChange, RefPage, Refs

Index = tuple[int, ...]


def choose_block(counts: Sequence[int]) -> Index:
    """The shape of the pages of chunks of an array with ``counts`` chunks along its axes."""


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """Where the chunks of one array are. Never changed; ``apply`` returns another one.

    ``blocks``: the shape of a page of chunks, of a page of pages, ... up to the root; the first
    never changes, more are added as the grid grows. ``root``: the topmost page, or where it is."""

    blocks: tuple[Index, ...]
    root: RefPage | Reference
    chunks: int
    stored: int

    @staticmethod
    def empty(counts: Sequence[int]) -> ChunkTable:
        """Without chunks; ``counts``: chunks along each axis of the array's grid."""

    @staticmethod
    def parse(data: bytes, what: str) -> ChunkTable:
        """The table that ``encode`` gave, as the tree of entries holds it."""

    def encode(self) -> bytes: ...

    @property
    def block(self) -> Index:
        """Chunks of one page along each axis."""

    def place(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """For chunks (n, ndim): the page (n, ndim) and the position in it (n)."""

    def indices(self, page: Index, positions: NDArray[Any]) -> NDArray[np.int64]:
        """The reverse: the chunks (n, ndim) at ``positions`` of a page."""

    def find(self, index: Index, load: Load) -> Reference | None:
        """Where one chunk is; None where none is stored."""

    def get(self, indices: NDArray[np.int64], load: Load) -> tuple[NDArray[np.bool_], Refs]:
        """Which of the chunks (n, ndim) are stored, and the references of those, in order; one
        call of ``load`` per level."""

    def iterate(
        self, load: Load, start: Index | None = None, stop: Index | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Refs]]:
        """The stored chunks within a box of chunk indices (all): page by page, in C order of
        pages, indices (n, ndim) and references. Costs by what is stored."""

    def apply(
        self,
        changes: Mapping[Index, PageChange | ReadyPage],
        load: Load,
        new: NewPages,
        counts: Sequence[int] = (),
    ) -> Applied:
        """The table after ``changes``, by page (as ``place`` gives them). ``counts``: chunks of the
        grid along each axis, so that a table that grows knows how far."""


@dataclass(frozen=True, eq=False)
class ReadyPage:
    """A page of chunks that an earlier try stored already, and that nobody else has changed since:
    it takes its place as it is. ``reference`` is None where nothing is left in it."""

    reference: Reference | None
    chunks: int
    stored: int
    dead: Refs


@dataclass(frozen=True, eq=False)
class Applied:
    """``table``: the new one. ``ready``: of each page changed, what another try can use.
    ``dead``: chunks that the old table has and the new one has not; ``dead_pages``: likewise."""

    table: ChunkTable
    ready: dict[Index, ReadyPage]
    dead: Refs
    dead_pages: list[Reference]
