"""Zarr v2: ``.zarray``, ``.zattrs``, ``.zgroup`` to specs and back.

A v2 array becomes the chain that v3 would spell: order ``F`` is a transpose, the typestr's
byte order belongs to the ``bytes`` codec, filters become the serializer, the compressor
comes last (Zarr v2 specification, "Metadata").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from .. import dtype as dtypes
from .. import fill as fills
from ..codec import Pipeline
from ..errors import Invalid, Unsupported, short
from ..grid import Grid
from ..spec import ArraySpec, KeyEncoding
from .chain2 import chain, described
from .consolidated import Members, read2
from .document import (
    GroupDocument,
    decode,
    edges,
    encode,
    guarded,
    lengths,
)
from .typestr import OBJECT_CODECS, from_v2

__all__ = [
    "ARRAY",
    "ATTRS",
    "CONSOLIDATED",
    "GROUP",
    "array_document",
    "attributes_document",
    "chain",
    "consolidated_document",
    "decode",
    "encode",
    "group_document",
    "parse_array",
    "parse_documents",
    "parse_group",
]

ARRAY: Final = ".zarray"
"""The key of an array's document."""
GROUP: Final = ".zgroup"
"""The key of a group's document."""
ATTRS: Final = ".zattrs"
"""The key of an array's or a group's attributes."""
CONSOLIDATED: Final = ".zmetadata"
"""The key of the documents of a whole hierarchy, at its root."""

DIMENSIONS: Final = "_ARRAY_DIMENSIONS"
"""The attribute in which xarray keeps the names of a v2 array's axes."""

_NUMBERS: Final = "biufcmM"
"""Kinds of dtype whose fill value is put right where others spelled it against the rules."""

_Bytes = bytes | bytearray | memoryview


def parse_array(
    zarray: _Bytes, zattrs: _Bytes | None = None, *, allow_pickle: bool | None = False
) -> ArraySpec:
    """The array that ``.zarray`` and ``.zattrs`` describe; keys we do not know are ignored.

    Errors as :func:`tensorstash.formats.zarr3.parse`. Object arrays stored with the
    ``pickle`` filter run code when read, and are refused unless ``allow_pickle``; ``None`` is
    for who decodes no chunk: they are told what it is, and its filters refuse to run.
    """
    return _array(decode(zarray, ARRAY), _attributes(zattrs), allow_pickle)


def parse_group(
    zgroup: _Bytes, zattrs: _Bytes | None = None, zmetadata: _Bytes | None = None
) -> GroupDocument:
    """The group that ``.zgroup``, ``.zattrs`` and, at a root, ``.zmetadata`` describe."""
    document = decode(zgroup, GROUP)
    _check_version(document, GROUP)
    members = None if zmetadata is None else _consolidated(zmetadata)
    return GroupDocument(_attributes(zattrs), members, 2, document)


def parse_documents(
    documents: Mapping[str, Any], *, allow_pickle: bool | None = False
) -> tuple[Literal["array"], ArraySpec] | tuple[Literal["group"], GroupDocument]:
    """What a member of a consolidated group is: ``documents`` maps ``.zarray`` and so on to
    decoded documents."""
    for key, document in documents.items():
        if not isinstance(document, dict):
            raise Invalid(f"{key} in {CONSOLIDATED} holds {short(document)}, not an object")
    attributes = documents.get(ATTRS, {})
    if ARRAY in documents:
        return "array", _array(documents[ARRAY], attributes, allow_pickle)
    if GROUP not in documents:
        raise Invalid(f"{CONSOLIDATED} has a member with neither {ARRAY} nor {GROUP}")
    _check_version(documents[GROUP], GROUP)
    return "group", GroupDocument(attributes, None, 2, documents[GROUP])


def _array(
    document: Mapping[str, Any], attributes: Mapping[str, Any], allow_pickle: bool | None
) -> ArraySpec:
    _check_version(document, ARRAY)
    return guarded(ARRAY, lambda: _spec(document, attributes, allow_pickle))


