"""S1, S2, S3: the whole of a volume, planes across each axis, one element, one row."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import samples
from .cases import FASTEST, FLOOR, FLOORS, Case, Check, Goal, Workload
from .datasets import Dataset
from .layout import CODECS, Layout
from .samples import Array
from .setting import Setting, floors, race, readers
from .timing import Contestant
from .zarr_peers import Looking

volume = cache(samples.volume)

STATS = "one `stat` a read"


def datasets(setting: Setting) -> list[Dataset]:
    """The volume in 64^3 chunks, one dataset a codec."""
    values = volume(setting.edge)
    return [
        Dataset(setting.folder / "volume", values, Layout(values.shape, "u2", (64,) * 3, codec))
        for codec in CODECS
    ]


def full(setting: Setting) -> Workload:
    """S1."""
    edge = setting.edge
    work = Workload("S1", f"full read, {edge}^3 uint16, 64^3 chunks")
    where = (slice(None),) * 3
    for data in datasets(setting):
        field = [
            *readers(data, setting.peers, ("read", where), data.values),
            *floors(data, ("read", where), data.values),
        ]
        results = race(setting, f"S1 {data.layout.codec}", field)
        goals = (Goal(FASTEST, 0.75 if data.layout.codec == "zstd" else 0.6), Goal(FLOOR, 1.2))
        size = data.values.nbytes
        work.cases.append(Case("S1", data.layout.codec, results, goals, payload=size))
    return work


def planes(setting: Setting) -> Workload:
    """S2."""
    work = Workload("S2", "one plane along each axis of S1")
    middle = setting.edge // 2 + 1
    for data in datasets(setting):
        times = []
        for axis in range(3):
            where: list[Any] = [slice(None)] * 3
            where[axis] = middle
            call = ("read", tuple(where))
            plane = data.values[tuple(where)]
            field = [
                *readers(data, setting.peers, call, plane),
                *floors(data, call, plane),
            ]
            name = f"{data.layout.codec}, axis {axis}"
            results = race(setting, f"S2 {name}", field)
            limit = 0.95 if data.layout.codec == "zstd" else 0.7
            goals = (Goal(FASTEST, limit), Goal(FLOOR, 1.2))
            case = Case("S2", name, results, goals, payload=plane.nbytes)
            work.cases.append(case)
            if case.ours:
                times.append(case.ours.wall)
        if times:
            spread = max(times) / min(times)
            text = f"{data.layout.codec}: slowest axis ≤ 1.3x the fastest"
            work.checks.append(Check(text, f"{spread:.2f}x", spread <= 1.3))
    return work


def in_memory(values: Array, places: list[tuple[Any, ...]]) -> Contestant:
    """The floor of cached reads."""
    return Contestant(FLOORS[0], lambda _: [np.array(values[place]) for place in places])


def stats(folder: Path, count: int) -> Contestant:
    """One look at a file for each read: what a cache that is not told ``immutable`` owes."""
    name = next(str(p) for p in folder.rglob("c/**/*") if p.is_file())
    return Contestant(STATS, lambda _: [os.stat(name) for _ in range(count)])


def _looked(case: Case) -> Check | None:
    """With a look at each read: no more than h5py's time and the looks."""
    ours, bare, h5py = (case.result(name) for name in (Looking.name, STATS, "h5py"))
    if not (ours and bare and h5py):
        return None
    ratio = ours.wall / (bare.wall + h5py.wall)
    return Check(f"{case.name}, with a look: ≤ h5py and one `stat`", f"{ratio:.2f}x", ratio <= 1)


def points(setting: Setting) -> Workload:
    """S3."""
    work = Workload("S3", "one element, one row (along the last axis) of S1; times per call")
    count = 20 if setting.quick else 50
    random = np.random.default_rng(5)
    spots = [tuple(p) for p in random.integers(0, setting.edge, (count, 3)).tolist()]
    for data in datasets(setting):
        for kind in ("element", "row"):
            places: list[tuple[Any, ...]] = [
                spot if kind == "element" else (*spot[:2], slice(None)) for spot in spots
            ]
            expected = [data.values[place] for place in places]
            call = ("reads", places)
            for cached in (False, True):
                field = readers(data, setting.peers, call, expected, cached=cached)
                name = f"{data.layout.codec}, {kind}, {'cached' if cached else 'uncached'}"
                goals: tuple[Goal, ...] = (Goal("h5py", 1),)
                if cached:
                    field += readers(data, [Looking()], call, expected, cached=True)
                    base = [in_memory(data.values, places), stats(data.zarr, count)]
                else:
                    base = floors(data, call, expected, threads=False)
                    limit = 0.6 if data.layout.codec == "zstd" else 0.3
                    goals = (Goal("TensorStore", limit), Goal(FLOOR, 1.2))
                results = race(setting, f"S3 {name}", [*field, *base])
                aside = (Looking.name, STATS)
                case = Case("S3", name, results, goals, operations=count, aside=aside)
                work.cases.append(case)
                if cached and (check := _looked(case)):
                    work.checks.append(check)
    work.note = (
        "Cached: every chunk touched is already decoded in the contestant's cache (1 GiB); the "
        "floor is then the same slice of an array in memory. Ours was opened with "
        "`immutable=True`; with a look, without: it asks at each read whether files are the same."
    )
    return work
