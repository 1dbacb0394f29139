"""S5, S6: patches out of shards, and arrays of many small chunks."""

from __future__ import annotations

import numpy as np

from . import samples
from .cases import FLOOR, Case, Goal, Workload
from .datasets import Dataset
from .layout import Layout
from .setting import Setting, floors, race, readers
from .slices import volume
from .zarr_peers import TensorStoreBatch

EDGE, COUNT = 8, 200
CACHED = ", cached"


def datasets(setting: Setting) -> list[Dataset]:
    """A volume of 16^3 inner chunks in 128^3 shards, one dataset a codec."""
    edge = 256 if setting.quick else 384
    values = volume(edge)
    shape, inner, shard = values.shape, (16,) * 3, (128,) * 3
    return [
        Dataset(setting.folder / "shards", values, Layout(shape, "u2", inner, codec, shard))
        for codec in ("lz4", "zstd")
    ]


def patches(setting: Setting) -> Workload:
    """S5."""
    work = Workload(
        "S5", f"{COUNT} random {EDGE}^3 patches, 16^3 inner chunks in 128^3 shards; times per patch"
    )
    random = np.random.default_rng(7)
    for data in datasets(setting):
        side = data.layout.shape[0] - EDGE
        corners = [tuple(p) for p in random.integers(0, side, (COUNT, 3)).tolist()]
        boxes = [tuple(slice(i, i + EDGE) for i in corner) for corner in corners]
        call, expected = ("reads", boxes), [data.values[box] for box in boxes]
        peers = [*setting.peers]
        if any(peer.name == "TensorStore" for peer in peers):
            peers.append(TensorStoreBatch())
        caching = [peer for peer in setting.peers if peer.name in ("tensorstash", "TensorStore")]
        field = [
            *readers(data, peers, call, expected),
            *readers(data, caching, call, expected, cached=True, label=CACHED),
            *floors(data, call, expected, threads=False),
        ]
        results = race(setting, f"S5 {data.layout.codec}", field)
        aside = tuple(p.name + CACHED for p in caching)
        goals = (Goal("TensorStore", 0.3), Goal(FLOOR, 1.2))
        case = Case("S5", data.layout.codec, results, goals, COUNT, aside=aside)
        work.cases.append(case)
    work.note = (
        'One call a patch, except "one batch": all patches as futures of one `ts.Batch`. The '
        "cached variants (1 GiB of decoded chunks, warm) are shown, not judged."
    )
    return work


def small(setting: Setting) -> Workload:
    """S6."""
    side = 1024 if setting.quick else 2048
    work = Workload(
        "S6",
        f"many small chunks: {side}^2 float32 in 4 KiB chunks; the array of S5; times per chunk",
    )
    values = samples.rows(side, side)
    four = [
        Dataset(setting.folder / "small", values, Layout(values.shape, "f4", (32, 32), codec))
        for codec in ("raw", "zstd")
    ]
    sharded = datasets(setting)[1:] if setting.quick else datasets(setting)
    for data in (*four, *sharded):
        where = (slice(None),) * data.values.ndim
        field = [
            *readers(data, setting.peers, ("read", where), data.values),
            *floors(data, ("read", where), data.values),
        ]
        kind = "S5's array" if data.layout.shards else "4 KiB chunks"
        name = f"{kind}, {data.layout.codec}"
        results = race(setting, f"S6 {name}", field)
        goals = (Goal("zarrs", 0.6), Goal(FLOOR, 1.2))
        count = int(
            np.prod(
                [-(-n // c) for n, c in zip(data.layout.shape, data.layout.chunks, strict=True)]
            )
        )
        work.cases.append(Case("S6", name, results, goals, count, data.values.nbytes))
    return work
