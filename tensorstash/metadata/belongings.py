"""What is stored below a node, and which of it belongs to the node: only that may be deleted.

A key belongs to a node that explains it: a document where a node is; of an array the chunks of its
own number of axes under its own encoding; of a group its members, and so on. Names alone prove
nothing: ``photos/2023/1.png`` is no chunk. Nor is ``2023`` beside the chunks ``0`` and ``1``,
unless it decodes as one: chunks beyond the shape are left by who was killed while the array grew
or shrank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import ge

from ..codec import Pipeline
from ..driver import Buffer, Driver, Request, Span, Tag, get_at_most, located
from ..errors import AlreadyExists, Corrupt, NotFound, StashError, short
from ..urls import told
from . import mark, trailer, zarr2, zarr3
from .mark import Layout, Layouts
from .spec import ArraySpec

DOCUMENTS = (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP, zarr2.ATTRS, zarr2.CONSOLIDATED)
"""Keys of documents, below the node that they describe."""

PROBE = "tensorstash-probe-"
"""How names begin that a copy puts for an instant, and takes away; who is killed leaves one."""

_NODES = (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP)
_AT_ONCE = 1000
_KEPT = 20_000  # keys remembered, which saves listing them again
_NAMED = 3

REPOSITORY = "tensorstash-repo.json"
"""The document that a place has which holds versions of a tree, rather than the tree."""


@dataclass
class Belongings:
    """What belongs to the node at ``path``, as of when it was looked at."""

    driver: Driver
    path: str
    known: dict[str, tuple[Layout, ...]]
    """Nodes that need no document to be known, by their path from here."""
    tag: Tag | None = None
    """Of the node's own ``zarr.json``."""
    is_field: bool = False
    """Whether that is of a field of records, or of what fields are within."""
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
    _specs: dict[str, tuple[ArraySpec, tuple[int, ...]]] = field(default_factory=dict)
    """Arrays whose documents can be read, with the number of their chunks, by path."""
    _beyond: dict[str, tuple[ArraySpec, tuple[int, ...]]] = field(default_factory=dict)
    """Keys of one batch that are chunks beyond their array's shape, if they are chunks."""
    _not_zarrs: set[str] = field(default_factory=set)
    """Documents by name only: other programs' files, beside a node."""

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
        for known in (self._nodes, self._specs, self._beyond, self._not_zarrs):
            known.clear()
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
                f"{where} is not a Zarr array or group but holds {short(names)}, which replacing "
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
            self._beyond = {}
            ours = {key: self._judged(key) is True for key in batch}
            for key, (spec, index) in self._beyond.items():
                ours[key] = self._decodes(key, spec, index)
            yield from ours.items()

    def _decodes(self, key: str, spec: ArraySpec, index: tuple[int, ...]) -> bool:
        """Whether a chunk is at ``key``, as far as anybody can tell."""
        try:
            chunk = Pipeline(spec.codecs, spec.chunk_spec(spec.grid.chunk_shape(index)))
            found = get_at_most(self.driver, key, chunk.most)
            if found is not None:
                chunk.decode(found[0])
        except Corrupt:
            return False
        except StashError:  # as with pickles, which nobody may decode here
            return True
        return True

    def _judged(self, key: str) -> bool | str:
        """Whether ``key`` belongs here; or the path of the node to look at, to tell."""
        at, rest = "", key[len(self.path) :]
        while True:
            layouts = self._nodes[at]
            if PROBE in rest and layouts is not None and _is_probe(rest):
                return True
            if layouts is None:
                return False
            if rest in DOCUMENTS:
                return f"{at}{rest}" not in self._not_zarrs
            if any(layout.explains(rest) for layout in layouts):
                self._compare(key, at, rest)
                return True
            name, slash, rest = rest.partition("/")
            at = f"{at}{name}/"
            if not slash or (layouts and at not in self.known):
                return False  # nothing lies below an array
            if at not in self._nodes:
                return at

    def _compare(self, key: str, at: str, rest: str) -> None:
        """Note a chunk that lies beyond the shape."""
        if at in self._specs:
            spec, counts = self._specs[at]
            index = spec.keys.index(rest, spec.ndim)
            if index is not None and any(map(ge, index, counts)):
                self._beyond[key] = spec, index

    def _load(self, paths: list[str]) -> None:
        most = Span(0, self.driver.metadata_limit)
        asked = [Request(f"{self.path}{path}{name}", most) for path in paths for name in _NODES]
        found: dict[int, tuple[Buffer, Tag]] = {}
        for i, pair in self.driver.get_many_tagged(asked):
            if pair is not None:
                found[i] = pair
        for i, path in enumerate(paths):
            here = [found.get(i * len(_NODES) + k) for k in range(len(_NODES))]
            self._nodes[path] = self._read(path, here)
            if not path and here[0] is not None:
                self.tag = here[0][1]
                self.is_field = trailer.decode(here[0][0]).field

    def _read(self, path: str, found: list[tuple[Buffer, Tag] | None]) -> tuple[Layout, ...] | None:
        read = [{} if pair is None else mark.loaded(pair[0]) for pair in found]
        is_zarr = [
            None if pair is None else mark.is_zarr(pair[0], document)
            for pair, document in zip(found, read, strict=True)
        ]
        v3, v2, _ = read
        marked = mark.mark_in(v3)
        if marked is not None:
            for below, layouts in marked.layouts.items():
                self._know(path + below, layouts)
        for below, layouts in mark.consolidated_in(v3).items():
            self._know(path + below, layouts)
        # What stands in a document of Zarr's name but is none, is not ours to delete either.
        if not any(is_zarr) and path not in self.known:
            return None
        alien = [name for name, zarr in zip(_NODES, is_zarr, strict=True) if zarr is False]
        if not any(is_zarr[1:]) and marked is None:
            alien += [zarr2.ATTRS, zarr2.CONSOLIDATED]  # they describe a node of v2
        self._not_zarrs.update(path + name for name in alien)
        if not path:
            self.is_group = mark.is_group(v3) or (not v3 and found[2] is not None)
            self.what = None if marked is None else marked.what
        if marked is None and (spec := _spec(*found[:2])) is not None:
            self._specs[path] = spec, spec.grid.counts(spec.shape)
        explained = [*self.known.get(path, ())]
        if marked is None and is_zarr[0]:
            explained += mark.layouts_of(v3) if v3 else mark.usual_layouts()
        if is_zarr[1]:
            explained += mark.layouts_of(v2, v2=True) if v2 else mark.usual_layouts(v2=True)
        return tuple(dict.fromkeys(explained))

    def _know(self, path: str, layouts: Iterable[Layout]) -> None:
        self.known[path] = tuple(dict.fromkeys((*self.known.get(path, ()), *layouts)))


