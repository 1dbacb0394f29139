"""What a commit changed, and what nobody needs who does not go back before it.

Both are cut into pieces, which lie in the commit itself while there is one and it is small, else in
pages: so no transaction is too large to be read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import Invalid, counted, short
from ..metadata.document import MAX_NDIM
from .binary import Reader, encode_reference, sized, varint
from .container import Kind, packed_nbytes
from .ids import Reference
from .pages import Form, Load, NewPages
from .refs import MOST_POSITIONS, NONE, Refs, encode_positions, read_positions
from .table import MOST_INDEX_BITS, ChunkTable, Index
from .tree import MOST_KEY, key_of

INLINE = 8 << 10
"""Stored bytes of a piece up to which it lies in the commit."""

_PIECE = 1 << 20  # raw bytes of a piece, roughly
_INLINE_RAW = 64 << 10
_MOST = 4 << 20
_REFS = 1 << 16  # references of a piece
_MOST_PIECES = 1 << 12
_MOST_TABLE = 16 << 10
_KINDS = ("created", "changed", "deleted")

Piece = TypeVar("Piece")


@dataclass(frozen=True, eq=False)
class ArrayChange:
    """Chunks of one array that were written or deleted: by page of ``block`` chunks along each
    axis, their positions in it, sorted."""

    block: Index
    pages: Mapping[Index, NDArray[np.uint16]]


@dataclass(frozen=True, eq=False)
class Changes:
    """What a commit changed against its first parent. ``documents``: each key, and whether it was
    ``"created"``, ``"changed"`` or ``"deleted"``. ``arrays``: by the path that the array has in
    keys, with the slash at its end (``""``: the root)."""

    documents: Mapping[str, str] = field(default_factory=dict)
    arrays: Mapping[str, ArrayChange] = field(default_factory=dict)

    @classmethod
    def joined(cls, pieces: Iterable[Changes]) -> Changes:
        """All of ``pieces``, of one commit."""
        documents: dict[str, str] = {}
        blocks: dict[str, Index] = {}
        pages: dict[str, dict[Index, NDArray[np.uint16]]] = {}
        for piece in pieces:
            documents |= piece.documents
            for path, change in piece.arrays.items():
                blocks[path] = change.block
                pages.setdefault(path, {}).update(change.pages)
        arrays = {path: ArrayChange(block, pages[path]) for path, block in blocks.items()}
        return cls(documents, arrays)

    def pieces(self) -> Iterator[bytes]:
        """Its raw bytes, in pieces that can be read alone."""
        piece = _ChangesPiece()
        for key, kind in self.documents.items():
            if kind not in _KINDS:
                raise Invalid(f"{short(key)} was {short(kind)}; it is one of {', '.join(_KINDS)}")
            piece.documents.append(bytes((_KINDS.index(kind),)) + sized(key_of(key)))
            piece.nbytes += len(piece.documents[-1])
            if piece.nbytes > _PIECE:
                yield piece.encode()
                piece = _ChangesPiece()
        for path, change in self.arrays.items():
            for page, positions in change.pages.items():
                piece.add(path, change.block, page, positions)
                if piece.nbytes > _PIECE:
                    yield piece.encode()
                    piece = _ChangesPiece()
        if piece.nbytes:
            yield piece.encode()


@dataclass(frozen=True, eq=False)
class Dead:
    """What the version of the first parent refers to and this one does not: ``chunks``, ``pages``,
    and ``tables`` of arrays that were deleted whole, with all that these refer to. Pages and chunks
    that this session stored and did not use are among them."""

    chunks: Refs = NONE
    pages: Refs = NONE
    tables: Sequence[ChunkTable] = ()

    def pieces(self) -> Iterator[bytes]:
        """Its raw bytes, in pieces that can be read alone."""
        piece = _DeadPiece()
        for kind, refs in enumerate((self.chunks, self.pages)):
            ordered = _ordered(refs)
            at = 0
            while at < len(ordered):
                stop = min(at + _REFS - piece.count, len(ordered))
                piece.refs[kind] = ordered.take(np.arange(at, stop))
                piece.count += stop - at
                at = stop
                if piece.count == _REFS:
                    yield piece.encode()
                    piece = _DeadPiece()
        for table in self.tables:
            piece.tables.append(sized(table.encode()))
            piece.nbytes += len(piece.tables[-1])
            if piece.nbytes > _PIECE:
                yield piece.encode()
                piece = _DeadPiece()
        if piece.count or piece.tables:
            yield piece.encode()


@dataclass(frozen=True, eq=False)
class Pieces(Generic[Piece]):
    """Pieces of one kind: in the commit itself (``inline``), or at ``pages``."""

    form: Form[Piece]
    inline: bytes | None = None
    pages: Sequence[Reference] = ()

    @classmethod
    def of(cls, form: Form[Piece], raw: Iterable[bytes], new: NewPages) -> Pieces[Piece]:
        """Keep ``raw``; all but a single small one becomes pages."""
        pages: list[Reference] = []
        held: bytes | None = None
        for piece in raw:
            if held is not None:
                pages.append(new.add(form, held))
            held = piece
        if held is None:
            return cls(form)
        if not pages and len(held) <= _INLINE_RAW and packed_nbytes(held) <= INLINE:
            return cls(form, held)
        pages.append(new.add(form, held))
        if len(pages) > _MOST_PIECES:
            raise Invalid(
                f"a commit of {counted(len(pages), 'page')} of changes cannot be stored, the most "
                f"is {_MOST_PIECES}; commit less at once"
            )
        return cls(form, None, pages)

    def read(self, load: Load, what: str) -> Iterator[Piece]:
        """Each piece; ``what``: the commit's key."""
        if self.inline is not None:
            yield self.form.parse(self.inline, what)
        for page in self.pages:
            yield from load([page], self.form)

    def encode(self) -> bytes:
        """For the commit."""
        if self.inline is not None:
            return b"\1" + self.inline
        return b"\0" + varint(len(self.pages)) + b"".join(map(encode_reference, self.pages))

    @classmethod
    def parse(cls, form: Form[Piece], data: bytes, what: str) -> Pieces[Piece]:
        """What :meth:`encode` gave. A piece in the commit is read when it is asked for."""
        reader = Reader(data, what)
        if reader.most(reader.byte(), 1):
            return cls(form, reader.take(reader.left))
        pages = [reader.reference() for _ in range(reader.varint(_MOST_PIECES))]
        reader.end()
        return cls(form, None, pages)


