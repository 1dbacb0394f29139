"""A version of a repository as a driver that reads: whatever reads Zarr reads any version."""
# ruff: noqa: D102 - its methods promise what those of Driver promise

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...driver import (
    REPAIR,
    Buffer,
    Changed,
    Driver,
    Request,
    Span,
    Tag,
    check_key,
    check_prefix,
    check_size,
    pick,
)
from ...errors import Corrupt, ReadOnly, Unsupported, counted
from ...metadata.mark import Layout
from ..commit import Commit
from ..ids import Reference, chunk_key
from ..refs import Refs
from .objects import Objects, lost
from .places import Chunk, Places, is_document
from .snapshot import Snapshot

_AT_ONCE = 4  # times as many keys are looked up at once as requests are under way


class Value(NamedTuple):
    """A document, and its version."""

    data: bytes
    tag: Tag


class RepoDriver(Driver):
    """Documents and chunks of some version. What they are is for whoever derives from it to say;
    chunks are objects of the repository, which are read as they are stored."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.backing = objects.driver
        self.scheme = self.backing.scheme
        self.metadata_limit = self.backing.metadata_limit

    places: Places

    @abstractmethod
    def document(self, key: str) -> Value | None:
        """One document."""

    @abstractmethod
    def documents_below(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Keys and documents below a prefix."""

    @abstractmethod
    def document_names(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """Names directly below a prefix, and whether each is a folder."""

    @abstractmethod
    def references(self, chunks: Sequence[Chunk]) -> list[Reference | None]:
        """Where chunks are stored."""

    @abstractmethod
    def tables_below(self, prefix: str) -> Iterator[str]:
        """Arrays that have chunks, below ``prefix`` or on the way to it."""

    @abstractmethod
    def stored(
        self, path: str, start: Sequence[int] | None = None, stop: Sequence[int] | None = None
    ) -> Iterator[tuple[Layout, NDArray[np.int64], Refs]]:
        """The chunks of one array within a box."""

    # -- reading -----------------------------------------------------------------

    def _found(self, keys: Sequence[str]) -> list[Value | Reference | None]:
        """What is at each key."""
        found: list[Value | Reference | None] = [None] * len(keys)
        chunks: list[tuple[int, Chunk]] = []
        for i, key in enumerate(keys):
            check_key(key)
            if is_document(key):
                found[i] = self.document(key)
            elif (chunk := self.places.find(key)) is not None:
                chunks.append((i, chunk))
        if chunks:
            references = self.references([chunk for _, chunk in chunks])
            for (i, _), reference in zip(chunks, references, strict=True):
                found[i] = reference
        return found

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        (found,) = self._found([key])
        if found is None:
            return None
        if isinstance(found, Value):
            return pick(found.data, span), found.tag
        data = self.backing.get(chunk_key(found), span)
        return self._whole(found, data, span), tag_of(found)

    def get_many_tagged(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[int, tuple[Buffer, Tag] | None]]:
        first = 0
        for batch in self._batches(requests):
            asked: list[tuple[int, Reference]] = []
            for i, found in enumerate(self._found([request.key for request in batch])):
                key, span, unless, most = batch[i]
                if found is None:
                    yield first + i, None
                elif isinstance(found, Value):
                    if unless is not None and unless == found.tag:
                        yield first + i, (b"", unless)
                        continue
                    if span is None:
                        check_size(key, len(found.data), most)
                    yield first + i, (pick(found.data, span), found.tag)
                elif unless is not None and unless == tag_of(found):
                    yield first + i, (b"", unless)
                else:
                    if span is None:
                        check_size(key, found.nbytes, most)
                    asked.append((i, found))
            objects = [Request(chunk_key(found), batch[i].span) for i, found in asked]
            for k, pair in self.backing.get_many_tagged(objects) if objects else ():
                i, found = asked[k]
                data = self._whole(found, None if pair is None else pair[0], batch[i].span)
                yield first + i, (data, tag_of(found))
            first += len(batch)

    def get_many(self, requests: Iterable[Request]) -> Iterator[tuple[int, Buffer | None]]:
        first = 0
        for batch in self._batches(requests):
            asked: list[tuple[int, Reference]] = []
            for i, found in enumerate(self._found([request.key for request in batch])):
                size = found.nbytes if isinstance(found, Reference) else 0
                if isinstance(found, Value):
                    size = len(found.data)
                if batch[i].span is None:
                    check_size(batch[i].key, size, batch[i].most)
                if isinstance(found, Reference):
                    asked.append((i, found))
                else:
                    yield first + i, None if found is None else pick(found.data, batch[i].span)
            objects = [Request(chunk_key(found), batch[i].span) for i, found in asked]
            for k, data in self.backing.get_many(objects) if objects else ():
                i, found = asked[k]
                yield first + i, self._whole(found, data, batch[i].span)
            first += len(batch)

    def _batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Requests as they are looked up at once: pages that they need are one request."""
        rest = iter(requests)
        size = max(1, self.capabilities.concurrency) * _AT_ONCE
        while batch := [*islice(rest, size)]:
            yield batch

    def get_ranges(
        self, key: str, spans: Sequence[Span], tag: Tag | None = None
    ) -> tuple[Sequence[Buffer], Tag] | None:
        (found,) = self._found([key])
        now = found.tag if isinstance(found, Value) else found and tag_of(found)
        if tag is not None and tag != now:
            raise Changed(key)
        if found is None:
            return None
        if isinstance(found, Value):
            return [pick(found.data, span) for span in spans], found.tag
        read = self.backing.get_ranges(chunk_key(found), spans)
        if read is None:
            raise self._lost(found)
        return read[0], tag_of(found)

    def get_into(self, key: str, out: memoryview) -> int | None:
        (found,) = self._found([key])
        if not isinstance(found, Reference):
            return super().get_into(key, out)
        if found.nbytes > len(out):
            return found.nbytes
        nbytes = self.backing.get_into(chunk_key(found), out)
        if nbytes is None:
            raise self._lost(found)
        return nbytes

    def map(self, key: str) -> memoryview | None:
        (found,) = self._found([key])
        if not isinstance(found, Reference):
            return None if found is None else memoryview(found.data)
        mapped = self.backing.map(chunk_key(found))
        if mapped is None:
            raise self._lost(found)
        return mapped

    def tag(self, key: str) -> Tag | None:
        (found,) = self._found([key])
        return found.tag if isinstance(found, Value) else found and tag_of(found)

    def is_lasting(self, tag: Tag) -> bool:
        return True

    def _whole(self, found: Reference, data: Buffer | None, span: Span | None) -> Buffer:
        if data is None:
            raise self._lost(found)
        if span is None and len(data) != found.nbytes:
            key = chunk_key(found)
            raise Corrupt(
                f"{key} has {counted(len(data), 'byte')}, not {found.nbytes}{REPAIR}", key=key
            )
        return data

    def _lost(self, found: Reference) -> Corrupt:
        return lost(chunk_key(found), self.backing)

    # -- listing -----------------------------------------------------------------

    def list(self, prefix: str = "") -> Iterator[str]:
        for key, _ in self.sizes(prefix):
            yield key

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        check_prefix(prefix)
        for key, data in self.documents_below(prefix):
            yield key, len(data)
        for key, reference in self._chunks_below(prefix):
            yield key, reference.nbytes

    def tags(self, prefix: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tag]]:
        check_prefix(prefix)
        for key, _ in self.documents_below(prefix):
            if wanted(key) and (found := self.document(key)) is not None:
                yield key, found.tag
        for key, reference in self._chunks_below(prefix):
            if wanted(key):
                yield key, tag_of(reference)

    def _chunks_below(self, prefix: str) -> Iterator[tuple[str, Reference]]:
        for path in self.tables_below(prefix):
            for layout, indices, refs in self._inside(path, prefix):
                for index, reference in zip(indices.tolist(), refs, strict=True):
                    key = path + layout.keys.key(index)
                    if key.startswith(prefix):
                        yield key, reference

    def _inside(self, path: str, prefix: str) -> Iterator[tuple[Layout, NDArray[np.int64], Refs]]:
        """The chunks of an array that may lie below a prefix."""
        rest = prefix[len(path) :] if prefix.startswith(path) else ""
        layouts = self.places.layouts(path)
        if rest and layouts and layouts[0].keys.separator == "/":
            parts = rest.split("/")[:-1]
            if layouts[0].keys.name == "default":
                if parts[0] != "c":
                    return
                del parts[0]
            if len(parts) > layouts[0].ndim or not all(part.isdecimal() for part in parts):
                return
            known = [int(part) for part in parts]
            free = layouts[0].ndim - len(known)
            start = [*known, *[0] * free]
            stop = [*[i + 1 for i in known], *[1 << 62] * free]
            yield from self.stored(path, start, stop)
        else:
            yield from self.stored(path)

    def list_dir(self, prefix: str = "") -> tuple[Sequence[str], Sequence[str]]:
        check_prefix(prefix)
        keys: set[str] = set()
        folders: set[str] = set()
        for name, folder in self.document_names(prefix):
            (folders if folder else keys).add(name)
        for path in self.tables_below(prefix):
            if len(path) > len(prefix):
                folders.add(path[len(prefix) :].partition("/")[0])
                continue
            for layout, indices, _ in self._inside(path, prefix):
                if path == prefix and layout.keys.key((0,) * layout.ndim).startswith("c/"):
                    if len(indices):
                        folders.add("c")
                        break
                    continue
                for index in indices.tolist():
                    key = path + layout.keys.key(index)
                    if key.startswith(prefix):
                        name, slash, _ = key[len(prefix) :].partition("/")
                        (folders if slash else keys).add(name)
        return sorted(keys), sorted(folders)

    # -- what it has of its place ------------------------------------------------

    def kept(self, key: str) -> str | None:
        return None

    def close(self) -> None:
        self.backing.close()

    @property
    def traffic(self) -> Any:
        return self.backing.traffic


def tag_of(reference: Reference) -> Tag:
    """The version of a chunk: its object, which never changes."""
    return reference.session, reference.number


class VersionDriver(RepoDriver):
    """What commit ``commit`` of a repository holds, read-only; it never changes. Pickles by the
    repository's driver and the commit's id."""

    def __init__(self, objects: Objects, commit: Commit) -> None:
        super().__init__(objects)
        self.snapshot = Snapshot(objects, commit)
        self.places = self.snapshot.places
        self.capabilities = replace(
            self.backing.capabilities,
            writable=False,
            conditional_put=False,
            locks=False,
            leases=False,
            in_place=False,
            lists=True,
            content_tags=False,
        )

    def document(self, key: str) -> Value | None:
        data = self.snapshot.documents([key]).get(key)
        return None if data is None else Value(data, digest(data))

    def documents_below(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        return self.snapshot.documents_below(prefix)

    def document_names(self, prefix: str) -> Iterator[tuple[str, bool]]:
        return self.snapshot.names(prefix)

    def references(self, chunks: Sequence[Chunk]) -> list[Reference | None]:
        return self.snapshot.references(chunks)

    def tables_below(self, prefix: str) -> Iterator[str]:
        return self.snapshot.tables_below(prefix)

    def stored(
        self, path: str, start: Sequence[int] | None = None, stop: Sequence[int] | None = None
    ) -> Iterator[tuple[Layout, NDArray[np.int64], Refs]]:
        layouts = self.places.layouts(path)
        if layouts:
            for indices, refs in self.snapshot.stored(path, start, stop):
                yield layouts[0], indices, refs

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        self._refuse()

    def delete(self, key: str) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ReadOnly(f"{self.url} is a version, which never changes; write in repo.change(...)")

    def lock(self, key: str, timeout: float | None = None) -> Any:
        raise Unsupported(f"{self.url} is a version, which never changes: it has no locks")

    @property
    def url(self) -> str:
        return f"{self.backing.url}@{self.snapshot.id}"

    @property
    def identity(self) -> str:
        # Of the repository: chunks of one name are the same in every version of it.
        return f"{self.backing.identity}@{self.objects.repo.hex()}:{self.snapshot.id}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.backing, self.objects.repo, self.snapshot.id)


def digest(data: bytes) -> Tag:
    """The version of a document: what it says."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _again(backing: Driver, repo: bytes, commit: str) -> VersionDriver:
    objects = Objects(backing, repo)
    return VersionDriver(objects, objects.commit(commit))
