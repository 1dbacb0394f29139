"""Changing an array's shape: resize and append, each one step for every reader."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import add, ge, gt, lt
from typing import Any

from numpy.typing import NDArray

from ..driver import Check, Driver, Put, Tag, get_at_most
from ..errors import Conflict, Corrupt, Invalid, Unsupported, counted
from ..indexing.selection import Stride, Transform
from ..memory.steps import check_chunk, steps
from ..metadata.document import MAX_LENGTH, template
from ..metadata.node import Node, is_current, lock_key, reread
from ..metadata.spec import ArraySpec
from ..metadata.zarr3 import array_document, check_listed
from .fence import Fence, until_alone
from .mmap import check_unmapped
from .update import Run
from .write import Writer

MakeWriter = Callable[[ArraySpec, tuple[int, ...], Check], Writer]

_OPEN = 1 << 22
"""Chunks of an append that did not end, at most: its trailer names any number in a few bytes."""

_logger = logging.getLogger("tensorstash")


def append(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    rows: NDArray[Any],
    axis: int,
    make_writer: MakeWriter,
    lock_timeout: float | None,
    last: Grown | None = None,
) -> tuple[Grown, int]:
    """Grow the array along ``axis`` by ``rows``; returns the new metadata and where they begin.

    Appenders take turns by the driver's lock. Rows are stored beyond the edge, where no reader
    looks, and then the new shape is put in one step: an append that fails or is killed leaves
    the array as it was. ``last``: what the caller's last append returned; while that is what is
    stored, it is not read again.
    """
    with driver.lock(lock_key(path, spec), lock_timeout) as check:
        return until_alone(
            check, lambda: _append(driver, path, spec, rows, axis, make_writer, check, last)
        )


class Grown:
    """An array's document after an append; ``own``: as this process stored it."""

    def __init__(self, node: Node, axis: int, own: bool) -> None:
        self.node = node
        self.axis = axis
        self.own = own
        self._text: Callable[[int], bytes] | None = None

    def text(self, length: int) -> bytes | None:
        """The document with another length along the axis; of Zarr v3, in a regular grid."""
        spec = _array(self.node.content)
        if not self.own or spec.zarr_format != 3 or spec.grid.chunks is None:
            return None
        if self._text is None:
            self._text = template(lambda n: array_document(self._longer(spec, n)), length)
        return self._text(length)

    def after(self, node: Node, axis: int, alone: bool) -> Grown:
        """The next one; ``alone``: nobody changed the rest of the document meanwhile."""
        made = Grown(node, axis, own=True)
        made._text = self._text if alone and axis == self.axis else None
        return made

    def _longer(self, spec: ArraySpec, length: int) -> ArraySpec:
        return spec.of_shape((*spec.shape[: self.axis], length, *spec.shape[self.axis + 1 :]))


def _append(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    rows: NDArray[Any],
    axis: int,
    make_writer: MakeWriter,
    check: Check,
    last: Grown | None,
) -> tuple[Grown, int]:
    if last is None or not last.own or not is_current(driver, path, last.node):
        last = Grown(reread(driver, path, spec), axis, own=False)
    node = last.node
    before = _array(node.content)
    start = before.shape[axis]
    wanted = tuple(rows.shape[k] if k == axis else n for k, n in enumerate(before.shape))
    if rows.shape != wanted:
        raise Invalid(
            f"rows of shape {rows.shape} do not fit an array of shape {before.shape} along "
            f"axis {axis}; the other axes must be equal"
        )
    if rows.shape[axis] == 0:
        return last, start
    fence = Fence(driver, path, node, check)
    after = write_beyond(before, rows, axis, make_writer, fence)
    check()

    def text() -> bytes | None:
        return last.text(after.shape[axis]) if axis == last.axis else None

    published = _publish(fence, before, after, text)
    return last.after(published, axis, published.content is after), start


