"""Read-ahead: a reader that goes through an array in order finds the next chunks decoded."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from ...indexing.grid import Grid
from ...indexing.selection import Point, Stride, Transform
from ...threads import Task, submit

Box = list[tuple[int, int]]


class ReadAhead:
    """Notices reads that follow each other along one axis, and has what comes next fetched into
    the cache, in the background, one step at a time."""

    def __init__(self, grid: Grid, shape: Sequence[int], limit: int) -> None:
        """``limit``: the most elements worth fetching ahead."""
        self._grid = grid
        self._shape = tuple(shape)
        self._limit = limit
        self.last = array("q", [-1] * (2 * len(self._shape)))
        """Of the last read along each axis where it began and ended, which the kernel notes too;
        -1: it was no box."""
        self._running: tuple[int, Task[None]] | None = None
        self._done: Box | None = None

    def note(self, transform: Transform, warm: Callable[[Transform], None]) -> None:
        """Called with every read, after it. ``warm`` brings chunks into the cache; it is the
        reader's, and not kept: each would keep the other, and the driver, alive."""
        box, last = _box(transform), self.last.tolist()
        flat = [-1] * len(last) if box is None else [at for cut in box for at in cut]
        self.last[:] = array("q", flat)
        if box is None or last[0] < 0:
            return
        moved = [k for k, (a, b) in enumerate(box) if (a, b) != (last[2 * k], last[2 * k + 1])]
        if len(moved) != 1 or box[moved[0]][0] != last[2 * moved[0] + 1]:
            return
        ahead = self._next(box, moved[0])
        if ahead is None or ahead == self._done or self._busy():
            return
        self._done = ahead
        maps = tuple(Stride(k, start, 1) for k, (start, _) in enumerate(ahead))
        wanted = Transform(tuple(stop - start for start, stop in ahead), maps)
        task = submit(partial(_try, warm, wanted))
        self._running = None if task is None else (os.getpid(), task)

    def wait(self, transform: Transform) -> None:
        """Called before a read that would otherwise ask again for what is on its way."""
        box, ahead = _box(transform), self._done
        if box is None or ahead is None or not self._busy() or self._running is None:
            return
        meets = all(a < d and c < b for (a, b), (c, d) in zip(box, ahead, strict=True))
        # One that has not begun may stand behind us in the queue: that is called off.
        if meets:
            self._running[1].end()

    def _next(self, box: Box, axis: int) -> Box | None:
        """The chunks that the next read of this size needs, and never less than one further."""
        start, stop = box[axis]
        n, cells = self._shape[axis], self._grid.axes[axis]
        if stop >= n:
            return None
        first = cells.of(stop - 1) + 1
        low = cells.start(first)
        end = max(low + 1, stop + (stop - start))
        if low >= n:
            return None
        last = cells.of(min(end, n) - 1)
        ahead = [*box]
        ahead[axis] = (low, min(cells.start(last) + cells.size(last), n))
        size = 1
        for a, b in ahead:
            size *= b - a
        return ahead if size <= self._limit else None

    def _busy(self) -> bool:
        if self._running is None:
            return False
        pid, task = self._running
        return pid == os.getpid() and not task.ended


def _try(warm: Callable[[Transform], None], wanted: Transform) -> None:
    # Whoever reads there meets the error again; this one would keep the reader, whose it is.
    with suppress(Exception):
        warm(wanted)


def _box(transform: Transform) -> Box | None:
    """The selection as a box, when it is one."""
    box = []
    for axis_map in transform.maps:
        if isinstance(axis_map, Point):
            box.append((axis_map.at, axis_map.at + 1))
        elif isinstance(axis_map, Stride) and axis_map.step == 1:
            box.append((axis_map.start, axis_map.start + transform.shape[axis_map.dim]))
        else:
            return None
    return box
