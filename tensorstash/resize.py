"""Changing an array's shape: resize and append, each one step for every reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks
from .driver import Check, Driver, get_at_most
from .errors import Conflict, Corrupt, Invalid, Unsupported
from .fill import is_fill
from .formats.document import MAX_LENGTH
from .index import Stride, Transform
from .node import lock_key, reread, update
from .spec import ArraySpec
from .write import Writer

MakeWriter = Callable[[ArraySpec, tuple[int, ...], Check], Writer]


def append(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    rows: NDArray[Any],
    axis: int,
    make_writer: MakeWriter,
    lock_timeout: float | None,
) -> tuple[ArraySpec, int]:
    """Grow the array along ``axis`` by ``rows``; answers the new spec and where they begin.

    Appenders take turns by the driver's lock. Rows are stored beyond the edge, where no reader
    looks, and then the new shape is put in one step: an append that fails or is killed leaves
    the array as it was.
    """
    with driver.lock(lock_key(path, spec), lock_timeout) as check:
        before = _array(reread(driver, path, spec).content)
        start = before.shape[axis]
        wanted = tuple(rows.shape[k] if k == axis else n for k, n in enumerate(before.shape))
        if rows.shape != wanted:
            raise Invalid(
                f"rows of shape {rows.shape} do not fit an array of shape {before.shape} along "
                f"axis {axis}; the other axes must be equal"
            )
        if rows.shape[axis] == 0:
            return before, start
        after = write_beyond(before, rows, axis, make_writer, check)
        check()
        return _publish(driver, path, before, after), start


def write_beyond(
    before: ArraySpec, rows: NDArray[Any], axis: int, make_writer: MakeWriter, check: Check
) -> ArraySpec:
    """Store ``rows`` beyond the edge along ``axis``, where no reader looks; answers the spec
    under which they will show. For the holder of the lock."""
    start = before.shape[axis]
    after = _with_shape(before, axis, start + rows.shape[axis])
    where = tuple(Stride(k, start if k == axis else 0, 1) for k in range(len(before.shape)))
    make_writer(after, before.shape, check).write(Transform(rows.shape, where), rows)
    return after


def resize(
    driver: Driver,
    path: str,
    spec: ArraySpec,
    shape: Sequence[int],
    make_writer: MakeWriter,
    lock_timeout: float | None,
) -> ArraySpec:
    """Give the array a new shape. Cells that leave it are forgotten: growing again shows fill.

    The shape changes in one step, also where one axis grows and another shrinks: cells that
    are new lie beyond the old edge, and what is stored there is cleared before. What falls
    outside is cleared after.
    """
    with driver.lock(lock_key(path, spec), lock_timeout) as check:
        before = _array(reread(driver, path, spec).content)
        fits = len(shape) == len(before.shape) and all(0 <= n <= MAX_LENGTH for n in shape)
        if not fits:
            raise Invalid(f"cannot resize an array of shape {before.shape} to {tuple(shape)}")
        after = before
        for axis, length in enumerate(shape):
            after = _with_shape(after, axis, length)
        if after.shape == before.shape:
            return before
        if any(new > old for new, old in zip(after.shape, before.shape, strict=True)):
            _clear(driver, path, before, make_writer, check)
        check()
        after = _publish(driver, path, before, after)
        if any(new < old for new, old in zip(after.shape, before.shape, strict=True)):
            _clear(driver, path, after, make_writer, check)
        return after


def _clear(
    driver: Driver, path: str, spec: ArraySpec, make_writer: MakeWriter, check: Check
) -> None:
    """Nothing but fill beyond the edge of ``spec.shape``, nor any chunk outside it. Looks at
    what is stored only: of a sparse array that is little."""
    writer = make_writer(spec, spec.shape, check)
    chunks = writer.chunks
    counts = spec.grid.counts(spec.shape)
    prefix = path + spec.keys.prefix if spec.keys.separator == "/" else path
    prefix = prefix if prefix.endswith("/") else path
    outside: list[str] = []
    across: list[tuple[int, ...]] = []
    for key in driver.list(prefix):
        index = spec.keys.index(key[len(path) :], spec.ndim)
        if index is None:
            continue
        if any(i >= n for i, n in zip(index, counts, strict=True)):
            outside.append(key)
            continue
        ends = map(add, spec.grid.origin(index), spec.grid.chunk_shape(index))
        if any(end > n for end, n in zip(ends, spec.shape, strict=True)):
            across.append(index)
    check()
    driver.delete_many(outside)
    for index in across:
        if _dirty(chunks, index):
            writer.merge_chunk(index, lambda chunk: None)


def _dirty(chunks: Chunks, index: tuple[int, ...]) -> bool:
    """Whether a stored chunk holds anything but fill beyond the array's edge."""
    spec = chunks.spec
    key = chunks.key(index)
    sharding = chunks.sharding
    try:
        found = get_at_most(chunks.driver, key, chunks.most(index))
        if found is None:
            return False
        data = found[0]
        if sharding is not None:
            chunk = sharding.decode(data, sharding.spec)
        else:
            chunk = chunks.pipeline_of(index).decode(data)
    except Corrupt as error:
        what = "chunk" if sharding is None else "shard"
        raise chunks.damaged(error, key, index, what) from error.__cause__
    for axis, start in enumerate(spec.grid.origin(index)):
        beyond = chunk[(slice(None),) * axis + (slice(spec.shape[axis] - start, None),)]
        if beyond.size and not is_fill(np.ascontiguousarray(beyond), spec.fill):
            return True
    return False


def _publish(driver: Driver, path: str, before: ArraySpec, after: ArraySpec) -> ArraySpec:
    """Put the new shape, keeping what others did to the rest of the document meanwhile."""

    def change(content: Any) -> ArraySpec:
        now = _array(content)
        if now.shape != before.shape:
            raise Conflict(
                f"the shape changed from {before.shape} to {now.shape} while the array's lock was "
                "held: another program does not use the lock; repeat the call",
                key=path,
            )
        return replace(now, shape=after.shape)

    return _array(update(driver, path, change, like=before).content)


def _array(content: Any) -> ArraySpec:
    assert isinstance(content, ArraySpec)  # reread() lets nothing else through
    return content


def _with_shape(spec: ArraySpec, axis: int, length: int) -> ArraySpec:
    if spec.grid.chunks is None and length != spec.shape[axis]:
        raise Unsupported("an array with rectilinear chunks cannot change its shape; copy it")
    shape = (*spec.shape[:axis], length, *spec.shape[axis + 1 :])
    return replace(spec, shape=shape)
