"""Entries by key: a B+tree of which each version shares most pages with the one before.

Keys are text, sorted by their UTF-8 bytes. Values are bytes; large ones are pages of their own. A
change writes the pages on the way to it and no others, and each level is one call of ``load``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import Invalid, counted, short
from ..binary import Reader, encode_reference
from ..container import packed_nbytes
from ..ids import Reference
from ..pages import Load, NewPages
from .edit import Edits, children, edited
from .nodes import MOST_KEY, SIZES, TREE_PAGES, VALUES, Item, Node, Sizes

_EMPTY, _INLINE, _STORED = 0, 1, 2
_AT_ONCE = 64  # pages that a listing reads ahead at most


@dataclass(frozen=True, eq=False)
class Tree:
    """Entries by key. Never changed: :meth:`apply` returns another one. ``Tree()`` is empty."""

    root: Node | Reference | None = None
    sizes: Sizes = SIZES

    def encode(self) -> bytes:
        """Its root, or where that is."""
        if self.root is None:
            return bytes((_EMPTY,))
        if isinstance(self.root, Node):
            return bytes((_INLINE,)) + self.root.encode()
        return bytes((_STORED,)) + encode_reference(self.root)

    @classmethod
    def parse(cls, data: bytes, what: str, sizes: Sizes = SIZES) -> Tree:
        """What :meth:`encode` gave; ``what``: the object it is in, for messages."""
        reader = Reader(data, what)
        how = reader.byte()
        root: Node | Reference | None = None
        if how == _INLINE:
            root = Node.read(reader)
            if not root.keys:
                reader.fail("has a root without entries")
        elif how == _STORED:
            root = reader.reference()
        elif how != _EMPTY:
            reader.fail(f"has a tree of kind {how}, which there is not")
        reader.end()
        return cls(root, sizes)

    def apply(self, changes: Mapping[str, bytes | None], load: Load, new: NewPages) -> Changed:
        """The tree after ``changes``; ``None`` deletes a key, also one that is not there.

        Raises:
            Invalid: a key is longer than 4096 bytes.
        """
        edits: Edits = []
        for key, value in changes.items():
            data = key_of(key)
            if len(data) > MOST_KEY:
                raise Invalid(
                    f"{short(key)} has {counted(len(data), 'byte')}, a key has {MOST_KEY} at most; "
                    "use shorter names"
                )
            edits.append((data, None if value is None else bytes(value)))
        edits.sort(key=lambda edit: edit[0])
        root, dead = edited(self.root, edits, load, new, self.sizes)
        if root is self.root:
            return Changed(self, [])
        if isinstance(root, Node):
            raw = root.encode()
            if packed_nbytes(raw) > self.sizes.root:
                root = new.add(TREE_PAGES, raw)
        return Changed(Tree(root, self.sizes), dead)

    def get(self, keys: Iterable[str], load: Load) -> dict[str, bytes]:
        """The values of those of ``keys`` that are there."""
        wanted = {key_of(key): key for key in keys}
        found: dict[str, Item] = {}
        nodes = [(node, sorted(wanted)) for node in top(self, load)]
        while nodes:
            below: list[tuple[Node, int, list[bytes]]] = []
            for node, inside in nodes:
                if not node.level:
                    found.update(_found(node, inside, wanted))
                    continue
                parts: dict[int, list[bytes]] = {}
                for key in inside:
                    parts.setdefault(node.child(key), []).append(key)
                below += ((node, at, some) for at, some in parts.items())
            read = children([(node, node.keys[at], node.items[at]) for node, at, _ in below], load)
            nodes = [(child, inside) for child, (_, _, inside) in zip(read, below, strict=True)]
        return values_of(found, load)

    def below(self, prefix: str, load: Load, *, values: bool = True) -> Iterator[tuple[str, bytes]]:
        """The entries whose keys begin with ``prefix``, sorted. Without ``values``, each is
        ``b""`` and large ones are not read."""
        start = key_of(prefix)
        for node in self._walk(start, load, folders=False):
            first, last = _within(node, start)
            keys = [key.decode() for key in node.keys[first:last]]
            if values:
                items = dict(zip(keys, node.items[first:last], strict=True))
                yield from values_of(items, load).items()
            else:
                yield from ((key, b"") for key in keys)

    def names(self, prefix: str, load: Load) -> Iterator[tuple[str, bool]]:
        """What follows ``prefix`` in keys, up to the next slash, and whether there is a slash
        behind it: each pair once, in the order of keys. Pages that lie within one folder are not
        read; one key can be ``u`` and another one ``u/v``, which gives ``u`` twice."""
        start = key_of(prefix)
        before = None
        for node in self._walk(start, load, folders=True):
            first, last = _within(node, start)
            for key in node.keys[first:last]:
                name, slash, _ = key[len(start) :].partition(b"/")
                if (name, slash) != before:
                    before = name, slash
                    yield name.decode(), bool(slash)

    def _walk(self, start: bytes, load: Load, *, folders: bool) -> Iterator[Node]:
        """The leaves that may hold keys that begin with ``start``, in order; with ``folders``, in
        place of those within one folder a node of their first key alone."""
        # A node, and from which of its children on; few are read ahead before many are.
        stack = [(node, 0, 2) for node in reversed(top(self, load))]
        while stack:
            node, done, ahead = stack.pop()
            if not node.level:
                yield node
                continue
            first, last = _within(node, start)
            first = max(first, done)
            stop = min(first + ahead, last)
            if stop < last:
                stack.append((node, stop, min(2 * ahead, _AT_ONCE)))
            known = [at for at in range(first, stop) if folders and _in_folder(node, at, start)]
            wanted = [at for at in range(first, stop) if at not in known]
            read = children([(node, node.keys[at], node.items[at]) for at in wanted], load)
            nodes = dict(zip(wanted, read, strict=True))
            nodes |= {at: Node(0, [node.keys[at]], [b""]) for at in known}
            stack += [(nodes[at], 0, ahead) for at in range(stop - 1, first - 1, -1)]


@dataclass(frozen=True, eq=False)
class Changed:
    """``tree``: the new one. ``dead``: pages that the old one has and the new one has not."""

    tree: Tree
    dead: list[Reference]


def key_of(text: str) -> bytes:
    """The bytes of a key.

    Raises:
        Invalid: it has characters that are none.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(f"{short(text)} cannot be spelled in UTF-8; use another name") from error


