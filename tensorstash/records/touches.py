"""Which chunks of which fields rows have a part in. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..loading.source import Touched
from . import layout
from .catalog import OFFSETS, VALUES, Catalog
from .sizes import values_of_row


def touches(
    catalog: Catalog,
    names: Iterable[str],
    rows: NDArray[np.int64],
    length: int,
    among: int,
    cache_bytes: int,
) -> list[Touched]:
    """The chunks that runs of ``length`` rows from ``rows`` on have a part in, of every array of
    some fields. Ragged rows are taken to have all as many values, end to end; ``among`` and
    ``cache_bytes``: of how many rows a view was made, and what each array keeps decoded."""
    found = []
    for name in names:
        field = catalog.fields[name]
        ragged = field.kind == "ragged"
        size = layout.row_bytes(field) * max(1, catalog.rows)
        array = f"{name}/{OFFSETS}" if ragged else name
        keeps = max(cache_bytes, layout.NARROW_CACHE * layout.narrow(catalog, array))
        edge = catalog.chunk_rows(name)
        first, last = rows // edge, (rows + length - 1) // edge
        pieces = _pieces(catalog, name)
        if pieces > 1:  # of a row; all of them are read, one after another
            first, last = first * pieces, last * pieces + pieces - 1
        found.append(Touched.between(first, last, min(1.0, keeps / size)))
        if ragged:
            found.append(_values(catalog, name, rows, length, among, cache_bytes))
    return found


def _values(
    catalog: Catalog,
    name: str,
    rows: NDArray[np.int64],
    length: int,
    among: int,
    cache_bytes: int,
) -> Touched:
    itemsize = max(1, catalog.fields[name].dtype.itemsize)
    noted = values_of_row(catalog.notes.get(name, ()), among)
    each = max(1, layout.RAGGED_BYTES // itemsize if noted is None else noted)
    edge = catalog.specs[f"{name}/{VALUES}"].grid.chunk_shape((0,))[0]
    size = each * itemsize * max(1, catalog.rows)
    first, last = rows * each // edge, ((rows + length) * each - 1) // edge
    return Touched.between(first, last, min(1.0, cache_bytes / size))


def _pieces(catalog: Catalog, name: str) -> int:
    """Chunks that a row lies in: more than one of the widest rows."""
    field = catalog.fields[name]
    spec = catalog.specs[f"{name}/{OFFSETS}" if field.kind == "ragged" else name]
    edges = getattr(spec.codecs[0], "chunk_shape", None) or spec.grid.chunks
    if not edges:
        return 1
    sizes = zip(spec.shape[1:], edges[1:], strict=True)
    return prod(max(1, -(-n // edge)) for n, edge in sizes)
