"""From what a transaction changed to the trees and pages of a commit on top of another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import StashError
from ...metadata import zarr2, zarr3
from ...metadata.mark import Layout
from ...metadata.spec import ArraySpec
from ..access.draft import Draft, Index, Stored
from ..access.snapshot import TABLE, Snapshot
from ..changes import ArrayChange, Changes, Dead
from ..commit import Commit
from ..ids import Reference
from ..log import Summary
from ..pages import NewPages
from ..refs import PageChange, Refs
from ..table import ChunkTable, ReadyPage, apply


@dataclass
class Ready:
    """What earlier tries left: pages of chunks by array, and every page that was stored."""

    pages: dict[str, tuple[Index, Mapping[Index, ReadyPage]]] = field(default_factory=dict)
    stored: set[Reference] = field(default_factory=set)

    def keep_untouched(self, theirs: Changes) -> None:
        """Forget the pages that another commit has changed."""
        for path, (block, pages) in [*self.pages.items()]:
            other = theirs.arrays.get(path)
            if other is None:
                continue
            if other.block != block:
                del self.pages[path]
            else:
                kept = {page: each for page, each in pages.items() if page not in other.pages}
                self.pages[path] = block, kept


@dataclass
class Built:
    """A commit to be stored, and what it changed."""

    commit: Commit
    changes: Changes


def build(draft: Draft, head: Snapshot, summary: Summary, new: NewPages, ready: Ready) -> Built:
    """The commit of ``draft`` on top of ``head``, to which what others committed since does not
    matter. Its new pages go to ``new``."""
    own = draft.changed_documents()
    edits: dict[str, bytes | None] = {key: after for key, (_, after) in own.items()}
    kinds = {
        key: "created" if before is None else "deleted" if after is None else "changed"
        for key, (before, after) in own.items()
    }
    dead: list[Refs] = []
    dead_pages: list[Reference] = []
    dead_tables: list[ChunkTable] = []
    arrays: dict[str, ArrayChange] = {}
    used: set[Reference] = set()
    unused: list[Stored] = [*draft.garbage]
    found: dict[str, tuple[Index, Mapping[Index, ReadyPage]]] = {}
    for path, layout in _arrays(draft, own):
        table = head.table(path)
        before = head.places.layouts(path)
        same = layout is not None and table is not None and before[:1] == (layout,)
        if table is not None and not (same and table.blocks.ndim == _ndim(layout)):
            dead_tables.append(table)
            edits[path + TABLE] = None
            table = None
        for (at, other), chunks in draft.chunks.items():
            if at == path and other != layout:
                unused += (stored for stored in chunks.values() if stored is not None)
        if layout is None:
            continue
        chunks = draft.chunks.get((path, layout), {})
        if not chunks:
            continue
        counts = _counts(draft, path, layout, chunks)
        table = ChunkTable.empty(counts) if table is None else table
        changed, change = _grouped(table, chunks, draft.session)
        arrays[path] = change
        block, known = ready.pages.get(path, ((), {}))
        merged: dict[Index, PageChange | ReadyPage] = dict(changed)
        if block == table.blocks.block:
            merged |= {page: each for page, each in known.items() if page in changed}
        applied = apply(table, merged, head.load, new, counts)
        found[path] = table.blocks.block, applied.ready
        used.update(each.reference for each in applied.ready.values() if each.reference)
        dead.append(applied.dead)
        dead_pages += applied.dead_pages
        whole = applied.table
        edits[path + TABLE] = whole.encode() if whole.chunks else None
        if not whole.chunks and isinstance(whole.root, Reference):
            dead_pages.append(whole.root)
    tree = head.tree.apply(edits, head.load, new)
    log = head.commit.log.after(head.commit.summary, new)
    numbers, sizes = zip(*unused, strict=True) if unused else ((), ())
    chunks_dead = Refs.joined([*dead, Refs.of(draft.session, numbers, sizes)])
    stale = ready.stored - used
    changes = Changes(kinds, arrays)
    commit = Commit.make(
        replace(summary, parents=(head.id,), number=head.commit.summary.number + 1),
        tree.tree,
        log,
        changes,
        Dead(chunks_dead, Refs.listed([*dead_pages, *tree.dead, *stale]), dead_tables),
        new,
    )
    ready.pages = found
    ready.stored |= {reference for reference, _ in new.stored}
    return Built(commit, changes)


def _arrays(draft: Draft, own: Mapping[str, object]) -> list[tuple[str, Layout | None]]:
    """Arrays of which chunks, or the whole, may have changed, and how their keys are made now."""
    paths = {path for path, _ in draft.chunks}
    for key in own:
        path, name = key[: key.rfind("/") + 1], key.rpartition("/")[2]
        if name in (zarr3.KEY, zarr2.ARRAY):
            paths.add(path)
    found: list[tuple[str, Layout | None]] = []
    for path in sorted(paths):
        layouts = draft.places.layouts(path)
        found.append((path, layouts[0] if layouts else None))
    return found


def _ndim(layout: Layout | None) -> int:
    return -1 if layout is None else layout.ndim


def _counts(
    draft: Draft, path: str, layout: Layout, chunks: Mapping[Index, object]
) -> tuple[int, ...]:
    """Chunks of the grid along each axis."""
    documents = draft.known_documents([path + zarr3.KEY, path + zarr2.ARRAY])
    spec: object = None
    try:
        if path + zarr3.KEY in documents:
            spec = zarr3.parse(documents[path + zarr3.KEY])[1]
        elif path + zarr2.ARRAY in documents:
            spec = zarr2.parse_array(documents[path + zarr2.ARRAY], None, allow_pickle=None)
    except StashError:
        spec = None
    if isinstance(spec, ArraySpec) and spec.ndim == layout.ndim:
        return spec.grid.counts(spec.shape)
    # What cannot be read, or has its document later: as far as there are chunks.
    return tuple(max(along) + 1 for along in zip(*chunks, strict=True))


def _grouped(
    table: ChunkTable, chunks: Mapping[Index, Stored | None], session: str
) -> tuple[dict[Index, PageChange], ArrayChange]:
    """Changes of chunks by the page that each is in."""
    ndim = table.blocks.ndim
    indices = np.array([*chunks], np.int64).reshape(len(chunks), ndim)
    present = np.array([stored is not None for stored in chunks.values()], np.bool_)
    columns = np.array([stored or (0, 0) for stored in chunks.values()], np.uint64)
    pages, positions = table.place(indices)
    by: list[NDArray[Any]] = [positions, *(pages[:, axis] for axis in reversed(range(ndim)))]
    order = np.lexsort(by)
    pages, positions = pages[order], positions[order]
    present, columns = present[order], columns[order]
    moved: NDArray[np.bool_] = np.any(pages[1:] != pages[:-1], axis=1)
    cuts = [0, *(np.flatnonzero(moved) + 1).tolist(), len(order)]
    changed: dict[Index, PageChange] = {}
    touched: dict[Index, NDArray[np.uint16]] = {}
    for first, last in pairwise(cuts):
        page = tuple(pages[first].tolist())
        there = present[first:last]
        kept = columns[first:last][there]
        refs = Refs.of(session, kept[:, 0], kept[:, 1])
        touched[page] = positions[first:last].astype(np.uint16)
        changed[page] = PageChange(touched[page], there, refs)
    return changed, ArrayChange(table.blocks.block, touched)
