"""Rows gathered, and stored in whole chunks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..coerce import parse_bytes
from ..columns import Ragged
from ..engine.in_place.single import Slot, put_row
from ..engine.in_place.writing import is_in_place
from ..errors import Closed, Invalid, Unsupported
from ..loading.source import SourceHolder
from ..memory.steps import WRITERS
from .catalog import Catalog
from .column import Column
from .ingest import check_row, check_rows
from .rowset import normalize
from .source import RecordSource
from .table import Table


class RecordWriter:
    """Collects rows and adds them when they fill whole chunks of every field.

    ``append`` and ``extend`` check the rows and return at once; ``w[i] = row`` collects
    assignments to rows that are there. What is held is not yet visible to readers: it is after
    :meth:`flush`, or the end of the ``with`` block, which stores it even when the block raises.
    Where storing fails, what is held stays so: :meth:`flush` tries again. Not for several threads:
    give each its own.

    >>> r = stash.create_records({}, {"x": "int32"})
    >>> with r.writer() as w:
    ...     w.extend({"x": [1, 2]})
    >>> len(r)
    2
    """

    def __init__(self, table: Table, budget: int | str) -> None:
        """Made by ``records.writer()``."""
        self._table = table
        self._asked = parse_bytes(budget)
        if self._asked < 1:
            raise Invalid("a writer needs a budget of at least one byte")
        self._account = table.settings.memory.account("writers")
        self._held: list[tuple[int, dict[str, Any]]] = []
        self._count = 0
        self._nbytes = 0
        self._assigned: dict[int, dict[str, Any]] = {}
        self._closed = False
        catalog = table.catalog
        self._edge = max(catalog.chunk_rows(name) for name in catalog.fields)
        self._least = min(catalog.chunk_rows(name) for name in catalog.fields)

    def append(self, row: Any) -> None:
        """Add one row, which is checked now and stored with others.

        Args:
            row: a dict with a value for every field.

        Raises:
            Invalid: a field is missing or unknown, or a value does not fit.
            Closed: the writer was closed.

        >>> with stash.create_records({}, {"x": "int32"}).writer() as w:
        ...     w.append({"x": 1})
        """
        self._check()
        self._hold(1, check_row(row, self._table.columns, self._table.fields))

    def extend(self, rows: Any) -> None:
        """Add rows, which are checked now and stored with others.

        Args:
            rows: a dict of columns, a list of row dicts, or what else ``Records.extend`` takes.

        Raises:
            Invalid: a field is missing or unknown, or a value does not fit.
            Closed: the writer was closed.

        >>> with stash.create_records({}, {"x": "int32"}).writer() as w:
        ...     w.extend({"x": [1, 2]})
        """
        self._check()
        count, values = check_rows(rows, self._table.columns, self._table.fields)
        at_once = max(1, count * self._most() // max(1, _nbytes(values)))
        for start in range(0, count, at_once):
            piece = {name: value[start : start + at_once] for name, value in values.items()}
            self._hold(min(at_once, count - start), piece)

    def __setitem__(self, row: int, value: Any) -> None:
        """Store a row that is there already; the last one assigned stays."""
        self._check()
        count = self._table.catalog.rows
        whole = isinstance(row, (int, np.integer)) and not isinstance(row, bool)
        if not whole or not -count <= row < count:
            raise Invalid(f"a writer assigns single rows of {count}, not {row!r}")
        values = self._owned(check_row(value, self._table.columns, self._table.fields))
        row = int(row) % count
        if row not in self._assigned:
            self._nbytes += _nbytes(values)
        self._assigned[row] = values
        if self._nbytes > self._most():
            self._store_assigned()
        self._note()

    def flush(self) -> None:
        """Store everything that is held, so that readers see it.

        Raises:
            Conflict, NotFound: the records were replaced or deleted.
            Closed: the writer was closed.

        >>> r = stash.create_records({}, {"x": "int32"})
        >>> w = r.writer()
        >>> w.append({"x": 1})
        >>> w.flush()
        >>> len(r)
        1
        """
        self._check()
        self._add(self._count)
        self._store_assigned()
        self._note()

    def close(self) -> None:
        """Store everything that is held, and refuse further rows. Closing twice does no harm.

        >>> w = stash.create_records({}, {"x": "int32"}).writer()
        >>> w.close()
        """
        if not self._closed:
            self.flush()
            self._closed = True

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- within -------------------------------------------------------------------

    def _hold(self, count: int, values: Mapping[str, Any]) -> None:
        if not count:
            return
        held = self._owned(values)
        self._held.append((count, held))
        self._count += count
        self._nbytes += _nbytes(held)
        most = self._most()
        if self._nbytes > most:
            self._store_assigned()
        there = self._table.catalog.rows
        # Whole chunks of all fields while they fit, else of the widest fields.
        edge = self._edge if self._nbytes <= most else self._least
        whole = (there + self._count) // edge * edge - there
        if self._nbytes > most and whole <= 0:
            whole = self._count
        if whole > 0 and (self._nbytes > most or self._count >= 2 * self._edge):
            self._add(whole)
        self._note()

    def _most(self) -> int:
        """Bytes that may be held."""
        return self._account.most(self._asked, WRITERS)

    def _note(self) -> None:
        self._account.set(self._nbytes)

    def _owned(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Copies, as the caller may reuse its memory, of the fields' types: NumPy would join
        integers of different types as floats."""
        fields = self._table.fields
        return {name: _copied(value, fields[name].dtype) for name, value in values.items()}

    def _add(self, count: int) -> None:
        """Store the first ``count`` of the held rows."""
        if count <= 0:
            return
        table = self._table
        joined = {
            name: _join([values[name] for _, values in self._held]) for name in self._held[0][1]
        }
        table.extend({name: values[:count] for name, values in joined.items()}, count)
        rest = self._count - count
        # Only now: what could not be stored is still held.
        left = self._owned({name: values[count:] for name, values in joined.items()})
        self._held = [(rest, left)] if rest else []
        self._count = rest
        self._nbytes = (_nbytes(left) if rest else 0) + sum(map(_nbytes, self._assigned.values()))

    def _store_assigned(self) -> None:
        if not self._assigned:
            return
        self._table.check_stored()
        rows = np.array(sorted(self._assigned), np.int64)
        picked = [self._assigned[int(row)] for row in rows]
        values = {name: _join([p[name] for p in picked]) for name in picked[0]}
        self._table.put(rows, values)
        self._nbytes -= sum(map(_nbytes, picked))
        self._assigned = {}

    def _check(self) -> None:
        if self._closed:
            raise Closed("this writer is closed; take a new one from records.writer()")


