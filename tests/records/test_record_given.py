"""What users hand over as rows: every form of it taken apart into the same columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from tensordict import (
    NonTensorData,
    NonTensorStack,
    TensorClass,
    TensorDict,
    TypedTensorDict,
    lazy_stack,
)

import tensorstash as stash
from tensorstash.columns import Ragged
from tensorstash.errors import Invalid, Unsupported
from tensorstash.records import schema
from tensorstash.records.ingest import columns_of, flatten, row_of
from tensorstash.torch import ArrayDataset, Windows, mix

OBS = np.arange(12, dtype="float32").reshape(3, 4)
REWARD = np.array([1.0, 2, 3])
LABEL = ["a", "b", "c"]
META = [{"k": 1}, {"k": 2}, {}]
FIELDS = schema.parse(
    {"obs": ((4,), "float32"), "next": {"reward": float}, "label": str, "meta": schema.json}
)


@dataclass
class Next:
    reward: Any


@dataclass
class Transition:
    obs: Any
    next: Next
    label: Any
    meta: Any


class NextTensors(TensorClass):
    reward: torch.Tensor


class TransitionTensors(TensorClass):
    obs: torch.Tensor
    next: NextTensors
    label: str
    meta: dict[str, Any]


class TypedTransition(TypedTensorDict):
    obs: torch.Tensor
    label: str


def stack(values: list[Any]) -> NonTensorStack:
    return NonTensorStack(*(NonTensorData(data=value) for value in values))


def tensordict() -> TensorDict:
    return TensorDict(
        {
            "obs": torch.from_numpy(OBS),
            "next": {"reward": torch.from_numpy(REWARD)},
            "label": stack(LABEL),
            "meta": stack(META),
        },
        batch_size=[3],
    )


def rows() -> list[dict[str, Any]]:
    return [
        {"obs": OBS[i], "next": {"reward": REWARD[i]}, "label": LABEL[i], "meta": META[i]}
        for i in range(3)
    ]


def structured() -> np.ndarray[Any, Any]:
    out = np.zeros(3, [("obs", "f4", 4), ("next", [("reward", "f8")])])
    out["obs"], out["next"]["reward"] = OBS, REWARD
    return out


COLUMNS = {"obs": OBS, "next": {"reward": REWARD}, "label": LABEL, "meta": META}
TEXTS = ['{"k":1}', '{"k":2}', "{}"]

GIVEN: dict[str, Callable[[], Any]] = {
    "dict": lambda: COLUMNS,
    "paths": lambda: {"obs": OBS, "next/reward": REWARD, "label": LABEL, "meta": META},
    "tuples": lambda: {("obs",): OBS, ("next", "reward"): REWARD, "label": LABEL, "meta": META},
    "tensors": lambda: {
        "obs": [torch.from_numpy(row) for row in OBS],
        "next": {"reward": torch.from_numpy(REWARD)},
        "label": LABEL,
        "meta": META,
    },
    "rows": rows,
    "generator": lambda: iter(rows()),
    "rows of tensors": lambda: [{**row, "obs": torch.from_numpy(row["obs"])} for row in rows()],
    "dataclass": lambda: Transition(OBS, Next(REWARD), LABEL, META),
    "dataclasses": lambda: [
        Transition(OBS[i], Next(REWARD[i]), LABEL[i], META[i]) for i in range(3)
    ],
    "tensordict": tensordict,
    "rows of tensordict": lambda: list(tensordict().unbind(0)),
    "lazy stack": lambda: lazy_stack(list(tensordict().unbind(0))),
    "tensorclass": lambda: TransitionTensors.from_tensordict(tensordict()),
    "rows of tensorclass": lambda: [
        TransitionTensors.from_tensordict(tensordict())[i] for i in range(3)
    ],
    "typed tensordict": lambda: TypedTransition.from_tensordict(tensordict()),
    "structured": structured,
    "rows of structured": lambda: list(structured()),
    "arrow": lambda: pa.table(
        {
            "obs": pa.FixedSizeListArray.from_arrays(pa.array(OBS.reshape(-1)), 4),
            "next": pa.StructArray.from_arrays([pa.array(REWARD)], names=["reward"]),
            "label": LABEL,
            "meta": TEXTS,
        }
    ),
    "arrow with JSON": lambda: pa.table(
        {
            "obs": pa.array(OBS.tolist(), pa.list_(pa.float32(), 4)),
            "next/reward": REWARD,
            "label": pa.array(LABEL).dictionary_encode(),
            "meta": pa.array(TEXTS, pa.json_() if hasattr(pa, "json_") else pa.string()),
        }
    ),
    "arrays of arrow": lambda: {
        "obs": pa.array(OBS.tolist(), pa.list_(pa.float32(), 4)),
        "next": {"reward": pa.chunked_array([REWARD[:1], REWARD[1:]])},
        "label": pa.array(LABEL),
        "meta": META,
    },
    "pandas": lambda: pd.DataFrame(
        {"obs": list(OBS), "next/reward": REWARD, "label": LABEL, "meta": META}
    ),
    "pandas with levels": lambda: pd.DataFrame(
        {
            ("obs", ""): list(OBS),
            ("next", "reward"): REWARD,
            ("label", ""): LABEL,
            ("meta", ""): META,
        }
    ),
    "pandas with missing values' types": lambda: pd.DataFrame(
        {
            "obs": list(OBS),
            "next/reward": pd.array(REWARD.tolist(), dtype="Float64"),
            "label": pd.Categorical(LABEL),
            "meta": META,
        }
    ),
    "pandas over arrow": lambda: pd.DataFrame(
        {
            "obs": pd.Series(OBS.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float32(), 4))),
            "next/reward": pd.Series(REWARD, dtype=pd.ArrowDtype(pa.float64())),
            "label": pd.Series(LABEL, dtype="string"),
            "meta": META,
        }
    ),
    "series": lambda: {
        "obs": pl.Series(OBS),
        "next": {"reward": pd.Series(REWARD)},
        "label": pl.Series(LABEL),
        "meta": META,
    },
    "polars": lambda: pl.DataFrame(
        {"obs": OBS, "next": [{"reward": r} for r in REWARD], "label": LABEL, "meta": TEXTS}
    ),
    "polars with structs": lambda: pl.DataFrame(
        {
            "obs": OBS,
            "next/reward": REWARD,
            "label": pl.Series(LABEL, dtype=pl.Categorical),
            "meta": pl.Series(META, dtype=pl.Object),
        }
    ),
}


@pytest.mark.parametrize("form", GIVEN)
def test_every_form_gives_the_same_columns(form: str) -> None:
    found = columns_of(GIVEN[form](), FIELDS)
    wanted = {"obs": OBS, "next/reward": REWARD, "label": LABEL, "meta": META}
    if "structured" in form:
        del wanted["label"], wanted["meta"]
    assert set(found) == set(wanted)
    for path, column in found.items():
        if path == "meta":
            assert list(column) == META
        elif path == "label":
            assert [str(text) for text in column] == LABEL
        else:
            array = np.asarray(column)
            assert array.dtype == wanted[path].dtype
            assert np.array_equal(array, wanted[path])


@pytest.mark.parametrize("form", ["dict", "tensordict", "structured", "arrow", "polars", "series"])
def test_numbers_are_not_copied(form: str) -> None:
    given = GIVEN[form]()
    base = given["obs"] if form == "structured" else OBS
    if form == "polars":
        base = given["obs"].to_numpy()
    if form == "series":
        base = given["obs"].to_numpy()
    found = columns_of(given)["obs"]
    assert np.shares_memory(np.asarray(found), base)


def test_tensors_stay_tensors() -> None:
    given = torch.zeros(3, dtype=torch.bfloat16)
    assert columns_of({"a": given})["a"] is given
    assert columns_of(TensorDict({"a": given}, batch_size=[3]))["a"] is given


def test_jagged_tensors_and_rows_of_their_own_shapes() -> None:
    tokens = [torch.arange(2), torch.arange(0), torch.arange(3)]
    jagged = torch.nested.nested_tensor(tokens, layout=torch.jagged)
    wanted = Ragged.of([t.numpy() for t in tokens], np.dtype("int64"))
    assert columns_of(TensorDict({"t": jagged}, batch_size=[3]))["t"] == wanted
    stacked = lazy_stack([TensorDict({"t": t}) for t in tokens])
    found = columns_of(stacked)["t"]
    assert [row.tolist() for row in found] == [t.tolist() for t in tokens]
    listed = columns_of(TensorDict({"t": stack(tokens)}, batch_size=[3]))["t"]
    assert all(isinstance(row, np.ndarray) for row in listed)
    images = [torch.zeros(2, 5), torch.zeros(1, 5)]
    nested = torch.nested.nested_tensor(images, layout=torch.jagged)
    assert columns_of(TensorDict({"t": nested}, batch_size=[2]))["t"].shapes.tolist() == [
        [2, 5],
        [1, 5],
    ]


def test_one_value_for_every_row_of_a_tensordict() -> None:
    given = TensorDict({"a": torch.zeros(3), "b": NonTensorData("x", batch_size=[3])}, [3])
    assert columns_of(given)["b"] == ["x"] * 3


ROWS: dict[str, Callable[[], Any]] = {
    "dict": lambda: rows()[1],
    "paths": lambda: {"obs": OBS[1], "next/reward": 2.0, "label": "b", "meta": {"k": 2}},
    "dataclass": lambda: Transition(OBS[1], Next(2.0), "b", {"k": 2}),
    "tensordict": lambda: tensordict()[1],
    "tensorclass": lambda: TransitionTensors.from_tensordict(tensordict())[1],
    "structured": lambda: structured()[1],
}


@pytest.mark.parametrize("form", ROWS)
def test_every_form_of_one_row(form: str) -> None:
    found = row_of(ROWS[form](), FIELDS)
    assert np.array_equal(np.asarray(found.pop("obs")), OBS[1])
    assert float(found.pop("next/reward")) == 2
    assert found == ({} if form == "structured" else {"label": "b", "meta": {"k": 2}})


def test_a_structured_field_is_put_together() -> None:
    pairs = np.array([(1, (2.0,)), (3, (4.0,))], [("x", "i4"), ("in", [("y", "f8")])])
    fields = {"p": schema.Field("fixed", pairs.dtype)}
    whole = columns_of({"p": pairs}, fields)["p"]
    assert whole is pairs
    apart = columns_of([{"p": {"x": 1, "in": {"y": 2.0}}}, {"p": {"x": 3, "in/y": 4.0}}], fields)
    assert apart["p"].tolist() == pairs.tolist() and apart["p"].dtype == pairs.dtype
    assert row_of({"p": {"x": 1, "in": {"y": 2.0}}}, fields)["p"] == pairs[0]
    assert row_of({"p": pairs[0]}, fields)["p"] == pairs[0]


def test_nested_values_of_a_json_field_stay_whole() -> None:
    fields = schema.parse({"meta": schema.json})
    table = pa.table({"meta": [{"a": [1]}, {"a": []}]})
    for given in (table, pl.from_arrow(table)):
        assert columns_of(given, fields)["meta"] == [{"a": [1]}, {"a": []}]
    assert list(columns_of(table)) == ["meta/a"]
    assert columns_of([{"meta": {"a": {"b": 1}}}], fields) == {"meta": [{"a": {"b": 1}}]}


def test_flat_paths() -> None:
    given = {"a": 1, ("n", "o"): 2, "n": {"m/p": 3}, "j": {}}
    assert flatten(given, {"j"}) == {"a": 1, "n/o": 2, "n/m/p": 3, "j": {}}
    with pytest.raises(Invalid, match=r"'n/q' is \{\}, which has no fields; name it"):
        flatten({"n": {"m": 1, "q": {}}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": [1, 2], "b": [1]}, "different lengths: 'a' has 2, 'b' has 1"),
        ({"a": 1}, "'a': 1 is one value where a column is needed"),
        ({"a": "text"}, "'a': 'text' is one value where a column"),
        ({"a": torch.tensor(1)}, "'a': .* is one value where a column"),
        ({"a": {"b": [1]}, "a/b": [2]}, "'a/b' is there twice"),
        ({"a": [1], "a/b": [2]}, "'a' is a field, and cannot hold 'a/b' too"),
        ({3: [1]}, "a field is named by text"),
        ([{"a": 1}, {"a": 1, "b": 2}], "row 1 alone has a field 'b'"),
        ([{"a": 1, "b": 2}, {"a": 1}], "row 1 has no field 'b'"),
        ([{"a": 1}, 5], "row 1: a row is a dict of values"),
        (np.zeros(3), "rows come as a dict of columns"),
        ("text", "rows come as a dict of columns"),
        (7, "rows come as a dict of columns"),
        (TensorDict({"a": 1}, []), "is one row; append"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns are named 'a'"),
        (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "'a' has 1 missing value"),
        (pa.table({"a": [1, None]}), "'a' has 1 missing value"),
        (pa.table({"a": [{"b": 1}, None]}), "'a' has 1 missing value"),
        (pl.DataFrame({"a": [[1], None]}), "'a' has 1 missing value"),
        (pa.table([[1], [2]], names=["a", "a"]), "columns of one name"),
        (pa.table({"a": [[[1], [2, 3]]]}), "'a': lists of different lengths"),
    ],
)
def test_what_is_no_columns_is_said(given: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        columns_of(given)


def test_what_loaders_read_is_taken_by_the_names_of_its_fields() -> None:
    records = stash.save_records({}, {"x": np.arange(5), "y": np.arange(5) * 2})
    assert columns_of(records.where([3, 1]))["x"].tolist() == [3, 1]
    for windows in (records.windows(2), Windows({"x": np.arange(5), "y": np.arange(5) * 2}, 2)):
        found = columns_of(windows)
        assert found["x"].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
        assert found["y"].tolist() == [[0, 2], [2, 4], [4, 6], [6, 8]]
    mixed = columns_of(mix({"a": records, "b": records}, seed=1))
    assert sorted(mixed["x"].tolist()) == sorted([*range(5)] * 2)
    for nameless in (ArrayDataset(np.arange(3)), ArrayDataset(np.arange(3), transform=str)):
        with pytest.raises(Invalid, match=r"not as <tensorstash\.ArrayDataset"):
            columns_of(nameless)


@pytest.mark.parametrize(
    "given",
    [
        pa.table({"a": pa.array([1], pa.decimal128(5))}),
        pa.table({"a": pa.array([1], pa.time32("s"))}),
        pd.DataFrame({"a": pd.period_range("2020", periods=2, freq="D")}),
    ],
)
def test_columns_without_a_stored_form_are_named(given: Any) -> None:
    with pytest.raises(Unsupported, match="field 'a'"):
        columns_of(given)


def test_lists_of_text_are_json_values() -> None:
    fields = schema.parse({"a": schema.json})
    for given in (fields, {}):
        assert columns_of(pa.table({"a": [["x"], []]}), given)["a"] == [["x"], []]
    assert columns_of(pa.table({"a": ['["x"]']}), fields)["a"] == [["x"]]
    with pytest.raises(Invalid, match="field 'a': a table tells JSON by its text"):
        columns_of(pa.table({"a": ["x"]}), fields)


def test_a_row_with_batch_axes_is_refused() -> None:
    with pytest.raises(Invalid, match=r"a row has no batch axes; this has \(3,\)"):
        row_of(tensordict())
    with pytest.raises(Invalid, match="a row is a dict of values by field"):
        row_of([1])
