"""One picture of W1: records a second against how random the batches are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt

from ..peer import OURS

PACKED, PLAIN = "compressed", "not compressed"


def draw(work: dict[str, Any], path: Path) -> None:
    """Every contestant a point, on all cores and the more compressible data."""
    part = next(p for p in reversed(work["sets"]) if p["data"] == "smooth")
    figure, axes = plt.subplots(figsize=(11, 7), layout="constrained")
    labels = []
    for line in part["results"]:
        if line["error"]:
            continue
        x, y = line["quality"]["blocks"], line["rate"]
        ours = line["library"] == OURS
        axes.scatter(
            [x],
            [y],
            s=90 if ours else 45,
            c="#d62728" if ours else "#1f77b4",
            marker="o" if line["packed"] != "no" else "^",
            zorder=4 if ours else 3,
        )
        labels.append((x, y, f"{line['library']}: {line['variant']}", ours))
    random = work["random"]["blocks"]
    _place(axes, labels, 0.82 * random)
    axes.axvline(random, color="#555555", linewidth=1, linestyle="--")
    axes.set(
        yscale="log",
        xlabel="distinct runs of 64 stored rows in a batch of 64 (dashed: true random)",
        ylabel="records a second",
    )
    axes.set_xlim(0, 72)
    axes.grid(color="#e8e8e8", zorder=0)
    quick = " --quick" if work["quick"] else ""
    axes.set_title(
        f"W1, {part['cores']} cores, python -m benchmarks train{quick}; "
        f"circles: {PACKED}, triangles: {PLAIN}",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _place(axes: Any, labels: list[tuple[float, float, str, bool]], column: float) -> None:
    """Names beside points left of the column, the others' one below the other in it."""
    low = 0.0
    for x, y, text, ours in sorted(labels, key=lambda one: one[1]):
        left = x < column
        at = y if left else max(y, low * 1.2)
        low = low if left else at
        axes.annotate(
            text,
            (x, y),
            (x + 1 if left else column, at),
            ha="left" if left else "right",
            va="center",
            fontsize=7,
            color="#d62728" if ours else "#333333",
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.5},
        )
