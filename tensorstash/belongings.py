"""What is stored below a node, and which of it belongs to the node: only that may be deleted.

A key belongs to a node that explains it: a document where a node is; of an array the chunks of its
own number of axes under its own encoding; of a group its members, and so on. Names alone prove
nothing: ``photos/2023/1.png`` is no chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from .driver import Buffer, Driver, Request, Tag, located
from .dtype import short
from .errors import AlreadyExists
from .formats import mark, zarr2, zarr3
from .formats.mark import Layout, Layouts

DOCUMENTS = (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP, zarr2.ATTRS, zarr2.CONSOLIDATED)
"""Keys of documents, below the node that they describe."""

_NODES = (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP)
_AT_ONCE = 1000
_KEPT = 20_000  # keys remembered, which saves listing them again
_NAMED = 3


@dataclass
class Belongings:
    """What belongs to the node at ``path``, as of when it was looked at."""

    driver: Driver
    path: str
    known: dict[str, tuple[Layout, ...]]
    """Nodes that need no document to be known, by their path from here."""
    tag: Tag | None = None
    """Of the node's own ``zarr.json``."""
    documents: list[str] = field(default_factory=list)
    """Keys of documents, from the root of the driver."""
    chunks: list[str] = field(default_factory=list)
    """Keys of chunks, up to a number."""
    more: bool = False
    """Whether there are more chunks than ``chunks`` names."""
    tags: dict[str, Tag] = field(default_factory=dict)
    """Of which version each of these keys is, where a lock can be lost."""
    is_group: bool = False
    what: str | None = None
    """What was under way, where the node is marked as unfinished."""
    _nodes: dict[str, tuple[Layout, ...] | None] = field(default_factory=dict)

    @property
    def layouts(self) -> Layouts:
        """The nodes that there are, by their path from here."""
        return {path: found for path, found in self._nodes.items() if found is not None}

    def chunk_keys(self) -> Iterator[str]:
        """Keys of all chunks, as of now."""
        return (key for key in self.now() if not _is_document(key))

    def now(self) -> Iterator[str]:
        """Keys of all documents and chunks, as of now, with their :attr:`tags`."""
        self.tags.clear()
        for key, ours in self._each(self._listed()):
            if ours:
                yield key
            else:
                self.tags.pop(key, None)

    def look(self) -> Belongings:
        """Look at everything; :class:`~tensorstash.errors.AlreadyExists` where something else is
        stored here too."""
        self._load([""])
        foreign: list[str] = []
        for key, ours in self._each(self._listed()):
            if not ours and self._is_behind_member(key):
                continue
            if not ours:
                foreign.append(key[len(self.path) :])
                if len(foreign) == _NAMED:
                    break
            elif _is_document(key):
                self.documents.append(key)
            elif len(self.chunks) < _KEPT:
                self.chunks.append(key)
            else:
                self.more = True
                self.tags.pop(key, None)
        if foreign:
            raise self._foreign(foreign)
        return self

    def _listed(self) -> Iterator[str]:
        if not self.driver.capabilities.leases:
            yield from self.driver.list(self.path)
            return
        for key, tag in self.driver.tags(self.path, lambda key: True):
            self.tags[key] = tag
            yield key

    def look_again(self) -> Belongings:
        """Look at everything once more."""
        self.documents, self.chunks, self.more, self.tags = [], [], False, {}
        self._nodes.clear()
        return self.look()

    def _is_behind_member(self, key: str) -> bool:
        """Whether ``key`` lies behind a link that is a member: the link goes, and what it leads to
        stays."""
        link = self.driver.linked(key[: key.rfind("/") + 1])
        return (
            link is not None
            and len(link) > len(self.path)
            and self._nodes.get(link[len(self.path) :]) is not None
        )

    def _foreign(self, names: list[str]) -> AlreadyExists:
        where = located(self.driver, self.path)
        if self._nodes.get("") is None:
            return AlreadyExists(
                f"{where} is no Zarr array or group but holds {short(names)}, which replacing "
                "would delete; choose another place, or delete that yourself"
            )
        return AlreadyExists(
            f"{where} holds {short(names)}, which no metadata there explains, so it is not deleted "
            "or replaced; move that away, or delete it yourself"
        )

    def _each(self, keys: Iterable[str]) -> Iterator[tuple[str, bool]]:
        """Each key, and whether it belongs here."""
        rest = iter(keys)
        while batch := [*islice(rest, _AT_ONCE)]:
            # Every node on the way to a key is looked at once, those of many keys together.
            while wanted := dict.fromkeys(
                at for key in batch if isinstance(at := self._judged(key), str)
            ):
                self._load(list(wanted))
            for key in batch:
                yield key, self._judged(key) is True

    def _judged(self, key: str) -> bool | str:
        """Whether ``key`` belongs here; or the path of the node to look at, to tell."""
        at, rest = "", key[len(self.path) :]
        while True:
            layouts = self._nodes[at]
            if layouts is None:
                return False
            if rest in DOCUMENTS or any(layout.explains(rest) for layout in layouts):
                return True
            name, slash, rest = rest.partition("/")
            at = f"{at}{name}/"
            if not slash or (layouts and at not in self.known):
                return False  # nothing lies below an array
            if at not in self._nodes:
                return at

    def _load(self, paths: list[str]) -> None:
        asked = [Request(f"{self.path}{path}{name}") for path in paths for name in _NODES]
        found: dict[int, tuple[Buffer, Tag]] = {}
        for i, pair in self.driver.get_many_tagged(asked):
            if pair is not None:
                found[i] = pair
        for i, path in enumerate(paths):
            here = [found.get(i * len(_NODES) + k) for k in range(len(_NODES))]
            self._nodes[path] = self._read(path, here)
            if not path and here[0] is not None:
                self.tag = here[0][1]

    def _read(self, path: str, found: list[tuple[Buffer, Tag] | None]) -> tuple[Layout, ...] | None:
        v3_data, v2_data = (pair and pair[0] for pair in found[:2])
        v3 = mark.loaded(v3_data)
        marked = mark.mark_in(v3)
        if marked is not None:
            for below, layouts in marked.layouts.items():
                self._know(path + below, layouts)
        for below, layouts in mark.consolidated_in(v3).items():
            self._know(path + below, layouts)
        # What stands in a document of Zarr's name but is none, is not ours to delete either.
        if not any(pair and mark.is_zarr(pair[0]) for pair in found) and path not in self.known:
            return None
        if not path:
            self.is_group = mark.is_group(v3) or (not v3 and found[2] is not None)
            self.what = None if marked is None else marked.what
        own = () if marked is not None else mark.layouts_in(v3_data)
        both = (*own, *mark.layouts_in(v2_data, v2=True), *self.known.get(path, ()))
        return tuple(dict.fromkeys(both))

    def _know(self, path: str, layouts: Iterable[Layout]) -> None:
        self.known[path] = tuple(dict.fromkeys((*self.known.get(path, ()), *layouts)))


def look(driver: Driver, path: str, known: Layouts | None = None) -> Belongings:
    """What belongs to the node at ``path``. ``known``: nodes that are below it, documents or not.
    :class:`~tensorstash.errors.AlreadyExists` where something is stored there that no node
    explains."""
    return Belongings(driver, path, dict(known or {})).look()


def _is_document(key: str) -> bool:
    return key.rpartition("/")[2] in DOCUMENTS
