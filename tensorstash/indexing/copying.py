"""Moving a part between a chunk and a buffer: orthogonal and pointwise indexing of arrays.

NumPy's own rules for mixed indices (integers count as arrays, separated arrays move to the
front) are what these two functions keep out of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec import ChunkSpec
from .axis import Index
from .plan import Plan

_ALL = slice(None)

# NumPy before 2.2 mixes up memory, and crashes, where strings are put at index arrays; objects
# it puts right.
_STRINGS_OVERWRITE = np.lib.NumpyVersion(np.__version__) < "2.2.0"


def gather(array: NDArray[Any], selection: Sequence[Index], joint: int = 0) -> NDArray[Any]:
    """``array`` at ``selection``: the first ``joint`` items are index arrays that act pointwise
    and give one dimension; each other item acts on its own axis (an integer drops it)."""
    if np.ndarray not in map(type, selection):
        return array[(*selection, ...)]  # the ellipsis keeps an array where all are integers
    basic = (_ALL if isinstance(item, np.ndarray) else item for item in selection)
    piece = array[(*basic, ...)]
    axis = joint
    for item in selection[joint:]:
        if isinstance(item, np.ndarray):
            piece = piece[(_ALL,) * axis + (item,)]
        if not isinstance(item, int):
            axis += 1
    return piece[tuple(selection[:joint])] if joint else piece


def scatter(
    array: NDArray[Any], selection: Sequence[Index], piece: NDArray[Any], joint: int = 0
) -> None:
    """The inverse of :func:`gather`: ``array`` at ``selection`` becomes ``piece``. Of repeated
    positions the last one stays."""
    if np.ndarray not in map(type, selection):
        array[(*selection, ...)] = piece  # the ellipsis: of a 0-d array of objects, its item
        return
    basic = (_ALL if isinstance(item, np.ndarray) else item for item in selection)
    array = array[(*basic, ...)]
    if _STRINGS_OVERWRITE and array.dtype.kind == "T" and piece.dtype.kind == "T":
        piece = piece.astype(object)
    own = [item for item in selection[joint:] if not isinstance(item, int)]
    arrays = [item for item in own if isinstance(item, np.ndarray)]
    if len(arrays) + (joint > 0) <= 1:
        rest = [item if isinstance(item, np.ndarray) else _ALL for item in own]
        array[(*selection[:joint], *rest, ...)] = piece
        return
    lead = 1 if joint else 0
    full: list[Any] = [
        item.reshape((-1,) + (1,) * len(own))
        for item in selection[:joint]
        if isinstance(item, np.ndarray)
    ]
    for k, item in enumerate(own):
        positions = item if isinstance(item, np.ndarray) else np.arange(array.shape[joint + k])
        full.append(positions.reshape([-1 if d == k + lead else 1 for d in range(lead + len(own))]))
    array[tuple(full)] = piece


def byte_range(inside: Sequence[Index], spec: ChunkSpec) -> tuple[int, int] | None:
    """The bytes of a C-ordered chunk from the first element of an orthogonal ``inside`` to the
    last, when they are few enough of it that getting only them is worth while."""
    step = spec.dtype.itemsize
    first = last = 0
    for item, edge in zip(reversed(inside), reversed(spec.shape), strict=True):
        if isinstance(item, int):
            low = high = item
        elif isinstance(item, slice):
            taken = range(*item.indices(edge))
            low, high = min(taken[0], taken[-1]), max(taken[0], taken[-1])
        else:
            low, high = int(item.min()), int(item.max())
        first += low * step
        last += high * step
        step *= edge
    stop = last + spec.dtype.itemsize
    return (first, stop) if (stop - first) * 4 <= step else None


def core(plan: Plan, buffer: NDArray[Any], repeat: int) -> NDArray[Any]:
    """The view of an output ``buffer`` that a plan's ``outside`` indexes: dimensions in the
    plan's order, those that merely repeat fixed at position ``repeat``."""
    free = [dim for dim in range(buffer.ndim) if dim not in plan.dims]
    order = (*free, *plan.dims)
    if order != tuple(range(buffer.ndim)):
        buffer = buffer.transpose(order)
    return buffer[(repeat,) * len(free) + (...,)] if free else buffer


def repeat_core(plan: Plan, buffer: NDArray[Any]) -> None:
    """Copy what was written through :func:`core` along the dimensions that repeat it."""
    free = [dim for dim in range(buffer.ndim) if dim not in plan.dims]
    if any(buffer.shape[dim] > 1 for dim in free):
        first = tuple(slice(0, 1) if dim in free else _ALL for dim in range(buffer.ndim))
        buffer[...] = buffer[first].copy()


def joint_first(plan: Plan, chunk: NDArray[Any]) -> NDArray[Any]:
    """The view of a chunk that a plan's ``inside`` indexes."""
    return chunk.transpose(plan.joint + plan.axes) if plan.joint else chunk
