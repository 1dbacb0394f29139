"""Which compressor, which level, which chunk size: the table behind the defaults.

Every chain is ``bytes``, one compressor or none, ``crc32c``: what zarr-python and TensorStore
both open. One thread, chunks of 1 MiB, decoded into memory that is already there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import blosc

from . import samples
from .datasets import Dataset
from .floor import Floor
from .layout import Layout
from .samples import Array
from .setting import cores, same
from .timing import Contestant, interleave

CHUNK = 1 << 20
SIZES = {  # chunk of the uint16 volume -> its shape
    "16 KiB": (16, 16, 32),
    "32 KiB": (16, 32, 32),
    "64 KiB": (32, 32, 32),
    "128 KiB": (32, 32, 64),
    "256 KiB": (32, 64, 64),
    "512 KiB": (64, 64, 64),
    "1 MiB": (64, 64, 128),
    "2 MiB": (64, 128, 128),
    "4 MiB": (128, 128, 128),
    "8 MiB": (128, 128, 256),
}


WORDS = """\
The default for new arrays is `bytes`, `blosc` (lz4, level 5; shuffle, but none for one-byte types,
where shuffling bytes does nothing and shuffling bits costs more time than it saves) and `crc32c`,
in chunks of about 512 KiB: zarr-python and TensorStore open it. It keeps most of what zstd saves
and decodes about three times as fast;
bitshuffle for wider types would save a tenth more bytes at two thirds of the decode speed, and
relies on instructions that not every processor's c-blosc uses. Where bytes cost more than time (a
slow network), `blosc` with zstd, level 3 and bitshuffle, is the better choice, and beats plain
zstd on almost everything. Chunks below 128 KiB slow bulk reads, chunks above 1 MiB slow random
access without helping bulk reads; for random access put 16 to 64 KiB inner chunks in shards.

