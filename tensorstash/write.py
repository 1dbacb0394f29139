"""Writing: values brought into chunks so that no other writer's bytes are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from math import prod
from operator import add, mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks, blank, scratch
from .codec import ChunkSpec, Pipeline
from .driver import Buffer, Check, held
from .errors import Corrupt
from .fill import is_fill
from .index import Transform
from .merge import Guess, Merge, merge_many, merge_one
from .place import core, gather, joint_first, scatter
from .plan import Part, Plan, plan
from .shard import BoundSharding
from .threads import THREAD_BYTES, Shared, cores, count_for, spread

_SHARD_BYTES = 256 << 20  # decoded, of all shards that are encoded at once
_BATCH = 128  # chunks that are merged at once

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
    ``check`` is that lock's: called before every put. ``guess`` outlives the writer.
    """

    def __init__(
        self,
        chunks: Chunks,
        threads: int | None = None,
        write_fill: bool = False,
        grown_from: tuple[int, ...] | None = None,
        check: Check = held,
        guess: Guess | None = None,
    ):
        self.chunks = chunks
        self.threads = threads
        self.write_fill = write_fill
        self.grown_from = grown_from
        self.check = check
        self.guess = guess or Guess()

    def write(self, transform: Transform, value: NDArray[Any]) -> None:
        """``value`` (of the transform's shape, any dtype NumPy can assign) is stored."""
        if 0 in transform.shape:
            return
        chunks = self.chunks
        todo = plan(transform, chunks.grid, chunks.spec.shape)
        source = core(todo, value, -1)  # of values for one element, the last one stays
        sharding = chunks.sharding
        capabilities = chunks.driver.capabilities
        if sharding is not None:
            store = partial(self._store_shard, sharding, todo, source)
            at_once = max(1, min(capabilities.concurrency, _SHARD_BYTES // sharding.spec.nbytes))
            threads = 1 if capabilities.local else at_once
            shards = ((shard, list(parts)) for shard, parts in todo.shards(sharding.grid))
            spread(shards, lambda: lambda pair: store(*pair), threads, waits=True)
        elif capabilities.local:
            spread(todo.parts(), lambda: partial(self._store, todo, source), self._threads(todo))
        else:
            self._store_far(todo, source, capabilities.concurrency)

    def put_chunk(self, index: tuple[int, ...], chunk: NDArray[Any]) -> None:
        """Replace a whole chunk of the array's own grid (a shard where there are shards)."""
        sharding = self.chunks.sharding
        if sharding is not None:
            data = sharding.join(self._encode_all(sharding, list(sharding.pieces(chunk))))
        else:
            data = self._encode(index, chunk)
        self._put(self.chunks.key(index), data)

    def merge_chunk(self, index: tuple[int, ...], change: Change) -> None:
        """Apply ``change`` to what is stored of a chunk of the array's own grid, whoever else
        is writing to it."""
        self._merge_one(self._merge(index, change, False))

    def _merge(self, index: tuple[int, ...], change: Change, covers: bool) -> Merge:
        """``change`` to be brought into a stored chunk. Where it ``covers`` all that lies in the
        array, damage is repaired."""
        spec = self.chunks.spec
        shape = spec.grid.chunk_shape(index)
        pipeline = Pipeline(spec.codecs, spec.chunk_spec(shape))
        key = self.chunks.key(index)

        def merged(stored: Buffer | None) -> Buffer | None:
            try:
                chunk = self._decoded(stored, pipeline, spec.grid.origin(index), covers)
            except Corrupt as error:
                raise self.chunks.damaged(error, key, index, self._what) from error.__cause__
            change(chunk)
            if stored is None and not self.write_fill and is_fill(chunk, spec.fill):
                return None
            return pipeline.encode(chunk)

        return Merge(key, index, merged, covers)

    # -- far away ---------------------------------------------------------------------------

    def _store_far(self, todo: Plan, source: NDArray[Any], concurrency: int) -> None:
        """Where every request is a round trip: chunks that are covered go out as one batch, and
        those to be merged as many at once as the driver can use."""
        driver = self.chunks.driver
        merges: list[Part] = []
        absent: list[str] = []
        parts = Shared(todo.parts())

        def encoded() -> Iterator[tuple[str, Buffer]]:
            for part in parts:
                shape = self.chunks.grid.chunk_shape(part.chunk)
                chunk = self._covering(todo, source, part, self.chunks.spec.chunk_spec(shape))
                if chunk is None:
                    merges.append(part)
                    continue
                key, data = self.chunks.key(part.chunk), self._encode(part.chunk, chunk)
                self.check()
                if data is None:
                    absent.append(key)
                else:
                    yield key, data

        def put(_: int) -> None:
            try:
                driver.put_many(encoded())
            finally:
                parts.stop()

        threads = self._threads(todo)
        spread(range(threads), lambda: put, threads)
        if absent:
            driver.delete_many(absent)
        waiting = (self._part_merge(todo, source, part) for part in merges)
        while batch := [*islice(waiting, _BATCH)]:
            lost = batch
            if len(batch) > 1:
                lost = merge_many(driver, batch, self.check, self.guess)
            spread(lost, lambda: self._merge_one, concurrency, waits=True)

    # -- one part ---------------------------------------------------------------------------

    def _store(self, todo: Plan, source: NDArray[Any], part: Part) -> None:
        shape = self.chunks.grid.chunk_shape(part.chunk)
        chunk = self._covering(todo, source, part, self.chunks.spec.chunk_spec(shape))
        if chunk is not None:
            self.put_chunk(part.chunk, chunk)
        else:
            self._merge_one(self._part_merge(todo, source, part))

    def _part_merge(self, todo: Plan, source: NDArray[Any], part: Part) -> Merge:
        bring = partial(_bring, todo, source, part)
        return self._merge(part.chunk, bring, _covers(todo, part))

    def _merge_one(self, merge: Merge) -> None:
        merge_one(self.chunks.driver, merge, self.check, self.guess)

    def _store_shard(
        self,
        sharding: BoundSharding,
        todo: Plan,
        source: NDArray[Any],
        shard: tuple[int, ...],
        parts: list[Part],
    ) -> None:
        """Inner chunks that a part covers are encoded anew, those it touches are merged, all
        others are kept as they are stored; a shard that is all covered is not read."""
        spec = sharding.inner.spec
        covering = [self._covering(todo, source, part, spec) for part in parts]
        ids = [sum(map(mul, part.chunk, sharding.strides)) for part in parts]
        key = self.chunks.key(shard)
        full = [chunk for chunk in covering if chunk is not None]
        if len(full) == sharding.count:
            encoded = self._encode_all(sharding, full)
            order = sorted(range(len(ids)), key=ids.__getitem__)
            self._put(key, sharding.join([encoded[k] for k in order]))
            return

        covers = self._covers_shard(sharding, todo, shard, parts)

        def merged(stored: Buffer | None) -> Buffer | None:
            held: list[Buffer | None] = [None] * sharding.count
            if stored is not None:
                try:
                    held = sharding.split(stored)
                except Corrupt as error:
                    if not covers:
                        raise self.chunks.damaged(error, key, shard, "shard") from error.__cause__
            pieces = []
            for part, k, chunk in zip(parts, ids, covering, strict=True):
                if chunk is None:
                    place = tuple(map(add, map(mul, shard, sharding.grid), part.chunk))
                    origin = tuple(map(mul, place, sharding.chunk_shape))
                    try:
                        chunk = self._decoded(held[k], sharding.inner, origin, _covers(todo, part))
                    except Corrupt as error:
                        raise self.chunks.damaged(error, key, place) from error.__cause__
                    _bring(todo, source, part, chunk)
                pieces.append(chunk)
            for k, data in zip(ids, self._encode_all(sharding, pieces), strict=True):
                held[k] = data
            # A shard that was there stays, though empty: only its condition makes this safe.
            return sharding.join(held) or (None if stored is None else sharding.empty())

        self._merge_one(Merge(key, shard, merged, covers))

    @property
    def _what(self) -> str:
        return "chunk" if self.chunks.sharding is None else "shard"

    def _covering(
        self, todo: Plan, source: NDArray[Any], part: Part, spec: ChunkSpec
    ) -> NDArray[Any] | None:
        """The new chunk, when ``part`` leaves nothing of the old one."""
        if not _covers(todo, part):
            return None
        piece = gather(source, part.outside)
        if piece.size != spec.count and self.grown_from is None:
            return None
        forward = all(isinstance(i, slice) and (i.step or 1) == 1 for i in part.inside)
        if forward and piece.shape == spec.shape and piece.dtype == spec.dtype:
            return piece
        chunk = np.empty(spec.shape, spec.dtype) if piece.size == spec.count else blank(spec)
        scatter(chunk, part.inside, piece)
        return chunk

    def _covers_shard(
        self, sharding: BoundSharding, todo: Plan, shard: tuple[int, ...], parts: list[Part]
    ) -> bool:
        """Whether ``parts`` leave nothing of a shard that lies in the array."""
        counts = self.chunks.grid.counts(self.chunks.spec.shape)
        inside = (min(g, n - s * g) for g, n, s in zip(sharding.grid, counts, shard, strict=True))
        return len(parts) == prod(inside) and all(_covers(todo, part) for part in parts)

    # -- one object -------------------------------------------------------------------------

    def _put(self, key: str, data: Buffer | None) -> None:
        """Replace an object; one that need not be stored is deleted."""
        self.check()
        if data is None:
            self.chunks.driver.delete(key)
        else:
            self.chunks.driver.put(key, data)

    def _decoded(
        self, stored: Buffer | None, pipeline: Pipeline, origin: tuple[int, ...], covers: bool
    ) -> NDArray[Any]:
        """A chunk in memory of its own, to be changed; blank where it is damaged and the change
        ``covers`` all of it."""
        if stored is None:
            return blank(pipeline.spec)
        try:
            chunk = np.array(pipeline.decode(stored), order="C", copy=True)
        except Corrupt:
            if not covers:
                raise
            return blank(pipeline.spec)
        if self.grown_from is not None:
            # Cells beyond the edge that the array grows from become fill.
            for axis, (edge, start) in enumerate(zip(self.grown_from, origin, strict=True)):
                if edge - start < chunk.shape[axis]:
                    beyond = slice(max(edge - start, 0), None)
                    chunk[(slice(None),) * axis + (beyond,)] = self.chunks.spec.fill
        return chunk

    def _encode(self, index: tuple[int, ...], chunk: NDArray[Any]) -> Buffer | None:
        """The stored form of a whole chunk; ``None`` when it need not be stored."""
        if not self.write_fill and is_fill(chunk, self.chunks.spec.fill):
            return None
        pipeline = self.chunks.pipeline_of(index)
        if pipeline.direct and not chunk.flags.c_contiguous:
            if self.chunks.driver.capabilities.local:
                gathered, _ = scratch(pipeline.spec)
                gathered[...] = chunk
                chunk = gathered
            else:  # it may be on its way while the next chunk is encoded
                chunk = np.ascontiguousarray(chunk)
        return pipeline.encode(chunk)

    def _encode_all(
        self, sharding: BoundSharding, pieces: list[NDArray[Any]]
    ) -> list[Buffer | None]:
        """Inner chunks encoded, in threads where there is much to do."""
        encoded: list[Buffer | None] = [None] * len(pieces)

        encode_one = sharding.inner.encode if self.write_fill else sharding.encode_inner

        def encode(block: range) -> None:
            for k in block:
                encoded[k] = encode_one(pieces[k])

        threads = 1
        if self.chunks.plain and sharding.inner.spec.nbytes * len(pieces) >= 4 * THREAD_BYTES:
            threads = cores() if self.threads is None else self.threads
        size = max(1, -(-len(pieces) // (threads * 4)))
        blocks = (range(k, min(k + size, len(pieces))) for k in range(0, len(pieces), size))
        spread(blocks, lambda: encode, threads)
        return encoded

    def _threads(self, todo: Plan) -> int:
        pipeline = self.chunks.pipeline
        if not self.chunks.plain or pipeline is None:
            return 1
        return count_for(len(todo), pipeline.spec.nbytes, self.threads)


def _covers(todo: Plan, part: Part) -> bool:
    """Whether a part is known to leave nothing of a chunk that lies in the array."""
    return not todo.joint and False not in part.wholes


def _bring(todo: Plan, source: NDArray[Any], part: Part, chunk: NDArray[Any]) -> None:
    """A part's new values into a chunk."""
    piece = gather(source, part.outside, todo.joint_dims)
    scatter(joint_first(todo, chunk), part.inside, piece, len(todo.joint))
