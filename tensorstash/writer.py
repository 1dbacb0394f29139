"""Small writes gathered into whole chunks."""

from __future__ import annotations

import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from operator import gt
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cached import PerProcess
from .coerce import parse_bytes
from .driver import Driver, located
from .engine.chunks import blank
from .engine.in_place.single import Slot, put_row
from .engine.in_place.writing import is_in_place
from .engine.update import Masked
from .engine.write import Writer
from .errors import Closed, Invalid, StashPerformanceWarning, Unsupported
from .handle import Handle
from .indexing.copying import core, gather, joint_first, scatter
from .indexing.plan import plan
from .indexing.selection import select
from .memory.steps import WRITERS, check_chunk, steps
from .metadata.spec import ArraySpec

_FLUSH_ROWS = 16
"""Chunks along the axis that an append gathers, budget permitting, before it is published."""


_MANY = 100
_SECONDS = 60.0

_told: PerProcess[list[None]] = PerProcess(list)
"""Whether this process was warned of rows that are appended one by one; a fork is told anew."""

_OURS = __name__.partition(".")[0]
_WRITERS = frozenset((__name__, f"{_OURS}.records.writer"))


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")  # what `exec` runs may have none
    return name if isinstance(name, str) else ""


class SingleRows:
    """Counts the appends of one row through a handle: of a hundred within a minute, which is a loop
    and no log that grows now and then, the process is warned once that a writer is for that."""

    __slots__ = ("_count", "_since")

    def __init__(self) -> None:
        self._count = 0
        self._since = 0.0

    def note(self, rows: int, driver: Driver, path: str, specs: Iterable[ArraySpec]) -> None:
        """So many rows are about to be appended to arrays of ``specs``; nothing is stored yet, for
        a filter may make an error of the warning. Called by what a user calls, or a writer, whose
        rows do not count."""
        caller = sys._getframe(1).f_back  # none where C called, as at exit
        if rows != 1 or (caller is not None and _module(caller) in _WRITERS):
            return
        now = time.monotonic()
        if now - self._since > _SECONDS:
            self._count, self._since = 0, now
        self._count += 1
        if self._count < _MANY or _told.here():
            return
        again = "metadata" if all(spec.in_place for spec in specs) else "a chunk and metadata"
        _told.here().append(None)
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and _module(frame).partition(".")[0] == _OURS:
            level, frame = level + 1, frame.f_back
        warnings.warn(
            f"{_MANY} rows were appended to {located(driver, path)} one by one, each of which "
            f"stores {again} anew; gather them by writer(), as in "
            "'with x.writer() as w: w.append(row)'",
            StashPerformanceWarning,
            stacklevel=level,
        )


