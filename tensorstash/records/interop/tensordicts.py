"""Columns as a TensorDict, and back: values that are no tensors as its ``NonTensorStack``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...coerce import is_tensor, natural
from ...columns import Columns, Ragged, nested
from ...loading.present import to_batch
from .dtypes import optional_package, split_structured


def to_tensordict(columns: Columns, ragged: str) -> Any:
    """A ``TensorDict`` of batch size ``[rows]``; ragged rows as a jagged nested tensor, one
    padded tensor, or a stack of tensors."""
    made = optional_package("tensordict")
    columns = split_structured(columns)
    count = len(next(iter(columns.values()), ()))
    batch = to_batch(columns, ragged)
    values = {path: _within(batch, path) for path in columns}
    stacked = {
        path: value if is_tensor(value) else _stack(made, value) for path, value in values.items()
    }
    return made.TensorDict(nested(stacked), batch_size=[count])


def row_to_tensordict(row: Mapping[str, Any], paths: Iterable[str]) -> Any:
    """A ``TensorDict`` without batch axes of one row: what stands in it at ``paths``."""
    made = optional_package("tensordict")
    values = {path: _within(row, path) for path in paths}
    whole = {
        path: value if is_tensor(value) else made.NonTensorData(data=value)
        for path, value in values.items()
    }
    return made.TensorDict(nested(whole), batch_size=[])


def is_tensordict(value: Any) -> bool:
    """Whether ``value`` is a TensorDict of any kind or a TensorClass, without importing it."""
    return hasattr(type(value), "to_tensordict") and hasattr(value, "batch_size")


def tensordict_items(value: Any) -> dict[str, Any]:
    """What a TensorDict or TensorClass holds, one level deep: tensors as they are, and the
    Python values of what is no tensor."""
    return {name: _plain(inner) for name, inner in value.items()}


def stacked_rows(value: Any) -> Iterator[Any] | None:
    """The rows of a TensorDict that is a list of them, each with shapes of its own."""
    lazy = hasattr(value, "tensordicts") and getattr(value, "stack_dim", 0) == 0
    return iter(value.tensordicts) if lazy else None


def from_nested_tensor(tensor: Any) -> Ragged:
    """The rows of a nested tensor."""
    rows = [natural(row) for row in tensor.unbind()]
    dtype = rows[0].dtype if rows else natural(tensor.values()).dtype
    return Ragged.of(rows, dtype, tensor.dim() - 1)


def _plain(value: Any) -> Any:
    if optional_package("tensordict").is_non_tensor(value):
        return value.tolist() if len(value.batch_size) else value.data
    return value


def _stack(made: Any, values: Any) -> Any:
    parts = [made.NonTensorData(data=value) for value in values]
    # Older tensordicts make no stack of nothing.
    return made.NonTensorStack(*parts) if parts else made.NonTensorData(data=None, batch_size=[0])


def _within(batch: Mapping[str, Any], path: str) -> Any:
    for name in path.split("/"):
        batch = batch[name]
    return batch
