"""Chunks in files or in memory that a cache keeps. What it has is copied to its place by one call
for many chunks; what it has not is decoded by another, each into memory of its own, and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...driver import Tag
from ...errors import StashError
from ..caching.cache import Cache
from .batch import Batches, Call, Chunk, Index, file_path, tasks_of
from .library import ABSENT, DONE

_TOGETHER = 1024  # chunks that are looked for in the cache before any of them is decoded
_BYTES = 32 << 20  # decoded in one call: until its end they are held beside what is kept
_PIECE_COPIED = 4 << 20  # bytes, for which one more thread pays


class _Wanted(NamedTuple):
    """A chunk: its ``number`` among all tasks of the read, the ``job`` that says where it is, its
    ``task`` there, the ``name`` it is kept under, and the shard's or value's version. ``kept``:
    what is kept by that name, of whichever version."""

    number: int
    chunk: Chunk
    job: tuple[Any, ...]
    task: int
    name: Any
    tag: Tag | None
    kept: NDArray[Any] | None


class KeepingBatches(Batches):
    """As :class:`Batches`, of an array whose chunks ``cache`` keeps, which ``immutable`` says need
    not be compared with what is stored."""

    def __init__(self, cache: Cache, immutable: bool, *rest: Any) -> None:
        super().__init__(*rest)
        self._cache = cache
        self._immutable = immutable
        pipeline = self._chunks.pipeline
        assert pipeline is not None
        self._memory = pipeline.stored.shape, pipeline.stored.dtype
        self._keeps = pipeline.ordered and self._steps.nbytes <= cache.limit

    def _can(self) -> bool:
        """Whether they may be kept so, and are not too large to be."""
        return self._keeps

    def _read_chunks(self, call: Call, files: str | None) -> bool:
        path = b"" if files is None else file_path(files + self._chunks.spec.keys.prefix)
        if path is None:
            return False
        job = path, None, None, None, call.low, call.high
        self._take(call, self._chunks_of(call, job), files is None)
        return True

    def _chunks_of(self, call: Call, job: tuple[Any, ...]) -> Iterator[tuple[_Wanted, bool]]:
        """The chunks of a read, and whether what is kept of each is its version of now."""
        key_of, peek, immutable = self._chunks.key, self._cache.peek, self._immutable
        for tasks in _pieces(tasks_of(call.low, call.high)):
            for task, chunk in zip(tasks, map(tuple, call.chunks(tasks)), strict=True):
                key = key_of(chunk)
                found = peek(key)
                if found is None:
                    yield _Wanted(task, chunk, job, task, key, None, None), False
                else:
                    now = immutable or found[0] == self._tag_of(key)
                    yield _Wanted(task, chunk, job, task, key, None, found[1]), now

    def _read_shards(self, call: Call, files: str | None, index: Index) -> None:
        self._take(call, self._inner_of(call, files, index), False)

    def _inner_of(
        self, call: Call, files: str | None, index: Index
    ) -> Iterator[tuple[_Wanted, bool]]:
        """As :meth:`_chunks_of`, of inner chunks."""
        many = [group.many for group in call.table]
        for shard, low, high in self._known(self._shards(call.table), files):
            key = self._chunks.key(shard)
            self._forget_other(key)
            source = self._job(shard, files, index)
            if source is None:
                call.leave(range(tasks_of(low, high)), low, high)
                continue
            job, tag = (*source, low, high), source[2]
            extent = [b - a for a, b in zip(low, high, strict=True)]
            for tasks in _pieces(tasks_of(low, high)):
                rows = np.unravel_index(np.asarray(tasks), extent)
                rows = tuple(at + a for at, a in zip(rows, low, strict=True))
                numbers = np.ravel_multi_index(rows, many).tolist()
                chunks = call.chunks(tasks, low, high)
                inner = map(tuple, np.mod(chunks, self._ratios).tolist())
                for number, chunk, task, place in zip(numbers, chunks, tasks, inner, strict=True):
                    name = key, place
                    found = self._cache.peek(name)
                    kept = None if found is None or found[0] != tag else found[1]
                    wanted = _Wanted(number, tuple(chunk), job, task, name, tag, kept)
                    yield wanted, kept is not None

    def _tag_of(self, key: str) -> Tag | None:
        try:
            return self._chunks.driver.tag(key)
        except StashError:  # Python says so again
            return None

    def _forget_other(self, key: str) -> None:
        """Drop the index of a version of a shard that is no longer stored."""
        if self._indices is not None and not self._immutable:
            known = self._indices.peek(key)
            if known is not None and known[0] != self._tag_of(key):
                self._indices.drop(key)

    # -- what is kept, and what is to be --------------------------------------------

    def _take(self, call: Call, every: Iterator[tuple[_Wanted, bool]], loose: bool) -> None:
        """Place every chunk. ``loose``: each is a value in memory."""
        # Under a limit on memory no more are held than there is room for.
        most = _TOGETHER if call.most is None else call.most
        each = max(1, min(most, _BYTES // self._steps.nbytes))
        held: list[_Wanted] = []
        rest: list[_Wanted] = []
        known: dict[str, bool] = {}
        for wanted, kept in every:
            (held if kept else rest).append(wanted)
            if len(rest) >= each or len(held) + len(rest) >= most:
                self._place(call, held, rest, loose, known)
        self._place(call, held, rest, loose, known)

    def _place(
        self,
        call: Call,
        held: list[_Wanted],
        rest: list[_Wanted],
        loose: bool,
        known: dict[str, bool],
    ) -> None:
        if held:
            self._copy(call, held)
            held.clear()  # what the cache drops meanwhile is not held here
        if not rest:
            return
        # Of shards' chunks Python does not wait for others, either.
        rights = self._cache.rights([one.name for one in rest]) if self._index is None else None
        try:
            mine = [one for one in rest if rights is None or self._is_mine(call, one, rights)]
            rest.clear()
            if mine:
                self._decode(call, self._loaded(call, mine) if loose else mine, known)
        finally:
            if rights is not None:
                rights.clear()

    def _is_mine(self, call: Call, one: _Wanted, rights: dict[Any, object]) -> bool:
        """Whether no other thread fetches it, or has meanwhile: then Python waits, or looks."""
        if one.name in rights:
            now = self._cache.peek(one.name)
            if now is None or now[1] is one.kept:
                return True
        call.left.add(one.chunk)
        return False

    def _copy(self, call: Call, held: list[_Wanted]) -> None:
        """Bring what is kept to its places."""
        steps = self._steps
        values = [_raw(one.kept) for one in held]
        status = np.zeros(len(held), np.uint8)
        ones = (1,) * len(self._ratios)
        chain = (), steps.nbytes, steps.nbytes, steps.itemsize
        job = b"", None, None, values, call.low, call.high
        threads = call.threads(len(held), call.out.nbytes // max(1, call.count), _PIECE_COPIED)
        # Where it is refused before it begins, all are left to Python.
        with suppress(ValueError, BufferError):
            self._library.run(
                *(chain, call.table, [job], call.out, None, status, ones, (0,) * len(ones)),
                threads=threads,
                picked=np.array([one.number for one in held], np.int64),
            )
        done = (status == DONE).tolist()
        self._meter.hit(sum(done))
        call.left.update(one.chunk for one, is_done in zip(held, done, strict=True) if not is_done)

    def _loaded(self, call: Call, some: list[_Wanted]) -> list[_Wanted]:
        """Values in memory, each with its version; of one job, as ``some``'s are."""
        found: list[_Wanted] = []
        values: list[Any] = []
        for one in some:
            try:
                value = self._chunks.driver.get_tagged(one.name)
            except StashError:  # Python says so again
                call.left.add(one.chunk)
                continue
            values.append(None if value is None else value[0])
            found.append(one._replace(tag=None if value is None else value[1]))
        job = b"", None, None, values, call.low, call.high
        return [one._replace(job=job) for one in found]

    def _decode(self, call: Call, some: list[_Wanted], known: dict[str, bool]) -> None:
        """Bring chunks to their places, and keep them."""
        jobs: list[tuple[Any, ...]] = []
        picked: list[int] = []
        before = after = 0
        for one in some:
            if not jobs or jobs[-1] is not one.job:
                before = after
                after += tasks_of(*one.job[-2:])
                jobs.append(one.job)
            picked.append(before + one.task)
        if not some:
            return
        files = self._index is None and bool(some[0].job[0])
        versions = np.zeros((len(some), 3), np.int64) if files else None
        keeps = [np.empty(*self._memory) for _ in some]
        status = np.zeros(len(some), np.uint8)
        threads = call.threads(len(some), self._steps.nbytes)
        try:
            done, _, nbytes, nanoseconds = self._library.run(
                *(self._steps.chain, call.table, jobs, call.out, self._fill, status),
                *(self._ratios, self._strides),
                separator=self._chunks.spec.keys.separator,
                threads=threads,
                grain=max(1, min(64, len(some) // (8 * threads))),
                picked=np.array(picked, np.int64),
                keeps=[_raw(keep) for keep in keeps],
                versions=versions,
            )
        except (ValueError, BufferError):  # refused before it began
            call.left.update(one.chunk for one in some)
            return
        if done:
            self._meter.decoded(nbytes, nanoseconds / 1e9, done)
            self._library.count(self._steps.kinds, done)
        tags = [one.tag for one in some] if versions is None else map(tuple, versions.tolist())
        found: list[tuple[Any, Tag, Any, int]] = []
        for one, chunk, tag, code in zip(some, keeps, tags, status.tolist(), strict=True):
            if code == DONE:
                chunk.flags.writeable = False
                found.append((one.name, tag, chunk, chunk.nbytes))
            elif (
                code != ABSENT
                or self._fill is None
                or (files and not self._is_absent(one.chunk, known))
            ):
                call.left.add(one.chunk)
        del keeps, chunk
        self._cache.put_all(found)


def _pieces(count: int) -> Iterator[range]:
    return (range(a, min(a + _TOGETHER, count)) for a in range(0, count, _TOGETHER))


def _raw(chunk: NDArray[Any] | None) -> Any:
    """Bytes, for no buffer has every dtype."""
    assert chunk is not None
    return chunk.reshape(-1).view(np.uint8)
