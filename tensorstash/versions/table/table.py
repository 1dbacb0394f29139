"""Where the chunks of one array are: pages of references, of pages, and so on up to a root.

Costs follow what is stored and what changes, never how large the grid is: a change loads and
writes the pages on its way, each level in one call of ``load``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...driver import REPAIR
from ...errors import Corrupt
from ..binary import Reader, encode_reference, varint
from ..ids import MOST_TOTAL, Reference, page_key
from ..pages import Load
from ..refs import REF_PAGES, RefPage, Refs
from .blocks import MOST_INDEX_BITS, Blocks

_INLINE, _STORED = 0, 1
_AT_ONCE = 64  # pages that a listing reads ahead at most


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The chunks of one array. Never changed: ``edit.apply`` returns another one.

    ``root`` is the topmost page, or where it is; ``chunks`` and ``stored`` are how many chunks are
    stored, and their bytes.
    """

    blocks: Blocks
    root: RefPage | Reference
    chunks: int = 0
    stored: int = 0

    @classmethod
    def empty(cls, counts: Sequence[int]) -> ChunkTable:
        """No chunks, of an array whose grid has ``counts`` chunks along its axes by now."""
        blocks = Blocks.chosen(counts)
        return cls(blocks, RefPage.empty(blocks.size(0)))

    def encode(self) -> bytes:
        """Its root, or where that is: for the tree of entries."""
        parts = [self.blocks.encode(), varint(self.chunks), varint(self.stored)]
        if isinstance(self.root, RefPage):
            parts += (bytes((_INLINE,)), self.root.encode())
        else:
            parts += (bytes((_STORED,)), encode_reference(self.root))
        return b"".join(parts)

    @classmethod
    def parse(cls, data: bytes, what: str) -> ChunkTable:
        """What :meth:`encode` gave; ``what`` names it in messages."""
        reader = Reader(data, what)
        blocks = Blocks.read(reader)
        chunks, stored = reader.varint(MOST_TOTAL - 1), reader.varint(MOST_TOTAL - 1)
        how = reader.byte()
        root: RefPage | Reference
        if how == _INLINE:
            root = RefPage.read(reader)
            if not _is_page_of(root, blocks, blocks.levels - 1):
                raise _wrong(root, blocks, blocks.levels - 1, what)
        elif how == _STORED:
            root = reader.reference()
        else:
            reader.fail(f"has a table of kind {how}, which there is not")
        reader.end()
        return cls(blocks, root, chunks, stored)

    def place(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """The page of each chunk (n, ndim), and its position in the page."""
        return indices >> np.array(self.blocks.bits[0], np.int64), self.blocks.positions(indices, 0)

    def find(self, index: Sequence[int], load: Load) -> Reference | None:
        """Where one chunk is; ``None`` where none is stored."""
        if not self.blocks.covers(index):
            return None
        found: Reference | None = None
        for level in reversed(range(self.blocks.levels)):
            (page,) = self.top(load) if found is None else self.load_pages([found], level, load)
            found = page.find(self.blocks.position(index, level))
            if found is None:
                return None
        return found

    def get(self, indices: NDArray[np.int64], load: Load) -> tuple[NDArray[np.bool_], Refs]:
        """Which of the chunks (n, ndim) are stored, and where: of those alone, in their order."""
        levels = self.blocks.levels
        every = np.arange(len(indices))
        for axis, shift in enumerate(self.blocks.shifts[-1]):
            every = every[indices[every, axis] >> shift == 0]
        rows = [every] if len(every) else []
        pages = self.top(load) if rows else []
        found: list[tuple[NDArray[np.intp], Refs]] = []
        for level in reversed(range(levels)):
            wanted: list[Reference] = []
            below: list[NDArray[np.intp]] = []
            for page, inside in zip(pages, rows, strict=True):
                positions = self.blocks.positions(indices[inside], level)
                there, ranks = page.ranks(positions)
                if not level:
                    found.append((inside[there], page.refs.take(ranks)))
                    continue
                order = np.argsort(ranks, kind="stable")
                cuts = np.flatnonzero(np.diff(ranks[order], prepend=-1))
                wanted += (page.refs[int(ranks[order[cut]])] for cut in cuts)
                below += np.split(inside[there][order], cuts[1:]) if len(cuts) else []
            if level:
                pages, rows = self.load_pages(wanted, level - 1, load), below
        places = np.concatenate([where for where, _ in found]) if found else np.zeros(0, np.intp)
        present = np.zeros(len(indices), np.bool_)
        present[places] = True
        order = np.argsort(places, kind="stable")
        return present, Refs.joined([refs for _, refs in found]).take(order)

    def iterate(
        self, load: Load, start: Sequence[int] | None = None, stop: Sequence[int] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Refs]]:
        """The stored chunks from index ``start`` up to, not including, ``stop`` along each axis
        (all of them), page by page: indices (n, ndim) and references."""
        ndim = self.blocks.ndim
        most = 1 << MOST_INDEX_BITS
        first = [max(i, 0) for i in start or (0,) * ndim]
        last = [min(i, most) - 1 for i in stop or (most,) * ndim]
        if any(one > other for one, other in zip(first, last, strict=True)):
            return
        # Pages, their level and place, what of them is done, and how many to read ahead.
        stack = [(page, self.blocks.levels - 1, (0,) * ndim, 0, 2) for page in self.top(load)]
        while stack:
            page, level, place, done, ahead = stack.pop()
            inside = self.blocks.inside(place, page.positions, level)
            shift = self.blocks.shifts[level]
            kept = np.ones(len(inside), np.bool_)
            for axis in range(ndim):
                along = inside[:, axis]
                kept &= (along >= first[axis] >> shift[axis]) & (along <= last[axis] >> shift[axis])
            chosen = np.flatnonzero(kept)
            if not level:
                if len(chosen):
                    yield inside[chosen], page.refs.take(chosen)
                continue
            some = chosen[done : done + ahead]
            if done + ahead < len(chosen):
                stack.append((page, level, place, done + ahead, min(2 * ahead, _AT_ONCE)))
            below = self.load_pages([page.refs[int(i)] for i in some], level - 1, load)
            for i, child in zip(some[::-1], reversed(below), strict=True):
                where = tuple(inside[i].tolist())
                stack.append((child, level - 1, where, 0, ahead))

    def every_page(self, load: Load) -> Iterator[Reference]:
        """All pages that it consists of, but for a root that lies in the tree of entries."""
        if isinstance(self.root, Reference):
            yield self.root
        stack = [(page, self.blocks.levels - 1, 0) for page in self.top(load)]
        while stack:
            page, level, done = stack.pop()
            if not level:
                continue
            refs = [page.refs[i] for i in range(done, min(done + _AT_ONCE, len(page)))]
            yield from refs
            if done + _AT_ONCE < len(page):
                stack.append((page, level, done + _AT_ONCE))
            if level > 1:
                below = self.load_pages(refs, level - 1, load)
                stack += ((child, level - 1, 0) for child in below)

    def top(self, load: Load) -> list[RefPage]:
        """The root, wherever it is."""
        if isinstance(self.root, Reference):
            return self.load_pages([self.root], self.blocks.levels - 1, load)
        return [self.root]

    def load_pages(self, references: Sequence[Reference], level: int, load: Load) -> list[RefPage]:
        """Pages of ``level``.

        Raises:
            Corrupt: one is not the page of such a table.
        """
        if not references:
            return []
        pages = list(load(references, REF_PAGES))
        for reference, page in zip(references, pages, strict=True):
            if not _is_page_of(page, self.blocks, level):
                raise _wrong(page, self.blocks, level, page_key(reference))
        return pages


def _is_page_of(page: RefPage, blocks: Blocks, level: int) -> bool:
    return page.size == blocks.size(level) and (page.chunks is not None) == (level > 0)


def _wrong(page: RefPage, blocks: Blocks, level: int, what: str) -> Corrupt:
    return Corrupt(
        f"{what} has {page.size} references to {_WHAT[page.chunks is not None]}, where "
        f"{blocks.size(level)} to {_WHAT[level > 0]} must be{REPAIR}",
        key=what,
    )


_WHAT = ("chunks", "pages")
