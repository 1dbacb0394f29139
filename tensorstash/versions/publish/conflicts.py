"""Whether what two commits changed can stand together. No I/O.

Who changed a chunk or a document that somebody else changed too has decided on what is no more.
So has who changed anything in a node that was deleted, replaced or cut short meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from ...metadata import mark, trailer, zarr2, zarr3
from ..changes import ArrayChange, Changes
from ..table import Blocks, Index

_FREE = ("attributes", "consolidated_metadata", "shape")
_SHOWN = 4
_SHORT = "cut short"

Documents = Mapping[str, tuple[bytes | None, bytes | None]]
"""What documents were and are."""


class Clash(NamedTuple):
    """What both changed: ``what``, in words; in the array or group at ``path``, where it is known;
    the ``chunks`` of it."""

    what: str
    path: str
    chunks: tuple[Index, ...] = ()


def clash(
    mine: Changes, my: Documents, theirs: Sequence[Changes], their: Documents
) -> Clash | None:
    """The first that keeps ``mine`` from being applied to what the commits ``theirs`` led to."""
    alike = {key for key in my.keys() & their.keys() if my[key][1] == their[key][1]}
    for key in sorted((my.keys() & their.keys()) - alike):
        path = key[: key.rfind("/") + 1]
        return Clash(f"the metadata of {_named(path)}", path)
    for path, how in _drastic(my):
        if any(_touched(each, path, alike, whole=how != _SHORT) for each in theirs):
            return Clash(f"{_named(path)}, which this transaction has {how},", path)
    for path, how in _drastic(their):
        if _touched(mine, path, alike, whole=how != _SHORT):
            return Clash(f"{_named(path)}, which was {how},", path)
    for each in theirs:
        for path in sorted(mine.arrays.keys() & each.arrays.keys()):
            both = _shared(mine.arrays[path], each.arrays[path])
            if both:
                shown = ", ".join(map(str, both[:_SHOWN]))
                more = ", ..." if len(both) > _SHOWN else ""
                return Clash(f"chunk {shown}{more} of {_named(path)}", path, both)
    return None


def _drastic(documents: Documents) -> list[tuple[str, str]]:
    """Nodes that were deleted, replaced or cut short, by path."""
    found = []
    for key, (before, after) in sorted(documents.items()):
        path, name = key[: key.rfind("/") + 1], key.rpartition("/")[2]
        if name not in (zarr3.KEY, zarr2.ARRAY, zarr2.GROUP) or before is None:
            continue
        if after is None:
            found.append((path, "deleted"))
            continue
        was, now = mark.loaded(before), mark.loaded(after)
        how = _compared(was, now)
        one, other = trailer.decode(before).identity, trailer.decode(after).identity
        if one and one != other:
            how = "replaced"
        if how is not None:
            found.append((path, how))
        for at, member in _members(was).items():
            other_member = _members(now).get(at)
            how = "deleted" if other_member is None else _compared(member, other_member)
            if how is not None:
                found.append((f"{path}{at}/", how))
    return found


def _compared(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What became of a node, if it is not what it was, or longer."""
    if {k: v for k, v in was.items() if k not in _FREE} != {
        k: v for k, v in now.items() if k not in _FREE
    }:
        return "replaced"
    one, other = was.get("shape"), now.get("shape")
    if not isinstance(one, list) or not isinstance(other, list):
        return None
    if len(one) != len(other):
        return "replaced"
    shorter = any(
        isinstance(a, int) and isinstance(b, int) and b < a for a, b in zip(one, other, strict=True)
    )
    return _SHORT if shorter else None


def _members(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The fields that the document of records describes."""
    attributes = document.get("attributes")
    ours = attributes.get("tensorstash") if isinstance(attributes, dict) else None
    copied = document.get("consolidated_metadata")
    # A copy is no news; what publishes the fields of records is.
    place = copied if mark.is_records(attributes) else None
    for each, name in ((ours, "members"), (place, "metadata")):
        members = each.get(name) if isinstance(each, dict) else None
        if isinstance(members, dict):
            return {path: each for path, each in members.items() if isinstance(each, dict)}
    return {}


def _touched(changes: Changes, path: str, alike: Set[str], *, whole: bool) -> bool:
    """Whether anything was changed in the node at ``path``; ``whole``: documents and what is below
    count, but for those ``alike`` on both sides."""
    if any(at == path or (whole and at.startswith(path)) for at in changes.arrays):
        return True
    own = path + zarr3.KEY
    return whole and any(
        key.startswith(path) and key != own and key not in alike for key in changes.documents
    )


def _shared(one: ArrayChange, other: ArrayChange) -> tuple[Index, ...]:
    """The chunks that are in both."""
    if one.block == other.block:
        found = []
        for page in one.pages.keys() & other.pages.keys():
            both = np.intersect1d(one.pages[page], other.pages[page])
            found += _indices(one.block, page, both)
        return tuple(sorted(found))
    # Each chose its pages for a grid that had no chunks before.
    sets = [
        {i for page, positions in each.pages.items() for i in _indices(each.block, page, positions)}
        for each in (one, other)
    ]
    return tuple(sorted(sets[0] & sets[1]))


def _indices(block: Index, page: Index, positions: Any) -> list[Index]:
    blocks = Blocks((tuple(side.bit_length() - 1 for side in block),))
    return [tuple(index) for index in blocks.inside(page, positions, 0).tolist()]


def _named(path: str) -> str:
    name = path.strip("/")
    return repr(name) if name else "the root"
