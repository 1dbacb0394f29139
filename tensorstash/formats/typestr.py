"""How Zarr v2 spells data types: NumPy typestrs and lists of fields."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

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
from ..errors import Invalid, Unsupported, counted, short

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