class _Held:
    """A chunk being filled: its new values, which of them are set, and how many."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values
        self.mask = np.zeros(values.shape, bool)
        self.filled = 0

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.mask.nbytes


class BufferedWriter:
    """Collects assignments and appended rows, and stores whole chunks.

    ``writer[selection] = value`` and ``writer.append(rows)`` return at once. A chunk is stored
    when its last element is set; when more than ``budget_bytes`` are held, the oldest chunks
    are merged into what is stored. What is held is not yet visible to readers: it is after
    :meth:`flush` or the end of the ``with`` block, which stores it even when the block raises.
    Not for several threads: give each its own.

    >>> a = stash.create({}, 4, "int8", chunks=2)
    >>> with a.writer() as w:
    ...     w[0] = 1
    ...     w[1] = 2
    >>> a[:2].tolist()
    [1, 2]
    """

    def __init__(self, array: Handle, budget_bytes: int) -> None:
        """Made by ``array.writer()``."""
        if budget_bytes < 1:
            raise Invalid(f"a writer needs a budget of at least one byte, not {budget_bytes}")
        self._array = array
        self._asked = budget_bytes
        self._account = array.settings.memory.account("writers")
        self._held: OrderedDict[tuple[int, ...], _Held] = OrderedDict()
        self._held_bytes = 0
        self._rows: list[NDArray[Any]] = []
        self._row_count = self._row_bytes = 0
        self._axis = 0
        self._closed = False

    def __setitem__(self, selection: Any, value: Any) -> None:
        self._check()
        array = self._array
        row = self._row_of(selection)
        if row is not None:
            self._set_row(*row, array.as_value(value, array.shape[1:]))
            return
        transform = select(selection, array.shape)
        source = array.as_value(value, transform.shape)
        if 0 in transform.shape:
            return
        todo = plan(transform, array.spec.grid, array.shape)
        source = core(todo, source, -1)
        for index, inside, outside, _ in todo.parts():
            held = self._hold(index)
            mask = joint_first(todo, held.mask)
            joint = len(todo.joint)
            before = gather(mask, inside, joint)
            # Repeated positions would be counted twice: count afresh where they can occur.
            recount = bool(joint or todo.arrays)
            new = 0 if recount else before.size - int(np.count_nonzero(before))
            piece = gather(source, outside, todo.joint_dims)
            scatter(joint_first(todo, held.values), inside, piece, joint)
            scatter(mask, inside, np.ones((), bool), joint)
            held.filled = int(np.count_nonzero(held.mask)) if recount else held.filled + new
            self._store_full(index, held)
        self._note()

    def _row_of(self, selection: Any) -> tuple[tuple[int, ...], int] | None:
        """The chunk of a whole row that lies in one, and where in it; ``None`` for all else."""
        spec = self._array.spec
        if type(selection) is not int or not spec.shape or spec.grid.chunks is None:
            return None
        (length, *rest), (edge, *others) = spec.shape, spec.grid.chunks
        if not -length <= selection < length or 0 in rest or any(map(gt, rest, others)):
            return None
        chunk, inside = divmod(selection % length, edge)
        return (chunk, *(0 for _ in rest)), inside

    def _set_row(self, index: tuple[int, ...], inside: int, row: NDArray[Any]) -> None:
        """Hold one row: what :meth:`__setitem__` does, without a plan."""
        begun = index not in self._held
        held = self._hold(index)
        part: tuple[int | slice, ...] = (inside, *map(slice, row.shape))
        mask = held.mask[part]
        held.values[part] = row
        held.filled += mask.size - int(np.count_nonzero(mask))
        held.mask[part] = True
        if begun or held.filled == held.values.size:
            self._store_full(index, held)
            self._note()

    def _hold(self, index: tuple[int, ...]) -> _Held:
        """What is held of a chunk, from now on at least."""
        held = self._held.get(index)
        if held is not None:
            self._held.move_to_end(index)
            return held
        array = self._array
        array.check_stored()  # told now rather than when all is to be stored
        writer = array.make_writer(array.spec)
        check_chunk(writer.budget, writer.chunks)
        writer.chunks.pipeline_of(index).check()
        spec = array.spec.chunk_spec(array.spec.grid.chunk_shape(index))
        held = self._held[index] = _Held(blank(spec))
        self._held_bytes += held.nbytes
        return held

    def _store_full(self, index: tuple[int, ...], held: _Held) -> None:
        """Store a chunk that is whole, and what there is no room for."""
        most = self._note()
        if held.filled < held.values.size and self._held_bytes <= most:
            return
        self._array.check_stored()
        writer = self._array.make_writer(self._array.spec)
        if held.filled == held.values.size:
            self._store(writer, index)
            most = self._note()
        while self._held_bytes > most:
            self._store(writer, next(iter(self._held)))

    def append(self, rows: Any, axis: int = 0) -> None:
        """Add rows at the end of an axis, once enough are there to fill whole chunks.

        Args:
            rows: values that have the array's shape in all other axes; they are copied.
            axis: which axis grows; by default the first.

        Raises:
            Invalid: the shape or the axis does not fit.
            Closed: the writer was closed.

        >>> a = stash.create({}, 0, "int8")
        >>> with a.writer() as w:
        ...     w.append([1, 2])
        >>> a.shape
        (2,)
        """
        self._check()
        array = self._array
        axis = array.as_axis(axis)
        if self._row_count and axis != self._axis:
            self._append_rows(self._row_count)
        value = array.as_rows(rows, axis)
        if not value.shape[axis]:
            return
        self._axis = axis
        # A copy, for the caller may reuse its memory, and cast now: gathering rows of several
        # dtypes would pass through one that holds none of them exactly.
        self._rows.append(value.astype(array.dtype))
        self._row_count += value.shape[axis]
        grid, length = array.spec.grid.axes[axis], array.shape[axis]
        edge = grid.size(grid.of(length))
        row_bytes = max(1, value.nbytes // value.shape[axis])
        self._row_bytes = row_bytes
        wanted = edge * max(1, min(_FLUSH_ROWS, self._note() // (row_bytes * edge)))
        if self._row_count >= wanted:
            end = length + self._row_count
            self._append_rows(grid.start(grid.of(end)) - length)

    def flush(self) -> None:
        """Store everything that is held, so that readers see it.

        Raises:
            Conflict, NotFound: the array was replaced or deleted.
            Closed: the writer was closed.

        >>> a = stash.create({}, 2, "int8")
        >>> w = a.writer()
        >>> w[0] = 1
        >>> w.flush()
        >>> a[:].tolist()
        [1, 0]
        """
        self._check()
        if self._row_count:
            self._append_rows(self._row_count)
        if self._held:
            self._array.check_stored()
        writer = self._array.make_writer(self._array.spec)
        while self._held:
            self._store(writer, next(iter(self._held)))
        self._note()

    def close(self) -> None:
        """Store everything that is held, and refuse further writes. Closing twice does no harm.

        >>> w = stash.create({}, 2, "int8").writer()
        >>> w.close()
        """
        if not self._closed:
            self.flush()
            self._closed = True

    def __enter__(self) -> BufferedWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _note(self) -> int:
        """Say how much is held; returns how much may be."""
        most = self._account.most(self._asked, WRITERS)
        self._account.set(self._held_bytes + self._row_count * self._row_bytes)
        return most

    def _store(self, writer: Writer, index: tuple[int, ...]) -> None:
        held = self._held[index]
        with steps(writer.budget, writer.chunks, 1, 1, 1):
            if held.filled == held.values.size:
                writer.put_chunk(index, held.values)
            else:
                writer.merge_chunk(index, Masked(held.values, held.mask))
        del self._held[index]  # only now: a failed put keeps what it could not store
        self._held_bytes -= held.nbytes

    def _append_rows(self, count: int) -> None:
        if count <= 0:
            return
        axis = self._axis
        rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows, axis)
        self._rows, self._row_count = [rows], rows.shape[axis]
        cut = (slice(None),) * axis
        self._array.append(rows[(*cut, slice(0, count))], axis)
        rest = rows[(*cut, slice(count, None))]
        self._row_count = rest.shape[axis]
        self._rows = [rest.copy()] if self._row_count else []
        self._note()

    def _check(self) -> None:
        if self._closed:
            raise Closed("this writer is closed; take a new one from array.writer()")


class WritableHandle(Handle):
    """The part of an array's handle that writes by other ways than assignment."""

    def writer(self, budget: int | str = "256MiB") -> BufferedWriter:
        """Return a context manager that gathers small writes into whole chunks.

        Args:
            budget: the most bytes that it holds, a number or text such as ``"256MiB"``.

        Returns:
            A ``BufferedWriter``, with assignment and ``append``.

        >>> a = stash.create({}, 4, "int8")
        >>> with a.writer() as w:
        ...     w[2] = 5
        """
        self._open(write=True)
        return BufferedWriter(self, parse_bytes(budget))

    def setter(self) -> RowSetter:
        """Return a function that stores single rows: ``put = a.setter()``, then ``put(i, row)``.

        It does what ``a[i] = row`` does, and for an array that was created with ``in_place=True``
        several times faster: what can be checked once is checked here.

        Returns:
            A function of a row's number and its values.

        Raises:
            ReadOnly: the array was opened for reading.

        >>> put = stash.create("rows", (4, 2), "int8", in_place=True).setter()
        >>> put(1, [5, 6])
        """
        self._open(write=True)
        return RowSetter(self)

    def flush(self) -> None:
        """Have what this process wrote in place survive a power cut: on a disk, ``fsync``.

        In shared memory there is nothing to wait for, and a Redis server decides by itself what it
        keeps. Rows that others wrote since their own ``flush`` may be lost, in whole or in part.

        Raises:
            Unsupported: the array was created without ``in_place``: each of its writes is whole,
                and ``options={"fsync": True}`` makes each durable.
            DriverError: the disk failed.

        >>> a = stash.create("rows", 4, "int8", in_place=True)
        >>> a[2] = 1
        >>> a.flush()
        """
        self._open()
        if not self.in_place:
            raise Unsupported(
                f"{located(self.driver, self.path)} is not written in place, so nothing is to "
                'flush; open it with options={"fsync": True} to make each write durable'
            )
        self.driver.flush(self.path)


