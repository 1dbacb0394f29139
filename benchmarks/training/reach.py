"""Whether ours reaches what it should in the training workloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .words import best, cores, count, even, is_ours

Row = list[Any]
"""Workload, goal, what came of it, whether it is met."""


def rows(kept: dict[str, Any]) -> list[Row]:
    """Of all workloads that were measured."""
    found: list[Row] = []
    for name, judge in JUDGES.items():
        if name in kept:
            found += [[name, *row] for row in judge(kept[name])]
    return found


def alike(name: str, work: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Of W1 and W4, by part: the compressed stores of equal shuffle."""
    found = []
    for part in work["sets"]:
        lines = [line for line in part["results"] if not line["error"]]
        if name == "W1":
            lines = [line for line in lines if even(line, work["random"], work["quick"])]
            lines = [line for line in lines if line["packed"] != "no"]
            what = f"{part['data']} images, {cores(part)}"
        else:
            spread = 1.6 if work["quick"] else 1.2
            lines = [
                line
                for line in lines
                if line["quality"]
                and line["quality"]["spread"] <= spread
                and line["stored"]
                and line["stored"] < 0.9 * work["bytes"]
            ]
            what = f"{part['verb']}, {cores(part)}"
        found.append((what, lines))
    return found


def _shuffled(name: str) -> Callable[[dict[str, Any]], list[Row]]:
    def judge(work: dict[str, Any]) -> list[Row]:
        found = []
        for what, lines in alike(name, work):
            found += _faster(lines, f"{what}: fastest compressed store of equal shuffle")
        return found

    return judge


def _faster(lines: list[dict[str, Any]], goal: str) -> list[Row]:
    ours = best([line for line in lines if is_ours(line)])
    peer = best([line for line in lines if not is_ours(line)])
    if ours is None or peer is None:
        return []
    words = (
        f"{count(ours['rate'])}/s against {count(peer['rate'])}/s of {peer['library']}, "
        f"{peer['variant']}"
    )
    return [[goal, words, ours["rate"] >= peer["rate"]]]


def _vectors(work: dict[str, Any]) -> list[Row]:
    found = []
    for part in work["sets"]:
        for line in part["results"]:
            told = line["chunks"] is not None and line["distinct"] and not line["error"]
            if told and "cache" not in line["variant"]:
                value = f"{line['chunks']:.1f} decoded, {line['distinct']:.1f} distinct"
                goal = f"random rows, {line['variant']}, {cores(part)}: chunks read = distinct"
                found.append([goal, value, line["chunks"] <= 1.001 * line["distinct"]])
    return found


def _windows(work: dict[str, Any]) -> list[Row]:
    found = []
    for part in work["sets"]:
        for line in part["results"]:
            if line["chunks"] is None or line["error"] or not is_ours(line):
                continue
            if line["order"] == "pool" or not line["distinct"]:
                continue
            over = part["verb"] == "overlapping"
            goal = "each chunk decoded once" if over else "chunks read = distinct of a batch"
            value = f"{line['chunks']:.2f} decoded a batch, {line['distinct']:.2f} new ones"
            # In order, the loader is a few chunks ahead of the batches when a round ends.
            slack = 20 / line["batches"] if over else 0.001 * line["distinct"]
            title = f"{part['verb']} windows, {cores(part)}: {goal}"
            found.append([title, value, line["chunks"] <= line["distinct"] + slack])
    return found


def _workers(work: dict[str, Any]) -> list[Row]:
    found = []
    for line in work["lines"]:
        if is_ours(line):
            total = sum(sum(cell["outcomes"].values()) for cell in line["cells"])
            good = sum(cell["outcomes"].get("ok", 0) for cell in line["cells"])
            goal = "every start method, read before or not: all ok"
            found.append([goal, f"{good} of {total}", good == total > 0])
    return found


def _resume(work: dict[str, Any]) -> list[Row]:
    found = []
    for line in work["lines"]:
        # What torchdata refuses is not ours to give.
        if is_ours(line) and "Stateful" not in line["variant"]:
            for way, words in (("workers", "workers 2, 1, 3"), ("worlds", "ranks 1, 2, 4")):
                cell = line.get(way)
                if cell:
                    goal = f"{line['variant']}, {words}: exact"
                    found.append([goal, cell["error"] or cell["words"], cell.get("exact", False)])
    return found


def _filling(work: dict[str, Any]) -> list[Row]:
    found = []
    for line in work["lines"]:
        cells = [(n, c) for n, c in line["rows"].items() if not c["error"] and c["ms"]]
        if is_ours(line) and len(cells) > 1:
            first, last = cells[0], cells[-1]
            change = last[1]["ms"] / first[1]["ms"]
            value = f"{first[1]['ms']:.3g} ms at {first[0]}, {last[1]['ms']:.3g} ms at {last[0]}"
            goal = f"{line['variant']}: ms a row the same at any length (within 1.5x)"
            found.append([goal, value, change <= 1.5])
    return found


JUDGES: dict[str, Any] = {
    "W1": _shuffled("W1"),
    "W2": _vectors,
    "W3": _windows,
    "W4": _shuffled("W4"),
    "W5": _workers,
    "W6": _resume,
    "W8": _filling,
}
