"""Records as rows to be read: what a loader, a sampler or torch's ``DataLoader`` sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns
from ..errors import InvalidSelection, counted
from ..loading.dataloader_worker import in_worker, keeping_fields
from ..loading.loader import BatchLoader
from ..loading.present import rows as rows_of_tensors
from ..loading.source import Blocks, Source, Touched, fingerprint_of
from ..sources.windows import Windows
from . import layout
from .catalog import changed_fields, values_per_row
from .column import Rows
from .formats import format_columns, format_row, format_rows, unstack
from .layout import RAGGED_BYTES, touched_chunks
from .rowset import AllRows, RowRange, RowSet, as_numbers, as_slice
from .table import Table

_Self = TypeVar("_Self", bound="RecordSource")


class RecordSource(Source):
    """Some fields and rows of a table, in the format that their user wants to see.

    Views share the table.
    """

    def __init__(self, table: Table) -> None:
        """All fields and rows of ``table``."""
        self.table = table
        self.rows: RowSet = AllRows()
        self._format: str | None = None
        self.ragged: str = "list"
        self.transform: Callable[[Any], Any] | None = None
        self._names: tuple[str, ...] | None = None

    def _view(self: _Self, **changes: Any) -> _Self:
        made = object.__new__(type(self))
        made.__dict__ |= self.__getstate__()
        made.__dict__ |= changes
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_layout", "_pinned")}

    # -- a source ---------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of the fields."""
        if self._names is None:
            return tuple(self.table.fields)
        for name in self._names:
            if name not in self.table.fields:
                raise self.table.gone(name)
        return self._names

    def __len__(self) -> int:
        return self.rows.count(self.table.catalog.rows)

    @property
    def row_bytes(self) -> int:
        """About how many bytes a row has in memory: of rows of different sizes, the mean that was
        noted as they were added, which no later write changes."""
        catalog = self.table.catalog
        among = self.rows.among(catalog.rows)
        size = 0
        for name in self.names:
            field = catalog.fields[name]
            size += layout.row_bytes(field)
            if field.kind == "ragged":
                values = values_per_row(catalog.notes.get(name, ()), among)
                size += RAGGED_BYTES if values is None else values * field.dtype.itemsize
        return size

    @property
    def selectable(self) -> tuple[str, ...]:
        """See :attr:`names`."""
        return self.names

    @property
    def ragged_names(self) -> tuple[str, ...]:
        """The paths of the fields whose rows differ in length."""
        return tuple(name for name in self.names if self.table.fields[name].kind == "ragged")

    @property
    def fixed(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Element shape and dtype of the fields that are plain arrays."""
        fields = {name: self.table.fields[name] for name in self.names}
        return {name: (f.shape, f.dtype) for name, f in fields.items() if f.kind == "fixed"}

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

    def at_rows(self: _Self, rows: int) -> _Self:
        """All rows as they were when there were so many; of a view, whose rows were chosen, what
        it is."""
        if not isinstance(self.rows, AllRows):
            return self
        made = self._view(rows=RowRange(0, 1, rows))
        if "_pinned" in self.__dict__:  # of an epoch that is resumed
            made.__dict__["_pinned"] = self.__dict__["_pinned"]
        return made

    def take(self, rows: Rows, out: Mapping[str, NDArray[Any]] | None = None) -> Columns:
        """These rows of the view; see :meth:`~tensorstash.loading.source.Source.take`."""
        if in_worker():
            self.table.use_one_thread()
        stored = self.rows.at(rows, self.table.catalog.rows)
        names = self._same_names()
        lost = self.table.lost if self._names is None else ()
        for name in (*lost, *(name for name in out or () if name not in names)):
            raise self.table.gone(name)  # or its memory would stay as it is
        return self.table.take(as_slice(stored), names, out)

    def at_epoch(self: _Self, epoch: int) -> _Self:
        """The same fields, which must not become others while an epoch runs."""
        known = self.__dict__.get("_layout")
        made = self._view(_pinned=(self.names, self.table.catalog))
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
        stored = as_numbers(self.rows.at(rows, table.catalog.rows))
        among = self.rows.among(table.catalog.rows)
        cache = table.settings.cache_bytes
        return touched_chunks(table.catalog, self.names, stored, length, among, cache)

    def present(self, columns: Columns) -> Any:
        """Columns in the view's format, through its transform."""
        shown = format_columns(columns, self._format or "numpy", self.ragged, self.table.fields)
        return shown if self.transform is None else self.transform(shown)

    @property
    def format(self) -> str | None:
        """The format that the user chose."""
        return self._format

    @property
    def default_ragged(self) -> str | None:
        """How rows of different sizes are shown, where nothing else was said of how rows are."""
        return self.ragged if self._format is None and self.transform is None else None

    @property
    def far(self) -> bool:
        """Whether reading mostly waits for round trips."""
        return not self.table.place[0].capabilities.local

    # -- for those without torch ------------------------------------------------------------

    def iter_batches(
        self,
        batch_size: int,
        *,
        shuffle: bool | Literal["exact"] = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        lanes: int = 64,
        pool: int | None = None,
        pool_bytes: int | str = "256MiB",
        threads: int | None = None,
        prefetch: int = 4,
    ) -> Iterator[Any]:
        """Iterate over one epoch in batches, read ahead by threads: each row comes once.

        Args:
            batch_size: rows of a batch; the last may have fewer.
            shuffle: ``False``: rows in order; ``True``: shuffled among some chunks at a time, so
                that each is read once; ``"exact"``: every order is as likely as any other.
            seed: which shuffle, an integer.
            epoch: which epoch of it; shuffles differ from one epoch to the next.
            rank, world_size: of how many processes this is which; each yields its own part of
                every batch.
            drop_last: leave out a last batch of fewer rows.
            lanes: chunks that the rows of a shuffled batch are dealt from at a time.
            pool: chunks that a shuffle draws from; by default four for each row of a batch, as far
                as ``pool_bytes`` allow.
            pool_bytes: the most memory for decoded chunks, such as ``"256MiB"``.
            threads: how many threads read; by default 16 from remote places, else one for each
                processor, or one in all where trying shows that more are no faster.
            prefetch: batches that are made before they are asked for; 0: none, and no thread.

        Returns:
            An iterator over batches, in the format of this view.

        Raises:
            Invalid: an argument is wrong.
            NotFound, Conflict: fields were dropped or replaced meanwhile.

        >>> r = stash.save_records({}, {"x": np.arange(5)})
        >>> [batch["x"].tolist() for batch in r.iter_batches(2)]
        [[0, 1], [2, 3], [4]]
        """
        feed: BatchLoader[Any] = BatchLoader(
            self,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            lanes=lanes,
            pool=pool,
            pool_bytes=pool_bytes,
            threads=threads,
            prefetch=prefetch,
        )
        feed.set_epoch(epoch)
        return iter(feed)

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
            self, length, stride, fields=fields, boundaries=boundaries, whole_rows=whole_rows
        )

    # -- rows -------------------------------------------------------------------------------

    def _one(self, position: int) -> Any:
        columns = self.take(slice(position, position + 1, 1))
        if self.transform is None:
            return format_row(columns, self._format or "numpy", self.table.fields)
        return unstack(self.present(columns))[0]

    def each_row(self, columns: Columns) -> list[Any]:
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
            return rows_of_tensors(columns)
        return self.each_row(columns)

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
