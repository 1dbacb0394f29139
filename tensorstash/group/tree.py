"""A tree of names, drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

Branch: TypeAlias = Iterator[tuple[str, str, "Branch | None"]]
"""Names with what is said of each, and what lies below it."""


def draw(branch: Branch) -> Iterator[str]:
    """A line for every name, those below indented."""
    todo = [(branch, next(branch, None), "")]
    while todo:
        branch, member, indent = todo.pop()
        if member is None:
            continue
        name, note, below = member
        following = next(branch, None)
        yield f"{indent}{'├── ' if following else '└── '}{name} {note}".rstrip()
        todo.append((branch, following, indent))
        if below is not None:
            todo.append((below, next(below, None), indent + ("│   " if following else "    ")))
