"""A transaction as a driver: it reads what it wrote, and stores nothing that others see."""
# ruff: noqa: D102 - its methods promise what those of Driver promise

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...driver import Buffer, Check, Put, Tag, check_key
from ...errors import Closed, Conflict, Invalid, Unsupported, short
from ...metadata.belongings import PROBE
from ...metadata.mark import Layout
from ...registry import connect
from ...turn import turn
from ..ids import Reference, chunk_key
from ..refs import Refs
from .draft import Draft, Stored
from .driver import RepoDriver, Value, tag_of
from .objects import Objects
from .places import Chunk, is_document
from .snapshot import Snapshot


class TransactionDriver(RepoDriver):
    """The version ``base`` with what session ``session`` changes. Chunks are stored at once, as
    objects that nothing refers to before the commit; documents stay in memory. Conditions and
    locks hold among the threads of this process, which alone may use it."""

    def __init__(self, objects: Objects, base: Snapshot, session: str) -> None:
        super().__init__(objects)
        self.session = session
        self.draft = Draft(base, session)
        self.places = self.draft.places
        self.ended: str | None = None
        self.next = 0
        self._pid = os.getpid()
        self._guard = threading.RLock()
        self._locks = connect("memory://", {})  # of which nothing is used but its locks
        self._probes: dict[str, Value] = {}
        self.capabilities = replace(
            self.backing.capabilities,
            writable=True,
            conditional_put=True,
            locks=True,
            leases=False,
            shared=False,
            in_place=False,
            lists=True,
            content_tags=False,
        )

    # -- reading -----------------------------------------------------------------

    def document(self, key: str) -> Value | None:
        self._open()
        return self.draft.document(key)

    def documents_below(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        with turn(self._guard):
            return iter([*self.draft.documents_below(prefix)])

    def document_names(self, prefix: str) -> Iterator[tuple[str, bool]]:
        with turn(self._guard):
            own = dict(self.draft.documents)
        for name, folder in self.draft.base.names(prefix):
            path = f"{prefix}{name}/"
            hidden = own and any(
                key.startswith(path) if folder else key == prefix + name for key in own
            )
            # Where this transaction changed something, what is left must be looked at.
            if not hidden or (folder and any(True for _ in self.draft.documents_below(path))):
                yield name, folder
        for key, value in own.items():
            if value is not None and key.startswith(prefix):
                name, slash, _ = key[len(prefix) :].partition("/")
                yield name, bool(slash)

    def references(self, chunks: Sequence[Chunk]) -> list[Reference | None]:
        self._open()
        return self.draft.references(chunks)

    def tables_below(self, prefix: str) -> Iterator[str]:
        with turn(self._guard):
            own = {path for (path, _), chunks in self.draft.chunks.items() if any(chunks.values())}
        for path in self.draft.base.tables_below(prefix):
            own.discard(path)
            if any(True for _ in self.stored(path)):
                yield path
        for path in sorted(own):
            if path.startswith(prefix) or prefix.startswith(path):
                yield path

    def stored(
        self, path: str, start: Sequence[int] | None = None, stop: Sequence[int] | None = None
    ) -> Iterator[tuple[Layout, NDArray[np.int64], Refs]]:
        base = self.draft.base.places.layouts(path)
        for layout in self.places.layouts(path):
            with turn(self._guard):
                own = dict(self.draft.chunks.get((path, layout), {}))
            if base and base[0] == layout:
                for indices, refs in self.draft.base.stored(path, start, stop):
                    if indices.shape[1] != layout.ndim:
                        continue
                    kept = [tuple(index) not in own for index in indices.tolist()] if own else None
                    if kept is None:
                        yield layout, indices, refs
                    elif any(kept):
                        mask = np.array(kept, np.bool_)
                        yield layout, indices[mask], refs.take(mask)
            there = [(index, at) for index, at in own.items() if at is not None]
            if start is not None and stop is not None:
                there = [
                    (index, at)
                    for index, at in there
                    if all(a <= i < b for a, i, b in zip(start, index, stop, strict=True))
                ]
            if there:
                found = np.array([index for index, _ in there], np.int64).reshape(len(there), -1)
                numbers, sizes = zip(*(at for _, at in there), strict=True)
                yield layout, found, Refs.of(self.session, numbers, sizes)

    # -- writing -----------------------------------------------------------------

    def put(
        self, key: str, value: Buffer, *, if_absent: bool = False, if_tag: Tag | None = None
    ) -> Tag:
        if not if_absent and if_tag is None and not is_document(check_key(key)):
            return self._put_chunk(key, value)
        ((_, tag),) = self.put_each([Put(key, value, if_absent, if_tag)])
        if tag is None:
            raise Conflict(f"{key!r} was written by someone else first; read it again", key=key)
        return tag

    def _put_chunk(self, key: str, value: Buffer) -> Tag:
        """Of most puts: nobody asked for a condition."""
        self._open(write=True)
        if _is_probe(key):
            found = self._put_document(Put(key, value))
            assert found is not None
            return found
        chunk, stored = self._chunk(key), self._new(len(value))
        self.backing.put(chunk_key(Reference(self.session, *stored)), value)
        with turn(self._guard):
            self.draft.put_chunk(chunk, stored)
        return self.session, stored[0]

    def put_each(self, puts: Iterable[Put]) -> Iterator[tuple[int, Tag | None]]:
        size = 1 if self.backing.capabilities.local else self.backing.capabilities.concurrency
        rest, first = iter(puts), 0
        while batch := [*islice(rest, max(1, size))]:
            yield from ((first + i, tag) for i, tag in self._put_batch(batch))
            first += len(batch)

    def _put_batch(self, batch: Sequence[Put]) -> Iterator[tuple[int, Tag | None]]:
        self._open(write=True)
        chunks: list[tuple[int, Put, Chunk, Stored]] = []
        for i, put in enumerate(batch):
            check_key(put.key)
            if is_document(put.key) or _is_probe(put.key):
                yield i, self._put_document(put)
                continue
            chunk = self._chunk(put.key)
            if not self._holds(put, chunk):
                yield i, None
            else:
                chunks.append((i, put, chunk, self._new(len(put.value))))
        objects = [
            (chunk_key(Reference(self.session, *stored)), put.value) for _, put, _, stored in chunks
        ]
        if len(objects) == 1:
            self.backing.put(*objects[0])
        elif objects:
            self.backing.put_many(objects)
        for i, put, chunk, stored in chunks:
            with turn(self._guard):
                if self._holds(put, chunk):
                    self.draft.put_chunk(chunk, stored)
                    tag: Tag | None = (self.session, stored[0])
                else:
                    self.draft.garbage.append(stored)
                    tag = None
            yield i, tag

    def put_many(self, items: Iterable[tuple[str, Buffer]]) -> None:
        rest = iter(items)
        for key, value in rest:
            if is_document(key) or _is_probe(key):
                self.put(key, value)
                continue
            self._open(write=True)
            self._chunk(key)  # its array is known then, before a request is under way
            self._put_chunks(chain([(key, value)], rest))
            return

    def _put_chunks(self, items: Iterable[tuple[str, Buffer]]) -> None:
        landed: list[tuple[Chunk, Stored]] = []

        def objects() -> Iterator[tuple[str, Buffer]]:
            for key, value in items:
                if is_document(key):
                    self.put(key, value)
                    continue
                chunk, stored = self._chunk(check_key(key)), self._new(len(value))
                landed.append((chunk, stored))
                yield chunk_key(Reference(self.session, *stored)), value

        try:
            self.backing.put_many(objects())
        except BaseException:
            with turn(self._guard):
                self.draft.garbage += (stored for _, stored in landed)
            raise
        with turn(self._guard):
            for chunk, stored in landed:
                self.draft.put_chunk(chunk, stored)

    def _put_document(self, put: Put) -> Tag | None:
        with turn(self._guard):
            if _is_probe(put.key):
                self._probes[put.key] = Value(bytes(put.value), self.draft.step())
                return self._probes[put.key].tag
            found = self.draft.document(put.key)
            if put.if_absent and found is not None:
                return None
            if put.if_tag is not None and (found is None or put.if_tag != found.tag):
                return None
            value = Value(bytes(put.value), self.draft.step())
            self.draft.put_document(put.key, value)
            return value.tag

    def _holds(self, put: Put, chunk: Chunk) -> bool:
        if not put.if_absent and put.if_tag is None:
            return True
        (found,) = self.draft.references([chunk])
        return found is None if put.if_absent else found is not None and put.if_tag == tag_of(found)

    def _new(self, nbytes: int) -> Stored:
        with turn(self._guard):
            self.next += 1
            return self.next - 1, nbytes

    def _chunk(self, key: str) -> Chunk:
        chunk = self.places.find(key)
        if chunk is None:
            raise Invalid(
                f"{short(key)} is neither a metadata document nor a chunk of an array in "
                f"{self.url}: a repository stores nothing else; create the array first"
            )
        return chunk

    def delete(self, key: str) -> None:
        self._open(write=True)
        check_key(key)
        with turn(self._guard):
            if self._probes.pop(key, None) is not None:
                return
            if is_document(key):
                if self.draft.document(key) is not None:
                    self.draft.put_document(key, None)
            elif (chunk := self.places.find(key)) is not None:
                self.draft.delete_chunk(chunk)

    def delete_prefix(self, prefix: str) -> None:
        # Chunks first: it is documents that say which keys are chunks.
        keys = [*self.list(prefix)]
        self.delete_many(key for key in keys if not is_document(key))
        self.delete_many(key for key in keys if is_document(key))

    def get_tagged(self, key: str, span: Any = None) -> tuple[Buffer, Tag] | None:
        self._open()
        if key in self._probes:
            found = self._probes[key]
            return found.data, found.tag
        return super().get_tagged(key, span)

    def lock(self, key: str, timeout: float | None = None) -> AbstractContextManager[Check]:
        self._open()
        return self._locks.lock(key, timeout)

    # -- its end -----------------------------------------------------------------

    def _open(self, write: bool = False) -> None:
        if self.ended is not None:
            raise Closed(f"{self.url} {self.ended}; begin another one with repo.change()")
        if write and os.getpid() != self._pid:
            raise Unsupported(
                f"{self.url} is a transaction of another process, which alone may write in it"
            )

    @property
    def url(self) -> str:
        return f"{self.backing.url}@{self.session}"

    @property
    def identity(self) -> str:
        return f"{self.backing.identity}@{self.objects.repo.hex()}:{self.session}"

    def __reduce__(self) -> NoReturn:
        raise Unsupported(
            f"{self.url} is a transaction, which stays in its process; commit it, and give others "
            "repo.at(...)"
        )


def _is_probe(key: str) -> bool:
    return key.rpartition("/")[2].startswith(PROBE)
