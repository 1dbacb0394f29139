"""Figures in words for the tables of the training workloads."""

from __future__ import annotations

from typing import Any

from ..peer import OURS
from .quality import as_text

Line = dict[str, Any]


def name(line: Line) -> str:
    """Of a contestant; ours stands out."""
    text = f"{line['library']}: {line['variant']}"
    return f"**{text}**" if line["library"].startswith(OURS) else text


def cores(part: Line) -> str:
    """How many a part of the results was measured on."""
    return f"{part['cores']} core{'s' if part['cores'] > 1 else ''}"


def count(value: float | None) -> str:
    """A large figure, to three digits."""
    if value is None:
        return ""
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rate(line: Line) -> str:
    """Per second, and how far apart the rounds were."""
    low, high = line["range"] or [line["rate"]] * 2
    text = count(line["rate"])
    return f"{text} ({count(low)} to {count(high)})" if high > 1.02 * low else text


def size(nbytes: float | None) -> str:
    """Bytes."""
    if nbytes is None:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} B"


def seconds(value: float | None) -> str:
    """A short time."""
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def ratio(value: float | None) -> str:
    """A quotient."""
    return "" if value is None else f"{value:.2f}"


def shuffle(line: Line) -> str:
    """The three numbers of quality."""
    found = line.get("quality")
    return as_text(found) if found else ""


def even(line: Line, random: dict[str, float], quick: bool) -> bool:
    """Whether a shuffle is as good as this page calls equal: batch means at most 1.12 times as
    far apart as random ones (and what so many batches leave to chance), and nine tenths of the
    distinct blocks."""
    found = line.get("quality")
    if not found:
        return False
    limit = 1.35 if quick else 1.17
    return bool(found["spread"] <= limit and found["blocks"] >= 0.9 * random["blocks"])


def best(lines: list[Line], figure: str = "rate") -> Line | None:
    """The line of the largest figure, of those that have one."""
    able = [line for line in lines if not line["error"] and line.get(figure)]
    return max(able, key=lambda line: float(line[figure])) if able else None


def is_ours(line: Line) -> bool:
    """Whether it is this package."""
    return str(line["library"]).startswith(OURS)
