"""Columns as torch sees them: a batch of tensors, or rows of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..coerce import is_tensor
from ..columns import Columns, KnownColumns, Ragged, nested
from ..dtype import is_extended
from ..errors import Invalid, Unsupported
from ..tensors import to_tensor

if TYPE_CHECKING:
    import torch

_RAGGED = ("jagged", "list", "padded")
_SAME = frozenset(np.dtype(code) for code in "?bhilBHILefdFD")
"""Types that torch has too: of batches of these nothing else is to be found out."""


class Batch(dict[str, Any]):
    """A dict of tensors by field name; :meth:`to` and :meth:`pin_memory` move all of them.

    Values may also be nested dicts or lists. Values that are not tensors, such as text, stay as
    they are. torch's ``DataLoader`` treats it as a dict: in workers, in its pinning thread, and
    when it converts.
    """

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which it can be copied to an accelerator
        while that computes."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Batch:
        """The batch on ``device``; ``non_blocking``: without waiting, where its memory is
        pinned. Tensors that are there already are not copied."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _moved(self, change: Callable[[Any], Any]) -> Batch:
        made = Batch(moved(self, change))
        made.__dict__ |= self.__dict__  # what it knows of the fields
        return made


def moved(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with every tensor in it changed, and whatever else moves as a tensor does; its
    dicts, lists and tuples are made anew."""
    if isinstance(value, dict):
        parts = {name: moved(inner, change) for name, inner in value.items()}
        return Batch(parts) if isinstance(value, Batch) else parts
    if hasattr(value, "pin_memory"):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(inner, change) for inner in value))
    if isinstance(value, (list, tuple)):
        return type(value)(moved(inner, change) for inner in value)
    return value


def to_batch(columns: Columns, ragged: str = "jagged") -> Batch:
    """A nested :class:`Batch` of tensors over the columns' own memory; see :func:`to_tensors`.

    Rows of different sizes are a nested tensor (``ragged="jagged"``; where they have several
    axes, a list), a list of tensors (``"list"``), or one tensor filled up with zeros
    (``"padded"``).
    """
    if ragged not in _RAGGED:
        raise Invalid(f"ragged rows as {ragged!r}; there are: {', '.join(_RAGGED)}")
    batch = nested({path: _column(path, c, ragged) for path, c in columns.items()}, Batch)
    assert isinstance(batch, Batch)
    return batch


def to_tensors(value: Any) -> Any:
    """What a source presents, every array in it a tensor and every dict a :class:`Batch`.

    Numbers keep their dtype, bfloat16 and float8 too; datetime64 and timedelta64 are int64
    counts of their unit, an array of records is a dict of its fields, text is a list of ``str``.
    Memory is shared with the array, but for one that is read-only, of foreign byte order,
    reversed, or a field of records. Anything else stays as it is.
    """
    if isinstance(value, Ragged):
        return _ragged("", value, "jagged")
    if isinstance(value, np.ndarray):
        return _tensor("", value)
    if isinstance(value, Mapping) and type(value) in (dict, KnownColumns, Batch):
        return Batch({name: to_tensors(inner) for name, inner in value.items()})
    if (isinstance(value, list) or type(value) is tuple) and any(
        isinstance(inner, np.ndarray) for inner in value
    ):
        return type(value)(to_tensors(inner) for inner in value)
    return value


def to_rows(columns: Columns) -> list[Any]:
    """Columns taken apart into one dict a row, as torch's default collate function takes them:
    tensors over one memory, ``str``, and whatever lists hold."""
    parts = [_apart(_column(path, column, "list")) for path, column in columns.items()]
    names = list(columns)
    every = zip(*parts, strict=True)
    if any("/" in name for name in names):
        return [nested(dict(zip(names, row, strict=True))) for row in every]
    return [dict(zip(names, row, strict=True)) for row in every]


def _column(path: str, column: Any, ragged: str) -> Any:
    if isinstance(column, Ragged):
        return _ragged(path, column, ragged)
    if isinstance(column, np.ndarray):
        return _tensor(path, column)
    return to_tensors(column)


@cache
def _from_numpy() -> Callable[[NDArray[Any]], torch.Tensor]:
    import torch

    return torch.from_numpy


def _tensor(path: str, array: NDArray[Any]) -> Any:
    flags = array.flags
    # One of a single element counts as contiguous, whatever its strides: those of a record.
    even = not any(stride % array.itemsize for stride in array.strides)
    if array.dtype in _SAME and flags.c_contiguous and flags.writeable and even:
        return _from_numpy()(array)
    kind = array.dtype.kind
    if kind in "TUSO":
        return array.tolist()
    if array.dtype.names is not None:
        return Batch({name: _tensor(f"{path}/{name}", array[name]) for name in array.dtype.names})
    try:
        return to_tensor(_plain(array))
    except Unsupported as error:
        raise Unsupported(f"field {path!r}: {error}" if path else str(error)) from None


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """The array in memory that torch takes without a warning."""
    array = np.asarray(array)
    if not is_extended(array.dtype) and not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    size = array.itemsize
    even = all(stride >= 0 and stride % size == 0 for stride in array.strides)
    return array if even and array.flags.writeable else array.copy()


def _ragged(path: str, column: Ragged, ragged: str) -> Any:
    if ragged == "padded":
        return _tensor(path, column.to_padded())
    values = _tensor(path, column.values)
    if not is_tensor(values):
        raise Unsupported(f"field {path!r} of dtype {column.dtype} has no torch counterpart")
    if ragged == "list" or column.ndim > 1:
        return _pieces(values, column)
    import torch

    return torch.nested.nested_tensor_from_jagged(values, _tensor(path, column.offsets))


def _pieces(values: torch.Tensor, column: Ragged) -> list[torch.Tensor]:
    import torch

    if column.ndim == 1:
        return list(torch.split(values, column.lengths.tolist()))
    pieces = torch.split(values, np.diff(column.offsets).tolist())
    shapes = column.shapes.tolist()
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _apart(column: Any) -> Iterable[Any]:
    if is_tensor(column):
        return column.unbind(0)  # type: ignore[no-any-return]
    if isinstance(column, Batch):  # of an array of records
        every = zip(*map(_apart, column.values()), strict=True)
        return (dict(zip(column, row, strict=True)) for row in every)
    return column  # type: ignore[no-any-return]
