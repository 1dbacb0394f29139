"""An array's chunks as stored: where each one is, and the pipeline that encodes it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..codec import ChunkSpec, Pipeline
from ..driver import REPAIR, Buffer, Driver, Tag, located
from ..errors import Corrupt, NoMemory, NotFound, counted
from ..indexing.grid import Grid
from ..limits import HUGE
from ..memory import PROCESS, Account
from ..memory.returned import keeps_little
from ..metadata.spec import ArraySpec
from ..sharding import BoundSharding, Sharding
from ..threads import THREAD_BYTES, cores, spread

SPAN_FROM = 16 << 10
"""Bytes of a plain local chunk up to which reading a part of it is not worth while."""

_SCRATCH_KEPT = 32 << 20
_SCRATCH_FEW = 512 << 10  # where there is a limit on memory
_ITEM_BYTES = 64  # of an element of text or bytes, about
_KEPT = 1 << 20  # bytes of a chunk that is kept decoded once it was changed in part, for the next
_KEPT_IN_ALL = 32 << 20  # of all arrays
_ROOM = 1 << 20  # of which smaller chunks are lent a part: those of several fields take turns
_local = threading.local()
_kept: dict[int, tuple[ref[Changed], ref[Place], int]] = {}


class Chunks:
    """Binds an array's spec to the driver and path it lives at. Immutable.

    ``grid`` is the grid of what is decoded at once: inner chunks where the array is sharded
    and its shards can be read in part, else the stored chunks. ``most``: bytes to which a chunk of
    text or bytes may decode, where the handle says.
    """

    def __init__(
        self,
        driver: Driver,
        path: str,
        spec: ArraySpec,
        missing: str = "fill",
        most: int | None = None,
    ) -> None:
        self.driver = driver
        self.path = path
        self.spec = spec
        self.missing = missing
        self._most = most
        self.prefix = path + spec.keys.prefix
        self._pipelines: dict[tuple[int, ...], Pipeline] = {}
        self.changed = Place()
        """The one that was changed last; taken out while in use."""

    def of(self, spec: ArraySpec, missing: str = "fill") -> Chunks:
        """The chunks of an array as ``spec`` has it now, with the pipelines that were bound for it
        before, where it differs in nothing that they depend on, as one that grew by rows."""
        made = Chunks(self.driver, self.path, spec, missing, self._most)
        old = self.spec
        same = old.grid == spec.grid and old.codecs == spec.codecs and old.keys == spec.keys
        if same and old.dtype == spec.dtype and _is_same_fill(old.fill, spec.fill):
            made._pipelines, made.changed = self._pipelines, self.changed
            known = self.__dict__
            made.__dict__ |= {name: known[name] for name in _BOUND if name in known}
        return made

    @Cached
    def sharding(self) -> BoundSharding | None:
        """The shard layout, when inner chunks can be reached without decoding whole shards:
        sharding is the only codec (codecs around it would hide the index)."""
        chunks = self.spec.grid.chunks
        if chunks is None or len(self.spec.codecs) != 1:
            return None
        (codec,) = self.spec.codecs
        if not isinstance(codec, Sharding):
            return None
        return codec.bind(self.chunk_spec(chunks))

    @Cached
    def grid(self) -> Grid:
        """The grid of what is decoded at once."""
        sharding = self.sharding
        return self.spec.grid if sharding is None else Grid.regular(sharding.chunk_shape)

    @Cached
    def pipeline(self) -> Pipeline | None:
        """The one pipeline of every chunk of :attr:`grid`; ``None`` when chunks differ."""
        if self.sharding is not None:
            return self.sharding.inner
        chunks = self.spec.grid.chunks
        return None if chunks is None else self._pipeline(chunks)

    def pipeline_of(self, index: Sequence[int]) -> Pipeline:
        """The pipeline of one chunk of :attr:`grid`."""
        return self.pipeline or self._pipeline(self.grid.chunk_shape(index))

    def _pipeline(self, shape: tuple[int, ...]) -> Pipeline:
        found = self._pipelines.get(shape)
        if found is None:
            found = self._pipelines[shape] = Pipeline(self.spec.codecs, self.chunk_spec(shape))
        return found

    def chunk_spec(self, shape: tuple[int, ...]) -> ChunkSpec:
        """A stored object of ``shape``, with the handle's limit."""
        return self.spec.chunk_spec(shape, self._most)

    def most(self, index: Sequence[int]) -> int:
        """The bytes that a stored object can have, by its grid index: a shard's, or a chunk's."""
        sharding = self.sharding
        return self.pipeline_of(index).most if sharding is None else sharding.most

    @Cached
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk that is decoded at once; of text, about."""
        return largest(self.spec, self.grid)

    def room_bytes(self, kept: bool) -> tuple[int, int]:
        """Bytes that reading a chunk takes beside its place in the result, for what is stored and
        what comes of it; and those that there must be room for at once. Uncompressed ones, where
        they are not ``kept``, are read to where they are wanted, or in part."""
        nbytes, pipeline = self.chunk_bytes, self.pipeline
        if not kept and pipeline is not None and pipeline.raw:
            return nbytes, 0
        return 2 * nbytes, nbytes

    @Cached
    def object_bytes(self) -> int:
        """Bytes of the largest stored object once decoded: a shard's, or a chunk's."""
        return largest(self.spec, self.spec.grid)

    @Cached
    def key(self) -> Callable[[tuple[int, ...]], str]:
        """The key of a stored object (a chunk, or a shard) by its grid index."""
        prefix, separator, ndim = self.prefix, self.spec.keys.separator, self.spec.ndim
        if ndim == 0:
            only = self.path + self.spec.keys.key(())
            return lambda index: only
        return lambda index: prefix + separator.join(map(str, index))

    def stored(self, index: tuple[int, ...]) -> Callable[[tuple[int, ...]], bool] | None:
        """Which inner chunks, by their places in it, the stored object at a grid index has;
        ``None`` where none is stored."""
        key, sharding = self.key(index), self.sharding
        if sharding is None:
            return None if self.driver.tag(key) is None else lambda place: True
        found = self.driver.get_ranges(key, [sharding.index_span])
        if found is None:
            return None
        sizes = sharding.decode_index(found[0][0])[:, 1]
        return lambda place: bool(sizes[sharding.positions([place])[0]] >= 0)

    def absent(self, key: str, index: tuple[int, ...]) -> None:
        """What an absent chunk means: the fill value, unless the reader asked to be told."""
        if self.missing == "raise":
            raise NotFound(
                f"chunk {index} is not stored (key {key!r} in {self.driver.url}); "
                'open with missing="fill" to read it as the fill value'
            )

    def damaged(
        self, error: Corrupt, key: str, index: tuple[int, ...], what: str = "chunk"
    ) -> Corrupt:
        """``error`` with the place of the damage, which codecs do not know: ``index`` is that of
        a chunk of :attr:`grid`, or of a shard whose own index is damaged."""
        if error.chunk is not None:
            return error
        placed = Corrupt(
            f"{what} {index} at key {key!r} in {self.driver.url} is damaged: "
            f"{str(error).removesuffix(REPAIR)}{REPAIR}",
            key=key,
            chunk=index,
            codec=error.codec or self.spec.codecs[-1].name,  # the outermost: drivers name none
        )
        placed.__cause__ = error.__cause__ or error
        return placed

    def oversized(self, error: Corrupt) -> Corrupt:
        """``error`` of a driver, which knows the key of an object alone, with its place."""
        index = self.spec.keys.index(error.key.removeprefix(self.path), self.spec.ndim)
        if index is None:
            return error
        what = "chunk" if self.sharding is None else "shard"
        return self.damaged(error, error.key, index, what)

    def no_memory(self, verb: str, shape: Sequence[int], error: MemoryError) -> NoMemory:
        """``error`` as one of ours, which says what chunks there are: one at least is decoded."""
        if isinstance(error, NoMemory):
            return error
        detail = str(error).partition("\n")[0] or "the machine has no more"
        return NoMemory(
            f"no memory to {verb} shape {tuple(shape)} of {self.spec.dtype} in chunks of "
            f"{self.spec.grid.chunks or 'differing shapes'} at {located(self.driver, self.path)}: "
            f"{detail}; select less, or store smaller chunks"
        )

    @property
    def plain(self) -> bool:
        """Whether elements are plain memory, which threads may copy without the GIL."""
        return self.spec.dtype.kind not in "OT"


def largest(spec: ArraySpec, grid: Grid) -> int:
    """Bytes of the largest chunk of ``grid`` once decoded; of text, about."""
    item = spec.dtype.itemsize if spec.dtype.kind not in "OT" else _ITEM_BYTES
    return item * math.prod(axis.size(HUGE) for axis in grid.axes)


def encode_all(
    sharding: BoundSharding, pieces: Sequence[NDArray[Any]], keep: bool, threads: int | None
) -> list[Buffer | None]:
    """Inner chunks encoded, in threads where there is much to do; ``None`` for those of nothing but
    fill, unless they are kept."""
    encoded: list[Buffer | None] = [None] * len(pieces)
    encode_one = sharding.inner.encode if keep else sharding.encode_inner

    def encode(block: range) -> None:
        for k in block:
            encoded[k] = encode_one(pieces[k])

    much = sharding.inner.spec.nbytes * len(pieces) >= 4 * THREAD_BYTES
    most = (cores() if threads is None else threads) if much else 1
    size = max(1, -(-len(pieces) // (most * 4)))
    blocks = (range(k, min(k + size, len(pieces))) for k in range(0, len(pieces), size))
    spread(blocks, lambda: encode, most)
    return encoded


def beyond(
    chunk: NDArray[Any], origin: tuple[int, ...], edges: tuple[int, ...]
) -> Iterator[NDArray[Any]]:
    """The cells of a chunk at ``origin`` beyond ``edges``; some come twice."""
    for axis, (edge, start) in enumerate(zip(edges, origin, strict=False)):
        if edge - start < chunk.shape[axis]:
            yield chunk[(slice(None),) * axis + (slice(max(edge - start, 0), None),)]


def _is_same_fill(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one is other or (one.dtype.kind not in "OT" and one.tobytes() == other.tobytes())


_BOUND = ("sharding", "grid", "pipeline", "key")
"""What of an array's chunks does not depend on how many there are."""


