"""Columns taken apart into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..columns import Columns, nested
from ..loading.present import rows
from . import formats
from .schema import Fields


def rows_of(columns: Columns, form: str, fields: Fields) -> list[Any]:
    """Every row of ``columns`` by itself, as ``form`` shows a row: a dict of NumPy values, of
    tensors, of Python's; a table of one row for forms that are tables."""
    if form == "numpy":
        parts = {name: _values(column) for name, column in columns.items()}
        count = len(next(iter(parts.values()), ()))
        if any("/" in name for name in parts):
            return [nested({name: part[i] for name, part in parts.items()}) for i in range(count)]
        return [{name: part[i] for name, part in parts.items()} for i in range(count)]
    if form == "torch":
        return rows(columns)
    count = len(next(iter(columns.values()), ()))
    if form == "python":
        return list(formats.present(columns, form, "list"))
    one = [{name: column[i : i + 1] for name, column in columns.items()} for i in range(count)]
    return [formats.one_row(row, form, fields) for row in one]


def in_order(
    take: Callable[[slice, list[str]], Columns], names: Sequence[str], chunks: Mapping[str, int],
    start: int, count: int,
) -> Iterator[Columns]:  # fmt: skip
    """``count`` rows from the stored row ``start`` on, some at a time: of every field a whole
    chunk (of as many rows as ``chunks`` says) is read when the one before is used up."""
    held: Columns = {}
    begins = dict.fromkeys(names, 0)
    ends = dict.fromkeys(names, 0)
    at = 0
    while at < count:
        used_up: dict[int, list[str]] = {}
        for name in names:
            if ends[name] == at:
                begins[name] = at
                edge = ((start + at) // chunks[name] + 1) * chunks[name] - start
                ends[name] = min(edge, count)
                used_up.setdefault(ends[name], []).append(name)
        for end, some in used_up.items():
            held |= take(slice(at, end, 1), some)
        stop = min(ends.values())
        yield {name: held[name][at - begins[name] : stop - begins[name]] for name in names}
        at = stop


def unstacked(batch: Any) -> list[Any]:
    """The rows of a batch that a transform has returned."""
    if isinstance(batch, Mapping):
        parts = {name: unstacked(column) for name, column in batch.items()}
        count = len(next(iter(parts.values()), ()))
        return [{name: part[i] for name, part in parts.items()} for i in range(count)]
    if isinstance(batch, list):
        return batch
    return [batch[i] for i in range(len(batch))]


def _values(column: Any) -> Any:
    """A column whose items are what a row has: text as ``str``, and memory of its own for no
    row's sake: rows of one batch share theirs."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "T":
        return column.tolist()
    return column
