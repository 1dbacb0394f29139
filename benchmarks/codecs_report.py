"""The section on codecs and chunk shapes in the figures."""

from __future__ import annotations

import math
from typing import Any

from . import runs
from .tables import table


def section(codecs: dict[str, Any]) -> list[str]:
    """The tables behind the defaults: chains by data, and chunk sizes."""
    kinds = list(codecs["data"])
    chains = [row[0] for row in codecs["data"][kinds[0]]]
    lines = [
        "## Default codecs and chunk shape",
        "",
        runs.words(codecs["run"]),
        "",
        codecs["words"],
        "",
    ]
    cells = {
        (kind, row[0]): f"{row[1]:.2f} / {row[2]:.0f} / {row[3]:.0f}"
        for kind in kinds
        for row in codecs["data"][kind]
    }
    rows = [[chain, *(cells[kind, chain] for kind in kinds)] for chain in chains]
    lines += ["Ratio / encode MB/s / decode MB/s:", "", *table(["chain", *kinds], rows)]
    rows = []
    for i, chain in enumerate(chains):
        figures = [codecs["data"][kind][i][1:] for kind in kinds if not kind.startswith("noise")]
        means = [math.exp(sum(math.log(f[k]) for f in figures) / len(figures)) for k in range(3)]
        rows.append([chain, f"{means[0]:.2f}", f"{means[1]:.0f}", f"{means[2]:.0f}"])
    head = ["chain", "ratio", "encode MB/s", "decode MB/s"]
    lines += ["Geometric means over the data, noise left out:", "", *table(head, rows)]
    head = ["chunk", "ratio", "full, 1 thread, MB/s", "full, all cores, MB/s"]
    head += ["plane (slowest axis), ms", "element, us"]
    for name, sizes in codecs["sizes"].items():
        rows = [
            [s[0], f"{s[1]:.2f}", f"{s[2]:.0f}", f"{s[3]:.0f}", f"{s[4]:.2f}", f"{s[5]:.0f}"]
            for s in sizes
        ]
        title = f"Chunk size, {codecs['edge']}^3 uint16 photo volume, {name}:"
        lines += [title, "", *table(head, rows)]
    return lines
