"""The mark of a node that is not whole: a delete, a replacement or a copy is under way, or was
interrupted.

It is a field of ``zarr.json`` that must be understood, so that other software, and older versions
of ours, refuse the node as we do; beside a Zarr v2 node too, as ``zarr.json`` is looked at first.
It names every node below with the keys its chunks may have: while documents are gone or not yet
there, the mark explains what is stored.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..errors import Corrupt
from ..limits import check_document
from .document import MAX_NDIM
from .spec import ArraySpec, KeyEncoding

FIELD: Final = "tensorstash_unfinished"
"""The name of the field."""

_ADVICE: Final = {
    "copy": "a copy that is not whole; if nobody is at it any more, copy again with overwrite=True",
    "delete": "what a delete left; delete it again, or replace it with overwrite=True",
    "move": "what is left of what was moved elsewhere; move it again, or delete it",
    "replace": "what was being replaced; replace it again with overwrite=True, or delete it",
    "field": "a field of records that is not whole; add the field again",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Which keys below its place are chunks of an array."""

    ndim: int
    keys: KeyEncoding

    @staticmethod
    def of(spec: ArraySpec) -> Layout:
        """That of ``spec``."""
        return Layout(spec.ndim, spec.keys)

    def explains(self, key: str) -> bool:
        """Whether ``key``, below the array, is that of a chunk, in or beyond its shape."""
        return self.keys.index(key, self.ndim) is not None