def write_beyond(
    before: ArraySpec, rows: NDArray[Any], axis: int, make_writer: MakeWriter, check: Check
) -> ArraySpec:
    """Store ``rows`` beyond the edge along ``axis``, where no reader looks; returns the spec
    under which they will show. For the holder of the lock."""
    start = before.shape[axis]
    shape = before.shape
    after = _with_shape(before, (*shape[:axis], start + rows.shape[axis], *shape[axis + 1 :]))
    if isinstance(check, Fence) and check.eager:
        check.reach = after.shape
    writer = make_writer(after, before.shape, check)
    if not write_into_one(writer, start, rows, axis):
        where = tuple(Stride(k, start if k == axis else 0, 1) for k in range(len(before.shape)))
        writer.write(Transform(rows.shape, where), rows)
    return after


def write_into_one(writer: Writer, start: int, rows: NDArray[Any], axis: int) -> bool:
    """Store rows from ``start`` on, where they lie in one chunk that they fill, or share with rows
    before or behind, as single rows do; ``False``, where they lie otherwise. What a plan would come
    to, without one."""
    chunks, spec = writer.chunks, writer.chunks.spec
    edges, stop = spec.grid.chunks, start + rows.shape[axis]
    near = chunks.driver.capabilities.local and writer.fence is None
    if edges is None or not near or chunks.sharding is not None or spec.in_place:
        return False
    at = start // edges[axis]
    begin = at * edges[axis]
    end = begin + edges[axis]
    index = tuple(at if k == axis else 0 for k in range(rows.ndim))
    if rows.shape == edges and start == begin and rows.dtype == spec.dtype:
        with steps(writer.budget, chunks, 1, 1, 1):
            writer.put_chunk(index, rows)
        return True
    alone = start < stop <= end and (begin < start or stop < min(end, spec.shape[axis]))
    if not alone or any(k != axis and not 0 < n <= edges[k] for k, n in enumerate(rows.shape)):
        return False
    inside = [slice(0, n) for n in rows.shape]
    inside[axis] = slice(start - begin, stop - begin)
    step, span = spec.dtype.itemsize * math.prod(edges[1:]), None
    if axis == 0:
        span = (start - begin) * step, (stop - begin) * step
    with steps(writer.budget, chunks, 1, 1, 1):
        writer.merge_chunk(index, Run(rows, tuple(inside), span))
    return True


def resize(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    shape: Sequence[int],
    make_writer: MakeWriter,
    lock_timeout: float | None,
) -> Node:
    """Give the array a new shape. Cells that leave it are forgotten: growing again shows fill.

    The shape changes in one step, also where one axis grows and another shrinks: cells that
    are new lie beyond the old edge, and what is stored there is cleared before. What falls
    outside is cleared after.
    """
    with driver.lock(lock_key(path, spec), lock_timeout) as check:
        return until_alone(check, lambda: _resize(driver, path, spec, shape, make_writer, check))


def _resize(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    shape: Sequence[int],
    make_writer: MakeWriter,
    check: Check,
) -> Node:
    node = reread(driver, path, spec)
    before = _array(node.content)
    fits = len(shape) == len(before.shape) and all(0 <= n <= MAX_LENGTH for n in shape)
    if not fits:
        raise Invalid(
            f"cannot resize an array of shape {before.shape} to {tuple(shape)}; give a length from "
            f"0 to {MAX_LENGTH} for each of its axes"
        )
    after = _with_shape(before, shape)
    if after.shape == before.shape:
        return node
    held = make_writer(before, before.shape, check)
    check_chunk(held.budget, held.chunks)  # before anything is changed
    grows = any(map(gt, after.shape, before.shape))
    shrinks = any(map(lt, after.shape, before.shape))
    if shrinks and before.in_place:
        check_unmapped(driver, path)
    fence = Fence(driver, path, node, check)
    if fence.leased:
        return _resize_fenced(fence, before, after, make_writer, grows, shrinks)
    if grows:
        _clear(driver, path, before, after, make_writer, check)
    check()
    published = _publish(fence, before, after)
    if shrinks:
        _clear(driver, path, _array(published.content), before, make_writer, check)
    return published


