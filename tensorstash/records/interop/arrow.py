"""Columns as an Arrow table over the same memory, and back.

======================  ==========================================================
a field of              is in Arrow
======================  ==========================================================
numbers                 the type of that name; bfloat16 and float8 as float
datetime64              ``timestamp``, ``date32`` for days and longer; NaT as null
timedelta64             ``duration``
one axis, ``(k,)``      ``fixed_size_list``
more, ``(h, w)``        ``fixed_shape_tensor``, or lists within lists
ragged                  ``large_list``, one within another for each axis
text, JSON              ``string``
bytes                   ``binary``; of one size, ``fixed_size_binary``
fields within a field   ``struct``
======================  ==========================================================

Numbers, ragged ones too, are not copied. Complex numbers have no Arrow type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...columns import Columns, Ragged, nested, offsets_of
from ...dtype import STRING
from ...errors import Invalid, Unsupported, counted, short
from ..schema import Field
from .dtypes import common_dtype, optional_package, split_structured, time_zone_error


def to_arrow(columns: Columns, fields: Mapping[str, Field], target: str = "Arrow") -> Any:
    """A ``pyarrow.Table``, or what ``target``, polars, takes as one without loss: there elements
    of several axes are lists within lists. ``fields`` tell what lists hold."""
    pa = optional_package("pyarrow")
    columns = split_structured(columns)
    made = {}
    for path, column in columns.items():
        try:
            made[path] = _array(pa, path, column, fields.get(path), target)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise Unsupported(f"field {path!r} has no Arrow form: {error}") from error
    arrays = {name: _struct(pa, value) for name, value in nested(made).items()}
    return pa.Table.from_arrays(list(arrays.values()), names=list(arrays))


def from_arrow(found: Any, whole: Collection[str] = ()) -> Columns:
    """The columns of a ``pyarrow.Table`` or ``RecordBatch``, by path; numbers are not copied
    where a column is one chunk. What is nested at the paths ``whole`` becomes Python objects."""
    out: Columns = {}
    if len(set(found.column_names)) < found.num_columns:
        raise Invalid(f"columns of one name: {short(found.column_names)}; rename one of them")
    for name in found.column_names:
        out |= from_arrow_array(name, found.column(name), whole)
    return out


def from_arrow_array(path: str, array: Any, whole: Collection[str] = ()) -> Columns:
    """The columns within one Arrow array: several where it is a ``struct``, unless ``whole``."""
    pa = optional_package("pyarrow")
    if isinstance(array, pa.ChunkedArray):
        array = (
            array.chunk(0)
            if array.num_chunks == 1
            else pa.concat_arrays(array.chunks or [pa.array([], array.type)])
        )
    if path in whole and pa.types.is_nested(array.type):
        return {path: array.to_pylist()}
    if pa.types.is_struct(array.type):
        _check_complete(path, array)
        out: Columns = {}
        for part, inner in zip(array.type, array.flatten(), strict=True):
            out |= from_arrow_array(f"{path}/{part.name}", inner, whole)
        return out
    return {path: _column(pa, path, array)}


# -- to Arrow -------------------------------------------------------------------------


def _struct(pa: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    arrays = [_struct(pa, inner) for inner in value.values()]
    return pa.StructArray.from_arrays(arrays, names=list(value))


def _array(pa: Any, path: str, column: Any, field: Field | None, target: str) -> Any:
    if isinstance(column, Ragged):
        return _ragged(pa, path, column, target)
    if isinstance(column, np.ndarray):
        return _elements(pa, path, column, target)
    if field.kind == "bytes" if field else column and all(type(v) is bytes for v in column):
        return _texts(pa, column, pa.binary(), pa.large_binary())
    if field is not None and field.kind == "object":
        raise Unsupported(f"field {path!r} holds Python objects, which Arrow cannot; deselect it")
    try:
        texts = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in column]
    except (TypeError, ValueError, RecursionError) as error:
        raise Unsupported(f"field {path!r} has no JSON form for Arrow: {error}") from error
    return _texts(pa, texts, pa.string(), pa.large_string())


def _elements(pa: Any, path: str, column: NDArray[Any], target: str) -> Any:
    flat, shape = _flat_array(pa, path, column.reshape(-1), target), column.shape[1:]
    if not shape:
        return flat
    if not math.prod(shape):
        raise Unsupported(f"field {path!r}: Arrow has no elements of shape {shape}; deselect it")
    if target == "Arrow" and len(shape) > 1:
        storage = pa.FixedSizeListArray.from_arrays(flat, math.prod(shape))
        kind = pa.fixed_shape_tensor(flat.type, shape)
        return pa.ExtensionArray.from_storage(kind, storage)
    for n in reversed(shape):
        flat = pa.FixedSizeListArray.from_arrays(flat, n)
    return flat


def _ragged(pa: Any, path: str, column: Ragged, target: str) -> Any:
    made = _flat_array(pa, path, column.values, target)
    for axis in reversed(range(1, column.ndim)):
        # Along each axis, as many lists as the axes before it have places.
        places = np.prod(column.shapes[:, :axis], axis=1, dtype=np.int64)
        offsets = offsets_of(np.repeat(column.shapes[:, axis], places))
        made = pa.LargeListArray.from_arrays(pa.array(offsets), made)
    offsets = column.offsets if column.ndim == 1 else offsets_of(column.shapes[:, 0])
    return pa.LargeListArray.from_arrays(pa.array(offsets), made)


def _flat_array(pa: Any, path: str, flat: NDArray[Any], target: str) -> Any:
    kind = flat.dtype.kind
    if kind == "c":
        raise Unsupported(f"field {path!r}: Arrow has no complex numbers; deselect it")
    if kind in "TU":
        return _texts(pa, flat.tolist(), pa.string(), pa.large_string())
    if kind in "SO":
        return _texts(pa, flat.tolist(), pa.binary(), pa.large_binary())
    plain = common_dtype(path, flat, target)
    if plain.dtype.kind == "V" and plain.dtype.names is None:
        memory = pa.py_buffer(np.ascontiguousarray(plain))
        size = plain.dtype.itemsize
        return pa.Array.from_buffers(pa.binary(size), len(plain), [None, memory])
    made = pa.array(plain)
    # Days are counted in 32 bits there, and pyarrow lets them wrap around.
    if pa.types.is_date32(made.type) and not np.array_equal(
        made.to_numpy(zero_copy_only=False), plain, equal_nan=True
    ):
        raise Unsupported(f"field {path!r}: days that Arrow cannot hold; cast them")
    return made


def _texts(pa: Any, values: list[Any], kind: Any, larger: Any) -> Any:
    made = pa.array(values, kind)
    # More than 2 GiB of it come in several chunks.
    return pa.array(values, larger) if isinstance(made, pa.ChunkedArray) else made


# -- from Arrow -----------------------------------------------------------------------


def _column(pa: Any, path: str, array: Any) -> Any:
    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(pa, path, array)
    if types.is_dictionary(kind):
        return _column(pa, path, array.dictionary_decode())
    if types.is_timestamp(kind) and kind.tz is not None:
        raise time_zone_error(path, kind.tz)
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_duration(kind):
        return array.to_numpy(zero_copy_only=False)
    _check_complete(path, array)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return array.to_numpy(zero_copy_only=not types.is_boolean(kind))
    if types.is_fixed_size_list(kind):
        inner, n = _column(pa, path, array.flatten()), kind.list_size
        if isinstance(inner, np.ndarray):
            return inner.reshape(len(array), n, *inner.shape[1:])
    elif types.is_list(kind) or types.is_large_list(kind):
        return _lists(pa, path, array)
    elif types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view":
        return np.array(array.to_pylist(), STRING)
    elif types.is_decimal(kind) or types.is_time(kind) or types.is_interval(kind):
        raise Unsupported(f"field {path!r}: {kind} has no stored form; cast it to a number")
    return array.to_pylist()


def _lists(pa: Any, path: str, array: Any) -> Any:
    if _bottom(pa, array.type) is None:
        return array.to_pylist()
    starts = array.offsets.to_numpy().astype(np.int64, copy=False)
    offsets = starts - starts[0] if starts[0] else starts
    inner = _column(pa, path, array.flatten())
    sizes = np.diff(offsets)
    if isinstance(inner, Ragged):
        return _deeper(path, inner, offsets)
    if not isinstance(inner, np.ndarray) or inner.dtype.kind in "TO":
        return [list(inner[a:b]) for a, b in pairwise(offsets)]
    element = inner.shape[1:]
    if not element:
        return Ragged(inner, offsets)
    shapes = np.column_stack([sizes, *(np.full(len(sizes), n) for n in element)])
    return Ragged(inner.reshape(-1), offsets * math.prod(element), shapes)


def _bottom(pa: Any, kind: Any) -> Any:
    """The type at the bottom of lists; ``None`` where it is a struct, or no plain type."""
    while hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        kind = kind.value_type
    return None if pa.types.is_nested(kind) else kind


def _deeper(path: str, inner: Ragged, offsets: NDArray[np.int64]) -> Ragged:
    """Rows made of rows: each of one shape, or they are no array."""
    sizes = np.diff(offsets)
    shapes = np.zeros((len(sizes), inner.ndim + 1), np.int64)
    shapes[:, 0] = sizes
    filled = sizes > 0
    shapes[filled, 1:] = inner.shapes[offsets[:-1][filled]]
    if not np.array_equal(np.repeat(shapes[:, 1:], sizes, axis=0), inner.shapes):
        raise Invalid(f"field {path!r}: lists of different lengths within a row are no array")
    return Ragged(inner.values, inner.offsets[offsets], shapes)


def _extension(pa: Any, path: str, array: Any) -> Any:
    name = array.type.extension_name
    _check_complete(path, array)
    found = _column(pa, path, array.storage)
    if name == "arrow.json":
        try:
            return [json.loads(text) for text in found]
        except (TypeError, ValueError, RecursionError) as error:
            raise Invalid(f"field {path!r} holds text that is not JSON: {error}") from error
    if name == "arrow.fixed_shape_tensor" and isinstance(found, np.ndarray):
        order = array.type.permutation
        found = found.reshape(len(array), *array.type.shape)
        return found if not order else found.transpose(0, *(1 + axis for axis in order))
    return found


def _check_complete(path: str, array: Any) -> None:
    if array.null_count:
        raise Invalid(
            f"field {path!r} has {counted(array.null_count, 'missing value')}; fill them first"
        )
