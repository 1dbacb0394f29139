"""One picture: every case a line, every contestant a mark at its time over the fastest peer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt

from .peer import OURS

STYLE = {  # name -> marker, colour, size
    OURS: ("o", "#d62728", 70),
    "TensorStore": ("s", "#1f77b4", 26),
    "zarr-python": ("^", "#2ca02c", 30),
    "zarr-python, fused": ("v", "#98a832", 30),
    "zarrs": ("D", "#9467bd", 22),
    "h5py": ("P", "#8c564b", 30),
    "PyTables": ("X", "#e377c2", 30),
    "np.memmap": ("*", "#7f7f7f", 42),
    "floor": ("|", "black", 130),
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    lines: list[tuple[str, dict[str, float]]] = []
    for work in report["workloads"].values():
        for case in work["cases"]:
            if not case["fastest"]:
                continue
            walls = {r["name"]: r["wall"] for r in case["results"] if r["wall"]}
            base = walls[case["fastest"]]
            if case["floor"]:
                walls["floor"] = case["floor"]
            marks = {name: wall / base for name, wall in walls.items() if name in STYLE}
            lines.append((f"{work['id']}  {case['name']}", marks))
    figure, axes = plt.subplots(figsize=(11, 1.8 + 0.23 * len(lines)), layout="constrained")
    for name, (marker, colour, size) in STYLE.items():
        points = [(marks[name], y) for y, (_, marks) in enumerate(lines) if name in marks]
        if points:
            axes.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                s=size,
                c=colour,
                marker=marker,
                label=name,
                zorder=4 if name == OURS else 3,
                linewidths=1.4,
            )
    last = ""
    for y, (label, _) in enumerate(lines):
        if label[:2] != last and last:
            axes.axhline(y - 0.5, color="#bbbbbb", linewidth=0.8)
        last = label[:2]
    axes.axvline(1, color="#555555", linewidth=1, zorder=1)
    axes.set(xscale="log", xlabel="time (memory) ÷ the fastest peer's; smaller is better")
    axes.set_yticks(range(len(lines)), [label for label, _ in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    ticks = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in ticks if low <= t <= high])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlim(low, high)
    axes.grid(axis="both", color="#e8e8e8", zorder=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.05), ncols=5, frameon=False, fontsize=9)
    axes.set_title(f"{report['run']['hardware']['CPU']}, {report['run']['command']}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
