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
from .peers import Peer
from .timing import Contestant, Result, interleave

Do = Callable[[Any, Any], object]
"""What a contestant does: gets the peer (or the floor) and its handle."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One run."""

    quick: bool
    rounds: int
    folder: Path
    peers: Sequence[Peer]

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
    do: Callable[[Any, Any], object],
    expected: Any,
    *,
    cached: bool = False,
    label: str = "",
) -> list[Contestant]:
    """A contestant for every peer that has such arrays, each with one open handle.

    Except that HDF5 files are opened anew before each call, untimed: they keep decoded chunks by
    default, which the call before would have filled. ``cached`` is for those who have a cache.
    """
    found = []
    for peer in peers:
        if not peer.handles(dataset.layout) or (cached and not peer.caches):
            continue
        path, name = dataset.path(peer), peer.name + label
        run = lambda handle, p=peer: do(p, handle)  # noqa: E731
        if peer.keeps and not cached:
            prepare = lambda p=peer, f=path: p.open(f)  # noqa: E731
            found.append(Contestant(name, run, prepare, peer.close, same(expected)))
        else:
            handle = peer.open(path, cached)
            prepare = lambda h=handle: h  # noqa: E731
            found.append(Contestant(name, run, prepare, check=same(expected)))
    return found


def floors(
    dataset: Dataset, do: Callable[[Floor], object], expected: Any, *, threads: bool = True
) -> list[Contestant]:
    """The floor with one thread and, where asked for, with one a core."""
    found = []
    for name, count in zip(FLOORS, (1, cores()), strict=True):
        if count == 1 or threads:
            floor = Floor(dataset.zarr, dataset.layout, count)
            run = lambda _, f=floor: do(f)  # noqa: E731
            found.append(Contestant(name, run, check=same(expected)))
        if count == 1 == cores():
            break
    return found


def race(setting: Setting, title: str, contestants: Sequence[Contestant]) -> list[Result]:
    """:func:`interleave`, with a line of progress."""
    results = interleave(contestants, setting.rounds)
    times = ", ".join(f"{r.name} {r.error or f'{r.wall * 1e3:.3g}'}" for r in results)
    setting.say(f"{title} [ms]: {times}")
    return results
