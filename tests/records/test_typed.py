"""Typed access: attributes are fields, rows are instances, and what is assigned is checked."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Annotated, Any, NotRequired, TypedDict, assert_type

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tensorstash as stash
from tensorstash.errors import Invalid, InvalidSelection
from tensorstash.records import schema
from tensorstash.records.typed import Typed, schema_of, typed
from tensorstash.testing.counting import FailingDriver

Image = Annotated[NDArray[np.uint8], ((4, 4), "uint8")]


@dataclass
class Next:
    obs: Image
    reward: float


@dataclass
class Transition:
    obs: Image
    action: int
    tokens: Annotated[Any, schema.ragged("int32")]
    label: str
    meta: dict[str, Any]
    next: Next


@dataclass
class Part:
    label: str
    extra: int = 7


class NextDict(TypedDict):
    obs: Image
    reward: float


class TransitionDict(TypedDict):
    obs: Image
    action: int
    tokens: Annotated[Any, schema.ragged("int32")]
    label: str
    meta: dict[str, Any]
    next: NextDict


ROWS = 6


def transition(i: int) -> Transition:
    obs = np.full((4, 4), i, "uint8")
    return Transition(
        obs, i, np.arange(i, dtype="int32"), f"row {i}", {"i": [i]}, Next(obs + 1, i / 2)
    )


@pytest.fixture
def records() -> stash.Records:
    made = stash.create_records({}, schema_of(Transition), rows_per_chunk=4)
    made.extend([transition(i) for i in range(ROWS)])
    return made


def check(found: Transition, wanted: Transition) -> None:
    assert type(found) is Transition and type(found.next) is Next
    for name in ("obs", "tokens"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
    assert (found.action, found.label, found.meta) == (wanted.action, wanted.label, wanted.meta)
    assert np.array_equal(found.next.obs, wanted.next.obs)
    assert found.next.reward == wanted.next.reward


# -- reading ----------------------------------------------------------------------------


def test_a_row_is_an_instance(records: stash.Records) -> None:
    view = typed(records, Transition)
    assert_type(view[3], Transition)
    for i in (0, 3, -1):
        check(view[i], transition(i % ROWS))
    assert len(view) == ROWS
    assert [row.action for row in view] == list(range(ROWS))
    with pytest.raises(InvalidSelection):
        view[ROWS]


def test_rows_are_an_instance_of_columns(records: stash.Records) -> None:
    view = records.as_typed(Transition)
    found = view[[5, 0, 5]]
    assert found.obs.shape == (3, 4, 4) and found.obs[:, 0, 0].tolist() == [5, 0, 5]
    assert [row.tolist() for row in found.tokens] == [[0, 1, 2, 3, 4], [], [0, 1, 2, 3, 4]]
    assert found.next.reward.tolist() == [2.5, 0, 2.5]
    assert found.meta == [{"i": [5]}, {"i": [0]}, {"i": [5]}]


def test_attributes_are_whole_fields(records: stash.Records) -> None:
    view = typed(records, Transition)
    assert view.obs.shape == (ROWS, 4, 4)
    assert view.next.reward[2:].tolist() == [1, 1.5, 2, 2.5]
    assert type(view.next) is Typed
    assert view.next[4].reward == 2 and type(view.next[4]) is Next
    assert view.next[1:3].obs.shape == (2, 4, 4)
    assert view.records is records
    assert {"obs", "next", "append"} <= set(dir(view))
    view.obs[2] = 9
    assert view[2].obs.min() == 9


def test_a_typed_dict_is_a_dict(records: stash.Records) -> None:
    view = typed(records, TransitionDict)
    row = view[4]
    assert type(row) is dict and type(row["next"]) is dict
    assert row["label"] == "row 4" and row["next"]["reward"] == 2
    view[0] = {**row, "label": "new"}
    assert view[0]["label"] == "new" and view[0]["tokens"].tolist() == [0, 1, 2, 3]


def test_formats_of_the_records(records: stash.Records) -> None:
    row = typed(records.with_format("torch"), Transition)[3]
    assert isinstance(row.obs, torch.Tensor) and row.label == "row 3"
    rows: Any = typed(records.with_format("python"), Transition)[2:4]
    assert [row.next for row in rows] == [Next([[3] * 4] * 4, 1.0), Next([[4] * 4] * 4, 1.5)]
    with pytest.raises(Invalid, match="rows shown as Table cannot be Transition"):
        typed(records.with_format("arrow"), Transition)[0]


def test_fields_that_a_class_does_not_name_are_not_read(records: stash.Records) -> None:
    asked: list[str] = []
    driver = records.source.table.place[0]
    seen = FailingDriver(driver, lambda call: asked.append(call.key))
    view = typed(stash.open_records(seen, mode="r+"), Part)
    assert view[1] == Part("row 1", 7)
    assert view[1:3].extra == 7
    assert {key for key in asked if "/c/" in key} == {"label/c/0"}
    view[1] = Part("changed", 8)
    assert records[1]["label"] == "changed" and records[1]["action"] == 1
    with pytest.raises(Invalid, match="no value for"):
        view.append(Part("a"))
    assert len(records) == ROWS


# -- writing ----------------------------------------------------------------------------


def test_rows_are_assigned_appended_and_extended(records: stash.Records) -> None:
    view = typed(records, Transition)
    view[1] = transition(4)
    check(view[1], transition(4))
    assert view.append(transition(2)) == ROWS
    check(view[-1], transition(2))
    assert view.extend([transition(0), vars(transition(3))]) == ROWS + 1
    check(view[ROWS + 2], transition(3))
    columns = view[2:4]
    assert view.extend(columns) == ROWS + 3
    check(view[ROWS + 4], transition(3))
    view[0:2] = columns
    check(view[0], transition(2))
    check(view[1], transition(3))
    view[[1, 0]] = [transition(5), transition(2)]
    check(view[1], transition(5))
    view[1] = transition(3)
    view.next[0] = Next(np.zeros((4, 4), "uint8"), 8.5)
    assert view[0].next.reward == 8.5 and view[0].action == 2
    view.extend(records.with_format("arrow")[:2])
    check(view[-1], view[1])


def broken(**changes: Any) -> dict[str, Any]:
    return {**vars(transition(1)), **changes}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({k: v for k, v in broken().items() if k != "label"}, "no value for 'label'; Transition"),
        (broken(labell="x"), "has no field 'labell'; did you mean 'label'"),
        (broken(next={"obs": np.zeros((4, 4), "uint8")}), "no value for 'next/reward'"),
        (broken(next=3), "no value for 'next/obs'"),
        (Transition(None, *[*vars(transition(1)).values()][1:]), "no value for 'obs'"),
        (Next(0, 0), "is neither Transition nor a dict"),
        ([1, 2], "is neither Transition nor a dict"),
        (broken(obs=np.zeros((4, 5), "uint8")), "field 'obs': "),
        (broken(action=0.5), "field 'action'"),
        (broken(tokens=np.zeros((2, 2), "int32")), "field 'tokens'"),
        (broken(label=3), "field 'label': 3 is not text"),
    ],
)
def test_what_is_no_row_changes_nothing(records: stash.Records, value: Any, message: str) -> None:
    view = typed(records, Transition)
    for write in (lambda: view.__setitem__(1, value), lambda: view.append(value)):
        with pytest.raises(Invalid, match=message):
            write()
    with pytest.raises(Invalid, match=message):
        view.extend([transition(0), value])
    check(view[1], transition(1))
    assert len(view) == ROWS


def test_unknown_attributes_name_the_nearest(records: stash.Records) -> None:
    view: Any = typed(records, Transition)
    with pytest.raises(
        AttributeError, match="Transition has no field 'lable'; did you mean 'label'"
    ):
        _ = view.lable
    with pytest.raises(AttributeError, match="has no field 'rewards'; did you mean 'reward'"):
        _ = view.next.rewards
    with pytest.raises(AttributeError, match="has no field 'lable'"):
        view.lable = 3
    with pytest.raises(AttributeError, match=r"assign to rows, view\[i\] = Transition"):
        view.label = 3
    assert not hasattr(view, "__array_interface__")


def test_views_pickle(tmp_path: Any) -> None:
    made = stash.create_records(tmp_path / "r", schema_of(Transition))
    made.append(transition(3))
    view = pickle.loads(pickle.dumps(typed(made, Transition)))
    check(view[0], transition(3))
    assert pickle.loads(pickle.dumps(view.next))[0].reward == 1.5
    assert repr(view).startswith("<Typed Transition of <")


# -- classes ----------------------------------------------------------------------------


@dataclass
class Wrong:
    obs: Any
    lable: str


class Optional(TypedDict):
    label: str
    weight: NotRequired[float]


@dataclass
class Clash:
    append: int


@dataclass
class Unresolved:
    obs: Nowhere  # type: ignore[name-defined]  # noqa: F821
    action: int
    next: Elsewhere  # type: ignore[name-defined]  # noqa: F821


def test_names_of_a_class_are_fields(records: stash.Records) -> None:
    with pytest.raises(
        Invalid, match="Wrong names 'lable', which is not a field; did you mean 'label'"
    ):
        typed(records, Wrong)
    with pytest.raises(Invalid, match="does not describe a row"):
        typed(records, dict)
    with pytest.raises(Invalid, match="does not describe a row"):
        typed(records, transition(0))  # type: ignore[arg-type]
    with pytest.raises(Invalid, match=r"the annotation of Unresolved\.next names what cannot be"):
        typed(records, Unresolved)
    assert typed(records, Optional)[2] == {"label": "row 2"}
    named = stash.create_records({}, {"append": int}, 1)
    with pytest.raises(Invalid, match=r"Clash\.append is what typed views"):
        typed(named, Clash)


def test_a_class_tells_the_schema() -> None:
    assert schema_of(Transition) == schema_of(TransitionDict)
    assert schema.parse(schema_of(Transition)) == schema.parse(
        {
            "obs": ((4, 4), "uint8"),
            "action": "int64",
            "tokens": schema.ragged("int32"),
            "label": str,
            "meta": schema.json,
            "next": {"obs": ((4, 4), "uint8"), "reward": "float64"},
        }
    )

    @dataclass
    class Plain:
        a: bool
        b: np.float32
        c: complex
        d: datetime
        e: date
        f: timedelta
        g: bytes
        h: list[int]
        i: Annotated[int, "a note", ((), "uint8")]
        j: list[str] = field(default_factory=list)

    parsed = schema.parse(schema_of(Plain))
    assert [str(parsed[n].dtype) for n in "abcdef"] == [
        *("bool", "float32", "complex128"),
        *("datetime64[us]", "datetime64[D]", "timedelta64[us]"),
    ]
    assert [parsed[n].kind for n in "ghij"] == ["bytes", "json", "fixed", "json"]
    assert parsed["i"].dtype == np.uint8
    with pytest.raises(Invalid, match=r"field 'obs': .* tells no shape and dtype; write Annotated"):
        schema_of(Wrong)
    with pytest.raises(Invalid, match="cannot be found: next, obs"):
        schema_of(Unresolved)
