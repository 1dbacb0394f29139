"""How many values a ragged row is taken to have. Pure.

Blocks and pools of a loader go by it, and so the order of an epoch: every rank, and every run that
is resumed, must come to the same. What is stored now does not do, for rows are rewritten. So the
mean is noted when rows are added, for as many rows or more, and never changed again: a list of
``(rows, values)``, of which for a view of the first ``n`` rows the last one with ``rows <= n``
holds. Rows that were appended one by one have a note for each doubling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Note: TypeAlias = tuple[int, int]
"""From how many rows on it holds, and how many values a row has."""

Notes: TypeAlias = tuple[Note, ...]

_MOST = 1 << 62


def noted(notes: Sequence[Note], before: int, rows: int, values: int) -> Notes:
    """``notes`` after rows were added to ``before``: ``rows`` have now ``values`` in all."""
    if rows <= before or (notes and before + 1 < 2 * notes[-1][0]):
        return tuple(notes)
    return (*notes, (before + 1, -(-values // rows)))


def values_of_row(notes: Sequence[Note], rows: int) -> int | None:
    """What holds for the first so many rows; ``None`` where nothing was noted, as of rows that
    were created empty and then written."""
    for since, values in reversed(notes):
        if since <= rows:
            return values
    return None


def parse(given: Any) -> dict[str, Notes] | None:
    """Notes by field out of a document; ``None`` for what is none."""
    if not isinstance(given, Mapping):
        return None
    found: dict[str, Notes] = {}
    for path, notes in given.items():
        if not isinstance(notes, list) or not all(_is_note(note) for note in notes):
            return None
        found[path] = tuple((note[0], note[1]) for note in notes)
        if any(a >= b for (a, _), (b, _) in zip(found[path], found[path][1:], strict=False)):
            return None
    return found


def _is_note(given: Any) -> bool:
    return (
        isinstance(given, list)
        and len(given) == 2
        and all(type(n) is int and 0 <= n < _MOST for n in given)
    )
