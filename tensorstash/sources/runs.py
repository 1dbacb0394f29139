"""Runs of rows of one length, wherever they begin: read from an array, cut from a longer run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ..loading.ragged import Ragged
from ..threads import spread
from .sliced import Sliced

_SPARSE = 8  # how many times its runs a hull may be before they are read as single rows

Starts = NDArray[np.int64]


class _Group(NamedTuple):
    """Runs that share chunks, and the rows from their first to their last."""

    start: int
    stop: int
    members: Starts


def read_runs(sliced: Sliced, starts: Starts, out: NDArray[Any]) -> None:
    """``out[i]`` becomes the rows from ``starts[i]`` on, as many as it holds; each chunk is
    decoded once. Of uncompressed chunks no more than the runs is read."""
    count, length = out.shape[:2]
    if not count or not length:
        return
    if not sliced.near:  # one window of requests for all
        _read_rows(sliced, starts, out)
        return
    groups = list(_groups(sliced, starts, length))

    def make() -> Callable[[_Group], None]:
        return lambda group: _read_group(sliced, starts, out, group)

    work = length * sliced.row_bytes if sliced.raw else sliced.slab_bytes
    spread(groups, make, sliced.threads(len(groups), work))


def cut_runs(column: Any, offsets: Starts, length: int, out: NDArray[Any] | None = None) -> Any:
    """The ``length`` rows of ``column`` from each of ``offsets`` on, in memory of their own:
    an array, or a list where rows are no plain array."""
    if isinstance(column, Ragged):
        return [column[np.arange(start, start + length)] for start in offsets]
    if not isinstance(column, np.ndarray):
        return [column[start : start + length] for start in offsets.tolist()]
    if out is None:
        out = np.empty((len(offsets), length, *column.shape[1:]), column.dtype)
    steps = np.diff(offsets)
    if len(steps) and steps[0] >= 0 and (steps == steps[0]).all() and plain(column):
        out[...] = strided_runs(column[int(offsets[0]) :], int(steps[0]), out.shape)
        return out
    for place, start in zip(out, offsets.tolist(), strict=True):
        place[...] = column[start : start + length]
    return out


def plain(column: Any) -> bool:
    """Whether :func:`strided_runs` can be had of a column: an array of plain memory."""
    return isinstance(column, np.ndarray) and column.dtype.kind not in "TO"


def strided_runs(column: NDArray[Any], step: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """A read-only view of ``column``, of ``shape``: runs that begin ``step`` rows apart."""
    row, *rest = column.strides
    return as_strided(column, shape, (step * row, row, *rest), writeable=False)


def _groups(sliced: Sliced, starts: Starts, length: int) -> Iterator[_Group]:
    order = np.argsort(starts, kind="stable")
    first = starts[order]
    last = first + (length - 1)
    # All runs are of one length: the latest to begin is the latest to end.
    if sliced.raw:
        parted = first[1:] > last[:-1]
    else:
        edges = sliced.edges(0)
        parted = edges.of(first[1:]) > edges.of(last[:-1])
    cuts = (np.flatnonzero(parted) + 1).tolist()
    for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True):
        yield _Group(int(first[a]), int(last[b - 1]) + 1, order[a:b])


def _read_group(sliced: Sliced, starts: Starts, out: NDArray[Any], group: _Group) -> None:
    members, length = group.members, out.shape[1]
    if len(members) == 1:
        sliced.read(sliced.run(group.start, group.stop), out[int(members[0])])
        return
    if group.stop - group.start > _SPARSE * len(members) * length:
        piece = np.empty((len(members), *out.shape[1:]), out.dtype)
        _read_rows(sliced, starts[members], piece)
        out[members] = piece
        return
    run = sliced.read(sliced.run(group.start, group.stop))
    for i, start in zip(members.tolist(), (starts[members] - group.start).tolist(), strict=True):
        out[i] = run[start : start + length]


def _read_rows(sliced: Sliced, starts: Starts, out: NDArray[Any]) -> None:
    count, length, *element = out.shape
    rows = (starts[:, None] + np.arange(length)).reshape(-1)
    flat = out.reshape(count * length, *element)  # a view, unless a caller's memory has gaps
    sliced.read(sliced.rows(rows), flat)
    if not np.may_share_memory(flat, out):
        out[...] = flat.reshape(out.shape)
