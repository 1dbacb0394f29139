"""Resuming: with any number of ranks, batch size and threads exactly the rows that are left."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstash.errors import Invalid
from tensorstash.loading.loader import BatchLoader
from tensorstash.loading.permutation import permuted
from tensorstash.loading.sampler import State
from tensorstash.loading.source import Blocks, wrapped
from tests.support.counted import Counted, check_batch

SHUFFLES: tuple[Any, ...] = (False, True, "exact")
ROWS = 4096 - 17


def feeds(world: int, batch: int, state: Any = None, **options: Any) -> list[BatchLoader[Any]]:
    """A loader of each rank, all at ``state``."""
    made = [
        BatchLoader(
            Counted(ROWS, 16), batch, rank=rank, world_size=world, drop_last=True, **options
        )
        for rank in range(world)
    ]
    for feed in made:
        if state is not None:
            feed.load_state_dict(state)
    return made


def rows_of(batches: Any) -> list[int]:
    return [row for batch in batches for row in check_batch(batch)]


def some(ranks: list[BatchLoader[Any]], until: float) -> tuple[list[int], dict[str, Any]]:
    """What ranks yield until about that part of the epoch is done, in step, and the state then."""
    batches = [iter(feed) for feed in ranks]
    found: list[int] = []
    while ranks[0].state_dict()["position"] < until * ROWS:
        for rank in batches:
            found += check_batch(next(rank))
    for rank in batches:
        rank.close()
    states = [feed.state_dict() for feed in ranks]
    assert all(state == states[0] for state in states)  # a state is that of all ranks
    return found, json.loads(json.dumps(states[0]))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_world_1_to_2_to_4_to_3_with_other_threads(shuffle: Any) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 7, "pool": 48, "lanes": 16}
    found: list[int] = []
    state = None
    for world, batch, threads, prefetch, until in (
        (1, 64, 2, 4, 0.37),
        (2, 24, 1, 1, 0.5),
        (4, 16, 3, 2, 0.8),
        (3, 10, 2, 0, 0.9),
    ):
        ranks = feeds(world, batch, state, threads=threads, prefetch=prefetch, **options)
        more, state = some(ranks, until)
        found += more
        assert len(json.dumps(state)) < 200
        assert state["position"] == len(found)
        assert len(set(found)) == len(found)
    # One rank has what is left, however few rows a last batch has.
    last: BatchLoader[Any] = BatchLoader(Counted(ROWS, 16), 50, **options)
    last.load_state_dict(state or {})
    rest = rows_of(last)
    assert sorted(found + rest) == list(range(ROWS))


def test_a_state_is_small_however_large_the_numbers() -> None:
    state = State("pooled", 2**63, 10**6, 10**12, 10**12, f"{'f' * 16}-{'f' * 8}", 65536, 10**7)
    assert len(json.dumps(state.to_dict())) < 200
    assert len(json.dumps(replace(state, extent=10**12).to_dict())) < 250
    assert len(json.dumps(BatchLoader(Counted(10_000), shuffle=True).state_dict())) < 150


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_same_loader_goes_on_with_the_same_batches(shuffle: Any) -> None:
    whole = [check_batch(batch) for batch in BatchLoader(Counted(ROWS, 16), 64, shuffle=shuffle)]
    first: BatchLoader[Any] = BatchLoader(Counted(ROWS, 16), 64, shuffle=shuffle)
    batches = iter(first)
    for _ in range(11):
        next(batches)
    state = first.state_dict()
    batches.close()
    again: BatchLoader[Any] = BatchLoader(Counted(ROWS, 16), 64, shuffle=shuffle)
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert [check_batch(batch) for batch in again] == whole[11:]
    # Then the next epoch, in both.
    assert rows_of(again) == rows_of(first)


@pytest.mark.filterwarnings("ignore:.*comes? twice")
@settings(max_examples=60, deadline=None)
@given(
    shuffle=st.sampled_from(SHUFFLES),
    steps=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 60), st.integers(0, 9)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 2**32),
    pool=st.one_of(st.none(), st.integers(1, 90)),
)
def test_any_row_of_ranks_and_batches(
    shuffle: Any, steps: list[tuple[int, int, int]], seed: int, pool: int | None
) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "prefetch": 0}
    rows, state = 700, None
    found: list[int] = []
    for world, batch, count in steps:
        ranks: list[BatchLoader[Any]] = [
            BatchLoader(Counted(rows, 9), batch, rank=r, world_size=world, pool=pool, **options)
            for r in range(world)
        ]
        batches = []
        for feed in ranks:
            if state is not None:
                feed.load_state_dict(state)
                feed.set_epoch(0)  # nothing may be left of it
            batches.append(iter(feed))
        left = rows - len(found)
        for _ in range(min(count, left // (world * batch))):
            for rank in batches:
                found += check_batch(next(rank))
        state = ranks[0].state_dict()
        assert all(feed.state_dict() == state for feed in ranks)
    last: BatchLoader[Any] = BatchLoader(Counted(rows, 9), 64, pool=pool, **options)
    last.load_state_dict(state or {})
    last.set_epoch(0)
    assert sorted(found + rows_of(last)) == list(range(rows))


@pytest.mark.filterwarnings("ignore:.*comes? twice")
@settings(max_examples=120, deadline=None)
@given(
    shuffle=st.sampled_from(SHUFFLES),
    rows=st.integers(0, 400),
    steps=st.lists(
        st.tuples(st.integers(1, 7), st.integers(1, 40), st.integers(0, 6), st.booleans()),
        min_size=1,
        max_size=5,
    ),
)
def test_a_chain_of_resumes_repeats_and_leaves_out_what_it_says(
    shuffle: Any, rows: int, steps: list[tuple[int, int, int, bool]]
) -> None:
    """The last of ``steps`` goes to the epoch's end, the others stop after so many batches."""
    state, given = None, 0
    found: list[int] = []
    for k, (world, batch, stop, drop) in enumerate(steps):
        left = rows - given
        over = k == len(steps) - 1
        before = len(found)
        twice, out, length = expected(left, world * batch, world, drop)
        counts: set[tuple[int, ...]] = set()
        for rank in range(world):
            feed: BatchLoader[Any] = BatchLoader(
                Counted(rows, 9),
                batch,
                rank=rank,
                world_size=world,
                drop_last=drop,
                shuffle=shuffle,
                prefetch=0,
            )
            if state is not None:
                feed.load_state_dict(state)
                feed.set_epoch(0)
            assert (feed.padded, feed.dropped, len(feed)) == (twice, out, length)
            batches = iter(feed)
            assert (feed.padded, feed.dropped, len(feed)) == (twice, out, length)
            full = left // (world * batch)
            some = list(batches) if over else [next(batches) for _ in range(min(stop, full))]
            found += rows_of(some)
            counts.add(tuple(len(check_batch(one)) for one in some))
            assert (feed.padded, feed.dropped) == (twice, out)
            if over:
                assert len(some) == length
                assert len(feed) == expected(rows, world * batch, world, drop)[2]
        assert len(counts) == 1  # ranks have equal work
        if not over:
            given += len(found) - before
            state = feed.state_dict()
            assert state["position"] == given
    every = np.bincount(found, minlength=rows)
    assert len(found) == rows + twice - out
    assert (every == 0).sum() == out
    if rows >= world:  # else a row may have to come more than twice
        assert every.max(initial=0) <= 2
        assert (every == 2).sum() == twice


