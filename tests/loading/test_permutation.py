"""Keyed permutations: bijections of any size, the same for ever, and as even as true shuffles."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstash.loading.permutation import key_of, permute, permuted

SEEDS = st.integers(-(2**70), 2**70)


def test_every_size_up_to_600_is_a_bijection() -> None:
    for n in range(601):
        for seed in (0, 1, 2**63):
            assert sorted(permuted(seed, n, np.arange(n))) == list(range(n)), (n, seed)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200_000), seed=SEEDS)
def test_any_size_is_a_bijection(n: int, seed: int) -> None:
    assert np.array_equal(np.sort(permuted(seed, n, np.arange(n))), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 2**53), seed=SEEDS, at=st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_a_few_positions_of_a_huge_one_stay_inside_and_apart(
    n: int, seed: int, at: list[float]
) -> None:
    positions = np.unique([min(n - 1, int(share * n)) for share in at])
    found = permuted(seed, n, positions)
    assert found.min() >= 0
    assert found.max() < n
    assert len(np.unique(found)) == len(positions)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=80),
    seed=SEEDS,
    data=st.data(),
)
def test_a_vector_of_domains_and_keys_is_each_of_them_alone(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    positions = np.array([data.draw(st.integers(0, n - 1)) for n in sizes])
    keys = key_of(seed, np.arange(len(sizes)))
    together = permute(positions, np.array(sizes), keys)
    alone = [int(permute(positions[k : k + 1], n, keys[k : k + 1])[0]) for k, n in enumerate(sizes)]
    assert together.tolist() == alone


def test_shapes_are_kept() -> None:
    assert permuted(3, 50, 5).shape == ()
    assert permuted(3, 50, np.zeros((2, 0), int)).shape == (2, 0)
    square = permuted(3, 50, np.arange(4).reshape(2, 2))
    assert np.array_equal(square.ravel(), permuted(3, 50, np.arange(4)))


def test_the_same_for_ever() -> None:
    # Written down when this was made. If it fails, saved states would resume somewhere else.
    assert permuted(0, 10, np.arange(10)).tolist() == [6, 2, 4, 8, 3, 0, 7, 1, 5, 9]
    assert permuted(0, 100, np.arange(10)).tolist() == [0, 46, 41, 15, 5, 35, 14, 27, 23, 21]
    huge = [775131916700, 855143160385, 188669221884, 502789165183]
    assert permuted(1, 10**12, np.arange(4)).tolist() == huge
    assert key_of(5, 3, np.arange(2)).tolist() == [9417652298051462951, 18258611625783385631]
    all_of_it = b"".join(permuted(9, n, np.arange(n)).astype("<i8").tobytes() for n in range(300))
    assert hashlib.sha256(all_of_it).hexdigest()[:16] == "00e7bf56eb34267a"


def test_keys_differ_in_every_word() -> None:
    words = [(s, e, k) for s in range(8) for e in range(8) for k in range(8)]
    keys = {int(key_of(*w)[0]) for w in words} | {int(key_of(s)[0]) for s in range(8)}
    assert len(keys) == len(words) + 8
    assert key_of(-1)[0] == key_of(2**64 - 1)[0]


@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 17, 24, 33, 50])
def test_where_two_positions_go_is_uniform(n: int) -> None:
    # Over many keys every ordered pair of places is equally likely for any two positions:
    # what a shuffle's batches are made of.
    trials = 60_000
    keys = key_of(11, np.arange(trials))
    places = {at: permute(np.full(trials, at), n, keys) for at in sorted({0, 1, n // 2, n - 1})}
    apart = ~np.eye(n, dtype=bool).ravel()
    for a, b in itertools.combinations(places, 2):
        counts = np.bincount(places[a] * n + places[b], minlength=n * n)
        assert not counts[~apart].any()
        expected = trials / (n * (n - 1))
        chi2 = ((counts[apart] - expected) ** 2 / expected).sum()
        freedom = max(1, n * (n - 1) - 1)
        assert chi2 < freedom + 5 * np.sqrt(2 * freedom) + 20, (n, a, b)


def test_every_order_of_few_is_equally_likely() -> None:
    trials = 48_000
    keys = np.repeat(key_of(5, np.arange(trials)), 4)
    orders = permute(np.tile(np.arange(4), trials), 4, keys).reshape(trials, 4)
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - trials / 24) ** 2 / (trials / 24)).sum() < 60


def test_neighbours_are_not_kept_together() -> None:
    n = 100_000
    steps = np.abs(np.diff(permuted(1, n, np.arange(n))))
    # Of a true shuffle, two in n/2 are one apart, and the mean distance is n/3.
    assert (steps == 1).sum() < 12
    assert abs(steps.mean() / (n / 3) - 1) < 0.01
