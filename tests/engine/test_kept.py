"""Boxes whose chunks are all in the cache."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

import tensorstash as stash
from tests.support.far import FarDriver
from tests.support.oracle import numpy_index, same, shapes


@given(st.data(), st.booleans(), st.booleans(), st.booleans())
def test_what_is_kept_reads_as_what_is_stored(
    data: st.DataObject, immutable: bool, far: bool, structured: bool
) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=12))
    dtype: Any = [("a", "u1"), ("b", "<f4")] if structured else "i4"
    wanted = np.arange(int(np.prod(shape))).reshape(shape).astype("i4").astype(dtype)
    chunks = tuple(data.draw(st.integers(1, 7)) for _ in shape)
    store: Any = FarDriver() if far else {}
    stash.save(store, wanted, chunks=chunks)
    array = stash.open(store, cache=data.draw(st.sampled_from([40, "1MB"])), immutable=immutable)
    if data.draw(st.booleans()):
        array[...]
    for _ in range(4):
        index = data.draw(numpy_index(shape))
        same(array[index], wanted[index])
        if not immutable:
            part = data.draw(numpy_index(shape))
            wanted[part] = np.array(data.draw(st.integers(0, 99))).astype(dtype)
            stash.open(store, "r+")[part] = wanted[part]


def test_hits_are_counted_once() -> None:
    store: dict[str, Any] = {}
    stash.save(store, np.arange(100).reshape(10, 10), chunks=(3, 3))
    for immutable in (False, True):
        array = stash.open(store, cache="1MB", immutable=immutable)
        array[2, 1:8]
        assert (array.stats.chunks, array.stats.cache_hits) == (3, 0)
        array[2, 1:8]
        assert (array.stats.chunks, array.stats.cache_hits) == (3, 3)
        array[2]  # one that is not there yet
        assert (array.stats.chunks, array.stats.cache_hits) == (4, 6)
