"""One run of the training workloads: how big, where, who, and interleaved races of children."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..setting import cores
from . import data
from .child import Child, Failed

Reading = dict[str, Any]
LATE = "left out: no time"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how often."""

    quick: bool
    rounds: int
    folder: Path
    only: frozenset[str] = frozenset()
    """Libraries to run; all when empty."""
    held: tuple[int, ...] = ()
    """To how many cores the children are held, one figure after another; one and all if empty."""
    until: float = math.inf
    """When no other contestant may begin, on the clock of :func:`now`."""

    @property
    def cores(self) -> tuple[int, ...]:
        """See :attr:`held`; with ``quick`` all alone."""
        if self.held:
            return self.held
        return (cores(),) if self.quick or cores() == 1 else (1, cores())

    def wants(self, library: str) -> bool:
        """Whether a library is to be run."""
        return not self.only or library in self.only

    @contextmanager
    def children(self, libraries: Iterable[str], count: int) -> Iterator[dict[str, Child]]:
        """A child for each library."""
        with ExitStack() as stack:
            made = {}
            for name in dict.fromkeys(libraries):
                word = "".join(c if c.isalnum() else "-" for c in name)
                made[name] = stack.enter_context(Child(self.folder / f"{word}.log", count))
            yield made

    def say(self, text: str) -> None:
        """Tell the person who waits."""
        print(text, flush=True)


@dataclass(slots=True)
class Entry:
    """A contestant of a race: a task for a child, and what came of it."""

    name: str
    child: Child
    task: str
    arguments: tuple[Any, ...]
    readings: list[Reading]
    error: str = ""
    first: Reading | None = None

    def run(self, turn: int, seconds: float) -> None:
        """Once more; ``turn`` 0 is the first and is not counted."""
        if self.error:
            return
        try:
            reading = self.child.call(self.task, *self.arguments, turn, seconds=seconds)
        except Failed as failed:
            self.error = str(failed)
            return
        if turn or reading.get("cut"):
            self.readings.append(reading)
        else:
            self.first = reading


def entry(name: str, child: Child, task: str, *arguments: Any) -> Entry:
    """A contestant without readings."""
    return Entry(name, child, task, arguments, [])


def race(bench: Bench, entries: Sequence[Entry], seconds: float = 300) -> None:
    """Every contestant once a round, the order rotating; a first round is not counted, but for
    those who were cut off in it: they run in that one and two more alone. Where there is no time
    left, the first round has to do, or nothing."""
    for turn in range(bench.rounds + 1):
        shift = turn % max(1, len(entries))
        for one in (*entries[shift:], *entries[:shift]):
            slow = one.readings and one.readings[0].get("cut") and turn > 2
            if not slow and now() < bench.until:
                one.run(turn, seconds)
    for one in entries:
        if not one.readings and not one.error:
            if one.first is None:
                one.error = LATE
            else:
                one.readings.append(one.first)


def middle(readings: Sequence[Reading], name: str) -> float | None:
    """The median of a figure."""
    values = [r[name] for r in readings if r.get(name) is not None]
    return float(statistics.median(values)) if values else None


def extent(readings: Sequence[Reading], name: str) -> list[float]:
    """The smallest and the largest."""
    values = [float(r[name]) for r in readings if r.get(name) is not None]
    return [min(values), max(values)] if values else []


def gather(tasks: Sequence[tuple[Child, str, tuple[Any, ...]]], seconds: float) -> list[str]:
    """Let two children work at a time; answers what each failed with, or nothing."""
    errors = [""] * len(tasks)
    waiting: list[int] = []

    def take() -> None:
        first = waiting.pop(0)
        try:
            tasks[first][0].answer(seconds)
        except Failed as failed:
            errors[first] = str(failed)

    for i, (child, task, arguments) in enumerate(tasks):
        busy = [k for k in waiting if tasks[k][0] is child]
        while busy and waiting:
            take()
            busy = [k for k in waiting if tasks[k][0] is child]
        try:
            child.send(task, *arguments)
        except Failed as failed:
            errors[i] = str(failed)
            continue
        waiting.append(i)
        if len(waiting) == 2:
            take()
    while waiting:
        take()
    return errors


def stored(
    children: Mapping[str, Child], module: str, todo: Mapping[Path, tuple[str, tuple[Any, ...]]]
) -> dict[Path, str]:
    """Have each store written by the child of its library, with ``module``'s ``write``; answers
    what each failed with, or nothing."""
    tasks = [
        (children[library], f"{module}:write", (*what, str(path)))
        for path, (library, what) in todo.items()
    ]
    return dict(zip(todo, gather(tasks, 1200), strict=True))


def outcome(
    bench: Bench,
    title: str,
    field: Sequence[tuple[Any, Entry, Path]],
    failed: Mapping[Path, str],
    line: Callable[[Any, Entry], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Race contestants, each with its entry and its store (``failed``: stores that were not
    written, and why); answers their lines, with the bytes that each store takes."""
    for _, made, path in field:
        made.error = failed.get(path, "")
    race(bench, [made for _, made, _ in field])
    results = []
    for one, made, path in field:
        found = line(one, made)
        found["stored"] = data.stored(path) if path.exists() else None
        results.append(found)
        bench.say(f"{title}, {one.name}: {made.error or format(found['rate'], '.0f') + '/s'}")
    return results


def line_of(
    one: Any, readings: Sequence[Reading], error: str, names: Sequence[str]
) -> dict[str, Any]:
    """A contestant's results: the median of each figure, and how far the rate went."""
    return {
        "library": one.library,
        "variant": one.variant,
        "how": one.how,
        "order": one.order,
        "error": error,
        **{name: middle(readings, name) for name in names},
        "range": extent(readings, "rate"),
        "quality": readings[-1].get("quality") if readings else None,
    }


def now() -> float:
    """Seconds of a clock."""
    return time.monotonic()
