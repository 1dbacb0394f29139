"""A mixture has each source's share of any stretch, every row in turn, and resumes anywhere."""

from __future__ import annotations

import itertools
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import tensorstash as stash
from tensorstash.errors import Invalid, InvalidSelection
from tensorstash.loading.order import BlockShuffle, Exact, InOrder, Order
from tensorstash.loading.source import Blocks, Source
from tensorstash.sources.interleave import RepeatedShuffle, WeightedInterleave, parse_weights
from tensorstash.sources.mixture import Mix
from tensorstash.torch import Patches, Windows, mix

WEIGHTS = st.lists(st.integers(1, 60), min_size=1, max_size=9)


def numbers(rows: int, chunk: int, first: int = 0, location: Any = None) -> stash.Array:
    """A stored array of the numbers from ``first`` on."""
    array = stash.create({} if location is None else location, (rows,), "i8", chunks=(chunk,))
    array[...] = np.arange(first, first + rows)
    return array


# -- who comes when ----------------------------------------------------------------------------


@given(WEIGHTS, st.integers(0, 10**12))
def test_a_source_has_its_share_of_every_stretch(weights: list[int], start: int) -> None:
    schedule = WeightedInterleave(weights)
    positions = np.arange(start, start + 400)
    source, number = schedule.find(positions)
    before = schedule.counts(start)
    for k, weight in enumerate(weights):
        mine = np.flatnonzero(source == k)
        # Its own turns, one after another, and each found again.
        assert number[mine].tolist() == list(range(before[k], before[k] + len(mine)))
        assert (schedule.position(k, number[mine]) == positions[mine]).all()
        given_ = before[k] + np.concatenate([[0], np.cumsum(source == k)])
        share = [weight * p // sum(weights) for p in range(start, start + 401)]
        off = given_ - np.array(share, np.int64)  # to the whole: numbers are large here
        assert -schedule.off[k] - 1 <= off.min() <= off.max() <= schedule.off[k] + 1
    assert max(schedule.off) <= [0, 0.5, 1][min(len(weights), 3) - 1] + (len(weights) > 3)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 3000))
def test_of_two_sources_every_stretch_has_the_share_rounded(a: int, b: int, stretch: int) -> None:
    source, _ = WeightedInterleave([a, b]).find(np.arange(6000))
    given_ = np.concatenate([[0], np.cumsum(source == 0)])
    counts = given_[stretch:] - given_[:-stretch]
    share = stretch * a / (a + b)
    assert math.floor(share - 1e-9) <= counts.min() <= counts.max() <= math.ceil(share + 1e-9)


def test_a_schedule_is_the_same_for_ever() -> None:
    source, _ = WeightedInterleave([5, 3, 2]).find(np.arange(20))
    assert "".join(map(str, source)) == GOLDEN
    far, number = WeightedInterleave([5, 3, 2]).find(np.array([10**15, 10**15 + 1]))
    assert far.tolist() == source[:2].tolist()
    assert number[0] == [5, 3, 2][far[0]] * 10**14


GOLDEN = "10201020101020102010"


def test_weights_of_any_kind_are_exact_proportions() -> None:
    assert parse_weights([0.7, 0.2, 0.1]) == [7, 2, 1]
    assert parse_weights([np.float32(0.5), 2, np.int64(1)]) == [1, 4, 2]
    assert parse_weights([1 / 3, 2 / 3]) == [1, 2]
    assert parse_weights([60, 40]) == [3, 2]
    large = parse_weights([10**15, 1, 2 * 10**15])
    assert sum(large) < 2**31
    assert large[1] == 1
    assert large[2] / large[0] == pytest.approx(2)
    for wrong in (0, -1, math.nan, math.inf, "a", None):
        with pytest.raises(Invalid, match="a weight must be a number above 0"):
            parse_weights([1, wrong])


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([1, 1e-8], [10**8, 1]),
        ([np.float32(2), 2e-9], [10**9, 1]),
        ([1, 3e-7, 5e-9], [200_000_000, 60, 1]),
        ([1e-30, 2e-30], [1, 2]),
        ([1e300, 1e299], [10, 1]),
        ([5e-324, 1e-323], [1, 2]),
        ([1.5e-6, 1], [3, 2_000_000]),
    ],
)
def test_small_weights_are_weights(weights: list[Any], whole: list[int]) -> None:
    assert parse_weights(weights, strict=True) == whole


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=5))
def test_weights_keep_their_shares_or_are_refused(weights: list[float]) -> None:
    parts = [weight / math.fsum(weights) for weight in weights]
    try:
        whole = parse_weights(weights, strict=True)
    except Invalid as error:
        assert "too small beside the others" in str(error)
        assert min(parts) < 100 / 2**31
        return
    assert sum(whole) < 2**31
    for part, found in zip(parts, whole, strict=True):
        assert found / sum(whole) == pytest.approx(part, rel=0.011)