def _clear(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    other: ArraySpec,
    make_writer: MakeWriter,
    check: Check,
) -> None:
    """Nothing but fill beyond the edge of ``spec.shape``, nor any chunk outside it that is within
    ``other``: what lies beyond both is seen by nobody, and may be anybody's. Looks at what is
    stored only: of a sparse array that is little."""
    writer = make_writer(spec, spec.shape, check)
    chunks = writer.chunks
    beyond, seen = _Beyond(path, spec), _Beyond(path, other)
    outside: list[str] = []
    across: list[tuple[int, ...]] = []
    for key in driver.list(beyond.prefix):
        index = beyond.index(key)
        if index is not None:
            if beyond.is_outside(index):
                if not seen.is_outside(index):
                    outside.append(key)
            else:
                across.append(index)
    check()
    driver.delete_many(outside)
    with steps(writer.budget, chunks, 1, 1, 1):
        for index in across:
            try:
                found = get_at_most(driver, chunks.key(index), chunks.most(index))
            except Corrupt as error:
                raise chunks.oversized(error) from error.__cause__
            if writer.is_dirty(index, found and found[0]):
                writer.merge_chunk(index, lambda chunk: None)


# -- under a lease --------------------------------------------------------------------------------


def _resize_fenced(
    fence: Fence,
    before: ArraySpec,
    after: ArraySpec,
    make_writer: MakeWriter,
    grows: bool,
    shrinks: bool,
) -> Node:
    """What is stored is looked at before the shape is published, so that publishing proves that
    no newer holder stored it; what has changed since is left to whoever grows the array."""
    driver, path = fence.driver, fence.path
    old, new = _Beyond(path, before), _Beyond(path, after)

    crossing: list[tuple[int, ...]] = []  # the old edge, which chunks that stay do
    cut: list[tuple[int, ...]] = []

    def wanted(key: str) -> bool:
        index = old.index(key)
        if grows and index is not None and not old.is_outside(index):
            crossing.append(index)
        if not shrinks:
            return index is not None and old.is_outside(index)
        gone = new.index(key)
        if gone is not None and not new.is_outside(gone):
            cut.append(gone)
        return any(i is not None and edge.is_outside(i) for edge, i in ((old, index), (new, gone)))

    found = [(old.named(key), key, tag) for key, tag in driver.tags(old.prefix, wanted)]
    held = make_writer(before, before.shape, fence)
    if grows:
        # An append that is not finished may yet store these, where fill is to be seen.
        open_ = _Within(fence.node.trailer.reach, before, after)
        _check_few(open_)
        doomed = [
            (k, t)
            for i, k, t in found
            if old.is_outside(i) and i not in open_ and not new.is_outside(i)
        ]
        if open_.count or doomed or crossing:
            fence()
        _drop(held, doomed)
        held.clear([i for i in crossing if i not in open_], always=False)
        held.clear(open_, always=True)
        gone = {key for key, _ in doomed}
        found = [each for each in found if each[1] not in gone]
    published = _publish(fence, before, after)
    if shrinks:
        spec = _array(published.content)
        writer = make_writer(spec, spec.shape, fence)
        try:
            cut_off = [(k, t) for i, k, t in found if new.is_outside(i) and not old.is_outside(i)]
            _drop(writer, cut_off)
            writer.clear(cut, always=False)
        except Conflict as error:  # the shape is published; whoever grows it clears the rest
            _logger.debug("what was cut off was not cleared: %s", error)
    return published


def _drop(writer: Writer, doomed: list[tuple[str, Tag]]) -> None:
    """Delete what still has these tags; where a server cannot do that in one step, chunks of fill
    take their place."""
    driver, chunks = writer.chunks.driver, writer.chunks
    if not doomed:
        return
    try:
        for _ in driver.delete_each(doomed):
            pass
    except Unsupported:
        index = chunks.spec.keys.index(doomed[0][0][len(chunks.path) :], chunks.spec.ndim)
        assert index is not None
        fill = writer.fill_of(index)
        for _ in driver.put_each(Put(key, fill, if_tag=tag) for key, tag in doomed):
            pass


