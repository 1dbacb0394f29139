"""What is assigned, written within stored chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cached import Cached
from ...driver import Buffer, Driver, Parts
from ...errors import Corrupt, Unsupported
from ...indexing.copying import core, gather
from ...indexing.plan import Part, Plan, plan
from ...indexing.selection import Transform
from ...metadata.spec import ArraySpec
from ..chunks import Chunks, beyond, blank
from ..look import Look
from ..update import Masked
from ..write import Change, Writer


def is_in_place(chunks: Chunks) -> bool:
    """Whether the driver writes the chunks of this array in place; elsewhere they are chunks like
    any others, which only a copy can have brought there."""
    return chunks.spec.in_place and chunks.driver.capabilities.in_place


def check_in_place(driver: Driver, spec: ArraySpec) -> None:
    """:class:`~tensorstash.errors.Unsupported` where a new array asks for what the driver cannot
    do."""
    if spec.in_place and not driver.capabilities.in_place:
        raise Unsupported(
            f"driver {driver.scheme!r} writes nothing in place; leave in_place out, or keep the "
            "array in file://, shm:// or redis://"
        )


def _cells(chunk: NDArray[Any]) -> NDArray[np.uint8]:
    """A copy of the bytes of every element."""
    flat = np.frombuffer(chunk.tobytes(), np.uint8)
    return flat.reshape(chunk.size, chunk.dtype.itemsize)


def writer_kind(chunks: Chunks) -> type[Writer]:
    """What writes to an array: in place, or by replacing chunks."""
    return InPlaceWriter if is_in_place(chunks) else Writer


class InPlaceWriter(Writer):
    """As a :class:`Writer`, within stored chunks: of elements that are not assigned, no byte is
    read or written. Beyond the edge of the array whatever is there stays: who grows the array along
    an axis writes all that shows then, and who resizes it clears it (:meth:`merge_chunk`)."""

    def write(self, transform: Transform, value: NDArray[Any], look: Look | None = None) -> None:
        """See :meth:`Writer.write`."""
        if self.fence is not None:  # under a lease every put is conditional
            super().write(transform, value, look)
            return
        if 0 in transform.shape:
            return
        chunks = self.chunks
        todo = plan(transform, chunks.spec.grid, chunks.spec.shape)
        source = core(todo, value, -1)
        if look is not None:
            look.done()
        self._send(self._parts(todo, source, part) for part in todo.parts())

    def put_chunk(self, index: tuple[int, ...], chunk: NDArray[Any]) -> None:
        """See :meth:`Writer.put_chunk`."""
        data = np.ascontiguousarray(chunk, self.chunks.spec.dtype)
        self._send([self._within(index, [(0, as_bytes(data))])])

    def merge_chunk(self, index: tuple[int, ...], change: Change) -> None:
        """Write what ``change`` assigns, and fill beyond the edge that the array grows from.
        Where it does not say what it assigns, that is what becomes different by it."""
        spec = self.chunks.spec
        if isinstance(change, Masked):
            chunk, mask = change.values, change.mask
        else:
            chunk = blank(spec.chunk_spec(self._shape))
            stored = self.chunks.driver.get(self.chunks.key(index))
            if stored is not None and len(stored) == chunk.nbytes:
                chunk[...] = np.frombuffer(stored, chunk.dtype).reshape(chunk.shape)
            before = _cells(chunk)
            change(chunk)
            mask = (_cells(chunk) != before).any(axis=1).reshape(self._shape)
            for cells in (chunk, mask):
                beyond_it = beyond(cells, spec.grid.origin(index), self.grown_from or ())
                for part in beyond_it:
                    part[...] = True if cells is mask else spec.fill
        where = np.flatnonzero(mask)
        if len(where):
            values = chunk.reshape(-1)[where]
            self._send([self._within(index, list(self._runs(where, values, 1)))])

    # -- within -------------------------------------------------------------------

    @Cached
    def _shape(self) -> tuple[int, ...]:
        shape = self.chunks.spec.grid.chunks
        assert shape is not None
        return shape

    @Cached
    def _strides(self) -> tuple[int, ...]:
        return strides_of(self._shape)

    @Cached
    def _fill(self) -> bytes:
        return self.chunks.spec.fill.tobytes()

    @Cached
    def _nbytes(self) -> int:
        return self.chunks.spec.chunk_spec(self._shape).nbytes

    def _within(self, index: tuple[int, ...], parts: list[tuple[int, Buffer]]) -> Parts:
        return Parts(self.chunks.key(index), self._nbytes, self._fill, parts)

    def _send(self, values: Iterable[Parts]) -> None:
        self.check()
        try:
            self.chunks.driver.put_parts(values)
        except Corrupt as error:
            raise self.chunks.oversized(error) from error.__cause__

    def _parts(self, todo: Plan, source: NDArray[Any], part: Part) -> Parts:
        """A part's new values, and where in the chunk they go."""
        spec = self.chunks.spec
        piece = gather(source, part.outside, todo.joint_dims)
        order = todo.joint + todo.axes if todo.joint else todo.axes
        shape = [self._shape[k] for k in order]
        strides = [self._strides[k] for k in order]
        first, run, steps = places(part.inside, shape, strides, len(todo.joint))
        if self.fields is None:
            where = summed(first, steps)
            values = np.ascontiguousarray(piece, spec.dtype)
            found = list(self._runs(where.reshape(-1), values, run))
        else:
            where = summed(first, steps)[..., None] + np.arange(run)
            found = []
            for name in self.fields.names:
                field, at = self.fields.stored.fields[name][:2]  # type: ignore[index]
                values = np.ascontiguousarray(piece[name])
                found += self._runs(where.reshape(-1), values, 1, at, field.itemsize)
        return self._within(part.chunk, found)

    def _runs(
        self,
        where: NDArray[np.int64],
        values: NDArray[Any],
        run: int,
        at: int = 0,
        size: int | None = None,
    ) -> Iterator[tuple[int, Buffer]]:
        """``values`` as bytes to be written from each element of ``where`` on, ``run`` elements
        each, of which ``size`` bytes from ``at`` on are written; neighbours in one piece."""
        itemsize = self.chunks.spec.dtype.itemsize
        data = as_bytes(values)
        step = run * itemsize if size is None else size
        if len(where) == 1:
            yield int(where[0]) * itemsize + at, data
            return
        starts = [0]
        if size is None:
            starts += (np.flatnonzero(np.diff(where) != run) + 1).tolist()
        else:
            starts += range(1, len(where))
        begins = (where[starts] * itemsize + at).tolist()
        for begin, low, high in zip(begins, starts, [*starts[1:], len(where)], strict=True):
            yield begin, data[low * step : high * step]


