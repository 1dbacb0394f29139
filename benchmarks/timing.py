"""Interleaved timing: every contestant once a round, round after round, medians of all rounds.

What is measured around one call: wall time, CPU time of the whole process (user and system,
all threads), and the bytes that read and write system calls moved (``/proc/self/io``; a mapped
file is read by page faults and counts nothing).
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

IO = "/proc/self/io"
MORE = 4
"""Cheap cases get up to this many times the rounds asked for, within ``patience`` seconds."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the work. ``prepare`` runs before every call, ``finish`` after it, untimed;
    ``run`` gets what ``prepare`` answered. ``check`` sees the first, untimed result and raises
    when it is wrong. ``warm``: an untimed call before each timed one, not only before the first.
    """

    name: str
    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    finish: Callable[[Any], object] = lambda _: None
    check: Callable[[Any], object] = lambda _: None
    warm: bool = True


@dataclass(slots=True)
class Result:
    """What one contestant's rounds gave; the figures are medians over the rounds."""

    name: str
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    error: str = ""

    @property
    def wall(self) -> float:
        """Seconds."""
        return statistics.median(self.walls) if self.walls else float("nan")

    @property
    def best(self) -> float:
        """Seconds of the fastest round."""
        return min(self.walls) if self.walls else float("nan")

    @property
    def cpu(self) -> float:
        """Seconds, all threads."""
        return statistics.median(self.cpus) if self.cpus else float("nan")

    @property
    def read(self) -> int:
        """Bytes that read system calls answered."""
        return int(statistics.median(self.reads)) if self.reads else 0

    @property
    def written(self) -> int:
        """Bytes handed to write system calls."""
        return int(statistics.median(self.writes)) if self.writes else 0


def moved() -> tuple[int, int]:
    """Bytes read and written by this process's system calls so far; zeros where unknown."""
    try:
        descriptor = os.open(IO, os.O_RDONLY)
    except OSError:
        return 0, 0
    try:
        lines = os.read(descriptor, 512).split(b"\n")
    finally:
        os.close(descriptor)
    return int(lines[0].split()[1]), int(lines[1].split()[1])


def _own_cost() -> int:
    """Bytes that asking :func:`moved` twice adds to the first figure."""
    first, second = moved()[0], moved()[0]
    return second - first


def interleave(contestants: Sequence[Contestant], rounds: int, patience: float = 0) -> list[Result]:
    """One :class:`Result` per contestant, in their order.

    Each timed call follows an untimed one of the same contestant (see ``warm``), the order
    rotates from round to round, and the collector stays off while a call runs. A contestant
    that raises is reported with its error and dropped.
    """
    gc.collect()
    gc.freeze()  # else each collection walks all that the peers' imports made
    results = {c.name: Result(c.name) for c in contestants}
    end = time.monotonic() + patience
    for turn in range(MORE * rounds):
        if turn >= rounds and time.monotonic() > end:
            break
        shift = turn % len(contestants)
        for contestant in (*contestants[shift:], *contestants[:shift]):
            result = results[contestant.name]
            if result.error:
                continue
            try:
                _once(contestant, result)
            except Exception as error:  # a peer's failure is a finding, not the end of the run
                first = (str(error).splitlines() or [""])[0]
                result.error = f"{type(error).__name__}: {first}"[:160]
    return [results[c.name] for c in contestants]


def _once(contestant: Contestant, result: Result) -> None:
    first = not result.walls
    for timed in (False, True) if contestant.warm or first else (True,):
        ready = contestant.prepare()
        gc.collect()
        gc.disable()
        cost = _own_cost()
        read, written = moved()
        cpu, wall = time.process_time(), time.perf_counter()
        kept = contestant.run(ready)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = moved()
        gc.enable()
        if first and not timed:
            contestant.check(kept)
        del kept
        contestant.finish(ready)
        if timed:
            result.walls.append(wall)
            result.cpus.append(cpu)
            result.reads.append(max(0, after[0] - read - cost))
            result.writes.append(after[1] - written)
