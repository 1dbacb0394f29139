"""Columns of rows in memory: arrays, lists, and rows of different sizes; taken apart and joined."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .coerce import as_array, is_tensor
from .errors import Invalid, InvalidSelection, counted

Shapes = NDArray[np.int64]
_SHORT = 32  # elements a row, on average: fewer are padded all at once, not row by row

Columns: TypeAlias = dict[str, Any]
"""Values of several rows by field: arrays whose first axis is the rows, ``Ragged`` values, or
lists. Fields within fields are named by their path, ``"next/obs"``."""


class Placed(NamedTuple):
    """Where rows go: row ``i`` becomes ``array[rows[i]]``, no two of them the same one."""

    array: NDArray[Any]
    rows: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Elements that are filled."""
        return len(self.rows) * math.prod(self.array.shape[1:])


def nested(flat: Mapping[str, Any], kind: type[dict[str, Any]] = dict) -> dict[str, Any]:
    """Values by path as dicts within dicts, of one ``kind``."""
    out = kind()
    for path, value in flat.items():
        *above, name = path.split("/")
        place = out
        for step in above:
            place = place.setdefault(step, kind())
        place[name] = value
    return out


class KnownColumns(dict[str, Any]):
    """Nested columns that know more of their fields than the arrays tell."""


class Ragged:
    """Rows of different sizes in memory: arrays of one dtype and number of axes, end to end.

    Indexing with an integer returns a row, a view; with a slice, a mask or an integer array another
    ``Ragged``. Records take one as rows, and views by ``ragged_as("jagged")`` return one.

    Attributes:
        values: all rows' elements, a 1-D array: row after row, each in C order.
        offsets: where in ``values`` rows begin and end: row ``i`` is
            ``values[offsets[i]:offsets[i + 1]]``. An int64 array of shape ``(rows + 1,)``, which
            begins with 0.
        shapes: the shape of each row, an int64 array of shape ``(rows, ndim)``.

    Raises:
        InvalidSelection: a row is out of range.

    >>> r = stash.Ragged(np.array([1, 2, 3]), np.array([0, 2, 2, 3]))
    >>> len(r), r[0].tolist(), r[1].tolist(), r[1:].values.tolist()
    (3, [1, 2], [], [3])
    """

    __slots__ = ("offsets", "shapes", "values")

    def __init__(
        self, values: NDArray[Any], offsets: NDArray[np.int64], shapes: Shapes | None = None
    ) -> None:
        """Rows over this memory, which is neither copied nor checked.

        Args:
            values: all elements, a 1-D array.
            offsets: int64, one more than rows, from 0 on.
            shapes: int64, of shape ``(rows, ndim)``; may be left out for rows of one axis.
        """
        self.values = values
        self.offsets = offsets
        self.shapes = np.diff(offsets)[:, None] if shapes is None else shapes

    @classmethod
    def of(cls, rows: Iterable[Any], dtype: np.dtype[Any], ndim: int = 1) -> Ragged:
        """Gather rows into new memory.

        Args:
            rows: arrays, tensors or lists of ``ndim`` axes; or a ``Ragged``, which is not copied
                where its dtype is this one.
            dtype: of the elements.
            ndim: axes of a row.

        Returns:
            A ``Ragged``.

        Raises:
            Invalid: a row has another number of axes, or values that ``dtype`` cannot hold.

        >>> stash.Ragged.of([[1, 2], [], [3]], np.dtype("int32"))
        <Ragged 3 rows of 1 axis, 3 int32>
        """
        if isinstance(rows, Ragged):
            if rows.ndim != ndim:
                raise Invalid(
                    f"rows of {counted(rows.ndim, 'axis', 'axes')} where "
                    f"{counted(ndim, 'is', 'are')} needed"
                )
            rows = rows.checked()
            values = as_array(rows.values, dtype).astype(dtype, copy=False)
            return cls(values, rows.offsets, rows.shapes)
        arrays = [_row(row, dtype, ndim, i) for i, row in enumerate(rows)]
        shapes = np.array([a.shape for a in arrays], np.int64).reshape(len(arrays), ndim)
        flat = [a.reshape(-1) for a in arrays]
        values = np.empty(sum(map(len, flat)), dtype)
        if flat:
            np.concatenate(flat, out=values, casting="unsafe")
        return cls(values, offsets_of(np.prod(shapes, axis=1, dtype=np.int64)), shapes)

    @classmethod
    def join(cls, pieces: Sequence[Ragged]) -> Ragged:
        """Join the rows of several, one after another.

        Args:
            pieces: of one dtype and number of axes, at least one.

        Returns:
            A ``Ragged`` over new memory.

        >>> one = stash.Ragged.of([[1, 2]], np.dtype("int32"))
        >>> [row.tolist() for row in stash.Ragged.join([one, one[:0], one])]
        [[1, 2], [1, 2]]
        """
        sizes = np.concatenate([np.diff(piece.offsets) for piece in pieces])
        values = np.concatenate([piece.values for piece in pieces])
        return cls(values, offsets_of(sizes), np.concatenate([piece.shapes for piece in pieces]))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Axes of a row."""
        return int(self.shapes.shape[1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Elements along the first axis of each row: an int64 array of shape ``(rows,)``."""
        return self.shapes[:, 0]

    @property
    def nbytes(self) -> int:
        """Bytes of all values, offsets and shapes."""
        return self.values.nbytes + self.offsets.nbytes + self.shapes.nbytes

    def checked(self) -> Ragged:
        """Return the same rows with no values before, after or between them.

        Returns:
            A ``Ragged`` over the same memory.

        Raises:
            Invalid: values, offsets and shapes do not fit.

        >>> stash.Ragged(np.arange(9), np.array([2, 4])).checked().values.tolist()
        [2, 3]
        """
        values, offsets = np.asarray(self.values), np.asarray(self.offsets)
        shapes = np.asarray(self.shapes)
        plain = values.ndim == offsets.ndim == 1 and shapes.ndim == 2 and len(offsets) > 0
        if not plain or offsets.dtype.kind not in "iu" or shapes.dtype.kind not in "iu":
            raise Invalid(
                "ragged rows need values and integer offsets of one axis, and shapes of two"
            )
        offsets, shapes = offsets.astype(np.int64), shapes.astype(np.int64)
        sizes = np.diff(offsets)
        # As floats, for a product of integers may wrap around.
        fits = len(shapes) == len(sizes) and (np.prod(shapes, axis=1, dtype=float) == sizes).all()
        if not fits or (sizes < 0).any() or (shapes < 0).any():
            raise Invalid("offsets of ragged rows only grow, by as much as the shapes hold")
        start, stop = int(offsets[0]), int(offsets[-1])
        if start < 0 or stop > len(values):
            raise Invalid(
                f"ragged rows at values {start} to {stop}, of which there are {len(values)}"
            )
        return Ragged(values[start:stop], offsets - start, shapes)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, (int, np.integer)):
            n = len(self)
            if not -n <= rows < n:
                raise InvalidSelection(f"row {rows} is out of bounds for {counted(n, 'row')}")
            i = int(rows) % n
            return self.values[self.offsets[i] : self.offsets[i + 1]].reshape(self.shapes[i])
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            stop = max(start, stop)
            offsets = self.offsets[start : stop + 1]
            values = self.values[offsets[0] : offsets[-1]]
            return Ragged(values, offsets - offsets[0], self.shapes[start:stop])
        try:
            chosen = np.arange(len(self))[rows]
        except IndexError as error:
            raise InvalidSelection(str(error)) from error
        sizes = np.diff(self.offsets)[chosen]
        at = runs_of(self.offsets[chosen], sizes)
        return Ragged(self.values[at], offsets_of(sizes), self.shapes[chosen])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def to_list(self) -> list[NDArray[Any]]:
        """Return every row as an array of its own shape.

        Returns:
            A list of arrays, views of ``values``.

        >>> [row.tolist() for row in stash.Ragged(np.arange(3), np.array([0, 2, 3])).to_list()]
        [[0, 1], [2]]
        """
        return list(self)

    def to_padded(self, fill: Any = 0) -> NDArray[Any]:
        """Return all rows as one array, as long as the longest.

        Args:
            fill: what stands behind the end of a shorter row.

        Returns:
            An array of shape ``(rows, longest, ...)`` and of this dtype, in memory of its own.

        >>> stash.Ragged(np.array([1, 2, 3]), np.array([0, 2, 3])).to_padded(-1).tolist()
        [[1, 2], [3, -1]]
        """
        longest = tuple(self.shapes.max(axis=0)) if len(self) else (0,) * self.ndim
        shape = (len(self), *longest)
        blank = isinstance(fill, int) and fill == 0
        out = np.zeros(shape, self.dtype) if blank else np.full(shape, fill, self.dtype)
        if self.ndim > 1:
            for i, row in enumerate(self):
                out[i][tuple(map(slice, row.shape))] = row
        elif len(self.values) < _SHORT * len(self):
            out[np.arange(longest[0]) < self.lengths[:, None]] = self.values
        else:
            for row, (start, stop) in zip(out, pairwise(self.offsets.tolist()), strict=True):
                row[: stop - start] = self.values[start:stop]
        return out

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ragged):
            return NotImplemented
        same = np.array_equal(self.shapes, other.shapes)
        return same and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<Ragged {counted(len(self), 'row')} of "
            f"{counted(self.ndim, 'axis', 'axes')}, {len(self.values)} {self.dtype}>"
        )


