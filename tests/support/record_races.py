"""Rows that can be told to be whole: every field follows from one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import tensorstash as stash

TOLD: dict[str, Any] = {
    "id": "int64",
    "x": ((3,), "int32"),
    "t": stash.ragged("int32"),
    "p": stash.ragged("int16", 2),
    "s": str,
    "in": {"j": stash.json, "b": bytes},
}


def told(number: int) -> dict[str, Any]:
    """The row that ``number`` stands for."""
    return {
        "id": number,
        "x": np.arange(3, dtype="i4") + number,
        "t": np.arange(number % 7, dtype="i4") - number,
        "p": np.full((number % 3, 2), number % 1000, "i2"),
        "s": f"row {number}" * (number % 4),
        "in": {"j": {"n": [number]}, "b": b"%d" % number},
    }


def is_told(row: Mapping[str, Any]) -> bool:
    """Whether a row has all of its fields: those of its number."""
    wanted = told(int(row["id"]))
    return (
        all(np.array_equal(row[name], wanted[name]) for name in ("x", "t", "p"))
        and row["s"] == wanted["s"]
        and row["in"] == wanted["in"]
    )


def numbers_of(records: stash.Records) -> list[int]:
    """The rows' numbers, each row whole."""
    rows = list(records)
    assert all(map(is_told, rows)), next(r for r in rows if not is_told(r))
    assert len(rows) == len(records)
    return [int(row["id"]) for row in rows]


class Place:
    """Where records are, for processes that open them on their own."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url, self.options = url, options
        # Every request to moto takes milliseconds of one processor, and a row some sixty.
        self.turns = 1 if "://" in url else 4

    def create(self, **how: Any) -> stash.Records:
        how = {"rows_per_chunk": 4, **how}
        return stash.create_records(self.url, TOLD, options=self.options, **how)

    def open(self, mode: Any = "r", **how: Any) -> stash.Records:
        return stash.open_records(self.url, mode, options=self.options, **how)


def append_told(barrier: Any, place: Place, k: int, turns: int, how: str) -> None:
    """Add rows ``1000 * k`` and on, in ``how`` many ways."""
    records = place.open("r+")
    barrier.wait()
    for turn in range(turns):
        first = 1000 * k + 10 * turn
        rows = [told(first + i) for i in range(3)]
        if how == "append":
            for row in rows:
                at = records.append(row)
                assert int(records[at]["id"]) == row["id"]
        elif how == "extend":
            at = records.extend(rows)
            assert records["id"][at : at + 3].tolist() == [first, first + 1, first + 2]
        else:
            with records.writer() as writer:
                writer.append(rows[0])
                writer.extend(rows[1:])


def appended(ks: range, turns: int) -> list[int]:
    """What :func:`append_told` of every ``k`` adds."""
    return [1000 * k + 10 * turn + i for k in ks for turn in range(turns) for i in range(3)]


def watch_told(barrier: Any, place: Place, rows: int, cache: Any) -> None:
    """Poll until there are so many rows: each one that is seen is whole, and stays."""
    records = place.open(cache=cache)
    barrier.wait()
    seen: list[int] = []
    while len(seen) < rows:
        now = numbers_of(records.refresh())
        assert now[: len(seen)] == seen
        seen = now
