"""Arrays against NumPy: long sequences of everything."""

from __future__ import annotations

import pickle
import tempfile
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import tensorstash as stash
from tests.support.layouts import EXAMPLES, layouts, plain, values, where
from tests.support.oracle import (
    numpy_index,
    outer_index,
    outer_of,
    point_index,
    point_of,
    result_of,
    same,
)

# -- sequences of everything -------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """An array and a NumPy array that are done the same things."""

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        self.layout = data.draw(layouts(min_dims=1))
        self.folder = tempfile.TemporaryDirectory()
        self.place: Any = self.layout.place(self.folder.name)
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

    @precondition(lambda self: self.layout.where == "files")
    @rule()
    def pickle(self) -> None:
        data = pickle.dumps(self.array)
        assert len(data) < 2048
        self.array = pickle.loads(data)

    @rule()
    def iterate(self) -> None:
        same(list(self.array), list(self.model)) if self.model.ndim == 1 else None
        found = np.full(self.model.shape, 7, self.model.dtype)
        for place, block in self.array.iter_blocks(absent=True):
            same(block, self.model[place])
            found[place] = block
        same(found, self.model)
        stored = np.full(self.model.shape, self.array.fill_value, self.model.dtype)
        for place, block in self.array.iter_blocks():
            stored[place] = block
        same(stored, self.model)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=EXAMPLES, stateful_step_count=15)
