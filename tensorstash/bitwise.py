"""Whether a chunk is nothing but fill value, by its bits."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 1 << 16
"""Elements compared at a time: the temporary stays in cache and a mismatch ends the scan."""

_COPY_LIMIT: Final = 1 << 20
"""Bytes of a scattered chunk that may be gathered for comparison."""


def is_fill(chunk: NDArray[Any], fill: NDArray[Any]) -> bool:
    """Whether every element of ``chunk`` is ``fill``, by its bits: -0.0 is not 0.0, and one
    NaN is not another (text and bytes of any length: by ``==``).

    Answers from the first element where that differs; otherwise one pass over the memory,
    with temporaries of at most a mebibyte.
    """
    if chunk.size == 0:
        return True
    if chunk.dtype.kind == "O":
        wanted = fill[()]
        return isinstance(wanted, bytes) and all(
            type(item) is bytes and item == wanted for item in chunk.flat
        )
    if chunk.dtype.kind == "T":
        first = chunk[(0,) * chunk.ndim]
        return bool(first == fill[()]) and bool(np.all(chunk == fill))
    if chunk.dtype != fill.dtype:
        fill = fill.astype(chunk.dtype)
    wanted_bytes = fill.tobytes()
    corner: Any = (*(slice(1),) * chunk.ndim, ...)  # no scalar: NumPy refuses odd text
    if chunk[corner].tobytes() != wanted_bytes:
        return False
    if chunk.nbytes <= _BLOCK:
        return chunk.tobytes() == wanted_bytes * chunk.size
    width = math.gcd(chunk.dtype.itemsize, 8)
    wanted = np.frombuffer(wanted_bytes, f"u{width}")
    return _is_all(chunk, wanted, wanted[0] if (wanted == wanted[0]).all() else None)


def _is_all(chunk: NDArray[Any], wanted: NDArray[Any], same: Any) -> bool:
    if not chunk.flags.forc and not _any_order_contiguous(chunk):
        if chunk.nbytes > _COPY_LIMIT:
            step = max(1, len(chunk) * _COPY_LIMIT // chunk.nbytes)
            halves = (
                chunk[0] if len(chunk) == 1 else chunk[start : start + step]
                for start in range(0, len(chunk), step)
            )
            return all(_is_all(part, wanted, same) for part in halves)
        chunk = np.ascontiguousarray(chunk)
    lanes = chunk.ravel(order="K").view(wanted.dtype)
    if same is not None and same == 0 and wanted.itemsize < 8:
        return _no_bits(lanes)
    if same is None:
        rows = lanes.reshape(-1, len(wanted))
        step = max(1, _BLOCK // len(wanted))
        return not any(
            (rows[start : start + step] != wanted).any() for start in range(0, len(rows), step)
        )
    return not any(
        (lanes[start : start + _BLOCK] != same).any() for start in range(0, len(lanes), _BLOCK)
    )


def _no_bits(lanes: NDArray[Any]) -> bool:
    """Whether all of ``lanes`` is zero, eight bytes at a time."""
    per = 8 // lanes.itemsize
    whole = len(lanes) // per * per
    words = lanes[:whole].view("u8")
    return not lanes[whole:].any() and not any(
        words[start : start + _BLOCK].any() for start in range(0, len(words), _BLOCK)
    )


def _any_order_contiguous(chunk: NDArray[Any]) -> bool:
    axes = sorted(range(chunk.ndim), key=lambda axis: -abs(chunk.strides[axis]))
    return chunk.transpose(axes).flags.c_contiguous
