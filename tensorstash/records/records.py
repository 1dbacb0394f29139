"""Records: rows of named fields, stored as arrays that share their first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns, nested
from ..driver import Driver
from ..errors import Invalid, Unsupported, counted, short
from ..handle import Settings
from ..location import resolve
from ..metadata.document import GroupDocument
from ..options import RowLayoutOptions, shown
from . import evolve, formats, layout
from .catalog import RecordAttributes, RecordsInfo, describe
from .column import Rows
from .formats import Format, RaggedLayout, read_by_chunk
from .ingest import check_columns, columns_of, row_of
from .rowset import AllRows, count_of, normalize, select_rows, start_of
from .schema import Field, chosen, path_of, ragged_path
from .series import Series
from .source import RecordSource
from .table import FactoryPlace, Place, Table
from .typed import Typed, typed
from .writer import RecordWriter

_Row = TypeVar("_Row")


class Records(RecordSource):
    """A handle on rows of named fields, or a view of some of them.

    ``r[17]`` is a row, ``r[rows]`` columns, by NumPy's rules for rows; ``r["obs"]`` is a field,
    ``r[["obs", "label"]]`` a view of some; ``r[rows] = {...}`` stores rows that are there. Views
    (``select``, ``where``, ``split``, ``with_format``, ``with_transform``) read nothing, and pickle
    small (less than 2 KiB, and 35 bytes for each field) without secrets. Torch's ``DataLoader``
    takes them as a map-style dataset. They may be used by several threads and in forked processes.

    Raises:
        InvalidSelection: a row is out of range. Invalid: there is no such field, or a value does
        not fit. NotFound, Conflict: the records or a field were deleted or replaced. ReadOnly,
        Closed: this handle may not.

    >>> r = stash.save_records({}, {"x": np.arange(3), "label": ["a", "b", "c"]})
    >>> r[1]["label"], r[1:]["x"].tolist(), r["x"][2].tolist()
    ('b', [1, 2], 2)
    """

    # -- what it is -------------------------------------------------------------------------

    @property
    def driver(self) -> Driver:
        """Where the records are stored."""
        return self.table.place[0]

    @property
    def path(self) -> str:
        """The path below the driver's root."""
        return self.table.place[1]

    @property
    def settings(self) -> Settings:
        """How the handle behaves."""
        return self.table.settings

    @property
    def fields(self) -> dict[str, Field]:
        """The fields of this view by path: ``"obs"``, ``"next/obs"``."""
        fields = self.table.fields
        return {name: fields[name] for name in self.names}

    @property
    def schema(self) -> dict[str, Any]:
        """The fields as nested dicts; what ``create_records`` takes."""
        return nested(self.fields)

    @property
    def attrs(self) -> RecordAttributes:
        """The user's attributes, one copy for all rows: a mapping whose changes are stored at
        once."""
        return RecordAttributes(self)

    def attributes(self) -> Mapping[str, Any]:
        """The attributes as they stand in the metadata; ``attrs`` changes them."""
        return self.table.catalog.attributes

    def info(self) -> RecordsInfo:
        """Describe the fields of this view and what is stored of all their rows.

        This lists the stored chunks.

        Returns:
            A ``RecordsInfo``, which prints as a table.

        >>> stash.save_records({}, {"x": np.arange(3)}).info().rows
        3
        """
        self.table.check()
        return describe(*self.table.place, self.table.catalog, self.names)

    def __repr__(self) -> str:
        if not self.table.known:
            return f"<tensorstash.Records at {self.table.where}>"
        names = ", ".join(self.names)
        return f"<tensorstash.Records {counted(len(self), 'row')} of {names} at {self.table.where}>"

    # -- reading ----------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """A row for an integer, columns for other selections of rows; a field for its name, a
        view for a list of names."""
        if _is_name(key):
            return self.field(key)
        if isinstance(key, list) and key and all(isinstance(k, (str, tuple)) for k in key):
            return self.select(*key)
        positions = normalize(key, len(self))
        if isinstance(positions, int):
            return self._one(positions)
        return self.present(self.take(positions))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        raise Unsupported(
            f"{self.table.where} has rows of several fields, which are no array: take one, as "
            f"np.asarray(r[{self.names[0]!r}]), or a dict of all, as r[:]"
        )

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The rows at ``indices``, as torch's ``DataLoader`` asks for a batch: one read a field."""
        return self.rows_for_torch(indices)

    def field(self, name: Any) -> Any:
        """Return a field by name, as ``r[name]`` does.

        Args:
            name: text such as ``"next/obs"``, or a tuple of the names along the way.

        Returns:
            The field's ``Array``; a ``Series`` where rows are not a plain array, or this view does
            not have all rows; a view of the fields within, for the name of a group of fields.

        Raises:
            Invalid: there is no such field.

        >>> stash.save_records({}, {"x": np.arange(3)}).field("x").shape
        (3,)
        """
        self.table.check()
        path = path_of(name)
        if path not in self.names:
            return self.select(path)
        column = self.table.columns[path]
        if column.field.kind in ("fixed", "text", "bytes") and isinstance(self.rows, AllRows):
            return column.arrays[0]
        return Series(self.table, path, self.rows, len(self), self.ragged)

    def lengths(self, name: Any) -> NDArray[np.int64]:
        """Return how long each row of a ragged field is, reading no values.

        Args:
            name: the field.

        Returns:
            An int64 array of shape ``(rows,)``: elements along the first axis of each row.

        Raises:
            Invalid: there is no such field, or it is not ragged.

        >>> r = stash.create_records({}, {"tokens": stash.ragged("int32")})
        >>> first = r.extend({"tokens": [[1, 2, 3], [4]]})
        >>> r.lengths("tokens").tolist()
        [3, 1]
        """
        return Series(self.table, ragged_path(self.fields, name), self.rows, len(self)).lengths()

    def __iter__(self) -> Iterator[Any]:
        """The rows in order. Where they follow each other as they are stored, each chunk of numbers
        and text is read once; of ragged rows a few hundred are read at a time."""
        count = len(self)
        start, names = start_of(self.rows), self.names
        if start is None:
            for at in range(0, count, 256):
                yield from self.each_row(self.take(slice(at, min(at + 256, count), 1)))
            return

        def take(rows: slice, some: list[str]) -> Columns:
            return self.table.take(self.rows.at(rows, self.table.catalog.rows), some)

        chunks = {name: self._rows_at_once(name) for name in names}
        for columns in read_by_chunk(take, names, chunks, start, count):
            yield from self.each_row(columns)

    # -- writing ----------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        """Store the values of rows: a dict with all fields of this view, for an integer of one
        row, else of columns. Touches one chunk a field for a row, however many rows there are."""
        if _is_name(key):
            raise Invalid(f"assign to rows, r[i] = {{...}}, or to a field: r[{key!r}][rows] = ...")
        positions = normalize(key, len(self))
        if isinstance(positions, int):
            rows: Rows = slice(positions, positions + 1, 1)
            checked = self.checked_row(value)
        else:
            rows = positions
            count = count_of(rows, len(self))
            # A dict of columns, or of values that stand for all rows; a TensorDict is a dict too.
            one = isinstance(value, Mapping) and not getattr(value, "batch_size", ())
            values = (row_of if one else columns_of)(value, self.fields)
            checked = check_columns(self.table.columns, self.names, values, count, repeat=True)
        self.table.put(self.rows.at(rows, self.table.catalog.rows), checked)

    def append(self, row: Any) -> int:
        """Add one row, atomically: readers see all of its fields or none.

        Concurrent appends of any number of processes all land.

        Args:
            row: a dict with a value for every field.

        Returns:
            The number of the row.

        Raises:
            Invalid: a field is missing or unknown, a value does not fit, or this is a view.
            TimedOut: another held the lock for longer than ``lock_timeout`` seconds.

        >>> r = stash.create_records({}, {"x": "int32"})
        >>> r.append({"x": 5}), len(r)
        (0, 1)
        """
        self._whole("append")
        return self.table.extend(self.checked_row(row), 1)

    def extend(self, rows: Any) -> int:
        """Add rows, atomically: readers see all of them or none.

        Args:
            rows: a dict of columns, a list of row dicts, a TensorDict, a table of arrow, pandas or
                polars, or other records.

        Returns:
            The number of the first new row.

        Raises:
            Invalid: a field is missing or unknown, columns differ in length, a value does not fit,
                or this is a view.
            TimedOut: another held the lock for longer than ``lock_timeout`` seconds.

        >>> r = stash.create_records({}, {"x": "int32"})
        >>> r.extend({"x": [5, 6]}), r.extend([{"x": 7}])
        (0, 2)
        """
        self._whole("extend")
        count, values = self.checked_rows(rows)
        return self.table.extend(values, count)

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
        self._whole("writer")
        self.table.check(write=True)
        return RecordWriter(self, budget)

    # -- views ------------------------------------------------------------------------------

    def select(self, *names: Any) -> Records:
        """Return a view of some fields; the others are never read.

        Args:
            names: names of fields, or of groups of fields.

        Returns:
            A view with these fields, in this order.

        Raises:
            Invalid: there is no such field, or no name was given.

        >>> list(stash.save_records({}, {"x": [1, 2], "y": [3, 4]}).select("y")[0])
        ['y']
        """
        wanted = [n for name in names for n in (name if isinstance(name, list) else [name])]
        if not wanted:
            raise Invalid("select takes the names of fields")
        return self._view(_names=tuple(chosen(self.fields, wanted)))

    def where(self, rows: Any) -> Records:
        """Return a view of some rows, in the order in which they are chosen.

        Args:
            rows: a slice, an array of row numbers, or a boolean mask of all rows of this view.

        Returns:
            A view of these rows, which are counted from 0.

        Raises:
            InvalidSelection: a row is out of range, or the mask has another length.

        >>> r = stash.save_records({}, {"x": np.arange(4)})
        >>> r.where(r["x"][:] % 2 == 1)[:]["x"].tolist()
        [1, 3]
        """
        return self._view(rows=select_rows(self.rows, rows, self.table.catalog.rows))

    def split(self, fractions: Mapping[str, float], seed: int = 0) -> dict[str, Records]:
        """Split the rows into shuffled parts that share none.

        Args:
            fractions: the part of all rows, from 0 to 1, that each view has; together at most 1.
                Those that sum to 1 leave no row out.
            seed: which shuffle, an integer.

        Returns:
            A dict of views by name, which pickle in a few bytes.

        Raises:
            Invalid: the fractions or the seed are not such numbers.

        >>> parts = stash.save_records({}, {"x": np.arange(10)}).split({"train": 0.8, "test": 0.2})
        >>> len(parts["train"]), len(parts["test"])
        (8, 2)
        """
        return {
            name: self._view(rows=part)
            for name, part in evolve.split_rows(self.rows, len(self), fractions, seed).items()
        }

    def with_format(self, form: Format | None, ragged: RaggedLayout | None = None) -> Records:
        """Return a view that shows rows in another format.

        Args:
            form: ``"numpy"`` or ``"torch"`` for dicts of columns, ``"python"`` for lists of row
                dicts, ``"arrow"``, ``"pandas"``, ``"polars"`` or ``"tensordict"``; ``None`` for the
                default, NumPy's.
            ragged: how ragged fields are shown, as for :meth:`ragged_as`; by default as now.

        Returns:
            A view of the same rows and fields.

        Raises:
            Invalid: there is no such format. Where its library is not installed, reading raises
                ``Unsupported``.

        >>> stash.save_records({}, {"x": [1, 2]}).with_format("python")[:]
        [{'x': 1}, {'x': 2}]
        """
        formats.check_format(form or "numpy", ragged or self.ragged)
        return self._view(_format=form, ragged=ragged or self.ragged)

    def ragged_as(self, ragged: RaggedLayout) -> Records:
        """Return a view that shows ragged fields in another way.

        Args:
            ragged: ``"list"`` for a list of arrays, ``"padded"`` for one array of shape
                ``(rows, longest, ...)`` with zeros behind, ``"jagged"`` for a ``Ragged``, or for
                torch a nested tensor.

        Returns:
            A view of the same rows and fields.

        Raises:
            Invalid: there is no such way.

        >>> r = stash.create_records({}, {"tokens": stash.ragged("int32")})
        >>> first = r.extend({"tokens": [[1, 2], [3]]})
        >>> r.ragged_as("padded")[:]["tokens"].tolist()
        [[1, 2], [3, 0]]
        """
        formats.check_format("numpy", ragged)
        return self._view(ragged=ragged)

    def with_transform(self, transform: Callable[[Any], Any] | None) -> Records:
        """Return a view that passes every batch through a function, once.

        Args:
            transform: it gets the columns in the view's format, and what it returns is the batch; a
                single row is a batch of one. ``None`` for no function.

        Returns:
            A view of the same rows and fields.

        Raises:
            Invalid: ``transform`` cannot be called.

        >>> r = stash.save_records({}, {"x": np.arange(3)})
        >>> r.with_transform(lambda batch: {"twice": 2 * batch["x"]})[1:]["twice"].tolist()
        [2, 4]
        """
        if transform is not None and not callable(transform):
            raise Invalid(f"a transform is a function of a batch, not {short(transform)}")
        return self._view(transform=transform)

    def with_connection_factory(self, factory: Callable[[], Any]) -> Records:
        """Return a view that other processes connect by a function instead of by its driver.

        Args:
            factory: a function without arguments that returns a location, a driver or records. It
                is pickled in place of the driver, so it is defined in a module.

        Returns:
            A view of the same rows and fields.

        Raises:
            Invalid: ``factory`` cannot be called, or cannot be pickled.

        >>> from functools import partial
        >>> r = stash.save_records("rows", {"x": np.arange(3)})
        >>> len(r.with_connection_factory(partial(stash.open_records, "rows")))
        3
        """
        table = Table(FactoryPlace(factory, _place_of), self.table.settings)
        table.adopt(self.table.catalog)
        return self._view(table=table)

    def as_typed(self, cls: type[_Row]) -> Typed[_Row]:
        """Return typed access to the rows: each is an instance of a class.

        Args:
            cls: a dataclass, a TypedDict, or a class of tensordict, whose names are fields.

        Returns:
            A ``Typed``, whose attributes are fields, and which checks what is assigned.

        Raises:
            Invalid: a name of the class is not a field.

        >>> from dataclasses import make_dataclass
        >>> Row = make_dataclass("Row", [("x", int)])
        >>> int(stash.save_records({}, {"x": np.arange(3)}).as_typed(Row)[2].x)
        2
        """
        return typed(self, cls)

    # -- fields -----------------------------------------------------------------------------

    @shown(RowLayoutOptions, layout.specs, rows_per_chunk="the least of the other fields")
    def add_field(
        self, name: Any, field: Any, values: Any = None, **how: Unpack[RowLayoutOptions]
    ) -> None:
        """Add a field to all rows, in one step for every reader.

        Args:
            name: the new field: text, or a tuple of names along the way, as ``("next", "obs")``.
            field: what it holds, as in the schema of ``create_records``.
            values: one for each row; by default zeros, empty text, or rows of no elements.
            rows_per_chunk, rows_per_shard, codecs, fill_value: how it is stored, as
                ``create_records`` explains.

        Raises:
            AlreadyExists: there is a field of this name.
            Invalid: the name, the field or an option is wrong, values are too few, too many or do
                not fit, or this is a view.
            ReadOnly: the records were opened for reading.

        >>> r = stash.save_records({}, {"x": np.arange(3)})
        >>> r.add_field("label", str, ["a", "b", "c"])
        >>> r[1]["label"]
        'b'
        """
        self._whole("add_field")
        evolve.add(self.table, path_of(name), field, values, how)

    def drop_field(self, name: Any) -> None:
        """Remove a field and what is stored of it, in one step for every reader.

        Args:
            name: a field, or a group of fields, all of which are removed.

        Raises:
            Invalid: there is no such field, no other would be left, or this is a view.
            ReadOnly: the records were opened for reading.

        >>> r = stash.save_records({}, {"x": [1, 2], "y": [3, 4]})
        >>> r.drop_field("y")
        >>> r.names
        ('x',)
        """
        self._whole("drop_field")
        evolve.drop(self.table, chosen(self.table.fields, [name]))

    def rename_field(self, old: Any, new: Any) -> None:
        """Give a field another name, in one step for every reader.

        What is stored of it is copied to the new name first, as keys cannot be renamed.

        Args:
            old: the field.
            new: its new name.

        Raises:
            AlreadyExists: there is a field of the new name.
            Invalid: there is no such field, the new name is not allowed, or this is a view.
            ReadOnly: the records were opened for reading.

        >>> r = stash.save_records({}, {"x": [1, 2]})
        >>> r.rename_field("x", "z")
        >>> r.names
        ('z',)
        """
        self._whole("rename_field")
        evolve.rename(self.table, path_of(old), path_of(new))

    # -- the handle -------------------------------------------------------------------------

    def refresh(self) -> Records:
        """Read the stored metadata again: others may have added rows or fields.

        Returns:
            This handle.

        >>> place = {}
        >>> r = stash.save_records(place, {"x": [1, 2]})
        >>> first = stash.open_records(place, "r+").append({"x": 3})
        >>> len(r.refresh())
        3
        """
        self.table.refresh()
        return self

    def close(self) -> None:
        """Refuse further use of this handle and of its views. Nothing else needs closing.

        >>> with stash.save_records({}, {"x": [1, 2]}) as r:
        ...     first = r.append({"x": 3})
        """
        self.table.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside -----------------------------------------------------------------------------

    def _open(self, write: bool = False) -> None:
        self.table.check(write)

    def _content(self) -> GroupDocument | None:
        """What is known of the node: that it is a group."""
        return GroupDocument() if self.table.known else None

    def _whole(self, what: str) -> None:
        if not isinstance(self.rows, AllRows) or self._names is not None:
            raise Invalid(
                f"{what}() is for all rows and fields; call it on the records, not a view"
            )

    def checked_row(self, row: Any) -> dict[str, Any]:
        """A row's values, each ready to be stored as a column of one row."""
        values = row_of(row, self.fields)
        columns = self.table.columns
        one = {path: columns[path].one(v) if path in columns else [v] for path, v in values.items()}
        return check_columns(columns, self.names, one, 1)

    def checked_rows(self, rows: Any) -> tuple[int, dict[str, Any]]:
        """How many rows there are in what :meth:`extend` takes, and their values, checked."""
        values = columns_of(rows, self.fields)
        if not values and not isinstance(rows, Mapping):  # a list of no rows has no fields
            values = {name: [] for name in self.names}
        count = len(next(iter(values.values()), ()))
        return count, check_columns(self.table.columns, self.names, values, count)


def _is_name(key: Any) -> bool:
    return isinstance(key, str) or (
        isinstance(key, tuple) and bool(key) and isinstance(key[0], str)
    )


def _place_of(found: Any) -> Place:
    """The place of what a connection factory returns."""
    if isinstance(found, Records):
        return found.table.place
    return resolve(found), ""
