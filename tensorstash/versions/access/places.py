"""Which array a key belongs to, as the documents of a tree say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ...metadata import mark, zarr2, zarr3
from ...metadata.belongings import DOCUMENTS
from ...metadata.mark import Layout

Index = tuple[int, ...]


class Chunk(NamedTuple):
    """A chunk by its place: the array's path (empty or ending in ``/``), how its keys are made,
    and its index."""

    path: str
    layout: Layout
    at: Index


class _Node(NamedTuple):
    own: tuple[Layout, ...]
    below: Mapping[str, tuple[Layout, ...]]


_NOTHING = _Node((), {})


def is_document(key: str) -> bool:
    """Whether ``key`` is that of a metadata document."""
    return key.rpartition("/")[2] in DOCUMENTS


class Places:
    """Asks ``read`` for documents by key, and keeps what they say until :meth:`forget`."""

    def __init__(self, read: Callable[[Sequence[str]], Mapping[str, bytes]]) -> None:
        self._read = read
        self._nodes: dict[str, _Node] = {}

    def forget(self, path: str) -> None:
        """A document at ``path`` has changed."""
        self._nodes.pop(path, None)

    def layouts(self, path: str) -> tuple[Layout, ...]:
        """How the keys of the array at ``path`` may be made; none where there is no array."""
        at, found = "", list(self._node("").own) if not path else []
        below = [("", self._node("").below)]
        for name in path.split("/")[:-1]:
            at += name + "/"
            node = self._node(at)
            if at == path:
                found += node.own
            below.append((at, node.below))
        for above, listed in below:
            found += listed.get(path[len(above) :], ())
        return tuple(dict.fromkeys(found))

    def find(self, key: str) -> Chunk | None:
        """The chunk that ``key`` names; ``None`` where no array explains it."""
        at, rest = "", key
        below: list[tuple[str, Mapping[str, tuple[Layout, ...]]]] = []
        while True:
            node = self._node(at)
            if node.below:
                below.append((at, node.below))
            layouts = node.own
            for above, listed in below:
                layouts += listed.get(at[len(above) :], ())
            for layout in layouts:
                index = layout.keys.index(rest, layout.ndim)
                if index is not None:
                    return Chunk(at, layout, index)
            name, slash, rest = rest.partition("/")
            if not slash:
                return None
            at += name + "/"

    def _node(self, path: str) -> _Node:
        node = self._nodes.get(path)
        if node is None:
            node = self._looked(path)
            if node is not _NOTHING:
                self._nodes[path] = node
        return node

    def _looked(self, path: str) -> _Node:
        found = self._read([path + zarr3.KEY, path + zarr2.ARRAY])
        v3, v2 = found.get(path + zarr3.KEY), found.get(path + zarr2.ARRAY)
        if v3 is None and v2 is None:
            return _NOTHING
        own: list[Layout] = []
        below: dict[str, tuple[Layout, ...]] = {}
        if v3 is not None:
            document = mark.loaded(v3)
            marked = mark.mark_in(document)
            # The stub of a mark is no array; what the mark says is there.
            own += mark.layouts_of(document) if marked is None else marked.layouts.get("", ())
            below |= mark.consolidated_in(document)
            for at, layouts in marked.layouts.items() if marked is not None else ():
                if at:
                    below[at] = tuple(dict.fromkeys((*below.get(at, ()), *layouts)))
        if v2 is not None:
            own += mark.layouts_of(mark.loaded(v2), v2=True)
        return _Node(tuple(dict.fromkeys(own)), below)