def look(driver: Driver, path: str, known: Layouts | None = None) -> Belongings:
    """What belongs to the node at ``path``. ``known``: nodes that are below it, documents or not.
    :class:`~tensorstash.errors.AlreadyExists` where something is stored there that no node
    explains."""
    return Belongings(driver, path, dict(known or {})).look()


def _spec(v3: tuple[Buffer, Tag] | None, v2: tuple[Buffer, Tag] | None) -> ArraySpec | None:
    """The one array that there is, if its document can be read."""
    if (v3 is None) == (v2 is None):
        return None
    try:
        if v3 is not None:
            found = zarr3.parse(v3[0])[1]
        else:
            assert v2 is not None
            found = zarr2.parse_array(v2[0], None, allow_pickle=None)
    except StashError:
        return None
    return found if isinstance(found, ArraySpec) else None


def _is_document(key: str) -> bool:
    return key.rpartition("/")[2] in DOCUMENTS or (PROBE in key and _is_probe(key))


def _is_probe(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name.startswith(PROBE) and len(name) == len(PROBE) + 16


def nothing_there(driver: Driver, path: str) -> NotFound:
    """There is no array or group at ``path``."""
    where = located(driver, path)
    if driver.tag(path + REPOSITORY) is not None:
        return NotFound(
            f"{where} is a repository of versions, not an array or group: name what is in it, as "
            "path='...' with version='main', or open_repo() it"
        )
    file = told(where)
    return NotFound(
        f"no Zarr array or group there: {file}"
        if file
        else f"no Zarr array or group at {where}: no zarr.json, .zarray or .zgroup; "
        "check the path, or create it (create(), create_group(), create_records())"
    )
