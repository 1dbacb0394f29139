"""One field of a view: values by row number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..array import Array
from ..errors import InvalidSelection, Unsupported, counted
from ..handle import NoOperators
from . import formats
from .column import Rows
from .ragged_column import RaggedColumn
from .rowset import AllRows, count_of, normalize, start_of
from .source import RecordSource


class Series(NoOperators):
    """A field whose rows are no plain array, or of a view that has not all rows.

    ``s[i]`` is a row's value, ``s[rows]`` several as an array, a list or, ``ragged_as``, padded or
    jagged; ``s[rows] = values`` stores. Iteration reads a chunk at a time.

    >>> s = stash.save_records({}, {"x": np.arange(4)}).where([3, 1])["x"]
    >>> s[:].tolist()
    [3, 1]
    """

    def __init__(self, source: RecordSource, path: str) -> None:
        """Made by ``r["field"]``."""
        self._table = source.table
        self._path = path
        self._rows = source.rows
        self._count = len(source)
        self._ragged = source.ragged

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: Any) -> Any:
        positions = normalize(key, self._count)
        if isinstance(positions, int):
            value = self._take(slice(positions, positions + 1, 1))[0]
            return str(value) if self._kind == "text" else value
        found = self._take(positions)
        # A list that knows its field.
        fields = {"": self._column.field}
        return formats.format_columns({"": found}, "numpy", self._ragged, fields)[""]

    def __setitem__(self, key: Any, value: Any) -> None:
        positions = normalize(key, self._count)
        rows: Rows
        if isinstance(positions, int):
            rows, count = slice(positions, positions + 1, 1), 1
            values = self._column.one(value)
        else:
            rows, values = positions, value
            count = count_of(rows, self._count)
        checked = self._column.checked(values, count, repeat=True)
        self._table.put(self._at(rows), {self._path: checked})

    def __iter__(self) -> Iterator[Any]:
        step = self._table.catalog.chunk_rows(self._path)
        if self._kind == "ragged":  # rows may be long
            step = min(step, 256)
        start = (start_of(self._rows) or 0) % step
        for edge in range(-start, self._count, step):
            found = self._take(slice(max(edge, 0), min(edge + step, self._count), 1))
            yield from (map(str, found) if self._kind == "text" else found)

    def lengths(self) -> NDArray[np.int64]:
        """Return how long each row of a ragged field is, reading no values.

        Returns:
            An int64 array of shape ``(rows,)``: elements along the first axis of each row.

        Raises:
            Unsupported: the field is not ragged.

        >>> r = stash.create_records({}, {"tokens": stash.ragged("int32")})
        >>> first = r.extend({"tokens": [[1, 2, 3], [4]]})
        >>> r["tokens"].lengths().tolist()
        [3, 1]
        """
        column = self._column
        if not isinstance(column, RaggedColumn):
            raise Unsupported(f"field {self._path!r} is not ragged; all of its rows are alike")
        self._table.check()
        found = column.lengths(self._at(slice(0, self._count, 1)))
        self._table.check_same([self._path])
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if self._kind not in ("fixed", "text") or copy is False:
            raise InvalidSelection(f"field {self._path!r} is not a plain array; read it with [...]")
        found: NDArray[Any] = self[...]
        return found if dtype is None else found.astype(dtype, copy=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        dtype: np.dtype[Any] = self._column.field.dtype
        return dtype

    def __repr__(self) -> str:
        return f"<Series {self._path!r} of {counted(self._count, 'row')}, {self._column.field!r}>"

    @property
    def _calculation(self) -> str:
        rows = "[row {sign} value for row in r[" + repr(self._path) + "]]"
        if self._kind in ("fixed", "text"):
            return f"r[{self._path!r}][...] {{sign}} value"
        lengths = f"r.lengths({self._path!r}) {{sign}} value, or each row, "
        return lengths + rows if self._kind == "ragged" else rows

    @property
    def _kind(self) -> str:
        kind: str = self._column.field.kind
        return kind

    @property
    def _column(self) -> Any:
        column = self._table.columns.get(self._path)
        if column is None:
            raise self._table.missing(self._path)
        return column

    def _at(self, positions: Rows) -> Rows:
        return self._rows.at(positions, self._table.catalog.rows)

    def _take(self, positions: Rows) -> Any:
        return self._table.take(self._at(positions), [self._path])[self._path]


def field_of(source: RecordSource, path: str) -> Array | Series:
    """A field of a view: the array itself where that is all there is to it."""
    column = source.table.columns[path]
    plain = column.field.kind in ("fixed", "text", "bytes")
    return column.arrays[0] if plain and isinstance(source.rows, AllRows) else Series(source, path)