def as_bytes(values: NDArray[Any]) -> memoryview:
    """The memory of contiguous values; a memoryview takes not every dtype."""
    return values.reshape(-1).view(np.uint8).data if values.size else memoryview(b"")


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In elements, of each axis of a chunk."""
    found = [1] * len(shape)
    for k in range(len(found) - 1, 0, -1):
        found[k - 1] = found[k] * shape[k]
    return tuple(found)


def places(
    inside: tuple[Any, ...], shape: list[int], strides: list[int], joint: int
) -> tuple[int, int, list[NDArray[np.int64]]]:
    """Where an orthogonal ``inside`` lies in a chunk: elements that follow each other, ``run`` at a
    time, from ``first`` on plus one of each of the steps, in the order of its dimensions. The first
    ``joint`` items act pointwise, and make one dimension."""
    first, run = 0, 1
    steps: list[NDArray[np.int64]] = []
    joined = True  # while all behind is one run
    for k in range(len(inside) - 1, joint - 1, -1):
        item, edge, stride = inside[k], shape[k], strides[k]
        if isinstance(item, int):
            first += item * stride
            joined = joined and edge == 1
        elif isinstance(item, slice):
            taken = range(*item.indices(edge))
            if joined and stride == run and taken.step == 1:
                first += taken.start * stride
                run *= len(taken)
                joined = len(taken) == edge
            else:
                steps.append(np.asarray(taken, np.int64) * stride)
                joined = False
        else:
            steps.append(np.asarray(item, np.int64) * stride)
            joined = False
    if joint:
        pairs = zip(inside[:joint], strides[:joint], strict=True)
        steps.append(sum(np.asarray(item, np.int64) * stride for item, stride in pairs))  # type: ignore[arg-type]
    return first, run, steps[::-1]


def summed(first: int, steps: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """``first`` plus one of each of the steps: an axis for each."""
    found = np.full((1,) * len(steps), first, np.int64)
    for k, step in enumerate(steps):
        found = found + step.reshape([-1 if d == k else 1 for d in range(len(steps))])
    return found
