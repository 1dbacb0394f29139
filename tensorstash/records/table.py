"""Where records are stored, and the columns over their arrays: what all views of them share."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..array import Array, renewed
from ..columns import Columns, Placed
from ..driver import Check, Driver, located
from ..engine.in_place.reading import MAPPED_BYTES, MAPPED_FILES, MappedRows, gather_mapped
from ..engine.look import Look, Together, blame
from ..errors import Closed, Corrupt, Invalid, NotFound, ReadOnly, Unsupported
from ..handle import Settings
from ..location import resolve
from ..metadata.copies import publishes
from ..metadata.document import GroupDocument
from ..metadata.spec import ANOTHER, ArraySpec
from ..threads import once
from ..writer import SingleRows
from . import commit, layout
from .catalog import (
    Catalog,
    arrays_of,
    as_known,
    changed_fields,
    dropped_fields,
    is_same_array,
    value_counts,
)
from .column import (
    BytesColumn,
    Column,
    FieldArray,
    FixedColumn,
    JsonColumn,
    ObjectColumn,
    Rows,
    TextColumn,
)
from .commit import FieldGuard, LatestCatalog, missing_field
from .ragged_column import RaggedColumn
from .schema import Field, Fields

Place = tuple[Driver, str]

_KINDS: Mapping[str, type[Column]] = {
    "fixed": FixedColumn,
    "ragged": RaggedColumn,
    "text": TextColumn,
    "bytes": BytesColumn,
    "json": JsonColumn,
    "object": ObjectColumn,
}

_Columns = tuple[Catalog, Mapping[str, Column], Mapping[str, Array]]
"""Columns by field and handles by array, and the catalog that they are of."""


class Table:
    """The records at one place, as they were when last looked at.

    ``connect`` returns the driver and path, and is called on first use: in a process into which
    the table was pickled, by the user's own function where there is one. ``identities``: those of
    the arrays that a pickled table knew.
    """

    def __init__(
        self,
        connect: Callable[[], Place],
        settings: Settings,
        catalog: Catalog | None = None,
        closed: bool = False,
        identities: Mapping[str, bytes | None] | None = None,
    ) -> None:
        self._connect = connect
        self._identities = identities or {}
        self.dropped: tuple[str, ...] = ()  # fields that a pickled table knew, and that are no more
        self.settings = settings
        self.closed = closed
        self._place: Place | None = None
        self._catalog = catalog
        self._columns: dict[bool, _Columns] = {}  # by whether they are for a worker
        self._latest: LatestCatalog | None = None
        self._singles = SingleRows()
        self._mapped: MappedFields | None = None

    @property
    def place(self) -> Place:
        """The driver, and the path below it."""
        if self._place is None:
            self._place = self._connect()
            publishes(*self._place)
        return self._place

    @property
    def driver(self) -> Driver:
        """Where the records are stored."""
        return self.place[0]

    @property
    def path(self) -> str:
        """The path below the driver's root."""
        return self.place[1]

    @property
    def where(self) -> str:
        """The place as a URL, for messages."""
        return located(*self.place)

    @property
    def known(self) -> bool:
        """Whether anything was read yet."""
        return self._catalog is not None

    @property
    def catalog(self) -> Catalog:
        """The fields and the number of rows, as last looked at."""
        if self._catalog is None:
            self._load()
        assert self._catalog is not None
        return self._catalog

    @property
    def columns(self) -> Mapping[str, Column]:
        """A column for every field, as :attr:`catalog` has it."""
        return self._columns_for(in_worker=False)

    def _columns_for(self, in_worker: bool) -> Mapping[str, Column]:
        """``in_worker``: those for a worker of a ``DataLoader``, of which several fill the
        processors: over handles of its own, which read with the caller's thread alone."""
        catalog, known = self.catalog, self._columns.get(in_worker)
        if known is None or known[0] is not catalog:
            settings = replace(self.settings, threads=1) if in_worker else self.settings
            old = {} if known is None else known[2]
            arrays = {n: self._array(n, s, old.get(n), settings) for n, s in catalog.specs.items()}
            columns = {
                path: column_of(path, field, [arrays[name] for name in arrays_of(path, field)])
                for path, field in catalog.fields.items()
            }
            # Whole or not at all, so that threads need no lock: one that a fork would inherit.
            known = self._columns[in_worker] = catalog, columns, arrays
        return known[1]

    def _load(self) -> None:
        """Look at the stored document for the first time."""
        self.check()
        now = commit.load(*self.place)
        known, latest = as_known(now, self._identities), LatestCatalog(*self.place, now)
        if known is not now and self.settings.immutable:  # nobody looks at what is latest
            name = next(iter(changed_fields(known, now)))
            raise latest.changed(name, ANOTHER, now)

        def change() -> None:
            if self._catalog is None:
                self._catalog, self._latest = known, latest
                self.dropped = dropped_fields(self._identities, now)

        once(change)

    def refresh(self) -> None:
        """Look at the stored document again."""
        self.check()
        before = self._catalog
        self.adopt(commit.load(*self.place, before), before)
        self.dropped = ()

    def adopt(self, catalog: Catalog, before: Catalog | None = None) -> None:
        """``catalog`` is how the records are now; or were, if another thread has learned of more
        rows since ``before`` was known."""

        def change() -> None:
            now, latest = self._catalog, self._latest
            if now is None or now is before or now.rows <= catalog.rows:
                self._catalog = catalog
            if latest is not None:
                latest.now = catalog

        once(change)

    @property
    def latest(self) -> LatestCatalog:
        """The document as last seen."""
        catalog, latest = self.catalog, self._latest
        if latest is None:
            latest = self._latest = LatestCatalog(*self.place, catalog)
        return latest

    def _array(self, name: str, spec: ArraySpec, old: Array | None, settings: Settings) -> Array:
        """The handle on an array, with what ``old`` has cached while the array is the same."""
        same = old is not None and old.spec.identity == spec.identity
        if old is not None and same and is_same_array(old.spec, spec):
            return renewed(old, spec)
        driver, path = self.place
        kind = FieldArray if name in self.fields else Array
        if layout.narrow(self.catalog, name):
            settings = replace(settings, cache_bytes=max(settings.cache_bytes, layout.NARROW_CACHE))
        if driver.capabilities.leases:
            # Where a chunk is absent, one who added rows, was stopped and wakes late stores his.
            settings = replace(settings, write_fill=True)
        made = kind(driver, f"{path}{name}/", settings, spec)
        made.guard = FieldGuard(self.latest, name)
        return made

    # -- what attributes ask of a handle --------------------------------------------------

    def attributes(self) -> Mapping[str, Any]:
        """The user's attributes as they stand in the document."""
        return self.catalog.attributes

    def _content(self) -> GroupDocument | None:
        """What is known of the node: that it is a group."""
        return GroupDocument() if self.known else None

    # -- rows -----------------------------------------------------------------------------

    def take(
        self,
        rows: Rows,
        names: Iterable[str],
        out: Mapping[str, NDArray[Any] | Placed] | None = None,
        in_worker: bool = False,
    ) -> Columns:
        """The values of some fields in ``rows``; ``in_worker``: see :meth:`_columns_for`."""
        self.check()
        columns = self._columns_for(in_worker)
        found: Columns = dict.fromkeys(names)
        _check_known(self, columns, found)

        names = [*found]
        look = self.look(names)
        together = None if look is None else Together(look, len(names))
        reads = {} if together is None else {name: together.read() for name in names}

        def read(name: str) -> None:
            own, place = reads.get(name), None if out is None else out.get(name)
            found[name] = columns[name].take(rows, place, own)
            if own is not None:
                own.done()

        try:
            commit.for_each_field(self.driver, names, read)
            if look is not None:
                look.done()
        except (Corrupt, Invalid, NotFound, Unsupported) as error:
            blame(lambda: self.check_same(names), error)
            raise
        if look is None:
            self.check_same(names)
        return found

    def mapped(self, rows: Any, names: tuple[str, ...]) -> Columns | None:
        """What :meth:`take` returns of a few rows by number, where all fields lie in maps;
        ``None`` where :meth:`take` has to do it, or to say what is wrong."""
        if self.closed or self._catalog is None or type(rows) is not np.ndarray:
            return None
        if (bound := self._mapped) is None or not bound.is_of(self._catalog, names):
            latest = None if self.settings.immutable else self.latest
            bound = self._mapped = MappedFields(self._catalog, names, self.columns, latest)
        return bound.take(rows)

    # -- the same fields still ------------------------------------------------------------

    def check_same(self, names: Iterable[str]) -> None:
        """:class:`~tensorstash.errors.Conflict` or :class:`~tensorstash.errors.NotFound` where
        some of these fields are no more, or others are in their places. One request that moves no
        bytes, while the document is the one that was last seen."""
        if not self.settings.immutable:
            self.latest.check(self.catalog, names)

    def look(self, names: Iterable[str]) -> Look | None:
        """The same in a remote store, to be asked for together with what a call reads; ``None``
        where a request costs no round trip, or nothing changes."""
        if self.settings.immutable or self.driver.capabilities.local:
            return None
        return self.latest.look_for_fields(self.catalog, [*names])

    # -- changes --------------------------------------------------------------------------

    def check_stored(self) -> None:
        """:class:`~tensorstash.errors.Conflict` where other fields were put in the place of
        these, or the same stored in another way."""
        commit.load_unchanged(*self.place, self.fields, self.catalog.specs)

    def put(self, rows: Rows, values: Mapping[str, Any]) -> None:
        """Store checked values in rows that are there."""
        self.check(write=True)
        columns = self.columns
        _check_known(self, columns, values)
        ends: dict[str, int] = {}
        look = self.look(values)
        if look is None:
            self.check_same(values)

        def put(name: str) -> None:
            try:
                ends[name] = columns[name].put(rows, values[name], look)
            except NotFound:
                commit.restore_members(*self.place, self.fields, self.catalog.specs)
                ends[name] = columns[name].put(rows, values[name])

        commit.for_each_field(self.driver, [*values], put)
        longer = {n: ends[n] for n, k in value_counts(self.catalog).items() if ends.get(n, 0) > k}
        if longer:
            before = self._catalog
            self.adopt(commit.publish_value_counts(*self.place, longer), before)

    def extend(self, values: Mapping[str, Any], count: int) -> int:
        """Add rows of checked values of every field; return the number of the first."""
        self.check(write=True)
        if not count:
            return self.catalog.rows
        self._singles.note(count, *self.place, self.catalog.specs.values())
        before, known, columns = self._catalog, self.catalog, self.columns
        catalog, start = commit.extend(self.latest, self.settings, known, columns, values, count)
        self.adopt(catalog, before)
        return start

    def change(self, make: Callable[[Catalog, Check], Catalog]) -> None:
        """Change the fields, in one step for every reader."""
        self.check(write=True)
        before = self._catalog
        self.adopt(commit.change_fields(*self.place, make, self.settings.lock_timeout), before)

    # -- the handle -----------------------------------------------------------------------

    def close(self) -> None:
        """Refuse further use, of the fields' arrays too."""
        self.closed = True
        for known in [*self._columns.values()]:
            for array in known[2].values():
                array.close()

    def check(self, write: bool = False) -> None:
        """Raise where the handle is closed, or may not write."""
        if self.closed:
            raise Closed(f"this handle on {self.where} is closed; open it again")
        if write and self.settings.mode == "r":
            raise ReadOnly(f'{self.where} was opened for reading; open it with mode="r+" to write')

    _open = check

    def __reduce__(self) -> tuple[Any, ...]:
        # Metadata is read again on the other side: it may be large, and may have changed.
        connect, identities = self._connect, self._identities
        if not isinstance(connect, FixedPlace):  # the user's function may lead to a copy elsewhere
            return Table, (connect, self.settings, None, self.closed)
        if self._catalog is not None:
            identities = {name: spec.identity for name, spec in self._catalog.specs.items()}
        return Table, (FixedPlace(*self.place), self.settings, None, self.closed, identities)

    def missing(self, name: str) -> NotFound:
        """The error about a field that a view has and the records have no more."""
        return missing_field(self.where, name, self.fields)

    @property
    def fields(self) -> Fields:
        """The fields by path."""
        return self.catalog.fields


