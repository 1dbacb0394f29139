"""Small writes gathered into whole chunks."""

from __future__ import annotations

import sys
import time
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cached import PerProcess
from .driver import Driver, located
from .engine.chunks import blank
from .engine.write import Writer
from .errors import Closed, Invalid, StashPerformanceWarning
from .handle import Handle
from .indexing.copying import core, gather, joint_first, scatter
from .indexing.plan import plan
from .indexing.selection import select

_FLUSH_ROWS = 16
"""Chunks along the axis that an append gathers, budget permitting, before it is published."""


_MANY = 100
_SECONDS = 60.0

_told: PerProcess[list[None]] = PerProcess(list)
"""Whether this process was warned of rows that are appended one by one; a fork is told anew."""

_OURS = __name__.partition(".")[0]
_WRITERS = frozenset((__name__, f"{_OURS}.records.writer"))


class SingleRows:
    """Counts the appends of one row through a handle: of a hundred within a minute, which is a loop
    and no log that grows now and then, the process is warned once that a writer is for that."""

    __slots__ = ("_count", "_since")

    def __init__(self) -> None:
        self._count = 0
        self._since = 0.0

    def note(self, rows: int, driver: Driver, path: str) -> None:
        """So many rows are about to be appended; nothing is stored yet, for a filter may make an
        error of the warning. Called by what a user calls, or a writer, whose rows do not count."""
        if rows != 1 or sys._getframe(2).f_globals["__name__"] in _WRITERS:
            return
        now = time.monotonic()
        if now - self._since > _SECONDS:
            self._count, self._since = 0, now
        self._count += 1
        if self._count < _MANY or _told.here():
            return
        _told.here().append(None)
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == _OURS:
            level, frame = level + 1, frame.f_back
        warnings.warn(
            f"{_MANY} rows were appended to {located(driver, path)} one by one, each of which "
            "stores a chunk and metadata anew; gather them by writer(), as in "
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
        self._budget = budget_bytes
        self._held: OrderedDict[tuple[int, ...], _Held] = OrderedDict()
        self._held_bytes = 0
        self._rows: list[NDArray[Any]] = []
        self._row_count = 0
        self._axis = 0
        self._closed = False

    def __setitem__(self, selection: Any, value: Any) -> None:
        self._check()
        array = self._array
        transform = select(selection, array.shape)
        source = array.as_value(value, transform.shape)
        if 0 in transform.shape:
            return
        todo = plan(transform, array.spec.grid, array.shape)
        source = core(todo, source, -1)
        array.check_stored()
        writer = array.make_writer(array.spec)
        for index, inside, outside, _ in todo.parts():
            held = self._held.get(index)
            if held is None:
                writer.chunks.pipeline_of(index).check()
                spec = array.spec.chunk_spec(array.spec.grid.chunk_shape(index))
                held = self._held[index] = _Held(blank(spec))
                self._held_bytes += held.nbytes
            else:
                self._held.move_to_end(index)
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
            if held.filled == held.values.size:
                self._store(writer, index)
        while self._held_bytes > self._budget:
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
        wanted = edge * max(1, min(_FLUSH_ROWS, self._budget // (row_bytes * edge)))
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

    def _store(self, writer: Writer, index: tuple[int, ...]) -> None:
        held = self._held[index]
        if held.filled == held.values.size:
            writer.put_chunk(index, held.values)
        else:
            writer.merge_chunk(index, lambda chunk: np.copyto(chunk, held.values, where=held.mask))
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

    def _check(self) -> None:
        if self._closed:
            raise Closed("this writer is closed; take a new one from array.writer()")
