"""Records as rows to be read: what a loader, a sampler or torch's ``DataLoader`` sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns, Placed, nested
from ..errors import Invalid, InvalidSelection, counted
from ..loading.dataloader_worker import in_worker, keeping_fields
from ..loading.present import to_rows
from ..loading.source import Blocks, Source, Touched, fingerprint_of
from . import layout
from .catalog import RecordsInfo, changed_fields, describe, values_per_row
from .column import Rows
from .formats import format_columns, format_row, format_rows, unstack
from .ingest import check_row, check_values
from .layout import RAGGED_BYTES, touched_chunks
from .rowset import AllRows, RowRange, RowSet, as_numbers, as_slice, count_of, normalize, start_of
from .schema import Fields, chosen
from .table import Table


class RecordSource(Source):
    """Some fields and rows of a table, in the format that their user wants to see: what a view is.

    Never changed: :meth:`changed` makes others of it, which share the table.
    """

    def __init__(self, table: Table) -> None:
        """All fields and rows of ``table``."""
        self.table = table
        self.rows: RowSet = AllRows()
        self.ragged: str = "list"
        self.transform: Callable[[Any], Any] | None = None
        self._format: str | None = None
        self._names: tuple[str, ...] | None = None

    def changed(self, **changes: Any) -> RecordSource:
        """The same with other attributes."""
        made = object.__new__(RecordSource)
        made.__dict__ |= self.__getstate__()
        made.__dict__ |= changes
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_layout", "_pinned")}

    def __repr__(self) -> str:
        if not self.table.known:
            return f"<tensorstash.Records at {self.table.where}>"
        names = ", ".join(self.names)
        return f"<tensorstash.Records {counted(len(self), 'row')} of {names} at {self.table.where}>"

    def whole_table(self, what: str) -> Table:
        """The table, where these are all of its rows and fields, those too that are added later;
        else an error of the method ``what``."""
        if not self.selects_all:
            raise Invalid(
                f"{what}() is for all rows and fields; call it on the records, not a view"
            )
        return self.table

    @property
    def selects_all(self) -> bool:
        """Whether these are all rows and fields, those too that are added later."""
        return type(self.rows) is AllRows and self._names is None

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the fields."""
        if self._names is None:
            return tuple(self.table.fields)
        for name in self._names:
            if name not in self.table.fields:
                raise self.table.missing(name)
        return self._names

    @property
    def fields(self) -> Fields:
        """The fields by path."""
        fields = self.table.fields
        return {name: fields[name] for name in self.names}

    def info(self) -> RecordsInfo:
        """What these fields are and what is stored of them."""
        self.table.check()
        return describe(*self.table.place, self.table.catalog, self.names)

    def select(self, *names: Any) -> RecordSource:
        """The same rows with some of the fields, or of what stands within one."""
        return self.changed(_names=tuple(chosen(self.fields, names)))

    def stored(self, positions: Rows) -> Rows:
        """The numbers of the rows at these positions, as they are stored."""
        return self.rows.at(positions, self.table.catalog.rows)

    def __len__(self) -> int:
        return self.rows.count(self.table.catalog.rows)

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row has in memory: of rows of different sizes, the mean that was
        estimated as they were added, which no later write changes."""
        catalog = self.table.catalog
        chosen_from = self.rows.chosen_from(catalog.rows)
        size = 0
        for name in self.names:
            field = catalog.fields[name]
            size += layout.row_bytes(field)
            if field.kind == "ragged":
                values = values_per_row(catalog.row_sizes.get(name, ()), chosen_from)
                size += RAGGED_BYTES if values is None else values * field.dtype.itemsize
        return size

    @property
    def selectable(self) -> tuple[str, ...]:
        """See :attr:`names`."""
        return self.names

    @property
    def ragged_names(self) -> tuple[str, ...]:
        """The paths of the fields whose rows differ in length."""
        return tuple(name for name, field in self.fields.items() if field.kind == "ragged")

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Element shape and dtype of the fields that are plain arrays."""
        fields = self.fields.items()
        return {name: (f.shape, f.dtype) for name, f in fields if f.kind == "fixed"}

    @property
    def fingerprint(self) -> str:
        """Tells records of other fields, rows or chunks apart; of a view, its own fields."""
        fields = [(name, repr(self.table.fields[name])) for name in self.names]
        identity = [len(self), self.rows.identity, fields, self._step]
        return fingerprint_of(identity)

    @property
    def blocks(self) -> Blocks:
        """Rows of this view grouped by the chunk that holds them."""
        known = self.__dict__.get("_layout")
        of = (len(self), self._step)
        if known is None or known[0] != of:
            known = self.__dict__["_layout"] = of, _blocks(self.rows, *of)
        return known[1]

    @property
    def can_shrink(self) -> bool:
        """Always: rows are added at the end."""
        return True

    def at_rows(self, rows: int) -> RecordSource:
        """All rows as they were when there were so many; of a view, whose rows were chosen, what
        it is."""
        if not isinstance(self.rows, AllRows):
            return self
        made = self.changed(rows=RowRange(0, 1, rows))
        if "_pinned" in self.__dict__:  # of an epoch that is resumed
            made.__dict__["_pinned"] = self.__dict__["_pinned"]
        return made

    def chosen(self, key: Any) -> Any:
        """The row or the rows that a user's selection is of, in the view's format."""
        if (columns := self._mapped(key)) is not None:
            plain = self._format is None and self.transform is None
            return nested(columns) if plain else self.present(columns)
        positions = normalize(key, len(self))
        if isinstance(positions, int):
            return self.row(positions)
        tried = type(key) is np.ndarray and key.dtype.kind == "i"
        return self.present(self.take(positions, {} if tried else None))

    def _mapped(self, rows: Any) -> Columns | None:
        """See :meth:`Table.mapped`."""
        if type(self.rows) is not AllRows or self.table.dropped:
            return None
        return self.table.mapped(rows, self._same_names())

    def take(self, rows: Rows, out: Mapping[str, NDArray[Any] | Placed] | None = None) -> Columns:
        """These rows of the view; see :meth:`~tensorstash.loading.source.Source.take`."""
        if out is None and (columns := self._mapped(rows)) is not None:
            return columns
        stored, names = as_slice(self.stored(rows)), self._same_names()
        lost = self.table.dropped if self._names is None else ()
        for name in (*lost, *(name for name in out or () if name not in names)):
            raise self.table.missing(name)  # or its memory would stay as it is
        return self.table.take(stored, names, out, in_worker())

    def take_into(self, rows: Rows, out: Mapping[str, Placed]) -> Columns:
        """See :meth:`~tensorstash.loading.source.Source.take_into`."""
        return self.take(rows, out)

    @property
    def places(self) -> bool:
        """See :attr:`~tensorstash.loading.source.Source.places`."""
        return not self.remote

    def put(self, positions: int | Rows, value: Any) -> None:
        """Store the values of rows that are there: those of one, or of several."""
        columns, names = self.table.columns, self.names
        if isinstance(positions, int):
            positions = slice(positions, positions + 1, 1)
            checked = check_row(value, columns, names)
        else:
            checked = check_values(value, columns, names, count_of(positions, len(self)))
        self.table.put(self.stored(positions), checked)

    def at_epoch(self, epoch: int) -> RecordSource:
        """The same fields, which must not become others while an epoch runs."""
        known = self.__dict__.get("_layout")
        made = self.changed(_pinned=(self.names, self.table.catalog))
        if known is not None:
            made.__dict__["_layout"] = known
        return made

    def _same_names(self) -> tuple[str, ...]:
        """The names of fields to be read, which are still those that an epoch began with."""
        pinned, now = self.__dict__.get("_pinned"), self.table.catalog
        if pinned is None:
            return self.names
        names, known = pinned
        if now is not known:
            changes = changed_fields(known, now)
            for name in names:
                if name in changes:
                    raise self.table.latest.changed(name, changes[name], now)
            self.__dict__["_pinned"] = names, now
        return names  # type: ignore[no-any-return]

    def touches(self, rows: NDArray[np.int64], length: int = 1) -> list[Touched]:
        """The chunks that rows have a part in, or runs of ``length`` from them on, where the view's
        rows follow each other as they are stored."""
        table = self.table
        stored = as_numbers(self.stored(rows))
        chosen_from = self.rows.chosen_from(table.catalog.rows)
        cache = table.settings.cache_bytes
        return touched_chunks(table.catalog, self.names, stored, length, chosen_from, cache)

    def present(self, columns: Columns) -> Any:
        """Columns in the view's format, through its transform."""
        batch = format_columns(columns, self._format or "numpy", self.ragged, self.table.fields)
        return batch if self.transform is None else self.transform(batch)

    @property
    def in_any_thread(self) -> bool:
        """See :attr:`~tensorstash.loading.source.Source.in_any_thread`."""
        return self._format is None and self.transform is None

    @property
    def format(self) -> str | None:
        """The format that the user chose."""
        return self._format

    @property
    def default_ragged(self) -> str | None:
        """How rows of different sizes are shown, where nothing else was said of how rows are."""
        return self.ragged if self._format is None and self.transform is None else None

    @property
    def remote(self) -> bool:
        """Whether reading mostly waits for round trips."""
        return not self.table.place[0].capabilities.local

    # -- rows -------------------------------------------------------------------------------

    def row(self, position: int) -> Any:
        """One row, in the view's format, through its transform."""
        columns = self.take(slice(position, position + 1, 1))
        if self.transform is None:
            return format_row(columns, self._format or "numpy", self.table.fields)
        return unstack(self.present(columns))[0]

    def __iter__(self) -> Iterator[Any]:
        """The rows in order. Where they follow each other as they are stored, each chunk of numbers
        and text is read once; of ragged rows a few hundred are read at a time."""
        count = len(self)
        start, names = start_of(self.rows), self.names
        if start is None:
            for at in range(0, count, 256):
                yield from self._as_rows(self.take(slice(at, min(at + 256, count), 1)))
            return

        def take(rows: slice, some: list[str]) -> Columns:
            return self.table.take(self.stored(rows), some, None, in_worker())

        chunks = {name: self._rows_at_once(name) for name in names}
        for columns in _read_by_chunk(take, names, chunks, start, count):
            yield from self._as_rows(columns)

    def _as_rows(self, columns: Columns) -> list[Any]:
        """Columns as a list of rows, in the view's format, through its transform."""
        if self.transform is None:
            return format_rows(columns, self._format or "numpy", self.table.fields)
        return unstack(self.present(columns))

    def rows_for_torch(self, indices: Sequence[int]) -> list[Any]:
        """Rows as torch's default collate function takes them: tensors, unless the view has a
        format of its own. An error in a worker keeps its fields on the way to the parent."""
        with keeping_fields():
            columns = self.take(self._positions(indices))
        if self._format in (None, "torch") and self.transform is None:
            return to_rows(columns)
        return self._as_rows(columns)

    def _positions(self, indices: Any) -> NDArray[Any]:
        rows = np.asarray(indices, dtype=np.intp)
        n = len(self)
        if rows.size and not -n <= rows.min() <= rows.max() < n:
            raise InvalidSelection(f"a row is out of range for {counted(n, 'row')}")
        return np.where(rows < 0, rows + n, rows)

    def _rows_at_once(self, name: str) -> int:
        """Rows of a field to have in memory: a chunk; ragged ones may be long."""
        rows = self.table.catalog.chunk_rows(name)
        ragged = self.table.fields[name].kind == "ragged"
        return min(rows, max(256, self._step)) if ragged else rows

    @property
    def _step(self) -> int:
        return layout.block_rows(self.table.catalog, self.names, self.row_bytes)


