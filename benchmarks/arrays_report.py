"""What is kept of S1 to S8, and the section on them in the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import runs
from .cases import CLOSE, FASTEST, FLOOR, FLOORS, Case, Workload
from .peer import OURS
from .tables import met, table

ORDER = (
    OURS,
    "TensorStore",
    "zarr-python",
    "zarr-python, fused",
    "zarrs",
    "h5py",
    "PyTables",
    "np.memmap",
)


def as_json(work: Workload) -> dict[str, Any]:
    """A workload with everything that was measured."""
    return {
        "id": work.id,
        "title": work.title,
        "note": work.note,
        "checks": [{"text": c.text, "value": c.value, "met": c.met} for c in work.checks],
        "cases": [_case(case) for case in work.cases],
    }


def _case(case: Case) -> dict[str, Any]:
    fastest = case.fastest
    return {
        "name": case.name,
        "unit": case.unit,
        "operations": case.operations,
        "payload": case.payload,
        "fastest": fastest.name if fastest else None,
        "floor": _known(case.floor),
        "aside": list(case.aside),
        "goals": [
            {
                "text": str(goal),
                "against": goal.against,
                "limit": goal.limit,
                "reference": _known(case.reference(goal.against)),
                "ratio": _known(case.ratio(goal.against)),
                "met": case.met(goal),
            }
            for goal in case.goals
        ],
        "results": [
            {
                "name": r.name,
                "error": r.error,
                "wall": r.wall if r.walls else None,
                "best": r.best if r.walls else None,
                "cpu": r.cpu if r.cpus else None,
                "read": r.read if r.reads else None,
                "written": r.written if r.writes else None,
            }
            for r in case.results
        ],
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def title(work: dict[str, Any]) -> str:
    """Of the heading above its table."""
    return f"{work['id']}: {work['title']}"


def section(works: Sequence[dict[str, Any]]) -> list[str]:
    """Everything about them, as Markdown."""
    lines = [*_preamble(), *_verdict(works)]
    for work in works:
        lines += _workload(work)
    for work in works:
        lines += _details(work)
    return lines


def _preamble() -> list[str]:
    return [
        "All contestants run in one process, interleaved (each once a round, the order rotating); "
        "figures are medians over the rounds. Each timed call follows an untimed one, so files are "
        "in the page cache. All readers of Zarr read the same bytes, written by zarr-python; "
        "results are compared with the data before the clock runs. `np.memmap` is the ceiling for "
        "raw, not a peer. The floor is the bare cost of the reads and decodes in a plain loop of C "
        "(`benchmarks/floor.c`), the better of one thread and one thread a core. A goal beside a "
        f"peer counts as met within {CLOSE} times the floor. Bytes read are what read system calls "
        "moved (`/proc/self/io`).",
        "",
    ]


def _verdict(works: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for work in works:
        found: dict[str, list[tuple[Any, float | None]]] = {}
        for case in work["cases"]:
            for goal in case["goals"]:
                if goal["reference"] is not None:
                    bare = case["floor"] / goal["reference"] if case["floor"] else None
                    found.setdefault(goal["text"], []).append((goal, bare))
        for text, goals in found.items():
            ratios = [goal["ratio"] for goal, _ in goals if goal["ratio"] is not None]
            held = sum(bool(goal["met"]) for goal, _ in goals)
            bare = _span([floor for _, floor in goals if floor is not None])
            rows.append([work["id"], text, _span(ratios), bare, f"{held} of {len(goals)}"])
        for check in work["checks"]:
            rows.append([work["id"], check["text"], check["value"], "", met(check["met"])])
    head = ["", "reach", "ours", "the floor itself", "met"]
    words = (
        "Ratios over the cases of a workload, the smallest and the largest. Beside ours, what the "
        "bare loop of the floor reaches with nothing planned or checked."
    )
    return ["### Reach", "", *table(head, rows), words, ""]


def _span(ratios: list[float]) -> str:
    return f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else ""


def _each(case: dict[str, Any], value: float | None) -> str:
    """A figure in the unit of its case: ms a call, us an operation, or MiB."""
    if value is None:
        return "failed"
    if case["unit"] == "MiB":
        return f"{value / 2**20:.0f} MiB"
    single = value / case["operations"]
    return f"{single * 1e6:.1f} us" if single < 1e-3 else f"{single * 1e3:.4g} ms"


def _cpus(results: dict[str, Any], fastest: str | None) -> str:
    """CPU time of ours over the fastest peer's."""
    ours, its = (results.get(name, {}).get("cpu") for name in (OURS, fastest))
    return f"{ours / its:.2f}" if ours and its else ""


def _workload(work: dict[str, Any]) -> list[str]:
    names = _names(work)
    head = ["case", *names, "floor", "÷ fastest peer", "its CPU", "÷ floor", "reach", "met"]
    rows = []
    for case in work["cases"]:
        results = {result["name"]: result for result in case["results"]}
        row = [case["name"]]
        row += [_each(case, results[n]["wall"]) if n in results else "" for n in names]
        row.append(_each(case, case["floor"]) if case["floor"] else "")
        ours = results.get(OURS, {}).get("wall")
        best = results[case["fastest"]]["wall"] if case["fastest"] else None
        row.append(f"{ours / best:.2f} ({case['fastest']})" if ours and best else "")
        row.append(_cpus(results, case["fastest"]))
        row.append(f"{ours / case['floor']:.2f}" if ours and case["floor"] else "")
        row.append("<br>".join(_goal(goal) for goal in case["goals"]))
        row.append("<br>".join(met(goal["met"]) for goal in case["goals"]))
        rows.append(row)
    lines = [f"### {title(work)}", "", runs.words(work["run"]), ""]
    lines += table(head, rows)
    lines += [f"- {c['text']}: {c['value']}, met: {met(c['met'])}" for c in work["checks"]]
    lines += [""] if work["checks"] else []
    return [*lines, work["note"], ""] if work["note"] else lines


def _goal(goal: dict[str, Any]) -> str:
    if goal["ratio"] is None or goal["against"] in (FASTEST, FLOOR):
        return str(goal["text"])
    return f"{goal['text']} (is {goal['ratio']:.2f})"


def _names(work: dict[str, Any]) -> list[str]:
    found = {r["name"] for case in work["cases"] for r in case["results"]} - set(FLOORS)
    known = [name for name in ORDER if name in found]
    return known + sorted(found - set(known))


def _details(work: dict[str, Any]) -> list[str]:
    head = ["case", "contestant", "wall", "÷ fastest peer", "÷ floor", "CPU", "read", "written"]
    rows = []
    for case in work["cases"]:
        results = {result["name"]: result for result in case["results"]}
        best = results[case["fastest"]]["wall"] if case["fastest"] else None
        for result in case["results"]:
            wall = result["wall"]
            if wall is None:
                rows.append([case["name"], result["name"], result["error"], *[""] * 5])
                continue
            floor = case["floor"]
            rows.append(
                [
                    case["name"],
                    result["name"],
                    _each(case, wall),
                    f"{wall / best:.2f}" if best else "",
                    f"{wall / floor:.2f}" if floor else "",
                    _each(case, result["cpu"]) if result["cpu"] is not None else "",
                    *(_bytes(result[way]) for way in ("read", "written")),
                ]
            )
    return [f"### {work['id']}: every contestant", "", *table(head, rows)]


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e6:.4g} MB" if count >= 1e5 else f"{count / 1e3:.3g} kB"
