"""Stored arrays of one length, row by row along their first axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..errors import Invalid, counted
from ..loading.source import Blocks, Columns, fingerprint_of
from ..loading.touched import Touched
from ..threads import spread
from .runs import Starts, read_runs
from .sliced import Sliced

ONE = "array"  # what the field of a lone array is called

_BLOCK_BYTES = 1 << 20


def columns_of(arrays: Any, what: str) -> tuple[bool, dict[str, Sliced]]:
    """Whether one array was given by itself, and all of them by name; ``what`` needs them."""
    single = not isinstance(arrays, Mapping)
    given = {ONE: arrays} if single else dict(arrays)
    if not given:
        raise Invalid(f"{what} need at least one array")
    return single, {
        name: Sliced(array, "the array" if single else f"array {name!r}")
        for name, array in given.items()
    }


class Arrays:
    """Arrays that share their first axis, as a :class:`~tensorstash.loading.source.Source`.

    One array by itself is shown as itself, several as a dict. Pickles as the arrays' handles.
    """

    def __init__(self, arrays: Any) -> None:
        """One array or lazy view of one, or a mapping of names to them."""
        self._single, self.columns = columns_of(arrays, "rows")
        for column in self.columns.values():
            if not column.shape:
                raise Invalid(f"{column.what} has no axis, so it has no rows")
            column.edges(0)
        lengths = {name: column.shape[0] for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise Invalid(f"the arrays have different lengths: {lengths}")
        self._length = next(iter(lengths.values()))

    def __repr__(self) -> str:
        named = "" if self._single else f" of arrays {', '.join(self.columns)}"
        return f"<{counted(self._length, 'row')}{named}>"

    @property
    def names(self) -> tuple[str, ...]:
        """What the arrays are called."""
        return tuple(self.columns)

    def select(self, *names: str) -> Arrays:
        """Some of the arrays."""
        unknown = [name for name in names if name not in self.columns]
        if unknown or not names:
            known = ", ".join(map(repr, self.columns))
            raise Invalid(f"no array {', '.join(map(repr, unknown))}; there are {known}")
        made: Arrays = object.__new__(Arrays)
        made._single, made._length = False, self._length
        made.columns = {name: self.columns[name] for name in names}
        return made

    def at_rows(self, rows: int) -> Arrays:
        """The arrays as they were when they had so many rows."""
        made: Arrays = object.__new__(Arrays)
        made._single, made._length = self._single, rows
        made.columns = {name: column.first(rows) for name, column in self.columns.items()}
        return made

    def __len__(self) -> int:
        return self._length

    @Cached
    def blocks(self) -> Blocks:
        """Runs of rows as the array with the largest rows is cut; shorter than large chunks,
        where no more of those is read than what is wanted."""
        heaviest = max(self.columns.values(), key=lambda column: column.row_bytes)
        bounds = heaviest.edges(0).bounds
        rows = max(1, _BLOCK_BYTES // max(1, self.row_bytes))
        if self.raw and int(np.diff(bounds).max(initial=0)) > rows:
            return Blocks.regular(self._length, rows)
        return Blocks(bounds)

    @property
    def far(self) -> bool:
        """Whether a read costs round trips."""
        return not all(column.near for column in self.columns.values())

    @property
    def raw(self) -> bool:
        """Whether any rows are read without decoding others, and without a round trip."""
        return all(column.raw and column.near for column in self.columns.values())

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row has in memory."""
        return sum(column.row_bytes for column in self.columns.values())

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Element shape and dtype of the arrays of plain memory."""
        return {
            name: (column.shape[1:], column.dtype)
            for name, column in self.columns.items()
            if column.plain
        }

    @property
    def fingerprint(self) -> str:
        """Tells arrays of other names, shapes, types or chunks apart."""
        told = [
            (name, column.shape, str(column.dtype), self.blocks.bounds[:2].tolist())
            for name, column in self.columns.items()
        ]
        return fingerprint_of(told)

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """The chunks of each array that rows have a part in, or runs of ``length`` from them on;
        of those that are read without decoding others, none."""
        found = []
        for column in self.columns.values():
            if not (column.raw and column.near):
                edges = column.edges(0)
                first, last = edges.of(rows), edges.of(rows + length - 1)
                found.append(Touched.between(first, last, column.kept))
        return found

    def take(self, rows: NDArray[Any], out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """See :meth:`~tensorstash.loading.source.Source.take`."""
        numbers = np.asarray(rows, np.int64)
        count = len(numbers)
        first = int(numbers[0]) if count else 0
        run = not count or bool((np.diff(numbers) == 1).all())

        def read(column: Sliced, place: NDArray[Any] | None) -> NDArray[Any]:
            chosen = column.run(first, first + count) if run else column.rows(numbers)
            return column.read(chosen, place)

        return self._each(read, out)

    def take_runs(
        self, starts: Starts, length: int, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Columns:
        """``length`` rows from each of ``starts`` on, as arrays of shape ``(runs, length, ...)``;
        each chunk is decoded once."""

        def read(column: Sliced, place: NDArray[Any] | None) -> NDArray[Any]:
            if place is None:
                place = np.empty((len(starts), length, *column.shape[1:]), column.dtype)
            read_runs(column, starts, place)
            return place

        return self._each(read, out)

    def _each(
        self,
        read: Callable[[Sliced, NDArray[Any] | None], NDArray[Any]],
        out: Mapping[str, NDArray[Any]] | None,
    ) -> Columns:
        """Every array read; far away, all at once."""
        found: Columns = dict.fromkeys(self.columns)

        for column in self.columns.values():
            column.settle()

        def one(name: str) -> None:
            found[name] = read(self.columns[name], None if out is None else out.get(name))

        threads = len(self.columns) if self.far else 1
        spread([*self.columns], lambda: one, threads, waits=True)
        return found

    def __getstate__(self) -> dict[str, Any]:
        names = ("columns", "_single", "_length")
        return {name: self.__dict__[name] for name in names}

    def present(self, columns: Columns) -> Any:
        """A lone array's values as they are, those of several as a dict."""
        return columns[ONE] if self._single else dict(columns)
