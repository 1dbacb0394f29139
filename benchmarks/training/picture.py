"""One picture of W1: records a second, and beside it how random the batches are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..labels import plt, save
from ..peer import OURS
from .words import cores

OTHERS, MINE = "#1f77b4", "#d62728"


def draw(work: dict[str, Any], path: Path) -> None:
    """A line for every contestant, the fastest first, of the more compressible data."""
    part = next(p for p in reversed(work["sets"]) if p["data"] == "smooth")
    lines = [line for line in part["results"] if not line["error"]]
    lines.sort(key=lambda line: -float(line["rate"]))
    size = (11, 2 + 0.21 * len(lines))
    figure, (speed, random) = plt.subplots(
        1, 2, figsize=size, dpi=110, sharey=True, width_ratios=(3, 1.4), layout="constrained"
    )
    for y, line in enumerate(lines):
        colour = MINE if line["library"] == OURS else OTHERS
        face = colour if line["packed"] != "no" else "white"
        for axes, x in ((speed, line["rate"]), (random, line["quality"]["blocks"])):
            axes.scatter([x], [y], s=44, c=face, edgecolors=colour, linewidths=1.4, zorder=3)
    names = [f"{line['library']}: {line['variant']}" for line in lines]
    speed.set_yticks(range(len(lines)), names, fontsize=8)
    for label, line in zip(speed.get_yticklabels(), lines, strict=True):
        label.set_color(MINE if line["library"] == OURS else "#333333")
    speed.set_ylim(len(lines) - 0.5, -0.5)
    speed.set(xscale="log", xlabel="records a second (further right is faster)")
    # Whole decades, or narrow ranges get labels that do not fit beside each other.
    low, high = (math.log10(float(line["rate"])) for line in (lines[-1], lines[0]))
    decades = range(math.floor(low), math.floor(high) + 2)
    speed.set_xticks([10**n for n in decades], [f"{10**n:,}" for n in decades])
    speed.xaxis.set_minor_formatter(lambda *_: "")
    speed.set_xlim(10 ** decades[0], 10 ** decades[-1])
    random.set(xlabel="distinct runs of 64 rows\nin a batch (dashed: random)")
    random.set_xlim(0, 70)
    random.axvline(work["random"]["blocks"], color="#555555", linewidth=1, linestyle="--")
    for axes in (speed, random):
        axes.grid(color="#e8e8e8", zorder=0)
    figure.suptitle(
        f"Shuffled images in batches of {work['batch']}, {cores(part)}, {work['run']['date']}. "
        "Filled: stored compressed; hollow: not",
        fontsize=9,
    )
    save(figure, path)
