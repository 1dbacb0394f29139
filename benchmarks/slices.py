"""S1, S2, S3: the whole of a volume, planes across each axis, one element, one row."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from . import samples
from .cases import FASTEST, FLOORS, Case, Check, Goal, Workload
from .datasets import Dataset
from .layout import CODECS, Layout
from .samples import Array
from .setting import Setting, floors, race, readers
from .timing import Contestant

volume = cache(samples.volume)


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
        goals = (Goal(FASTEST, 0.9), Goal("floor", 1.3))
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
            case = Case("S2", name, results, (Goal(FASTEST, 0.6),), payload=plane.nbytes)
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
                if cached:
                    base = [in_memory(data.values, places)]
                else:
                    base = floors(data, call, expected, threads=False)
                name = f"{data.layout.codec}, {kind}, {'cached' if cached else 'uncached'}"
                results = race(setting, f"S3 {name}", [*field, *base])
                goals = (Goal("TensorStore", 0.3),)
                work.cases.append(Case("S3", name, results, goals, operations=count))
    work.note = (
        "Cached: every chunk touched is already decoded in the contestant's cache (1 GiB); the "
        "floor is then the same slice of an array in memory."
    )
    return work
