"""References in bulk, and pages of them: which object is at which position. No I/O.

What is random in a reference is its size, two bytes for chunks of 100 kB. Its session is one of a
few in a page, and its number follows the one before of that session: so a page lists its sessions
once, numbers as differences in the order of sessions, and each column by planes of bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..errors import Unsupported
from .binary import Reader, column, steps, varint
from .container import Kind
from .ids import MOST_NBYTES, MOST_NUMBER, MOST_TOTAL, Reference, to_bytes
from .pages import Form

MOST_POSITIONS = 4096
"""Of one page: a power of two."""

_CHUNKS, _PAGES = 0, 1  # what a page refers to
_FIRST, _LISTED, _BITS = 0, 1, 2  # how the positions are told

_EVERY = np.arange(MOST_POSITIONS, dtype=np.uint16)
_EVERY.flags.writeable = False

_MOST = 256 << 10
"""Raw bytes of a page. The largest have 4096 sessions, and all columns 8 bytes wide."""


@dataclass(frozen=True, eq=False)
class Refs:
    """Several references, as columns: ``sessions[which[i]]``, ``numbers[i]`` and ``nbytes[i]`` make
    the one at ``i``. ``sessions`` are each there once; the columns have any dtype of integers."""

    sessions: tuple[str, ...]
    which: NDArray[Any]
    numbers: NDArray[Any]
    nbytes: NDArray[Any]

    @classmethod
    def of(cls, session: str, numbers: Any, nbytes: Any) -> Refs:
        """References to objects of one session."""
        columns = np.asarray(numbers, np.uint64), np.asarray(nbytes, np.uint64)
        return cls((session,), np.zeros(len(columns[0]), np.uint8), *columns)

    @classmethod
    def listed(cls, references: Sequence[Reference]) -> Refs:
        """The references given one by one."""
        sessions = {reference.session: 0 for reference in references}
        for index, session in enumerate(sessions):
            sessions[session] = index
        return cls(
            tuple(sessions),
            np.array([sessions[each.session] for each in references], _which(sessions)),
            np.array([each.number for each in references], np.uint64),
            np.array([each.nbytes for each in references], np.uint64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Refs]) -> Refs:
        """All of ``parts``, one after the other."""
        if not parts:
            return NONE
        if len(parts) == 1:
            return parts[0]
        sessions = {session: 0 for part in parts for session in part.sessions}
        for index, session in enumerate(sessions):
            sessions[session] = index
        dtype = _which(sessions)
        which = [
            np.array([sessions[session] for session in part.sessions], dtype)[part.which]
            for part in parts
        ]
        return cls(
            tuple(sessions),
            np.concatenate(which),
            # Said, for NumPy makes floats of signed and unsigned ones.
            np.concatenate([part.numbers for part in parts], dtype=np.uint64, casting="unsafe"),
            np.concatenate([part.nbytes for part in parts], dtype=np.uint64, casting="unsafe"),
        )

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, i: int) -> Reference:
        session = self.sessions[self.which[i]]
        return Reference(session, int(self.numbers[i]), int(self.nbytes[i]))

    def __iter__(self) -> Iterator[Reference]:
        columns = self.which.tolist(), self.numbers.tolist(), self.nbytes.tolist()
        for which, number, nbytes in zip(*columns, strict=True):
            yield Reference(self.sessions[which], number, nbytes)

    def take(self, which: NDArray[Any]) -> Refs:
        """Those at ``which``: indices, or a mask."""
        return replace(
            self, which=self.which[which], numbers=self.numbers[which], nbytes=self.nbytes[which]
        )

    def same(self, other: Refs) -> NDArray[np.bool_]:
        """Where as many others are the same."""
        names = {session: index for index, session in enumerate(self.sessions)}
        # -1 where only the other ones have the session.
        theirs = np.array([names.get(each, -1) for each in other.sessions], np.int64)
        found: NDArray[np.bool_] = self.which == theirs[other.which]
        found &= self.numbers == other.numbers
        found &= self.nbytes == other.nbytes
        return found

    def compact(self) -> Refs:
        """The same, with those sessions only that are used, sorted."""
        used = np.bincount(self.which, minlength=len(self.sessions)) > 0
        order = sorted(np.flatnonzero(used).tolist(), key=self.sessions.__getitem__)
        if order == list(range(len(self.sessions))):
            return self
        places = np.zeros(len(self.sessions), _which(order))
        places[order] = np.arange(len(order), dtype=places.dtype)
        sessions = tuple(self.sessions[index] for index in order)
        return replace(self, sessions=sessions, which=places[self.which])

    def encode(self) -> bytes:
        """Their bytes, of which :meth:`read` must be told how many they are."""
        refs = self.compact()
        ordered = refs.numbers
        if len(refs.sessions) > 1:
            ordered = ordered[np.argsort(refs.which, kind="stable")]
        table = b"".join(map(to_bytes, refs.sessions))
        head = varint(len(refs.sessions)) + table
        return b"".join((head, column(refs.which), steps(ordered), column(refs.nbytes)))

    @classmethod
    def read(cls, reader: Reader, count: int) -> Refs:
        """``count`` references."""
        known = reader.varint(count)
        sessions = tuple(reader.session() for _ in range(known))
        if any(one >= other for one, other in pairwise(sessions)):
            reader.fail("lists its sessions in a wrong order")
        which = reader.column(count, max(known - 1, 0))
        if not np.all(np.bincount(which, minlength=known) > 0) or (count and not known):
            reader.fail("lists sessions that nothing is of")
        ordered = reader.steps(count, MOST_NUMBER - 1)
        if known > 1:
            numbers = np.empty_like(ordered)
            numbers[np.argsort(which, kind="stable")] = ordered
        else:
            numbers = ordered
        return cls(sessions, which, numbers, reader.column(count, MOST_NBYTES - 1))


NONE = Refs((), np.zeros(0, np.uint8), np.zeros(0, np.uint8), np.zeros(0, np.uint8))


@dataclass(frozen=True, eq=False)
class PageChange:
    """What becomes of some positions of a page: ``positions`` are sorted, each once; ``present[i]``
    is whether something is at the i-th afterwards; ``refs`` are those of the ones where something
    is, in their order. ``chunks`` and ``stored`` as in :class:`RefPage`."""

    positions: NDArray[np.uint16]
    present: NDArray[np.bool_]
    refs: Refs
    chunks: NDArray[Any] | None = None
    stored: NDArray[Any] | None = None

    @classmethod
    def of(cls, positions: Any, refs: Refs, absent: Any = ()) -> PageChange:
        """``refs`` at ``positions``, which come in any order, and nothing at those of ``absent``;
        no position twice."""
        given = np.asarray(positions, np.uint16)
        gone = np.asarray(absent, np.uint16)
        every = np.concatenate((given, gone))
        order = np.argsort(every, kind="stable")
        present = np.concatenate((np.ones(len(given), np.bool_), np.zeros(len(gone), np.bool_)))
        kept = order[present[order]]
        return cls(every[order], present[order], refs.take(kept))


@dataclass(frozen=True, eq=False)
class RefPage:
    """What is where among ``size`` positions, of which all or few are taken. Never changed.

    ``positions`` are those where something is, sorted; ``refs`` say what, in the same order. In a
    page of pages, ``chunks`` and ``stored`` are how many chunks lie below each, and their bytes;
    in a page of chunks they are ``None``.
    """

    size: int
    positions: NDArray[np.uint16]
    refs: Refs
    chunks: NDArray[Any] | None = None
    stored: NDArray[Any] | None = None

    @classmethod
    def empty(cls, size: int, *, pages: bool = False) -> RefPage:
        """Nothing at any position."""
        none = np.zeros(0, np.uint64) if pages else None
        return cls(size, np.zeros(0, np.uint16), NONE, none, none)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def held(self) -> int:
        """Bytes of memory that it takes, roughly: for caches."""
        arrays = [self.positions, self.refs.which, self.refs.numbers, self.refs.nbytes]
        if self.chunks is not None and self.stored is not None:
            arrays += [self.chunks, self.stored]
        return 1000 + 80 * len(self.refs.sessions) + sum(array.nbytes for array in arrays)

    def find(self, position: int) -> Reference | None:
        """What is at one position."""
        positions, which, numbers, nbytes = self._views
        at = position if len(positions) == self.size else bisect_left(positions, position)
        if at == len(positions) or positions[at] != position:
            return None
        return Reference(self.refs.sessions[which[at]], numbers[at], nbytes[at])

    @Cached
    def _views(self) -> tuple[memoryview, memoryview, memoryview, memoryview]:
        """The columns as Python reads single numbers fastest."""
        refs = self.refs
        return self.positions.data, refs.which.data, refs.numbers.data, refs.nbytes.data

    def ranks(self, positions: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """At which of ``positions`` something is, and where these stand in the columns."""
        if not len(self.positions):
            return np.zeros(len(positions), np.bool_), np.zeros(0, np.intp)
        wanted = np.asarray(positions, np.uint16)
        at = self.positions.searchsorted(wanted)
        there = self.positions[np.minimum(at, len(self.positions) - 1)] == wanted
        return there, at[there]

    def lookup(self, positions: NDArray[Any]) -> tuple[NDArray[np.bool_], Refs]:
        """At which of ``positions`` something is, and what: of those alone, in their order."""
        there, ranks = self.ranks(positions)
        return there, self.refs.take(ranks)

    def totals(self) -> tuple[int, int]:
        """How many chunks are in this page or below it, and their bytes."""
        if self.chunks is None or self.stored is None:
            return len(self), int(self.refs.nbytes.sum(dtype=np.uint64))
        return int(self.chunks.sum(dtype=np.uint64)), int(self.stored.sum(dtype=np.uint64))

    def changed(self, change: PageChange) -> RefPage:
        """The page as it is after ``change``."""
        touched = np.zeros(self.size, np.bool_)
        touched[change.positions] = True
        kept = ~touched[self.positions]
        positions = np.concatenate((self.positions[kept], change.positions[change.present]))
        order = np.argsort(positions, kind="stable")
        refs = Refs.joined([self.refs.take(kept), change.refs]).take(order).compact()

        def both(old: NDArray[Any] | None, new: NDArray[Any] | None) -> NDArray[Any] | None:
            if old is None or new is None:
                return None
            return np.concatenate((old[kept], new))[order]

        chunks, stored = both(self.chunks, change.chunks), both(self.stored, change.stored)
        return RefPage(self.size, positions[order], refs, chunks, stored)

    def encode(self) -> bytes:
        """Its raw bytes."""
        what = _CHUNKS if self.chunks is None else _PAGES
        head = bytes((what,)) + varint(self.size) + encode_positions(self.positions, self.size)
        parts = [head, self.refs.encode()]
        if self.chunks is not None and self.stored is not None:
            parts += [column(self.chunks), column(self.stored)]
        return b"".join(parts)

    @classmethod
    def read(cls, reader: Reader) -> RefPage:
        """What :meth:`encode` gave."""
        what = reader.byte()
        if what not in (_CHUNKS, _PAGES):
            raise Unsupported(
                f"{reader.what} has references of kind {what}, which this version of tensorstash "
                "does not know; use a newer tensorstash"
            )
        size = reader.varint(MOST_POSITIONS)
        positions = read_positions(reader, size)
        refs = Refs.read(reader, len(positions))
        if what == _CHUNKS:
            return cls(size, positions, refs)
        columns = [reader.column(len(refs), MOST_TOTAL - 1) for _ in range(2)]
        # Of floats, whose sum does not wrap round.
        if any(each.sum(dtype=np.float64) >= MOST_TOTAL for each in columns):
            reader.fail("has more chunks or bytes below it than there can be")
        return cls(size, positions, refs, *columns)


def encode_positions(positions: NDArray[np.uint16], size: int) -> bytes:
    """Some of ``size`` positions, sorted: how many, if they are the first ones; one by one, if few;
    else a bit for each of all."""
    count = len(positions)
    if not count or int(positions[-1]) == count - 1:
        return bytes((_FIRST,)) + varint(count)
    if count <= size // 16:
        return bytes((_LISTED,)) + varint(count) + steps(positions)
    bits = np.zeros(size, np.bool_)
    bits[positions] = True
    return bytes((_BITS,)) + np.packbits(bits, bitorder="little").tobytes()


def read_positions(reader: Reader, size: int) -> NDArray[np.uint16]:
    """What :func:`encode_positions` gave."""
    how = reader.byte()
    if how == _FIRST:
        # A part of one array: few bytes can claim a page, and many pages are full.
        return _EVERY[: reader.varint(size)]
    if how == _LISTED:
        positions = reader.steps(reader.varint(size), size - 1).astype(np.uint16)
        if np.any(positions[1:] <= positions[:-1]):
            reader.fail("lists positions in a wrong order")
        return positions
    if how != _BITS:
        reader.fail(f"tells positions in the way {how}, which there is not")
    packed = np.frombuffer(reader.take(-(-size // 8)), np.uint8)
    bits = np.unpackbits(packed, bitorder="little")
    if bits[size:].any():
        reader.fail(f"has positions beyond its {size}")
    return np.flatnonzero(bits).astype(np.uint16)


def _which(sessions: Any) -> Any:
    return np.min_scalar_type(max(len(sessions) - 1, 0))


def _parse(raw: bytes, what: str) -> RefPage:
    reader = Reader(raw, what)
    page = RefPage.read(reader)
    reader.end()
    return page


REF_PAGES: Form[RefPage] = Form(Kind.REFS, _MOST, _parse)
"""Pages of references, to chunks or to pages."""
