"""Typed access through tensordict's classes: TensorClass and TypedTensorDict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorClass, TensorDict, TypedTensorDict

import tensorstash as stash
from tensorstash.errors import Invalid
from tensorstash.records import schema
from tensorstash.records.typed import schema_of, typed

SCHEMA = {
    "obs": ((4, 4), "uint8"),
    "action": int,
    "tokens": schema.ragged("int32"),
    "label": str,
    "meta": schema.json,
    "next": {"obs": ((4, 4), "uint8"), "reward": float},
}
ROWS = 6


class NextTensors(TensorClass):
    obs: torch.Tensor
    reward: torch.Tensor


class TransitionTensors(TensorClass):
    obs: torch.Tensor
    action: torch.Tensor
    tokens: Any
    label: str
    meta: dict[str, Any]
    next: NextTensors


class TypedTransition(TypedTensorDict):
    obs: torch.Tensor
    action: torch.Tensor
    label: str


@dataclass
class Mixed:
    action: Any
    next: NextTensors


def transition(i: int) -> dict[str, Any]:
    obs = np.full((4, 4), i, "uint8")
    return {
        "obs": obs,
        "action": i,
        "tokens": np.arange(i, dtype="int32"),
        "label": f"row {i}",
        "meta": {"i": [i]},
        "next": {"obs": obs + 1, "reward": i / 2},
    }


def check(found: Any, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if isinstance(value, dict) and name == "next":
            check(found[name], value)
        else:
            assert np.array_equal(found[name], value)


@pytest.fixture
def records() -> stash.Records:
    made = stash.create_records({}, SCHEMA, rows_per_chunk=4)
    made.extend([transition(i) for i in range(ROWS)])
    return made


def test_a_tensorclass_with_values_that_are_no_tensors(records: stash.Records) -> None:
    view = typed(records, TransitionTensors)
    row = view[3]
    assert type(row) is TransitionTensors and type(row.next) is NextTensors
    assert row.batch_size == () and row.obs.dtype == torch.uint8
    assert (row.label, row.meta) == ("row 3", {"i": [3]})
    assert row.tokens.tolist() == [0, 1, 2]
    rows = view[1:3]
    assert rows.batch_size == (2,) and rows.next.reward.tolist() == [0.5, 1]
    assert list(rows.label) == ["row 1", "row 2"]
    view[0] = row
    check(records[0], transition(3))
    view.extend(rows)
    check(records[-1], transition(2))
    assert [row.label for row in view][:2] == ["row 3", "row 1"]
    row.obs = None
    with pytest.raises(Invalid, match="no value for 'obs'"):
        view[1] = row
    assert view.next[2].reward == 1 and type(view.next[2]) is NextTensors


def test_a_typed_tensordict(records: stash.Records) -> None:
    view = typed(records, TypedTransition)
    rows = view[2:4]
    assert type(rows) is TypedTransition and rows.batch_size == (2,)
    assert rows.obs.shape == (2, 4, 4) and rows.label.tolist() == ["row 2", "row 3"]
    view[0:2] = rows
    assert view[1].action == 3
    whole = TypedTransition.from_tensordict(records.with_format("tensordict")[:])
    assert whole.obs.shape == view.obs.shape
    view[0] = TensorDict({"obs": torch.ones(4, 4).byte(), "action": 5, "label": "t"}, [])
    assert (records[0]["action"], records[0]["label"]) == (5, "t")
    with pytest.raises(Invalid, match="no value for 'label'"):
        view[0] = TensorDict({"obs": torch.ones(4, 4).byte(), "action": 5}, [])


def test_a_tensorclass_within_a_dataclass(records: stash.Records) -> None:
    row = typed(records, Mixed)[2]
    assert type(row) is Mixed and type(row.next) is NextTensors
    assert row.next.reward == 1 and row.action == 2


def test_tensordicts_through_records(records: stash.Records) -> None:
    made = stash.create_records({}, records.schema)
    made.extend(records.with_format("tensordict")[:])
    made.append(records.with_format("tensordict")[2])
    for i in (0, 5):
        check(made[i], transition(i))
    check(made[6], transition(2))
    jagged = records.with_format("tensordict", "jagged")[:]
    assert jagged["tokens"].is_nested
    made.extend(jagged)
    check(made[-1], transition(5))


def test_annotations_of_tensors_say_their_shape() -> None:
    with pytest.raises(Invalid, match=r"field 'obs': .* tells no shape and dtype; write Annotated"):
        schema_of(TransitionTensors)
