"""Arrays as a map-style dataset for a plain ``DataLoader``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..errors import Invalid, InvalidSelection, counted, short
from ..handle import Handle
from ..loading.dataloader_worker import in_worker, keeping_fields
from ..loading.source import Source, SourceHolder
from ..sources.arrays import as_source
from ..sources.reader import one_threaded
from ..tensors import to_numpy, to_tensor
from ..view import View


class ArrayDataset(Dataset[Any], SourceHolder):
    """A map-style dataset of the rows of one array, or of several arrays of the same length.

    ``dataset[i]`` is row ``i``: a tensor for one array, a tuple of tensors for several, after
    ``transform`` if there is one. A ``DataLoader`` reads each batch at once, so each chunk is
    read once for all of its rows in the batch. Works with the default collate function, any
    number of workers and every start method; a pickle contains the handles of the arrays, no
    data. In a worker process each read uses one thread.
    """

    def __init__(
        self,
        *arrays: Handle | View | NDArray[Any] | torch.Tensor,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        """The rows that the arrays have now.

        Args:
            arrays: stored arrays, lazy views of them, NumPy arrays or tensors, of one length along
                their first axis.
            transform: gets a row's tensors as its arguments, and returns the item.

        Raises:
            Invalid: there is no array, one has no axis, or their lengths differ.
        """
        if not arrays:
            raise Invalid("a dataset needs at least one array")
        columns = [to_numpy(a) if isinstance(a, torch.Tensor) else a for a in arrays]
        for column in columns:
            if not isinstance(column, (Handle, View, np.ndarray)) or not column.ndim:
                raise Invalid(f"a dataset takes arrays with at least one axis, not {short(column)}")
        lengths = [len(column) for column in columns]
        if len(set(lengths)) > 1:
            raise Invalid(f"the arrays have different lengths: {lengths}")
        self.arrays = tuple(columns)
        self.transform = transform
        self._length = lengths[0]
        self._alone: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        arrays = ", ".join(f"{array.shape[1:]} {array.dtype}" for array in self.arrays)
        return f"<tensorstash.ArrayDataset {counted(self._length, 'row')} of {arrays}>"

    def __len__(self) -> int:
        return self._length

    @property
    def source(self) -> Source:
        """What a loader or a sampler takes the rows from: the arrays.
        :class:`~tensorstash.errors.Invalid` with a ``transform``, which gets single rows."""
        if self.transform is not None:
            raise Invalid(
                "the transform of an ArrayDataset gets rows, that of a Loader batches: make the "
                "dataset without, and give the Loader one"
            )
        return as_source(self.arrays[0] if len(self.arrays) == 1 else self.arrays)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.__getitems__([operator.index(index)])[0]
        except TypeError as error:
            raise InvalidSelection(f"a row is named by an integer, not {short(index)}") from error

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The rows at ``indices``, in that order, repeats included; one read an array."""
        rows = np.asarray(indices, dtype=np.intp)
        if rows.size and not -self._length <= rows.min() <= rows.max() < self._length:
            raise InvalidSelection(
                f"a row is out of range for a dataset of {counted(self._length, 'row')}"
            )
        with keeping_fields():
            columns = [_rows(array, rows) for array in self._readers()]
        if self.transform is not None:
            return [self.transform(*row) for row in zip(*columns, strict=True)]
        return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))

    def _readers(self) -> tuple[Any, ...]:
        """The arrays; in a worker, of which several fill the processors, with one thread each, by
        handles of its own."""
        if not in_worker():
            return self.arrays
        if self._alone is None:
            self._alone = tuple(map(_one_threaded, self.arrays))
        return self._alone

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_alone": None}


def _rows(array: Any, rows: NDArray[np.intp]) -> Sequence[Any]:
    found = array[rows]
    if isinstance(found, View):
        found = found.read()
    if found.dtype.kind in "TUOS":
        return found.tolist()  # type: ignore[no-any-return]
    return to_tensor(found).unbind(0)


def _one_threaded(column: Any) -> Any:
    """The column, read with one thread."""
    if isinstance(column, View):
        return View(_one_threaded(column.array), column.transform, column.fields)
    if isinstance(column, Handle) and column.settings.threads != 1:
        return one_threaded(column)
    return column
