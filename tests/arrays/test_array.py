"""Arrays against NumPy: every selection, read and assigned, on every way to store them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.errors import InvalidSelection
from tests.support.layouts import EXAMPLES, layouts, values
from tests.support.oracle import (
    advanced_index,
    numpy_index,
    outer_index,
    outer_of,
    point_index,
    point_of,
    result_of,
    same,
    shapes,
)

# -- one selection, read and assigned ----------------------------------------------------------


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_reads_are_numpys(data: Any) -> None:
    layout = data.draw(layouts())
    with tempfile.TemporaryDirectory() as folder:
        array = layout.create(layout.place(folder))
        model = layout.model()
        model[...] = data.draw(values(layout.shape, layout.dtype))
        array[...] = model
        for _ in range(3):
            index = data.draw(numpy_index(layout.shape))
            same(array[index], model[index])
            out = np.empty(
                np.shape(model[index]), layout.dtype, order=data.draw(st.sampled_from("CF"))
            )
            assert array.read(index, out=out) is out
            same(out, np.asarray(model[index]))
        index = data.draw(outer_index(layout.shape))
        same(array.oindex[index], outer_of(model, index)[()])
        index = data.draw(point_index(layout.shape))
        same(array.vindex[index], point_of(model, index)[()])


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_assignments_are_numpys(data: Any) -> None:
    layout = data.draw(layouts())
    with tempfile.TemporaryDirectory() as folder:
        array = layout.create(layout.place(folder))
        model = layout.model()
        for _ in range(3):
            index = data.draw(numpy_index(layout.shape))
            value = data.draw(values(np.shape(model[index]), layout.dtype))
            wanted = result_of(lambda: model.__setitem__(index, value), ValueError)  # noqa: B023
            found = result_of(lambda: array.__setitem__(index, value), ValueError)  # noqa: B023
            assert found == wanted
            same(array[...], np.asarray(model))
        same(stash.load(array.driver), model)


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_errors_are_numpys_and_change_nothing(data: Any) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=4))
    array = stash.create({}, shape, "i4", chunks=(2,) * len(shape))
    model = np.zeros(shape, "i4")
    index = data.draw(advanced_index(shape, wrong=True))
    wanted = result_of(lambda: model[index], IndexError)
    found = result_of(lambda: array[index], InvalidSelection)
    assert (found is InvalidSelection) == (wanted is IndexError)
    if wanted is IndexError:
        with pytest.raises(InvalidSelection):
            array[index] = 1
        assert not array[...].any()


SMALL: list[Any] = [
    0,
    -1,
    slice(None),
    slice(2, None, -1),
    slice(1, 1),
    None,
    ...,
    [1, 0],
    [True, False, True],
]


def test_every_short_index_of_a_small_array_and_its_result_type() -> None:
    model = np.arange(9.0).reshape(3, 3)
    array = stash.save({}, model, chunks=(2, 2))
    for index in [(), *((a,) for a in SMALL), *((a, b) for a in SMALL for b in SMALL)]:
        wanted = result_of(lambda: model[index], IndexError)  # noqa: B023
        found = result_of(lambda: array[index], IndexError)  # noqa: B023
        if wanted is IndexError:
            assert found is IndexError, index
        else:
            same(found, wanted)


@pytest.mark.parametrize(
    "index", [(0, 0), (0, 0, ...), (..., 0, 0), (0, [0]), (np.intp(0), np.array(0))]
)
@pytest.mark.parametrize("dtype", ["f4", "i8", "b1", "M8[s]", "U3", "S2"])
def test_scalars_and_0d_results_are_numpys(index: Any, dtype: str) -> None:
    model = np.ones((2, 2), "i8").astype(dtype)
    array = stash.create({}, (2, 2), dtype)
    array[...] = model
    same(array[index], model[index])
    nothing = np.array(model[0, 0], dtype)
    scalar = stash.create({}, (), dtype)
    scalar[...] = nothing
    for inner in ((), ..., None, True, False, (None, ...)):
        same(scalar[inner], nothing[inner])


def test_assignment_of_wrong_values() -> None:
    array, model = stash.create({}, (3, 4), "u1", chunks=(2, 2)), np.zeros((3, 4), "u1")
    for value in (np.zeros((4, 3)), [1, 2, 3], "x", [[1], [1, 2]], object(), None, [300] * 4, 1j):
        wanted = result_of(lambda: model.__setitem__(..., value), Exception)  # noqa: B023
        found = result_of(lambda: array.__setitem__(..., value), Exception)  # noqa: B023
        assert (found is None) == (wanted is None), value
        assert not array[...].any()


def test_a_repeated_index_keeps_the_last_value() -> None:
    array = stash.create({}, (8,), "i4", chunks=(3,))
    array[[5, 1, 5, 1, 5]] = [1, 2, 3, 4, 5]
    assert array[...].tolist() == [0, 4, 0, 0, 0, 5, 0, 0]
    array.oindex[[7, 7]] = [8, 9]
    array.vindex[[0, 0]] = [8, 9]
    assert array[[0, 7]].tolist() == [9, 9]


# -- sizes at which other paths are taken: threads, reads of part of a chunk, decoding in place

MEDIUM = [
    ((150, 130), (60, 50), None),
    ((150, 130), (40, 130), None),
    ((150, 130), (128, 128), None),
    ((300, 200), (100, 200), None),
    ((3, 200, 150), (1, 200, 150), None),
    ((40, 60, 50), (16, 32, 32), (32, 64, 64)),
    ((100_000,), (30_000,), None),
    ((150, 130), (10, 13), (100, 130)),
    ((20, 300, 5), (1, 256, 8), (16, 512, 8)),
]


def random_index(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    items: list[Any] = []
    for n in shape:
        a, b = sorted(rng.integers(0, n + 1, 2).tolist())
        kind = rng.integers(0, 8)
        if kind == 0:
            items.append(int(rng.integers(-n, n)))
        elif kind == 1:
            items.append(slice(b, a, -int(rng.integers(1, 9))))
        elif kind == 2:
            items.append(slice(a, b, int(rng.integers(1, n))))
        elif kind == 3:
            items.append(slice(a, b))
        elif kind == 4 and len(shape) < 3:
            items.append(rng.integers(-n, n, rng.integers(1, 3) * 7 // 7 * 9))
        elif kind == 5:
            items.append(int(rng.integers(0, n)))
        else:
            items.append(slice(None))
    arrays = [k for k, item in enumerate(items) if isinstance(item, np.ndarray)]
    for k in arrays[1:]:
        items[k] = np.resize(items[k], items[arrays[0]].shape)
    return tuple(items)


@pytest.mark.parametrize(("shape", "chunks", "shards"), MEDIUM)
@pytest.mark.parametrize("codecs", ["auto", None, "zstd"])
@pytest.mark.parametrize("where", ["files", "memory", "cached"])
def test_medium_chunks(
    shape: Any, chunks: Any, shards: Any, codecs: Any, where: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(len(shape) * chunks[0])
    place: Any = tmp_path / "a" if where == "files" else {}
    cache = "64MiB" if where == "cached" else 0
    array = stash.create(
        place, shape, "f8", chunks=chunks, shards=shards, codecs=codecs, cache=cache
    )
    model = rng.integers(0, 255, shape).astype("f8")
    array[...] = model
    same(array[...], model)
    for turn in range(25):
        index = random_index(rng, shape)
        same(array[index], model[index])
        if turn % 5 == 0:
            out = np.empty(np.shape(model[index]), "f8", order="F")
            same(array.read(index, out=out), np.asarray(model[index]))
        if turn % 3 == 0:
            value = rng.integers(0, 255, np.shape(model[index]))
            array[index] = value
            model[index] = value
    same(array[...], model)
    same(stash.load(array.driver), model)