def _check_known(table: Table, columns: Mapping[str, Column], names: Iterable[str]) -> None:
    for name in names:
        if name not in columns:
            raise table.missing(name)


class MappedFields:
    """Some fields whose rows lie in maps, as ``catalog`` has them; ``latest`` tells whether they
    are the same still."""

    def __init__(
        self,
        catalog: Catalog,
        names: tuple[str, ...],
        columns: Mapping[str, Column],
        latest: LatestCatalog | None,
    ) -> None:
        self._catalog, self._names, self._latest, self._most = catalog, names, latest, 0
        self._arrays: list[MappedRows] = []
        for name in names:
            column = columns.get(name)
            if not isinstance(column, FixedColumn):
                return
            array = column.arrays[0]
            chunks = array.make_writer(array.spec).chunks
            if not MappedRows.fits(chunks):
                return
            self._arrays.append(MappedRows(chunks))
        self._most = MAPPED_BYTES // sum(each.nbytes for each in self._arrays)
        self._few = sum(each.files(0, catalog.rows) for each in self._arrays) <= MAPPED_FILES

    def is_of(self, catalog: Catalog, names: tuple[str, ...]) -> bool:
        """Whether it is of these fields, as they are known."""
        return self._catalog is catalog and self._names == names

    def take(self, rows: NDArray[Any]) -> Columns | None:
        """Rows by number (negative ones count from the end), those of all fields in one step;
        ``None`` where they do not lie so, or are not sure to."""
        if rows.ndim != 1 or rows.dtype.kind != "i" or not 0 < len(rows) <= self._most:
            return None
        if not self._few and self._meets_many(rows):
            return None
        look = None if self._latest is None else self._latest.document(self._catalog)
        if look is None and self._latest is not None:
            return None
        outs = [np.empty((len(rows), *each.shape), each.dtype) for each in self._arrays]
        numbers = np.ascontiguousarray(rows, np.int64)
        done = gather_mapped(look, self._arrays, numbers, self._catalog.rows, outs)
        return dict(zip(self._names, outs, strict=True)) if done else None

    def _meets_many(self, rows: NDArray[Any]) -> bool:
        """Whether rows are of more files than the driver keeps open: each call would open them,
        only to find that they are too many."""
        low, high = int(rows.min()), int(rows.max()) + 1
        if low < 0:  # counted from the end
            low, high = 0, self._catalog.rows
        files = (min(len(rows), each.files(low, high)) for each in self._arrays)
        return sum(files) > MAPPED_FILES