def expected(left: int, whole: int, world: int, drop: bool) -> tuple[int, int, int]:
    """Rows twice, rows left out and batches a rank, of so many rows that are left."""
    rest = left % whole
    if drop:
        return 0, rest, left // whole
    return -rest % world, 0, -(-left // whole)


@pytest.mark.filterwarnings("ignore:.*comes? twice")
def test_the_numbers_are_those_of_what_is_still_to_come() -> None:
    first: BatchLoader[Any] = BatchLoader(Counted(1000, 16), 15, shuffle=True, rank=0, world_size=3)
    batches = iter(first)
    for _ in range(8):
        next(batches)
    state = first.state_dict()
    again: BatchLoader[Any] = BatchLoader(Counted(1000, 16), 5, shuffle=True, rank=2, world_size=7)
    assert (again.padded, again.dropped, len(again)) == (1, 0, 29)
    again.load_state_dict(state)
    assert (again.padded, again.dropped, len(again)) == (4, 0, 19)
    for k, _ in enumerate(again):
        assert len(again) == 19
        if k == 5:
            break
    assert len(again) == 29  # one that was broken off is over, and a whole one is next
    again.load_state_dict(state)
    again.set_epoch(4)  # another, from its beginning
    assert (again.padded, len(again)) == (1, 29)
    again.load_state_dict(state)
    assert len(list(again)) == 19
    assert again.padded == 4  # of that which was
    assert len(again) == len(list(again)) == 29
    assert again.padded == 1


def test_a_warning_tells_of_the_rest_that_is_begun() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(100, 8), 5, rank=0, world_size=3)
    feed.load_state_dict({**feed.state_dict(), "position": 60})
    with pytest.warns(UserWarning, match="2 of 40 rows come twice in the rest of the epoch"):
        list(feed)
    with pytest.warns(UserWarning, match="2 of 100 rows come twice in an epoch, .* drops 10 inst"):
        again: BatchLoader[Any] = BatchLoader(Counted(100, 8), 5, rank=0, world_size=3)
        list(again)


