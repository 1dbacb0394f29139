"""Writing: values brought into chunks so that no other writer's bytes are lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks, blank
from .codec import ChunkSpec
from .driver import Buffer, Tag
from .errors import Conflict, Corrupt
from .fill import is_fill
from .index import Transform
from .place import core, gather, joint_first, scatter
from .plan import Part, Plan, plan
from .shard import BoundSharding
from .threads import cores, key_lock, spread

_PATIENCE = 60.0  # seconds of losing every race before a writer gives up
_THREAD_BYTES = 64 << 10

Change = Callable[[NDArray[Any]], None]
"""Brings new values into a chunk of the array's grid, in place."""


class Writer:
    """Writes any selection of an array.

    A part that covers its chunk is encoded and put, without a read or a lock. Any other is
    read, merged and put on the condition that the stored chunk is still the one that was read;
    where another writer was first, that is done again on what it wrote. A chunk that reaches
    beyond the array's edge is always merged: another handle may know a longer array.

    ``grown_from`` is for whoever grows the array and holds its lock: the shape so far. What
    chunks hold beyond it is left over from a failed append or a longer past, and becomes fill.
    """

    def __init__(
        self,
        chunks: Chunks,
        threads: int | None = None,
        write_fill: bool = False,
        grown_from: tuple[int, ...] | None = None,
    ):
        self.chunks = chunks
        self.threads = threads
        self.write_fill = write_fill
        self.grown_from = grown_from

    def write(self, transform: Transform, value: NDArray[Any]) -> None:
        """``value`` (of the transform's shape, any dtype NumPy can assign) is stored."""
        if 0 in transform.shape:
            return
        chunks = self.chunks
        todo = plan(transform, chunks.spec.grid, chunks.spec.shape)
        source = core(todo, value, -1)  # of values for one element, the last one stays

        def work() -> Callable[[list[Part]], None]:
            def store(block: list[Part]) -> None:
                for part in block:
                    self._store(todo, part, source)

            return store

        spread(_blocks(todo), work, self._threads(len(todo)))

    def put_chunk(self, index: tuple[int, ...], chunk: NDArray[Any]) -> None:
        """Replace a whole chunk of the array's grid (a shard where there are shards)."""
        key = self.chunks.key(index)
        data = self._encode(index, chunk)
        if data is None:
            self.chunks.driver.delete(key)
        else:
            self.chunks.driver.put(key, data)

    def merge_chunk(
        self, index: tuple[int, ...], change: Change, touched: set[tuple[int, ...]] | None = None
    ) -> None:
        """Apply ``change`` to what is stored of a chunk, whoever else is writing to it.
        ``touched`` names the inner chunks that can change, where the chunk is a shard."""
        chunks = self.chunks
        key = chunks.key(index)
        driver = chunks.driver
        gives_up = time.monotonic() + _PATIENCE
        wait = 0.0005
        with key_lock(driver.url, key):  # this process' threads take turns; others may race us
            while True:
                found = driver.get_tagged(key)
                data = self._merged(key, index, found, change, touched)
                if data is None:
                    return
                if not driver.capabilities.conditional_put:
                    driver.put(key, data)
                    return
                try:
                    if found is None:
                        driver.put(key, data, if_absent=True)
                    else:
                        driver.put(key, data, if_tag=found[1])
                    return
                except Conflict:
                    if time.monotonic() > gives_up:
                        raise Conflict(
                            f"chunk {index} at key {key!r} was changed by other writers for "
                            f"{_PATIENCE:.0f} s without a break; write whole chunks, or fewer "
                            "writers a chunk",
                            key=key,
                        ) from None
                    time.sleep(random.uniform(0, wait))
                    wait = min(wait * 2, 0.05)

    # -- one part -------------------------------------------------------------------------

    def _store(self, todo: Plan, part: Part, source: NDArray[Any]) -> None:
        piece = gather(source, part.outside, todo.joint_dims)
        covers = False not in part.wholes and not todo.joint
        if covers and (self.grown_from or piece.size == self._spec(part.chunk).count):
            self.put_chunk(part.chunk, self._whole(todo, part, piece))
            return

        def change(chunk: NDArray[Any]) -> None:
            scatter(joint_first(todo, chunk), part.inside, piece, len(todo.joint))

        self.merge_chunk(part.chunk, change, self._touched(todo, part))

    def _whole(self, todo: Plan, part: Part, piece: NDArray[Any]) -> NDArray[Any]:
        """A chunk made of nothing but ``piece``, and fill beyond the array's edge."""
        spec = self._spec(part.chunk)
        forward = all(isinstance(i, slice) and (i.step or 1) == 1 for i in part.inside)
        if forward and piece.shape == spec.shape and piece.dtype == spec.dtype:
            return piece
        chunk = np.empty(spec.shape, spec.dtype) if piece.size == spec.count else blank(spec)
        scatter(chunk, part.inside, piece)
        return chunk

    def _touched(self, todo: Plan, part: Part) -> set[tuple[int, ...]] | None:
        """The inner chunks of a shard that a part changes."""
        sharding = self.chunks.sharding
        if sharding is None:
            return None
        axes: list[Any] = []
        shape = sharding.chunk_shape
        inside = part.inside
        if todo.joint:
            together = np.stack(
                [item // shape[axis] for item, axis in zip(inside, todo.joint, strict=False)],
                axis=1,
            )
            axes.append([tuple(row) for row in np.unique(together, axis=0).tolist()])
        for item, axis in zip(inside[len(todo.joint) :], todo.axes, strict=True):
            edge = shape[axis]
            if isinstance(item, slice):
                item = np.arange(*item.indices(sharding.spec.shape[axis]))
            axes.append([(int(i),) for i in np.unique(np.atleast_1d(item) // edge)])
        order = np.argsort(todo.joint + todo.axes)
        found: set[tuple[int, ...]] = set()
        for combination in product(*axes):
            flat = [i for group in combination for i in group]
            found.add(tuple(flat[k] for k in order))
        return found

    # -- one chunk ------------------------------------------------------------------------

    def _spec(self, index: tuple[int, ...]) -> ChunkSpec:
        return self.chunks.spec.chunk_spec(self.chunks.spec.grid.chunk_shape(index))

    def _encode(self, index: tuple[int, ...], chunk: NDArray[Any]) -> Buffer | None:
        """The chunk as stored; ``None`` when it is all fill and need not be."""
        sharding = self.chunks.sharding
        if sharding is not None:
            return sharding.join(self._encode_all(sharding, list(sharding.pieces(chunk))))
        if not self.write_fill and is_fill(chunk, self.chunks.spec.fill):
            return None
        return self.chunks.pipeline_of(index).encode(chunk)

    def _encode_all(
        self, sharding: BoundSharding, pieces: list[NDArray[Any]]
    ) -> list[Buffer | None]:
        """Inner chunks encoded, in threads where they are large."""
        encoded: list[Buffer | None] = [None] * len(pieces)

        def work() -> Callable[[range], None]:
            def encode(block: range) -> None:
                for k in block:
                    encoded[k] = sharding.encode_inner(pieces[k])

            return encode

        threads = 1
        if self.chunks.plain and sharding.inner.spec.nbytes * len(pieces) >= 4 * _THREAD_BYTES:
            threads = cores() if self.threads is None else self.threads
        size = -(-len(pieces) // (threads * 4))
        blocks = (range(k, min(k + size, len(pieces))) for k in range(0, len(pieces), size))
        spread(blocks, work, threads)
        return encoded

    def _merged(
        self,
        key: str,
        index: tuple[int, ...],
        found: tuple[Buffer, Tag] | None,
        change: Change,
        touched: set[tuple[int, ...]] | None,
    ) -> Buffer | None:
        """The stored form of a chunk with ``change`` applied; ``None`` when it was absent and
        still need not be stored."""
        sharding = self.chunks.sharding
        try:
            if sharding is not None:
                return self._merged_shard(sharding, index, found, change, touched)
            if found is None:
                chunk = blank(self._spec(index))
            else:
                pipeline = self.chunks.pipeline_of(index)
                chunk = np.array(pipeline.decode(found[0]), order="C", copy=True)
                self._clear_beyond(index, chunk)
        except Corrupt as error:
            raise self.chunks.damaged(error, key, index) from error.__cause__
        change(chunk)
        if found is None and not self.write_fill and is_fill(chunk, self.chunks.spec.fill):
            return None
        return self.chunks.pipeline_of(index).encode(chunk)

    def _merged_shard(
        self,
        sharding: BoundSharding,
        index: tuple[int, ...],
        found: tuple[Buffer, Tag] | None,
        change: Change,
        touched: set[tuple[int, ...]] | None,
    ) -> Buffer | None:
        """As :meth:`_merged`; inner chunks that are not touched are kept as they are stored."""
        parts: list[Buffer | None] = (
            [None] * sharding.count if found is None else sharding.split(found[0])
        )
        shard = blank(sharding.spec)
        changed: list[int] = []
        pieces: list[NDArray[Any]] = []
        for k, (place, piece) in enumerate(
            zip(np.ndindex(*sharding.grid), sharding.pieces(shard), strict=True)
        ):
            if touched is None or place in touched:
                data = parts[k]
                if data is not None:
                    piece[...] = sharding.inner.decode(data)
                changed.append(k)
                pieces.append(piece)
        self._clear_beyond(index, shard)
        change(shard)
        for k, encoded in zip(changed, self._encode_all(sharding, pieces), strict=True):
            parts[k] = encoded
        joined = sharding.join(parts)
        if joined is None and found is not None:
            return sharding.encode(shard)
        return joined

    def _clear_beyond(self, index: tuple[int, ...], chunk: NDArray[Any]) -> None:
        """Cells beyond the edge that the array grows from become fill."""
        if self.grown_from is None:
            return
        spec = self.chunks.spec
        for axis, start in enumerate(spec.grid.origin(index)):
            extent = self.grown_from[axis] - start
            if extent < chunk.shape[axis]:
                chunk[(slice(None),) * axis + (slice(max(extent, 0), None),)] = spec.fill

    def _threads(self, parts: int) -> int:
        spec = self.chunks.spec
        chunks = spec.grid.chunks
        if parts < 2 or not self.chunks.plain or chunks is None:
            return 1
        if spec.chunk_spec(chunks).nbytes < _THREAD_BYTES:
            return 1
        return min(parts, cores() if self.threads is None else self.threads)


def _blocks(todo: Plan) -> Iterator[list[Part]]:
    """One part at a time: encoding one is work enough to hand over."""
    parts = todo.parts()
    while block := list(islice(parts, 1)):
        yield block