Layouts = Mapping[str, tuple[Layout, ...]]
"""Nodes by their path from the marked one (empty, or ending in ``/``), and the layouts of each: a
group has none."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is under way, and what is explained meanwhile. ``token`` tells it from every other.
    ``target``: of what is moved, the place that it was moved to."""

    what: str
    layouts: Layouts
    token: str
    target: str = ""

    @staticmethod
    def new(what: str, layouts: Layouts, target: str = "") -> Mark:
        """A mark that is no other."""
        return Mark(what, layouts, secrets.token_hex(8), target)

    @property
    def advice(self) -> str:
        """What the node is, and how to go on."""
        return _ADVICE[self.what]

    def on(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """``document`` with the mark."""
        nodes = {
            path: [[each.ndim, each.keys.name, each.keys.separator] for each in layouts]
            for path, layouts in self.layouts.items()
        }
        field = {
            "must_understand": True,
            "what": self.what,
            "advice": self.advice,
            "token": self.token,
            "nodes": nodes,
        }
        if self.target:
            field["target"] = self.target
        return {**document, FIELD: field}


def stub(group: bool) -> dict[str, Any]:
    """The least document of Zarr v3 that a mark can stand on: other software then names the mark
    as what it refuses."""
    if group:
        return {"zarr_format": 3, "node_type": "group"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": []}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
    }


def mark_in(document: Mapping[str, Any]) -> Mark | None:
    """The mark on a document; what is damaged of it explains nothing."""
    field = document.get(FIELD)
    if field is None:
        return None
    if not isinstance(field, dict):
        return Mark("replace", {}, "")
    nodes = field.get("nodes")
    layouts: dict[str, tuple[Layout, ...]] = {}
    for path, listed in nodes.items() if isinstance(nodes, dict) else ():
        layouts[path] = _layouts(listed if isinstance(listed, list) else ())
    what = field.get("what")
    known = what if isinstance(what, str) and what in _ADVICE else "replace"
    return Mark(known, layouts, str(field.get("token")), str(field.get("target", "")))


def is_marked(document: Mapping[str, Any]) -> bool:
    """Whether a document bears a mark."""
    return document.get(FIELD) is not None


class Marked(Corrupt):
    """What is stored bears the mark."""


def refuse(document: Mapping[str, Any], name: str) -> None:
    """Raise where ``document`` bears the mark."""
    mark = mark_in(document)
    if mark is not None:
        raise Marked(f"{name} is marked as unfinished: {mark.advice}", key=name)


def loaded(data: bytes | bytearray | memoryview | None) -> dict[str, Any]:
    """The JSON object in ``data``, empty where there is none that a reader would take: whoever
    deletes must be able to look at what nobody can open."""
    if data is None:
        return {}
    data = bytes(data)
    try:
        check_document(data, "")
        found = json.loads(data)
    except (Corrupt, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_zarr(data: bytes | bytearray | memoryview, document: Mapping[str, Any]) -> bool:
    """Whether ``data``, which was :func:`loaded` as ``document``, is the document of a node, or was
    before it was damaged: other programs' files may have its name."""
    if document:
        return "zarr_format" in document
    text = bytes(data[:4096]).lstrip()
    return text.startswith(b"{") and any(word in text for word in _WORDS)


def usual_layouts(*, v2: bool = False) -> tuple[Layout, ...]:
    """What a document that is no JSON explains, for it was that of something: the keys that its
    format uses unless told otherwise, of any number of axes."""
    return _USUAL_V2 if v2 else _USUAL


def layouts_of(document: Mapping[str, Any], *, v2: bool = False) -> tuple[Layout, ...]:
    """The layout of the array that ``document`` describes, if it does: as much of it must be right
    as says how keys are made."""
    shape = document.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_NDIM:
        return ()
    if v2:
        separator = document.get("dimension_separator") or "."
        return _layouts([[len(shape), "v2", separator]])
    encoding = document.get("chunk_key_encoding")
    if isinstance(encoding, str):
        encoding = {"name": encoding}
    if not isinstance(encoding, dict):
        return ()
    name, configuration = encoding.get("name"), encoding.get("configuration") or {}
    separator = configuration.get("separator") if isinstance(configuration, dict) else ""
    if separator is None:
        separator = "/" if name == "default" else "."
    return _layouts([[len(shape), name, separator]])


def consolidated_in(document: Mapping[str, Any]) -> dict[str, tuple[Layout, ...]]:
    """The nodes below a group that its own document describes: records have chunks of a field
    before the field's own document is there."""
    found: dict[str, tuple[Layout, ...]] = {}
    attributes = document.get("attributes")
    places = (
        (document.get("consolidated_metadata"), "metadata"),
        (attributes.get("tensorstash") if isinstance(attributes, dict) else None, "members"),
    )
    for place, name in places:
        members = place.get(name) if isinstance(place, dict) else None
        for path, member in members.items() if isinstance(members, dict) else ():
            if isinstance(member, dict):
                found[path + "/"] = layouts_of(member)
    return found


def is_records(attributes: Any) -> bool:
    """Whether the attributes of a group say that its members are fields of records."""
    fields = attributes.get("tensorstash") if isinstance(attributes, dict) else None
    return isinstance(fields, dict) and "records" in fields


def fields_of(attributes: Any) -> Mapping[str, Any]:
    """The fields that a group's attributes name, where they say that it is of records."""
    fields = attributes["tensorstash"].get("fields") if is_records(attributes) else None
    return fields if isinstance(fields, dict) else {}


def is_group(document: Mapping[str, Any]) -> bool:
    """Whether members may lie below the node that a ``zarr.json`` describes."""
    return document.get("node_type") == "group"


def _layouts(listed: Iterable[Any]) -> tuple[Layout, ...]:
    return tuple(each for each in map(_read, listed) if each is not None)


def _read(value: Any) -> Layout | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    ndim, name, separator = value
    if type(ndim) is not int or not 0 <= ndim <= MAX_NDIM:
        return None
    if name not in ("default", "v2") or separator not in ("/", "."):
        return None
    return Layout(ndim, KeyEncoding(name, separator))


_WORDS = (b'"zarr_format"', b'"node_type"', b'"chunks"')  # one of them is near the beginning
_USUAL = tuple(Layout(ndim, KeyEncoding("default", "/")) for ndim in range(MAX_NDIM + 1))
_USUAL_V2 = tuple(Layout(ndim, KeyEncoding("v2", ".")) for ndim in range(MAX_NDIM + 1))
