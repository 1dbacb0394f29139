"""Columns as tensors and TensorDicts: types, whose memory, and back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tensordict import NonTensorStack, TensorDict

from tensorstash.columns import Ragged
from tensorstash.errors import Unsupported
from tensorstash.records import schema
from tensorstash.records.formats import format_columns, format_row
from tensorstash.records.ingest import columns_of
from tensorstash.torch import Batch

TOKENS = Ragged.of([[1, 2], [], [3]], np.dtype("int32"))
IMAGES = Ragged.of([np.ones((2, 3)), np.ones((0, 3)), np.ones((1, 2))], np.dtype("float32"), 2)
PAIRS = np.array([(1, 2.0), (3, 4.0), (5, 6.0)], [("x", "i4"), ("y", "f8")])

COLUMNS: dict[str, Any] = {
    "int": np.array([1, -2, 3]),
    "flag": np.array([True, False, True]),
    "bf16": np.array([1, 0.5, 3], ml_dtypes.bfloat16),
    "f8": np.array([1, 0.5, 3], ml_dtypes.float8_e4m3fn),
    "complex": np.array([1j, 2, 3], "complex64"),
    "time": np.array([1, "NaT", -3], "M8[us]"),
    "next/image": np.arange(36, dtype="uint8").reshape(3, 3, 4),
    "tokens": TOKENS,
    "images": IMAGES,
    "text": np.array(["a", "zwölf", ""], np.dtypes.StringDType()),
    "data": [b"", b"\0x", b"\xff"],
    "meta": [{"a": [1, 2]}, None, "text"],
}
DTYPES = {
    "int": torch.int64,
    "flag": torch.bool,
    "bf16": torch.bfloat16,
    "f8": torch.float8_e4m3fn,
    "complex": torch.complex64,
    "time": torch.int64,
    "next/image": torch.uint8,
}


def within(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


@pytest.mark.parametrize("form", ["torch", "tensordict"])
def test_numbers_are_tensors_over_the_columns_memory(form: str) -> None:
    batch = format_columns(COLUMNS, form)
    assert isinstance(batch, Batch if form == "torch" else TensorDict)
    for path, dtype in DTYPES.items():
        tensor, column = within(batch, path), COLUMNS[path]
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, column.shape)
        assert tensor.data_ptr() == column.ctypes.data
    if form == "tensordict":
        assert batch.batch_size == (3,) and batch["next"].batch_size == (3,)
        kept = {name for name, value in batch.items() if isinstance(value, NonTensorStack)}
        assert kept == {"tokens", "images", "text", "data", "meta"}
    for name in ("text", "data", "meta"):
        assert list(batch[name]) == list(COLUMNS[name])
    assert {type(text) for text in batch["text"]} == {str}


@pytest.mark.parametrize("form", ["torch", "tensordict"])
def test_ragged_rows_as_list_padded_and_jagged(form: str) -> None:
    columns = {"t": TOKENS, "i": IMAGES}
    listed = format_columns(columns, form, "list")
    assert [row.tolist() for row in listed["t"]] == [[1, 2], [], [3]]
    assert [tuple(row.shape) for row in listed["i"]] == [(2, 3), (0, 3), (1, 2)]
    padded = format_columns(columns, form, "padded")
    assert padded["t"].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert padded["i"].shape == (3, 2, 3)
    jagged = format_columns(columns, form, "jagged")
    assert jagged["t"].is_nested
    assert jagged["t"].values().data_ptr() == TOKENS.values.ctypes.data
    assert jagged["t"].offsets().tolist() == [0, 2, 2, 3]
    assert [tuple(row.shape) for row in jagged["i"]] == [(2, 3), (0, 3), (1, 2)]


@pytest.mark.parametrize("ragged", ["list", "jagged"])
@pytest.mark.parametrize("form", ["torch", "tensordict"])
def test_back_from_tensors(form: str, ragged: str) -> None:
    fields = {"meta": schema.json}
    found = columns_of(format_columns(COLUMNS, form, ragged), fields)
    assert found.keys() == COLUMNS.keys()
    for path in DTYPES:
        assert found[path].data_ptr() == COLUMNS[path].ctypes.data
    for path, column in (("tokens", TOKENS), ("images", IMAGES)):
        assert [row.tolist() for row in found[path]] == [r.tolist() for r in column]
    assert isinstance(found["tokens"], Ragged) == (ragged == "jagged")
    for path in ("text", "data", "meta"):
        assert list(found[path]) == list(COLUMNS[path])


@pytest.mark.parametrize("ragged", ["list", "jagged", "padded"])
def test_no_rows(ragged: str) -> None:
    empty = {path: column[:0] for path, column in COLUMNS.items()}
    made = format_columns(empty, "tensordict", ragged)
    assert made.batch_size == (0,) and made["next", "image"].shape == (0, 3, 4)
    found = columns_of(made)
    assert found.keys() == COLUMNS.keys()
    assert {len(column) for column in found.values()} == {0}
    assert format_columns({}, "tensordict").batch_size == (0,)


def test_one_row() -> None:
    columns = {path: column[2:] for path, column in COLUMNS.items()}
    row = format_row(columns, "torch")
    assert row["int"].shape == () and row["int"] == 3
    assert row["bf16"].dtype == torch.bfloat16
    assert row["next"]["image"].shape == (3, 4)
    assert row["tokens"].tolist() == [3] and row["images"].shape == (1, 2)
    assert (row["text"], row["data"], row["meta"]) == ("", b"\xff", "text")
    made = format_row({path: column[:1] for path, column in COLUMNS.items()}, "tensordict")
    assert made.batch_size == () and made["next", "image"].shape == (3, 4)
    assert made["tokens"].tolist() == [1, 2]
    assert (made["text"], made["meta"]) == ("a", {"a": [1, 2]})


def test_structured_columns_are_dicts() -> None:
    fields = {"p": schema.Field("fixed", PAIRS.dtype)}
    for form in ("torch", "tensordict"):
        batch = format_columns({"p": PAIRS}, form)
        assert batch["p"]["y"].tolist() == [2, 4, 6]
        assert np.array_equal(columns_of(batch, fields)["p"], PAIRS)
        assert format_row({"p": PAIRS[:1]}, form)["p"]["x"] == 1


def test_what_no_tensor_can_hold_is_named() -> None:
    for form in ("torch", "tensordict"):
        with pytest.raises(Unsupported, match="field 'a/b'"):
            format_columns({"a/b": np.zeros(2, "V3")}, form)
