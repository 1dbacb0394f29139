"""A field whose rows have shapes of their own: values end to end, and where each row lies.

``offsets`` (int64) holds for each row where its values start and stop and, for more than one
axis, its shape. It is one row of one chunk, so one put publishes a row whole. Values that are
not pointed at are never read: those of a failed append, and of rows that were replaced by
rows of another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..array import Array, renewed
from ..columns import Placed, Ragged, offsets_of, runs_of
from ..engine.look import Look
from ..errors import Corrupt, Invalid, counted
from .casting import safe_cast, single_row
from .column import Column, Rows, read_rows, write_rows
from .rowset import as_numbers
from .schema import Field


class RaggedColumn(Column):
    """Rows of any shape with a fixed number of axes."""

    def __init__(self, path: str, field: Field, arrays: Sequence[Array]) -> None:
        super().__init__(path, field, arrays)
        # Replaced by handles that know more values, never changed: threads use it as it is.
        self._longest = arrays[0]

    def take(
        self, rows: Rows, out: NDArray[Any] | Placed | None = None, look: Look | None = None
    ) -> Ragged:
        """See :meth:`Column.take`. Two reads: of offsets, and of the values they point at."""
        places = read_rows(self.arrays[1], rows)
        starts, sizes = self._sound(places)
        shapes = places[:, 2:] if self.field.ndim > 1 else None
        offsets = offsets_of(sizes)
        return Ragged(self._values(starts, sizes, int(offsets[-1]), look), offsets, shapes)

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        """Elements along the first axis of each row, without reading any value."""
        places = read_rows(self.arrays[1], rows)
        _, sizes = self._sound(places)
        return np.ascontiguousarray(places[:, 2] if self.field.ndim > 1 else sizes)

    def one(self, value: Any) -> Any:
        """See :meth:`Column.one`."""
        return single_row(value)

    def checked(self, values: Any, count: int, repeat: bool = False) -> Ragged:
        """See :meth:`Column.checked`."""
        field = self.field
        if repeat and getattr(values, "ndim", 0) == field.ndim and not isinstance(values, Ragged):
            values = [values] * count
        try:
            if isinstance(values, Ragged):
                stored = safe_cast(values.values, field.dtype)
                made = Ragged.of(
                    Ragged(stored, values.offsets, values.shapes), field.dtype, field.ndim
                )
            else:
                rows = [self._row(row) for row in values]
                made = Ragged.of(rows, field.dtype, field.ndim)
        except (Invalid, TypeError, ValueError) as error:
            raise self.wrong(
                f"{error}; give one array of {counted(field.ndim, 'axis', 'axes')} a row"
            ) from error
        if len(made) != count:
            raise self.wrong(f"values of {counted(len(made), 'row')} for {counted(count, 'row')}")
        return made

    def put(self, rows: Rows, values: Ragged, look: Look | None = None) -> int:
        """See :meth:`Column.put`: where the row lies if its shape stays, else at the end of the
        values. Either way one put of one chunk replaces a row: nobody sees half of it."""
        wanted = as_numbers(rows)
        _, first = np.unique(wanted[::-1], return_index=True)
        keep = len(wanted) - 1 - first  # of values for one row, the last one stays
        if len(keep) < len(wanted):
            wanted, values = wanted[keep], values[keep]
        places = read_rows(self.arrays[1], wanted, None, look)
        if look is not None:
            look.done()
        stays = self._stays(places, values)
        if stays.any():
            same, starts = values[stays], places[stays, 0]
            at = runs_of(starts, np.diff(same.offsets))
            if at.size:
                write_rows(self._known(int(at.max()) + 1), at, same.values)
        if stays.all():
            return 0
        moved = self.reserve(values[~stays])
        write_rows(self.arrays[1], wanted[~stays], moved)
        return int(moved[:, 1].max())

    def reserve(self, values: Ragged) -> NDArray[np.int64]:
        """See :meth:`Column.reserve`: the values are stored at the end, where nothing points yet;
        what is added as rows are their places."""
        start = self._append(values.values) if values.values.size else 0
        return self._places(start + values.offsets[:-1], np.diff(values.offsets), values.shapes)

    # -- within -------------------------------------------------------------------

    def _row(self, row: Any) -> NDArray[Any]:
        array = safe_cast(row, self.field.dtype)
        # An empty list says nothing of its axes.
        return array.reshape((0,) * self.field.ndim) if array.shape == (0,) else array

    def _places(
        self, starts: NDArray[np.int64], sizes: NDArray[np.int64], shapes: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        edges = np.stack([starts, starts + sizes], axis=1)
        return edges if self.field.ndim == 1 else np.concatenate([edges, shapes], axis=1)

    def _stays(self, places: NDArray[np.int64], values: Ragged) -> NDArray[np.bool_]:
        """Rows that are replaced in one step where they lie: by one of their own shape, within
        one chunk of the values."""
        starts, stops = places[:, 0], places[:, 1]
        there = len(self._known(int(stops.max(initial=0))))
        edge = self.arrays[0].spec.grid.chunk_shape((0,))[0]
        stays: NDArray[np.bool_] = ~self._odd(places) & (stops <= there)
        stays &= stops - starts == np.diff(values.offsets)
        stays &= (starts // edge == (stops - 1) // edge) | (starts == stops)
        if self.field.ndim > 1:
            stays &= (places[:, 2:] == values.shapes).all(axis=1)
        return stays

    def _odd(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Rows whose offsets contradict themselves."""
        starts = places[:, 0]
        sizes = places[:, 1] - starts
        bad = (starts < 0) | (sizes < 0)
        if self.field.ndim > 1:
            # As floats, for a product of integers may wrap around.
            product = np.prod(places[:, 2:], axis=1, dtype=np.float64)
            bad |= (places[:, 2:] < 0).any(axis=1) | (product != sizes)
        found: NDArray[np.bool_] = bad
        return found

    def _sound(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Starts and sizes, when the offsets make sense."""
        bad = self._odd(places)
        if bad.any():
            raise Corrupt(
                f"field {self.path!r}: a row's offsets contradict themselves: "
                f"{places[bad][0].tolist()}; store the row again"
            )
        return places[:, 0], places[:, 1] - places[:, 0]

    def _values(
        self,
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        total: int,
        look: Look | None = None,
    ) -> NDArray[Any]:
        if not total:
            return np.empty(0, self.field.dtype)
        filled = sizes > 0
        stops = (starts + sizes)[filled]
        values = self._reaching(int(stops.max()))
        begins = starts[filled]
        if (begins[1:] == stops[:-1]).all():  # one run
            return read_rows(values, slice(int(begins[0]), int(stops[-1])), None, look)
        if values.driver.capabilities.local and values.chunks is not None:
            return _by_stretch(values, begins, sizes[filled], total, values.chunks[0])
        return read_rows(
            values, runs_of(begins, sizes[filled]), None, look
        )  # in one window of requests

    def _append(self, values: NDArray[Any]) -> int:
        """Store values at the end; returns where they begin."""
        # By the records themselves, whose values may be more than their rows need.
        grown = renewed(self._longest, replace(self._longest.spec, of_records=False))
        start = grown.append(values)
        self._keep(grown)
        return start

    def _known(self, stop: int) -> Array:
        """The values, known up to ``stop`` if there are as many: others may have added some since
        we looked."""
        values = self._longest
        if stop > len(values):
            values = renewed(values, values.spec).refresh()
            self._keep(values)
        return values

    def _reaching(self, stop: int) -> Array:
        """The values, of which there are as many as ``stop``."""
        values = self._known(stop)
        if stop > len(values):
            raise Corrupt(
                f"field {self.path!r}: a row lies at values up to {stop}, of which there are "
                f"{len(values)}; store the row again"
            )
        return values

    def _keep(self, values: Array) -> None:
        if len(values) > len(self._longest):
            self._longest = values


def _by_stretch(
    values: Array, begins: NDArray[np.int64], sizes: NDArray[np.int64], total: int, edge: int
) -> NDArray[Any]:
    """The values of many runs, each chunk read once: runs that share chunks come as one stretch,
    and are copied out of it. A list of every value's position would cost more than decoding."""
    order = np.argsort(begins, kind="stable")
    first = begins[order]
    reach = np.maximum.accumulate(first + sizes[order])
    new = np.flatnonzero(first[1:] // edge > (reach[:-1] - 1) // edge) + 1
    places = np.cumsum(sizes) - sizes
    out = np.empty(total, values.dtype)
    for some in np.split(order, new):
        start = int(begins[some[0]])
        stretch = read_rows(values, slice(start, int((begins[some] + sizes[some]).max())))
        runs = zip(begins[some] - start, sizes[some], places[some], strict=True)
        for at, size, place in runs:
            out[place : place + size] = stretch[at : at + size]
    return out