def test_what_was_read_ahead_is_not_counted() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(ROWS, 16), 10, shuffle=True, prefetch=50)
    batches = iter(feed)
    assert feed.state_dict()["position"] == 0
    taken = [check_batch(next(batches)) for _ in range(3)]
    assert feed.state_dict()["position"] == 30
    batches.close()
    again: BatchLoader[Any] = BatchLoader(Counted(ROWS, 16), 10, shuffle=True)
    again.load_state_dict(feed.state_dict())
    assert sorted([*chain(*taken), *rows_of(again)]) == list(range(ROWS))


# -- from epoch to epoch -----------------------------------------------------------------------


def made() -> BatchLoader[Any]:
    return BatchLoader(Counted(200, 8), 20, shuffle=True, lanes=4, pool=8)


def orders(count: int) -> list[list[int]]:
    feed = made()
    return [rows_of(feed) for _ in range(count)]


def test_loops_are_epochs_and_one_that_is_broken_off_is_over() -> None:
    first, second, third = orders(3)
    feed = made()
    assert feed.epoch == 0
    for batch in feed:
        assert check_batch(batch) == first[:20]
        break
    assert feed.epoch == 0
    assert rows_of(feed) == second
    assert feed.epoch == 1
    assert check_batch(next(iter(feed))) == third[:20]


def test_set_epoch_as_for_a_distributed_sampler() -> None:
    every = orders(4)
    feed = made()
    for epoch in (0, 3, 1, 1):
        feed.set_epoch(epoch)
        assert feed.epoch == epoch
        assert feed.state_dict()["epoch"] == epoch
        assert rows_of(feed) == every[epoch]
    with pytest.raises(Invalid, match="an epoch is a whole number from 0 on, not -1"):
        feed.set_epoch(-1)


def test_a_loop_that_names_its_epochs_resumes_the_one_that_was_saved() -> None:
    every = orders(4)
    feed = made()
    feed.set_epoch(2)
    batches = iter(feed)
    for _ in range(3):
        next(batches)
    state = feed.state_dict()
    batches.close()
    again = made()
    again.load_state_dict(state)
    found = []
    for epoch in range(state["epoch"], 4):
        again.set_epoch(epoch)
        found.append(rows_of(again))
    assert found == [every[2][60:], every[3]]
    # Another epoch is named: that one, from its beginning.
    again.load_state_dict(state)
    again.set_epoch(1)
    assert rows_of(again) == every[1]
    again.load_state_dict(state)
    assert rows_of(again) == every[2][60:]


