"""Arrays as torch tensors over one memory, and back. Importing this imports no torch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dtype import is_small_int, widened
from .errors import Invalid, Unsupported

if TYPE_CHECKING:
    import torch


@cache
def _bits() -> dict[Any, tuple[Any, Any]]:
    """Types that NumPy has not, and of whose ml_dtypes torch takes no array: they cross as
    integers."""
    import torch

    found = {
        torch.bfloat16: (np.int16, torch.int16),
        torch.float8_e4m3fn: (np.uint8, torch.uint8),
        torch.float8_e5m2: (np.uint8, torch.uint8),
        torch.float8_e4m3fnuz: (np.uint8, torch.uint8),
        torch.float8_e5m2fnuz: (np.uint8, torch.uint8),
    }
    if hasattr(torch, "float8_e8m0fnu"):  # since 2.7
        found[torch.float8_e8m0fnu] = (np.uint8, torch.uint8)
    return found


@cache
def _by_name() -> dict[str, Any]:
    return {str(dtype).removeprefix("torch."): dtype for dtype in _bits()}


def to_tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of ``array``.

    bfloat16 and float8 keep their types. Integers of two and four bits, with which torch does no
    arithmetic, become int8 and uint8, as copies. datetime64 and timedelta64 become
    int64 counts of their unit. Strings, bytes and records have no tensor:
    :class:`~tensorstash.errors.Unsupported`.
    """
    import torch

    array = np.asarray(array)
    special = _by_name().get(array.dtype.name)
    if special is not None:
        return torch.from_numpy(array.view(_bits()[special][0])).view(special)
    if is_small_int(array.dtype):
        array = array.astype(widened(array.dtype))
    if array.dtype.kind in "mM":
        array = array.view(np.int64)
    if array.dtype.kind not in "biufc":
        raise Unsupported(
            f"dtype {array.dtype} has no torch counterpart; read it as a NumPy array, or one "
            "field or number of it"
        )
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor, *, shared: bool = False) -> NDArray[Any]:
    """Return an array that shares the memory of a CPU tensor, or a copy of a tensor elsewhere.

    With ``shared``, :class:`~tensorstash.errors.Invalid` is raised instead of copying. bfloat16
    and float8 become their ``ml_dtypes`` types."""
    import torch

    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise Invalid(f"a tensor of {tensor.layout} on {tensor.device} holds no plain memory")
    if shared and (tensor.device.type != "cpu" or tensor.is_conj() or tensor.is_neg()):
        raise Invalid(f"out is a tensor on {tensor.device}; read into a plain one on the CPU")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype in _bits():
        import ml_dtypes

        name = str(tensor.dtype).removeprefix("torch.")
        bits = tensor.view(_bits()[tensor.dtype][1]).numpy()
        return bits.view(np.dtype(getattr(ml_dtypes, name)))
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise Unsupported(f"{tensor.dtype} has no NumPy counterpart; convert the tensor") from error