One thread, pieces of 1 MiB, each chain with crc32c, decoded into memory that is already there;
the best of interleaved rounds. Photographs and digits: scikit-learn's samples. Photo volume: the
photographs resampled to a volume, with shot noise. Reanalysis: ERA-Interim u, v and z, as packed
and unpacked. Random walk, token ids (Zipf) and noise: made."""


@dataclass(frozen=True, slots=True)
class Chain:
    """bytes, ``codec`` (or none), crc32c, over one thread."""

    name: str
    codec: Any = None

    def encode(self, chunk: Array) -> bytes:
        """The stored bytes of a C-contiguous chunk."""
        data = chunk.tobytes() if self.codec is None else bytes(self.codec.encode(chunk))
        checksum: bytes = google_crc32c.value(data).to_bytes(4, "little")
        return data + checksum

    def decode(self, data: bytes, out: Array) -> None:
        """Check and decode into ``out``."""
        body = data[:-4]
        if google_crc32c.value(body) != int.from_bytes(data[-4:], "little"):
            raise ValueError("checksum")
        if self.codec is None:
            out.view("u1")[:] = np.frombuffer(body, "u1")
        else:
            self.codec.decode(body, out=out)


def chains() -> list[Chain]:
    """The chains compared."""
    found = [Chain("none")]
    found += [Chain(f"zstd {level}", numcodecs.Zstd(level)) for level in (-5, 1, 3, 5)]
    for cname, levels in (("lz4", (1, 5)), ("zstd", (1, 3, 5))):
        for level in levels:
            for shuffle, word in ((blosc.SHUFFLE, "shuffle"), (blosc.BITSHUFFLE, "bitshuffle")):
                codec = numcodecs.Blosc(cname, level, shuffle)
                found.append(Chain(f"blosc {cname} {level} {word}", codec))
    return [*found, Chain("gzip 5", numcodecs.GZip(5))]


def chunks(array: Array) -> list[Array]:
    """``array`` in pieces of at most :data:`CHUNK` bytes along its first axis, flat."""
    row = max(1, array[:1].nbytes)
    step = max(1, CHUNK // row)
    return [np.ascontiguousarray(array[i : i + step]).ravel() for i in range(0, len(array), step)]


def compare(array: Array, rounds: int) -> list[tuple[str, float, float, float]]:
    """Chain, ratio (raw / stored), encode and decode speed in MB/s, one row a chain."""
    parts = chunks(array)
    outs = [np.empty_like(part) for part in parts]
    stored: dict[str, list[bytes]] = {}
    work: list[Contestant] = []
    for chain in chains():
        stored[chain.name] = [chain.encode(part) for part in parts]
        work.append(Contestant(f"e {chain.name}", _encode(chain, parts)))
        work.append(Contestant(f"d {chain.name}", _decode(chain, stored[chain.name], outs)))
    times = {result.name: result.best for result in interleave(work, rounds)}
    size = sum(part.nbytes for part in parts)
    table = []
    for chain in chains():
        for data, out, part in zip(stored[chain.name], outs, parts, strict=True):
            chain.decode(data, out)
            if out.tobytes() != part.tobytes():
                raise AssertionError(chain.name)
        ratio = size / sum(map(len, stored[chain.name]))
        encode, decode = (size / times[f"{way} {chain.name}"] / 1e6 for way in "ed")
        table.append((chain.name, ratio, encode, decode))
    return table


def _encode(chain: Chain, parts: Sequence[Array]) -> Callable[[Any], object]:
    return lambda _: [chain.encode(part) for part in parts]


def _decode(chain: Chain, data: Sequence[bytes], outs: Sequence[Array]) -> Callable[[Any], object]:
    def run(_: Any) -> None:
        for encoded, out in zip(data, outs, strict=True):
            chain.decode(encoded, out)

    return run


def _reading(name: str, floor: Floor, boxes: Sequence[tuple[Any, ...]]) -> Contestant:
    return Contestant(name, lambda _: floor.reads(boxes))


def compare_sizes(edge: int, codec: str, rounds: int) -> list[tuple[str, *tuple[float, ...]]]:
    """Chunk size, ratio, full read in MB/s with one thread and with one a core, plane in ms
    (slowest axis), element in us: by the plain loop of :class:`Floor`."""
    array = samples.volume(edge)
    whole = (slice(None),) * 3
    planes = [(*whole[:axis], edge // 2 + 1, *whole[axis + 1 :]) for axis in range(3)]
    places = [tuple(p) for p in np.random.default_rng(4).integers(0, edge, (20, 3)).tolist()]
    ratios: dict[str, float] = {}
    work: list[Contestant] = []
    with tempfile.TemporaryDirectory() as folder:
        for size, shape in SIZES.items():
            data = Dataset(Path(folder), array, Layout(array.shape, "u2", shape, codec))
            stored = sum(p.stat().st_size for p in data.zarr.rglob("c/**/*") if p.is_file())
            ratios[size] = array.nbytes / stored
            one, every = Floor(data.zarr, data.layout), Floor(data.zarr, data.layout, cores())
            same(array)(every.read(whole))
            selections = {"one": (one, [whole]), "all": (every, [whole]), "element": (one, places)}
            selections |= {f"plane{axis}": (one, [plane]) for axis, plane in enumerate(planes)}
            for name, (floor, boxes) in selections.items():
                work.append(_reading(f"{name} {size}", floor, boxes))
        times = {result.name: result.best for result in interleave(work, rounds)}
    return [
        (
            size,
            ratios[size],
            array.nbytes / times[f"one {size}"] / 1e6,
            array.nbytes / times[f"all {size}"] / 1e6,
            max(times[f"plane{axis} {size}"] for axis in range(3)) * 1e3,
            times[f"element {size}"] / len(places) * 1e6,
        )
        for size in SIZES
    ]


def measure(rounds: int) -> dict[str, Any]:
    """Both tables, as ``performance.json`` keeps them."""
    blosc.use_threads = False
    data = {}
    for kind, array in samples.kinds():
        print(f"codecs: {kind}", flush=True)
        data[kind] = compare(array, rounds)
    edge = 256
    print("codecs: chunk sizes", flush=True)
    sizes = {"blosc lz4 5 shuffle": compare_sizes(edge, "lz4", rounds)}
    return {"words": WORDS, "data": data, "sizes": sizes, "edge": edge, "rounds": rounds}