def _join(pieces: list[Any]) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    return Ragged.join(pieces) if isinstance(pieces[0], Ragged) else np.concatenate(pieces)


def _copied(values: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(values, Ragged):
        return Ragged(values.values.copy(), values.offsets.copy(), values.shapes.copy())
    return values.astype(dtype)


def _nbytes(values: Mapping[str, Any]) -> int:
    return sum(_size(value) for value in values.values())


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray) and value.dtype.kind in "TO":
        return sum(16 + len(item) for item in value.tolist())
    return int(value.nbytes)


class WritableRows(SourceHolder):
    """The part of records that stores rows by other ways than assignment."""

    _source: RecordSource
    _setter: RowSetter | None = None

    def writer(self, budget: int | str = "256MiB") -> RecordWriter:
        """Return a context manager that gathers rows and stores whole chunks.

        Args:
            budget: about the most bytes that it holds, a number or text such as ``"256MiB"``.

        Returns:
            A ``RecordWriter``, with ``append``, ``extend`` and assignment.

        Raises:
            Invalid: this is a view, or the budget is not a number of bytes.
            ReadOnly: the records were opened for reading.

        >>> r = stash.create_records({}, {"x": "int32"})
        >>> with r.writer() as w:
        ...     w.append({"x": 5})
        >>> len(r)
        1
        """
        table = self._source.whole_table("writer")
        table.check(write=True)
        return RecordWriter(table, budget)

    def setter(self) -> RowSetter:
        """Return a function that stores single rows: ``put = r.setter()``, then ``put(i, row)``.

        It does what ``r[i] = row`` does, and for records that were created with ``in_place=True``
        several times faster: what can be checked once is checked here.

        Returns:
            A function of a row's number and a dict with a value for every field.

        Raises:
            Invalid: this is a view.
            ReadOnly: the records were opened for reading.

        >>> put = stash.create_records("rows", {"x": "int32"}, 4, in_place=True).setter()
        >>> put(1, {"x": 5})
        """
        table = self._source.whole_table("setter")
        table.check(write=True)
        return RowSetter(self._source)

    def _put_in_place(self) -> RowSetter | None:
        """What stores single rows of all of these fields in place, where they are."""
        put, table = self._setter, self._source.table
        if put is None:
            if (
                not self._source.selects_all
                or not table.known
                or table.settings.mode == "r"
                or table.closed
            ):
                return None
            put = self._setter = RowSetter(self._source)
        return put if put.in_place else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_setter"}

    def flush(self) -> None:
        """Have what this process wrote in place survive a power cut: on a disk, ``fsync``.

        In shared memory there is nothing to wait for, and a Redis server decides by itself what it
        keeps. Rows that others wrote since their own ``flush`` may be lost, in whole or in part.

        Raises:
            Unsupported: no field was created with ``in_place``: each write is whole, and
                ``options={"fsync": True}`` makes each durable.
            DriverError: the disk failed.

        >>> r = stash.create_records("rows", {"x": "int32"}, 4, in_place=True)
        >>> r[1] = {"x": 5}
        >>> r.flush()
        """
        table = self._source.table
        table.check()
        if not any(spec.in_place for spec in table.catalog.specs.values()):
            raise Unsupported(
                f"{table.where} has no field that is written in place, so nothing is to flush; "
                'open it with options={"fsync": True} to make each write durable'
            )
        table.driver.flush(table.path)