def _blocks(rows: RowSet, count: int, step: int) -> Blocks:
    if isinstance(rows, AllRows):
        return Blocks.regular(count, step)
    if isinstance(rows, RowRange) and rows.step == 1:
        edges = np.arange(rows.start // step + 1, -(-(rows.start + count) // step)) * step
        bounds = np.concatenate([[0], edges - rows.start, [count]]).astype(np.int64)
        return Blocks(bounds if count else bounds[:1])
    chunk = as_numbers(rows.at(slice(0, count, 1), 0)) // step
    order = np.argsort(chunk, kind="stable")
    edges = np.flatnonzero(np.diff(chunk[order])) + 1
    bounds = np.concatenate([[0], edges, [count]]).astype(np.int64)
    return Blocks(bounds if count else bounds[:1], order.astype(np.int64))


def _read_by_chunk(
    take: Callable[[slice, list[str]], Columns], names: Sequence[str], chunks: Mapping[str, int],
    start: int, count: int,
) -> Iterator[Columns]:  # fmt: skip
    """``count`` rows from the stored row ``start`` on, some at a time: of every field a whole
    chunk (of as many rows as ``chunks`` says) is read when the one before is used up."""
    held: Columns = {}
    begins = dict.fromkeys(names, 0)
    ends = dict.fromkeys(names, 0)
    at = 0
    while at < count:
        used_up: dict[int, list[str]] = {}
        for name in names:
            if ends[name] == at:
                begins[name] = at
                edge = ((start + at) // chunks[name] + 1) * chunks[name] - start
                ends[name] = min(edge, count)
                used_up.setdefault(ends[name], []).append(name)
        for end, some in used_up.items():
            held |= take(slice(at, end, 1), some)
        stop = min(ends.values())
        yield {name: held[name][at - begins[name] : stop - begins[name]] for name in names}
        at = stop
