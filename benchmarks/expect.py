"""What to expect, for users: what one does, in words, and each case of it beside the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .cases import CEILING, FLOORS
from .kept import Results
from .peer import OURS
from .training import reach
from .training.words import best, is_ours

LEVEL = 1.1
"""Within this factor two medians are called level: so far apart are those of two runs of one."""
MAPPED = (CEILING, "TensorDict memmap")
"""Uncompressed mapped files: a ceiling, no peers."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measured thing: ours, and the best of each other library."""

    ours: float
    others: dict[str, float]
    unit: str = "s"

    @property
    def fastest(self) -> str:
        """Of the others."""
        return min(self.others, key=self.others.__getitem__)

    @property
    def ratio(self) -> float:
        """Ours over the fastest other's; below 1: ours is faster (or smaller)."""
        return self.ours / self.others[self.fastest]


@dataclass(frozen=True, slots=True)
class Row:
    """Something that one does."""

    part: str
    words: str
    name: str
    """Of the result: ``S1``, ``cloud``, ``W1``."""
    per: str
    """What the times are of, where it is not the whole."""
    cases: tuple[Case, ...]

    @property
    def level(self) -> int:
        """In how many cases no other is faster by more than what two runs differ by."""
        return sum(case.ratio <= LEVEL for case in self.cases)


Pick = Callable[[str], bool]
FILES, BUCKET, REDIS, TRAINING = "Local files", "S3 bucket, 20 ms away", "Redis", "Training"
ARRAYS: tuple[tuple[str, str, str, Pick], ...] = (
    ("S1", "Read a whole array", "", lambda _: True),
    ("S2", "Read one plane, along any axis", "", lambda _: True),
    ("S3", "Read one element or row", "", lambda case: "uncached" in case),
    ("S3", "Read one element or row, from a cache", "", lambda case: "uncached" not in case),
    ("S4", "Take 256 random rows, ordinary chunks", "a row", lambda case: "shards" not in case),
    ("S4", "Take 256 random rows, shards", "a row", lambda case: "shards" in case),
    ("S5", "Read small boxes at random places", "a box", lambda _: True),
    ("S6", "Read thousands of tiny chunks", "a chunk", lambda _: True),
    ("S7", "Write a whole array", "", lambda case: case.startswith("full")),
    ("S7", "Write or append a few rows", "a call", lambda c: c[0].isdigit() and "writer" not in c),
    ("S7", "Write or append a few rows, by a writer", "a call", lambda case: "writer" in case),
    ("S8", "Import the package", "", lambda case: case.startswith("import")),
    ("S8", "Open an array", "", lambda case: case == "open"),
    ("S8", "Peak memory of reading a whole array", "", lambda case: "memory" in case),
)
PLACES: tuple[tuple[str, str, str, Pick], ...] = (
    ("cloud", BUCKET, "Open an array", lambda case: case == "open"),
    ("cloud", BUCKET, "Read whole arrays and planes", lambda c: "read" in c or "plane" in c),
    ("cloud", BUCKET, "Write whole arrays", lambda case: "full write" in case),
    ("cloud", BUCKET, "Random rows and boxes", lambda c: "random" in c and "again" not in c),
    ("cloud", BUCKET, "Random rows again, from a cache", lambda case: "again" in case),
    ("redis", REDIS, "Read whole arrays and random rows", lambda case: "write" not in case),
    ("redis", REDIS, "Write whole arrays, chunks, rows", lambda case: "write" in case),
)
EPOCHS = (
    ("W1", "", "Epochs of shuffled images", "an image"),
    ("W2", "rows", "Random rows of a matrix", "a row"),
    ("W2", "column", "Single columns of a matrix", "a value"),
    ("W3", "random", "Random windows of a series", "a window"),
    ("W3", "overlapping", "All windows of a series, in order", "a window"),
    ("W4", "", "Epochs of shuffled documents", "a document"),
)


def rows(kept: Results) -> list[Row]:
    """All that can be told from what is kept."""
    found = [
        Row(FILES, words, name, per, tuple(_array_cases(kept[name], pick)))
        for name, words, per, pick in ARRAYS
        if name in kept
    ]
    found += [
        Row(part, words, name, "", tuple(_place_cases(kept[name], pick)))
        for name, part, words, pick in PLACES
        if name in kept
    ]
    found += [
        Row(TRAINING, words, name, per, tuple(_epochs(name, verb, kept[name])))
        for name, verb, words, per in EPOCHS
        if name in kept
    ]
    if "W8" in kept:
        cases = tuple(_filled(kept["W8"]))
        found.append(Row(TRAINING, "Replace a record at a random place", "W8", "a record", cases))
    return [row for row in found if row.cases]


def _array_cases(work: dict[str, Any], pick: Pick) -> Iterator[Case]:
    for case in work["cases"]:
        out = {OURS, CEILING, *FLOORS, *case["aside"]}
        walls = {r["name"]: r["wall"] / case["operations"] for r in case["results"] if r["wall"]}
        others = {name: wall for name, wall in walls.items() if name not in out}
        if pick(case["name"]) and OURS in walls and others:
            yield Case(walls[OURS], others, case["unit"])


def _place_cases(work: dict[str, Any], pick: Pick) -> Iterator[Case]:
    for case in work["cases"]:
        walls = {r["name"]: r["wall"] for r in case["results"] if not r["error"]}
        # Judged as it comes, not in other settings; those of the others that were set well count.
        others = {
            name: wall
            for name, wall in walls.items()
            if not name.startswith(OURS) and name not in case.get("aside", ())
        }
        if pick(case["name"]) and OURS in walls and others:
            yield Case(walls[OURS], others)


def _epochs(name: str, verb: str, work: dict[str, Any]) -> Iterator[Case]:
    """Compressed stores alone, at equal shuffle (W3: in exact order)."""
    if name in ("W1", "W4"):
        parts = [lines for _, lines in reach.alike(name, work)]
    else:
        parts = [
            [
                line
                for line in part["results"]
                if not line["error"]
                and line["library"] not in MAPPED
                and line.get("order") != "pool"
            ]
            for part in work["sets"]
            if part["verb"] == verb
        ]
    for lines in parts:
        ours = best([line for line in lines if is_ours(line)])
        others: dict[str, float] = {}
        for line in lines:
            if not is_ours(line) and line["rate"]:
                spent = 1 / line["rate"]
                others[line["library"]] = min(spent, others.get(line["library"], spent))
        if ours and others:
            yield Case(1 / ours["rate"], others)


def _filled(work: dict[str, Any]) -> Iterator[Case]:
    """By the first number of rows, files and Redis each."""
    count = str(work["sizes"][0])
    for redis in (False, True):
        spent: dict[str, float] = {}
        for line in work["lines"]:
            cell = line["rows"].get(count)
            name = OURS if is_ours(line) else line["library"]
            if line["redis"] == redis and cell and cell["ms"] and name not in MAPPED:
                spent[name] = min(cell["ms"] / 1e3, spent.get(name, cell["ms"] / 1e3))
        if OURS in spent and len(spent) > 1:
            yield Case(spent.pop(OURS), spent)
