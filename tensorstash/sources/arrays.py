"""Arrays of one length side by side, stored or in memory, as rows; and what else has rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..coerce import is_tensor, natural
from ..columns import Columns, Placed
from ..errors import Invalid, counted, short
from ..handle import Handle
from ..loading.source import (
    Blocks,
    Fields,
    Source,
    SourceHolder,
    Touched,
    WrappedSource,
    fingerprint_of,
)
from ..threads import spread
from ..view import View
from .reader import Rows, Sliced, cut_runs, read_runs

ONE = "array"  # what the field of a lone array is called

_BLOCK_BYTES = 1 << 20
_MEMORY_BLOCK_BYTES = 64 << 10  # of rows in memory that are copied together


def as_source(given: Any) -> Source:
    """What rows can be taken from: a source as it is, or what holds one, as a dataset does; an
    array, a tensor, a stored array or a lazy view of one, or a tuple or dict of these, side by
    side; an object that has the members of a source.

    :class:`~tensorstash.errors.Invalid` for anything else.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, SourceHolder):
        return given.source
    if hasattr(type(given), "take") and hasattr(type(given), "present"):
        return WrappedSource(given)
    if _is_array(given):
        return ArraySource({ONE: given}, None)
    if isinstance(given, Mapping):
        return ArraySource({str(name): array for name, array in given.items()}, dict)
    if isinstance(given, (tuple, list)):
        return ArraySource({str(k): array for k, array in enumerate(given)}, tuple)
    raise Invalid(
        f"{short(given)} has no rows to load: give records, an array, or a tuple or dict of arrays"
    )


def selected(source: Source, fields: Sequence[str] | str | None) -> Source:
    """``source`` with some fields only."""
    if fields is None:
        return source
    return source.select(*([fields] if isinstance(fields, str) else fields))


def stored_arrays(arrays: Any, what: str) -> tuple[bool, dict[str, Sliced]]:
    """Whether one array was given by itself, and all of them by name; ``what`` needs them."""
    single = not isinstance(arrays, Mapping)
    given = {ONE: arrays} if single else dict(arrays)
    if not given:
        raise Invalid(f"{what} need at least one array")
    return single, {
        name: Sliced(array, "the array" if single else f"array {name!r}")
        for name, array in given.items()
    }