class _ChangesPiece:
    """A piece of changes that is being made."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.arrays: dict[str, tuple[Index, list[bytes]]] = {}
        self.nbytes = 0

    def add(self, path: str, block: Index, page: Index, positions: NDArray[np.uint16]) -> None:
        """One page of an array."""
        size = int(np.prod(block, dtype=np.int64))
        data = b"".join(map(varint, page)) + encode_positions(positions, size)
        if path not in self.arrays:
            self.arrays[path] = block, []
            self.nbytes += len(key_of(path)) + len(block) + 10
        self.arrays[path][1].append(data)
        self.nbytes += len(data)

    def encode(self) -> bytes:
        """Its raw bytes."""
        parts = [varint(len(self.documents)), *self.documents, varint(len(self.arrays))]
        for path, (block, pages) in self.arrays.items():
            sides = bytes(side.bit_length() - 1 for side in block)
            parts += (sized(key_of(path)), varint(len(block)), sides, varint(len(pages)), *pages)
        return b"".join(parts)


class _DeadPiece:
    """A piece of what is dead that is being made: all that is small fits into one."""

    def __init__(self) -> None:
        self.refs = [NONE, NONE]
        self.count = 0
        self.tables: list[bytes] = []
        self.nbytes = 0

    def encode(self) -> bytes:
        """Its raw bytes."""
        refs = [varint(len(each)) + (each.encode() if len(each) else b"") for each in self.refs]
        return b"".join((*refs, varint(len(self.tables)), *self.tables))


def _ordered(refs: Refs) -> Refs:
    """Sorted, for references of one session beside each other take the fewest bytes."""
    refs = refs.compact()
    return refs.take(np.lexsort((refs.numbers, refs.which)))


def _read_changes(raw: bytes, what: str) -> Changes:
    reader = Reader(raw, what)
    documents: dict[str, str] = {}
    for _ in range(reader.varint(_MOST)):
        kind = _KINDS[reader.most(reader.byte(), len(_KINDS) - 1)]
        documents[_text(reader)] = kind
    arrays: dict[str, ArrayChange] = {}
    for _ in range(reader.varint(_MOST)):
        path = _text(reader)
        bits = reader.take(reader.varint(MAX_NDIM))
        if 1 << min(sum(bits), MOST_INDEX_BITS) > MOST_POSITIONS:
            reader.fail(f"has pages of more than {MOST_POSITIONS} positions")
        pages: dict[Index, NDArray[np.uint16]] = {}
        for _ in range(reader.varint(_MOST)):
            page = tuple(reader.varint((1 << MOST_INDEX_BITS) - 1) for _ in bits)
            pages[page] = read_positions(reader, 1 << sum(bits))
        arrays[path] = ArrayChange(tuple(1 << each for each in bits), pages)
    reader.end()
    return Changes(documents, arrays)


def _read_dead(raw: bytes, what: str) -> Dead:
    reader = Reader(raw, what)
    chunks = Refs.read(reader, count) if (count := reader.varint(_REFS)) else NONE
    pages = Refs.read(reader, count) if (count := reader.varint(_REFS)) else NONE
    tables = [
        ChunkTable.parse(reader.sized(_MOST_TABLE), what) for _ in range(reader.varint(_MOST))
    ]
    reader.end()
    return Dead(chunks, pages, tables)


def _text(reader: Reader) -> str:
    try:
        return reader.sized(MOST_KEY).decode()
    except UnicodeDecodeError:
        reader.fail("has a key that cannot be spelled")


CHANGES: Form[Changes] = Form(Kind.CHANGES, _MOST, _read_changes)
DEAD: Form[Dead] = Form(Kind.DEAD, _MOST, _read_dead)