def column_of(path: str, field: Field, arrays: Sequence[Array]) -> Column:
    """The column of a field over its arrays."""
    return _KINDS[field.kind](path, field, arrays)


class FixedPlace:
    """Connects to a place that is known."""

    def __init__(self, driver: Driver, path: str = "") -> None:
        self._place = driver, path

    def __call__(self) -> Place:
        """The place."""
        return self._place


class FactoryPlace:
    """Connects by a function of the user's, which returns a location or records. One that cannot be
    pickled is refused here, where it was given, rather than in a worker."""

    def __init__(self, make: Callable[[], Any]) -> None:
        if not callable(make):
            raise Invalid(f"a connection factory is a function without arguments, not {make!r}")
        try:
            pickle.dumps(make)
        except Exception as error:
            raise Invalid(
                f"this connection factory cannot be pickled ({error}); give a function of a "
                "module, a functools.partial of one, or an object whose class is in a module"
            ) from error
        self._make = make

    def __call__(self) -> Place:
        """The place that the function returns."""
        found = self._make()
        table = getattr(getattr(found, "source", None), "table", None)
        if isinstance(table, Table):  # records
            return table.place
        try:
            return resolve(found), ""
        except Invalid as error:
            raise Invalid(
                f"the connection factory returned {type(found).__name__}, which is not a place of "
                f"records: {error}"
            ) from error
