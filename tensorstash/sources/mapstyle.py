"""Rows by number: sources as people and torch's own ``DataLoader`` ask for their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidSelection, counted, short
from ..indexing.selection import Point, Stride, select
from ..loading.dataloader_worker import keeping_fields
from ..loading.present import to_tensors
from ..loading.source import Source


class MapStyle(Source):
    """A source that is a map-style dataset, too: ``data[3]`` is an item, ``data[2:9]`` and
    ``data[[5, 5, -1]]`` are columns. A ``DataLoader`` gets each batch by one read."""

    def shown(self, rows: NDArray[np.int64]) -> Any:
        """Some rows, as their user sees them."""
        return self.present(self.take(rows))

    def __getitem__(self, rows: Any) -> Any:
        transform = select((rows,), (len(self),))
        (axis_map,), shape = transform.maps, transform.shape
        if len(shape) > 1:
            raise InvalidSelection(f"rows are chosen along one axis, not by {short(rows)}")
        if isinstance(axis_map, Point):
            chosen = np.full(shape or 1, axis_map.at, np.int64)
        elif isinstance(axis_map, Stride):
            chosen = axis_map.start + axis_map.step * np.arange(shape[0])
        else:
            chosen = axis_map.array.astype(np.int64, copy=False)
        found = self.shown(chosen)
        return found if shape else item(found, 0)

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """The items at ``rows``, repeats included, as torch's ``DataLoader`` asks for a batch:
        their arrays are tensors. An error in a worker keeps its fields on the way out."""
        numbers = within(rows, len(self))
        with keeping_fields():
            found = self.shown(numbers)
        tensors = to_tensors(found)
        return [item(tensors, i) for i in range(len(numbers))]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def as_numbers(rows: Any) -> NDArray[np.int64]:
    """Row numbers as an array of them."""
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.dtype.kind not in "iu" and numbers.size):
        raise InvalidSelection(f"rows are named by a list of integers, not {short(rows)}")
    return numbers.astype(np.int64, copy=False)


def within(rows: Any, count: int) -> NDArray[np.int64]:
    """Row numbers counted from the first of ``count``, none out of bounds."""
    numbers = as_numbers(rows)
    outside = (numbers < -count) | (numbers >= count)
    if outside.any():
        raise InvalidSelection(
            f"row {numbers[outside][0]} is out of bounds for {counted(count, 'row')}; ask for one "
            f"from {-count} to {count - 1}"
        )
    return np.where(numbers < 0, numbers + count, numbers)


def item(batch: Any, i: int) -> Any:
    """Item ``i`` of what a batch is: of a dict or a tuple, the item of each of its columns."""
    if isinstance(batch, Mapping):
        return {name: item(column, i) for name, column in batch.items()}
    if type(batch) is tuple:
        return tuple(item(column, i) for column in batch)
    found = batch[i]
    if isinstance(found, np.ndarray) and found.dtype.kind in "TO":
        return found.tolist()  # torch's collate function knows no arrays of text
    return found
