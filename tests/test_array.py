"""Arrays against NumPy: every selection, read and assigned, on every way to store them."""

from __future__ import annotations

import math
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import tensorstash as stash
from tensorstash.errors import InvalidSelection
from tests.oracle import (
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

EXAMPLES = settings.default.max_examples  # the "long" profile soaks
NUMBERS = ["b1", "u1", "i2", "i4", "u8", "f2", "f4", "f8", "c8", "c16"]
CODECS: list[Any] = ["auto", None, "zstd", "gzip", "lz4", "crc32c"]


@dataclass(frozen=True)
class Layout:
    """How a test's array is stored; what ``create`` and ``open`` take."""

    shape: tuple[int, ...]
    dtype: str
    how: dict[str, Any]
    opening: dict[str, Any]
    in_files: bool

    def create(self, location: Any) -> stash.Array:
        return stash.create(location, self.shape, self.dtype, **self.how, **self.opening)

    def model(self) -> np.ndarray:
        return np.full(self.shape, self.how["fill_value"], self.dtype)


@st.composite
def layouts(draw: Any, dtypes: Any = NUMBERS, min_dims: int = 0) -> Layout:
    shape = draw(shapes(max_dims=3, max_side=8, min_dims=min_dims))
    dtype = draw(st.sampled_from(dtypes))
    chunks = tuple(draw(st.integers(1, 9)) for _ in shape)
    how: dict[str, Any] = {"chunks": chunks, "codecs": draw(st.sampled_from(CODECS))}
    how["fill_value"] = draw(st.sampled_from([0, 1]))
    if np.dtype(dtype).kind in "fc":
        how["fill_value"] = draw(st.sampled_from([0.0, -0.0, 1.5, float("nan"), float("inf")]))
    if draw(st.booleans()):
        how["order"] = "F"
    kind = draw(st.sampled_from(["chunks", "chunks", "shards", "nested", "v2"]))
    if kind == "v2":
        how["zarr_format"] = 2
        if how["codecs"] == "crc32c":
            how["codecs"] = "auto"
    elif kind == "shards":
        how["shards"] = tuple(n * draw(st.integers(1, 3)) for n in chunks)
    elif kind == "nested":
        middle = [n * draw(st.integers(1, 2)) for n in chunks]
        inner = {
            "chunk_shape": list(chunks),
            "codecs": [bytes_document(dtype), {"name": "gzip", "configuration": {"level": 1}}],
            "index_codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
            "index_location": draw(st.sampled_from(["start", "end"])),
        }
        how["chunks"] = tuple(middle)
        how["codecs"] = [{"name": "sharding_indexed", "configuration": inner}]
        how["shards"] = tuple(n * draw(st.integers(1, 2)) for n in middle)
        how.pop("order", None)
    opening = {
        "cache": draw(st.sampled_from([0, 0, 200, "1MiB"])),
        "threads": draw(st.sampled_from([1, 2, None])),
        "write_fill": draw(st.booleans()),
    }
    return Layout(shape, dtype, how, opening, draw(st.integers(0, 3)) == 0)


def bytes_document(dtype: str) -> dict[str, Any]:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


@st.composite
def values(draw: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Something that can be assigned to a selection of ``shape``: broadcast, cast, strided."""
    kind = np.dtype(dtype).kind
    wide = shape
    if shape and draw(st.booleans()):
        wide = tuple(draw(st.sampled_from([n, 1])) for n in shape)[draw(st.integers(0, 1)) :]
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from([0, 1, True])) if kind in "bui" else draw(st.floats(-9, 9))
    sources = {"b": ["b1"], "u": ["u1", "b1", "f4"], "i": ["i1", "i8", "f8"]}
    source = draw(st.sampled_from([dtype, *sources.get(kind, ["f4", ">f8", "i2", "u1"])]))
    seed = draw(st.integers(0, 2**32))
    made = np.random.default_rng(seed).integers(0, 100, wide).astype(source)
    form = draw(st.sampled_from(["plain", "F", "strided", "swapped", "backwards", "list", "fill"]))
    if form == "F":
        return np.asarray(made, order="F")
    if form == "strided":
        return np.repeat(made, 2, axis=-1)[..., ::2] if made.ndim else made
    if form == "swapped":
        return made.astype(made.dtype.newbyteorder())
    if form == "backwards":
        return np.flip(made)
    if form == "list" and made.size:
        return made.astype(dtype).tolist()
    return np.zeros_like(made) if form == "fill" else made


def where(selection: Any, rule: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The flat positions that ``rule`` selects of an array of ``shape``."""
    return np.asarray(rule(np.arange(math.prod(shape)).reshape(shape), selection))


def plain(array: np.ndarray, selection: Any) -> np.ndarray:
    return array[selection]


# -- one selection, read and assigned ----------------------------------------------------------


@settings(max_examples=2 * EXAMPLES)
@given(st.data())
def test_reads_are_numpys(data: Any) -> None:
    layout = data.draw(layouts())
    with tempfile.TemporaryDirectory() as folder:
        array = layout.create(folder if layout.in_files else {})
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
        array = layout.create(folder if layout.in_files else {})
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


# -- sequences of everything -------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """An array and a NumPy array that are done the same things."""

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        self.layout = data.draw(layouts(min_dims=1))
        self.folder = tempfile.TemporaryDirectory()
        self.place: Any = self.folder.name if self.layout.in_files else {}
        self.array = self.layout.create(self.place)
        self.model = self.layout.model()

    def teardown(self) -> None:
        try:
            if hasattr(self, "model"):
                same(stash.load(self.place), self.model)
                assert stash.open(self.place).shape == self.model.shape
        finally:
            if hasattr(self, "folder"):
                self.folder.cleanup()

    @rule(data=st.data())
    def read(self, data: Any) -> None:
        index = data.draw(numpy_index(self.model.shape))
        same(self.array[index], self.model[index])

    @rule(data=st.data())
    def read_by_rule(self, data: Any) -> None:
        index = data.draw(outer_index(self.model.shape))
        same(self.array.oindex[index], outer_of(self.model, index)[()])
        index = data.draw(point_index(self.model.shape))
        same(self.array.vindex[index], point_of(self.model, index)[()])

    @rule(data=st.data())
    def read_views(self, data: Any) -> None:
        first = data.draw(numpy_index(self.model.shape))
        half = np.asarray(self.model[first])
        view = self.array.lazy[first]
        assert (view.shape, view.dtype, view.size) == (half.shape, half.dtype, half.size)
        second = data.draw(numpy_index(half.shape))
        same(np.asarray(view[second]), np.asarray(half[second]))
        third = data.draw(outer_index(half.shape))
        same(view.oindex[third].read(), np.asarray(outer_of(half, third)))

    @rule(data=st.data())
    def assign(self, data: Any) -> None:
        index = data.draw(numpy_index(self.model.shape))
        value = data.draw(values(np.shape(self.model[index]), self.layout.dtype))
        self.both(lambda a: a.__setitem__(index, value), value)

    def both(self, change: Any, value: Any) -> None:
        wanted = result_of(lambda: change(self.model), ValueError)
        assert result_of(lambda: change(self.array), ValueError) == wanted

    @rule(data=st.data())
    def assign_by_rule(self, data: Any) -> None:
        strategy, rule, name = data.draw(
            st.sampled_from([(outer_index, outer_of, "oindex"), (point_index, point_of, "vindex")])
        )
        index = data.draw(strategy(self.model.shape))
        at = where(index, rule, self.model.shape)
        value = data.draw(values(at.shape, self.layout.dtype))
        getattr(self.array, name)[index] = value
        self.put(at, value)

    @rule(data=st.data())
    def assign_to_view(self, data: Any) -> None:
        first = data.draw(numpy_index(self.model.shape))
        at = where(first, plain, self.model.shape)
        second = data.draw(numpy_index(at.shape))
        at = np.asarray(at[second])
        value = data.draw(values(at.shape, self.layout.dtype))
        self.array.lazy[first][second] = value
        self.put(at, value)

    def put(self, at: np.ndarray, value: Any) -> None:
        """Flat positions of the model become ``value``; of repeated ones the last stays."""
        cast = np.empty(at.shape, self.model.dtype)
        cast[...] = value
        for place, element in zip(at.flat, cast.flat, strict=True):
            self.model.flat[place] = element

    @rule(data=st.data(), axis=st.integers(-3, 2), count=st.integers(0, 5))
    def append(self, data: Any, axis: int, count: int) -> None:
        axis = max(-self.model.ndim, min(axis, self.model.ndim - 1))
        shape = list(self.model.shape)
        shape[axis] = count
        rows = self.rows(data, tuple(shape))
        assert self.array.append(rows, axis) == self.model.shape[axis]
        self.model = np.concatenate([self.model, rows.astype(self.model.dtype)], axis)
        assert self.array.shape == self.model.shape

    def rows(self, data: Any, shape: tuple[int, ...]) -> np.ndarray:
        seed = data.draw(st.integers(0, 99))
        return np.random.default_rng(seed).integers(0, 100, shape).astype(self.layout.dtype)

    @rule(data=st.data())
    def resize(self, data: Any) -> None:
        shape = tuple(data.draw(st.integers(0, n + 4)) for n in self.model.shape)
        self.array.resize(shape)
        grown = np.full(shape, self.layout.how["fill_value"], self.layout.dtype)
        kept = tuple(slice(0, min(a, b)) for a, b in zip(shape, self.model.shape, strict=True))
        grown[kept] = self.model[kept]
        self.model = grown
        assert self.array.shape == shape

    @rule(data=st.data(), budget=st.sampled_from([1, 300, "256MiB"]))
    def write_buffered(self, data: Any, budget: Any) -> None:
        with self.array.writer(budget) as writer:
            for _ in range(data.draw(st.integers(1, 4))):
                if data.draw(st.integers(0, 2)) == 0:
                    axis = data.draw(st.integers(-self.model.ndim, self.model.ndim - 1))
                    shape = list(self.model.shape)
                    shape[axis] = data.draw(st.integers(0, 4))
                    rows = self.rows(data, tuple(shape))
                    writer.append(rows, axis)
                    writer.flush()
                    self.model = np.concatenate([self.model, rows], axis)
                    continue
                index = data.draw(numpy_index(self.model.shape))
                at = where(index, plain, self.model.shape)
                value = self.rows(data, at.shape)
                writer[index] = value
                self.put(at, value)
        assert self.array.shape == self.model.shape

    @rule(data=st.data())
    def write_from_elsewhere(self, data: Any) -> None:
        # By another handle: this one's cache and shard indices must notice.
        index = data.draw(numpy_index(self.model.shape))
        value = self.rows(data, np.shape(self.model[index]))
        stash.open(self.place, "r+")[index] = value
        self.model[index] = value

    @rule()
    def reopen(self) -> None:
        self.array = stash.open(self.place, "r+", **self.layout.opening)

    @precondition(lambda self: self.layout.in_files)
    @rule()
    def pickle(self) -> None:
        data = pickle.dumps(self.array)
        assert len(data) < 2048
        self.array = pickle.loads(data)

    @rule()
    def iterate(self) -> None:
        same(list(self.array), list(self.model)) if self.model.ndim == 1 else None
        found = np.full(self.model.shape, 7, self.model.dtype)
        for place, block in self.array.iter_blocks():
            same(block, self.model[place])
            found[place] = block
        same(found, self.model)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=EXAMPLES, stateful_step_count=15)


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
