"""Rows that are read each to its place: by the kernel, run by run, or out of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.columns import Placed
from tensorstash.engine import native
from tensorstash.engine.native import library
from tensorstash.errors import Corrupt
from tensorstash.indexing.selection import leading

ROWS = 53
LAYOUTS: dict[str, dict[str, Any]] = {
    "blosc": {"chunks": (8, 3)},
    "whole rows": {"chunks": (8, 5)},
    "raw": {"chunks": (8, 5), "codecs": None},
    "shards": {"chunks": (4, 5), "shards": (16, 5)},
    "one row": {"chunks": (1, 5)},
}


RUNS = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(1, 12)), min_size=1, max_size=8
).map(lambda runs: np.concatenate([np.arange(a, min(a + n, ROWS)) for a, n in runs]))
"""Rows in runs and by themselves, in and against their order, some of them repeated."""


WAYS = [
    pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="no kernel")),
    False,
]


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    where = tmp_path_factory.mktemp("placed") / "a"
    values = np.arange(ROWS * 5, dtype=np.int32).reshape(ROWS, 5)
    values[16:24] = 7  # chunks of nothing but the fill value, which are not stored
    stash.save(str(where), values, fill_value=7, **LAYOUTS[request.param])
    return str(where), values


@pytest.mark.parametrize("way", WAYS, ids=["kernel", "Python"])
@pytest.mark.parametrize("cache", [0, "1MiB"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_rows_go_where_they_belong(way: bool, stored: Any, cache: Any, data: Any) -> None:
    where, values = stored
    rows = data.draw(RUNS)
    free = len(rows) + data.draw(st.integers(0, 9))
    places = np.array(data.draw(st.permutations(range(free))), np.int64)[: len(rows)]
    if data.draw(st.booleans()):  # runs of places, too
        places.sort()
    start, count = int(rows[0]), min(len(places), ROWS - int(rows[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "enabled", way)
        array = stash.open(where, cache=cache)
        for chosen in (rows, slice(start, start + count), rows):  # what was kept, too
            to = places[: len(values[chosen])]
            out = np.full((free, 5), -1, np.int32)
            expected = out.copy()
            expected[to] = values[chosen]
            array.read_unwatched(leading(chosen, array.shape), Placed(out, to))
            np.testing.assert_array_equal(out, expected)


@pytest.mark.skipif(not native.available(), reason="no kernel")
def test_the_kernel_places_chunks_of_one_call(tmp_path: Path) -> None:
    array = stash.save(str(tmp_path / "a"), np.arange(320).reshape(64, 5), chunks=(8, 5))
    rows = np.concatenate([np.arange(8 * k, 8 * k + 8) for k in (5, 1, 7)])
    places = np.concatenate([np.arange(8 * k, 8 * k + 8) for k in (0, 6, 3)])
    out = np.zeros((64, 5), array.dtype)
    before = native.counts().get("tasks", 0)
    array.read_unwatched(leading(rows, array.shape), Placed(out, places))
    assert native.counts()["tasks"] - before == 3
    np.testing.assert_array_equal(out[places], array[rows])


@pytest.mark.parametrize("way", WAYS, ids=["kernel", "Python"])
def test_a_damaged_chunk_is_named(
    way: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "enabled", way)
    array = stash.save(str(tmp_path / "a"), np.arange(320).reshape(64, 5), chunks=(8, 5))
    file = next(p for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.name != "zarr.json")
    file.write_bytes(file.read_bytes()[:-3])
    out = np.zeros((64, 5), array.dtype)
    with pytest.raises(Corrupt, match=file.parent.name):
        array.read_unwatched(
            leading(np.arange(64), array.shape), Placed(out, np.arange(64, dtype=np.int64)[::-1])
        )
