"""Records: rows of named fields, stored as arrays that share their first axis."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns, nested
from ..driver import Driver
from ..errors import Invalid, Unsupported, counted, listed, short
from ..handle import Settings
from ..location import resolve
from ..metadata.document import GroupDocument
from . import evolve, formats
from .about import RecordsInfo, info
from .catalog import RecordAttributes
from .column import Rows
from .formats import Form, Layout
from .rowset import All, count_of, narrowed, normalize, start_of
from .schema import Field, chosen, path_of
from .series import Series
from .source import RecordSource
from .table import By, Place, Table
from .typed import Typed, typed
from .unstack import in_order
from .writer import RecordWriter

_Row = TypeVar("_Row")


class Records(RecordSource):
    """A handle on rows of named fields, or a view of some of them.

    ``r[17]`` is a row, ``r[rows]`` columns, by NumPy's rules for rows; ``r["obs"]`` a field;
    ``r[["obs", "label"]]`` a view of some. Views (``select``, ``where``, ``split``,
    ``with_format``, ``with_transform``) read nothing, and pickle in less than 2 KiB without
    secrets. A map-style dataset for torch's ``DataLoader`` as it is. Safe in threads and forks.
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
        """What the fields of this view are, and what is stored of all their rows (lists the
        stored chunks)."""
        self.table.check()
        return info(*self.table.place, self.table.catalog, self.names)

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
        """A field by name: its array, or a :class:`Series` where rows are no plain array or the
        view has not all rows; a view of what stands within, for a name above fields."""
        self.table.check()
        path = path_of(name)
        if path not in self.names:
            return self.select(path)
        column = self.table.columns[path]
        if column.field.kind in ("fixed", "text", "bytes") and isinstance(self.rows, All):
            return column.arrays[0]
        return Series(self.table, path, self.rows, len(self), self.ragged)

    def lengths(self, name: Any) -> NDArray[np.int64]:
        """Elements along the first axis of each row of a ragged field, reading no values."""
        return Series(self.table, self._ragged_path(name), self.rows, len(self)).lengths()

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
        for columns in in_order(take, names, chunks, start, count):
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
            values = (formats.row_of if one else formats.columns_of)(value, self.fields)
            checked = self._checked(values, count, repeat=True)
        self.table.put(self.rows.at(rows, self.table.catalog.rows), checked)

    def append(self, row: Any) -> int:
        """Add one row, a dict with a value for every field; answers its number. Atomic: readers
        see all of its fields or none, and appends of any number of processes all land."""
        self._whole("append")
        return self.table.extend(self.checked_row(row), 1)

    def extend(self, rows: Any) -> int:
        """Add rows, atomically: a dict of columns, a list of rows, a TensorDict, a table of
        arrow, pandas or polars. Answers the number of the first."""
        self._whole("extend")
        count, values = self.checked_rows(rows)
        return self.table.extend(values, count)

    def writer(self, budget: int | str = "256MiB") -> RecordWriter:
        """A context manager that gathers rows and stores whole chunks, holding at most about
        ``budget`` bytes: ``with r.writer() as w: w.append(row)``."""
        self._whole("writer")
        self.table.check(write=True)
        return RecordWriter(self, budget)

    # -- views ------------------------------------------------------------------------------

    def select(self, *names: Any) -> Records:
        """A view of some fields, by name or by the name of what they stand within; the others are
        never read."""
        wanted = [n for name in names for n in (name if isinstance(name, list) else [name])]
        if not wanted:
            raise Invalid("select takes the names of fields")
        return self._view(_names=tuple(chosen(self.fields, wanted)))

    def where(self, rows: Any) -> Records:
        """A view of the rows that a mask, an index array or a slice chooses, in its order."""
        return self._view(rows=narrowed(self.rows, rows, self.table.catalog.rows))

    def split(self, fractions: Mapping[str, float], seed: int = 0) -> dict[str, Records]:
        """Views of disjoint rows, shuffled by ``seed``, of about these fractions; they pickle in
        a few bytes. Fractions that sum to 1 leave no row out."""
        return {
            name: self._view(rows=part)
            for name, part in evolve.parts(self.rows, len(self), fractions, seed).items()
        }

    def with_format(self, form: Form | None, ragged: Layout | None = None) -> Records:
        """A view that answers columns as dicts of NumPy arrays (``"numpy"``) or torch tensors,
        lists of row dicts (``"python"``), or tables of arrow, pandas, polars or TensorDict."""
        formats.check(form or "numpy", ragged or self.ragged)
        return self._view(_format=form, ragged=ragged or self.ragged)

    def ragged_as(self, ragged: Layout) -> Records:
        """A view that answers ragged fields as a ``"list"`` of arrays, ``"padded"`` to the longest
        with zeros, or ``"jagged"``: a ``Ragged``, for torch a nested tensor."""
        formats.check("numpy", ragged)
        return self._view(ragged=ragged)

    def with_transform(self, transform: Callable[[Any], Any] | None) -> Records:
        """A view that passes every batch through ``transform``, once: it gets the columns in the
        view's format, and what it answers is the batch. A single row is a batch of one."""
        if transform is not None and not callable(transform):
            raise Invalid(f"a transform is a function of a batch, not {short(transform)}")
        return self._view(transform=transform)

    def with_connection_factory(self, factory: Callable[[], Any]) -> Records:
        """A view that other processes connect by ``factory()``, which answers a location, a driver
        or records; it is what travels in pickles, in place of the driver. Tried here: an
        unpicklable factory raises :class:`~tensorstash.errors.Invalid` now, not in a worker."""
        if not callable(factory):
            raise Invalid(f"a connection factory is a function without arguments, not {factory!r}")
        try:
            pickle.dumps(factory)
        except Exception as error:
            raise Invalid(
                f"this connection factory cannot be pickled ({error}); give a function of a "
                "module, a functools.partial of one, or an object whose class is in a module"
            ) from error
        table = Table(By(factory, _place_of), self.table.settings)
        table.adopt(self.table.catalog)
        return self._view(table=table)

    def as_typed(self, cls: type[_Row]) -> Typed[_Row]:
        """Typed access by a dataclass or TypedDict whose names are the fields: attributes are
        fields, rows are instances, and assignment is checked."""
        return typed(self, cls)

    # -- fields -----------------------------------------------------------------------------

    def add_field(self, name: Any, field: Any, values: Any = None, **how: Any) -> None:
        """Add a field to all rows, in one step: of ``values``, or absent ones (zeros, empty text,
        rows of no elements). ``how`` as in ``create_records``."""
        self._whole("add_field")
        evolve.add(self.table, path_of(name), field, values, how)

    def drop_field(self, name: Any) -> None:
        """Remove a field, or all that stands within a name, and what is stored of it."""
        self._whole("drop_field")
        evolve.drop(self.table, chosen(self.table.fields, [name]))

    def rename_field(self, old: Any, new: Any) -> None:
        """Give a field another name, in one step for readers. Its chunks are copied to the new
        name first, as keys cannot be renamed."""
        self._whole("rename_field")
        evolve.rename(self.table, path_of(old), path_of(new))

    # -- the handle -------------------------------------------------------------------------

    def refresh(self) -> Records:
        """Look again: others may have added rows or fields."""
        self.table.refresh()
        return self

    def close(self) -> None:
        """Refuse further use, of views of this handle too. Nothing else needs closing."""
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
        if not isinstance(self.rows, All) or self._names is not None:
            raise Invalid(
                f"{what}() is for all rows and fields; call it on the records, not a view"
            )

    def checked_row(self, row: Any) -> dict[str, Any]:
        """A row's values, each ready to be stored as a column of one row."""
        values = formats.row_of(row, self.fields)
        columns = self.table.columns
        one = {path: columns[path].one(v) if path in columns else [v] for path, v in values.items()}
        return self._checked(one, 1)

    def checked_rows(self, rows: Any) -> tuple[int, dict[str, Any]]:
        """How many rows there are in what :meth:`extend` takes, and their values, checked."""
        values = formats.columns_of(rows, self.fields)
        if not values and not isinstance(rows, Mapping):  # a list of no rows has no fields
            values = {name: [] for name in self.names}
        count = len(next(iter(values.values()), ()))
        return count, self._checked(values, count)

    def _checked(
        self, values: Mapping[str, Any], count: int, repeat: bool = False
    ) -> dict[str, Any]:
        """``values`` of ``count`` rows for every field, each ready to be stored."""
        names = self.names
        missing = [name for name in names if name not in values]
        extra = [name for name in values if name not in names]
        if missing or extra:
            what = f"no value for {listed(missing)}" if missing else ""
            more = f"no field {listed(extra)}" if extra else ""
            known = listed(names)
            raise Invalid(f"{' and '.join(filter(None, (what, more)))}; the fields are {known}")
        columns = self.table.columns
        return {name: columns[name].checked(values[name], count, repeat) for name in names}

    def _ragged_path(self, name: Any) -> str:
        path = path_of(name)
        field = self.fields.get(path)
        if field is None or field.kind != "ragged":
            known = ", ".join(repr(n) for n, f in self.fields.items() if f.kind == "ragged")
            raise Invalid(f"{path!r} is not a ragged field; those are: {known or 'none'}")
        return path


def _is_name(key: Any) -> bool:
    return isinstance(key, str) or (
        isinstance(key, tuple) and bool(key) and isinstance(key[0], str)
    )


def _place_of(found: Any) -> Place:
    """The place of what a connection factory answers."""
    if isinstance(found, Records):
        return found.table.place
    return resolve(found), ""
