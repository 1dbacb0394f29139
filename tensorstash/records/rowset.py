"""Which rows of the stored ones a view has, and in which order. Pure."""

from __future__ import annotations

import os
import tempfile
import weakref
import zlib
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..coerce import is_tensor, natural
from ..errors import DriverError, InvalidSelection, NotFound, counted, short
from ..indexing.selection import Point, Stride, Take, select
from ..loading.permutation import permuted
from .column import Rows

_IN_PICKLES = 512  # bytes of row numbers that travel in a pickle; more wait in a file


class RowSet(Protocol):
    """Rows of a view: position in the view to number in the store."""

    def count(self, stored: int) -> int:
        """How many rows there are when ``stored`` are stored."""
        ...

    def at(self, positions: Rows, stored: int) -> Rows:
        """The stored numbers of checked positions."""
        ...

    def chosen_from(self, stored: int) -> int:
        """Of how many of the first rows they were chosen, as far as can be told: it stays, however
        many are added later."""
        ...

    @property
    def identity(self) -> Hashable:
        """What tells these rows from as many others; nothing where they are the first ones."""
        ...


class AllRows:
    """Every row, those too that are added later."""

    def count(self, stored: int) -> int:
        """See :meth:`RowSet.count`."""
        return stored

    def at(self, positions: Rows, stored: int) -> Rows:
        """See :meth:`RowSet.at`."""
        return positions

    def chosen_from(self, stored: int) -> int:
        """See :meth:`RowSet.chosen_from`."""
        return stored

    @property
    def identity(self) -> Hashable:
        """See :meth:`RowSet.identity`."""
        return None


class ShuffledRows:
    """The positions ``start`` to ``stop`` of a shuffle of ``total`` rows by ``seed``: a part of
    a split, told in four numbers."""

    def __init__(self, seed: int, total: int, start: int, stop: int) -> None:
        self.seed, self.total, self.start, self.stop = seed, total, start, stop

    def count(self, stored: int) -> int:
        """See :meth:`RowSet.count`."""
        return self.stop - self.start

    def at(self, positions: Rows, stored: int) -> Rows:
        """See :meth:`RowSet.at`."""
        return permuted(self.seed, self.total, as_numbers(positions) + self.start)

    def chosen_from(self, stored: int) -> int:
        """See :meth:`RowSet.chosen_from`."""
        return self.total

    @property
    def identity(self) -> Hashable:
        """See :meth:`RowSet.identity`."""
        return self.seed, self.total, self.start, self.stop


class RowList:
    """Any rows, each by its number. A pickle of many names a file that holds them, which lasts
    as long as the view that wrote it, and until its process ends or has written 16 others."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows
        self._file: _Spill | None = None

    def count(self, stored: int) -> int:
        """See :meth:`RowSet.count`."""
        return len(self.rows)

    def at(self, positions: Rows, stored: int) -> Rows:
        """See :meth:`RowSet.at`."""
        found: NDArray[Any] = self.rows[positions]
        return found

    def chosen_from(self, stored: int) -> int:
        """See :meth:`RowSet.chosen_from`."""
        return self._chosen_from

    @Cached
    def _chosen_from(self) -> int:
        return int(self.rows.max(initial=-1)) + 1

    @property
    def identity(self) -> Hashable:
        """See :meth:`RowSet.identity`."""
        return zlib.crc32(np.ascontiguousarray(self.rows).data)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.rows.nbytes <= _IN_PICKLES:
            return RowList, (self.rows,)
        if self._file is None:
            self._file = _Spill(self.rows)
        return _from_file, (self._file.path, len(self.rows))


class RowRange:
    """Rows ``start``, ``start + step``, ... ``count`` of them."""

    def __init__(self, start: int, step: int, count: int) -> None:
        self.start, self.step, self.length = start, step, count

    def count(self, stored: int) -> int:
        """See :meth:`RowSet.count`."""
        return self.length

    def at(self, positions: Rows, stored: int) -> Rows:
        """See :meth:`RowSet.at`."""
        if isinstance(positions, slice) and self.step > 0:
            first, stop, step = positions.indices(self.length)
            last = self.start + stop * self.step if stop > first else self.start + first * self.step
            return slice(self.start + first * self.step, last, self.step * step)
        return as_numbers(positions) * self.step + self.start

    def chosen_from(self, stored: int) -> int:
        """See :meth:`RowSet.chosen_from`."""
        last = self.start + (self.length - 1) * self.step
        return max(self.start, last) + 1 if self.length else 0

    @property
    def identity(self) -> Hashable:
        """See :meth:`RowSet.identity`."""
        return (self.start, self.step) if (self.start, self.step) != (0, 1) else None


class NestedRows:
    """Rows of a view of a view, each told in a few numbers: ``inner`` ones of the ``outer``."""

    def __init__(self, outer: RowSet, inner: RowRange | ShuffledRows) -> None:
        self.outer, self.inner = outer, inner

    def count(self, stored: int) -> int:
        """See :meth:`RowSet.count`."""
        return self.inner.count(stored)

    def at(self, positions: Rows, stored: int) -> Rows:
        """See :meth:`RowSet.at`."""
        return self.outer.at(self.inner.at(positions, stored), stored)

    def chosen_from(self, stored: int) -> int:
        """See :meth:`RowSet.chosen_from`."""
        return self.outer.chosen_from(stored)

    @property
    def identity(self) -> Hashable:
        """See :meth:`RowSet.identity`."""
        return self.outer.identity, self.inner.identity


class _Spill:
    """Row numbers in a file of this process, removed with it."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        try:
            handle, self.path = tempfile.mkstemp(prefix="tensorstash-rows-", suffix=".npy")
            weakref.finalize(self, _remove, self.path, os.getpid())
            with os.fdopen(handle, "wb") as file:
                np.save(file, rows)
        except OSError as error:
            raise DriverError(
                f"the {len(rows)} row numbers of a view cannot be kept in "
                f"{tempfile.gettempdir()!r} for other processes: {error}; set TMPDIR"
            ) from error
        _recent.append(self)


