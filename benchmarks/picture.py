"""One picture of what to expect: a line for each thing that one does, ours and the others on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from .expect import Case, Row
from .labels import plt, save

OURS_COLOUR = "#d62728"
STYLE = {  # how a name begins -> marker, colour, name in the legend
    "TensorStore": ("s", "#1f77b4", "TensorStore"),
    "zarrs": ("D", "#9467bd", "zarrs"),
    "zarr": ("^", "#2ca02c", "zarr-python"),
    "icechunk": ("v", "#17a2b8", "icechunk"),
    "h5py": ("P", "#8c564b", "h5py"),
    "PyTables": ("X", "#e377c2", "PyTables"),
    "": ("o", "#777777", "others (best of)"),
}
TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the picture."""
    places, heads = _places(rows)
    height = max(places.values()) + 1
    figure, axes = plt.subplots(figsize=(11, 1.9 + 0.27 * height), dpi=110, layout="constrained")
    shown: set[str] = set()
    for index, row in enumerate(rows):
        y = places[index]
        for begin, mean in _means(row.cases).items():
            marker, colour, label = STYLE[begin]
            axes.scatter([mean], [y], s=26, c=colour, marker=marker, zorder=3,
                         label=None if label in shown else label)  # fmt: skip
            shown.add(label)
        ratios = [case.ratio for case in row.cases]
        axes.plot([min(ratios), max(ratios)], [y, y], color=OURS_COLOUR, linewidth=2, zorder=4)
        axes.scatter(ratios, [y] * len(ratios), s=46, c=OURS_COLOUR, zorder=5,
                     label=None if index else "tensorstash, each case")  # fmt: skip
    axes.axvline(1, color="#333333", linewidth=1.2, zorder=2)
    axes.set(xscale="log", xlabel="time ÷ the fastest other's: further left is faster")
    labels = [(places[i], row.words) for i, row in enumerate(rows)] + heads
    labels.sort()
    axes.set_yticks([y for y, _ in labels], [words for _, words in labels], fontsize=9)
    titles = {words for _, words in heads}
    for text in axes.get_yticklabels():
        if text.get_text() in titles:
            text.set_fontweight("bold")
    axes.set_ylim(height - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in TICKS if low <= t <= high])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_xlim(low, high)
    axes.grid(axis="both", color="#ececec", zorder=0)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save(figure, path)


def _places(rows: Sequence[Row]) -> tuple[dict[int, int], list[tuple[int, str]]]:
    """The line of each row, and of each title above a part."""
    places, heads, y, last = {}, [], 0, ""
    for index, row in enumerate(rows):
        if row.part != last:
            heads.append((y, row.part))
            y, last = y + 1, row.part
        places[index] = y
        y += 1
    return places, heads


def _means(cases: Sequence[Case]) -> dict[str, float]:
    """Of each other library: the geometric mean of its times over the fastest other's."""
    found: dict[str, list[float]] = {}
    for case in cases:
        spent: dict[str, float] = {}
        for name, wall in case.others.items():
            begin = next(begin for begin in STYLE if name.startswith(begin))
            spent[begin] = min(wall, spent.get(begin, math.inf))
        for begin, wall in spent.items():
            found.setdefault(begin, []).append(math.log(wall / case.others[case.fastest]))
    return {begin: math.exp(sum(logs) / len(logs)) for begin, logs in found.items()}