def test_a_mixture_says_which_weight_is_too_small() -> None:
    sources = {"a": numbers(60, 8), "b": numbers(60, 8, 100)}
    assert mix(sources, {"a": 1, "b": 1e-8}).weights["b"] == pytest.approx(1e-8)
    with pytest.raises(Invalid, match="the weight 1e-12 is too small beside the others"):
        mix(sources, {"a": 1, "b": 1e-12})
    long = stash.create({}, (10**13,), "i1", chunks=(10**10,), codecs=None)
    lasting = mix([long, long], [1, 1e-9])
    assert list(lasting.counts.values()) == [10**13, 10**4]
    with pytest.raises(Invalid, match=r"all sources have given every row after 1\d{22} rows"):
        mix([long, long], [1, 1e-9], stop="all")


# -- which rows --------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 9), st.none() | st.integers(0, 5), st.integers(0, 200))
def test_passes_have_every_row_once_each(rows: int, size: int, seed: Any, start: int) -> None:
    passes = RepeatedShuffle(Blocks.regular(rows, size), seed, 0)
    stream = passes.rows(np.arange(3 * rows))
    for turn in range(3):
        one = stream[turn * rows : (turn + 1) * rows]
        assert sorted(one.tolist()) == list(range(rows))
        if seed is None:
            assert one.tolist() == list(range(rows))
    bounds = passes.bounds(start, start + 2 * rows)
    assert (bounds[0], bounds[-1]) == (start, start + 2 * rows)
    assert (np.diff(bounds) > 0).all()
    for a, b in itertools.pairwise(bounds):  # rows of a block are neighbours
        some = passes.rows(np.arange(a, b))
        assert (np.diff(some) == 1).all()
        assert some[0] // size == some[-1] // size


def test_by_default_sources_end_together_and_every_row_comes_once() -> None:
    sources = {"a": numbers(300, 16), "b": numbers(100, 16, 1000), "c": numbers(33, 16, 2000)}
    for stop in ("first", "all", 433):
        mixed = mix(sources, stop=stop)
        assert len(mixed) == 433
        assert mixed.counts == {"a": 300, "b": 100, "c": 33}
        wanted = [*range(300), *range(1000, 1100), *range(2000, 2033)]
        assert sorted(mixed[:].tolist()) == wanted


def test_an_epoch_ends_with_the_first_source_or_when_all_are_through() -> None:
    sources = [numbers(300, 16), numbers(50, 16, 1000)]
    first = mix(sources, [1, 1], stop="first")
    assert 99 <= len(first) <= 101
    assert max(first.counts.values()) == 50
    every = mix(sources, [1, 1], stop="all")
    assert 599 <= len(every) <= 600
    found = Counter(every[:].tolist())
    assert {found[i] for i in range(300)} == {1}
    assert {found[i] for i in range(1000, 1050)} <= {5, 6}  # began again five times
    fixed = mix(sources, {"0": 0.25, "1": 0.75}, stop=1000)
    assert fixed.counts == {"0": 250, "1": 750}
    for wrong in (0, -3, "last", 1.5, True, None):
        with pytest.raises(Invalid, match='stop is "first", "all" or a number of rows'):
            mix(sources, stop=wrong)