_recent: deque[_Spill] = deque(maxlen=16)
"""Files stay for a while when nobody here has their view any more: another process may be about
to read what was pickled for it."""


def _remove(path: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a child that was forked
        with suppress(OSError):
            os.unlink(path)


def _from_file(path: str, count: int) -> RowList:
    try:
        rows = np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise NotFound(
            f"the {count} row numbers of this view lay in {path!r}, which the process that made it "
            "has removed; make the view again"
        ) from error
    return RowList(rows)


def count_of(rows: Rows, count: int) -> int:
    """How many of ``count`` rows are meant."""
    return len(range(*rows.indices(count))) if isinstance(rows, slice) else len(rows)


def normalize(selection: Any, count: int) -> int | Rows:
    """A user's selection of rows by NumPy's rules: an integer, a slice with a positive step, or
    an array of numbers; :class:`~tensorstash.errors.InvalidSelection` where NumPy raises, and
    for what would not give a list of rows."""
    if is_tensor(selection):  # of one element it would pass for an integer
        selection = natural(selection)
    transform = select(selection if isinstance(selection, tuple) else (selection,), (count,))
    (axis_map,), shape = transform.maps, transform.shape
    if isinstance(axis_map, Point):
        if not shape:
            return axis_map.at
        axis_map = Take((0,), np.full(shape, axis_map.at, np.intp))
    if len(shape) != 1:
        raise InvalidSelection(
            f"rows are chosen along one axis: an integer, a slice, a mask or a list of integers, "
            f"not something of {counted(len(shape), 'dimension')}"
        )
    if isinstance(axis_map, Take):
        return axis_map.array
    return _as_rows(axis_map, shape[0])


def _as_rows(run: Stride, count: int) -> Rows:
    if not count:
        return slice(0, 0, 1)
    if run.step > 0:
        return slice(run.start, run.start + (count - 1) * run.step + 1, run.step)
    return run.start + run.step * np.arange(count)


def as_slice(rows: Rows) -> Rows:
    """``rows`` as a slice where they are a run: chunks then go straight to their place."""
    if isinstance(rows, slice) or not len(rows) or rows[-1] - rows[0] != len(rows) - 1:
        return rows
    if (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1, 1)
    return rows


def select_rows(rows: RowSet, selection: Any, stored: int) -> RowSet:
    """The view of what a user selects of the positions of a view, by the rules of
    :func:`normalize`. A slice stays one, however many rows it has."""
    count = rows.count(stored)
    if isinstance(selection, str) or callable(selection):
        given = short(selection) if isinstance(selection, str) else "a function"
        raise InvalidSelection(
            f"where takes rows, not {given}: there is no query language; read a field "
            "and compare, as r.where(r['x'][...] > 3)"
        )
    if isinstance(selection, slice):
        try:
            start, stop, step = selection.indices(count)
        except (TypeError, ValueError):
            pass  # whose message is normalize's
        else:
            return _slice_rows(rows, start, step, len(range(start, stop, step)))
    positions = normalize(selection, count)
    if isinstance(positions, int):
        raise InvalidSelection(f"where takes a mask, a list or a slice; r[{positions}] is a row")
    found = rows.at(positions, stored)
    if isinstance(found, slice):
        start, stop, step = found.indices(stored)
        return RowRange(start, step, len(range(start, stop, step)))
    return RowList(np.array(found, np.int64))


def split_part(rows: RowSet, part: ShuffledRows, stored: int) -> RowSet:
    """The view of a shuffled part of the positions of a view."""
    if isinstance(rows, AllRows):
        return part
    if isinstance(rows, RowList):
        return RowList(np.array(rows.at(part.at(slice(0, part.count(0), 1), 0), stored), np.int64))
    return NestedRows(rows, part)


def _slice_rows(rows: RowSet, start: int, step: int, count: int) -> RowSet:
    if count < 2:
        step = 1  # no array holds every step that a slice may have
    if isinstance(rows, AllRows):
        return RowRange(start, step, count)
    if isinstance(rows, RowRange):
        return RowRange(rows.start + start * rows.step, rows.step * step, count)
    if isinstance(rows, ShuffledRows) and step == 1:
        first = rows.start + start
        return ShuffledRows(rows.seed, rows.total, first, first + count)
    if isinstance(rows, RowList):
        return RowList(np.array(rows.rows[start + step * np.arange(count)], np.int64))
    return NestedRows(rows, RowRange(start, step, count))


def start_of(rows: RowSet) -> int | None:
    """The number of the first row, where the others follow it one by one."""
    if isinstance(rows, AllRows):
        return 0
    return rows.start if isinstance(rows, RowRange) and rows.step == 1 else None


def as_numbers(positions: Rows) -> NDArray[np.int64]:
    """Every position that is meant."""
    if isinstance(positions, slice):
        return np.arange(positions.start, positions.stop, positions.step or 1)
    return np.asarray(positions, np.int64)
