"""Writing: values brought into chunks so that no other writer's bytes are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from math import prod
from operator import add, ge, gt, lt, mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..codec import ChunkSpec, Pipeline
from ..driver import Buffer, Check, Put, held
from ..errors import Corrupt
from ..fill import is_fill
from ..indexing.copying import core, gather, joint_first, scatter
from ..indexing.fields import Fields
from ..indexing.plan import Part, Plan, plan
from ..indexing.selection import Transform
from ..memory import PROCESS, Budget
from ..memory.steps import Steps, put_each, put_many, steps
from ..sharding import BoundSharding
from ..threads import Shared, count_for, spread
from .chunks import Chunks, beyond, blank, encode_all, scratch, to_change
from .fence import Fence
from .look import Look
from .native.encode import Ahead, Encoder, Keeping, encoder
from .update import Guess, Item, Job, Merge, Stored, merge_again, merge_many, merge_one

_SHARD_BYTES = 256 << 20  # decoded, of all shards that are merged at once
_BATCH = 128  # objects that are merged at once

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
    ``check`` is that lock's: called before every put. Where it is a :class:`Fence` on a lease,
    every put is conditional, and chunks of fill are stored too. ``guess`` outlives the writer.
    ``fields``: only these of each record are written, from records of nothing else.
    """

    def __init__(
        self,
        chunks: Chunks,
        threads: int | None = None,
        write_fill: bool = False,
        grown_from: tuple[int, ...] | None = None,
        check: Check = held,
        guess: Guess | None = None,
        fields: Fields | None = None,
        budget: Budget = PROCESS,
    ):
        self.chunks = chunks
        self.budget = budget
        self.threads = 1 if chunks.driver.capabilities.one_thread else threads
        self.write_fill = write_fill
        self.grown_from = grown_from
        self.check = check
        self.fence = check if isinstance(check, Fence) and check.leased else None
        self.guess = guess or Guess()
        self.fields = fields

    def write(self, transform: Transform, value: NDArray[Any], look: Look | None = None) -> None:
        """``value`` (of the transform's shape, any dtype NumPy can assign) is stored. ``look`` has
        ended before the first put, and travels with what is read before, in a remote store."""
        if 0 in transform.shape:
            return
        chunks = self.chunks
        if chunks.pipeline is not None:
            chunks.pipeline.check()
        todo = plan(transform, chunks.grid, chunks.spec.shape)
        source = core(todo, value, -1)  # of values for one element, the last one stays
        sharding, able = chunks.sharding, self._encoder
        encoded = 0 if able is None else able.encoded
        if sharding is None:
            part_job = Job(
                partial(self._whole_chunk, todo, source),
                partial(self._chunk_merge, todo, source),
                partial(self._covers, todo),
                lambda part: part.chunk,
            )
            most = self._threads(todo), _BATCH, encoded
            with steps(self.budget, chunks, len(todo), *most) as how:
                self._store(self._ahead(part_job, todo, value, how), todo.parts(), how, look)
            return
        shard_job = Job(
            partial(self._whole_shard, sharding, todo, source),
            partial(self._shard_merge, sharding, todo, source),
            partial(self._covers_whole_shard, sharding, todo),
            lambda item: item[0],
        )
        shards = ((shard, list(parts)) for shard, parts in todo.shards(sharding.grid))
        batch = max(1, min(_BATCH, _SHARD_BYTES // sharding.spec.nbytes))
        # Threads encode within a shard.
        with steps(self.budget, chunks, len(todo), 1, batch, encoded) as how:
            self._store(self._ahead(shard_job, todo, value, how), shards, how, look)

    @Cached
    def _encoder(self) -> Encoder | None:
        return encoder(self.chunks, self.threads) if self.fields is None else None

    @property
    def _keeping(self) -> Keeping:
        fenced = self.fence is not None and self.chunks.sharding is None
        return Keeping(self._stays, self.write_fill or fenced, self.grown_from is not None)

    def _ahead(self, job: Job[Item], todo: Plan, value: NDArray[Any], how: Steps) -> Job[Item]:
        """``job``, its whole chunks encoded by the kernel, many in a call, where it can."""
        able, free = self._encoder, self.check is held
        whole = None if able is None else able.of_plan(todo, value, self._keeping, free, how.room)
        if whole is None:
            return job
        ahead = Ahead(whole, job.place, job.covers, job.whole)
        return job._replace(whole=ahead.whole, ahead=ahead.items)

    def put_chunk(self, index: tuple[int, ...], chunk: NDArray[Any]) -> None:
        """Replace a whole chunk of the array's own grid (a shard where there are shards)."""
        sharding = self.chunks.sharding
        if sharding is None:
            self._put(self.chunks.key(index), self._encode(index, chunk))
            return
        able, found = self._encoder, None
        if able is not None:
            room = 2 * self.chunks.object_bytes if self.budget.limited else None
            found = able.shard(index, chunk, self._keeping, room)
        self._put(*(found or self._shard(sharding, index, [*sharding.pieces(chunk)])))

    def _shard(
        self, sharding: BoundSharding, shard: tuple[int, ...], pieces: list[NDArray[Any]]
    ) -> Stored:
        """A shard's key and stored form, of all its inner chunks in index order."""
        data = sharding.join(self._encode_all(sharding, pieces))
        if data is None and self._stays(shard):
            data = sharding.empty()
        return self.chunks.key(shard), data

    def merge_chunk(self, index: tuple[int, ...], change: Change) -> None:
        """Apply ``change`` to what is stored of a chunk of the array's own grid, whoever else
        is writing to it."""
        cells = partial(beyond, edges=self.grown_from or ())
        if self.fence is None and merge_again(self.chunks, index, cells, change, self.write_fill):
            return
        self._merge_one(self._merge(index, change, False))

    def _merge(self, index: tuple[int, ...], change: Change, covers: bool) -> Merge:
        """``change`` to be brought into a stored chunk. Where it ``covers`` all that lies in the
        array, damage is repaired."""
        chunks, spec = self.chunks, self.chunks.spec
        if chunks.sharding is None:
            pipeline = chunks.pipeline_of(index)
            pipeline.check()
            most = pipeline.most
        else:
            pipeline = Pipeline(spec.codecs, chunks.chunk_spec(spec.grid.chunk_shape(index)))
            most = chunks.sharding.most
        key = chunks.key(index)
        # What becomes of it is stored before another is decoded.
        lent = self.fence is None and chunks.driver.capabilities.local

        def merged(stored: Buffer | None) -> Buffer | None:
            try:
                chunk = self._decoded(stored, pipeline, spec.grid.origin(index), covers, lent)
            except Corrupt as error:
                raise self.chunks.damaged(error, key, index, self._what) from error.__cause__
            change(chunk)
            if self.fence is None:
                if stored is None and not self.write_fill and is_fill(chunk, spec.fill):
                    return None
                return pipeline.encode(chunk)
            data = pipeline.encode(chunk)
            self._compare(stored, data, self._holds_more(chunk, spec.grid.origin(index)))
            return data

        return Merge(key, index, merged, covers, most)

    # -- every object of a write ------------------------------------------------------------

    def _store(self, job: Job[Item], items: Iterator[Item], how: Steps, look: Look | None) -> None:
        capabilities = self.chunks.driver.capabilities
        if self.fence is not None:
            self._store_fenced(self.fence, job, items, how)
            return
        if not capabilities.local:
            first = [*islice(items, how.batch + 1)]
            if len(first) <= how.batch and not any(map(job.covers, first)):
                merges = map(job.merge, first)
                self._merge_all(merges, how.batch, capabilities.concurrency, look)
                return
            if look is not None:
                look.done()
            items = chain(first, items)
            self._store_far(job, items, how, capabilities.concurrency)
            return

        def store(item: Item) -> None:
            found = job.whole(item)
            if found is None:
                self._merge_one(job.merge(item))
            else:
                self._put(*found)

        spread(job.ahead(items), lambda: store, how.threads)

    def _store_far(
        self, job: Job[Item], items: Iterator[Item], how: Steps, concurrency: int
    ) -> None:
        """Where every request is a round trip: objects that are covered go out in one window, and
        those to be merged come and go ``batch`` at a time."""
        driver = self.chunks.driver
        touched: list[Item] = []
        absent: list[str] = []
        shared = Shared(job.ahead(items))

        def encoded() -> Iterator[tuple[str, Buffer]]:
            for item in shared:
                found = job.whole(item)
                if found is None:
                    touched.append(item)
                    continue
                key, data = found
                self.check()
                if data is None:
                    absent.append(key)
                else:
                    yield key, data

        def put(_: int) -> None:
            try:
                put_many(driver, encoded(), how.window)
            finally:
                shared.stop()

        spread(range(how.threads), lambda: put, how.threads)
        if absent:
            driver.delete_many(absent)
        self._merge_all(map(job.merge, touched), how.batch, concurrency)

    def _store_fenced(
        self, fence: Fence, job: Job[Item], items: Iterator[Item], how: Steps
    ) -> None:
        """Under a lease: every put on a condition. What is to be merged comes first, as reading it
        before the fence closes saves looking at the document again. Whole chunks are put where
        nothing is; what is there after all is replaced once the fence is closed: what an append
        that failed left, or an older holder's."""
        driver = self.chunks.driver
        concurrency = driver.capabilities.concurrency
        parts: dict[bool, list[Item]] = {True: [], False: []}
        for item in items:
            parts[job.covers(item)].append(item)
        self._merge_all(map(job.merge, parts[False]), how.batch, concurrency)
        if not parts[True]:
            return
        fence()
        refused: list[Item] = []
        shared = Shared(job.ahead(iter(parts[True])))

        def put(_: int) -> None:
            sent: list[Item] = []

            def puts() -> Iterator[Put]:
                for item in shared:
                    found = job.whole(item)
                    assert found is not None and found[1] is not None
                    fence()
                    sent.append(item)
                    yield Put(found[0], found[1], if_absent=True)

            try:
                for i, tag in put_each(driver, puts(), how.window):
                    if tag is None:
                        refused.append(sent[i])
            finally:
                shared.stop()

        spread(range(how.threads), lambda: put, how.threads)
        if refused:
            fence.close()
            fence.strict = True  # what is there may be a newer holder's: ask the server
            self._merge_all(map(partial(self._instead, job), refused), how.batch, concurrency)

    def _instead(self, job: Job[Item], item: Item) -> Merge:
        """A whole chunk in place of whatever is there."""
        found = job.whole(item)
        assert found is not None
        key, _ = found

        def merged(_: Buffer | None) -> Buffer | None:
            again = job.whole(item)
            return None if again is None else again[1]

        place = job.place(item)
        return Merge(key, place, merged, False, self.chunks.most(place))

    def clear(self, indices: Iterable[tuple[int, ...]], always: bool) -> None:
        """Nothing but fill beyond the edge that the array grows from, in these chunks of its own
        grid: in those that hold more, or ``always``: then a chunk is stored where there is none,
        and one that is stored gets another tag. Of an array whose fence is held."""

        def merge(index: tuple[int, ...]) -> Merge:
            made = self._merge(index, lambda chunk: None, self._is_outside(index))
            if always:
                return made

            def merged(stored: Buffer | None) -> Buffer | None:
                return made.merged(stored) if self.is_dirty(index, stored) else None

            return made._replace(merged=merged)

        concurrency = self.chunks.driver.capabilities.concurrency
        batch = max(1, min(_BATCH, _SHARD_BYTES // max(1, self.chunks.object_bytes)))
        with steps(self.budget, self.chunks, batch, 1, batch) as how:
            self._merge_all(map(merge, indices), how.batch, concurrency)

    def fill_of(self, index: tuple[int, ...]) -> Buffer:
        """The stored form of a chunk of the array's own grid that is all fill."""
        spec = self.chunks.spec
        pipeline = Pipeline(spec.codecs, spec.chunk_spec(spec.grid.chunk_shape(index)))
        return pipeline.encode(blank(pipeline.spec))

    def _merge_all(
        self, merges: Iterator[Merge], batch: int, concurrency: int, look: Look | None = None
    ) -> None:
        while some := [*islice(merges, batch)]:
            lost = some
            if len(some) > 1 or look is not None:
                lost = merge_many(self.chunks.driver, some, self.check, self.guess, look)
            spread(lost, lambda: self._merge_one, min(concurrency, batch), waits=True)

    def _merge_one(self, merge: Merge) -> None:
        try:
            merge_one(self.chunks.driver, merge, self.check, self.guess)
        except Corrupt as error:
            raise self.chunks.oversized(error) from error.__cause__

    # -- one object -------------------------------------------------------------------------

    def _whole_chunk(self, todo: Plan, source: NDArray[Any], part: Part) -> Stored | None:
        """The new chunk's key and stored form, when the part leaves nothing of the old one."""
        shape = self.chunks.grid.chunk_shape(part.chunk)
        chunk = self._covering(todo, source, part, self.chunks.spec.chunk_spec(shape))
        if chunk is None:
            return None
        return self.chunks.key(part.chunk), self._encode(part.chunk, chunk)

    def _chunk_merge(self, todo: Plan, source: NDArray[Any], part: Part) -> Merge:
        bring = partial(self._bring, todo, source, part)
        return self._merge(part.chunk, bring, self._covers(todo, part))

    def _whole_shard(
        self,
        sharding: BoundSharding,
        todo: Plan,
        source: NDArray[Any],
        item: tuple[tuple[int, ...], list[Part]],
    ) -> Stored | None:
        """The new shard's key and stored form, when all its inner chunks are covered."""
        shard, parts = item
        if len(parts) < sharding.count:
            return None
        spec = sharding.inner.spec
        chunks: list[NDArray[Any]] = []
        for part in parts:
            chunk = self._covering(todo, source, part, spec)
            if chunk is None:
                return None
            chunks.append(chunk)
        ids = sharding.positions(part.chunk for part in parts)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        return self._shard(sharding, shard, [chunks[k] for k in order])

    def _shard_merge(
        self,
        sharding: BoundSharding,
        todo: Plan,
        source: NDArray[Any],
        item: tuple[tuple[int, ...], list[Part]],
    ) -> Merge:
        """Inner chunks that a part covers are encoded anew, those it touches are merged, all
        others are kept as they are stored."""
        shard, parts = item
        ids = sharding.positions(part.chunk for part in parts)
        key = self.chunks.key(shard)
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
            for part, k in zip(parts, ids, strict=True):
                chunk = self._covering(todo, source, part, sharding.inner.spec)
                if chunk is None:
                    place = sharding.inner_index(shard, part.chunk)
                    origin = tuple(map(mul, place, sharding.chunk_shape))
                    covered = self._covers(todo, part)
                    try:
                        chunk = self._decoded(held[k], sharding.inner, origin, covered)
                    except Corrupt as error:
                        raise self.chunks.damaged(error, key, place) from error.__cause__
                    self._bring(todo, source, part, chunk)
                pieces.append(chunk)
            stands_out = self.fence is not None and self._stands_out(sharding, shard, held)
            for k, data in zip(ids, self._encode_all(sharding, pieces), strict=True):
                held[k] = data
            if stands_out:
                self._close_late()
            # A shard that was there stays, though empty: only its condition makes this safe.
            data = sharding.join(held)
            if self.fence is not None:
                data = data or sharding.empty()
                self._compare(stored, data, self._stands_out(sharding, shard, held))
            return data or (None if stored is None else sharding.empty())

        return Merge(key, shard, merged, covers, sharding.most)

    @property
    def _what(self) -> str:
        return "chunk" if self.chunks.sharding is None else "shard"

    def _covering(
        self, todo: Plan, source: NDArray[Any], part: Part, spec: ChunkSpec
    ) -> NDArray[Any] | None:
        """The new chunk, when ``part`` leaves nothing of the old one."""
        if not self._covers(todo, part):
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
        return len(parts) == prod(inside) and all(self._covers(todo, part) for part in parts)

    def _covers_whole_shard(
        self, sharding: BoundSharding, todo: Plan, item: tuple[tuple[int, ...], list[Part]]
    ) -> bool:
        """Whether a shard is made of ``item`` alone."""
        _, parts = item
        return len(parts) == sharding.count and all(self._covers(todo, part) for part in parts)

    def _put(self, key: str, data: Buffer | None) -> None:
        """Replace an object; one that need not be stored is deleted."""
        self.check()
        if data is None:
            self.chunks.driver.delete(key)
        else:
            self.chunks.driver.put(key, data)

    def _decoded(
        self, stored: Buffer | None, pipeline: Pipeline, origin: tuple[int, ...], covers: bool,
        lent: bool = False,
    ) -> NDArray[Any]:  # fmt: skip
        """A chunk to be changed (see :func:`to_change`); blank where it is damaged and the change
        ``covers`` all of it."""
        chunk = to_change(pipeline, stored, covers, lent)
        if self.fence is not None and self._holds_more(chunk, origin):
            self._close_late()  # it is another holder's, who may be about to publish it
        for cells in beyond(chunk, origin, self.grown_from or ()):
            cells[...] = self.chunks.spec.fill
        return chunk

    # -- beyond the edge --------------------------------------------------------------------

    def is_dirty(self, index: tuple[int, ...], stored: Buffer | None) -> bool:
        """Whether a stored chunk of the array's own grid holds anything but fill beyond the edge
        that the array grows from."""
        if stored is None:
            return False
        if self._is_outside(index):
            return True
        sharding, grid = self.chunks.sharding, self.chunks.spec.grid
        try:
            if sharding is not None:
                chunk = sharding.decode(stored, sharding.spec)
            else:
                chunk = self.chunks.pipeline_of(index).decode(stored)
        except Corrupt as error:
            key = self.chunks.key(index)
            raise self.chunks.damaged(error, key, index, self._what) from error.__cause__
        return self._holds_more(chunk, grid.origin(index))

    def _is_outside(self, index: tuple[int, ...]) -> bool:
        edges = self.grown_from or self.chunks.spec.shape
        return any(map(ge, self.chunks.spec.grid.origin(index), edges))

    def _holds_more(self, chunk: NDArray[Any], origin: tuple[int, ...]) -> bool:
        fill = self.chunks.spec.fill
        more = beyond(chunk, origin, self.grown_from or ())
        return any(not is_fill(np.ascontiguousarray(cells), fill) for cells in more)

    def _stands_out(
        self, sharding: BoundSharding, shard: tuple[int, ...], held: list[Buffer | None]
    ) -> bool:
        """:meth:`_holds_more` of a shard, by its encoded inner chunks."""
        for k, data in enumerate(held):
            if data is None:
                continue
            place = tuple(map(int, np.unravel_index(k, sharding.grid)))
            origin = tuple(map(mul, sharding.inner_index(shard, place), sharding.chunk_shape))
            edges = self.grown_from or ()
            if any(map(ge, origin, edges)):
                return True
            ends = map(add, origin, sharding.chunk_shape)
            if any(map(gt, ends, edges)):
                try:
                    chunk = sharding.inner.decode(data)
                except Corrupt:
                    return True
                if self._holds_more(chunk, origin):
                    return True
        return False

    def _compare(self, stored: Buffer | None, data: Buffer, holds_more: bool) -> None:
        """Before ``data``, which an append makes of what is stored, is put in its place."""
        if not holds_more:
            self._close_late()  # nobody could tell from this chunk that we were here
        elif self.fence is not None and stored is not None and bytes(stored) == bytes(data):
            self.fence.adopted()

    def _close_late(self) -> None:
        """Close a fence that was not closed from the start."""
        if self.fence is not None and not self.fence.eager:
            self.fence.close()

    def _stays(self, index: tuple[int, ...]) -> bool:
        """Whether a chunk of the array's own grid is stored though it is all fill: also where an
        append that did not end, and whose holder may only sleep, would store its own in its
        absence."""
        if self.write_fill or self.fence is not None:
            return True
        reach = self.chunks.spec.reach
        return bool(reach) and all(map(lt, self.chunks.spec.grid.origin(index), reach))

    def _encode(self, index: tuple[int, ...], chunk: NDArray[Any]) -> Buffer | None:
        """The stored form of a whole chunk; ``None`` when it need not be stored."""
        if not self._stays(index) and is_fill(chunk, self.chunks.spec.fill):
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

    def _encode_all(self, inner: BoundSharding, some: list[NDArray[Any]]) -> list[Buffer | None]:
        return encode_all(inner, some, self.write_fill, self.threads if self.chunks.plain else 1)

    def _threads(self, todo: Plan) -> int:
        pipeline = self.chunks.pipeline
        if not self.chunks.plain or pipeline is None:
            return 1
        return count_for(len(todo), pipeline.spec.nbytes, self.threads)

    def _covers(self, todo: Plan, part: Part) -> bool:
        """Whether a part is known to leave nothing of a chunk that lies in the array."""
        return self.fields is None and not todo.joint and False not in part.wholes

    def _bring(self, todo: Plan, source: NDArray[Any], part: Part, chunk: NDArray[Any]) -> None:
        """A part's new values into a chunk."""
        piece = gather(source, part.outside, todo.joint_dims)
        place, joint = joint_first(todo, chunk), len(todo.joint)
        if self.fields is None:
            scatter(place, part.inside, piece, joint)
            return
        place = self.fields.of(place)
        for name in self.fields.names:
            scatter(place[name], part.inside, piece[name], joint)
