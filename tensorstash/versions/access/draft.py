"""What a transaction has changed so far: documents, and which chunks are where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...driver import Tag
from ...metadata.mark import Layout
from ..ids import Reference
from .driver import Value, digest
from .places import Chunk, Places
from .snapshot import Snapshot

Index = tuple[int, ...]
Stored = tuple[int, int]
"""Number and bytes of a chunk that this session stored."""


class Draft:
    """Changes to the version ``base``. Not safe in several threads: its driver sees to that."""

    def __init__(self, base: Snapshot, session: str) -> None:
        self.base = base
        self.session = session
        self.places = Places(self.known_documents)
        self.documents: dict[str, Value | None] = {}
        self.chunks: dict[tuple[str, Layout], dict[Index, Stored | None]] = {}
        self.garbage: list[Stored] = []
        """Chunks that were stored and then replaced or deleted."""
        self._steps = 0

    def step(self) -> Tag:
        """A version that no other has."""
        self._steps += 1
        return self.session, "document", self._steps

    # -- reading -----------------------------------------------------------------

    def document(self, key: str) -> Value | None:
        """One document as it is now."""
        if key in self.documents:
            return self.documents[key]
        data = self.base.documents([key]).get(key)
        return None if data is None else Value(data, digest(data))

    def known_documents(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Those of ``keys`` that are there."""
        found = dict(self.base.documents([key for key in keys if key not in self.documents]))
        for key in keys:
            own = self.documents.get(key)
            if own is not None:
                found[key] = own.data
        return found

    def documents_below(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Keys and documents."""
        own = {key: each for key, each in self.documents.items() if key.startswith(prefix)}
        for key, data in self.base.documents_below(prefix):
            if key not in own:
                yield key, data
        for key, each in own.items():
            if each is not None:
                yield key, each.data

    def references(self, chunks: Sequence[Chunk]) -> list[Reference | None]:
        """Where chunks are now."""
        found: list[Reference | None] = [None] * len(chunks)
        asked: list[int] = []
        for i, chunk in enumerate(chunks):
            own = self.chunks.get((chunk.path, chunk.layout))
            if own is None or chunk.at not in own:
                asked.append(i)
            elif (stored := own[chunk.at]) is not None:
                found[i] = Reference(self.session, *stored)
        if asked:
            references = self.base.references([chunks[i] for i in asked])
            for i, reference in zip(asked, references, strict=True):
                found[i] = reference
        return found

    # -- changing ----------------------------------------------------------------

    def put_document(self, key: str, value: Value | None) -> None:
        """Store, or delete, a document."""
        self.documents[key] = value
        self.places.forget(key[: key.rfind("/") + 1])

    def put_chunk(self, chunk: Chunk, stored: Stored) -> None:
        """A chunk is stored as another object."""
        own = self.chunks.setdefault((chunk.path, chunk.layout), {})
        before = own.get(chunk.at)
        own[chunk.at] = stored
        if before is not None:
            self.garbage.append(before)

    def delete_chunk(self, chunk: Chunk) -> None:
        """A chunk is no more."""
        own = self.chunks.setdefault((chunk.path, chunk.layout), {})
        before = own.get(chunk.at)
        if before is not None:
            self.garbage.append(before)
        if self.base.reference(chunk) is not None:
            own[chunk.at] = None
        else:
            own.pop(chunk.at, None)

    def changed_documents(self) -> dict[str, tuple[bytes | None, bytes | None]]:
        """What documents were and are, of those that are not as they were."""
        before = self.base.documents(list(self.documents))
        out = {}
        for key, value in self.documents.items():
            data = None if value is None else value.data
            if before.get(key) != data:
                out[key] = before.get(key), data
        return out

    @property
    def empty(self) -> bool:
        """Whether nothing would be committed."""
        return not any(self.chunks.values()) and not self.changed_documents()
