"""Windows, patches and mixtures under a loader's orders: every row once, chunks seldom, resumed."""

from __future__ import annotations

import inspect
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Invalid
from tensorstash.loading.loader import BatchLoader
from tensorstash.loading.sampler import EpochOptions, EpochSampler
from tensorstash.loading.source import Blocks
from tensorstash.sources.arrays import as_source
from tensorstash.torch import (
    ArrayDataset,
    Loader,
    Patches,
    ShuffleBatchSampler,
    ShuffleSampler,
    Windows,
    mix,
)

OPTIONS = EpochOptions.__annotations__
ORDERS: list[Any] = [False, True, "exact"]
ROWS, CHUNK = 3200, 100


def series(rows: int = ROWS, first: int = 1) -> stash.Array:
    """The numbers from ``first`` on."""
    array = stash.create({}, (rows,), "i8", chunks=(CHUNK,))
    array[...] = np.arange(first, first + rows)
    return array


def loaded(source: Any, shuffle: Any, **how: Any) -> list[np.ndarray]:
    return [np.asarray(batch) for batch in BatchLoader(source, 16, shuffle=shuffle, seed=3, **how)]


@pytest.mark.parametrize("shuffle", ORDERS)
@pytest.mark.parametrize(
    ("length", "stride", "ends"),
    [(20, 20, None), (30, 7, None), (30, 1, None), (30, 7, [250, 255, 2000]), (250, 100, None)],
)
def test_every_window_once(length: int, stride: int, ends: Any, shuffle: Any) -> None:
    array = series()
    windows = Windows(array, length, stride, boundaries=ends)
    batches = loaded(windows, shuffle)
    found = np.concatenate(batches)
    assert (np.diff(found, axis=1) == 1).all()
    order = np.sort(found[:, 0] - 1) if shuffle else found[:, 0] - 1
    assert order.tolist() == windows.starts().tolist()
    assert all(batch.flags.writeable for batch in batches)
    chunks = ROWS // CHUNK
    if not shuffle:
        assert array.stats.chunks <= chunks + len(ends or [])
    elif shuffle is True and ends is None:
        after = 0 if stride == 20 else -(-(length - 1) // CHUNK)
        blocks = len(windows.blocks)
        assert array.stats.chunks <= chunks + after * blocks <= 1.5 * chunks


def test_overlapping_windows_in_a_pool_take_the_memory_of_their_rows() -> None:
    windows = Windows(series(), 300)
    feed = BatchLoader(windows, 16, shuffle=True, pool_bytes=128 << 10)
    quality = feed.quality()
    assert quality["pool"] == len(windows.blocks)  # 7 MB, each by itself
    assert not quality["cut_by_budget"]
    assert next(iter(feed)).shape == (16, 300)


@pytest.mark.parametrize("shuffle", ORDERS)
@pytest.mark.parametrize("how", [{}, {"stride": 5}, {"pad": 0}, {"count": 200}], ids=str)
def test_every_patch_once(how: Any, shuffle: Any) -> None:
    values = 1 + np.arange(64 * 60).reshape(64, 60)
    array = stash.create({}, values.shape, "i8", chunks=(16, 16))
    array[...] = values
    patches = Patches(array, (8, 8), **how)
    found = np.concatenate(loaded(patches, shuffle))
    corners = np.stack(np.divmod(found[:, 0, 0] - 1, 60), axis=1)
    wanted = patches.corners()
    if not shuffle:
        assert np.array_equal(corners, wanted)
    assert Counter(map(tuple, corners.tolist())) == Counter(map(tuple, wanted.tolist()))
    for patch, (y, x) in zip(found, corners, strict=True):
        piece = values[y : y + 8, x : x + 8]
        assert np.array_equal(patch[: piece.shape[0], : piece.shape[1]], piece)
    if shuffle is True and not how:
        assert array.stats.chunks == 16


def test_random_patches_are_others_in_each_epoch_of_a_loader() -> None:
    array = series()
    feed = BatchLoader(Patches(array, 5, count=64, seed=1), 16, shuffle=True)
    epochs = [np.sort(np.concatenate([np.asarray(b) for b in feed])[:, 0]) for _ in range(2)]
    assert not np.array_equal(*epochs)
    for k, found in enumerate(epochs):
        wanted = Patches(array, 5, count=64, seed=1).at_epoch(k).corners()[:, 0]
        assert np.array_equal(found - 1, np.sort(wanted))


@pytest.mark.parametrize("shuffle", ORDERS)
def test_mixtures_keep_their_shares_in_every_batch(shuffle: Any) -> None:
    sources = {"a": series(2000), "b": series(900, 10_001), "c": series(300, 20_001)}
    mixed = mix(sources, [5, 2, 1], origin="from")
    feed = BatchLoader(mixed, 16, shuffle=shuffle, seed=2)
    batches = list(feed)
    for batch in batches[:-1]:
        counts = np.bincount(batch["from"], minlength=3)
        assert (abs(counts - [10, 4, 2]) <= 1).all()
    found = Counter(np.concatenate([batch["array"] for batch in batches]).tolist())
    assert set(found.values()) == {1}
    assert len(found) == len(mixed)
    # The next epoch goes on where this one ended, for the sources that were not used up.
    second = np.concatenate([batch["array"] for batch in feed])
    fresh = [i for i in range(1, 2001) if i not in found]
    assert set(fresh) <= set(second.tolist())


@pytest.mark.parametrize("shuffle", ORDERS)
def test_mixtures_resume_anywhere_under_another_batch_size(shuffle: Any) -> None:
    def make(batch: int) -> Any:
        mixed = mix([series(700), series(300, 10_001)], [1, 1], stop="all", seed=5)
        return BatchLoader(mixed, batch, shuffle=shuffle, seed=9)

    whole = np.concatenate(list(make(16)))
    for epoch, stop in ((0, 11), (0, 40)):
        first = make(16)
        iterator = iter(first)
        head = [next(iterator) for _ in range(stop)]
        state = first.state_dict()
        iterator.close()
        rest = make(25)
        rest.load_state_dict(state)
        assert rest.epoch == epoch
        assert np.array_equal(np.concatenate([*head, *rest]), whole)


@pytest.mark.parametrize("make", [lambda a: a, lambda a: Windows(a, 4), lambda a: Patches(a, 4)])
def test_reading_leaves_the_users_handle_as_it_is(make: Any) -> None:
    array = stash.open(series().driver, threads=2)
    settings, spec = array.settings, array.spec
    source = as_source(make(array))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorstash.sources.reader.in_worker", lambda: True)
        assert len(np.concatenate([*source.take(np.arange(6)).values()])) == 6
    assert array.settings is settings and array.spec is spec
    assert array.settings.threads == 2


def test_a_dataset_leaves_the_users_handle_as_it_is() -> None:
    array = stash.open(series().driver, threads=2)
    settings = array.settings
    dataset = ArrayDataset(array, array.lazy[:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tensorstash.torch.dataset.in_worker", lambda: True)
        assert [int(x) for pair in dataset.__getitems__([3, 1]) for x in pair] == [4, 4, 2, 2]
    assert array.settings is settings and dataset.arrays[0] is array


def test_a_view_of_a_field_has_that_field_alone() -> None:
    dtype = np.dtype([("x", "i4"), ("y", "f4")])
    array = stash.create({}, (40,), dtype, chunks=(8,))
    array["x"] = np.arange(40)
    for source in (array.lazy["x"], array.lazy[["x", "y"]]):
        batches = list(Loader(source, 7, shuffle=True))
        parts = [batch["x"] if isinstance(batch, dict) else batch for batch in batches]
        assert sorted(np.concatenate(parts).tolist()) == [*range(40)]
        assert isinstance(batches[0], dict) == (source.dtype.names is not None)
    assert Windows(array.lazy["x"][4:], 3)[2].tolist() == [6, 7, 8]
    assert pickle.loads(pickle.dumps(Windows(array.lazy["x"], 3)))[0].tolist() == [0, 1, 2]


def test_loaders_and_samplers_show_the_same_options() -> None:
    known = inspect.signature(EpochSampler.__init__).parameters
    assert [*known] == ["self", "source", "batch_size", *EpochOptions.__annotations__]
    assert all(known[name].annotation == kind.__forward_arg__ for name, kind in OPTIONS.items())
    for made in (BatchLoader, Loader, ShuffleBatchSampler, ShuffleSampler):
        found = inspect.signature(made).parameters
        assert not [p for p in found.values() if p.kind is p.VAR_KEYWORD]
        assert found.keys() >= OPTIONS.keys()
        for name in OPTIONS.keys() - {"shuffle"}:
            assert found[name].default == known[name].default


def test_the_help_of_the_loader_explains_each_argument() -> None:
    text = Loader.__init__.__doc__ or ""
    explained = re.findall(r"^ {12}([a-z_, ]+):", text, re.MULTILINE)
    names = [name for line in explained for name in line.split(", ")]
    assert sorted(names) == sorted(inspect.signature(Loader).parameters)


class Numbers:
    """Has the members of a source, and is none."""

    fixed: Mapping[str, Any] = {"x": ((), np.dtype("i8"))}
    fingerprint, row_bytes = "numbers", 8

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.blocks = Blocks.regular(rows, 8)

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: Any, out: Any = None) -> dict[str, Any]:
        return {"x": np.asarray(rows)}

    def present(self, columns: Any) -> Any:
        return columns["x"]


def test_whoever_has_the_members_of_a_source_is_wrapped_once() -> None:
    given = Numbers(40)
    source = as_source(given)
    assert as_source(source) is source and source.given is given  # type: ignore[attr-defined]
    assert (source.remote, source.goes_on, source.can_shrink) == (False, False, False)
    assert source.at_epoch(3) is source and source.touches(np.arange(3)) == []
    assert sorted(row for batch in Loader(given, 7, shuffle=True) for row in batch) == [*range(40)]
    assert Windows(given, 3)[5].tolist() == [5, 6, 7]
    with pytest.raises(Invalid, match="cannot leave fields out"):
        Windows(given, 3, fields="x")
    del given.blocks
    with pytest.raises(Invalid, match="it lacks blocks"):
        Loader(given, 3)
    with pytest.raises(Invalid, match="the state is of 38 rows, and there are 98"):
        state = Loader(Windows(Numbers(40), 3), 4).state_dict()
        Loader(Windows(Numbers(100), 3), 4).load_state_dict(state)
