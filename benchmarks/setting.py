"""How big, how often, who and where: one run's setting, and the contestants it makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cases import FLOORS
from .datasets import Dataset
from .floor import Floor
from .peer import Peer
from .timing import Contestant, Result, interleave

Call = tuple[str, Any]
"""What a contestant does: ``read``, ``reads`` or ``take`` (of a peer or the floor), and of what."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One run."""

    quick: bool
    rounds: int
    folder: Path
    peers: Sequence[Peer]

    @property
    def patience(self) -> float:
        """Seconds that a case may take for more rounds than asked for."""
        return 0.2 if self.quick else 4

    @property
    def edge(self) -> int:
        """Of the cube of S1 to S3."""
        return 256 if self.quick else 512

    def say(self, text: str) -> None:
        """Tell the person who waits."""
        print(text, flush=True)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def same(expected: Any) -> Callable[[Any], None]:
    """A check that a result (an array, or a list of them) equals ``expected``."""

    def check(result: Any) -> None:
        pairs = [(result, expected)]
        if isinstance(expected, list):
            pairs = list(zip(result, expected, strict=True))
        for got, wanted in pairs:
            if not np.array_equal(np.asarray(got), wanted):
                raise AssertionError("wrong values")

    return check


def readers(
    dataset: Dataset,
    peers: Sequence[Peer],
    call: Call,
    expected: Any,
    *,
    cached: bool = False,
    label: str = "",
) -> list[Contestant]:
    """A contestant for every peer that has such arrays, each with one open handle.

    Except that HDF5 files are opened anew before each call, untimed: they keep decoded chunks by
    default, which the call before would have filled. ``cached`` is for those who have a cache.
    """
    verb, what = call

    def reader(peer: Peer) -> Contestant:
        path, check = dataset.path(peer), same(expected)
        do = getattr(peer, verb)
        if peer.keeps and not cached:
            return Contestant(
                peer.name,
                lambda handle: do(handle, what),
                lambda: peer.open(path),
                peer.close,
                check,
            )
        handle = peer.open(path, cached)
        return Contestant(peer.name + label, lambda _: do(handle, what), check=check)

    return [
        reader(peer)
        for peer in peers
        if peer.handles(dataset.layout) and (peer.caches or not cached)
    ]


def floors(
    dataset: Dataset, call: Call, expected: Any, *, threads: bool = True
) -> list[Contestant]:
    """The floor with one thread and, where asked for, with one a core."""
    verb, what = call

    def floor(name: str, count: int) -> Contestant:
        do = getattr(Floor(dataset.zarr, dataset.layout, count), verb)
        return Contestant(name, lambda _: do(what), check=same(expected))

    single, every = FLOORS
    found = [floor(single, 1)]
    if threads and cores() > 1:
        found.append(floor(every, cores()))
    return found


def race(setting: Setting, title: str, contestants: Sequence[Contestant]) -> list[Result]:
    """:func:`interleave`, with a line of progress."""
    results = interleave(contestants, setting.rounds, setting.patience)
    times = ", ".join(f"{r.name} {r.error or f'{r.wall * 1e3:.3g}'}" for r in results)
    setting.say(f"{title} [ms]: {times}")
    return results
