"""Memory for decoded blocks, kept from one epoch to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fields = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


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
        return {
            name: np.empty((count, rows, *shape), dtype) for name, (shape, dtype) in fields.items()
        }

    def give(self, fields: Fields, count: int, rows: int, arrays: dict[str, NDArray[Any]]) -> None:
        """Nobody reads or writes ``arrays`` any more."""
        self._kept[:] = [(_key(fields, count, rows), arrays)]

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()


def _key(fields: Fields, count: int, rows: int) -> Any:
    return dict(fields), count, rows
