"""The feed: every row once, each block read once, batches ahead, and no thread left behind."""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstash.errors import Invalid
from tensorstash.loading.loader import BatchLoader
from tensorstash.loading.permutation import permuted
from tensorstash.loading.pool import Pool
from tensorstash.loading.sampler import EpochSampler
from tensorstash.loading.source import Blocks
from tests.support.counted import Counted, check_batch
from tests.support.feeders import SHUFFLES, feeders, no_feeder, rows_of


@pytest.fixture(autouse=True)
def _ends() -> Any:
    yield
    no_feeder()


# -- every row, once ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_every_row_once_with_all_of_its_fields(shuffle: Any, threads: int, prefetch: int) -> None:
    source = Counted(1003, 16, plain=False)
    feed: BatchLoader[Any] = BatchLoader(
        source, 37, shuffle=shuffle, threads=threads, prefetch=prefetch
    )
    assert len(feed) == 28
    batches = list(feed)
    assert [len(batch["row"]) for batch in batches] == [37] * 27 + [4]
    assert list(batches[0]) == ["row", "image", "text", "tokens", "boxes", "json"]
    found = rows_of(batches)
    assert sorted(found) == list(range(1003))
    assert (found == sorted(found)) is (shuffle is False)
    assert all(batch["row"].flags.owndata for batch in batches)


@pytest.mark.filterwarnings("ignore:.*comes? twice")
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    scattered=st.booleans(),
    batch=st.integers(1, 70),
    shuffle=st.sampled_from(SHUFFLES),
    pool=st.integers(1, 40),
    lanes=st.integers(1, 40),
    budget=st.sampled_from([0, 3000, 1 << 20]),
    threads=st.integers(1, 3),
    prefetch=st.integers(0, 2),
    world=st.integers(1, 4),
    drop=st.booleans(),
)
def test_ranks_have_every_row_between_them(
    sizes: list[int],
    scattered: bool,
    batch: int,
    shuffle: Any,
    pool: int,
    lanes: int,
    budget: int,
    threads: int,
    prefetch: int,
    world: int,
    drop: bool,
) -> None:
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    count = int(bounds[-1])
    order = permuted(3, count, np.arange(count)) if scattered else None
    options: dict[str, Any] = {
        "shuffle": shuffle,
        "lanes": lanes,
        "pool": pool if budget else None,
        "pool_bytes": budget,
        "threads": threads,
        "prefetch": prefetch,
        "drop_last": drop,
    }
    every: list[list[int]] = []
    lengths = set()
    for rank in range(world):
        source = Counted(count, blocks=Blocks(bounds, order), plain=False)
        feed: BatchLoader[Any] = BatchLoader(source, batch, rank=rank, world_size=world, **options)
        batches = list(feed)
        assert len(batches) == len(feed)
        lengths.add(tuple(len(b["row"]) for b in batches))
        every.append(rows_of(batches))
    assert len(lengths) == 1
    found = sorted(row for rows in every for row in rows)
    assert len(found) == count - feed.dropped + feed.padded
    assert len(set(found)) == count - feed.dropped
    if not drop:
        assert set(found) == set(range(count))


def test_no_rows_no_batches() -> None:
    for shuffle in SHUFFLES:
        feed: BatchLoader[Any] = BatchLoader(Counted(0), 4, shuffle=shuffle)
        assert len(feed) == 0
        assert list(feed) == []
        assert list(feed) == []
        assert feed.quality()["read_amplification"] == 1.0


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(**options: Any) -> list[int]:
        return rows_of(BatchLoader(Counted(500), 25, shuffle=True, lanes=8, pool=16, **options))

    assert order() == order(threads=3, prefetch=9) == order(threads=1, prefetch=0)
    assert order() != order(seed=1)
    feed: BatchLoader[Any] = BatchLoader(Counted(500), 25, shuffle=True, lanes=8, pool=16)
    first, second = rows_of(feed), rows_of(feed)
    assert first == order()
    assert second != first
    feed.set_epoch(0)
    assert rows_of(feed) == first
    assert rows_of(feed) == second
    feed.set_epoch(1)
    assert rows_of(feed) == second


# -- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_block_is_read_once_an_epoch(shuffle: bool, threads: int) -> None:
    source = Counted(64 * 40, 64)
    feed: BatchLoader[Any] = BatchLoader(
        source, 40, shuffle=shuffle, lanes=8, pool=16, threads=threads
    )
    for epoch in (1, 2):
        assert len(rows_of(feed)) == 64 * 40
        assert set(source.taken.values()) == {epoch}
        assert feed.quality()["blocks_read"] == 40


