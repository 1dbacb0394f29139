"""Members within members, drawn as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

Branch: TypeAlias = Iterator[tuple[str, str, "Branch | None"]]
"""Names with what is said of each, and what lies below it."""


def draw(branch: Branch) -> Iterator[str]:
    """A line for every name, those below indented."""
    members = [*branch]
    for name, note, below in members:
        last = name == members[-1][0]
        yield f"{'└── ' if last else '├── '}{name} {note}".rstrip()
        for line in draw(below) if below is not None else ():
            yield ("    " if last else "│   ") + line
