"""A page of the tree of entries, and how many entries go into one. No I/O.

::

    level u8, then sessions: varint, 13 bytes each; then varint entries, and of each
    shared bytes with the key before, varint; rest of the key, sized; head, varint:
        even: a value of head // 2 bytes follows
        odd:  a reference of session head // 2: number, varint; bytes, varint

Level 0 holds values; a page of level n + 1 refers to pages of level n, each under its first key.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeAlias

from ...limits import METADATA
from ..binary import Reader, sized, varint
from ..container import Kind
from ..ids import MOST_NBYTES, MOST_NUMBER, Reference, to_bytes
from ..pages import Form

Item: TypeAlias = bytes | Reference

MOST_KEY = 4096
"""Bytes of a key. Paths are shorter on every file system."""

_MOST = 64 << 10
"""Raw bytes of a page: what :class:`Sizes` allows, and one entry of the largest."""

_MOST_LEVEL = 30
_REFERENCE = 24  # bytes that a reference takes, roughly
_ENTRY = 4  # bytes that an entry takes beyond its key and value, roughly


@dataclass(frozen=True)
class Sizes:
    """``split``: raw bytes of a page above which it is cut; ``merge``: below which it is joined
    with a neighbour; ``value``: of a value, above which it is a page of its own; ``root``: of the
    root, compressed, up to which it lies where the tree is named."""

    split: int = 24 << 10
    merge: int = 6 << 10
    value: int = 4 << 10
    root: int = 8 << 10


SIZES = Sizes()


@dataclass(frozen=True, eq=False)
class Node:
    """Entries by key, sorted. ``level`` 0: values, or references to those that are large; above:
    references to nodes one level below, each under its first key. Never changed."""

    level: int
    keys: Sequence[bytes]
    items: Sequence[Item]

    @property
    def weight(self) -> int:
        """Its raw bytes, roughly."""
        return sum(map(_weight, self.keys, self.items))

    @property
    def held(self) -> int:
        """Bytes of memory that it takes, roughly: for caches."""
        return 200 + sum(200 + len(key) for key in self.keys) + sum(map(_size, self.items))

    def child(self, key: bytes) -> int:
        """Which of its items holds ``key``, if any does."""
        return max(bisect_right(self.keys, key) - 1, 0)

    def encode(self) -> bytes:
        """Its raw bytes."""
        names = {item.session: 0 for item in self.items if isinstance(item, Reference)}
        for index, name in enumerate(names):
            names[name] = index
        parts = [bytes((self.level,)), varint(len(names)), *map(to_bytes, names)]
        parts.append(varint(len(self.keys)))
        before = b""
        for key, item in zip(self.keys, self.items, strict=True):
            shared = _shared(before, key)
            parts += (varint(shared), sized(key[shared:]))
            if isinstance(item, Reference):
                head = 2 * names[item.session] + 1
                parts += (varint(head), varint(item.number), varint(item.nbytes))
            else:
                parts += (varint(2 * len(item)), item)
            before = key
        return b"".join(parts)

    @classmethod
    def read(cls, reader: Reader) -> Node:
        """What :meth:`encode` gave."""
        level = reader.most(reader.byte(), _MOST_LEVEL)
        known = reader.varint(_MOST)
        names = [reader.session() for _ in range(known)]
        keys: list[bytes] = []
        items: list[Item] = []
        before = b""
        for index in range(reader.varint(_MOST)):
            shared = reader.varint(len(before))
            key = before[:shared] + reader.sized(MOST_KEY - shared)
            if index and key <= before:
                reader.fail("has its keys in a wrong order")
            head = reader.varint(2 * _MOST)
            if not head % 2:
                if level:
                    reader.fail("has a value where a page must be")
                items.append(reader.take(head // 2))
            elif head // 2 >= known:
                reader.fail("refers to a session that it does not list")
            else:
                number = reader.varint(MOST_NUMBER - 1)
                items.append(Reference(names[head // 2], number, reader.varint(MOST_NBYTES - 1)))
            keys.append(key)
            before = key
        try:
            b"\n".join(keys).decode()  # all of them at once: none runs over into the next
        except UnicodeDecodeError:
            reader.fail("has a key that cannot be spelled")
        return cls(level, keys, items)


def cut(level: int, keys: Sequence[bytes], items: Sequence[Item], sizes: Sizes) -> list[Node]:
    """The nodes that hold these entries: none for no entries, one while they fit into one, else
    several of about the same size, so that there is room in each."""
    if not keys:
        return []
    ends = list(accumulate(map(_weight, keys, items)))
    total = ends[-1]
    # Above the leaves two at least in each: else a level would have as many as the one below.
    least = 2 if level else 1
    pieces = min(-(-3 * total // (2 * sizes.split)), len(keys) // least)
    if total <= sizes.split or pieces < 2:
        return [Node(level, keys, items)]
    cuts = [0]
    for index, end in enumerate(ends, 1):
        full = end * pieces >= len(cuts) * total
        if full and index - cuts[-1] >= least and len(keys) - index >= least:
            cuts.append(index)
    cuts.append(len(keys))
    return [Node(level, keys[start:stop], items[start:stop]) for start, stop in pairwise(cuts)]


def _weight(key: bytes, item: Item) -> int:
    return _ENTRY + len(key) + _size(item)


def _size(item: Item) -> int:
    return _REFERENCE if isinstance(item, Reference) else len(item)


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _parse(raw: bytes, what: str) -> Node:
    reader = Reader(raw, what)
    node = Node.read(reader)
    reader.end()
    if not node.keys:
        reader.fail("has no entries")
    return node


def _value(raw: bytes, what: str) -> bytes:
    return raw


TREE_PAGES: Form[Node] = Form(Kind.TREE, _MOST, _parse)
"""Pages of entries, and pages of pages."""

VALUES: Form[bytes] = Form(Kind.VALUE, METADATA, _value)
"""Values that are pages of their own."""
