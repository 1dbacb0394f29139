"""Chunk shapes for the arrays of records: all fields in steps of one number of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..create import make_spec
from ..errors import Invalid, Unsupported, short
from ..loading.source import Touched
from ..metadata.defaults import IN_PLACE_BYTES, CodecsLike, auto_chunks
from ..metadata.spec import ArraySpec
from .catalog import OFFSETS, VALUES, Catalog, values_per_row
from .schema import Field, Fields, chosen, path_of

_LARGE_BYTES = 512 << 10
"""A chunk of the widest field: what arrays take by default."""

_SMALL_BYTES = 32 << 10
"""Chunks of narrow fields hold several times as many rows, up to this: a chunk of 64 labels
would be 512 bytes in an object of its own."""

_VALUES_BYTES = 256 << 10
RAGGED_BYTES = 1024
"""What the values of a ragged row are taken to have."""

_TEXT_BYTES = 256
"""What a row of text, bytes or JSON is taken to have when chunks are chosen."""

NARROW_CACHE = 8 << 20
"""Decoded chunks that are kept of a narrow field: each has the rows of several blocks, and would
be decoded again for every one."""

_MOST_ROWS = 1 << 16
_WIDE_BYTES = 4 << 20
"""From this size on a row is itself cut in chunks."""


def specs(
    fields: Fields,
    rows: int,
    *,
    rows_per_chunk: int | Mapping[Any, int] | None = None,
    rows_per_shard: int | None = None,
    codecs: CodecsLike | Mapping[Any, Any] = "auto",
    fill_value: Any = None,
    in_place: bool = False,
    **unknown: Any,
) -> dict[str, ArraySpec]:
    """The spec of every array of ``fields``, by path.

    ``rows_per_chunk`` is the step: chunks hold it or, where rows are narrow, a power of two times
    it. Left out, it is chosen for about 512 KiB of the widest field. A dict gives it field by
    field, exactly. ``codecs`` and ``fill_value`` are for all fields of numbers, or dicts by field,
    where text may have codecs too; ``codecs=None`` stores everything uncompressed. ``in_place``:
    rows are written within stored chunks, for fields of fixed size.
    """
    if unknown:
        raise Invalid(
            f"records have no option {sorted(unknown)[0]!r}; there are rows_per_chunk, "
            "rows_per_shard, codecs, fill_value and in_place"
        )
    exact = _by_field(fields, rows_per_chunk if isinstance(rows_per_chunk, Mapping) else {})
    step = None if isinstance(rows_per_chunk, Mapping) else rows_per_chunk
    for count in (*exact.values(), step, rows_per_shard):
        if count is not None and (type(count) is not int or count < 1):
            raise Invalid(
                f"{short(count)} is not a number of rows for a chunk or shard; the least is 1"
            )
    if in_place:
        _check_in_place(fields, rows_per_shard)
    if step is None:
        step = step_of(fields, IN_PLACE_BYTES if in_place else _LARGE_BYTES)
    chains = _by_field(fields, codecs) if _is_by_field(codecs, fields) else None
    fills = _by_field(fields, fill_value) if isinstance(fill_value, Mapping) else None
    made: dict[str, ArraySpec] = {}
    for path, field in fields.items():
        if field.kind != "fixed" and fills is not None and path in fills:
            raise Invalid(
                f"field {path!r} has no fill value: rows never written are empty; leave it out"
            )
        chain = codecs if chains is None else chains.get(path, "auto")
        if field.dtype.kind in "TO" and chains is None and codecs is not None:
            chain = "auto"  # what compresses numbers may be of no use for text
        fill = fill_value if fills is None else fills.get(path)
        count = exact.get(path) or _rows(step, row_bytes(field))
        try:
            found = _of_field(path, field, rows, count, rows_per_shard, chain, fill, in_place)
            made |= found
        except (Invalid, Unsupported) as error:
            raise type(error)(f"field {path!r}: {error}") from error
    return made


def _of_field(
    path: str,
    field: Field,
    rows: int,
    count: int,
    shard: int | None,
    codecs: Any,
    fill: Any,
    in_place: bool,
) -> dict[str, ArraySpec]:
    if field.kind == "ragged":
        edge = max(1, _VALUES_BYTES // field.dtype.itemsize)
        width = 2 if field.ndim == 1 else 2 + field.ndim
        return {
            f"{path}/{VALUES}": make_spec((0,), field.dtype, chunks=(edge,), codecs=codecs),
            f"{path}/{OFFSETS}": make_spec((rows, width), "int64", chunks=(count, width)),
        }
    shape, dtype = (rows, *field.shape), field.dtype
    inner = field.shape
    if math.prod(inner) * dtype.itemsize >= _WIDE_BYTES:
        inner = auto_chunks(inner, dtype.itemsize)
    inner = tuple(max(1, n) for n in inner)
    if field.kind != "fixed":
        kind = "string" if dtype.kind == "T" else "bytes"
        return {path: make_spec(shape, kind, chunks=(count,), codecs=codecs)}
    chunks = (count, *inner)
    shards = None if shard is None else (-(-shard // count) * count, *inner)
    how = {"chunks": chunks, "shards": shards, "codecs": codecs, "in_place": in_place}
    return {path: make_spec(shape, dtype, fill_value=fill, **how)}


def _check_in_place(fields: Fields, shard: int | None) -> None:
    """Refuse fields and layouts whose rows are not bytes at a place that follows from the row."""
    for path, field in fields.items():
        if field.kind != "fixed":
            raise Invalid(
                f"field {path!r} is {field.kind}: its rows vary in size, and cannot be written in "
                "place; keep it in records of its own, or leave in_place out"
            )
    if shard is not None:
        raise Invalid("rows are written in place within chunks of their own; leave shards out")


def step_of(fields: Fields, nbytes: int = _LARGE_BYTES) -> int:
    """Rows of a chunk of the widest field, of about ``nbytes``."""
    ragged = any(field.kind == "ragged" for field in fields.values())
    widest = max(RAGGED_BYTES if ragged else 1, *map(row_bytes, fields.values()))
    return _power(nbytes // widest)


def fitting(step: int, row_bytes: int) -> int:
    """``step`` doubled or halved until so many rows of ``row_bytes`` are about a chunk."""
    most = _LARGE_BYTES * 3 // 2
    while step * row_bytes > most and step % 2 == 0:
        step //= 2
    while 2 * step * row_bytes <= most and 2 * step <= _MOST_ROWS:
        step *= 2
    return step


def block_rows(catalog: Catalog, names: Iterable[str], row_bytes: int) -> int:
    """Rows of a block of these fields, of ``row_bytes`` together: those of the smallest chunk.

    Chunks of ragged rows are chosen before the sizes of these are known, and hold places alone. So
    where a chunk of ragged rows is the smallest, a block has as many rows as fit; and where
    ragged rows are large, fewer than the small chunks of other fields, which stay decoded.
    """
    rows = {name: catalog.chunk_rows(name) for name in names}
    step = min(rows.values())
    kinds = {catalog.fields[name].kind for name in rows}
    smallest = [name for name in rows if rows[name] == step]
    if "ragged" not in kinds or any(_is_large(catalog, name) for name in smallest):
        return step
    fits = fitting(step, row_bytes)
    return fits if all(catalog.fields[n].kind == "ragged" for n in smallest) else min(step, fits)


def narrow(catalog: Catalog, array: str) -> bool:
    """Whether a chunk of this array usually has the rows of several blocks: more than one of
    another field has, or few bytes beside ragged rows, or the places of those."""
    name = array if array in catalog.fields else array.rpartition("/")[0]
    if array == f"{name}/{OFFSETS}":
        return True
    if catalog.chunk_rows(name) > catalog.step:
        return True
    ragged = catalog.fields[name].kind == "ragged"
    return "ragged" in catalog.kinds and not ragged and not _is_large(catalog, name)


def _is_large(catalog: Catalog, name: str) -> bool:
    """Whether chunks of a field are so large that a block has all rows of one."""
    field = catalog.fields[name]
    return (
        field.kind != "ragged" and catalog.chunk_rows(name) * row_bytes(field) > _VALUES_BYTES // 2
    )


def _rows(step: int, row_bytes: int) -> int:
    """A multiple of ``step`` that is worth an object of its own."""
    count = step
    while count * 2 * row_bytes <= _SMALL_BYTES and count * 2 <= max(_MOST_ROWS, step):
        count *= 2
    return count


def row_bytes(field: Field) -> int:
    """About how many bytes a row has in memory, of a ragged one without its values."""
    if field.kind == "ragged":
        return 16 + 8 * (field.ndim if field.ndim > 1 else 0)
    if field.kind != "fixed":
        return _TEXT_BYTES
    return max(1, math.prod(field.shape) * field.dtype.itemsize)


def _power(n: int) -> int:
    return 1 << (max(1, min(n, _MOST_ROWS)).bit_length() - 1)


def _is_by_field(codecs: Any, fields: Fields) -> TypeGuard[Mapping[Any, Any]]:
    """A dict of codecs by field, rather than one codec's document."""
    return isinstance(codecs, Mapping) and "name" not in codecs


