"""Zarr v3: ``zarr.json`` to :class:`~tensorstash.metadata.spec.ArraySpec` and back.

Read: all of Zarr v3 core 3.1 with the registered extensions, and what zarr-python 3.0 and
3.1 wrote differently. Written: the v3.0 object form of every codec, explicit ``endian``, no
shorthand and no null keys, which is what zarr-python and TensorStore both open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, cast

from .. import dtype as dtypes
from .. import fill as fills
from ..codec import Codec, Pipeline
from ..errors import Invalid, Unsupported, counted, short
from ..indexing.grid import AxisGrid, Grid, RectilinearAxis, RegularAxis
from ..registry import extension, parse_codecs
from . import mark
from .consolidated import Members, read
from .document import (
    MAX_LENGTH,
    GroupDocument,
    attributes,
    edges,
    encode,
    guarded,
    lengths,
    refuse_unknown,
)
from .spec import ArraySpec, KeyEncoding

__all__ = [
    "IN_PLACE",
    "KEY",
    "array_document",
    "check_listed",
    "encode",
    "group_document",
    "parse",
    "parse_document",
]

KEY: Final = "zarr.json"
"""The key of a node's document below the node's prefix."""

EDGE_LIMIT: Final = 1 << 22
"""Most chunks in a rectilinear grid, along all its axes together: who orders chunks lists them."""

RUN_LIMIT: Final = 1 << 20
"""Most runs of equal chunks in a rectilinear grid, along all its axes together."""

IN_PLACE: Final = "tensorstash_in_place"
"""The attribute, ``true``, of an array whose chunks are written in place. An attribute, as every
reader of Zarr has them and keeps them where it changes others."""

_ARRAY_KEYS: Final = (
    *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding"),
    *("fill_value", "codecs", "attributes", "storage_transformers", "dimension_names"),
)
_REQUIRED: Final = _ARRAY_KEYS[2:8]
_GROUP_KEYS: Final = ("zarr_format", "node_type", "attributes", "consolidated_metadata")

Node = tuple[Literal["array"], ArraySpec] | tuple[Literal["group"], GroupDocument]


def parse(data: bytes | bytearray | memoryview) -> Node:
    """What the ``zarr.json`` in ``data`` describes: an array or a group.

    :class:`~tensorstash.errors.Corrupt` when it is not JSON or is marked as unfinished,
    :class:`~tensorstash.errors.Invalid` when it breaks the specification, and
    :class:`~tensorstash.errors.Unsupported` when it asks for what we do not know.
    """
    return parse_document(read(data, KEY))


def parse_document(document: Mapping[str, Any]) -> Node:
    """:func:`parse` for a document already decoded (consolidated metadata, say)."""
    version = document.get("zarr_format")
    if type(version) is not int or version != 3:
        raise Unsupported(f"{KEY} has zarr_format {short(version)}; 3 is what can be read")
    mark.refuse(document, KEY)
    kind = document.get("node_type")
    if kind == "array":
        return "array", guarded(KEY, lambda: _array(document))
    if kind == "group":
        return "group", _group(document)
    raise Invalid(f"{KEY} has node_type {short(kind)}; it must be 'array' or 'group'")


def _array(document: Mapping[str, Any]) -> ArraySpec:
    refuse_unknown(document, _ARRAY_KEYS, KEY)
    for key in _REQUIRED:
        if key not in document:
            raise Invalid(f"{KEY} of an array has no {key!r}")
    if document["fill_value"] is None:
        raise Invalid(f"{KEY}: fill_value cannot be null in Zarr v3")
    _refuse_transformers(document.get("storage_transformers"))
    shape = lengths(document["shape"], "shape", 0)
    dtype = dtypes.from_v3(document["data_type"])
    found = attributes(document, KEY)
    spec = ArraySpec(
        shape=shape,
        dtype=dtype,
        grid=_grid(document["chunk_grid"], shape),
        codecs=parse_codecs(document["codecs"]),
        fill=fills.from_json(document["fill_value"], dtype, 3),
        keys=_key_encoding(document["chunk_key_encoding"]),
        dimension_names=_dimension_names(document.get("dimension_names"), len(shape)),
        attributes=found,
        zarr_format=3,
        document=document,
    )
    if found.get(IN_PLACE) is not True or spec.misfit_in_place() is not None:
        return spec
    own = {name: value for name, value in found.items() if name != IN_PLACE}
    return replace(spec, attributes=own, in_place=True)


def _group(document: Mapping[str, Any]) -> GroupDocument:
    refuse_unknown(document, _GROUP_KEYS, KEY)
    return GroupDocument(
        attributes=attributes(document, KEY),
        consolidated=_consolidated(document.get("consolidated_metadata")),
        zarr_format=3,
        document=document,
    )


def _consolidated(value: Any) -> Mapping[str, Mapping[str, Any]] | None:
    if value is None:  # zarr-python before 3.1.4 wrote null
        return None
    if not isinstance(value, dict):
        raise Invalid(f"consolidated_metadata is {short(value)}, not an object")
    if value.get("kind", "inline") != "inline":
        if value.get("must_understand") is False:
            return None
        raise Unsupported(f"consolidated_metadata of kind {short(value['kind'])}; 'inline' is read")
    members = value.get("metadata")
    if not isinstance(members, Mapping):
        raise Invalid("consolidated_metadata has no 'metadata' that maps paths to documents")
    return members


def _required(value: Any, what: str, known: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """An extension that cannot be optional, with nothing but ``known`` configuration keys."""
    name, configuration, optional = extension(value, what)
    if optional:
        raise Invalid(f"{what} cannot be optional: remove its must_understand")
    for key in configuration:
        if key not in known:
            raise Invalid(f"{what} {short(name)} has an unknown option {short(key)}")
    return name, configuration


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) else value


def _grid(value: Any, shape: tuple[int, ...]) -> Grid:
    name, configuration = _required(value, "chunk_grid", ("chunk_shape", "kind", "chunk_shapes"))
    if name == "regular":
        return Grid.regular(edges(configuration.get("chunk_shape"), "chunk_shape", shape))
    if name != "rectilinear":
        raise Unsupported(f"chunk_grid {short(name)}; 'regular' and 'rectilinear' are read")
    if configuration.get("kind") != "inline":
        raise Unsupported(f"rectilinear chunk_grid of kind {short(configuration.get('kind'))}")
    axes = configuration.get("chunk_shapes")
    if not isinstance(axes, list) or len(axes) != len(shape):
        raise Invalid(f"chunk_shapes is {short(axes)}, not a list with one entry for each axis")
    if sum(len(axis) for axis in axes if isinstance(axis, list)) > RUN_LIMIT:
        raise Unsupported(f"a rectilinear chunk_grid of more than {RUN_LIMIT} runs of chunks")
    grid = Grid(tuple(_axis(axis, n) for axis, n in zip(axes, shape, strict=True)))
    check_listed(grid)
    return grid


def check_listed(grid: Grid) -> None:
    """:class:`~tensorstash.errors.Unsupported` where a grid lists more chunks than are read, or
    longer axes."""
    listed = [axis.runs for axis in grid.axes if isinstance(axis, RectilinearAxis)]
    if sum(map(len, listed)) > RUN_LIMIT:
        raise Unsupported(f"a rectilinear chunk_grid of more than {RUN_LIMIT} runs of chunks")
    if sum(count for runs in listed for _, count in runs) > EDGE_LIMIT:
        raise Unsupported(f"a rectilinear chunk_grid of more than {EDGE_LIMIT} chunks on its axes")
    if any(sum(edge * count for edge, count in runs) > MAX_LENGTH for runs in listed):
        raise Unsupported(f"a rectilinear chunk_grid whose chunks add up to more than {MAX_LENGTH}")


def _axis(value: Any, length: int) -> AxisGrid:
    if type(value) is int and 1 <= value <= MAX_LENGTH:
        return RegularAxis(value)
    if not isinstance(value, list):
        raise Invalid(f"chunk_shapes has {short(value)}; each is an integer or a list")
    found: list[tuple[int, int]] = []
    total = 0
    for item in value:
        run = item if isinstance(item, list) else [item, 1]
        if len(run) != 2 or any(type(n) is not int or not 1 <= n <= MAX_LENGTH for n in run):
            raise Invalid(f"chunk_shapes has {short(item)}; each is an edge or [edge, count]")
        found.append((run[0], run[1]))
        total += run[0] * run[1]
    if not length <= total <= MAX_LENGTH:
        raise Invalid(f"chunk_shapes add up to {total} along an axis of {length}")
    return RectilinearAxis(found)


def _key_encoding(value: Any) -> KeyEncoding:
    name, configuration = _required(value, "chunk_key_encoding", ("separator",))
    if name not in ("default", "v2"):
        raise Unsupported(f"chunk_key_encoding {short(name)}; 'default' and 'v2' are known")
    separator = configuration.get("separator", "/" if name == "default" else ".")
    if separator not in ("/", "."):
        raise Invalid(f"chunk_key_encoding separator {short(separator)}; it is '/' or '.'")
    return KeyEncoding(cast('Literal["default", "v2"]', name), cast('Literal["/", "."]', separator))


def _dimension_names(value: Any, ndim: int) -> tuple[str | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(n is None or isinstance(n, str) for n in value):
        raise Invalid(f"dimension_names {short(value)} are not a list of names and nulls")
    if len(value) != ndim:
        raise Invalid(
            f"dimension_names has {counted(len(value), 'name')} for {counted(ndim, 'axis', 'axes')}"
        )
    return tuple(value)


def _refuse_transformers(value: Any) -> None:
    if value is None or value == []:
        return
    if not isinstance(value, list):
        raise Invalid(f"storage_transformers are {short(value)}, not a list")
    for item in value:
        name, _, optional = extension(item, "storage transformer")
        if not optional:
            raise Unsupported(f"storage transformer {short(name)}; none is known")


def array_document(spec: ArraySpec) -> dict[str, Any]:
    """The ``zarr.json`` of ``spec``.

    A spec that was read keeps its stored document, optional extensions included, with shape,
    attributes and dimension names brought up to date; what others write against the rules
    (null keys, integers spelled ``0.0``) is put right.
    """
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "array", "shape": list(spec.shape)}
    if spec.document:
        document = {**spec.document, "shape": list(spec.shape)}
        plain = spec.dtype.kind in "biu" or fills.quoted(document["fill_value"])
        if plain and spec.dtype.kind in "biufcmM":
            document["fill_value"] = fills.to_json(spec.fill, spec.dtype, 3)
        if _name(document["chunk_grid"]) == "regular":  # zarr-python's edges of 0
            document["chunk_grid"] = spec.grid.document()
    else:
        document |= {
            "data_type": dtypes.to_v3(spec.dtype),
            "chunk_grid": spec.grid.document(),
            "chunk_key_encoding": {
                "name": spec.keys.name,
                "configuration": {"separator": spec.keys.separator},
            },
            "fill_value": fills.to_json(spec.fill, spec.dtype, 3),
            "codecs": [step.document() for step in _bound(spec)],
        }
    document["attributes"] = (
        {**spec.attributes, IN_PLACE: True} if spec.in_place else dict(spec.attributes)
    )
    names = spec.dimension_names
    document["dimension_names"] = None if names is None else list(names)
    for key in ("dimension_names", "storage_transformers"):
        if document.get(key) is None:
            document.pop(key, None)
    return document


def _bound(spec: ArraySpec) -> tuple[Codec, ...]:
    """The chain as it is written: with every configuration that depends on the chunk filled in."""
    shape = spec.grid.chunk_shape((0,) * spec.ndim)
    return Pipeline(spec.codecs, spec.chunk_spec(shape)).codecs


def group_document(group: GroupDocument) -> dict[str, Any]:
    """The ``zarr.json`` of ``group``, keeping what of a stored one we do not interpret."""
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", **group.document}
    document["attributes"] = dict(group.attributes)
    document.pop("consolidated_metadata", None)
    if group.consolidated is not None:
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(Members.of(group.consolidated).stored()),
        }
    return document