def test_a_state_of_an_epochs_end() -> None:
    every = orders(3)
    feed = made()
    assert rows_of(feed) == every[0]
    state = feed.state_dict()
    assert (state["epoch"], state["position"]) == (0, 200)
    again = made()
    again.load_state_dict(state)
    assert rows_of(again) == every[1]
    # A loop that names the finished epoch finds nothing left of it.
    again.load_state_dict(state)
    again.set_epoch(0)
    assert rows_of(again) == []
    assert rows_of(again) == every[1]


def test_what_was_dropped_at_an_epochs_end_is_not_left_for_later() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(105, 8), 20, drop_last=True)
    assert len(rows_of(feed)) == 100
    assert feed.state_dict()["position"] == 105
    again: BatchLoader[Any] = BatchLoader(Counted(105, 8), 5)
    again.load_state_dict(feed.state_dict())
    again.set_epoch(0)
    assert rows_of(again) == []


def test_the_seed_and_for_its_epoch_the_pool_are_those_of_the_state() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(800, 8), 20, shuffle=True, seed=5, lanes=4, pool=8)
    batches = iter(feed)
    next(batches)
    state = feed.state_dict()
    rest = rows_of(batches)
    again: BatchLoader[Any] = BatchLoader(
        Counted(800, 8), 20, shuffle=True, seed=6, lanes=8, pool=32
    )
    again.load_state_dict(state)
    assert rows_of(again) == rest
    then = again.state_dict()
    assert (then["seed"], then["lanes"], then["pool"]) == (5, 4, 8)
    rows_of(again)
    then = again.state_dict()
    assert (then["seed"], then["lanes"], then["pool"]) == (5, 8, 32)


# -- what is refused ---------------------------------------------------------------------------


def test_a_state_of_other_data_is_refused() -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(640, 16), 10, shuffle=True)
    state = feed.state_dict()
    other = Counted(640, 16)
    other.fingerprint = "other"
    scattered = Blocks(other.blocks.bounds, permuted(1, 640, np.arange(640)))
    for source, message in (
        (other, "the state is of other data"),
        (Counted(641, 16), "the state is of 640 rows, and there are 641"),
        (Counted(640, 8), "the state is of other data"),
        (Counted(640, blocks=scattered), "the state is of other data"),
    ):
        with pytest.raises(Invalid) as caught:
            BatchLoader(source, 10, shuffle=True).load_state_dict(state)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(Invalid, match="of order 'pooled', not 'exact'"):
        BatchLoader(Counted(640, 16), 10, shuffle="exact").load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 1}, "a state has no 'speed'"),
        ({"seed": None}, "the state lacks 'seed'"),
        ({"position": -1}, "'position' of a state cannot be -1"),
        ({"position": 6401}, "the state is at row 6401 of 6400"),
        ({"rule": None}, "the state is of rule 1 for the order of an epoch, and this release has"),
        ({"rule": 3}, "the state is of rule 3 for the order"),
        ({"epoch": "1"}, "'epoch' of a state is int, not '1'"),
        ({"epoch": True}, "'epoch' of a state is int, not True"),
        ({"data": 3}, "'data' of a state is str, not 3"),
        ({"pool": None}, "the state is of 64 lanes and a pool of 0 blocks"),
        ({"lanes": 1 << 17}, "the state is of 131072 lanes"),
    ],
)
def test_a_state_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    feed: BatchLoader[Any] = BatchLoader(Counted(6400), 10, shuffle=True, pool=64)
    state = {k: v for k, v in {**feed.state_dict(), **change}.items() if v is not None}
    with pytest.raises(Invalid) as caught:
        feed.load_state_dict(state)
    assert message in str(caught.value)
    with pytest.raises(Invalid, match="a state is a dict from"):
        feed.load_state_dict([1])  # type: ignore[arg-type]


def test_rows_that_came_meanwhile_are_refused_when_the_epoch_begins() -> None:
    source = Counted(640)
    feed: BatchLoader[Any] = BatchLoader(source, 10, shuffle=True)
    feed.load_state_dict(feed.state_dict())
    feed.sampler.source = wrapped(Counted(700))
    with pytest.raises(Invalid, match="the state is of 640 rows, and there are 700"):
        iter(feed)
