"""Whether sources have the same fields, so that their rows can stand in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import Invalid, counted
from ..loading.ragged import Ragged
from ..loading.source import Source


def check_alike(names: Sequence[str], sources: Sequence[Source], own: str | None) -> None:
    """Raise :class:`~tensorstash.errors.Invalid`, naming the difference, unless all ``sources``
    have the same fields of the same kinds, and none of the name ``own``."""
    kinds = {name: _kinds(source) for name, source in zip(names, sources, strict=True)}
    one, first = names[0], kinds[names[0]]
    for name in names[1:]:
        for has, lacks in ((one, name), (name, one)):
            for field in kinds[has]:
                if field not in kinds[lacks]:
                    raise Invalid(
                        f"source {lacks!r} has no field {field!r}, which {has!r} has; select the "
                        "fields that all have"
                    )
        for field, kind in first.items():
            other = kinds[name][field]
            if other != kind:
                raise Invalid(f"field {field!r} is {kind} in source {one!r}, {other} in {name!r}")
    if own in first:
        raise Invalid(f"the sources have a field {own!r} already; call the origin another name")


def _kinds(source: Source) -> dict[str, str]:
    """What each field is, in words."""
    columns = source.take(np.empty(0, np.int64))
    fixed = source.fixed
    return {
        name: _plain(*fixed[name]) if name in fixed else _kind(column)
        for name, column in columns.items()
    }


def _plain(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return f"{dtype} of shape {shape}"


def _kind(column: Any) -> str:
    if isinstance(column, Ragged):
        return f"ragged {column.dtype} of {counted(column.ndim, 'axis', 'axes')}"
    if isinstance(column, np.ndarray):
        return _plain(column.shape[1:], column.dtype)
    return "a list"
