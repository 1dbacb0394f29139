"""Writing: values brought into chunks so that no other writer's bytes are lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from operator import add, mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks, blank, scratch
from .codec import ChunkSpec, Pipeline
from .driver import Buffer, Check, held
from .errors import Conflict, Corrupt
from .fill import is_fill
from .index import Transform
from .place import core, gather, joint_first, scatter
from .plan import Part, Plan, plan
from .shard import BoundSharding
from .threads import THREAD_BYTES, Shared, cores, count_for, key_lock, spread

_SHARD_BYTES = 256 << 20  # decoded, of all shards that are encoded at once
_PATIENCE = 60.0  # seconds of losing every race before a writer gives up

Change = Callable[[NDArray[Any]], None]
"""Brings new values into a chunk of the array's grid, in place."""


@dataclass
class Guess:
    """Whether chunks at the array's edge are likely to be ``absent`` still, as in an array that
    is being filled: far away, a put that is then refused costs less than asking first."""

    absent: bool = False


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

    def merge_chunk(self, index: tuple[int, ...], change: Change, covers: bool = False) -> None:
        """Apply ``change`` to what is stored of a chunk of the array's own grid, whoever else
        is writing to it. Where it ``covers`` all that lies in the array, damage is repaired."""
        spec = self.chunks.spec
        shape = spec.grid.chunk_shape(index)
        pipeline = Pipeline(spec.codecs, spec.chunk_spec(shape))

        def merged(stored: Buffer | None) -> Buffer | None:
            chunk = self._decoded(stored, pipeline, spec.grid.origin(index), covers)
            change(chunk)
            if stored is None and not self.write_fill and is_fill(chunk, spec.fill):
                return None
            return pipeline.encode(chunk)

        self._replace(self.chunks.key(index), index, merged, covers)

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
        spread(merges, lambda: partial(self._store, todo, source), concurrency, waits=True)

    # -- one part ---------------------------------------------------------------------------

    def _store(self, todo: Plan, source: NDArray[Any], part: Part) -> None:
        shape = self.chunks.grid.chunk_shape(part.chunk)
        chunk = self._covering(todo, source, part, self.chunks.spec.chunk_spec(shape))
        if chunk is not None:
            self.put_chunk(part.chunk, chunk)
        else:
            self.merge_chunk(part.chunk, partial(_bring, todo, source, part), _covers(todo, part))

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

        def merged(stored: Buffer | None) -> Buffer | None:
            held: list[Buffer | None] = [None] * sharding.count
            if stored is not None:
                try:
                    held = sharding.split(stored)
                except Corrupt:
                    if not self._covers_shard(sharding, todo, shard, parts):
                        raise
            pieces = []
            for part, k, chunk in zip(parts, ids, covering, strict=True):
                if chunk is None:
                    place = tuple(map(add, map(mul, shard, sharding.grid), part.chunk))
                    origin = tuple(map(mul, place, sharding.chunk_shape))
                    covers = _covers(todo, part)
                    try:
                        chunk = self._decoded(held[k], sharding.inner, origin, covers)
                    except Corrupt as error:
                        raise self.chunks.damaged(error, key, place) from error.__cause__
                    _bring(todo, source, part, chunk)
                pieces.append(chunk)
            for k, data in zip(ids, self._encode_all(sharding, pieces), strict=True):
                held[k] = data
            # A shard that was there stays, though empty: only its condition makes this safe.
            return sharding.join(held) or (None if stored is None else sharding.empty())

        self._replace(key, shard, merged, self._covers_shard(sharding, todo, shard, parts))

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

    def _replace(
        self,
        key: str,
        index: tuple[int, ...],
        merged: Callable[[Buffer | None], Buffer | None],
        covers: bool,
    ) -> None:
        """Replace what is stored by ``merged`` of it, on the condition that it is still stored;
        else again with what is. ``None`` leaves an absent object absent. ``covers``: nothing is
        wanted of what is stored, unless the array has grown."""
        driver = self.chunks.driver
        if covers and self._put_absent(key, merged):
            return
        gives_up = time.monotonic() + _PATIENCE
        wait = 0.0005
        with key_lock(driver.url, key):  # this process' threads take turns; others may race us
            while True:
                found = driver.get_tagged(key)
                if covers:
                    self.guess.absent = found is None
                try:
                    data = merged(None if found is None else found[0])
                except Corrupt as error:
                    what = "chunk" if self.chunks.sharding is None else "shard"
                    raise self.chunks.damaged(error, key, index, what) from error.__cause__
                if data is None:
                    return
                self.check()
                try:
                    if not driver.capabilities.conditional_put:
                        driver.put(key, data)
                    elif found is None:
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

    def _put_absent(self, key: str, merged: Callable[[Buffer | None], Buffer | None]) -> bool:
        """Store without asking first, where nothing is likely to be stored; whether that was
        so."""
        capabilities = self.chunks.driver.capabilities
        if capabilities.local or not capabilities.conditional_put or not self.guess.absent:
            return False
        data = merged(None)
        if data is None:
            return False
        self.check()
        try:
            self.chunks.driver.put(key, data, if_absent=True)
        except Conflict:
            self.guess.absent = False
            return False
        return True

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