def _by_field(fields: Fields, values: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        for path in chosen(fields, [path_of(name)]):
            found[path] = value
    return found


# -- which chunks rows lie in --------------------------------------------------------------------


def touched_chunks(
    catalog: Catalog,
    names: Iterable[str],
    rows: NDArray[np.int64],
    length: int,
    chosen_from: int,
    cache_bytes: int,
) -> list[Touched]:
    """The chunks that runs of ``length`` rows from ``rows`` on have a part in, of every array of
    some fields. Ragged rows are taken to have all as many values, end to end; ``chosen_from`` and
    ``cache_bytes``: of how many rows a view was made, and what each array keeps decoded."""
    found = []
    for name in names:
        field = catalog.fields[name]
        ragged = field.kind == "ragged"
        size = row_bytes(field) * max(1, catalog.rows)
        array = f"{name}/{OFFSETS}" if ragged else name
        keeps = max(cache_bytes, NARROW_CACHE * narrow(catalog, array))
        edge = catalog.chunk_rows(name)
        first, last = rows // edge, (rows + length - 1) // edge
        pieces = _chunks_per_row(catalog, name)
        if pieces > 1:  # of a row; all of them are read, one after another
            first, last = first * pieces, last * pieces + pieces - 1
        found.append(Touched.between(first, last, min(1.0, keeps / size)))
        if ragged:
            found.append(_touched_values(catalog, name, rows, length, chosen_from, cache_bytes))
    return found


def _touched_values(
    catalog: Catalog,
    name: str,
    rows: NDArray[np.int64],
    length: int,
    chosen_from: int,
    cache_bytes: int,
) -> Touched:
    itemsize = max(1, catalog.fields[name].dtype.itemsize)
    estimate = values_per_row(catalog.row_sizes.get(name, ()), chosen_from)
    each = max(1, RAGGED_BYTES // itemsize if estimate is None else estimate)
    edge = catalog.specs[f"{name}/{VALUES}"].grid.chunk_shape((0,))[0]
    size = each * itemsize * max(1, catalog.rows)
    first, last = rows * each // edge, ((rows + length) * each - 1) // edge
    return Touched.between(first, last, min(1.0, cache_bytes / size))


def _chunks_per_row(catalog: Catalog, name: str) -> int:
    """Chunks that a row lies in: more than one of the widest rows."""
    field = catalog.fields[name]
    spec = catalog.specs[f"{name}/{OFFSETS}" if field.kind == "ragged" else name]
    edges = getattr(spec.codecs[0], "chunk_shape", None) or spec.grid.chunks
    if not edges:
        return 1
    sizes = zip(spec.shape[1:], edges[1:], strict=True)
    return prod(max(1, -(-n // edge)) for n, edge in sizes)
