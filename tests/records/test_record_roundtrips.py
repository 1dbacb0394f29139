"""Records out in every format and in again: each row is what it was."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Unsupported
from tensorstash.records.formats import FORMATS

SCHEMA = {
    "image": ((3, 4), "uint8"),
    "vector": ((2,), "float32"),
    "flag": bool,
    "half": "float16",
    "bf16": "bfloat16",
    "time": "M8[us]",
    "next": {"reward": float, "tokens": stash.ragged("int32")},
    "crops": stash.ragged("uint8", ndim=2),
    "text": str,
    "data": bytes,
    "meta": stash.json,
}


def row(i: int) -> dict[str, Any]:
    return {
        "image": np.full((3, 4), i, "uint8"),
        "vector": np.array([i, -i], "float32"),
        "flag": i % 2 == 0,
        "half": i / 4,
        "bf16": np.array(i, ml_dtypes.bfloat16),
        "time": np.datetime64(i, "us"),
        "next": {"reward": i / 2, "tokens": np.arange(i % 3, dtype="int32")},
        "crops": np.ones((i % 3 + 1, 2), "uint8"),
        "text": f"row {i} \U0001f40d",
        "data": bytes([i, 0]),
        "meta": {"i": [i, None], "nested": {"text": "x"}},
    }


@pytest.fixture
def records() -> stash.Records:
    made = stash.create_records({}, SCHEMA, rows_per_chunk=4)
    made.extend([row(i) for i in range(7)])
    return made


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            same(found[name], wanted[name])
    else:
        assert type(found) is type(wanted)
        assert np.array_equal(found, wanted) if isinstance(wanted, np.ndarray) else found == wanted


@pytest.mark.parametrize("rows", [slice(None), slice(2, 2), [6, 0, 0]])
@pytest.mark.parametrize("form", FORMATS)
def test_columns_out_and_in(records: stash.Records, form: Any, rows: Any) -> None:
    made = stash.create_records({}, records.schema)
    made.extend(records.with_format(form)[rows])
    wanted = records[rows]
    assert len(made) == len(wanted["flag"])
    for i in range(len(made)):
        same(made[i], records[np.arange(7)[rows][i]])


@pytest.mark.parametrize("ragged", ["list", "jagged"])
@pytest.mark.parametrize("form", FORMATS)
def test_ragged_layouts_out_and_in(records: stash.Records, form: Any, ragged: Any) -> None:
    part = records.select("next", "crops", "text")
    made = stash.create_records({}, part.schema)
    made.extend(part.with_format(form, ragged)[:])
    for i in range(7):
        same(made[i], part[i])


@pytest.mark.parametrize("form", FORMATS)
def test_rows_out_and_in(records: stash.Records, form: Any) -> None:
    made = stash.create_records({}, records.schema)
    add = made.extend if form in ("arrow", "pandas", "polars") else made.append
    for i in (3, -1):
        add(records.with_format(form)[i])
    made[0] = records[5] if form in ("arrow", "pandas", "polars") else records.with_format(form)[5]
    same(made[0], records[5])
    same(made[1], records[6])


@pytest.mark.parametrize("form", FORMATS)
def test_assigned_columns(records: stash.Records, form: Any) -> None:
    records[1:3] = records.with_format(form)[5:7]
    same(records[1], records[5])
    same(records[2], records[6])


@pytest.mark.parametrize("form", FORMATS)
def test_new_records_from_columns(records: stash.Records, form: Any) -> None:
    part = records.select("image", "vector", "flag", "half", "next", "text", "data")
    given = part.with_format(form)[:]
    made = stash.save_records({}, given, part.schema if form in ("pandas", "python") else None)
    assert made.fields.keys() == part.fields.keys()
    for i in (0, 4):
        same(made[i], part[i])


def test_columns_that_are_not_selected_do_not_matter() -> None:
    made = stash.create_records({}, {"c": "complex64", "x": float}, 2)
    with pytest.raises(Unsupported, match="field 'c': Arrow has no complex numbers"):
        made.with_format("arrow")[:]
    assert made.select("x").with_format("arrow")[:].column_names == ["x"]
