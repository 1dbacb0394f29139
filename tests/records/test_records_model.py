"""Records against a dict of lists: whatever is done, in any order, by any handle."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tensorstash as stash
from tensorstash.errors import Conflict
from tests.support.records_model import Model, column, equal, flat, holds, value

KINDS: dict[str, Any] = {
    "x": ((2,), "float32"),
    "n": "int16",
    "t": stash.ragged("int32"),
    "p": stash.ragged("uint8", 2),
    "s": str,
    "b": bytes,
    "j": stash.json,
    "h": "bfloat16",
}
NAMES = ("a", "b", "in/a", "in/b", "in/deep/a", "values")
_number = itertools.count()


class Everything(RuleBasedStateMachine):
    """Two handles that may be stale, views of one of them, and the model. The records may lie
    below the location of one handle; the other is opened at their own."""

    path = ""

    @initialize(
        kinds=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([*KINDS]), min_size=1),
        length=st.integers(0, 9),
        step=st.integers(1, 5),
        cache=st.sampled_from([0, "1MiB"]),
    )
    def begin(self, kinds: Any, length: int, step: int, cache: Any) -> None:
        schema = {name: KINDS[kind] for name, kind in kinds.items()}
        self.url = f"memory://model-{next(_number)}"
        self.rng = np.random.default_rng(len(kinds) * 100 + length)
        how = {"rows_per_chunk": step, "cache": cache}
        self.own = f"{self.url}/{self.path}".rstrip("/")
        self.records = stash.create_records(self.url, schema, length, path=self.path, **how)
        self.other = stash.open_records(self.own, "r+", cache=cache)
        self.model = Model(schema, length)
        self.changes = 0
        self.known = {False: 0, True: 0}

    def writer(self, other: bool) -> stash.Records:
        """A handle that knows the fields; the rows perhaps not. Those of the same names and types
        may be others: one renamed, or added again."""
        chosen = self.other if other else self.records
        if self.known.get(other) != self.changes:
            chosen.refresh()
            self.known[other] = self.changes
        return chosen

    # -- rows ---------------------------------------------------------------------------------

    @rule(other=st.booleans())
    def append(self, other: bool) -> None:
        row = self.model.row(self.rng)
        assert self.writer(other).append(row) == self.model.rows
        self.model.extend({path: [v] for path, v in row.items()})

    @rule(other=st.booleans(), count=st.integers(0, 7), form=st.sampled_from(["columns", "rows"]))
    def extend(self, other: bool, count: int, form: str) -> None:
        block = self.model.block(self.rng, count)
        given: Any = block
        if form == "rows":
            given = [{path: v[i] for path, v in block.items()} for i in range(count)]
        handle = self.writer(other)
        start = handle.extend(given)
        assert start == (self.model.rows if count else len(handle))
        self.model.extend(block)

    @rule(counts=st.lists(st.integers(0, 4), max_size=4), budget=st.sampled_from([1, 500, "1MiB"]))
    def write(self, counts: list[int], budget: Any) -> None:
        with self.writer(False).writer(budget) as writer:
            for count in counts:
                block = self.model.block(self.rng, count)
                writer.extend(block)
                self.model.extend(block)

    @rule(other=st.booleans(), data=st.data())
    def assign(self, other: bool, data: Any) -> None:
        handle = self.writer(other)
        known = len(handle)
        chosen = data.draw(rows_of(known))
        rows = np.arange(known)[chosen]
        block = self.model.block(self.rng, len(rows))
        handle[chosen] = block
        self.model.put(rows, block)

    @rule(other=st.booleans(), data=st.data())
    def assign_some_fields_of_a_view(self, other: bool, data: Any) -> None:
        handle = self.writer(other)
        rows = np.arange(len(handle))
        view = handle
        for _ in range(data.draw(st.integers(1, 2))):
            chosen = data.draw(rows_of(len(rows)))
            view, rows = view.where(chosen), rows[chosen]
        names = data.draw(st.lists(st.sampled_from([*self.model.fields]), min_size=1, unique=True))
        block = {n: b for n, b in self.model.block(self.rng, len(rows)).items() if n in names}
        view.select(*names)[:] = block
        self.model.put(rows, block)

    @precondition(lambda self: self.model.rows)
    @rule(other=st.booleans(), data=st.data())
    def assign_a_row(self, other: bool, data: Any) -> None:
        handle = self.writer(other)
        if not len(handle):
            handle.refresh()
        known = len(handle)
        i = data.draw(st.integers(-known, known - 1))
        row = self.model.row(self.rng)
        handle[i] = row
        self.model.put([i % known], {p: [v] for p, v in row.items()})

    # -- fields -------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from([*KINDS]), given=st.booleans())
    def add_field(self, name: str, kind: str, given: bool) -> None:
        if clashes(name, self.model.fields):
            return
        fields = Model({name: KINDS[kind]}, self.model.rows)
        field = fields.fields[name]
        values = fields.columns[name]
        if given:
            values = [value(self.rng, field) for _ in values]
        self.writer(False).add_field(name, KINDS[kind], column(field, values) if given else None)
        self.model.fields[name] = field
        self.model.columns[name] = values
        self.changes += 1

    @precondition(lambda self: len(self.model.fields) > 1)
    @rule(data=st.data())
    def drop_field(self, data: Any) -> None:
        name = data.draw(st.sampled_from([*self.model.fields]))
        self.writer(True).drop_field(name)
        del self.model.fields[name], self.model.columns[name]
        self.changes += 1

    @rule(data=st.data(), new=st.sampled_from(NAMES))
    def rename_field(self, data: Any, new: str) -> None:
        old = data.draw(st.sampled_from([*self.model.fields]))
        if clashes(new, self.model.fields):
            return
        self.writer(False).rename_field(old, new)
        self.model.fields = {new if n == old else n: f for n, f in self.model.fields.items()}
        self.model.columns[new] = self.model.columns.pop(old)
        self.changes += 1

    @rule(other=st.booleans())
    def appending_with_other_fields_is_refused(self, other: bool) -> None:
        handle = self.other if other else self.records
        if handle.fields == self.model.fields:
            return
        row = Model(handle.schema).row(self.rng)
        try:
            handle.append(row)
        except Conflict:
            return
        raise AssertionError("rows of other fields were added")

    # -- handles ------------------------------------------------------------------------------

    @rule(other=st.booleans())
    def refresh(self, other: bool) -> None:
        handle = self.other if other else self.records
        holds(handle.refresh(), self.model)

    @rule(how=st.sampled_from(["open", "pickle"]))
    def replace_a_handle(self, how: str) -> None:
        if how == "pickle":
            self.other = pickle.loads(pickle.dumps(self.records))
            self.known[True] = self.known[False]
        else:
            self.records = stash.open_records(self.url, "r+", path=self.path)
            self.known[False] = self.changes

    @rule(data=st.data())
    def read(self, data: Any) -> None:
        handle = self.writer(data.draw(st.booleans()))
        known = np.arange(len(handle))
        chosen = data.draw(rows_of(len(known)))
        equal(flat(handle[chosen], self.model.fields), self.model.taken(known[chosen]))
        for name, field in self.model.fields.items():
            if field.kind == "ragged":
                wanted = [len(self.model.columns[name][i]) for i in known[chosen]]
                assert handle.where(chosen).lengths(name).tolist() == wanted

    @invariant()
    def it_is_the_model(self) -> None:
        if hasattr(self, "model"):
            found = stash.open_records(self.own)
            assert found.fields == self.model.fields
            holds(found, self.model)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            rows = list(stash.open_records(self.url, path=self.path))
            assert len(rows) == self.model.rows
            self.records.driver.delete_prefix("")


class EverythingBelow(Everything):
    """The same below a location, whose groups above may hold copies of the documents."""

    path = "runs/first"

    @rule()
    def consolidate(self) -> None:
        stash.open_group(self.url, "r+").consolidate()


def rows_of(n: int) -> st.SearchStrategy[Any]:
    """Some of ``n`` rows, repeated or not."""
    some = st.lists(st.integers(-n, n - 1), max_size=8) if n else st.just([])
    return st.one_of(st.slices(n), some.map(lambda rows: np.array(rows, np.intp)))


def clashes(name: str, fields: Any) -> bool:
    """Whether ``name`` is, stands within, or holds one of the fields."""
    return any(f"{n}/".startswith(f"{name}/") or f"{name}/".startswith(f"{n}/") for n in fields)


TestEverything = Everything.TestCase
TestEverything.settings = settings(max_examples=25, stateful_step_count=20)
TestEverythingBelow = EverythingBelow.TestCase
TestEverythingBelow.settings = settings(max_examples=25, stateful_step_count=20)