class RowSetter:
    """Stores single rows of an array; ``array.setter()`` returns one."""

    def __init__(self, array: WritableHandle) -> None:
        """Bound to ``array``, as it is now."""
        self._array = array
        self._spec = array.spec
        chunks = array.make_writer(array.spec).chunks
        self._slot = Slot(chunks) if is_in_place(chunks) and Slot.fits(chunks) else None

    def __call__(self, row: int, values: Any) -> None:
        """Store ``values`` as row ``row``.

        Args:
            row: its number; negative ones count from the end.
            values: what the row becomes, broadcast by NumPy's assignment rules.

        Raises:
            InvalidSelection: there is no such row. Invalid: values do not fit. Conflict: the array
            was replaced. Closed: the handle was closed.
        """
        array, slot = self._array, self._slot
        if slot is None or type(row) is not int or array._spec is not self._spec:
            array[row] = values
            if slot is not None and array.spec is not self._spec:
                RowSetter.__init__(self, array)  # it grew
            return
        count = self._spec.shape[0]
        if not -count <= row < count:
            array[row] = values  # says why not
            return
        data = slot.plain(values)
        if data is None:
            given = np.empty(slot.shape, slot.dtype)
            given[...] = array.as_value(values, slot.shape)
            data = slot.plain(given)
            assert data is not None
        array._open(write=True)
        put_row(None, array.check_same, [(slot, data)], row % count)
