"""The floor: what the reads and decodes cost by themselves, in a plain loop.

One open, one read and one close a file, a decode into reused memory, one strided copy into the
output. Nothing is planned, checked, locked or cached (shard indices excepted: they are read once,
before the clock runs). Of raw chunks only the span of bytes that the selection needs is read.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from numcodecs import blosc

from .layout import Layout
from .samples import Array

Part = tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]
"""A chunk, what to take of it, where that goes in the output."""
SMALL = 1 << 16
"""Below this a zstd context of one's own is worth its price."""

_local = threading.local()


def decoder(layout: Layout) -> Callable[[memoryview, memoryview], object]:
    """The fastest binding at hand that decodes ``data`` into ``out``."""
    if layout.codec == "lz4":
        return lambda data, out: blosc.decompress(data, out)
    if math.prod(layout.chunks) * layout.itemsize <= SMALL:
        try:
            import zstandard
        except ImportError:
            pass
        else:

            def small(data: memoryview, out: memoryview) -> None:
                context = getattr(_local, "zstd", None)
                if context is None:
                    context = _local.zstd = zstandard.ZstdDecompressor()
                out[:] = context.decompress(data)

            return small
    codec = numcodecs.Zstd(1)
    return lambda data, out: codec.decode(data, out)


@dataclass(slots=True)
class Scratch:
    """Memory of one thread: encoded bytes, the decoded chunk, and it as an array."""

    encoded: memoryview
    decoded: memoryview
    chunk: Array

    @classmethod
    def of(cls, layout: Layout, limit: int) -> Scratch:
        """Enough for one file of ``layout``."""
        chunk = np.empty(layout.chunks, layout.dtype)
        return cls(
            memoryview(bytearray(limit)), memoryview(chunk.reshape(-1).view("u1").data), chunk
        )


