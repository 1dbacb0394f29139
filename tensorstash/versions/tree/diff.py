"""What two trees of entries differ in, without reading what they share."""

from __future__ import annotations

from collections.abc import Iterator

from ..pages import Load
from .edit import children
from .nodes import Item, Node
from .tree import Tree, top, values_of

_AT_ONCE = 256  # large values


def differences(
    old: Tree, new: Tree, load: Load
) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """Keys whose values are not the same in both, sorted, with the old and the new value (``None``
    where there is none). Costs by what differs."""
    before, after = _apart(list(top(old, load)), list(top(new, load)), load)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    keys.sort()
    for at in range(0, len(keys), _AT_ONCE):
        some = keys[at : at + _AT_ONCE]
        was = values_of({key.decode(): before[key] for key in some if key in before}, load)
        now = values_of({key.decode(): after[key] for key in some if key in after}, load)
        for key in (each.decode() for each in some):
            if was.get(key) != now.get(key):  # a large value may have been stored again
                yield key, was.get(key), now.get(key)


def _apart(
    one: list[Node], other: list[Node], load: Load
) -> tuple[dict[bytes, Item], dict[bytes, Item]]:
    """The entries of the leaves that only one of two trees has."""
    while any(node.level for node in (*one, *other)):
        level = max(node.level for node in (*one, *other))
        sides = []
        for nodes in (one, other):
            high = [node for node in nodes if node.level == level]
            sides.append([(node, *each) for node in high for each in _entries(node)])
        shared = {each[2] for each in sides[0]} & {each[2] for each in sides[1]}
        mine, theirs = ([each for each in side if each[2] not in shared] for side in sides)
        read = children(mine + theirs, load)
        # A tree of fewer levels waits for the other one to come down.
        one = [node for node in one if node.level < level] + read[: len(mine)]
        other = [node for node in other if node.level < level] + read[len(mine) :]
    return _joined(one), _joined(other)


def _joined(leaves: list[Node]) -> dict[bytes, Item]:
    return {key: item for leaf in leaves for key, item in _entries(leaf)}


def _entries(node: Node) -> Iterator[tuple[bytes, Item]]:
    return zip(node.keys, node.items, strict=True)
