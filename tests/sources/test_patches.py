"""Patches are NumPy's slices wherever they lie, and a batch decodes each chunk once."""

from __future__ import annotations

import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.errors import Invalid, InvalidSelection
from tensorstash.loading.source import Source
from tensorstash.sources.boxes import apart
from tensorstash.sources.patches import GridCorners, RandomCorners
from tensorstash.torch import Patches
from tests.support.far import FarDriver


def volume(shape: Any, chunks: Any, location: Any = None, **how: Any) -> tuple[Any, np.ndarray]:
    """A stored array of which every element is its own, and its values."""
    values = 1 + np.arange(math.prod(shape), dtype="i4").reshape(shape)  # none is the fill
    array = stash.create({} if location is None else location, shape, "i4", chunks=chunks, **how)
    array[...] = values
    return array, values


def cut(values: np.ndarray, corner: Any, shape: Any, pad: Any = None) -> np.ndarray:
    """A patch as NumPy has it, filled up with ``pad``."""
    piece = values[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))]
    room = [(0, n - m) for n, m in zip(shape, piece.shape, strict=True)]
    return np.pad(piece, room, constant_values=0 if pad is None else pad)


def touched(corners: Any, patch: Any, chunks: Any, shape: Any) -> set[tuple[int, ...]]:
    """The chunks that patches have elements of."""
    return {
        chunk
        for corner in corners
        for chunk in itertools.product(
            *[
                range(c // edge, (min(c + n, length) - 1) // edge + 1)
                for c, n, edge, length in zip(corner, patch, chunks, shape, strict=True)
            ]
        )
    }


@st.composite
def cases(draw: st.DrawFn) -> Any:
    """A shape, its chunks, shards or not, a patch, and how patches lie."""
    ndim = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    shape, chunks = each(1, 18), each(1, 7)
    how: dict[str, Any] = {}
    kind = draw(st.sampled_from(["grid", "padded", "anywhere"]))
    patch = each(1, 20)
    if kind != "padded":
        patch = tuple(min(p, n) for p, n in zip(patch, shape, strict=True))
    if kind == "anywhere":
        how = {"count": draw(st.integers(1, 12)), "seed": draw(st.integers(0, 9))}
    elif draw(st.booleans()):
        how = {"stride": each(1, 9)}
    if kind == "padded":
        how["pad"] = -7
    shards = {"shards": tuple(2 * c for c in chunks)} if draw(st.booleans()) else {}
    return shape, chunks, patch, how, shards


@given(cases(), st.data())
def test_any_batch_is_what_numpy_cuts_and_decodes_each_chunk_once(case: Any, data: Any) -> None:
    shape, chunks, patch, how, shards = case
    array, values = volume(shape, chunks, **shards)
    patches = Patches(array, patch, **how)
    corners = patches.corners()
    assert len(corners) == len(patches)
    if patches.grid is not None:
        stride = how.get("stride", patch)
        grid = np.stack(np.unravel_index(np.arange(len(patches)), patches.grid), axis=1)
        assert np.array_equal(corners, grid * np.array(stride))
    chosen = data.draw(st.lists(st.integers(0, len(patches) - 1), max_size=8))
    before = array.stats.chunks
    found = patches[np.array(chosen, int)]
    assert array.stats.chunks - before == len(touched(corners[chosen], patch, chunks, shape))
    assert found.shape == (len(chosen), *patch)
    for window, corner in zip(found, corners[chosen], strict=True):
        assert np.array_equal(window, cut(values, corner, patch, how.get("pad")))
    rows = np.concatenate([patches.blocks.rows(k) for k in range(len(patches.blocks))])
    assert sorted(rows.tolist()) == list(range(len(patches)))


@given(cases())
def test_a_grid_covers_what_it_says(case: Any) -> None:
    shape, chunks, patch, how, _ = case
    if "count" in how:
        return
    patches = Patches(volume(shape, chunks)[0], patch, **how)
    seen = np.zeros(shape, int)
    for corner in patches.corners():
        piece = seen[tuple(slice(c, c + n) for c, n in zip(corner, patch, strict=True))]
        assert piece.size
        if "pad" not in how:
            assert piece.shape == patch
        piece += 1
    step = how.get("stride", patch)
    if "pad" in how and all(s <= n for s, n in zip(step, patch, strict=True)):
        assert seen.min() >= 1
        if step == patch:
            assert seen.max() == 1


def test_a_padded_grid_puts_a_volume_together_again() -> None:
    array, values = volume((17, 10, 9), (8, 4, 9))
    patches = Patches(array, (5, 4, 4), pad=0)
    assert patches.grid == (4, 3, 3)
    whole = np.zeros((20, 12, 12), "i4")
    for corner, patch in zip(patches.corners(), patches[:], strict=True):
        whole[tuple(slice(c, c + n) for c, n in zip(corner, (5, 4, 4), strict=True))] = patch
    assert np.array_equal(whole[:17, :10, :9], values)
    assert not whole[17:].any()


def test_several_arrays_are_cut_at_the_same_places() -> None:
    image, pixels = volume((2, 20, 24), (1, 8, 8))  # channels first
    label, classes = volume((20, 24), (16, 6))
    colour, rgb = volume((20, 24, 3), (8, 8, 3))
    stored = {"image": image, "label": label, "colour": colour}
    axes = {"image": (1, 2), "label": (0, 1), "colour": (0, 1)}
    patches = Patches(stored, (6, 5), count=40, axes=axes, seed=1)
    found = patches[[7, 3, 30]]
    for k, (y, x) in enumerate(patches.corners([7, 3, 30])):
        assert np.array_equal(found["image"][k], pixels[:, y : y + 6, x : x + 5])
        assert np.array_equal(found["label"][k], classes[y : y + 6, x : x + 5])
        assert np.array_equal(found["colour"][k], rgb[y : y + 6, x : x + 5])
    assert patches[0]["image"].shape == (2, 6, 5)
    # By default the last axes; any order of axes is an order of the patch's.
    assert Patches({"image": image, "label": label}, (6, 5)).corners().shape == (12, 2)
    turned = Patches(image, (5, 6), axes=(-1, 1), stride=(5, 6))
    assert turned.grid == (4, 3)
    assert np.array_equal(turned[5], pixels[:, 12:18, 5:10])
    pads = Patches({"image": image, "label": label}, (16, 16), pad={"image": 0, "label": -1})
    last = pads[-1]
    assert (last["image"][:, 4:].any(), (last["label"][4:] == -1).all()) == (False, True)


def test_views_are_cut_within_their_part() -> None:
    array, values = volume((30, 30, 4), (8, 8, 2))
    part = Patches(array.lazy[5:26, :, 1], (6, 6), count=30)
    assert part.lengths == (21, 30)
    model = values[5:26, :, 1]
    chosen = np.array([4, 9, 2, 4])
    before = array.stats.chunks
    found = part[chosen]
    assert all(
        np.array_equal(p, cut(model, c, (6, 6)))
        for p, c in zip(found, part.corners(chosen), strict=True)
    )
    corners = part.corners(chosen) + np.array([5, 0])
    assert array.stats.chunks - before == len(touched(corners, (6, 6), (8, 8), (30, 30)))
    with pytest.raises(Invalid, match="sliced without steps along dimension 0"):
        Patches(array.lazy[::2], (6, 6, 2))


def test_places_are_a_function_of_seed_epoch_and_number_for_ever() -> None:
    corners = RandomCorners((100, 7, 10**12), 10**15, 3, 2)
    assert corners.at(np.array([0, 1, 10**14])).tolist() == GOLDEN
    array, _ = volume((64, 64), (16, 16))
    patches = Patches(array, 8, axes=0, count=1000, seed=5)
    same = Patches(array, 8, axes=0, count=2000, seed=5)
    assert np.array_equal(patches.corners(), same.corners()[:1000])
    epoch = patches.at_epoch(4)
    assert not np.array_equal(epoch.corners(), patches.corners())
    assert np.array_equal(epoch.at_epoch(0).corners(), patches.corners())
    patches.set_epoch(4)
    assert np.array_equal(epoch.corners(), patches.corners())
    assert np.array_equal(epoch.blocks.order, patches.blocks.order)
    assert not np.array_equal(
        Patches(array, 8, axes=0, count=1000).corners(), same.corners()[:1000]
    )
    found = np.bincount(Patches(array, 8, axes=0, count=57_000).corners()[:, 0], minlength=57)
    assert len(found) == 57  # 64 - 8 + 1
    assert 800 < found.min() <= found.max() < 1200


GOLDEN = [[45, 0, 604752802252], [32, 4, 198945354685], [90, 1, 843138108045]]


def test_numbers_of_billions_of_patches_are_arithmetic() -> None:
    corners = GridCorners.over((10**6, 10**6, 10**6), (64, 64, 64), (1, 1, 1), cover=False)
    assert len(corners) == 999_937**3
    at = np.array([0, 999_937 * 5 + 3, len(corners) - 1])
    assert corners.at(at).tolist() == [[0, 0, 0], [0, 5, 3], [999_936] * 3]


@given(
    st.lists(
        st.tuples(
            st.tuples(st.integers(0, 6), st.integers(0, 6)),
            st.tuples(st.integers(0, 3), st.integers(0, 3)),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_groups_share_no_chunk_and_leave_none_out(boxes: Any) -> None:
    low = np.array([corner for corner, _ in boxes], np.int64)
    high = low + np.array([more for _, more in boxes])
    wanted = {
        (box, chunk)
        for box, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True))
        for chunk in itertools.product(*[range(x, y + 1) for x, y in zip(a, b, strict=True)])
    }
    found: set[Any] = set()
    read: list[tuple[int, ...]] = []
    for members, chunk in apart(low, high):
        if chunk is not None:
            mine = {(int(box), tuple(chunk.tolist())) for box in members}
            read.append(tuple(chunk.tolist()))
        else:
            mine = {(box, c) for box, c in wanted if box in members}
            hull = [
                range(x, y + 1)
                for x, y in zip(low[members].min(0), high[members].max(0), strict=True)
            ]
            every = set(itertools.product(*[map(int, r) for r in hull]))
            assert every == {c for _, c in mine}  # what is between them is read, so is wanted
            read += every
        assert not mine & found
        found |= mine
    assert found == wanted
    assert len(read) == len(set(read))


# -- as a source -------------------------------------------------------------------------------


def test_blocks_are_the_stored_chunks_that_hold_the_corners() -> None:
    array, values = volume((64, 64), (8, 8), shards=(32, 32))
    patches = Patches(array, (8, 8))
    assert isinstance(patches, Source)
    assert np.diff(patches.blocks.bounds).tolist() == [16] * 4
    for k in range(4):
        rows = patches.blocks.rows(k)
        out = {"array": np.empty((16, 8, 8), "i4")}
        before = array.stats.chunks
        found = patches.take(rows, out)
        assert found["array"] is out["array"]
        assert array.stats.chunks - before == 16
        corners = patches.corners(rows)
        assert len({tuple(c) for c in (corners // 32).tolist()}) == 1
        assert all(
            np.array_equal(p, cut(values, c, (8, 8)))
            for p, c in zip(found["array"], corners, strict=True)
        )
    dense = Patches(array, (8, 8), stride=3)
    for k in range(len(dense.blocks)):
        rows = dense.blocks.rows(k)
        before = array.stats.chunks
        dense.take(rows)
        needed = touched(dense.corners(rows), (8, 8), (8, 8), (64, 64))
        assert array.stats.chunks - before == len(needed)


def test_far_away_a_batch_is_asked_for_at_once() -> None:
    driver = FarDriver()
    array, values = volume((60, 60), (10, 10), driver)
    array = stash.open(driver)
    patches = Patches(array, (12, 12), count=12, seed=2)
    assert patches.remote
    driver.reset()
    found = patches[:]
    corners = patches.corners()
    assert all(
        np.array_equal(p, cut(values, c, (12, 12))) for p, c in zip(found, corners, strict=True)
    )
    asked = [key for verb, key in driver.sent if verb == "get" and key.startswith("c/")]
    assert len(asked) == len(set(asked)) == len(touched(corners, (12, 12), (10, 10), (60, 60)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataloader_with_workers(tmp_path: Path, method: str) -> None:
    array, values = volume((40, 40), (16, 16), tmp_path / "a")
    np.asarray(array)  # the parent has read before
    patches = Patches({"x": array}, (9, 9), stride=5)
    loader = DataLoader(
        patches,
        batch_size=8,
        shuffle=True,
        num_workers=2,
        multiprocessing_context=method,
        timeout=60,
    )
    corners = []
    for batch in loader:
        assert isinstance(batch["x"], torch.Tensor)
        for patch in batch["x"].numpy():
            corner = divmod(int(patch[0, 0]) - 1, 40)
            assert np.array_equal(patch, cut(values, corner, (9, 9)))
            corners.append(list(corner))
    assert sorted(corners) == patches.corners().tolist()


def test_types_that_numpy_lacks_text_and_pickles(tmp_path: Path) -> None:
    small = stash.create({}, (12, 12), "bfloat16", chunks=(5, 5))
    small[...] = np.arange(144).reshape(12, 12).astype(ml_dtypes.bfloat16)
    items = Patches(small, (4, 4)).__getitems__([8, 0])
    assert items[0].dtype == torch.bfloat16
    assert items[1].float().tolist() == [
        [0, 1, 2, 3],
        [12, 13, 14, 15],
        [24, 25, 26, 27],
        [36, 37, 38, 39],
    ]
    words = stash.create({}, (6, 6), str, chunks=(4, 4))
    words[...] = [[f"{i}{j}" for j in range(6)] for i in range(6)]
    patches = Patches(words, (2, 3), stride=(1, 2), pad="none")
    assert patches[-1] == [["44", "45", "none"], ["54", "55", "none"]]
    array, _ = volume((40, 40), (16, 16), tmp_path / "a")
    drawn = Patches({"x": array, "y": array}, (9, 9), count=10**6, seed=1).at_epoch(3)
    assert len(drawn.blocks) == 4
    data = pickle.dumps(drawn)
    assert len(data) < 2048
    again = pickle.loads(data)
    assert np.array_equal(again[5:9]["x"], drawn[5:9]["x"])
    assert again.fingerprint == drawn.fingerprint
    others = [Patches(array, 9, axes=0), Patches(array, (9, 9)), Patches(array, (9, 9), stride=4)]
    others += [Patches(array, (9, 9), count=5), Patches(array, (9, 9), count=5, seed=1)]
    assert len({one.fingerprint for one in others}) == 5


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"shape": (0, 4)}, "shape must be whole numbers above 0"),
        ({"shape": (4, 4, 4)}, "the array has 2 axes, a patch of"),
        ({"shape": (21, 4)}, "no patch of .* fits into axes of .*; take a smaller one, or pad="),
        ({"shape": (4, 4), "stride": (1, 0)}, "stride must be whole numbers above 0"),
        ({"shape": (4, 4), "stride": (1, 1, 1)}, "stride must be .* as many as axes, 2"),
        ({"shape": (4, 4), "count": 0}, "count must be whole numbers above 0"),
        ({"shape": (4, 4), "count": 3, "stride": 2}, "count= draws patches anywhere"),
        ({"shape": (4, 4), "count": 3, "pad": 2}, "count= draws patches anywhere"),
        ({"shape": (4, 4), "seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"shape": (4, 4), "axes": (0, 2)}, "the array has axes 0 to 1"),
        ({"shape": (4, 4), "axes": (0, 0)}, "axes must name 2 different ones"),
        ({"shape": (4, 4), "axes": (0,)}, "axes must name 2 different ones"),
        ({"shape": (4, 4), "pad": "x"}, "the array of int32 cannot hold 'x'"),
        ({"shape": (4, 4), "pad": {"y": 0}}, "pad names y; the arrays are array"),
    ],
)
def test_what_makes_no_patches_is_named(how: Any, told: str) -> None:
    array, _ = volume((20, 20), (8, 8))
    with pytest.raises(Invalid, match=told):
        Patches(array, **how)


def test_arrays_that_do_not_fit_each_other_and_numbers_out_of_range() -> None:
    one, two = volume((20, 20), (8, 8))[0], volume((20, 21), (8, 8))[0]
    with pytest.raises(Invalid, match="differ in length along the axes of a patch"):
        Patches({"a": one, "b": two}, (4, 4))
    with pytest.raises(Invalid, match="must be a stored array"):
        Patches(np.zeros((4, 4)), (2, 2))
    with pytest.raises(Invalid, match="at least one array"):
        Patches({}, (2, 2))
    with pytest.raises(InvalidSelection):
        Patches(one, (4, 4))[25]
    with pytest.raises(InvalidSelection):
        Patches(one, (4, 4)).__getitems__([25])