def runs_of(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every position of the runs ``start, start + 1, ...`` of ``sizes`` elements, run after run."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    found: NDArray[np.int64] = np.arange(total) + np.repeat(starts - (ends - sizes), sizes)
    return found


def offsets_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of ``sizes`` elements, one after another, begin, and the end of the last."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _row(row: Any, dtype: np.dtype[Any], ndim: int, i: int) -> NDArray[Any]:
    array = as_array(row, dtype)
    if array.ndim != ndim:
        what = "a tensor" if is_tensor(row) else "a value"
        raise Invalid(
            f"row {i} is {what} of {counted(array.ndim, 'axis', 'axes')} where "
            f"{counted(ndim, 'is', 'are')} needed"
        )
    return array


class Held:
    """Ragged rows to be gathered from again and again."""

    __slots__ = ("buffer", "offsets", "rows")

    def __init__(self, rows: Ragged) -> None:
        self.rows = rows
        # Python slices and joins buffers, and reads integers of them, in half the time that it
        # takes with arrays.
        size = rows.dtype.itemsize
        self.buffer = rows.values.view(f"i{size}" if size in (1, 2, 4, 8) else f"V{size}").data
        self.offsets = rows.offsets.data


def held(column: Any) -> Any:
    """A column as :func:`gathered` takes it."""
    return Held(column) if isinstance(column, Ragged) else column


def gathered(blocks: Sequence[Any], which: Sequence[int], within: Sequence[int]) -> Any:
    """The column whose row ``i`` is row ``within[i]`` of ``blocks[which[i]]``, each a :func:`held`
    column of text, ragged rows or a list. There is at least one row."""
    pairs = list(zip(which, within, strict=True))
    first = blocks[pairs[0][0]]
    if isinstance(first, Held):
        return _ragged(blocks, pairs, first.rows)
    if not isinstance(first, np.ndarray):
        return [blocks[k][i] for k, i in pairs]
    out = np.empty((len(pairs), *first.shape[1:]), first.dtype)
    for place, (k, i) in enumerate(pairs):
        out[place] = blocks[k][i]
    return out


def _ragged(blocks: Sequence[Held], pairs: list[tuple[int, int]], first: Ragged) -> Ragged:
    pieces: list[memoryview] = []
    for k, i in pairs:
        block = blocks[k]
        offsets = block.offsets
        pieces.append(block.buffer[offsets[i] : offsets[i + 1]])
    joined = np.frombuffer(bytearray().join(pieces), first.dtype)
    sizes = np.array([*map(len, pieces)], np.int64)
    ends = offsets_of(sizes)
    if first.ndim == 1:
        return Ragged(joined, ends, sizes[:, None])
    return Ragged(joined, ends, np.stack([blocks[k].rows.shapes[i] for k, i in pairs]))


def picked(columns: Columns, order: Iterable[int] | NDArray[Any]) -> Columns:
    """Some rows of columns, in this order."""
    return {
        name: [column[i] for i in order] if isinstance(column, list) else column[order]
        for name, column in columns.items()
    }


def joined(pieces: list[Any]) -> Any:
    """Parts of a column as one."""
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    if isinstance(pieces[0], Ragged):
        return Ragged.join(pieces)
    return [value for piece in pieces for value in piece]