class _Bound(NamedTuple):
    """What a setter knows of records as ``catalog`` has them; no ``slots``: not in place."""

    catalog: Catalog
    columns: Mapping[str, Column]
    slots: list[tuple[str, Slot]] | None


class RowSetter:
    """Stores single rows of records; ``records.setter()`` returns one."""

    def __init__(self, source: RecordSource) -> None:
        """Bound to all fields of ``source``, as they are now."""
        self._source = source
        self._bind()

    def __call__(self, row: int, values: Any) -> None:
        """Store ``values`` as row ``row``.

        Args:
            row: its number; negative ones count from the end.
            values: a dict with a value for every field.

        Raises:
            InvalidSelection: there is no such row. Invalid: values do not fit. Conflict: the
            records or a field were replaced. Closed: the handle was closed.
        """
        table, bound = self._source.table, self._bound
        if table.catalog is not bound.catalog:
            bound = self._bind()
        slots, count = bound.slots, bound.catalog.rows
        if slots is None or type(row) is not int or type(values) is not dict:
            self._assign(row, values)
            return
        if not -count <= row < count or len(values) != len(slots):
            self._assign(row, values)
            return
        ready = []
        for name, slot in slots:
            data = slot.plain(values.get(name))
            if data is None:
                if name not in values:
                    self._assign(row, values)
                    return
                column = bound.columns[name]
                checked = column.checked(column.one(values[name]), 1)[0]
                data = slot.plain(np.ascontiguousarray(checked, slot.dtype).reshape(slot.shape))
            ready.append((slot, data))
        if table.closed:
            table.check()
        check = partial(table.check_same, bound.columns)
        put_row(table.latest.document(bound.catalog), check, ready, row % count)

    @property
    def in_place(self) -> bool:
        """Whether rows are stored in place, as the records were when a row was stored last."""
        return self._bound.slots is not None

    def _bind(self) -> _Bound:
        """Set at once, for other threads may store rows meanwhile."""
        table = self._source.table
        catalog, columns = table.catalog, table.columns
        slots = []
        for name, column in columns.items():
            array = column.arrays[0]
            chunks = array.make_writer(array.spec).chunks
            if not is_in_place(chunks) or not Slot.fits(chunks):
                break
            slots.append((name, Slot(chunks)))
        found = slots if len(slots) == len(columns) else None
        self._bound = bound = _Bound(catalog, columns, found)
        return bound

    def _assign(self, row: Any, values: Any) -> None:
        self._source.put(normalize(row, len(self._source)), values)