@pytest.mark.parametrize("seed", [0, 7, None])
def test_epochs_go_on_where_the_last_one_ended(seed: Any) -> None:
    mixed = mix([numbers(300, 16), numbers(70, 16, 1000)], [1, 1], stop="first", seed=seed)
    seen: Counter[int] = Counter()
    for epoch in range(12):
        found = mixed.at_epoch(epoch)[:].tolist()
        assert len(found) == len(mixed)
        seen.update(found)
        for rows in (range(300), range(1000, 1070)):
            assert max(seen[i] for i in rows) - min(seen[i] for i in rows) <= 1
    before = mixed[:].tolist()
    mixed.set_epoch(3)
    assert mixed[:].tolist() == mixed.at_epoch(3)[:].tolist() != before
    mixed.set_epoch(0)
    assert mixed[:].tolist() == before
    if seed is None:
        assert [i for i in before if i < 1000] == list(range(len(before) // 2))


def test_rows_say_where_they_are_from() -> None:
    mixed = mix({"a": numbers(40, 8), "b": numbers(20, 8, 1000)}, origin="source")
    found = mixed[:]
    assert (found["source"] == (found["array"] >= 1000)).all()
    source, row = mixed.origins([3, 17, 59, 3])
    values = mixed[[3, 17, 59, 3]]["array"]
    assert (values == row + 1000 * source).all()
    assert mixed.names == ["a", "b"]
    assert mixed[5]["source"] in (0, 1)
    assert mixed.weights == {"a": 2 / 3, "b": 1 / 3}


# -- what they have ----------------------------------------------------------------------------


def test_sources_with_other_fields_are_refused_by_name() -> None:
    one, two = numbers(8, 4), numbers(8, 4)
    wide = stash.create({}, (8, 2), "i8")
    real = stash.create({}, (8,), "f4")
    with pytest.raises(Invalid, match="source 'b' has no field 'y', which 'a' has"):
        mix({"a": {"x": one, "y": two}, "b": {"x": one}})
    with pytest.raises(Invalid, match="source 'a' has no field 'y', which 'b' has"):
        mix({"a": {"x": one}, "b": {"x": one, "y": two}})
    with pytest.raises(
        Invalid,
        match=r"field 'x' is int64 of shape \(\) in source 'a', "
        r"int64 of shape \(2,\) in 'b'",
    ):
        mix({"a": {"x": one}, "b": {"x": wide}})
    with pytest.raises(Invalid, match="float32 of shape"):
        mix([{"x": one}, {"x": real}])
    with pytest.raises(Invalid, match="have a field 'x' already"):
        mix([{"x": one}, {"x": two}], origin="x")
    with pytest.raises(Invalid, match="at least one source"):
        mix([])
    with pytest.raises(Invalid, match="source '1' has no rows"):
        mix([one, stash.create({}, (0,), "i8")])
    with pytest.raises(Invalid, match="3 weights for 2 sources"):
        mix([one, two], [1, 2, 3])
    with pytest.raises(Invalid, match="weights name a; the sources are a, b"):
        mix({"a": one, "b": two}, {"a": 1})
    with pytest.raises(Invalid, match="seed must be a whole number"):
        mix([one, two], seed="x")  # type: ignore[arg-type]
    assert mix({1: one, 2: two}, {1: 1, 2: 3}).weights == {"1": 0.25, "2": 0.75}


def test_text_windows_patches_and_mixtures_of_mixtures() -> None:
    words = [stash.create({}, (n,), str, chunks=(4,)) for n in (9, 6)]
    for k, array in enumerate(words):
        array[...] = [f"{k}-{i}" for i in range(len(array))]
    mixed = mix(words)
    assert sorted(mixed[:].tolist()) == sorted(w for a in words for w in a[...].tolist())
    assert isinstance(mixed[0], str)
    windows = mix([Windows(numbers(60, 8, 100 * k), 5, 2) for k in range(3)], [2, 1, 1])
    for window in windows[:]:
        assert (np.diff(window) == 1).all()
    volumes = [numbers(64, 8, 100 * k) for k in range(2)]
    patches = mix([Patches(v, 4, count=20, seed=k) for k, v in enumerate(volumes)])
    epochs = [patches.at_epoch(e)[:].tolist() for e in (0, 1)]
    assert epochs[0] != epochs[1]  # patches are others, too
    inner = mix([numbers(30, 8), numbers(10, 8, 1000)])
    outer = mix([inner, numbers(40, 8, 2000)])
    assert sorted(outer[:].tolist()) == [*range(30), *range(1000, 1010), *range(2000, 2040)]


# -- as a source -------------------------------------------------------------------------------


def blocks_of(mixed: Mix) -> list[np.ndarray]:
    return [mixed.blocks.rows(k) for k in range(len(mixed.blocks))]


def test_blocks_are_the_chunks_of_the_sources() -> None:
    a, b = numbers(100, 16), numbers(60, 16, 1000)
    mixed = mix([a, b], [1, 1], stop=100).at_epoch(1)
    assert isinstance(mixed, Source)
    blocks = blocks_of(mixed)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(100))
    for rows in blocks:
        before = a.stats.chunks + b.stats.chunks
        found = mixed.take(rows)["array"]
        assert (np.diff(found) == 1).all()
        assert a.stats.chunks + b.stats.chunks == before + 1
    order: Any = mixed.blocks.order
    assert np.asarray(order).tolist() == np.concatenate(blocks).tolist()
    assert order[::-3].tolist() == np.asarray(order)[::-3].tolist()


def pooled(seed: int) -> Any:
    def make(blocks: Blocks, which: int, share: float) -> Order:
        lanes, pool = max(1, round(16 * share)), max(1, round(40 * share))
        return BlockShuffle(blocks, seed + which, 0, lanes, pool)

    return make


@pytest.mark.parametrize(
    "make",
    [pooled(0), lambda blocks, k, share: Exact(blocks, k, 0), lambda blocks, *_: InOrder(blocks)],
    ids=["pooled", "exact", "in order"],
)
def test_a_shuffle_within_the_sources_keeps_their_shares(make: Any) -> None:
    mixed = mix([numbers(2000, 16), numbers(900, 16, 10_000), numbers(300, 16, 20_000)], [6, 3, 1])
    order = mixed.order(make)
    positions = np.arange(len(mixed))
    rows = order.rows(positions)
    assert sorted(rows.tolist()) == positions.tolist()
    source, _ = mixed.origins(rows)
    assert source.tolist() == mixed.origins(positions)[0].tolist()
    # Any stretch by itself is what it is in the whole.
    assert order.rows(positions[700:900]).tolist() == rows[700:900].tolist()
    block, within = order.locate(positions)
    for k, ends in enumerate(order.last_use()):
        assert np.flatnonzero(block == k).max(initial=-1) < ends
    assert (within < np.diff(order.blocks.bounds)[block]).all()
    lanes = order.lanes(positions)
    if lanes is not None:  # no lane is of two sources
        assert all(len(set(source[lanes == lane])) == 1 for lane in np.unique(lanes))


def test_out_is_filled_from_one_source_or_several() -> None:
    mixed = mix([numbers(40, 8), numbers(20, 8, 1000)], origin="from")
    for rows in (np.arange(13), mixed.blocks.rows(0), np.array([5, 5, 2])):
        out = {"array": np.empty(len(rows), "i8"), "from": np.empty(len(rows), "i8")}
        found = mixed.take(rows, out)
        assert found["array"] is out["array"]
        assert found["from"] is out["from"]
        wanted = mixed.take(rows)
        assert all(np.array_equal(out[name], wanted[name]) for name in out)
    assert len(mixed.take(np.arange(0))["array"]) == 0


def test_pickles_and_fingerprints(tmp_path: Path) -> None:
    a, b = numbers(4000, 8, 0, tmp_path / "a"), numbers(100, 8, 5000, tmp_path / "b")
    mixed = mix({"a": a, "b": b}, [1, 2], stop="all", seed=3, origin="source").at_epoch(2)
    wanted = mixed[:]
    data = pickle.dumps(mixed)
    assert len(data) < 2048
    again = pickle.loads(data)
    assert all(np.array_equal(again[:][name], wanted[name]) for name in wanted)
    prints = {
        mix([a, b], weights, seed=seed, stop=stop).fingerprint
        for weights in ([1, 2], [2, 1])
        for seed in (0, 1)
        for stop in ("first", "all")
    }
    assert len(prints) == 8
    assert again.fingerprint == mixed.fingerprint


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataloader_with_workers_has_the_proportions(tmp_path: Path, method: str) -> None:
    a, b = numbers(400, 32, 0, tmp_path / "a"), numbers(200, 32, 1000, tmp_path / "b")
    mixed = mix([{"x": a}, {"x": b}], [3, 1], stop=400)
    loader = DataLoader(
        mixed, batch_size=20, num_workers=2, multiprocessing_context=method, timeout=60
    )
    found = []
    for batch in loader:
        assert isinstance(batch["x"], torch.Tensor)
        assert int((batch["x"] >= 1000).sum()) == 5
        found += batch["x"].tolist()
    assert found == mixed[:]["x"].tolist()
    with pytest.raises(InvalidSelection):
        mixed[400]
