"""Words and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table and an empty line; columns after the first stand to the right."""
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def met(value: bool | None) -> str:
    """Whether a goal is met; ``None``: it cannot be told."""
    return {True: "yes", False: "**no**", None: ""}[value]


def anchor(title: str) -> str:
    """Of the heading with that title, as GitHub makes it."""
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")
