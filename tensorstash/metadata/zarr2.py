"""Zarr v2: ``.zarray``, ``.zattrs``, ``.zgroup`` to specs and back.

A v2 array becomes the chain that v3 would spell: order ``F`` is a transpose, the typestr's
byte order belongs to the ``bytes`` codec, filters become the serializer, the compressor
comes last (Zarr v2 specification, "Metadata").
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from .. import dtype as dtypes
from .. import fill as fills
from ..codec import Codec, Pipeline, reason, split
from ..dtype import (
    DEPTH_LIMIT,
    EXTENDED,
    ITEM_LIMIT,
    OBJECT,
    STRING,
    check_size,
    extended,
    is_extended,
    native,
    parts,
    record,
)
from ..errors import Invalid, StashError, Unsupported, counted, short
from ..indexing.grid import Grid
from ..registry import foreign, make
from .consolidated import Members, read2
from .document import GroupDocument, decode, edges, encode, guarded, lengths
from .spec import ArraySpec, KeyEncoding

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

    Errors as :func:`tensorstash.metadata.zarr3.parse`. Object arrays stored with the
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


# -- order, filters and compressor as a chain of codecs, and back ----------------------


SERIALIZED: Final = ("vlen-utf8", "vlen-bytes")
"""Filters that are an array -> bytes codec of v3 too."""

ARRAY_TO_BYTES: Final = ("pcodec", "zfpy")
"""Compressors that take a chunk as an array: the last of its filters, to us."""

_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "blosc": {"cname": "lz4", "clevel": 5, "shuffle": 1},
    "gzip": {"level": 1},
    "zstd": {"level": 0},
}
"""Compressors that are v3 codecs too, with what numcodecs assumes where they say nothing."""

_SHUFFLES: Final = ("noshuffle", "shuffle", "bitshuffle")


def chain(
    stored: np.dtype[Any],
    ndim: int,
    *,
    order: str = "C",
    filters: Sequence[Mapping[str, Any]] | None = None,
    compressor: Mapping[str, Any] | None = None,
    allow_pickle: bool | None = False,
) -> tuple[Codec, ...]:
    """The codecs of a v2 array whose elements are ``stored`` (byte order included).

    ``filters`` and ``compressor`` are numcodecs configurations, ``{"id": ..., ...}``.
    """
    made: list[Codec] = []
    filters = [dict(item) for item in filters or ()]
    if compressor is not None and compressor["id"] in ARRAY_TO_BYTES:
        filters, compressor = [*filters, dict(compressor)], None
    if order == "F" and ndim > 1:
        made.append(make("transpose", {"order": list(range(ndim))[::-1]}))
    orders = _byte_orders(stored)
    if len(filters) == 1 and filters[0]["id"] in SERIALIZED and stored.kind in "TO":
        made.append(make(filters[0]["id"], {}))
    elif filters or len(orders) > 1:
        swapped = stored.kind not in "TO" and stored != dtypes.native(stored)
        made.append(_foreign("Filters", filters, stored if swapped else None, allow_pickle))
    else:
        made.append(make("bytes", {"endian": "big" if ">" in orders else "little"}))
    if compressor is not None and compressor["id"] in _DEFAULTS:
        options = {**_DEFAULTS[compressor["id"]], **compressor}
        made.append(make(compressor["id"], _foreign("as_numcodecs", options.pop("id"), options)))
    elif compressor is not None:
        made.append(_foreign("wrap", dict(compressor)))
    return tuple(made)


def _foreign(name: str, *arguments: Any) -> Any:
    try:
        made = getattr(foreign(), name)(*arguments)
    except (StashError, RecursionError, MemoryError):
        raise
    except Exception as error:  # numcodecs raises what it likes
        what = short(arguments[0])
        detail = reason(error)
        raise Invalid(f"filters or compressor {what} cannot be: {detail}") from error
    return made


def _byte_orders(dtype: np.dtype[Any]) -> set[str]:
    if dtype.subdtype is not None:
        return _byte_orders(dtype.subdtype[0])
    if dtype.names is not None:
        return set().union(*(_byte_orders(part) for _, part in dtypes.parts(dtype)))
    if dtype.itemsize == 1 or dtype.kind in "TO":
        return set()
    if dtypes.is_extended(dtype):
        return {"<"}  # bfloat16, which no typestr spells: TensorStore stores it little-endian
    return {dtype.str[0]} - {"|"}


def described(codecs: Sequence[Codec], dtype: np.dtype[Any], ndim: int) -> dict[str, Any]:
    """A bound chain as v2 spells it: the inverse of :func:`chain`.

    Returns the ``stored`` dtype and the document's ``dtype``, ``order``, ``filters`` and
    ``compressor``; :class:`~tensorstash.errors.Unsupported` when v2 cannot spell the chain.
    """
    arrays, serializer, tail = split(codecs)
    if any(step.configuration().get("order") != list(range(ndim))[::-1] for step in arrays[:1]):
        raise _unspelled(arrays[0])
    if len(arrays) > 1:
        raise _unspelled(arrays[1])
    endian = serializer.configuration().get("endian", "little")
    stored = dtype.newbyteorder(">") if endian == "big" else dtype
    filters: list[dict[str, Any]] = []
    if serializer.name in SERIALIZED:
        filters.append({"id": serializer.name})
    elif serializer.name != "bytes":
        configs = getattr(serializer, "configs", None)
        if configs is None:
            raise _unspelled(serializer)
        filters.extend(dict(config) for config in configs)
        stored = getattr(serializer, "stored", None) or dtype
    steps = [_configuration(step) for step in tail]
    if not steps and filters and filters[-1]["id"] in ARRAY_TO_BYTES:
        steps.append(filters.pop())  # where zarr-python and zarrs look for it
    return {
        "stored": stored,
        "dtype": to_v2(stored, endian),
        "order": "F" if arrays else "C",
        "filters": [*filters, *steps[:-1]] or None,
        "compressor": steps[-1] if steps else None,
    }


def _configuration(step: Codec) -> dict[str, Any]:
    """A bytes -> bytes codec as numcodecs configures it."""
    options = step.configuration()
    options.pop("id", None)
    if step.name == "blosc":
        options["shuffle"] = _SHUFFLES.index(options.get("shuffle", "shuffle"))
        options.pop("typesize", None)
    elif step.name not in ("zstd", "gzip", "crc32c") and not step.name.startswith("numcodecs."):
        raise _unspelled(step)
    return {"id": step.name.removeprefix("numcodecs."), **options}


def _unspelled(step: Codec) -> Unsupported:
    return Unsupported(f"Zarr v2 cannot spell codec {step!r}; use zarr_format=3")


# -- dtypes ----------------------------------------------------------------------------


OBJECT_CODECS: Final = frozenset(
    ["vlen-utf8", "vlen-bytes", "vlen-array", "json2", "pickle", "msgpack2", "categorize"]
)
"""numcodecs ids that turn objects into bytes (Zarr v2)."""


def to_v2(dtype: np.dtype[Any], endian: str = sys.byteorder) -> Any:
    """The ``dtype`` of a Zarr v2 document: a typestr with byte order, or a list of fields."""
    if dtype.kind in "TO":
        return "|O"
    if is_extended(dtype):
        return dtype.name  # as TensorStore writes it
    if dtype.names is not None:
        return [_field_v2(name, part, endian) for name, part in parts(dtype)]
    if dtype.isnative and dtype.byteorder != "|":
        dtype = dtype.newbyteorder(">" if endian == "big" else "<")
    return dtype.str


def _field_v2(name: str, dtype: np.dtype[Any], endian: str) -> list[Any]:
    if dtype.subdtype is None:
        return [name, to_v2(dtype, endian)]
    base, shape = dtype.subdtype
    return [name, to_v2(base, endian), list(shape)]


def from_v2(value: Any, filters: Sequence[Mapping[str, Any]] | None = None) -> np.dtype[Any]:
    """The dtype of a Zarr v2 document, in its *stored* byte order: see :func:`native`.

    ``|O`` is told by the object codec among ``filters``: ``vlen-utf8`` gives text, any other
    gives ``object``; without one it cannot be read.
    """
    if value == "|O":
        ids = [item.get("id") for item in filters or () if item.get("id") in OBJECT_CODECS]
        if not ids:
            raise Unsupported(
                "dtype '|O' without an object codec such as vlen-utf8 among the filters"
            )
        return STRING if ids[0] == "vlen-utf8" else OBJECT
    dtype = _from_v2(value, 0)
    native(dtype)  # refuses what cannot be held
    return dtype


def _from_v2(value: Any, depth: int) -> np.dtype[Any]:
    if depth > DEPTH_LIMIT:
        raise Unsupported(f"dtype nests records deeper than {DEPTH_LIMIT} levels")
    if isinstance(value, str) and value in EXTENDED:
        return extended(value)
    if isinstance(value, str):
        match = re.fullmatch(r"([<>|])([biufcmMSUV])(\d*)(\[\d*[A-Za-zμ]+\])?", value)
        if not match or (match[4] and match[2] not in "mM"):
            raise Invalid(f"dtype {short(value)} is not a typestr such as '<f4' or '|u1'")
        size = int(match[3] or 0) if len(match[3]) < 10 else ITEM_LIMIT + 1
        check_size(size * (4 if match[2] == "U" else 1))
        if not size:
            raise Invalid(f"dtype {value!r} has elements of no bytes")
        try:
            return np.dtype(value)
        except (TypeError, ValueError) as error:
            raise Invalid(f"dtype {short(value)} is not a typestr NumPy knows") from error
    if not isinstance(value, list) or not value:
        raise Invalid(f"dtype {short(value)} is neither a typestr nor a list of fields")
    found = []
    for item in value:
        if not isinstance(item, list) or len(item) not in (2, 3):
            raise Invalid(f"dtype field {short(item)} is not [name, type] or [name, type, shape]")
        part = _from_v2(item[1], depth + 1)
        if len(item) == 3:
            part = _subarray(part, item[2])
        found.append((item[0], part))
    return record(found)


def _subarray(base: np.dtype[Any], shape: Any) -> np.dtype[Any]:
    edges = [shape] if type(shape) is int else shape
    if not isinstance(edges, list) or any(type(n) is not int or n < 1 for n in edges):
        raise Invalid(f"dtype field shape {short(shape)} is not a list of positive integers")
    size = base.itemsize
    for edge in edges:
        size *= edge
        check_size(size)
    if len(edges) > DEPTH_LIMIT:
        raise Unsupported(
            f"a field of {counted(len(edges), 'axis', 'axes')}; the most is {DEPTH_LIMIT}"
        )
    return np.dtype((base, tuple(edges)))
