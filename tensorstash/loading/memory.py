"""Memory for decoded blocks, kept from one epoch to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NoMemory, Unsupported, counted

Fields = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


_AXES = 62
"""Of a row; NumPy holds 64, and a block and its rows are two."""


class Memory:
    """Arrays of one epoch that the next may have: to be given fresh pages by the system costs more
    than to decode into them. One set at most is kept; none travels in pickles."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, dict[str, NDArray[Any]]]] = []

    def take(self, fields: Fields, count: int, rows: int) -> dict[str, NDArray[Any]]:
        """An array for each field, of shape ``(count, rows, *element)``, with anything in it."""
        key = _key(fields, count, rows)
        try:
            kept, arrays = self._kept.pop()
        except IndexError:
            kept = None
        if kept == key:
            return arrays
        if any(len(shape) > _AXES for shape, _ in fields.values()):
            raise Unsupported(f"rows of more than {_AXES} axes cannot be loaded in batches")
        try:
            return {
                name: np.empty((count, rows, *shape), dtype)
                for name, (shape, dtype) in fields.items()
            }
        except (MemoryError, ValueError) as error:  # NumPy refuses the largest by ValueError
            raise NoMemory(
                f"no memory for {counted(count, 'block')} of {counted(rows, 'row')}: "
                f"{error}; use smaller chunks"
            ) from error

    def give(self, fields: Fields, count: int, rows: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Nobody reads or writes ``arrays`` any more."""
        self._kept[:] = [(_key(fields, count, rows), arrays)]

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()


def _key(fields: Fields, count: int, rows: int) -> Any:
    return dict(fields), count, rows