class _Within:
    """The chunks up to ``reach`` that show more of themselves in ``after`` than in ``before``. Not
    listed: a document may claim to reach any number of them."""

    def __init__(self, reach: Sequence[int], before: ArraySpec, after: ArraySpec) -> None:
        if len(reach) != before.ndim:
            reach = (0,) * before.ndim
        self._counts = before.grid.counts(tuple(map(min, reach, after.shape)))
        # Chunks of which all lies in ``before`` stand first along each axis.
        self._whole = [
            min(count, axis.of(length))
            for count, length, axis in zip(
                self._counts, before.shape, before.grid.axes, strict=True
            )
        ]

    def __contains__(self, index: tuple[int, ...]) -> bool:
        return all(map(lt, index, self._counts)) and not all(map(lt, index, self._whole))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for axis, (whole, count) in enumerate(zip(self._whole, self._counts, strict=True)):
            ranges = [
                *map(range, self._whole[:axis]),
                range(whole, count),
                *map(range, self._counts[axis + 1 :]),
            ]
            if all(ranges):
                yield from _product(ranges)

    @property
    def count(self) -> int:
        """How many they are: more than ``len`` can tell, perhaps."""
        return math.prod(self._counts) - math.prod(self._whole)


def _check_few(reached: _Within) -> None:
    if reached.count > _OPEN:
        raise Corrupt(
            f"an append that did not end may have stored {counted(reached.count, 'chunk')}, "
            f"more than can be "
            "put right; delete what follows the last '}' of the array's metadata, if you trust the "
            "rest"
        )


def _product(ranges: Sequence[range]) -> Iterator[tuple[int, ...]]:
    """As :func:`itertools.product`, which lists each range first."""
    if not ranges:
        yield ()
        return
    for first in ranges[0]:
        for rest in _product(ranges[1:]):
            yield (first, *rest)


class _Beyond:
    """Which keys are of chunks that hold cells beyond an array's edge."""

    def __init__(self, path: str, spec: ArraySpec) -> None:
        self.spec = spec
        self._path = path
        self._counts = spec.grid.counts(spec.shape)
        prefix = path + spec.keys.prefix if spec.keys.separator == "/" else path
        self.prefix = prefix if prefix.endswith("/") else path

    def named(self, key: str) -> tuple[int, ...]:
        """The chunk at a key that is one's."""
        index = self.spec.keys.index(key[len(self._path) :], self.spec.ndim)
        assert index is not None
        return index

    def index(self, key: str) -> tuple[int, ...] | None:
        """The chunk at ``key``, if it is one that reaches beyond the edge."""
        spec = self.spec
        index = spec.keys.index(key[len(self._path) :], spec.ndim)
        if index is None or self.is_outside(index):
            return index
        ends = map(add, spec.grid.origin(index), spec.grid.chunk_shape(index))
        return index if any(map(gt, ends, spec.shape)) else None

    def is_outside(self, index: tuple[int, ...]) -> bool:
        """Whether all of a chunk lies beyond the edge."""
        return any(map(ge, index, self._counts))


def _publish(
    fence: Fence,
    before: ArraySpec,
    after: ArraySpec,
    text: Callable[[], bytes | None] | None = None,
) -> Node:
    """Put the new shape, keeping what others did to the rest of the document meanwhile. ``text``:
    what returns the document of ``after``, where it may be known."""

    def change(content: Any) -> ArraySpec:
        now = _array(content)
        if now is before:
            return after
        if now.shape != before.shape:
            raise Conflict(
                f"the shape changed from {before.shape} to {now.shape} while the array's lock was "
                "held: another program does not use the lock; repeat the call",
                key=fence.path,
            )
        if now.grid != before.grid:
            raise Conflict(
                "the lengths of the chunks changed while the array's lock was held: another "
                "program does not use the lock; repeat the call",
                key=fence.path,
            )
        return _with_shape(now, after.shape)

    def known(content: Any) -> bytes | None:
        return text() if content is after and text is not None else None

    return fence.publish(change, known)


def _array(content: Any) -> ArraySpec:
    assert isinstance(content, ArraySpec)  # reread() lets nothing else through
    return content


def _with_shape(spec: ArraySpec, shape: Sequence[int]) -> ArraySpec:
    """``spec`` of another shape, each of its chunks listed where the grid lists them."""
    grid = spec.grid.covering(shape)
    if grid is spec.grid:
        return spec.of_shape(tuple(shape))
    check_listed(grid)
    document = {**spec.document, "chunk_grid": grid.document()} if spec.document else {}
    return replace(spec, shape=tuple(shape), grid=grid, document=document)