def top(tree: Tree, load: Load) -> Sequence[Node]:
    """The root, wherever it is; nothing of an empty tree."""
    if isinstance(tree.root, Reference):
        return load([tree.root], TREE_PAGES)
    return () if tree.root is None else (tree.root,)


def values_of(items: Mapping[str, Item], load: Load) -> dict[str, bytes]:
    """``items`` with the values that are pages of their own, read at once."""
    large = {key: item for key, item in items.items() if isinstance(item, Reference)}
    read = load(list(large.values()), VALUES) if large else ()
    values = dict(zip(large, read, strict=True))
    return {
        key: values[key] if isinstance(item, Reference) else item for key, item in items.items()
    }


def _found(node: Node, inside: list[bytes], wanted: Mapping[bytes, str]) -> dict[str, Item]:
    found = {}
    for key in inside:
        at = bisect_left(node.keys, key)
        if at < len(node.keys) and node.keys[at] == key:
            found[wanted[key]] = node.items[at]
    return found


def _within(node: Node, start: bytes) -> tuple[int, int]:
    """Which of a leaf's keys begin with ``start``; which of a node's children may hold such."""
    first = node.child(start) if node.level else bisect_left(node.keys, start)
    if not start:
        return first, len(node.keys)
    # No byte of UTF-8 is 255.
    return first, bisect_left(node.keys, start[:-1] + bytes((start[-1] + 1,)))


def _in_folder(node: Node, at: int, start: bytes) -> bool:
    """Whether all that a child holds lies in the folder of its first key, below ``start``."""
    key = node.keys[at]
    slash = key.find(b"/", len(start))
    if not key.startswith(start) or slash < 0 or at + 1 == len(node.keys):
        return False
    return node.keys[at + 1].startswith(key[: slash + 1])
