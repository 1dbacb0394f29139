"""Handles on arrays: protocols, blocks, costs told beforehand, views, ownership, memory."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Closed, Invalid, InvalidSelection, NotFound, ReadOnly
from tensorstash.testing.counting import CountingDriver
from tests.support.oracle import count_decodes, numpy_index, same, shapes

EXAMPLES = settings.default.max_examples  # the "long" profile soaks

# -- protocols ---------------------------------------------------------------------------------


def test_what_it_is() -> None:
    array = stash.create({}, (5, 7), "i2", chunks=(2, 3), fill_value=4, dimension_names=("y", "x"))
    assert (array.ndim, array.size, array.nbytes, len(array)) == (2, 35, 70, 5)
    assert (array.shape, array.dtype, array.chunks, array.shards) == ((5, 7), "i2", (2, 3), None)
    assert array.dimension_names == ("y", "x")
    same(array.fill_value, np.int16(4))
    assert repr(array) == "<tensorstash.Array (5, 7) int16 chunks=(2, 3) at memory://>"
    assert "\n" not in repr(array)
    sharded = stash.create({}, (5, 7), "i2", chunks=(2, 3), shards=(4, 6))
    assert (sharded.chunks, sharded.shards) == ((2, 3), (4, 6))
    single = stash.create({}, (), "f4")
    assert (single.ndim, single.size, single.nbytes) == (0, 1, 4)
    for call in (len, iter, list):
        with pytest.raises(TypeError, match="0-d"):
            call(single)


def test_numpy_takes_it_as_an_array() -> None:
    model = np.arange(12.0).reshape(3, 4)
    array = stash.save({}, model, chunks=(2, 2))
    same(np.asarray(array), model)
    same(np.array(array, dtype="i4"), model.astype("i4"))
    same(np.asarray(array, dtype="f4"), model.astype("f4"))
    same(np.mean(array), np.mean(model))
    same(np.concatenate([array, model]), np.concatenate([model, model]))
    for thing in (array, array.lazy[1:]):
        with pytest.raises(ValueError, match="copy=False"):
            np.array(thing, copy=False)
        assert np.asarray(thing).flags.writeable
        assert np.asarray(thing).flags.owndata


def test_iteration_reads_each_chunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = np.arange(42).reshape(7, 6)
    driver = CountingDriver(MemoryDriver())
    array = stash.create(driver, (7, 6), "i8", chunks=(3, 4))
    array[...] = model
    driver.reset()
    same(list(array)[5], model[5])
    assert driver.reads.keys == 6
    assert [row.tolist() for row in array] == model.tolist()


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_blocks_are_stored_chunks_clipped(data: Any) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=9))
    chunks = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    shards = data.draw(st.sampled_from([None, tuple(2 * n for n in chunks)]))
    array = stash.create({}, shape, "i4", chunks=chunks, shards=shards)
    model = np.arange(math.prod(shape), dtype="i4").reshape(shape)
    array[...] = model
    bounds = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    index = tuple(slice(a, b) for a, b in bounds)
    seen = np.zeros(shape, int)
    edges = shards or chunks
    for place, block in array.iter_blocks(index, absent=True):
        same(block, np.asarray(model[place]))
        seen[place] += 1
        assert len({tuple(c // e for c, e in zip(corner, edges, strict=True)) for corner in (
            [s.start for s in place], [s.stop - 1 for s in place])}) == 1  # fmt: skip
    wanted = np.zeros(shape, int)
    wanted[index] = 1
    assert (seen == wanted).all()
    counts = [-(-n // e) for n, e in zip(shape, edges, strict=True)]
    for place in np.ndindex(*counts):
        whole = tuple(slice(i * e, (i + 1) * e) for i, e in zip(place, edges, strict=True))
        same(array.blocks[place], np.asarray(model[whole])[...] if shape else model[()])


def test_blocks_selections() -> None:
    array = stash.save({}, np.arange(100).reshape(10, 10), chunks=(3, 4))
    model = np.arange(100).reshape(10, 10)
    same(array.blocks[1:3, -1], model[3:9, 8:])
    same(array.blocks[..., 0], model[:, :4])
    same(array.blocks[2:2], model[0:0])
    array.blocks[3, 2] = -1
    model[9:, 8:] = -1
    same(array[...], model)
    for wrong in (4, (0, 3), [0, 1], (slice(None, None, 2),), (0, 0, 0)):
        with pytest.raises(InvalidSelection):
            array.blocks[wrong]
    with pytest.raises(InvalidSelection, match="step 1"):
        list(array.iter_blocks((slice(None, None, 2),)))


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_explain_counts_what_a_read_then_costs(data: Any) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=9))
    chunks = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    shards = data.draw(st.sampled_from([None, tuple(2 * n for n in chunks)]))
    driver = CountingDriver(MemoryDriver())
    made = stash.create(driver, shape, "i4", chunks=chunks, shards=shards, threads=1)
    made[...] = 1 + np.arange(math.prod(shape), dtype="i4").reshape(shape)
    array = stash.open(driver, threads=1)
    index = data.draw(numpy_index(shape))
    driver.reset()
    cost = array.explain(index)
    assert driver.reads.calls == 0
    with pytest.MonkeyPatch.context() as patch:
        seen = count_decodes(patch)
        result = np.asarray(array[index])
    assert cost.shape == result.shape
    assert cost.wanted_bytes == result.nbytes
    indices = cost.objects if shards is not None else 0
    assert cost.chunks == len(seen) - indices
    assert cost.decoded_bytes == cost.chunks * math.prod(chunks) * 4
    assert driver.reads.keys <= cost.requests
    if shards is None:
        assert driver.reads.keys == cost.requests == cost.objects == cost.chunks
    assert ("chunk" in str(cost)) and "\n" not in str(cost)


def test_explain_takes_any_selection_of_any_size() -> None:
    array = stash.create({}, (2**40, 2**40), "f8", chunks=(2**10, 2**10))
    cost = array.explain((5, slice(None)))
    assert cost.chunks == 2**30
    assert cost.amplification == 1024
    assert array.explain(...).chunks == 2**60
    assert array.explain((slice(0, 0),)).amplification == 0
    tiny = stash.create({}, (2**40, 2**40), "f8", chunks=(1, 1))
    assert tiny.explain().chunks == 2**80
    assert tiny.explain((7, 7)).decoded_bytes == 8


def test_info_of_what_is_stored(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (10, 10), "i4", chunks=(5, 5), codecs=None)
    array[:5, :5] = 1
    info = array.info()
    assert (info.stored_chunks, info.total_chunks, info.stored_bytes) == (1, 4, 100)
    assert (info.shape, info.dtype, info.chunks, info.zarr_format) == ((10, 10), "int32", (5, 5), 3)
    assert info.ratio == 4
    assert str(tmp_path) in str(info)
    empty = stash.create({}, (3,), "i4").info()
    assert (empty.stored_chunks, empty.ratio) == (0, 0)
    assert str(empty)


# -- views -------------------------------------------------------------------------------------


def test_views_read_nothing_until_asked(tmp_path: Path) -> None:
    driver = CountingDriver(MemoryDriver())
    model = np.arange(200.0).reshape(20, 10)
    array = stash.create(driver, (20, 10), "f8", chunks=(4, 5))
    array[...] = model
    driver.reset()
    view = array.lazy[10:20, ..., ::2][3:]
    assert (len(view), view.shape, view.ndim, view.size, view.nbytes) == (7, (7, 5), 2, 35, 280)
    assert "(7, 5)" in repr(view)
    assert driver.reads.calls == 0
    wanted = model[10:20, ..., ::2][3:]
    same(view.read(), wanted)
    same(np.asarray(view, dtype="f4"), wanted.astype("f4"))
    out = np.empty((7, 5))
    assert view.read(out=out) is out
    same(out, wanted)
    assert [row.tolist() for row in view] == wanted.tolist()
    same(list(array.lazy[3])[2], model[3, 2])
    view[0] = 5
    view.vindex[[1, 1], [2, 2]] = [8, 9]
    wanted[0] = 5
    wanted[1, 2] = 9
    same(view.read(), wanted)
    with pytest.raises(TypeError, match="0-d"):
        len(array.lazy[0, 0])
    with pytest.raises(InvalidSelection):
        view[7]


def test_iterating_a_view_reads_each_chunk_once() -> None:
    driver = CountingDriver(MemoryDriver())
    array = stash.create(driver, (40, 10), "f8", chunks=(10, 10))
    array[...] = 1
    driver.reset()
    assert sum(row.sum() for row in array.lazy[5:35]) == 300
    assert driver.reads.keys == 4


def test_a_view_that_repeats_one_element_keeps_the_last_value() -> None:
    array = stash.create({}, (8, 3), "i4", chunks=(3, 3))
    view = array.lazy[[4]][[0, 0, 0]]
    same(view.read(), np.zeros((3, 3), "i4"))
    view[:, 1] = [1, 2, 3]
    assert array[4].tolist() == [0, 3, 0]
    same(view.read(), np.array([[0, 3, 0]] * 3, "i4"))
    with array.writer() as writer:
        writer[[4, 4], [2, 2]] = [7, 8]
    assert array[4].tolist() == [0, 3, 8]


def test_views_pickle_small(tmp_path: Path) -> None:
    stash.save(tmp_path / "a", np.arange(1000).reshape(100, 10))
    view = stash.open(tmp_path / "a").lazy[10:20, ::-1]
    data = pickle.dumps(view)
    assert len(data) < 2048
    same(pickle.loads(data).read(), np.arange(1000).reshape(100, 10)[10:20, ::-1])


# -- handles -----------------------------------------------------------------------------------


def test_out_is_checked() -> None:
    array = stash.save({}, np.arange(6.0).reshape(2, 3))
    readonly = np.empty((2, 3))
    readonly.flags.writeable = False
    for out in (
        np.empty((3, 2)),
        np.empty((2, 3), "f4"),
        np.empty((2, 3), ">f8"),
        [[0] * 3] * 2,
        readonly,
    ):
        with pytest.raises(Invalid):
            array.read(out=out)
    backwards = np.empty((2, 6))[::-1, ::-2]
    same(array.read(out=backwards), np.arange(6.0).reshape(2, 3))


def test_a_reader_does_not_write_and_a_closed_handle_does_nothing(tmp_path: Path) -> None:
    made = stash.save(tmp_path / "a", np.arange(6))
    array = stash.open(tmp_path / "a")
    calls: list[Any] = [
        lambda a: a.__setitem__(0, 1),
        lambda a: a.oindex.__setitem__([0], 1),
        lambda a: a.lazy[1:].__setitem__(0, 1),
        lambda a: a.append([1]),
        lambda a: a.resize(3),
        lambda a: a.writer(),
        lambda a: a.attrs.__setitem__("k", 1),
    ]
    for call in calls:
        with pytest.raises(ReadOnly):
            call(array)
    assert array[...].tolist() == list(range(6))
    with made:
        assert len(made) == 6
    for call in [*calls, lambda a: a[0], lambda a: a.read(), lambda a: a.refresh(), np.asarray]:
        with pytest.raises(Closed):
            call(made)


def test_results_belong_to_the_caller() -> None:
    for codecs, cache in (("auto", 0), (None, 0), (None, "1MiB"), ("zstd", "1MiB")):
        source = np.arange(10.0)
        array = stash.create({}, (10,), "f8", chunks=(10,), codecs=codecs, cache=cache)
        array[...] = source
        source[:] = -1
        for index in (..., slice(None), slice(2, 5), [1, 2], 3):
            first = np.asarray(array[index])
            wanted = first.copy()
            first[...] = 99
            same(np.asarray(array[index]), wanted)


def test_missing_chunks_can_be_errors() -> None:
    for shards in (None, (4,)):
        made = stash.create({}, (8,), "i4", chunks=(2,), shards=shards)
        made[2:4] = 1
        array = stash.open(made.driver, missing="raise")
        assert array[2:4].tolist() == [1, 1]
        for index in (0, slice(0, 4), slice(4, 8), [2, 5]):
            with pytest.raises(NotFound, match="is not stored"):
                array[index]


# -- memory ------------------------------------------------------------------------------------


def test_creating_a_terabyte_costs_one_small_object() -> None:
    driver = CountingDriver(MemoryDriver())
    tracemalloc.start()
    try:
        array = stash.create(driver, (10**4, 10**4, 10**4), "u1", chunks=(64, 64, 64))
        assert array[5000, 5000, 5000] == 0
        array[1, 2, 3] = 4
        assert array[1, 2, :5].tolist() == [0, 0, 0, 4, 0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert driver.writes.calls == 2
    assert driver.writes.nbytes < 10_000
    assert peak < 20 << 20


@pytest.mark.parametrize("codecs", [None, "auto", "zstd"])
@pytest.mark.parametrize("shards", [None, (128, 512)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_read_holds_its_output_and_two_chunks_a_worker(
    tmp_path: Path, codecs: Any, shards: Any, threads: int
) -> None:
    # Random bits do not compress: encoded chunks are as large as they get.
    model = np.random.default_rng(0).integers(0, 2**63, (1024, 512))
    array = stash.create(
        tmp_path / "a",
        model.shape,
        "i8",
        chunks=(64, 256),
        shards=shards,
        codecs=codecs,
        threads=threads,
    )
    array[...] = model
    array[:64, :256]  # what is kept for good is there already
    unit = 64 * 256 * 8 if shards is None else 128 * 512 * 8
    for index in (..., (slice(None), slice(3, 400)), (slice(0, 1024, 3), 5)):
        tracemalloc.start()
        try:
            result = array[index]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak <= result.nbytes + 2 * unit * threads + (256 << 10), index
        same(result, model[index])


@pytest.mark.parametrize("dtype", ["M8", [("when", "M8"), ("n", "i4")]], ids=["time", "field"])
def test_info_of_times_without_a_unit(dtype: Any) -> None:
    a = stash.create({}, (3,), np.dtype(dtype))
    shown = a.info().fill_value
    assert "M8" in shown or "datetime64" in shown
    assert shown in str(a.info())
