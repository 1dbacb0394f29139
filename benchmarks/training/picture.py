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
            facecolors=None if line["packed"] != "no" else "none",
            zorder=4 if ours else 3,
        )
        labels.append((x, y, f"{line['library']}: {line['variant']}", ours))
    _place(axes, labels)
    axes.axvline(work["random"]["blocks"], color="#555555", linewidth=1, linestyle="--")
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


def _place(axes: Any, labels: list[tuple[float, float, str, bool]]) -> None:
    """Names beside their points, moved apart where they would cover each other."""
    low = 0.0
    for x, y, text, ours in sorted(labels, key=lambda one: one[1]):
        at = max(y, low * 1.13)
        low = at
        axes.annotate(
            text,
            (x, y),
            (x - 1.2 if x > 20 else x + 1.2, at),
            ha="right" if x > 20 else "left",
            va="center",
            fontsize=7,
            color="#d62728" if ours else "#333333",
            arrowprops={"arrowstyle": "-", "color": "#cccccc", "linewidth": 0.5},
        )
