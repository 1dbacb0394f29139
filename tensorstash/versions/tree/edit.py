"""Changes of a tree of entries: down to the leaves that they touch, and up again, level by level.

On the way down the nodes on the paths are loaded. On the way up each level hands its new nodes to
the one above, which stores them once small ones are joined with their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias

from ...driver import REPAIR
from ...errors import Corrupt
from ..ids import Reference, page_key
from ..pages import Load, NewPages
from .nodes import TREE_PAGES, VALUES, Item, Node, Sizes, cut

Edits: TypeAlias = list[tuple[bytes, bytes | None]]
"""Keys, sorted, and their values; ``None``: there is none afterwards."""

_Slot: TypeAlias = Node | tuple[bytes, Reference]
"""A child that is new, or one that is stored, under its first key."""


def children(wanted: Sequence[tuple[Node, bytes, Item]], load: Load) -> list[Node]:
    """The nodes that others refer to: ``wanted`` are a node, the key, and what it has there.

    Raises:
        Corrupt: a page is not the one that the page above it speaks of.
    """
    if not wanted:
        return []
    references = [item for _, _, item in wanted if isinstance(item, Reference)]
    found = list(load(references, TREE_PAGES))
    for (parent, key, _), reference, node in zip(wanted, references, found, strict=True):
        # No page can be below itself: levels go down.
        if node.level != parent.level - 1 or node.keys[0] != key:
            what = page_key(reference)
            raise Corrupt(
                f"{what} begins with {node.keys[0]!r} at level {node.level}, the page above it "
                f"says {key!r} at level {parent.level - 1}{REPAIR}",
                key=what,
            )
    return found


def edited(
    root: Node | Reference | None, edits: Edits, load: Load, new: NewPages, sizes: Sizes
) -> tuple[Node | Reference | None, list[Reference]]:
    """The new root, which is ``root`` itself where nothing changes, and the stored pages that are
    no longer referred to."""
    if not edits:
        return root, []
    return _Edit(load, new, sizes).run(root, edits)


@dataclass(eq=False)
class _Draft:
    """A node that edits touch. ``below``: those of its children that edits touch, too. ``result``:
    the nodes that take its place, not stored yet; ``None`` where nothing changes."""

    node: Node
    edits: Edits
    below: dict[int, _Draft] = field(default_factory=dict)
    result: list[Node] | None = None
    slots: list[_Slot] = field(default_factory=list)


class _Edit:
    def __init__(self, load: Load, new: NewPages, sizes: Sizes) -> None:
        self.load = load
        self.new = new
        self.sizes = sizes
        self.dead: list[Reference] = []
        self.written: dict[Reference, Node] = {}

    def run(
        self, root: Node | Reference | None, edits: Edits
    ) -> tuple[Node | Reference | None, list[Reference]]:
        """See :func:`edited`."""
        top = _Draft(self.loaded(root) if root else Node(0, (), ()), edits)
        levels = self.drafts(top)
        for draft in levels.pop():
            self.edit_leaf(draft)
        for level in reversed(levels):
            self.edit_inner(level, top)
        if top.result is None:
            return root, []
        if isinstance(root, Reference):
            self.dead.append(root)
        return self.root(top), self.dead

    def drafts(self, top: _Draft) -> list[list[_Draft]]:
        """The nodes that edits touch, from the top to the leaves; one call of ``load`` a level."""
        levels = [[top]]
        while levels[-1][0].node.level:
            wanted: list[tuple[Node, bytes, Item]] = []
            places: list[tuple[_Draft, int, Edits]] = []
            for draft in levels[-1]:
                node = draft.node
                parts: dict[int, Edits] = {}
                for edit in draft.edits:
                    parts.setdefault(node.child(edit[0]), []).append(edit)
                places += ((draft, at, edits) for at, edits in parts.items())
                wanted += ((node, node.keys[at], node.items[at]) for at in parts)
            level = []
            for (draft, at, edits), node in zip(places, children(wanted, self.load), strict=True):
                draft.below[at] = _Draft(node, edits)
                level.append(draft.below[at])
            levels.append(level)
        return levels

    def edit_leaf(self, draft: _Draft) -> None:
        """Carry the edits of a leaf out."""
        entries = dict(zip(draft.node.keys, draft.node.items, strict=True))
        changed = False
        for key, value in draft.edits:
            before = entries.get(key)
            if value == before:
                continue
            changed = True
            if isinstance(before, Reference):
                self.dead.append(before)
            if value is None:
                del entries[key]
            elif len(value) > self.sizes.value:
                entries[key] = self.new.add(VALUES, value)
            else:
                entries[key] = value
        if changed:
            keys = sorted(entries)
            draft.result = cut(0, keys, [entries[key] for key in keys], self.sizes)

    def edit_inner(self, level: list[_Draft], top: _Draft) -> None:
        """Give nodes of one level the new nodes below them."""
        changed = [draft for draft in level if self.take_slots(draft)]
        lonely = [(draft, at) for draft in changed for at in self.to_join(draft.slots)]
        wanted = []
        for draft, at in lonely:
            key, reference = draft.slots[at]  # type: ignore[misc]
            wanted.append((draft.node, key, reference))
            self.dead.append(reference)
        for (draft, at), node in zip(lonely, children(wanted, self.load), strict=True):
            draft.slots[at] = node
        for draft in changed:
            draft.slots = self.joined(draft.slots)
            if draft is top and len(draft.slots) == 1:
                draft.result = []  # one below the top takes its place, and need not be stored
                continue
            keys, items = self.stored(draft.slots)
            draft.result = cut(draft.node.level, keys, items, self.sizes)

    def take_slots(self, draft: _Draft) -> bool:
        """Collect what a node has below it afterwards; whether that is anything new."""
        for at, (key, item) in enumerate(zip(draft.node.keys, draft.node.items, strict=True)):
            assert isinstance(item, Reference)
            child = draft.below.get(at)
            if child is None or child.result is None:
                draft.slots.append((key, item))
            else:
                self.dead.append(item)
                draft.slots += child.result
        return any(child.result is not None for child in draft.below.values())

    def to_join(self, slots: list[_Slot]) -> list[int]:
        """Which stored children are to be joined with a new one, because that is too small."""
        found: list[int] = []
        for at, slot in enumerate(slots):
            if not isinstance(slot, Node) or slot.weight >= self.sizes.merge:
                continue
            beside = [i for i in (at - 1, at + 1) if 0 <= i < len(slots)]
            if beside and not any(isinstance(slots[i], Node) or i in found for i in beside):
                found.append(beside[-1])
        return found

    def joined(self, slots: list[_Slot]) -> list[_Slot]:
        """New nodes beside each other, cut anew: all of them are to be stored anyway."""
        out: list[_Slot] = []
        for is_new, group in groupby(slots, lambda slot: isinstance(slot, Node)):
            run = list(group)
            if is_new and len(run) > 1:
                nodes = [slot for slot in run if isinstance(slot, Node)]
                keys = [key for node in nodes for key in node.keys]
                items = [item for node in nodes for item in node.items]
                out += cut(nodes[0].level, keys, items, self.sizes)
            else:
                out += run
        return out

    def stored(self, slots: Sequence[_Slot]) -> tuple[list[bytes], list[Item]]:
        """The keys and references of ``slots``; new nodes are stored."""
        keys: list[bytes] = []
        items: list[Item] = []
        for slot in slots:
            if isinstance(slot, Node):
                reference = self.new.add(TREE_PAGES, slot.encode())
                self.written[reference] = slot
                slot = slot.keys[0], reference
            keys.append(slot[0])
            items.append(slot[1])
        return keys, items

    def root(self, top: _Draft) -> Node | None:
        """The one node above all, of as few levels as can be."""
        nodes = top.result or []
        if top.node.level and not nodes and top.slots:
            (slot,) = top.slots
            if not isinstance(slot, Node):
                self.dead.append(slot[1])
                (slot,) = children([(top.node, *slot)], self.load)
            nodes = [slot]
        while len(nodes) > 1:
            level = nodes[0].level + 1
            nodes = cut(level, *self.stored(nodes), self.sizes)
        if not nodes:
            return None
        node = nodes[0]
        while node.level and len(node.keys) == 1:
            (item,) = node.items
            assert isinstance(item, Reference)
            self.dead.append(item)
            node = self.written.get(item) or children([(node, node.keys[0], item)], self.load)[0]
        return node

    def loaded(self, root: Node | Reference) -> Node:
        """The root, wherever it is."""
        if isinstance(root, Node):
            return root
        (node,) = self.load([root], TREE_PAGES)
        return node
