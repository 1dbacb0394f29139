"""Records: rows of named fields, stored as arrays that share their first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ..columns import nested
from ..driver import Driver
from ..errors import Invalid, Unsupported, short
from ..handle import Settings
from ..loading.loader import BatchLoader
from ..loading.sampler import EpochOptions, shows_epoch_options
from ..options import RowLayoutOptions, only, shown
from ..sources.windows import Windows
from . import evolve, formats, layout
from .catalog import RecordAttributes, RecordsInfo
from .formats import Format, RaggedLayout
from .ingest import check_row, check_rows
from .rowset import normalize, select_rows
from .schema import Field, chosen, is_name, path_of, ragged_path
from .series import Series, field_of
from .source import RecordSource
from .table import FactoryPlace, Table
from .typed import Row, Typed, typed
from .writer import WritableRows


class Records(WritableRows):
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

    def __init__(self, table: Table) -> None:
        """All rows and fields of ``table``."""
        self._source = RecordSource(table)

    def _view(self, **changes: Any) -> Records:
        made = object.__new__(type(self))
        made._source = self._source.changed(**changes)
        return made

    @property
    def source(self) -> RecordSource:
        """The rows of this view as loaders, windows and samplers read them."""
        return self._source

    @property
    def driver(self) -> Driver:
        """Where the records are stored."""
        return self._source.table.place[0]

    @property
    def path(self) -> str:
        """The path below the driver's root."""
        return self._source.table.place[1]

    @property
    def settings(self) -> Settings:
        """How the handle behaves."""
        return self._source.table.settings

    @property
    def fields(self) -> dict[str, Field]:
        """The fields of this view by path: ``"obs"``, ``"next/obs"``."""
        return self._source.fields

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the fields."""
        return self._source.names

    def __len__(self) -> int:
        return len(self._source)

    @property
    def schema(self) -> dict[str, Any]:
        """The fields as nested dicts; what ``create_records`` takes."""
        return nested(self.fields)

    @property
    def attrs(self) -> RecordAttributes:
        """The user's attributes, one copy for all rows: a mapping whose changes are stored at
        once."""
        return RecordAttributes(self._source.table)

    def info(self) -> RecordsInfo:
        """Describe the fields of this view and what is stored of all their rows.

        This lists the stored chunks.

        Returns:
            A ``RecordsInfo``, which prints as a table.

        >>> stash.save_records({}, {"x": np.arange(3)}).info().rows
        3
        """
        return self._source.info()

    def __repr__(self) -> str:
        return repr(self._source)

    # -- reading ----------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        """A row for an integer, columns for other selections of rows; a field for its name, a
        view for a list of names."""
        if is_name(key):
            return self.field(key)
        if isinstance(key, list) and key and all(isinstance(k, (str, tuple)) for k in key):
            return self.select(*key)
        return self._source.chosen(key)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        raise Unsupported(
            f"{self._source.table.where} has rows of several fields, which are no array: take one, "
            f"as np.asarray(r[{self.names[0]!r}]), or a dict of all, as r[:]"
        )

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The rows at ``indices``, as torch's ``DataLoader`` asks for a batch: one read a field."""
        return self._source.rows_for_torch(indices)

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
        self._source.table.check()
        path = path_of(name)
        return field_of(self._source, path) if path in self.names else self.select(path)

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
        return Series(self._source, ragged_path(self.fields, name)).lengths()

    def __iter__(self) -> Iterator[Any]:
        """The rows in order, some read at a time."""
        return iter(self._source)

    @shows_epoch_options(rank=0, world_size=1)
    def iter_batches(
        self,
        batch_size: int,
        *,
        epoch: int = 0,
        threads: int | None = None,
        prefetch: int = 4,
        **options: Unpack[EpochOptions],
    ) -> Iterator[Any]:
        """Iterate over one epoch in batches, read ahead by threads: each row comes once.

        Args:
            batch_size: rows of a batch; the last may have fewer.
            shuffle: ``False``: rows in order; ``True``: shuffled among some chunks at a time, so
                that each is read once; ``"exact"``: every order is as likely as any other.
            seed, epoch: integers, all that a shuffle depends on.
            drop_last: leave out a last batch of fewer rows.
            rank, world_size: of how many processes this is which; each has its part of a batch.
            lanes: chunks that the rows of a shuffled batch are dealt from at a time.
            pool: chunks that a shuffle draws from; by default four for each row of a batch.
            pool_bytes: the most memory for decoded chunks, such as ``"256MiB"``, for ``pool`` too.
            threads: how many read; by default 16 from remote places, else as many as pay.
            prefetch: batches made before they are asked for; 0: none, and no thread.

        Returns:
            An iterator over batches, in the format of this view.

        Raises:
            Invalid: an argument is wrong.
            NotFound, Conflict: fields were dropped or replaced meanwhile.

        >>> r = stash.save_records({}, {"x": np.arange(5)})
        >>> [batch["x"].tolist() for batch in r.iter_batches(2)]
        [[0, 1], [2, 3], [4]]
        """
        only(options, EpochOptions, "iter_batches")
        loader: BatchLoader[Any] = BatchLoader(
            self._source, batch_size, threads=threads, prefetch=prefetch, **options
        )
        loader.set_epoch(epoch)
        return iter(loader)

    def windows(
        self,
        length: int,
        stride: int = 1,
        *,
        fields: Sequence[str] | str | None = None,
        boundaries: Any = None,
        whole_rows: bool = False,
    ) -> Windows:
        """Return every window of rows that follow each other, as rows to load.

        Args:
            length: rows of a window.
            stride: rows from the start of one window to that of the next.
            fields: one field or several; by default all of this view.
            boundaries: where episodes end, which no window crosses, or the field ``r["done"]``
                that says so; by default there are none.
            whole_rows: allow ragged fields: a window is of their rows, not of their values.

        Returns:
            A ``Windows``, which loaders and samplers take, with ``len`` and indexing.

        Raises:
            Invalid: an argument is wrong, or a field is ragged and ``whole_rows`` is false.

        >>> windows = stash.save_records({}, {"x": np.arange(5)}).windows(3)
        >>> len(windows), windows[1]["x"].tolist()
        (3, [1, 2, 3])
        """
        return Windows(
            self.source, length, stride, fields=fields, boundaries=boundaries, whole_rows=whole_rows
        )

    # -- writing ----------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        """Store the values of rows: a dict with all fields of this view, for an integer of one
        row, else of columns. Touches one chunk a field for a row, however many rows there are."""
        if is_name(key):
            raise Invalid(f"assign to rows, r[i] = {{...}}, or to a field: r[{key!r}][rows] = ...")
        if type(key) is int and type(value) is dict and (put := self._put_in_place()) is not None:
            put(key, value)
        else:
            self._source.put(normalize(key, len(self)), value)

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
        table = self._source.whole_table("append")
        return table.extend(check_row(row, table.columns, table.fields), 1)

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
        table = self._source.whole_table("extend")
        count, values = check_rows(rows, table.columns, table.fields)
        return table.extend(values, count)

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
        source = self._source
        return self._view(rows=select_rows(source.rows, rows, source.table.catalog.rows))

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
        parts = evolve.split_rows(self._source.rows, len(self), fractions, seed)
        return {name: self._view(rows=part) for name, part in parts.items()}

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
        formats.check_format(form or "numpy", ragged or self._source.ragged)
        return self._view(_format=form, ragged=ragged or self._source.ragged)

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
        known = self._source.table
        return self._view(table=Table(FactoryPlace(factory), known.settings, known.catalog))

    def as_typed(self, cls: type[Row]) -> Typed[Row]:
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

    @shown(RowLayoutOptions, layout.specs, rows_per_chunk="the least of the other fields")
    def add_field(
        self, name: Any, field: Any, values: Any = None, **how: Unpack[RowLayoutOptions]
    ) -> None:
        """Add a field to all rows, in one step for every reader.

        Args:
            name: the new field: text, or a tuple of names along the way, as ``("next", "obs")``.
            field: what it holds, as in the schema of ``create_records``.
            values: one for each row; by default zeros, empty text, or rows of no elements.
            rows_per_chunk, rows_per_shard, codecs, fill_value, in_place: how it is stored, as
                ``create_records`` explains; by default in place where all others are.

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
        evolve.add(self._source.whole_table("add_field"), path_of(name), field, values, how)

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
        table = self._source.whole_table("drop_field")
        evolve.drop(table, chosen(table.fields, [name]))

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
        evolve.rename(self._source.whole_table("rename_field"), path_of(old), path_of(new))

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
        self._source.table.refresh()
        return self

    def close(self) -> None:
        """Refuse further use of this handle and of its views.

        >>> with stash.save_records({}, {"x": [1, 2]}) as r:
        ...     first = r.append({"x": 3})
        """
        self._source.table.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