class ArraySource(Source):
    """Arrays that share their first axis, each stored or in memory; they are shown as they were
    given: one by itself, a tuple or a dict. Pickles as the stored arrays' handles, and with what
    is in memory."""

    _state = ("columns", "memory", "_names", "_shape", "_length")

    def __init__(self, arrays: Mapping[str, Any], shape: type | None) -> None:
        """``shape``: ``tuple``, ``dict``, or ``None`` for the only one by itself."""
        if not arrays:
            raise Invalid("rows need at least one array")
        self._names = tuple(arrays)
        self._shape = shape
        self.columns: dict[str, Sliced] = {}
        self.memory: dict[str, NDArray[Any]] = {}
        for name, array in arrays.items():
            if not isinstance(array, (Handle, View)):
                self.memory[name] = _in_memory(array, "0" if shape is None else name)
                continue
            what = "the array" if shape is None else f"array {name!r}"
            column = self.columns[name] = Sliced(array, what)
            if not column.shape:
                raise Invalid(f"{what} has no axis, so it has no rows")
            column.edges(0)
        lengths = {name: len(array) for name, array in self.memory.items()}
        lengths |= {name: column.shape[0] for name, column in self.columns.items()}
        lengths = {name: lengths[name] for name in self._names}
        if len(set(lengths.values())) > 1:
            raise Invalid(f"the arrays have different lengths: {lengths}")
        self._length = next(iter(lengths.values()))

    def __repr__(self) -> str:
        named = f" of arrays {', '.join(self._names)}" if self._shape is dict else ""
        return f"<{counted(self._length, 'row')}{named}>"

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._state}

    def _changed(self, **changes: Any) -> ArraySource:
        made: ArraySource = object.__new__(type(self))
        made.__dict__ |= self.__getstate__() | changes
        return made

    @property
    def selectable(self) -> tuple[str, ...]:
        """What the arrays are called."""
        return self._names

    def select(self, *names: str) -> ArraySource:
        """Some of the arrays."""
        unknown = [name for name in names if name not in self._names]
        if unknown or not names:
            known = ", ".join(map(repr, self._names))
            raise Invalid(f"no array {', '.join(map(repr, unknown))}; there are {known}")
        return self._changed(
            _names=names,
            _shape=dict,
            columns={name: self.columns[name] for name in names if name in self.columns},
            memory={name: self.memory[name] for name in names if name in self.memory},
        )

    @property
    def can_shrink(self) -> bool:
        """Always: rows are appended at the end."""
        return True

    def at_rows(self, rows: int) -> ArraySource:
        """The arrays as they were when they had so many rows."""
        return self._changed(
            _length=rows,
            columns={name: column.first(rows) for name, column in self.columns.items()},
            memory={name: array[:rows] for name, array in self.memory.items()},
        )

    # -- how rows lie ---------------------------------------------------------------------------

    @Cached
    def blocks(self) -> Blocks:
        """Runs of rows as the stored array with the largest rows is cut; shorter than large chunks,
        where no more of those is read than what is wanted. In memory alone, runs worth a copy."""
        if not self.columns:
            return Blocks.regular(self._length, max(1, _MEMORY_BLOCK_BYTES // self.row_bytes))
        heaviest = max(self.columns.values(), key=lambda column: column.row_bytes)
        bounds = heaviest.edges(0).bounds
        stored = sum(column.row_bytes for column in self.columns.values())
        rows = max(1, _BLOCK_BYTES // max(1, stored))
        if self.undecoded and int(np.diff(bounds).max(initial=0)) > rows:
            return Blocks.regular(self._length, rows)
        return Blocks(bounds)

    @property
    def remote(self) -> bool:
        """Whether a read costs round trips."""
        return not all(column.local for column in self.columns.values())

    @property
    def undecoded(self) -> bool:
        """Whether any rows are read without decoding others, and without a round trip. Not
        :attr:`Source.raw`: a loader reads such arrays by blocks all the same, many rows at once."""
        return all(column.raw and column.local for column in self.columns.values())

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row has in memory."""
        stored = sum(column.row_bytes for column in self.columns.values())
        return max(1, stored + sum(a.nbytes // max(1, len(a)) for a in self.memory.values()))

    @property
    def fixed(self) -> Fields:
        """Element shape and dtype of the arrays of plain memory."""
        stored = {k: (c.shape[1:], c.dtype) for k, c in self.columns.items() if c.plain}
        plain = {k: a for k, a in self.memory.items() if a.dtype.kind not in "TO"}
        return stored | {k: (a.shape[1:], a.dtype) for k, a in plain.items()}

    @property
    def fingerprint(self) -> str:
        """Tells arrays of other names, shapes, types or chunks apart."""
        # A lone array is "0" here, and "array" inside of windows: states tell sources by it.
        name = "0" if self._shape is None else None
        stored = self._stored_fingerprint(name) if self.columns else ""
        memory = [(name or k, a.shape, str(a.dtype)) for k, a in self.memory.items()]
        return fingerprint_of([stored, memory])

    @property
    def fingerprint_inside(self) -> str:
        """See :attr:`Source.fingerprint_inside`."""
        plain = not self.memory and self._shape is not tuple
        return self._stored_fingerprint(None) if plain else self.fingerprint

    def _stored_fingerprint(self, lone: str | None) -> str:
        bounds = self.blocks.bounds[:2].tolist()
        identity = [
            (lone or name, column.shape, str(column.dtype), bounds)
            for name, column in self.columns.items()
        ]
        return fingerprint_of(identity)

    def touches(self, rows: Rows, length: int = 1) -> list[Touched]:
        """The chunks of each stored array that rows have a part in, or runs of ``length`` from
        them on; of those that are read without decoding others, none."""
        found = []
        for column in self.columns.values():
            if not (column.raw and column.local):
                edges = column.edges(0)
                first, last = edges.of(rows), edges.of(rows + length - 1)
                found.append(Touched.between(first, last, column.kept))
        return found

    # -- reading --------------------------------------------------------------------------------

    def take(
        self, rows: NDArray[Any], out: Mapping[str, NDArray[Any] | Placed] | None = None
    ) -> Columns:
        """See :meth:`~tensorstash.loading.source.Source.take`."""
        numbers = np.asarray(rows, np.int64)
        count = len(numbers)
        first = int(numbers[0]) if count else 0
        run = not count or bool((np.diff(numbers) == 1).all())

        def read(column: Sliced, place: NDArray[Any] | Placed | None) -> NDArray[Any]:
            chosen = column.run(first, first + count) if run else column.rows(numbers)
            return column.read(chosen, place)

        def copy(array: NDArray[Any], place: NDArray[Any] | Placed | None) -> NDArray[Any]:
            if isinstance(place, Placed):
                place.array[place.rows] = array.take(rows, axis=0)
                return place.array
            # "clip", as "raise" copies once more; rows are in range.
            return array.take(rows, axis=0, out=place, mode="clip")

        return self._each(read, copy, out or {})

    def take_into(self, rows: NDArray[Any], out: Mapping[str, Placed]) -> Columns:
        """See :meth:`~tensorstash.loading.source.Source.take_into`."""
        return self.take(rows, out)

    @property
    def places(self) -> bool:
        """See :attr:`~tensorstash.loading.source.Source.places`."""
        return not self.remote

    def take_runs(
        self, starts: Rows, length: int, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Columns:
        """``length`` rows from each of ``starts`` on, as arrays of shape ``(runs, length, ...)``;
        each chunk is decoded once."""

        def read(column: Sliced, place: NDArray[Any] | None) -> NDArray[Any]:
            if place is None:
                place = np.empty((len(starts), length, *column.shape[1:]), column.dtype)
            read_runs(column, starts, place)
            return place

        def copy(array: NDArray[Any], place: NDArray[Any] | None) -> NDArray[Any]:
            found: NDArray[Any] = cut_runs(array, starts, length, place)
            return found

        return self._each(read, copy, out or {})

    def _each(
        self,
        read: Callable[[Sliced, Any], NDArray[Any]],
        copy: Callable[[NDArray[Any], Any], NDArray[Any]],
        out: Mapping[str, NDArray[Any] | Placed],
    ) -> Columns:
        """Every array read or copied; in a remote store, all at once."""
        found: Columns = dict.fromkeys(self._names)

        def one(name: str) -> None:
            found[name] = read(self.columns[name], out.get(name))

        for column in self.columns.values():
            column.settle()
        threads = len(self.columns) if self.remote else 1
        spread([*self.columns], lambda: one, threads, waits=True)
        for name, array in self.memory.items():
            found[name] = copy(array, out.get(name))
        return found

    @property
    def in_any_thread(self) -> bool:
        """See :attr:`~tensorstash.loading.source.Source.in_any_thread`."""
        return True

    def present(self, columns: Columns) -> Any:
        """The columns as the arrays were given."""
        if self._shape is None:
            return columns[ONE]
        return tuple(columns.values()) if self._shape is tuple else dict(columns)


def _is_array(given: Any) -> bool:
    return isinstance(given, (Handle, View, np.ndarray)) or is_tensor(given)


def _in_memory(given: Any, name: str) -> NDArray[Any]:
    if not _is_array(given):
        raise Invalid(f"array {name!r} is {short(given)}: give an array, a tensor or a stored one")
    array = natural(given)
    if not array.ndim:
        raise Invalid(f"array {name!r} has no axis, so it has no rows")
    return array