def blank(spec: ChunkSpec) -> NDArray[Any]:
    """A new chunk of nothing but fill."""
    chunk = empty(spec)
    chunk[...] = spec.fill
    return chunk


def to_change(pipeline: Pipeline, stored: Buffer | None, covers: bool, lent: bool) -> NDArray[Any]:
    """A stored chunk decoded, to be changed, in memory of its own; all fill where there is none,
    or it is damaged and the change ``covers`` all of it. ``lent``: in :func:`scratch`, where it
    can be."""
    try:
        return _to_change(pipeline, stored, lent)
    except Corrupt:
        if not covers:
            raise
        return blank(pipeline.spec)


def _to_change(pipeline: Pipeline, stored: Buffer | None, lent: bool) -> NDArray[Any]:
    spec = pipeline.spec
    if not lent or not pipeline.ordered or spec.dtype.kind in "OT":
        return blank(spec) if stored is None else np.array(pipeline.decode(stored), order="C")
    chunk, view = scratch(spec)
    if stored is None:
        chunk[...] = spec.fill
    else:
        _decode_into(pipeline, stored, chunk, view)
    return chunk


def _decode_into(pipeline: Pipeline, stored: Buffer, chunk: NDArray[Any], view: memoryview) -> None:
    found = pipeline.decode(stored, chunk if pipeline.direct else None, view)
    if found is not chunk:
        chunk[...] = found