def _spec(
    document: Mapping[str, Any], attributes: Mapping[str, Any], allow_pickle: bool | None
) -> ArraySpec:
    for key in ("shape", "chunks", "dtype"):
        if key not in document:
            raise Invalid(f"{ARRAY} has no {key!r}")
    shape = lengths(document["shape"], "shape", 0)
    compressor = document.get("compressor")
    filters = document.get("filters") or []
    if not isinstance(filters, list) or not all(_is_codec(item) for item in filters):
        raise Invalid(f"filters are {short(filters)}, not null or a list of objects with an id")
    if compressor is not None and not _is_codec(compressor):
        raise Invalid(f"compressor is {short(compressor)}, not null or an object with an id")
    if compressor is not None and compressor["id"] in OBJECT_CODECS:
        filters, compressor = [*filters, compressor], None
    stored = from_v2(document["dtype"], filters)
    dtype = stored if stored.kind in "TO" else dtypes.native(stored)
    order = document.get("order", "C")
    separator = document.get("dimension_separator", ".")
    if order not in ("C", "F"):
        raise Invalid(f"order is {short(order)}; it is 'C' or 'F'")
    if separator not in ("/", "."):
        raise Invalid(f"dimension_separator is {short(separator)}; it is '/' or '.'")
    value = document.get("fill_value")
    objects = dtype.kind == "O" and not any(f["id"] == "vlen-bytes" for f in filters)
    if objects:
        # zarr-python leaves what has no fill value None. Categories have a text for that.
        text = value is None and any(f["id"] == "categorize" for f in filters)
        fill = fills.of_object("" if text else value)
    elif value is None:
        fill = fills.undefined(dtype)
    else:
        fill = fills.from_json(value, stored, 2).astype(dtype)
    fill.setflags(write=False)
    return ArraySpec(
        shape=shape,
        dtype=dtype,
        grid=Grid.regular(edges(document["chunks"], "chunks", shape)),
        codecs=chain(
            stored,
            len(shape),
            order=order,
            filters=filters,
            compressor=compressor,
            allow_pickle=allow_pickle,
        ),
        fill=fill,
        keys=KeyEncoding("v2", separator),
        dimension_names=_dimension_names(attributes, len(shape)),
        attributes=attributes,
        zarr_format=2,
        fill_defined=value is not None,
        document=document,
    )


def array_document(spec: ArraySpec) -> dict[str, Any]:
    """The ``.zarray`` of ``spec``; attributes are :func:`attributes_document`'s.

    A spec that was read keeps its stored document with the shape brought up to date.
    :class:`~tensorstash.errors.Unsupported` when v2 cannot spell the chain.
    """
    if spec.document:
        document = {**spec.document, "shape": list(spec.shape)}
        if spec.grid.chunks is not None:  # zarr-python's edges of 0
            document["chunks"] = list(spec.grid.chunks)
        plain = spec.dtype.kind in "biu" or fills.quoted(document.get("fill_value"))
        if plain and spec.dtype.kind in _NUMBERS and spec.fill_defined:
            document["fill_value"] = fills.to_json(spec.fill, spec.dtype, 2)
        document["filters"] = document.get("filters") or None
        return document
    if spec.grid.chunks is None:
        raise Unsupported("Zarr v2 has no chunks of differing shapes; use zarr_format=3")
    if spec.keys.name != "v2":
        raise Unsupported("Zarr v2 has no 'default' chunk keys; use KeyEncoding('v2', ...)")
    bound = Pipeline(spec.codecs, spec.chunk_spec(spec.grid.chunks)).codecs
    found = described(bound, spec.dtype, spec.ndim)
    stored = found.pop("stored")
    fill = spec.fill if spec.dtype.kind in "TO" else spec.fill.astype(stored)
    return {
        "zarr_format": 2,
        "shape": list(spec.shape),
        "chunks": list(spec.grid.chunks),
        **found,
        "fill_value": fills.to_json(fill, stored, 2) if spec.fill_defined else None,
        "dimension_separator": spec.keys.separator,
    }


def attributes_document(spec: ArraySpec) -> dict[str, Any]:
    """The ``.zattrs`` of ``spec``, with the axes' names where xarray looks for them."""
    names = spec.dimension_names
    if names is None or None in names:
        return dict(spec.attributes)
    return {**spec.attributes, DIMENSIONS: list(names)}


def group_document(group: GroupDocument) -> dict[str, Any]:
    """The ``.zgroup`` of ``group``."""
    return {**group.document, "zarr_format": 2}


def consolidated_document(members: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The ``.zmetadata`` of a root: ``members`` maps each path (``""`` for the root) to its
    documents by file name."""
    return {
        "zarr_consolidated_format": 1,
        "metadata": {
            f"{path}/{name}" if path else name: dict(document)
            for path, documents in members.items()
            for name, document in documents.items()
        },
    }


def _consolidated(data: _Bytes) -> Members:
    document = read2(data, CONSOLIDATED, (ARRAY, GROUP, ATTRS))
    members = document.get("metadata")
    if document.get("zarr_consolidated_format") != 1 or not isinstance(members, Members):
        raise Invalid(f"{CONSOLIDATED} is not consolidated metadata of format 1")
    return members


def _attributes(data: _Bytes | None) -> dict[str, Any]:
    return {} if data is None else decode(data, ATTRS)


def _dimension_names(attributes: Mapping[str, Any], ndim: int) -> tuple[str | None, ...] | None:
    names = attributes.get(DIMENSIONS)
    if isinstance(names, list) and len(names) == ndim and all(isinstance(n, str) for n in names):
        return tuple(names)
    return None


def _check_version(document: Mapping[str, Any], name: str) -> None:
    version = document.get("zarr_format")
    if type(version) is not int or version != 2:
        raise Unsupported(f"{name} has zarr_format {short(version)}; 2 is what can be read")


def _is_codec(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str)
