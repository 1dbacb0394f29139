"""Chunks to try Zarr v2's filters on before an array is created; not a Zarr name itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorstash.codec import ChunkSpec

_BYTES = 1 << 16
_MOST = 1 << 24
_OBJECTS = {"T": "a", "O": b"a"}
_DTYPES = ("dtype", "astype", "encode_dtype", "decode_dtype")
_SHUFFLED = 4  # what numcodecs takes for an elementsize that is not given


def trials(
    configs: Sequence[Mapping[str, Any]], spec: ChunkSpec, stored: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Chunks of ordinary values, as filters see them: small ones, which no filter of ``configs``
    takes or refuses for their size unless it does chunks of ``spec``."""
    if spec.dtype.kind in _OBJECTS:
        yield np.full(1, _OBJECTS[spec.dtype.kind], object)
        return
    shape = _shape(configs, spec, stored.itemsize)
    if math.prod(shape) * stored.itemsize > _MOST:
        return
    yield np.zeros(shape, stored)
    if stored.kind != "V":
        yield np.ones(shape, stored)


def _shape(configs: Sequence[Mapping[str, Any]], spec: ChunkSpec, itemsize: int) -> tuple[int, ...]:
    if spec.count * itemsize <= _BYTES:
        return spec.shape
    # Whether bytes make whole elements is the same for any two sizes that are alike modulo these;
    # packbits makes one byte of eight elements.
    told = [np.dtype(c[key]).itemsize for c in configs for key in _DTYPES if c.get(key)]
    told += [c.get("elementsize") or _SHUFFLED for c in configs if c["id"] == "shuffle"]
    period = 8 * math.lcm(*(size for size in told if size))
    return (*(1 for _ in spec.shape[1:]), min(spec.count, period + spec.count % period))