def test_ranks_read_each_block_once_between_them() -> None:
    world = 4
    sources = [Counted(64 * 64, 16) for _ in range(world)]
    found = []
    for rank, source in enumerate(sources):
        feed: BatchLoader[Any] = BatchLoader(
            source, 8, shuffle=True, lanes=16, pool=64, rank=rank, world_size=world
        )
        found += rows_of(feed)
        assert feed.quality()["read_amplification"] == 1.0
    assert sorted(found) == list(range(64 * 64))
    assert sum(sum(source.taken.values()) for source in sources) == 256


def test_a_true_shuffle_reads_the_distinct_blocks_of_each_batch() -> None:
    source = Counted(640, 16)
    feed: BatchLoader[Any] = BatchLoader(source, 32, shuffle="exact", pool_bytes=100)
    batches = list(feed)
    assert source.calls == len(batches) == 20
    distinct = [len({row // 16 for row in batch["row"].tolist()}) for batch in batches]
    assert sum(source.taken.values()) == sum(distinct)
    assert feed.quality()["read_amplification"] == pytest.approx(sum(distinct) / 40, rel=0.01)


def test_a_true_shuffle_of_what_fits_into_memory_reads_each_block_once() -> None:
    source = Counted(640, 16)
    assert sorted(rows_of(BatchLoader(source, 32, shuffle="exact"))) == list(range(640))
    assert set(source.taken.values()) == {1}


def test_blocks_of_very_different_sizes() -> None:
    sizes = [2000, *[1] * 200, 500, *[3] * 100]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    source = Counted(int(bounds[-1]), blocks=Blocks(bounds), plain=False)
    feed: BatchLoader[Any] = BatchLoader(source, 20, shuffle=True)
    assert sorted(rows_of(feed)) == list(range(source.rows))
    assert set(source.taken.values()) == {1}
    assert not feed._buffers._kept[0][1]


def test_small_blocks_are_read_together() -> None:
    source = Counted(2000, 1)
    assert sorted(rows_of(BatchLoader(source, 50, shuffle=True))) == list(range(2000))
    assert set(source.taken.values()) == {1}
    assert source.calls < 80


def test_rows_of_a_view_are_read_by_the_blocks_they_lie_in() -> None:
    order = np.concatenate([np.arange(5, 600, 7), np.arange(3, 600, 7)])
    order = order.argsort(kind="stable")
    source = Counted(len(order), blocks=Blocks(np.array([0, 50, 60, 61, 120, len(order)]), order))
    assert sorted(rows_of(BatchLoader(source, 10, shuffle=True, lanes=2, pool=4))) == list(
        range(len(order))
    )
    assert set(source.taken.values()) == {1}


def test_blocks_in_memory_are_no_more_than_the_pool_and_those_on_their_way() -> None:
    source = Counted(64 * 200, 64)
    peak = 0
    take = Pool.take

    def watched(pool: Pool, *args: Any) -> Any:
        nonlocal peak
        found = take(pool, *args)
        peak = max(peak, len(pool._held) + len(pool._bunches))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "take", watched)
        patch.setattr("tensorstash.loading.pool._BUNCH", 0)
        rows_of(BatchLoader(source, 16, shuffle=True, lanes=8, pool=32, threads=2))
    assert 20 < peak <= 32 + 8 + 2 * 2 + 2
    # By default the pool is what fits into pool_bytes with all that is beside it.
    for threads in (1, 2, 9):  # of which no order may depend
        feed: BatchLoader[Any] = BatchLoader(
            source, 16, shuffle=True, lanes=8, pool_bytes=40 * 64 * 20, threads=threads
        )
        quality = feed.quality()
        assert quality["cut_by_budget"]
        assert (quality["pool"], quality["lanes"], quality["pool_wanted"]) == (26, 8, 64)


def test_more_blocks_than_there_was_room_made_for() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochSampler, "_slots", lambda *args: 1)
        source = Counted(3000, 7, plain=False)
        found = rows_of(BatchLoader(source, 16, shuffle=True, lanes=16, pool=64, threads=3))
    assert sorted(found) == list(range(3000))


def test_threads_read_at_once_and_no_more_than_said() -> None:
    for threads in (1, 2):
        source = Counted(16 * 40, 16, delay=0.003)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tensorstash.loading.pool._BUNCH", 0)
            rows_of(BatchLoader(source, 16, shuffle=True, lanes=8, pool=8, threads=threads))
        assert source.most <= threads
        if threads == 1:
            assert source.threads <= {"tensorstash-feed", "MainThread"}


def test_far_sources_are_read_by_more_threads() -> None:
    source = Counted(16 * 60, 16, delay=0.02)
    source.remote = True  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorstash.loading.pool._BUNCH", 0)
        assert sorted(rows_of(BatchLoader(source, 16, shuffle=True))) == list(range(960))
    assert 6 <= source.most <= 17


# -- ahead, and no further ---------------------------------------------------------------------


def test_at_most_so_many_batches_are_made_ahead() -> None:
    made = []

    def finish(columns: Any) -> Any:
        made.append(len(made))
        return columns

    feed: BatchLoader[Any] = BatchLoader(Counted(1000), 10, shuffle=True, prefetch=3, finish=finish)
    batches = iter(feed)
    for taken in range(1, 6):
        next(batches)
        while len(made) < taken + 3:  # the test's own time limit is the guard
            time.sleep(0.001)
        time.sleep(0.05)  # too short only makes the test weaker
        assert len(made) == taken + 3
    batches.close()


def test_without_prefetch_there_is_no_thread_and_nothing_is_ahead() -> None:
    made = []

    def finish(columns: Any) -> Any:
        made.append(threading.current_thread())
        return columns

    source = Counted(1000)
    feed: BatchLoader[Any] = BatchLoader(source, 10, shuffle=True, prefetch=0, finish=finish)
    batches = iter(feed)
    next(batches)
    next(batches)
    assert made == [threading.main_thread()] * 2
    assert source.threads == {threading.main_thread().name}
    assert not feeders()


@pytest.mark.parametrize(("producing", "consuming"), [(0.002, 0), (0, 0.002), (0, 0)])
def test_a_slow_side_waits_for_the_other(producing: float, consuming: float) -> None:
    source = Counted(400, 16, delay=producing)
    found = []
    for batch in BatchLoader(source, 10, shuffle=True, prefetch=2):
        found += check_batch(batch)
        time.sleep(consuming)
    assert sorted(found) == list(range(400))


# -- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is a whole number from 1 on, not 0"),
        ({"batch_size": 2.5}, "batch_size is a whole number from 1 on, not 2.5"),
        ({"batch_size": True}, "batch_size is a whole number from 1 on, not True"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2: ranks are counted from 0"),
        ({"rank": -1}, "rank is a whole number from 0 on, not -1"),
        ({"world_size": 0}, "world_size is a whole number from 1 on"),
        ({"shuffle": "perhaps"}, "shuffle is False, True or 'exact', not 'perhaps'"),
        ({"shuffle": 1}, "shuffle is False, True or 'exact', not 1"),
        ({"lanes": 0}, "lanes is a whole number from 1 on"),
        ({"pool": 0}, "pool is a whole number from 1 on"),
        ({"pool_bytes": "lots"}, "'lots' is not a size in bytes"),
        ({"threads": 0}, "threads is a whole number from 1 on"),
        ({"prefetch": -1}, "prefetch is a whole number from 0 on"),
        ({"seed": "x"}, "seed is a whole number, not 'x'"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid) as caught:
        BatchLoader(Counted(10), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padding_is_said_once() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(10), 2, rank=1, world_size=4)
    assert (feed.padded, feed.dropped) == (2, 0)
    with pytest.warns(UserWarning, match="2 of 10 rows come twice .* drop_last=True drops 2"):
        list(feed)
    list(feed)
    assert BatchLoader(Counted(10), 2, world_size=4, drop_last=True).dropped == 2


# -- memory ------------------------------------------------------------------------------------


def test_memory_for_blocks_is_kept_from_epoch_to_epoch_and_out_of_pickles() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(64 * 500, 64), 64, shuffle=True, lanes=8, pool=64)
    places = set()
    for _ in range(3):
        assert sorted(rows_of(feed)) == list(range(64 * 500))
        ((_, arrays),) = feed._buffers._kept
        places.add(arrays["image"].ctypes.data)
    assert len(places) == 1
    assert arrays["image"].nbytes > 50_000
    assert pickle.loads(pickle.dumps(feed._buffers))._kept == []


@pytest.mark.parametrize(("budget", "most"), [(8 * 3 * 64 * 20, 3), (0, 1)])
def test_large_blocks_are_not_read_far_ahead(budget: int, most: int) -> None:
    far = 0
    take = Pool.take

    def watched(pool: Pool, *args: Any) -> Any:
        nonlocal far
        found = take(pool, *args)
        far = max(far, len(pool._bunches))
        return found

    options: dict[str, Any] = {"lanes": 8, "pool": 16, "pool_bytes": budget, "threads": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "take", watched)
        patch.setattr("tensorstash.loading.pool._BUNCH", 0)
        rows_of(BatchLoader(Counted(64 * 60, 64), 16, shuffle=True, **options))
    assert far == most


def test_in_order_what_is_not_decoded_is_read_as_it_is_wanted() -> None:
    source = Counted(640, 64)
    source.raw = True  # type: ignore[attr-defined]
    assert rows_of(BatchLoader(source, 10)) == list(range(640))
    assert source.calls == 64
