"""An array's chunks as stored: where each one is, and the pipeline that encodes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cached import Cached
from ..codec import ChunkSpec, Pipeline
from ..driver import REPAIR, Buffer, Driver, located
from ..errors import Corrupt, NoMemory, NotFound, counted
from ..indexing.grid import Grid
from ..metadata.spec import ArraySpec
from ..sharding import BoundSharding, Sharding
from ..threads import THREAD_BYTES, cores, spread

SPAN_FROM = 16 << 10
"""Bytes of a plain local chunk up to which reading a part of it is not worth while."""

_SCRATCH_KEPT = 32 << 20
_local = threading.local()


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
    def key(self) -> Callable[[tuple[int, ...]], str]:
        """The key of a stored object (a chunk, or a shard) by its grid index."""
        prefix, separator, ndim = self.prefix, self.spec.keys.separator, self.spec.ndim
        if ndim == 0:
            only = self.path + self.spec.keys.key(())
            return lambda index: only
        return lambda index: prefix + separator.join(map(str, index))

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


def blank(spec: ChunkSpec) -> NDArray[Any]:
    """A new chunk of nothing but fill."""
    chunk = _empty(spec)
    chunk[...] = spec.fill
    return chunk


def scratch(spec: ChunkSpec) -> tuple[NDArray[Any], memoryview]:
    """This thread's reusable chunk buffer, and its bytes: fresh memory for every large chunk
    would cost a page fault each 4 KiB. Valid until the thread's next call."""
    kept = getattr(_local, "kept", None)
    if kept is not None and kept[0] == (spec.shape, spec.dtype):
        return kept[1], kept[2]
    array = _empty(spec)
    view = array.reshape(-1).view(np.uint8).data  # memoryview cannot cast every dtype
    if array.nbytes <= _SCRATCH_KEPT:
        _local.kept = ((spec.shape, spec.dtype), array, view)
    return array, view


def _empty(spec: ChunkSpec) -> NDArray[Any]:
    try:
        return np.empty(spec.shape, spec.dtype)
    except (MemoryError, ValueError) as error:  # NumPy refuses the largest by ValueError
        raise NoMemory(
            f"no memory for one chunk of {counted(spec.nbytes, 'byte')}, of shape {spec.shape}; "
            "store smaller chunks, or use a larger machine"
        ) from error
