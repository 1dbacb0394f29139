"""Windows along an axis are NumPy's slices, never cross an episode, and decode chunks once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.errors import Invalid, InvalidSelection
from tensorstash.sources.windows import WindowStarts, parse_ends
from tensorstash.torch import Patches, Windows, mix


def series(rows: int, chunk: int, location: Any = None, **how: Any) -> tuple[Any, np.ndarray]:
    """A stored array whose every row is its own, and its values."""
    values = np.arange(rows * 3, dtype="i4").reshape(rows, 3)
    array = stash.create(
        {} if location is None else location, values.shape, "i4", **{"chunks": (chunk, 2), **how}
    )
    array[...] = values
    return array, values


def begun(rows: int, length: int, stride: int, ends: list[int]) -> list[int]:
    """Where windows begin, counted one by one."""
    bounds = [0, *ends, rows]
    return [
        start
        for first, stop in itertools.pairwise(bounds)
        for start in range(first, stop - length + 1, stride)
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, int, list[int]]:
    rows = draw(st.integers(0, 70))
    ends = sorted(draw(st.lists(st.integers(0, rows), max_size=6)))
    return (
        rows,
        draw(st.integers(1, 12)),
        draw(st.integers(1, 14)),
        draw(st.integers(1, 18)),
        ends,
    )


def touched(starts: Any, length: int, chunk: int) -> set[int]:
    return {row // chunk for start in starts for row in range(start, start + length)}


# -- where they begin --------------------------------------------------------------------------


@given(cases())
def test_windows_are_those_counted_one_by_one(case: Any) -> None:
    rows, _, length, stride, ends = case
    found = WindowStarts(rows, length, stride, np.array(ends, np.int64))
    wanted = begun(rows, length, stride, ends)
    assert len(found) == len(wanted)
    assert found.at(np.arange(len(wanted))).tolist() == wanted
    used = {row for start in wanted for row in range(start, start + length)}
    assert found.unused == rows - len(used)
    assert found.before(np.arange(rows + 1)).tolist() == [
        sum(start < row for start in wanted) for row in range(rows + 1)
    ]


def test_billions_of_rows_cost_no_more_than_ten() -> None:
    ends = np.array([10**17, 10**17 + 5, 3 * 10**17], np.int64)
    found = WindowStarts(4 * 10**17, 512, 1, ends)
    assert len(found) == 4 * 10**17 - 511 * 3 - 5
    last = found.at(np.array([0, len(found) - 1]))
    assert last.tolist() == [0, 4 * 10**17 - 512]
    assert found.at(np.array([10**17 - 512, 10**17 - 511])).tolist() == [10**17 - 512, 10**17 + 5]


def test_boundaries_are_offsets_or_a_mask_of_last_rows() -> None:
    array, _ = series(10, 4)
    wanted = [0, 1, 4, 5, 6]
    mask = np.zeros(10, bool)
    mask[[3, 8]] = True
    for given_ in ([4, 9], [0, 4, 4, 9, 10], np.array([4, 9], "u4"), mask):
        assert Windows(array, 3, boundaries=given_).starts().tolist() == wanted
    stored = stash.create({}, (2,), "i8")
    stored[...] = [4, 9]
    assert Windows(array, 3, boundaries=stored).starts().tolist() == wanted
    assert Windows(array, 3, boundaries=stored.lazy[:1]).starts().tolist() == [0, 1, 4, 5, 6, 7]
    assert Windows(array, 3, boundaries=[]).starts().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("boundaries", "told"),
    [
        ([4, 11], "boundary 1 is 11; offsets lie within the 10 rows"),
        ([-1], "boundary 0 is -1"),
        ([4, 3], "boundaries must ascend: boundary 1 is 3, after 4"),
        ([0.5], "of integers or booleans, not 1-D float64"),
        ([[4]], "not 2-D"),
        (np.ones(9, bool), "a mask of 9 boundaries does not fit 10 rows"),
    ],
)
def test_wrong_boundaries_are_named(boundaries: Any, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        parse_ends(boundaries, 10)


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, None])
def test_lengths_and_strides_are_whole_and_positive(value: Any) -> None:
    array, _ = series(10, 4)
    with pytest.raises(Invalid, match="length must be a whole number from 1 on"):
        Windows(array, value)
    with pytest.raises(Invalid, match="stride must be a whole number from 1 on"):
        Windows(array, 2, value)


def test_sources_that_have_no_rows_are_refused() -> None:
    for source in (3, np.array(5), [1, 2], None, stash.create({}, (), "i4")):
        with pytest.raises(Invalid):
            Windows(source, 2)
    one, two = series(10, 4)[0], series(11, 4)[0]
    with pytest.raises(Invalid, match=r"different lengths: \{'a': 10, 'b': 11\}"):
        Windows({"a": one, "b": two}, 2)
    with pytest.raises(Invalid, match="no array 'c'; there are 'a'"):
        Windows({"a": one}, 2, fields="c")
    with pytest.raises(Invalid, match="sliced without steps along dimension 0"):
        Windows(one.lazy[::2], 2)


def test_arrays_in_memory_have_windows_too() -> None:
    array, values = series(40, 7)
    numbers = np.arange(40)
    windows = Windows({"stored": array, "memory": values, "number": numbers}, 5, 3)
    for chosen in (np.arange(12), np.array([9, 2, 2])):
        found = windows.take(chosen)
        assert np.array_equal(found["stored"], found["memory"])
        assert np.array_equal(found["number"], chosen[:, None] * 3 + np.arange(5))
    alone = Windows(numbers, 4)[[7, 1]]
    assert np.array_equal(alone, [[7, 8, 9, 10], [1, 2, 3, 4]])
    first, second = Windows((values, array), 2)[3]
    assert np.array_equal(first, second) and np.array_equal(first, values[3:5])


# -- what they hold ----------------------------------------------------------------------------


@given(cases(), st.data())
def test_any_selection_is_numpys(case: Any, data: st.DataObject) -> None:
    rows, chunk, length, stride, ends = case
    array, values = series(rows, chunk)
    windows = Windows(array, length, stride, boundaries=ends)
    starts = begun(rows, length, stride, ends)
    model = np.array([values[s : s + length] for s in starts]).reshape(-1, length, 3)
    assert len(windows) == len(model)
    chosen = (
        data.draw(st.lists(st.integers(-len(model), len(model) - 1), max_size=9)) if starts else []
    )
    before = array.stats.chunks
    assert np.array_equal(windows[np.array(chosen, int)], model[chosen])
    columns = 2  # chunks that a row has
    needed = touched([starts[i] for i in chosen], length, chunk)
    assert array.stats.chunks - before <= columns * len(needed)
    cut = slice(
        *data.draw(
            st.tuples(*[st.none() | st.integers(-20, 20)] * 2, st.sampled_from([None, 1, 2, -1]))
        )
    )
    assert np.array_equal(windows[cut], model[cut])
    if starts:
        assert np.array_equal(
            windows[chosen[0] if chosen else -1], model[chosen[0] if chosen else -1]
        )


@given(cases(), st.integers(1, 9))
def test_batches_in_order_decode_each_chunk_once_an_epoch(case: Any, batch: int) -> None:
    rows, chunk, length, stride, ends = case
    array, values = series(rows, chunk)
    windows = Windows(array, length, stride, boundaries=ends)
    starts = begun(rows, length, stride, ends)
    found = [
        windows.take(np.arange(a, min(a + batch, len(starts))))
        for a in range(0, len(starts), batch)
    ]
    for a, columns in zip(range(0, len(starts), batch), found, strict=True):
        for i, window in enumerate(columns["array"]):
            assert np.array_equal(window, values[starts[a + i] : starts[a + i] + length])
    assert array.stats.chunks <= 2 * -(-rows // chunk)
    if not ends and stride <= length:
        assert array.stats.chunks == 2 * len(touched(starts, length, chunk))


def test_overlapping_windows_of_a_long_series_decode_each_chunk_once() -> None:
    """Windows of 512, 16 apart, in batches of 64: each row is in 32 windows."""
    array, values = series(20_000, 1024, chunks=(1024, 3))
    windows = Windows(array, 512, 16)
    out = {"array": np.empty((64, 512, 3), "i4")}
    for first in range(0, len(windows) - 63, 64):
        found = windows.take(np.arange(first, first + 64), out)
        assert found["array"] is out["array"]
        assert out["array"][0, 0, 0] == values[first * 16, 0]
        assert out["array"][-1, -1, -1] == values[(first + 63) * 16 + 511, 2]
    assert array.stats.chunks == 20  # of 20
    for i in range(0, 200, 7):  # one by one, too
        assert np.array_equal(windows[i], values[i * 16 : i * 16 + 512])


def test_a_batch_anywhere_decodes_each_chunk_once_whatever_it_overlaps() -> None:
    array, values = series(5000, 256, chunks=(256, 3))
    windows = Windows(array, 100)
    random = np.random.default_rng(0)
    for _ in range(20):
        chosen = random.integers(0, len(windows), 64)
        before = array.stats.chunks
        found = windows[chosen]
        assert np.array_equal(found, np.stack([values[i : i + 100] for i in chosen]))
        assert array.stats.chunks - before == len(touched(chosen, 100, 256))


def test_of_uncompressed_chunks_only_the_windows_are_read(tmp_path: Path) -> None:
    array, values = series(100_000, 100_000, tmp_path / "a", chunks=(100_000, 3), codecs=[])
    windows = Windows(array, 10)
    chosen = np.array([5, 90_000, 12, 50_000])
    assert np.array_equal(windows[chosen], np.stack([values[i : i + 10] for i in chosen]))
    assert array.stats.encoded_bytes < 1000
    # A chunk that must be decoded whole is not copied whole, for windows far apart in it.
    packed, _ = series(100_000, 100_000, tmp_path / "b", chunks=(100_000, 3))
    assert np.array_equal(Windows(packed, 10)[chosen], windows[chosen])
    assert packed.stats.chunks == 1


def test_several_arrays_and_some_of_them() -> None:
    obs, values = series(40, 8)
    action = stash.create({}, (40,), "f8", chunks=(16,))
    action[...] = np.arange(40) / 2
    windows = Windows({"obs": obs, "action": action}, 5, 3)
    found = windows[[2, 0, 2]]
    assert list(found) == ["obs", "action"]
    assert np.array_equal(found["obs"], np.stack([values[s : s + 5] for s in (6, 0, 6)]))
    assert np.array_equal(found["action"], np.stack([np.arange(s, s + 5) / 2 for s in (6, 0, 6)]))
    one = windows[-1]
    assert one["action"].shape == (5,)
    before = obs.stats.chunks
    assert list(Windows({"obs": obs, "action": action}, 5, fields=["action"])[3:5]) == ["action"]
    assert obs.stats.chunks == before  # what is not asked for is not read


def test_views_are_windows_of_their_part() -> None:
    array, values = series(50, 8)
    late = Windows(array.lazy[13:, 1], 4, 2)
    model = values[13:, 1]
    assert len(late) == 17
    assert np.array_equal(late[:], np.stack([model[i : i + 4] for i in range(0, 34, 2)]))
    assert late.source.blocks.bounds.tolist() == [0, 3, 11, 19, 27, 35, 37]  # where chunks meet
    array.append(values[:9])
    assert len(late) == 17  # the rows there were when it was made


def test_text_and_results_of_ones_own() -> None:
    words = stash.create({}, (9,), str, chunks=(4,))
    words[...] = [f"word {k}" for k in range(9)]
    windows = Windows(words, 3)
    assert windows[[4, 0]].tolist() == [[f"word {k + i}" for i in range(3)] for k in (4, 0)]
    assert windows[1] == ["word 1", "word 2", "word 3"]
    array, values = series(20, 4)
    for found in (Windows(array, 4)[:], Windows(array, 4, 2)[1:4], Windows(array, 2)[[3, 3]]):
        found[...] = -1  # nobody else's memory
    assert np.array_equal(Windows(array, 4)[:], np.stack([values[i : i + 4] for i in range(17)]))


def test_where_windows_patches_and_mixtures_begin_is_asked_by_rows_that_are_there() -> None:
    records = stash.save_records({}, {"x": np.arange(1000)})
    volume = stash.save({}, np.zeros((40, 40)), chunks=8)
    windows = records.windows(5, stride=3)
    patches = Patches(volume, (8, 8), count=30)
    mixed = mix([np.arange(3), np.arange(3)])
    assert windows.starts([-1]).tolist() == windows.starts()[-1:].tolist() == [993]
    assert patches.corners([-1]).tolist() == patches.corners()[-1:].tolist()
    assert [part.tolist() for part in mixed.origins([-1])] == [
        part.tolist() for part in mixed.origins([len(mixed) - 1])
    ]
    for ask, count in (
        (windows.starts, len(windows)),
        (records.windows(5, boundaries=[10, 1000]).starts, 992),
        (patches.corners, 30),
        (mixed.origins, len(mixed)),
    ):
        for outside in count, -count - 1, 10**6:
            with pytest.raises(InvalidSelection, match="out of bounds"):
                ask([outside])
