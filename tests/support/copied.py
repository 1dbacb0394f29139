"""Groups with consolidated metadata, every change below them, and what readers must see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import tensorstash as stash
from tensorstash.errors import StashError

OLD, NEW = np.array([1, 2, 3, 4], "i4"), np.array([1, 2, 3, 4], "f4")


def made(at: Any, zarr_format: Any, *copied: str) -> stash.Group:
    """A group with an array at each depth; ``copied``: the groups that are consolidated."""
    group = stash.create_group(at, {"title": "t"}, zarr_format=zarr_format)
    for name in ("x", "a/x", "a/b/x"):
        group.create(name, (4,), "i4", chunks=(2,), codecs=None)[:] = OLD
    group.create_group("a/empty")
    consolidate(group, copied)
    return group


def consolidate(group: stash.Group, names: Any) -> None:
    for name in sorted(names, key=len, reverse=True):
        inner = group[name] if name else group
        assert isinstance(inner, stash.Group)
        inner.consolidate()


def shown(group: stash.Group, prefix: str = "") -> dict[str, Any]:
    """All that a group shows of itself and what lies below."""
    found: dict[str, Any] = {prefix: dict(group.attrs)}
    for name, member in group._each():
        path = f"{prefix}/{name}"
        if isinstance(member, StashError):
            found[path] = type(member).__name__
        elif isinstance(member, stash.Group):
            found |= shown(member, path)
        else:
            found[path] = member.dtype, member.shape, dict(member.attrs), member[...].tolist()
    return found


def copied(at: Any, name: str = "") -> bool:
    group = stash.open_group(at)
    inner = group[name] if name else group
    assert isinstance(inner, stash.Group)
    return inner.document.consolidated is not None


def check(at: Any) -> dict[str, Any]:
    """What is read by the copies, from every group on, is what there is."""
    plain = shown(stash.open_group(at, "r+"))
    assert shown(stash.open_group(at)) == plain
    for path, value in plain.items():
        if path and isinstance(value, dict):
            inner = stash.open_group(at, "r+")[path]
            assert isinstance(inner, stash.Group)
            root = stash.Group(inner.driver, inner.path, stash.open_group(at).settings)
            assert shown(root, path) == {
                k: v for k, v in plain.items() if f"{k}/".startswith(f"{path}/")
            }
    return plain


Change = Callable[[stash.Group, str], Any]


def appended(group: stash.Group, name: str) -> None:
    with array(group, name).writer() as writer:
        writer.append(OLD)


def array(group: stash.Group, name: str) -> stash.Array:
    found = group[name]
    assert isinstance(found, stash.Array)
    return found


def attribute_of_group(group: stash.Group, name: str) -> None:
    above = name.rpartition("/")[0]
    (group[above] if above else group).attrs["more"] = [1]


CHANGES: dict[str, Change] = {
    "replace": lambda g, n: g.create(n, (4,), "f4", codecs=None, overwrite=True).__setitem__(
        ..., NEW
    ),
    "replace by a group": lambda g, n: g.create_group(n, {"now": 1}, overwrite=True),
    "delete": lambda g, n: g.__delitem__(n),
    "append": lambda g, n: array(g, n).append(OLD),
    "append by a writer": appended,
    "grow": lambda g, n: array(g, n).resize((7,)),
    "shrink": lambda g, n: array(g, n).resize((1,)),
    "attribute": lambda g, n: array(g, n).attrs.update(unit="K"),
    "attribute of its group": attribute_of_group,
    "new array": lambda g, n: g.create(n + "2", (2,), "i2", attributes={"new": True}),
    "new array below new groups": lambda g, n: g.create(n[:-1] + "p/q/x", (2,), "i2"),
    "new group": lambda g, n: g.create_group(n + "2"),
    "required group": lambda g, n: g.require_group(n + "2"),
}
DEPTHS = {"x": ("",), "a/x": ("", "a"), "a/b/x": ("", "a", "a/b")}