class Floor:
    """Bare reads of one Zarr v3 array on the local disk."""

    def __init__(self, path: Path, layout: Layout, threads: int = 1) -> None:
        self.layout = layout
        self.root = f"{path}/c/"
        self.raw = layout.codec == "raw"
        self.decode = decoder(layout)
        self.limit = max(p.stat().st_size for p in path.rglob("c/**/*") if p.is_file())
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.threads = threads
        self.strides = tuple(
            math.prod(layout.chunks[i + 1 :]) * layout.itemsize for i in range(len(layout.chunks))
        )
        self.spare: list[Scratch] = []
        self.index: dict[str, list[tuple[int, int]]] = {}
        if layout.shards:
            self.inner = tuple(s // c for s, c in zip(layout.shards, layout.chunks, strict=True))
            for file in path.rglob("c/**/*"):
                if file.is_file():
                    tail = file.read_bytes()[-16 * math.prod(self.inner) - 4 : -4]
                    table = np.frombuffer(tail, "<u8").reshape(-1, 2)
                    self.index[str(file)] = [tuple(row) for row in table.tolist()]

    def close(self) -> None:
        """End the threads."""
        if self.pool:
            self.pool.shutdown()

    def read(self, where: tuple[Any, ...]) -> Array:
        """A box of slices (step 1) and integers."""
        layout = self.layout
        fixed = [i for i, w in enumerate(where) if not isinstance(w, slice)]
        box = [
            w if isinstance(w, slice) else slice(w, w + 1)
            for w in (*where, *([slice(None)] * (len(layout.shape) - len(where))))
        ]
        spans = [s.indices(n)[:2] for s, n in zip(box, layout.shape, strict=True)]
        out = np.empty([hi - lo for lo, hi in spans], layout.dtype)
        self._run(list(self._parts(spans)), out)
        return out.squeeze(tuple(fixed)) if fixed else out

    def _parts(self, spans: Sequence[tuple[int, int]]) -> Iterator[Part]:
        per_axis = []
        for (lo, hi), size in zip(spans, self.layout.chunks, strict=True):
            axis = []
            for i in range(lo // size, -(-hi // size)):
                first, last = max(lo, i * size), min(hi, (i + 1) * size)
                source = slice(first - i * size, last - i * size)
                axis.append((i, source, slice(first - lo, last - lo)))
            per_axis.append(axis)
        for combined in itertools.product(*per_axis):
            at, source, target = zip(*combined, strict=True)
            yield at, source, target

    def _run(self, parts: list[Part], out: Array) -> None:
        work = self._shards if self.layout.shards else self._chunks
        if self.pool is None or len(parts) < 2 * self.threads:
            work(parts, out)
            return
        step = -(-len(parts) // (4 * self.threads))
        blocks = [parts[i : i + step] for i in range(0, len(parts), step)]
        list(self.pool.map(lambda block: work(block, out), blocks))

    def _chunks(self, parts: Sequence[Part], out: Array) -> None:
        scratch = self.spare.pop() if self.spare else Scratch.of(self.layout, self.limit)
        chunk, decoded, encoded = scratch.chunk, scratch.decoded, scratch.encoded
        for at, source, target in parts:
            file = os.open(self.root + "/".join(map(str, at)), os.O_RDONLY)
            if self.raw:
                first = sum(s.start * n for s, n in zip(source, self.strides, strict=True))
                last = sum((s.stop - 1) * n for s, n in zip(source, self.strides, strict=True))
                os.preadv(file, [decoded[first : last + self.layout.itemsize]], first)
            else:
                size = os.readv(file, [encoded])
                self.decode(encoded[:size], decoded)
            os.close(file)
            out[target] = chunk[source]
        self.spare.append(scratch)

    def _shards(self, parts: Sequence[Part], out: Array) -> None:
        """Inner chunks; a shard of which most is needed is read whole."""
        groups: dict[tuple[int, ...], list[Part]] = {}
        inner = self.inner
        for part in parts:
            key = tuple(i // n for i, n in zip(part[0], inner, strict=True))
            groups.setdefault(key, []).append(part)
        scratch = self.spare.pop() if self.spare else Scratch.of(self.layout, self.limit)
        chunk, decoded, encoded = scratch.chunk, scratch.decoded, scratch.encoded
        for key, group in groups.items():
            name = self.root + "/".join(map(str, key))
            index = self.index[name]
            file = os.open(name, os.O_RDONLY)
            whole = 2 * len(group) > len(index)
            if whole:
                os.readv(file, [encoded])
            for at, source, target in group:
                slot = 0
                for i, n in zip(at, inner, strict=True):
                    slot = slot * n + i % n
                start, size = index[slot]
                if whole:
                    data = encoded[start : start + size]
                else:
                    data = encoded[:size]
                    os.preadv(file, [data], start)
                if self.raw:
                    decoded[:] = data
                else:
                    self.decode(data, decoded)
                out[target] = chunk[source]
            os.close(file)
        self.spare.append(scratch)

    def take(self, rows: Array) -> Array:
        """Rows of a 2-d array, each chunk read once."""
        layout = self.layout
        unique, back = np.unique(rows, return_inverse=True)
        out = np.empty((len(unique), *layout.shape[1:]), layout.dtype)
        size = layout.chunks[0]
        bounds = np.flatnonzero(np.diff(unique // size)) + 1
        parts: list[tuple[int, Array, slice]] = []
        for low, high in itertools.pairwise((0, *bounds.tolist(), len(unique))):
            at = int(unique[low]) // size
            parts.append((at, unique[low:high] - at * size, slice(low, high)))
        if self.pool is None:
            self._rows(parts, out)
        else:
            step = -(-len(parts) // (2 * self.threads))
            blocks = [parts[i : i + step] for i in range(0, len(parts), step)]
            list(self.pool.map(lambda block: self._rows(block, out), blocks))
        return out if np.array_equal(unique, rows) else out[back]

    def _rows(self, parts: Sequence[tuple[int, Array, slice]], out: Array) -> None:
        layout = self.layout
        rest = (0,) * (len(layout.shape) - 1)
        row = self.strides[0]
        per_shard = layout.shards[0] // layout.chunks[0] if layout.shards else 1
        scratch = self.spare.pop() if self.spare else Scratch.of(layout, self.limit)
        for at, local, target in parts:
            name = self.root + "/".join(map(str, (at // per_shard, *rest)))
            start, size = self.index[name][at % per_shard] if layout.shards else (0, self.limit)
            file = os.open(name, os.O_RDONLY)
            if self.raw:
                for i, place in zip(local.tolist(), range(target.start, target.stop), strict=True):
                    os.preadv(file, [out[place]], start + i * row)
            else:
                size = os.preadv(file, [scratch.encoded[:size]], start)
                self.decode(scratch.encoded[:size], scratch.decoded)
                np.take(scratch.chunk, local, 0, out[target], mode="clip")
            os.close(file)
        self.spare.append(scratch)

    def reads(self, boxes: Sequence[tuple[Any, ...]]) -> list[Array]:
        """Boxes one by one."""
        return [self.read(box) for box in boxes]


class FloorWriter:
    """Bare writes: contiguous copy, encode, a file beside its place, rename."""

    def __init__(self, path: Path, layout: Layout, threads: int = 1) -> None:
        self.path, self.layout, self.threads = path, layout, threads
        if layout.codec == "lz4":
            shuffle = blosc.SHUFFLE
            self.codec: Any = numcodecs.Blosc("lz4", 5, shuffle)
        else:
            self.codec = None if layout.codec == "raw" else numcodecs.Zstd(1)

    def write(self, values: Array) -> None:
        """The whole array."""
        grid = [-(-n // c) for n, c in zip(self.layout.shape, self.layout.chunks, strict=True)]
        places = list(np.ndindex(*grid))
        if self.threads == 1:
            self._some(places, values)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            blocks = [places[i :: 4 * self.threads] for i in range(4 * self.threads)]
            list(pool.map(lambda block: self._some(block, values), blocks))

    def _some(self, places: Sequence[tuple[int, ...]], values: Array) -> None:
        made: set[str] = set()
        for at in places:
            box = tuple(
                slice(i * c, (i + 1) * c) for i, c in zip(at, self.layout.chunks, strict=True)
            )
            chunk = np.ascontiguousarray(values[box])
            data: Any = chunk if self.codec is None else self.codec.encode(chunk)
            name = f"{self.path}/c/" + "/".join(map(str, at))
            folder = os.path.dirname(name)
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            file = os.open(name + ".part", os.O_WRONLY | os.O_CREAT, 0o666)
            os.write(file, data)
            os.close(file)
            os.rename(name + ".part", name)
