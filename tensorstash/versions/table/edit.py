"""Changes of the chunks of one array: down to the pages that they touch, and up to a new root."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import Invalid, counted
from ..ids import Reference
from ..pages import Load, NewPages
from ..refs import NONE, REF_PAGES, PageChange, RefPage, Refs
from .blocks import MOST_INDEX_BITS, Blocks, Index
from .table import ChunkTable

INLINE = 3 << 10
"""Raw bytes of a root up to which it lies in the tree of entries."""

_AT_ONCE = 1024  # pages of chunks, some 50 KB each in memory


@dataclass(frozen=True, eq=False)
class ReadyPage:
    """A page of chunks as a change leaves it: stored at ``reference`` (``None``: nothing is left in
    it), with ``chunks`` chunks of ``stored`` bytes; ``dead`` are the chunks that it had before and
    has no longer. Another try takes it over while nobody else changes that page."""

    reference: Reference | None
    chunks: int
    stored: int
    dead: Refs


@dataclass(frozen=True, eq=False)
class Applied:
    """``table``: the new one. ``ready``: pages of chunks that changed, which another try can take
    over; not among them is one that became the root. ``dead``: chunks that the old table has and
    the new one has not; ``dead_pages``: likewise."""

    table: ChunkTable
    ready: dict[Index, ReadyPage]
    dead: Refs
    dead_pages: list[Reference]


def apply(
    table: ChunkTable,
    changes: Mapping[Index, PageChange | ReadyPage],
    load: Load,
    new: NewPages,
    counts: Sequence[int] = (),
) -> Applied:
    """The table after ``changes``.

    Args:
        table: the one before.
        changes: by page, as :meth:`ChunkTable.place` gives them: the change of its positions, or
            what an earlier try left of it.
        load: reads pages.
        new: takes the new pages.
        counts: chunks of the grid along each axis, so that a table that grows knows how far.

    Raises:
        Invalid: a page or position is beyond any grid.
    """
    return _Edit(table, load, new).run(changes, counts)


@dataclass(frozen=True)
class _Below:
    """What became of a page: where it is (``None``: nothing is left in it), and what it holds."""

    reference: Reference | None
    chunks: int
    stored: int


class _Edit:
    def __init__(self, table: ChunkTable, load: Load, new: NewPages) -> None:
        self.table = table
        self.load = load
        self.new = new
        self.dead: list[Refs] = []
        self.dead_pages: list[Reference] = []
        self.ready: dict[Index, ReadyPage] = {}
        # By level and place: pages as they were, and where they were.
        self.old: dict[tuple[int, Index], RefPage] = {}
        self.where: dict[tuple[int, Index], Reference] = {}
        self.last: tuple[Reference, RefPage] | None = None

    def run(
        self, changes: Mapping[Index, PageChange | ReadyPage], counts: Sequence[int]
    ) -> Applied:
        """See :func:`apply`."""
        blocks = self.table.blocks.covering(_furthest(self.table.blocks, changes), counts)
        self.find_old([*changes])
        below = self.leaves(blocks, changes)
        if not below:
            return Applied(self.table, {}, NONE, [])
        for level in range(1, blocks.levels):
            below = self.climb(blocks, level, below)
        (top,) = below.values()
        table = self.rooted(blocks, top)
        return Applied(table, self.ready, Refs.joined(self.dead), self.dead_pages)

    def find_old(self, pages: list[Index]) -> None:
        """Load the pages above those that change, and find where these are."""
        blocks = self.table.blocks
        root = (0,) * blocks.ndim
        touched: list[dict[Index, tuple[Index, int]]] = []
        for level in range(1, blocks.levels):
            touched.append({page: blocks.above(page, level) for page in pages})
            pages = list({above: None for above, _ in touched[-1].values()})
        if root not in pages:
            return
        if isinstance(self.table.root, Reference):
            self.where[blocks.levels - 1, root] = self.table.root
        if blocks.levels > 1 or not self.where:
            (self.old[blocks.levels - 1, root],) = self.table.top(self.load)
        for level in range(blocks.levels - 1, 0, -1):
            found: list[Index] = []
            for page, (above, position) in touched[level - 1].items():
                old = self.old.get((level, above))
                reference = old.find(position) if old is not None else None
                if reference is not None:
                    self.where[level - 1, page] = reference
                    found.append(page)
            if level > 1:
                self.read_old(level - 1, found)

    def read_old(self, level: int, pages: Sequence[Index]) -> None:
        """Load pages as they were, of which it is known where they are."""
        references = [self.where[level, page] for page in pages]
        read = self.table.load_pages(references, level, self.load)
        self.old.update({(level, page): old for page, old in zip(pages, read, strict=True)})

    def leaves(
        self, blocks: Blocks, changes: Mapping[Index, PageChange | ReadyPage]
    ) -> dict[Index, _Below | RefPage]:
        """Change the pages of chunks, some at a time; the root is not stored yet."""
        below: dict[Index, _Below | RefPage] = {}
        pages = sorted(changes)
        for at in range(0, len(pages), _AT_ONCE):
            some = pages[at : at + _AT_ONCE]
            merged = [page for page in some if isinstance(changes[page], PageChange)]
            self.read_old(0, [page for page in merged if (0, page) in self.where])
            for page in some:
                change = changes[page]
                if isinstance(change, ReadyPage):
                    if change.reference and change.reference == self.where.get((0, page)):
                        continue  # it is there already
                    self.replaced(0, page)
                    self.dead.append(change.dead)
                    self.ready[page] = change
                    below[page] = _Below(change.reference, change.chunks, change.stored)
                elif (changed := self.leaf(blocks, page, change)) is not None:
                    below[page] = changed
        return below

    def leaf(self, blocks: Blocks, page: Index, change: PageChange) -> _Below | RefPage | None:
        """Change one page of chunks; ``None`` where it stays as it is."""
        size = blocks.size(0)
        if len(change.positions) and int(change.positions[-1]) >= size:
            raise Invalid(f"position {int(change.positions[-1])} is beyond a page of {size}")
        old = self.old.pop((0, page), None) or RefPage.empty(size)
        fresh, dead = _differing(old, change)
        if not fresh and not len(dead):
            return None
        self.replaced(0, page)
        self.dead.append(dead)
        changed = old.changed(change)
        if blocks.levels == 1:
            return changed
        kept = self.store(changed)
        self.ready[page] = ReadyPage(kept.reference, kept.chunks, kept.stored, dead)
        return kept

    def climb(
        self, blocks: Blocks, level: int, below: Mapping[Index, _Below | RefPage]
    ) -> dict[Index, _Below | RefPage]:
        """Change the pages of one level, given what became of those below it."""
        grouped: dict[Index, dict[int, _Below]] = {}
        for page, kept in below.items():
            assert isinstance(kept, _Below)
            above, position = blocks.above(page, level)
            grouped.setdefault(above, {})[position] = kept
        root = (0,) * blocks.ndim
        if level == self.table.blocks.levels and root not in below:
            # What was the root becomes the first page below the new one.
            grouped.setdefault(root, {})[0] = self.old_root()
        out: dict[Index, _Below | RefPage] = {}
        for page, children in sorted(grouped.items()):
            old = self.old.pop((level, page), None) or RefPage.empty(blocks.size(level), pages=True)
            changed = old.changed(_page_change(children))
            self.replaced(level, page)
            out[page] = changed if level == blocks.levels - 1 else self.store(changed)
        if level == blocks.levels - 1:
            assert list(out) == [root]
        return out

    def old_root(self) -> _Below:
        """The old root, which does not change, as a page below a new one."""
        if isinstance(self.table.root, RefPage):
            return self.store(self.table.root)
        return _Below(self.table.root, self.table.chunks, self.table.stored)

    def store(self, page: RefPage) -> _Below:
        """A page that is no root."""
        if not len(page):
            return _Below(None, 0, 0)
        reference = self.new.add(REF_PAGES, page.encode())
        self.last = reference, page
        return _Below(reference, *page.totals())

    def replaced(self, level: int, page: Index) -> None:
        """A page takes the place of the one that was there."""
        if (level, page) in self.where:
            self.dead_pages.append(self.where[level, page])

    def rooted(self, blocks: Blocks, top: _Below | RefPage) -> ChunkTable:
        """The table with ``top`` at its top, of as few levels as can be."""
        if isinstance(top, _Below):  # of one level, and taken over from an earlier try
            if top.reference is not None:
                return ChunkTable(blocks, top.reference, top.chunks, top.stored)
            top = RefPage.empty(blocks.size(0))
        chunks, stored = top.totals()
        while blocks.levels > 1 and (not len(top) or top.positions.tolist() == [0]):
            blocks = blocks.lowered()
            if not len(top):
                top = RefPage.empty(blocks.size(blocks.levels - 1), pages=blocks.levels > 1)
                continue
            reference = top.refs[0]
            if self.last is not None and self.last[0] == reference and self.new.retract(reference):
                top = self.last[1]
                # It is stored nowhere that another try could find it.
                self.ready = {
                    page: each for page, each in self.ready.items() if each.reference != reference
                }
                continue
            if reference.session == self.new.session:
                return ChunkTable(blocks, reference, chunks, stored)
            (top,) = ChunkTable(blocks, reference).top(self.load)
            if blocks.levels == 1 and len(top.encode()) > INLINE:
                return ChunkTable(blocks, reference, chunks, stored)
            self.dead_pages.append(reference)
        raw = top.encode()
        root = top if len(raw) <= INLINE else self.new.add(REF_PAGES, raw)
        return ChunkTable(blocks, root, chunks, stored)


def _furthest(blocks: Blocks, pages: Iterable[Index]) -> list[int]:
    """The furthest chunk along each axis that ``pages`` may have."""
    furthest = [0] * blocks.ndim
    for page in pages:
        if len(page) != blocks.ndim or min(page, default=0) < 0:
            raise Invalid(
                f"{page} cannot be a page of an array of {counted(blocks.ndim, 'axis', 'axes')}"
            )
        furthest = [max(most, i) for most, i in zip(furthest, page, strict=True)]
    chunks = [i << bits for i, bits in zip(furthest, blocks.bits[0], strict=True)]
    if max(chunks, default=0) >> MOST_INDEX_BITS:
        raise Invalid(
            f"chunk {max(chunks)} is beyond any grid: indices have {MOST_INDEX_BITS} bits"
        )
    return chunks


def _differing(old: RefPage, change: PageChange) -> tuple[int, Refs]:
    """How many references ``change`` puts where they were not, and what it takes away. What is put
    back where it was is neither: it must never be told dead."""
    there, dead = old.lookup(change.positions)
    if set(dead.sessions).isdisjoint(change.refs.sessions):
        return len(change.refs), dead
    before = np.flatnonzero(change.present[there])
    after = np.flatnonzero(there[change.present])
    same = dead.take(before).same(change.refs.take(after))
    gone = np.ones(len(dead), np.bool_)
    gone[before[same]] = False
    return len(change.refs) - int(same.sum()), dead.take(gone)


def _page_change(children: Mapping[int, _Below]) -> PageChange:
    positions = sorted(children)
    kept = [children[position] for position in positions]
    there = [each for each in kept if each.reference is not None]
    return PageChange(
        np.array(positions, np.uint16),
        np.array([each.reference is not None for each in kept], np.bool_),
        Refs.listed([each.reference for each in there if each.reference is not None]),
        np.array([each.chunks for each in there], np.uint64),
        np.array([each.stored for each in there], np.uint64),
    )
