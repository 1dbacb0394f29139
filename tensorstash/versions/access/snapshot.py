"""One commit's documents and chunks, for reading: no I/O but pages, which are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...metadata.mark import Layout
from ..commit import Commit
from ..ids import Reference
from ..refs import Refs
from ..table import ChunkTable
from ..tree import Tree
from .objects import Objects
from .places import Chunk, Places

TABLE = "/refs"
"""Behind an array's path, the key of its table in the tree of entries: no document has such."""

Index = tuple[int, ...]


class Snapshot:
    """What commit ``commit`` holds. Never changed, and safe in several threads."""

    def __init__(self, objects: Objects, commit: Commit) -> None:
        self.objects = objects
        self.commit = commit
        self.load = objects.load
        self.places = Places(self.documents)
        self._tables: dict[str, ChunkTable | None] = {}
        self._layouts: dict[str, Layout | None] = {}

    @property
    def tree(self) -> Tree:
        """The tree of entries."""
        return self.commit.tree

    @property
    def id(self) -> str:
        """The commit's id."""
        return self.commit.summary.id

    def documents(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Those documents that are there."""
        return self.tree.get(keys, self.load)

    def documents_below(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Keys and documents, sorted."""
        for key, value in self.tree.below(prefix, self.load):
            if not key.endswith("/" + TABLE) and key != TABLE:
                yield key, value

    def names(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Names of documents directly below, and of folders that hold some or a table."""
        for name, folder in self.tree.names(prefix, self.load):
            if name:
                yield name, folder

    def table(self, path: str) -> ChunkTable | None:
        """Where the chunks of the array at ``path`` are; ``None``: none was stored."""
        if path not in self._tables:
            key = path + TABLE
            value = self.tree.get([key], self.load).get(key)
            self._tables[path] = None if value is None else ChunkTable.parse(value, key)
        return self._tables[path]

    def layout(self, path: str) -> Layout | None:
        """How the keys of the array at ``path`` are made."""
        if path not in self._layouts:
            self._layouts[path] = next(iter(self.places.layouts(path)), None)
        return self._layouts[path]

    def table_of(self, chunk: Chunk) -> ChunkTable | None:
        """The table in which ``chunk`` is, if it is stored."""
        if self.layout(chunk.path) != chunk.layout:
            return None
        table = self.table(chunk.path)
        return table if table is not None and table.blocks.ndim == chunk.layout.ndim else None

    def reference(self, chunk: Chunk) -> Reference | None:
        """Where a chunk is stored."""
        table = self.table_of(chunk)
        return None if table is None else table.find(chunk.at, self.load)

    def references(self, chunks: Sequence[Chunk]) -> list[Reference | None]:
        """Where chunks are stored; pages that are not known yet are read at once."""
        if len(chunks) == 1:
            return [self.reference(chunks[0])]
        found: list[Reference | None] = [None] * len(chunks)
        groups: dict[str, list[int]] = {}
        for i, chunk in enumerate(chunks):
            groups.setdefault(chunk.path, []).append(i)
        for rows in groups.values():
            table = self.table_of(chunks[rows[0]])
            if table is None:
                continue
            indices = np.array([chunks[i].at for i in rows], np.int64)
            there, refs = table.get(indices.reshape(len(rows), -1), self.load)
            for i, reference in zip(np.array(rows)[there].tolist(), refs, strict=True):
                found[i] = reference
        return found

    def tables_below(self, prefix: str) -> Iterator[str]:
        """Paths of arrays that have chunks, below ``prefix`` or above it."""
        at = ""
        for name in ["", *prefix.split("/")[:-1]]:
            at += name + "/" if name else ""
            if at != prefix and self.table(at) is not None:
                yield at
        for key, _ in self.tree.below(prefix, self.load, values=False):
            if key.endswith("/" + TABLE) or key == TABLE:
                yield key[: -len(TABLE)]

    def stored(
        self, path: str, start: Sequence[int] | None = None, stop: Sequence[int] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Refs]]:
        """The chunks of one array, page by page."""
        table = self.table(path)
        if table is not None:
            yield from table.iterate(self.load, start, stop)
