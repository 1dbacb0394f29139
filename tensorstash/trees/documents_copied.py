"""The documents of a copied tree: as in the source, but of arrays that are others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metadata import mark, trailer, zarr2, zarr3
from ..metadata.trailer import Trailer, new_identity
from .members import Member, Tree

_ORDER = (zarr2.ATTRS, zarr2.CONSOLIDATED, zarr2.ARRAY, zarr2.GROUP, zarr3.KEY)


def copied(tree: Tree, *, in_place: bool) -> dict[str, dict[str, bytes]]:
    """What to store of each member, by path and name, in the order in which to store it: that
    which makes it a node last. Consolidated metadata shows what was copied. ``in_place``: whether
    chunks can be written in place there, else none is said to be."""
    identities = _identities(tree)
    found: dict[str, dict[str, bytes]] = {}
    for path, member in tree.items():
        made = {}
        for name in _ORDER:
            if name in member.files:
                made[name] = _body(member, name, tree, in_place, identities)
        if member.files and (member.is_field or not member.is_group):
            first = member.document
            identity = trailer.decode(member.files[first]).identity
            made[first] += trailer.encode(
                Trailer(
                    identity=b"" if member.is_group else identities.get(identity, new_identity()),
                    field=member.is_field,
                )
            )
        found[path] = made
    return found


def _identities(tree: Tree) -> dict[bytes, bytes]:
    """A new identity for each that there is."""
    known: set[bytes] = set()
    for member in tree.values():
        if member.files and not member.is_group:
            known.add(trailer.decode(member.files[member.document]).identity)
        elif member.is_records:
            known.update(map(bytes.fromhex, _named(member).values()))
    return {identity: new_identity() for identity in known if identity}


def _named(records: Member) -> dict[str, str]:
    """The identities of fields that a document of records names."""
    own = mark.loaded(records.files[zarr3.KEY])["attributes"]["tensorstash"]
    found = own.get("identities") if isinstance(own, dict) else None
    named = found if isinstance(found, dict) else {}
    return {path: text for path, text in named.items() if _is_hex(text)}


def _is_hex(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(bytes.fromhex(text))
    except ValueError:
        return False


def _body(
    member: Member, name: str, tree: Tree, in_place: bool, identities: Mapping[bytes, bytes]
) -> bytes:
    """A document without its trailer: byte for byte as it was, where nothing in it must change."""
    data = member.files[name]
    if trailer.decode(data) != trailer.NONE:
        data = data.rstrip()
    if member.is_records:
        for text in _named(member).values():
            new = identities[bytes.fromhex(text)].hex()
            data = data.replace(f'"{text}"'.encode(), f'"{new}"'.encode())
    plain = in_place or zarr3.IN_PLACE.encode() not in data
    shows = name == zarr2.CONSOLIDATED or b"consolidated_metadata" in data
    if plain and not (shows and member.is_group and not member.is_records):
        return data
    document = mark.loaded(data)
    changed = False
    if not plain:
        changed = _without_in_place(document)
    if shows and not member.is_records:
        changed |= _only_copied(document, member.path, name, tree)
    return zarr3.encode(document) if changed else data


def _only_copied(document: dict[str, Any], at: str, name: str, tree: Tree) -> bool:
    """Take out of consolidated metadata what is not in the tree."""
    if name == zarr2.CONSOLIDATED:
        holder: Any = document
    else:
        holder = document.get("consolidated_metadata")
    members = holder.get("metadata") if isinstance(holder, dict) else None
    if not isinstance(members, dict):
        return False
    left = {
        key: value
        for key, value in members.items()
        if at + (f"{key}/" if name != zarr2.CONSOLIDATED else _folder(key)) in tree
    }
    holder["metadata"] = left
    return len(left) != len(members)


def _folder(key: str) -> str:
    folder, slash, _ = key.rpartition("/")
    return folder + slash


def _without_in_place(document: dict[str, Any]) -> bool:
    """Take the mark of arrays that are written in place out of a document, and of those in it."""
    found = False
    todo: list[Any] = [document]
    while todo:
        each = todo.pop()
        if not isinstance(each, dict):
            continue
        attributes = each.get("attributes")
        if isinstance(attributes, dict):
            found |= attributes.pop(zarr3.IN_PLACE, None) is not None
            todo += _values(attributes.get("tensorstash"), "members")
        todo += _values(each.get("consolidated_metadata"), "metadata")
    return found


def _values(holder: Any, name: str) -> list[Any]:
    inner = holder.get(name) if isinstance(holder, dict) else None
    return [*inner.values()] if isinstance(inner, dict) else []