class Place(list["Changed"]):
    """Where an array's chunk is kept: empty while that is in use, and weakly referred to."""

    __slots__ = ("__weakref__",)


class Changed:
    """A chunk as this process stored it last, decoded: for who changes it again, and need not read
    it while its tag says that it is there still. ``stored``: what this process made of it."""

    __slots__ = ("__weakref__", "account", "key", "spec", "stored", "tag", "values", "view")

    account: Account

    def __init__(self, spec: ChunkSpec) -> None:
        self.spec = spec
        self.key = ""
        self.tag: Tag = None
        self.stored: Buffer | None = None
        self.values = empty(spec)
        self.view = self.values.reshape(-1).view(np.uint8).data

    def read(self, key: str, pipeline: Pipeline, stored: tuple[Buffer, Tag] | None) -> None:
        """Decode what is stored at ``key``; where that is nothing, it is all fill."""
        self.stored = None
        if stored is None:
            self.values[...] = self.spec.fill
        else:
            _decode_into(pipeline, stored[0], self.values, self.view)
        self.key, self.tag = key, None if stored is None else stored[1]

    @classmethod
    def made(cls, spec: ChunkSpec, place: Place) -> Changed:
        """A new one, to be kept in ``place``; where this process keeps too much, the oldest go."""
        made = cls(spec)
        number, pop = id(made), _kept.pop  # not by name: it may go before the last of them
        nbytes = 2 * spec.nbytes  # and as it is stored
        _kept[number] = ref(made, lambda _: pop(number, None) and None), ref(place), nbytes
        made.account = PROCESS.account("caches")
        made.account.set(nbytes)
        most = _KEPT_IN_ALL if PROCESS.limit is None else min(_KEPT_IN_ALL, PROCESS.limit // 8)
        over = sum(nbytes for *_, nbytes in [*_kept.values()]) - most
        for oldest, (held, where, nbytes) in [*_kept.items()]:
            if over <= 0 or oldest == number:
                break
            over -= nbytes
            pop(oldest, None)
            with suppress(ValueError):  # it is in use, or gone
                (where() or Place()).remove(held())  # type: ignore[arg-type]
        return made

    @staticmethod
    def keeps(pipeline: Pipeline) -> bool:
        """Whether such chunks are kept: of plain memory, and not large."""
        spec = pipeline.spec
        return pipeline.ordered and spec.dtype.kind not in "OT" and 0 < spec.nbytes <= _KEPT


def scratch(spec: ChunkSpec) -> tuple[NDArray[Any], memoryview]:
    """This thread's reusable chunk buffer, and its bytes: fresh memory for every large chunk
    would cost a page fault each 4 KiB. Valid until the thread's next call."""
    kept = getattr(_local, "kept", None)
    if kept is not None and kept[0] == (spec.shape, spec.dtype):
        return kept[1], kept[2]
    nbytes, room = spec.nbytes, getattr(_local, "room", None)
    if room is None or not nbytes <= len(room) <= max(8 * nbytes, _ROOM):
        array = empty(spec)
        room = array.reshape(-1).view(np.uint8)  # memoryview cannot cast every dtype
        if nbytes > (_SCRATCH_FEW if keeps_little() else _SCRATCH_KEPT):
            return array, room.data
    array, view = room[:nbytes].view(spec.dtype).reshape(spec.shape), room[:nbytes].data
    _local.room, _local.kept = room, ((spec.shape, spec.dtype), array, view)
    return array, view


def empty(spec: ChunkSpec) -> NDArray[Any]:
    """Memory for a chunk."""
    try:
        return np.empty(spec.shape, spec.dtype)
    except (MemoryError, ValueError) as error:  # NumPy refuses the largest by ValueError
        raise NoMemory(
            f"no memory for one chunk of {counted(spec.nbytes, 'byte')}, of shape {spec.shape}; "
            "store smaller chunks, or use a larger machine"
        ) from error
