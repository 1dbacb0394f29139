"""The order of an epoch: every row once, the same however it is asked for, as even as promised,
and with each block needed once, by one rank."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstash.loading.order import BlockShuffle, Exact, InOrder, Order, PieceOffsets, RoundRobin
from tensorstash.loading.permutation import permuted
from tensorstash.loading.ranks import RankBatches
from tensorstash.loading.source import Blocks


def blocks_of(sizes: Any) -> Blocks:
    return Blocks(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))


@st.composite
def any_blocks(draw: st.DrawFn) -> Blocks:
    """Chunks of one size and a shorter last one; or of any sizes, as a view has them; or those
    of rows in any order."""
    count = draw(st.integers(0, 60))
    if draw(st.booleans()):
        size = draw(st.integers(1, 40))
        sizes = [size] * count
        if count:
            sizes[-1] = draw(st.integers(1, size))
    else:
        sizes = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    found = blocks_of(sizes)
    if draw(st.booleans()):
        rows = int(found.bounds[-1])
        return Blocks(found.bounds, permuted(draw(st.integers(0, 9)), rows, np.arange(rows)))
    return found


@st.composite
def any_order(draw: st.DrawFn) -> Order:
    blocks, kind = draw(any_blocks()), draw(st.sampled_from(["in order", "exact", "pooled"]))
    seed, epoch = draw(st.integers(0, 2**64)), draw(st.integers(0, 100))
    if kind == "in order":
        return InOrder(blocks)
    if kind == "exact":
        return Exact(blocks, seed, epoch)
    return BlockShuffle(blocks, seed, epoch, draw(st.integers(1, 70)), draw(st.integers(1, 100)))


def every(order: Order) -> Any:
    return np.arange(order.count)


@settings(max_examples=300, deadline=None)
@given(any_order())
def test_every_row_once(order: Order) -> None:
    assert sorted(order.rows(every(order)).tolist()) == list(range(order.count))


@settings(max_examples=100, deadline=None)
@given(any_order(), st.data())
def test_any_cut_of_the_positions_gives_the_same(order: Order, data: st.DataObject) -> None:
    whole = order.rows(every(order))
    cuts = sorted(data.draw(st.lists(st.integers(0, order.count), max_size=8)))
    pieces = [
        order.rows(np.arange(start, stop))
        for start, stop in zip([0, *cuts], [*cuts, order.count], strict=True)
    ]
    assert np.array_equal(np.concatenate(pieces), whole)
    some = np.array(data.draw(st.lists(st.integers(0, max(0, order.count - 1)), max_size=8)), int)
    some = some[some < order.count]
    assert np.array_equal(order.rows(some), whole[some])


@settings(max_examples=200, deadline=None)
@given(any_order())
def test_places_are_where_rows_lie_and_blocks_end_when_they_say(order: Order) -> None:
    block, within = order.locate(every(order))
    rows = order.rows(every(order))
    for position in range(0, order.count, 7):
        at = int(block[position])
        assert order.blocks.rows(at)[within[position]] == rows[position]
    ends = order.last_use()
    last = np.full(len(order.blocks), -1)
    np.maximum.at(last, block, every(order))
    assert (last < ends).all()
    assert (ends <= order.count).all()


def test_seeds_and_epochs_give_other_orders() -> None:
    blocks = Blocks.regular(1000, 10)
    orders = [Exact(blocks, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders += [BlockShuffle(blocks, seed, epoch, 8, 32) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.rows(np.arange(50))) for order in orders}) == len(orders)


def test_the_same_for_ever() -> None:
    # Written down when this was made. If it fails, saved states would resume somewhere else.
    def told(order: Order) -> str:
        return hashlib.sha256(order.rows(every(order)).astype("<i8").tobytes()).hexdigest()[:16]

    ragged = blocks_of([3, 0, 50, 7, 7, 20, 1] * 9)
    assert told(Exact(Blocks.regular(1000, 64), 1, 2)) == "a0981f5e0834e8ff"
    assert told(BlockShuffle(Blocks.regular(1000, 64), 1, 2, 4, 8)) == "50a59ab8868bc3f0"
    assert told(BlockShuffle(Blocks.regular(64 * 64, 16), 1, 2, 64, 256)) == "646bd976e5a56c60"
    assert told(BlockShuffle(ragged, 1, 2, 16, 32)) == "c582ba9cdd0dd493"


def test_blocks_that_the_pool_holds_are_shuffled_whole() -> None:
    # Lanes begin groups at different times; one that is a single group has no time but the first.
    for size in (10_000, 1000, 100):
        order = BlockShuffle(Blocks.regular(10_000, size), 3, 0, 64, 10_000 // size)
        for start in range(0, 10_000, 1000):
            found = np.sort(order.rows(np.arange(start, start + 1000)))
            gaps = np.abs(found - np.linspace(0, 9999, 1000))
            assert gaps.max() < 600  # as even over all rows as a true shuffle is


# -- how even it is ----------------------------------------------------------------------------


def spread(order: Order, batch: int, trials: int = 60) -> float:
    """The spread of batch means over that of a true shuffle, where the rows of a block are all
    alike: measured, on values drawn for the blocks."""
    n, blocks = order.count, len(order.blocks)
    values = np.random.default_rng(0).standard_normal((trials, blocks))
    batches = n // batch

    def of(some: Order) -> float:
        block = some.locate(np.arange(batches * batch))[0]
        means = values[:, block].reshape(trials, batches, batch).mean(axis=2)
        return float(means.std(axis=1).mean())

    return of(order) / of(Exact(order.blocks, 1, 0))


@pytest.mark.parametrize(
    ("lanes", "pool", "batch"),
    [(64, 256, 128), (64, 256, 256), (64, 256, 512), (64, 64, 128), (16, 64, 64), (4, 4, 64)],
)
def test_batch_means_spread_no_more_than_predicted(lanes: int, pool: int, batch: int) -> None:
    order = BlockShuffle(Blocks.regular(1024 * 32, 32), 3, 0, lanes, pool)
    measured = spread(order, batch)
    assert measured < np.sqrt(1 + batch / pool) * 1.02
    # And no better than rows of so many blocks can be: the measure sees correlation at all.
    assert measured > 0.8 * np.sqrt(1 + (batch - lanes) / (1.4 * pool + lanes))


def test_a_batch_as_large_as_the_lanes_is_as_even_as_a_true_shuffle() -> None:
    order = BlockShuffle(Blocks.regular(1024 * 64, 64), 3, 0, 64, 256)
    block = order.locate(every(order))[0].reshape(-1, 64)
    assert all(len(set(row)) == 64 for row in block.tolist())
    assert spread(order, 64) < 1.02


@pytest.mark.parametrize("count", [65, 100, 200, 1000])
def test_the_last_batches_are_no_worse(count: int) -> None:
    # Lanes end at different times: without care the last batch had rows of one block.
    order = BlockShuffle(Blocks.regular(count * 64 - 30, 64), 3, 0, 64, 256)
    block = order.locate(every(order))[0]
    found = [len(set(block[at : at + 64].tolist())) for at in range(0, order.count - 64, 64)]
    assert min(found) > 30


def test_rows_of_a_block_are_spread_over_many_batches() -> None:
    order = BlockShuffle(Blocks.regular(1024 * 64, 64), 3, 0, 64, 256)
    block = order.locate(every(order))[0]
    batches = [len(set((np.flatnonzero(block == k) // 64).tolist())) for k in range(50)]
    assert np.mean(batches) > 40


@pytest.mark.parametrize(("lanes", "pool"), [(64, 256), (16, 64), (8, 8)])
def test_blocks_at_a_time_are_pool_and_lanes_and_begin_one_after_another(
    lanes: int, pool: int
) -> None:
    order = BlockShuffle(Blocks.regular(1024 * 64, 64), 5, 0, lanes, pool)
    block = order.locate(every(order))[0]
    first = np.full(len(order.blocks), order.count)
    np.minimum.at(first, block, every(order))
    change = np.zeros(order.count + 1, int)
    np.add.at(change, first, 1)
    np.add.at(change, order.last_use(), -1)
    assert np.cumsum(change).max() <= pool + lanes
    # A quarter of what a group of every lane would be at once, and less.
    begun = np.bincount(first // lanes)[8:]
    assert begun.max() <= max(8, pool // 4)


# -- what it is made of ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_turns_are_one_row_of_each_lane_that_has_some_left(lengths: list[int]) -> None:
    turns = RoundRobin(np.array(lengths))
    total = sum(lengths)
    lane, row = turns.find(np.arange(total))
    assert sorted(zip(lane.tolist(), row.tolist(), strict=True)) == [
        (k, i) for k, n in enumerate(lengths) for i in range(n)
    ]
    assert np.array_equal(row, np.sort(row))
    assert np.array_equal(turns.position(lane, row), np.arange(total))
    assert turns.shared == min(lengths)
    assert turns.uneven == max(lengths) - min(lengths)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 9), st.booleans())
def test_cuts_find_the_piece(sizes: list[int], size: int, regular: bool) -> None:
    if regular:
        sizes = [size] * len(sizes)
        sizes[len(sizes) // 2] = max(1, size // 2)
    bounds = blocks_of(sizes).bounds
    piece, within = PieceOffsets(bounds).find(np.arange(bounds[-1]))
    assert piece.tolist() == [k for k, n in enumerate(sizes) for _ in range(n)]
    assert within.tolist() == [i for n in sizes for i in range(n)]


# -- ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4, 8, 16])
def test_ranks_need_each_block_once_where_the_batch_is_a_multiple_of_the_lanes(world: int) -> None:
    order = BlockShuffle(Blocks.regular(1024 * 16, 16), 5, 0, 64, 256)
    shares = [RankBatches(128 // world, rank, world, False) for rank in range(world)]
    touched = [set(order.locate(share.positions(order, 0))[0].tolist()) for share in shares]
    assert sum(map(len, touched)) == len(order.blocks)


@pytest.mark.parametrize(("world", "batch", "most"), [(3, 64, 1.06), (5, 37, 1.45), (6, 50, 1.5)])
def test_other_batches_cost_some_blocks_twice(world: int, batch: int, most: float) -> None:
    order = BlockShuffle(Blocks.regular(1024 * 64, 64), 5, 0, 64, 256)
    shares = [RankBatches(batch, rank, world, False) for rank in range(world)]
    touched = [set(order.locate(share.positions(order, 0))[0].tolist()) for share in shares]
    assert 1.0 < sum(map(len, touched)) / len(order.blocks) < most
