"""Which chunks are stored, from a listing: so that a walk over a sparse array costs what is stored
of it, and not what its grid could hold. In constant memory, and in the order of the grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..driver import Driver
from ..indexing.grid import Grid, cuts
from ..metadata.spec import ArraySpec

WINDOW = 1 << 18
"""Chunks whose numbers are held at once. Where more are stored, they are listed again."""

_ASKED = 16  # chunks that are asked for one by one rather than listed

Box = Sequence[tuple[int, int]]
"""First and end of each axis."""


def whole(spec: ArraySpec) -> Box:
    """All elements of an array."""
    return [(0, n) for n in spec.shape]


def cells(grid: Grid, box: Box) -> list[range] | None:
    """Of each axis, the chunks that a box of elements touches; ``None`` where it is empty."""
    if any(start >= stop for start, stop in box):
        return None
    return [
        range(axis.of(start), axis.of(stop - 1) + 1)
        for axis, (start, stop) in zip(grid.axes, box, strict=True)
    ]


def count(grid: Grid, box: Box) -> int:
    """Chunks that a box of elements touches."""
    found = cells(grid, box)
    return 0 if found is None else math.prod(map(len, found))


def sizes(driver: Driver, path: str, spec: ArraySpec) -> Iterator[tuple[tuple[int, ...], int]]:
    """Index and bytes of every stored chunk (shard) of the array at ``path``, in any order. What
    was left beyond its shape is none of it."""
    counts = spec.grid.counts(spec.shape)
    for key, size in driver.sizes(_folder(path, spec)):
        index = spec.keys.index(key[len(path) :], spec.ndim)
        if index is not None and all(i < n for i, n in zip(index, counts, strict=True)):
            yield index, size


def stored_blocks(
    driver: Driver, path: str, spec: ArraySpec, box: Box, grid: Grid | None = None
) -> Iterator[tuple[slice, ...]]:
    """The parts of ``box`` that chunks which are stored have, cut where the chunks of ``grid`` meet
    (the array's own: a shard where there are shards), each once and in the order of the grid."""
    grid = grid or spec.grid
    own, wanted = cells(spec.grid, box), cells(grid, box)
    if own is None or wanted is None:
        return
    same = grid is spec.grid

    def numbers() -> Iterator[int]:
        for key in driver.taken(_folder(path, spec)):
            index = spec.keys.index(key[len(path) :], spec.ndim)
            if index is None or not all(i in r for i, r in zip(index, own, strict=True)):
                continue
            if same:
                yield _number(index, wanted)
                continue
            part = [
                (max(axis.start(i), low), min(axis.start(i) + axis.size(i), high))
                for axis, i, (low, high) in zip(spec.grid.axes, index, box, strict=True)
            ]
            yield from _numbers(cells(grid, part) or [], wanted)

    for number in ascending(numbers):
        where = []
        for axis, these, (low, high) in zip(
            reversed(grid.axes), reversed(wanted), reversed(box), strict=True
        ):
            number, within = divmod(number, len(these))
            start = axis.start(these[within])
            where.append(slice(max(start, low), min(start + axis.size(these[within]), high)))
        yield tuple(reversed(where))


def ascending(numbers: Callable[[], Iterable[int]], window: int = WINDOW) -> Iterator[int]:
    """The different ones of ``numbers()`` in order, of which at most twice ``window`` are in
    memory: where there are more, it is called again."""
    last, more = -1, True
    while more:
        kept: set[int] = set()
        more, most = False, math.inf
        for number in numbers():
            if last < number < most:
                kept.add(number)
                if len(kept) >= 2 * window:
                    kept = set(sorted(kept)[:window])
                    most, more = max(kept) + 1, True
        yield from sorted(kept)
        last = max(kept, default=last)


def _folder(path: str, spec: ArraySpec) -> str:
    """Where to list: as little as can be beside the chunks."""
    prefix = spec.keys.prefix if spec.ndim else ""
    return path + prefix if prefix.endswith("/") else path


def _number(index: Sequence[int], ranges: Sequence[range]) -> int:
    number = 0
    for i, these in zip(index, ranges, strict=True):
        number = number * len(these) + i - these.start
    return number


def _numbers(part: Sequence[range], ranges: Sequence[range]) -> Iterator[int]:
    """The numbers within ``ranges`` of all cells of ``part``."""
    if not ranges:
        yield 0
        return
    inner = math.prod(len(these) for these in ranges[1:])
    for i in part[0]:
        for number in _numbers(part[1:], ranges[1:]):
            yield (i - ranges[0].start) * inner + number


def present_blocks(
    driver: Driver, path: str, spec: ArraySpec, box: Box
) -> Iterator[tuple[slice, ...]]:
    """:func:`stored_blocks` where they are few to ask for, or cannot be listed, too: each cell is
    asked for then."""
    if driver.capabilities.lists and count(spec.grid, box) > _ASKED:
        yield from stored_blocks(driver, path, spec, box)
        return
    for where in cuts(spec.grid.axes, box):
        index = [axis.of(part.start) for axis, part in zip(spec.grid.axes, where, strict=True)]
        if driver.tag(path + spec.keys.key(index)) is not None:
            yield where
