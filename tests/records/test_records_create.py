"""Creating records: a schema in every spelling, its layout, and next to nothing stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import tensorstash as stash
from tensorstash.errors import AlreadyExists, Invalid, NotFound, StashError, Unsupported
from tensorstash.records.schema import Field
from tests.support.oracle import same
from tests.support.records_model import EVERY, Model, holds

FIXED = Field("fixed", np.dtype("float32"), (2,))


# -- schemas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (((2,), "float32"), FIXED),
        ([[2], "float32"], FIXED),
        ((2, np.float32), FIXED),
        (((2,), torch.float32), FIXED),
        ((torch.Size([2]), ">f4"), FIXED),
        ("int8", Field("fixed", np.dtype("int8"))),
        (np.int8, Field("fixed", np.dtype("int8"))),
        (((), "int8"), Field("fixed", np.dtype("int8"))),
        (int, Field("fixed", np.dtype("int64"))),
        (float, Field("fixed", np.dtype("float64"))),
        (bool, Field("fixed", np.dtype(bool))),
        (torch.bool, Field("fixed", np.dtype(bool))),
        (str, Field("text", np.dtypes.StringDType())),
        ("string", Field("text", np.dtypes.StringDType())),
        (((), str), Field("text", np.dtypes.StringDType())),
        (bytes, Field("bytes", np.dtype(object))),
        (dict, stash.json),
        (stash.json, stash.json),
        (stash.ragged("int32"), Field("ragged", np.dtype("int32"))),
        (stash.ragged(torch.int32, 2), Field("ragged", np.dtype("int32"), (), 2)),
    ],
    ids=repr,
)
def test_how_a_field_is_said(given: Any, field: Field) -> None:
    records = stash.create_records({}, {"v": given})
    assert records.fields == {"v": field}
    assert stash.create_records({}, {"v": eval(repr(field), vars(stash))}).fields == records.fields


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        (None, "schema, or an example row"),
        ({}, "a schema is a dict"),
        ([("a", "i4")], "a schema is a dict"),
        ({"a": {}}, "'a' has no fields within"),
        ({"a": "float31"}, r"field 'a': 'float31' is not a dtype; did you mean 'float32'\?"),
        ({"a": None}, "field 'a'"),
        ({"a": ((2,), "i4", 3)}, r"write \(element_shape, dtype\)"),
        ({"a": ((-1,), "i4")}, "negative edge"),
        ({"a": ((1.5,), "i4")}, "element shape of 'a'"),
        ({"a": ((2,), str)}, "text and bytes are one value a row"),
        ({"a": ((2,), stash.json)}, "name json alone"),
        ({"a": ((2,), stash.ragged("i4"))}, "alone"),
        ({"a": object}, "allow_pickle=True"),
        ({"a": set}, "field 'a'"),
        ({"a": "i4", "a/b": "i4"}, "'a' is a field, and cannot hold 'a/b' too"),
        ({"a/b": "i4", "a": {"b": "f4"}}, "'a/b' is there twice"),
        ({"t": stash.ragged("i4"), "t/values": "i4"}, "cannot hold 't/values'"),
        ({"": "i4"}, "cannot name a field"),
        ({"a//b": "i4"}, "cannot name a field"),
        ({"..": "i4"}, "cannot name a field"),
        ({"a/../../b": "i4"}, "cannot name a field"),
        ({"__x": "i4"}, "cannot name a field"),
        ({"zarr.json": "i4"}, "cannot name a field"),
        ({"a\\b": "i4"}, "cannot name a field"),
        ({"a\0": "i4"}, "cannot name a field"),
        ({3: "i4"}, "named by text"),
        ({("a", 3): "i4"}, "named by text"),
    ],
    ids=repr,
)
def test_schemas_that_are_refused(schema: Any, match: str) -> None:
    place: dict[str, bytes] = {}
    with pytest.raises((Invalid, Unsupported), match=match) as caught:
        stash.create_records(place, schema)
    assert "\n" not in str(caught.value)
    assert place == {}


@pytest.mark.parametrize(
    "call",
    [
        lambda: stash.ragged(str),
        lambda: stash.ragged("i4", 0),
        lambda: stash.ragged("i4", 33),
        lambda: stash.ragged("i4", 1.0),
        lambda: stash.ragged("nope"),
    ],
)
def test_ragged_fields_that_are_refused(call: Any) -> None:
    with pytest.raises(Invalid):
        call()


NAMES = ["values", "offsets", "c", "0", "漢字 é", "a b", ".hidden", "a.b", "%41", "x" * 100, "a:b",
         "tensorstash", "zarr", "index", "0.0", "~", "-", "a'\"b"]  # fmt: skip


def test_names(tmp_path: Path) -> None:
    schema: dict[str, Any] = dict.fromkeys(NAMES, stash.ragged("i4"))
    schema["nest"] = {"values": "i4", "offsets": str, "c": {"c": "i2"}}
    records = stash.create_records(tmp_path / "r", schema, 1)
    model = Model(schema, 1)
    block = model.block(np.random.default_rng(0), 3)
    records.extend(block)
    model.extend(block)
    holds(stash.open_records(tmp_path / "r"), model)
    stash.open_records(tmp_path / "r", "r+").rename_field("values", "offsets2")
    found = stash.open_records(tmp_path / "r")
    assert [row.tolist() for row in found["offsets2"]] == [
        row.tolist() for row in model.columns["values"]
    ]


# -- from examples and values ------------------------------------------------------------------


def test_like_an_example_row() -> None:
    row = {
        "image": np.zeros((4, 4), "u1"),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "label": np.int16(3),
        "reward": np.float64(0.5),
        "count": 3,
        "done": False,
        "p": 0.5,
        "name": "x",
        "np name": np.str_("x"),
        "raw": b"x",
        "list": [1, 2, 3],
        "in": {"deep": {"x": torch.zeros(())}},
        "rec": np.zeros((), "i4,f4")[()],
    }
    records = stash.create_records({}, like=row)
    assert {name: repr(field) for name, field in records.fields.items()} == {
        "image": "((4, 4), 'uint8')",
        "half": "((2,), 'bfloat16')",
        "label": "((), 'int16')",
        "reward": "((), 'float64')",
        "count": "((), 'int64')",
        "done": "((), 'bool')",
        "p": "((), 'float64')",
        "name": "str",
        "np name": "str",
        "raw": "bytes",
        "list": "((3,), 'int64')",
        "in/deep/x": "((), 'float32')",
        "rec": "((), [('f0', '<i4'), ('f1', '<f4')])",
    }
    records.append(row)
    assert len(records) == 1
    named = stash.create_records(
        {}, {"list": stash.ragged("int64"), "in": stash.json}, like={**row, "in": {"any": [1]}}
    )
    assert repr(named.fields["list"]) == "ragged('int64')"
    assert named.fields["in"] == stash.json
    named.append({**row, "in": {"any": [1]}})
    for odd in ({"a": None}, {"a": {1, 2}}, {"a": [[1], [2, 3]]}, 5, {}):
        with pytest.raises(Invalid):
            stash.create_records({}, like=odd)


def test_saved_columns_tell_their_fields() -> None:
    columns = {
        "x": np.arange(6.0).reshape(3, 2),
        "t": [[1, 2], [], [3]],
        "same": [[1, 2], [3, 4], [5, 6]],
        "arrays": [np.ones((1, 2), "u1"), np.ones((2, 1), "u1"), np.ones((0, 0), "u1")],
        "s": ["a", "b", "c"],
        "u": np.array(["a", "bc", ""]),
        "b": [b"", b"x", b"y"],
        "j": [{"k": 1}, None, [1, "a"]],
        "mix": [1, "a", None],
        "half": torch.ones(3, dtype=torch.bfloat16),
        "big": np.arange(3, dtype=">u2"),
        "when": np.array(["2020", "2021", "NaT"], "M8[Y]"),
        "in": {"flag": [True, False, True], "n": torch.arange(3)},
    }
    records = stash.save_records({}, columns)
    assert {name: field.kind for name, field in records.fields.items()} == {
        "x": "fixed", "t": "ragged", "same": "fixed", "arrays": "ragged", "s": "text", "u": "text",
        "b": "bytes", "j": "json", "mix": "json", "half": "fixed", "big": "fixed", "when": "fixed",
        "in/flag": "fixed", "in/n": "fixed",
    }  # fmt: skip
    found = stash.open_records(records.driver)[:]
    same(found["big"], np.arange(3, dtype="u2"))
    same(found["when"], columns["when"])
    assert found["j"] == columns["j"]
    assert found["mix"] == columns["mix"]
    assert [row.tolist() for row in found["t"]] == columns["t"]
    assert [row.shape for row in found["arrays"]] == [(1, 2), (2, 1), (0, 0)]
    again = stash.save_records({}, found, records.schema)
    assert again.fields == records.fields
    assert again.names == records.names


def test_saving_rows_and_tensordicts_and_names() -> None:
    rows = [{"a": 1, "m": {"x": [1]}}, {"a": 2, "m": {"y": 2}}]
    records = stash.save_records({}, rows, {"m": stash.json})
    assert records[:]["m"] == [{"x": [1]}, {"y": 2}]
    some = TensorDict({"a": torch.arange(3), "b": {"c": torch.ones(3, 2)}}, [3])
    assert stash.save_records({}, some).schema == {
        "a": Field("fixed", np.dtype("int64")),
        "b": {"c": FIXED},
    }
    typed = stash.save_records({}, {"a": [1, 2], "t": [[1], [2]]}, {"t": stash.ragged("i2")})
    assert typed.fields["t"] == Field("ragged", np.dtype("i2"))
    assert typed.names == ("a", "t")
    for columns, schema, match in [
        ({}, None, "no columns"),
        ([], None, "no columns"),
        ({"a": [1], "b": [1, 2]}, None, "different lengths"),
        ({"a": [1]}, {"b": "i4"}, "no values for field 'b'"),
        ({"a": 3}, None, "'a'"),
        ({"a": np.float32(3)}, None, "'a'"),
    ]:
        with pytest.raises(Invalid, match=match):
            stash.save_records({}, columns, schema)


def test_what_cannot_be_saved_replaces_nothing() -> None:
    place: dict[str, bytes] = {}
    stash.save_records(place, {"a": [1, 2]})
    before = dict(place)
    for columns, schema, options in [
        ({"a": [1.5]}, {"a": "i4"}, {}),
        ({"a": [1], "j": [float("nan")]}, {"j": stash.json}, {}),
        ({"a": [1], "o": [1]}, {"o": object}, {}),
        ({"a": [1]}, None, {"rows_per_chunk": 0}),
        ({"a": [1]}, None, {"attributes": {"x": object()}}),
        ({"a": [1]}, None, {"attributes": [1]}),
        ({"a": [1]}, None, {"codecs": "nope"}),
        ({"a": [1]}, None, {"nope": 1}),
    ]:
        with pytest.raises(StashError):
            stash.save_records(place, columns, schema, **options)
        assert place == before
    assert stash.save_records(place, {"b": [1]}).names == ("b",)


# -- places ------------------------------------------------------------------------------------


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    stash.create_records(tmp_path / "r", EVERY, 3)
    array = stash.create(tmp_path / "a", (3,), "i4")
    with pytest.raises(AlreadyExists, match="overwrite=True"):
        stash.create_records(tmp_path / "r", {"a": "i4"})
    with pytest.raises(AlreadyExists):
        stash.create_records(tmp_path / "a", {"a": "i4"})
    assert stash.create_records(tmp_path / "r", {"a": "i4"}, overwrite=True).names == ("a",)
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["a", "zarr.json"]
    assert array.refresh().shape == (3,)


def test_what_is_no_records(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=str(tmp_path)):
        stash.open_records(tmp_path / "nothing")
    stash.create(tmp_path / "a", (3,), "i4")
    with pytest.raises(Invalid, match=r"is an array; open it with open\(\)"):
        stash.open_records(tmp_path / "a")
    stash.create_group(tmp_path / "g", {"tensorstash": 3})
    with pytest.raises(Invalid, match=r"holds no records; open it with open_group\(\)"):
        stash.open_records(tmp_path / "g")
    with pytest.raises(Invalid, match="mode 'w'"):
        stash.open_records(tmp_path / "a", "w")  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [-1, 1.5, True, "3", None, 1 << 63, [3]])
def test_lengths_that_are_refused(length: Any) -> None:
    with pytest.raises(Invalid, match="length"):
        stash.create_records({}, {"a": "i4"}, length)
    assert len(stash.create_records({}, {"a": "i4"}, np.int64(3))) == 3


def test_a_structured_dtype_is_named_as_numpy_names_it() -> None:
    fields = [("a", "i4"), ("b", "f8")]
    records = stash.create_records({}, {"s": fields, "t": ((3,), fields)}, 2)
    assert records["s"].dtype == records["t"].dtype == np.dtype(fields)
    assert records["t"].shape == (2, 3)
    assert stash.create_records({}, eval(repr(records.schema)), 2).schema == records.schema


def test_an_example_that_tells_no_dtype() -> None:
    with pytest.raises(Invalid, match="field 'label': None tells no dtype"):
        stash.create_records({}, like={"label": None})
    records = stash.create_records({}, {"label": stash.json}, like={"label": None})
    assert records.schema == {"label": stash.json}
