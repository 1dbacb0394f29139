"""Pictures whose words can be read: none over another, none cut off."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.text import Text


class Unreadable(AssertionError):
    """Words of a picture lie over each other, or outside of it."""


def faults(figure: Any) -> list[str]:
    """Pairs of texts whose boxes overlap, and texts that are cut off."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    hidden = {id(text) for axes in figure.axes for text in _beyond(axes)}
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and id(text) not in hidden
    ]
    width, height = figure.canvas.get_width_height()
    found = [
        f"{word!r} is cut off"
        for word, box in boxes
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        if wide > 0 and high > 0:
            found.append(f"{one!r} lies over {other!r}")
    return found


def save(figure: Any, path: Path) -> None:
    """Write the picture; raises :class:`Unreadable`, and writes nothing, if words collide."""
    found = faults(figure)
    if found:
        plt.close(figure)
        raise Unreadable(f"{path.name}: {len(found)} faults: {'; '.join(found[:5])}")
    figure.savefig(path, dpi=figure.dpi)
    plt.close(figure)


def _beyond(axes: Any) -> list[Text]:
    """Labels of ticks outside of what the axes show: matplotlib keeps them, and draws none."""
    found = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high:
                found += [tick.label1, tick.label2]
    return found
