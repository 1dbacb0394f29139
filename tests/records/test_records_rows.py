"""Rows of records: every selection and every assignment is what NumPy does, field by field."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

import tensorstash as stash
from tensorstash.errors import Invalid, InvalidSelection
from tests.support.oracle import same
from tests.support.records_model import EVERY, Model, equal, flat, holds, value

ROWS = 23
SEEDS = st.integers(0, 2**32)


def stored(rows: int = ROWS, seed: int = 0, **how: Any) -> tuple[stash.Records, Model]:
    """Records of every kind over several chunks, some of their rows never written."""
    records = stash.create_records({}, EVERY, rows, rows_per_chunk=5, **how)
    model = Model(EVERY, rows)
    rng = np.random.default_rng(seed)
    written = [i for i in range(rows) if i % 7 != 3]
    block = model.block(rng, len(written))
    records[written] = block
    model.put(written, block)
    return records, model


@pytest.fixture(scope="module")
def there() -> tuple[stash.Records, Model]:
    return stored()


def selections(n: int) -> st.SearchStrategy[Any]:
    """Several rows of ``n``, in every form."""
    number = st.integers(-n, n - 1) if n else st.nothing()
    numbers = (
        hnp.arrays(np.int64, st.integers(0, 9), elements=number) if n else st.just(np.arange(0))
    )
    return st.one_of(
        st.slices(n),
        numbers,
        numbers.map(list),
        numbers.map(lambda a: a.astype(np.int16)),
        hnp.arrays(bool, (n,)),
        hnp.arrays(bool, (n,)).map(lambda mask: mask.tolist()),
        numbers.map(torch.tensor),
        hnp.arrays(bool, (n,)).map(torch.tensor),
        st.just(...),
        st.just(()),
    )


def as_numpy(selection: Any) -> Any:
    return selection.numpy() if isinstance(selection, torch.Tensor) else selection


# -- reading -----------------------------------------------------------------------------------


@given(data=st.data())
def test_several_rows(there: Any, data: Any) -> None:
    records, model = there
    chosen = data.draw(selections(ROWS))
    if isinstance(chosen, list) and not chosen:
        chosen = np.empty(0, int)
    equal(flat(records[chosen], model.fields), model.taken(as_numpy(chosen)))


@pytest.mark.parametrize("row", [0, 1, 3, 22, -1, -23, np.int8(4), np.uint64(5), (6,)])
def test_one_row(there: Any, row: Any) -> None:
    records, model = there
    wanted = {
        path: column[row if type(row) is int else int(np.arange(ROWS)[row])]
        for path, column in model.columns.items()
    }
    equal(flat(records[row], model.fields), wanted)


def test_one_row_by_a_tensor(there: Any) -> None:
    records, model = there
    found = flat(records[torch.tensor(-2)], model.fields)
    equal(found, {path: column[-2] for path, column in model.columns.items()})


@pytest.mark.parametrize(
    "wrong",
    [23, -24, [0, 23], [-24], slice(0, 5, 0), [True] * 22, np.zeros(24, bool), 1.0, [0.5], None,
     True, [[0, 1]], np.zeros((2, 2), int), (0, 1), (slice(None), 0), np.zeros((23, 1), bool),
     "nope"],
)  # fmt: skip
def test_what_numpy_refuses(there: Any, wrong: Any) -> None:
    records, _ = there
    with pytest.raises(Invalid) as caught:
        records[wrong]
    assert "\n" not in str(caught.value)
    indices = not isinstance(wrong, (str, slice))
    assert isinstance(caught.value, InvalidSelection if indices else Invalid)


def test_fields_by_name(there: Any) -> None:
    records, model = there
    same(records["n"][...], np.array(model.columns["n"]))
    same(records["next", "x"][-3:], np.stack(model.columns["next/x"][-3:]))
    same(records["next/deep/flag"][2], model.columns["next/deep/flag"][2])
    assert records["cap"][[4, 1]].tolist() == [model.columns["cap"][4], model.columns["cap"][1]]
    assert [*records[["x", "meta"]].names] == ["x", "meta"]
    assert [*records["next"].names] == ["next/x", "next/half", "next/deep/flag"]
    assert [*records[[("next", "deep"), "n"]].names] == ["next/deep/flag", "n"]
    equal(flat(records["next"][5], model.fields),
          {p: model.columns[p][5] for p in model.fields if p.startswith("next/")})  # fmt: skip


@given(data=st.data())
def test_series(there: Any, data: Any) -> None:
    records, model = there
    name = data.draw(st.sampled_from([*model.fields]))
    view = records.where(slice(None, None, data.draw(st.sampled_from([1, 2, -3]))))
    rows = np.arange(ROWS)[view.source.rows.at(slice(0, len(view), 1), ROWS)]
    series = view[name]
    assert len(series) == len(rows)
    chosen = data.draw(selections(len(rows)))
    if isinstance(chosen, list) and not chosen:
        chosen = np.empty(0, int)
    equal({name: series[chosen]}, model.taken(rows[as_numpy(chosen)], [name]))
    i = data.draw(st.integers(-len(rows), len(rows) - 1))
    equal({name: series[i]}, {name: model.columns[name][rows[i]]})


@pytest.mark.parametrize("name", [*Model(EVERY).fields])
def test_iteration_over_a_field(there: Any, name: str) -> None:
    records, model = there
    for view, rows in [
        (records, range(ROWS)),
        (records.where(slice(3, 19)), range(3, 19)),
        (records.where([4, 4, -1, 0]), [4, 4, -1, 0]),
    ]:
        found = [*view[name]]
        equal({"": found}, {"": [model.columns[name][i] for i in rows]})


def test_iteration_over_rows(there: Any) -> None:
    records, model = there
    for view, rows in [
        (records, range(ROWS)),
        (records.where(slice(3, 19)), range(3, 19)),
        (records.where(slice(None, None, -2)), range(22, -1, -2)),
        (records.where([4, 4, -1, 0]), [4, 4, -1, 0]),
        (records.where([]), []),
    ]:
        found = [flat(row, model.fields) for row in view]
        assert len(found) == len(rows)
        for row, i in zip(found, rows, strict=True):
            equal(row, {path: column[i] for path, column in model.columns.items()})


def test_what_is_read_is_yours(there: Any) -> None:
    records, _ = there
    before = records[2:4]
    changed = records[2:4]
    changed["x"][...] = 99
    changed["img"][0][...] = 99
    equal(flat(records[2:4], records.fields), flat(before, records.fields))


# -- writing -----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(data=st.data(), seed=SEEDS)
def test_assigning_several_rows(data: Any, seed: int) -> None:
    records, model = stored(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        chosen = data.draw(selections(ROWS))
        if isinstance(chosen, list) and not chosen:
            chosen = np.empty(0, int)
        rows = np.arange(ROWS)[as_numpy(chosen)]
        block = model.block(rng, len(rows))
        records[chosen] = block
        model.put(rows, block)
    holds(records, model)
    holds(stash.open_records(records.driver), model)


@settings(max_examples=30)
@given(data=st.data(), seed=SEEDS)
def test_assigning_through_views(data: Any, seed: int) -> None:
    records, model = stored(seed=seed)
    rng = np.random.default_rng(seed)
    rows = np.arange(ROWS)
    view: Any = records
    for _ in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(selections(len(rows)))
        if isinstance(chosen, list) and not chosen:
            chosen = np.empty(0, int)
        view, rows = view.where(chosen), rows[as_numpy(chosen)]
    names = data.draw(st.lists(st.sampled_from([*model.fields]), min_size=1, unique=True))
    view = view.select(*names)
    equal(flat(view[:], model.fields), model.taken(rows, view.names))
    block = {n: b for n, b in model.block(rng, len(rows)).items() if n in names}
    view[:] = block
    model.put(rows, block)
    if len(rows):
        one = {n: value(rng, model.fields[n]) for n in names}
        view[-1] = one
        model.put([rows[-1]], {n: [v] for n, v in one.items()})
        name = names[0]
        new = value(rng, model.fields[name])
        view[name][0] = new
        model.put([rows[0]], {name: [new]})
    holds(records, model)


def test_one_value_for_several_rows() -> None:
    records, model = stored()
    rng = np.random.default_rng(5)
    row = model.row(rng)
    row["meta"], row["tok"] = {"a": [1]}, np.arange(3, dtype="i4")
    records[4:9] = row
    model.put(range(4, 9), {path: [v] * 5 for path, v in row.items()})
    holds(records, model)
    records.select("x", "n")[[1, 1, 20]] = {"x": 7, "n": [1, 2, 3]}
    assert records[20]["x"].tolist() == [7, 7]
    assert records["n"][[1, 20]].tolist() == [2, 3]


@pytest.mark.parametrize("form", ["nested", "path", "tuple"])
def test_rows_are_named_in_any_way(form: str) -> None:
    records = stash.create_records({}, {"a": "i4", "b": {"c": "i4", "d": str}}, 2)
    row: Any = {
        "nested": {"a": 1, "b": {"c": 2, "d": "x"}},
        "path": {"a": 1, "b/c": 2, "b/d": "x"},
        "tuple": {"a": 1, ("b", "c"): 2, ("b", "d"): "x"},
    }[form]
    records[1] = row
    assert records.append(row) == 2
    columns = {key: [v, v] for key, v in row.items()}
    if form == "nested":
        columns["b"] = {"c": [2, 2], "d": ["x", "x"]}
    assert records.extend(columns) == 3
    assert records.extend([row, row]) == 5
    assert records["a"][...].tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert records["b/d"][...].tolist() == ["", "x", "x", "x", "x", "x", "x"]


def test_no_rows_at_all() -> None:
    records = stash.create_records({}, EVERY)
    model = Model(EVERY)
    holds(records, model)
    equal(flat(records[[]], model.fields), model.taken([]))
    assert [*records] == []
    assert records.extend([]) == 0
    assert records.extend(model.block(np.random.default_rng(0), 0)) == 0
    records[:] = model.block(np.random.default_rng(0), 0)
    holds(records, model)
    with pytest.raises(InvalidSelection):
        records[0]
