"""Arrays as torch tensors, and as a dataset for a plain ``DataLoader``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from .dtype import short
from .errors import (
    Conflict,
    Corrupt,
    DriverError,
    Invalid,
    InvalidSelection,
    StashError,
    Unsupported,
)
from .handle import Handle
from .index import Transform, identity, outer, point, select
from .lazy import Indexer, View

# NumPy has no such types, torch takes no array of ml_dtypes: they cross as integers.
_BITS = {
    torch.bfloat16: (np.int16, torch.int16),
    torch.float8_e4m3fn: (np.uint8, torch.uint8),
    torch.float8_e5m2: (np.uint8, torch.uint8),
    torch.float8_e4m3fnuz: (np.uint8, torch.uint8),
    torch.float8_e5m2fnuz: (np.uint8, torch.uint8),
}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _BITS}


def to_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A tensor over ``array``'s own memory.

    bfloat16 and float8 arrive as such. datetime64 and timedelta64 become int64 counts of their
    unit. Strings, bytes and records have no tensor: :class:`~tensorstash.errors.Unsupported`.
    """
    array = np.asarray(array)
    special = _BY_NAME.get(array.dtype.name)
    if special is not None:
        return torch.from_numpy(array.view(_BITS[special][0])).view(special)
    if array.dtype.kind in "mM":
        array = array.view(np.int64)
    if array.dtype.kind not in "biufc":
        raise Unsupported(
            f"dtype {array.dtype} has no torch counterpart; read it as a NumPy array, or one "
            "field or number of it"
        )
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor, *, shared: bool = False) -> NDArray[Any]:
    """An array over a CPU tensor's own memory, or over a copy of any other's, unless it must be
    ``shared``. bfloat16 and float8 become their ``ml_dtypes`` types."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise Invalid(f"a tensor of {tensor.layout} on {tensor.device} holds no plain memory")
    if shared and (tensor.device.type != "cpu" or tensor.is_conj() or tensor.is_neg()):
        raise Invalid(f"out is a tensor on {tensor.device}; read into a plain one on the CPU")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype in _BITS:
        import ml_dtypes

        name = str(tensor.dtype).removeprefix("torch.")
        bits = tensor.view(_BITS[tensor.dtype][1]).numpy()
        return bits.view(np.dtype(getattr(ml_dtypes, name)))
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise Unsupported(f"{tensor.dtype} has no NumPy counterpart; convert the tensor") from error


class Tensors:
    """``a.torch``: the array's selections as tensors over the one buffer that is read."""

    def __init__(self, array: Handle) -> None:
        """Tensors of ``array``."""
        self._array = array

    def __getitem__(self, selection: Any) -> torch.Tensor:
        return self._tensor(select(selection, self._array.shape))

    def __setitem__(self, selection: Any, value: Any) -> None:
        self._array[selection] = value

    @property
    def oindex(self) -> Indexer[torch.Tensor]:
        """Orthogonal selection, as a tensor."""
        base = identity(self._array.shape)
        return Indexer(self._tensor, self._array.write_transform, outer, base)

    @property
    def vindex(self) -> Indexer[torch.Tensor]:
        """Pointwise selection, as a tensor."""
        base = identity(self._array.shape)
        return Indexer(self._tensor, self._array.write_transform, point, base)

    def _tensor(self, transform: Transform) -> torch.Tensor:
        return to_tensor(self._array.read_transform(transform, None))


class ArrayDataset(Dataset[Any]):
    """The rows of one or several arrays of one length, as a map-style dataset.

    ``dataset[i]`` is row ``i``: a tensor for one array, a tuple of tensors for several, after
    ``transform`` when there is one. A ``DataLoader`` fetches each batch with one plan an array,
    so a chunk is read once a batch however many of its rows are in it. Works with the default
    collate function, any number of workers and every start method; pickles as the arrays'
    handles. In a worker process each read uses one thread.
    """

    def __init__(
        self,
        *arrays: Handle | View | NDArray[Any] | torch.Tensor,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        """Rows of ``arrays`` along their first axis; ``transform`` gets a row's tensors as its
        arguments."""
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

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        try:
            return self.__getitems__([operator.index(index)])[0]
        except TypeError as error:
            raise InvalidSelection(f"a row is named by an integer, not {short(index)}") from error

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The rows at ``indices``, in that order, repeats included; one read an array."""
        rows = np.asarray(indices, dtype=np.intp)
        if rows.size and not -self._length <= rows.min() <= rows.max() < self._length:
            raise InvalidSelection(f"a row is out of range for a dataset of {self._length} rows")
        try:
            columns = [_rows(_in_worker(array), rows) for array in self.arrays]
        except StashError as error:
            kind = _IN_WORKER.get(type(error))
            if kind is None or get_worker_info() is None:
                raise
            raise kind.of(error) from error
        if self.transform is not None:
            return [self.transform(*row) for row in zip(*columns, strict=True)]
        return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def _rows(array: Any, rows: NDArray[np.intp]) -> Sequence[Any]:
    found = array[rows]
    if isinstance(found, View):
        found = found.read()
    if found.dtype.kind in "TUOS":
        return found.tolist()  # type: ignore[no-any-return]
    return to_tensor(found).unbind(0)


def _in_worker(column: Any) -> Any:
    """The column, reading with one thread where a loader's workers already fill the processors."""
    array = column.array if isinstance(column, View) else column
    if get_worker_info() is not None and isinstance(array, Handle) and array.settings.threads != 1:
        array.settings = replace(array.settings, threads=1)
        array.refresh()
    return column


class _FromWorker(StashError):
    """An error with fields, raised in a loader's worker. torch makes it anew in the parent from
    its class and its printed text alone, so the fields travel in that text, as a note."""

    def __init__(self, message: str, **fields: Any) -> None:
        found = re.search(f"^{_NOTE}(.*)$", message, re.MULTILINE)
        if found is None:
            super().__init__(message, **fields)
            return
        told, fields = ast.literal_eval(found[1])
        super().__init__(told, **fields)
        self.add_note(message)

    @classmethod
    def of(cls, error: StashError) -> StashError:
        """``error``, fit for the journey."""
        made = cls(str(error), **vars(error))
        made.add_note(f"{_NOTE}{(str(error), vars(error))!r}")
        return made


class CorruptInWorker(_FromWorker, Corrupt):
    """A :class:`~tensorstash.errors.Corrupt` that came from a ``DataLoader`` worker."""


class ConflictInWorker(_FromWorker, Conflict):
    """A :class:`~tensorstash.errors.Conflict` that came from a ``DataLoader`` worker."""


class DriverErrorInWorker(_FromWorker, DriverError):
    """A :class:`~tensorstash.errors.DriverError` that came from a ``DataLoader`` worker."""


_NOTE = "tensorstash carries: "
_IN_WORKER: dict[type[StashError], type[_FromWorker]] = {
    Corrupt: CorruptInWorker,
    Conflict: ConflictInWorker,
    DriverError: DriverErrorInWorker,
}
