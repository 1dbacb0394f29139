"""Columns as tensors: every dtype as promised, over the columns' own memory, without a warning."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert
from torch.utils.data._utils.pin_memory import pin_memory

from tensorstash.columns import Ragged
from tensorstash.errors import Invalid, Unsupported
from tensorstash.loading.present import to_batch, to_rows, to_tensors
from tensorstash.torch import Batch

SAME = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
SAME += ("float16", "float32", "float64", "complex64", "complex128")
SMALL = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@pytest.mark.parametrize("name", SAME)
def test_numbers_keep_their_type_and_memory(name: str) -> None:
    array = np.arange(6).reshape(3, 2).astype(name)
    tensor = to_batch({"x": array})["x"]
    assert str(tensor.dtype) == f"torch.{name}"
    assert tensor.data_ptr() == array.ctypes.data
    assert np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("name", SMALL)
def test_small_floats_arrive_as_such(name: str) -> None:
    array = np.array([0.5, -2.0, 1.0]).astype(getattr(ml_dtypes, name))
    tensor = to_batch({"x": array})["x"]
    assert tensor.dtype is getattr(torch, name)
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.float().tolist() == [0.5, -2.0, 1.0]
    assert [float(row["x"]) for row in to_rows({"x": array})] == [0.5, -2.0, 1.0]


def test_what_torch_would_refuse_or_warn_of_is_copied() -> None:
    swapped = np.arange(4, dtype=">i4")
    reversed_ = np.arange(4)[::-1]
    locked = np.arange(4)
    locked.flags.writeable = False
    made = to_batch({"swapped": swapped, "reversed": reversed_, "locked": locked})
    assert made["swapped"].tolist() == [0, 1, 2, 3]
    assert made["swapped"].dtype is torch.int32
    assert made["reversed"].tolist() == [3, 2, 1, 0]
    made["locked"][0] = 9
    assert locked[0] == 0


def test_times_are_counts_of_their_unit() -> None:
    array = np.array(["2020-01-01", "NaT"], "datetime64[s]")
    tensor = to_batch({"x": array})["x"]
    assert tensor.tolist() == [1577836800, np.iinfo(np.int64).min]
    assert to_batch({"x": np.array([5], "timedelta64[ms]")})["x"].tolist() == [5]
    assert to_batch({"x": array.astype(">M8[s]")})["x"].tolist()[0] == 1577836800


def test_text_and_objects_are_lists() -> None:
    columns = {
        "text": np.array(["a", "bé"], np.dtypes.StringDType()),
        "fixed": np.array(["a", "b"]),
        "json": [{"a": 1}, None],
        "bytes": [b"x", b""],
    }
    batch = to_batch(columns)
    assert batch == {
        "text": ["a", "bé"],
        "fixed": ["a", "b"],
        "json": [{"a": 1}, None],
        "bytes": [b"x", b""],
    }
    assert to_rows(columns)[1] == {"text": "bé", "fixed": "b", "json": None, "bytes": b""}


def test_records_are_dicts_of_their_fields() -> None:
    array = np.zeros(2, [("a", "i4"), ("b", [("c", "f8")])])
    array["a"], array["b"]["c"] = [1, 3], [2.5, 4.5]
    batch = to_batch({"x": array})
    assert batch["x"]["a"].tolist() == [1, 3]
    assert batch["x"]["b"]["c"].tolist() == [2.5, 4.5]
    assert to_rows({"x": array})[1] == {"x": {"a": 3, "b": {"c": 4.5}}}


def test_what_has_no_tensor_is_named() -> None:
    with pytest.raises(Unsupported, match=r"field 'a/b': dtype .*\|V3 has no torch counterpart"):
        to_batch({"a/b": np.zeros(2, "V3")})
    with pytest.raises(Invalid, match="'tiled'; there are: jagged, list, padded"):
        to_batch({}, "tiled")


def test_paths_become_dicts_within_dicts() -> None:
    columns = {"obs": np.arange(2), "next/obs": np.arange(2), "next/a/b": np.arange(2)}
    batch = to_batch(columns)
    assert isinstance(batch["next"], Batch)
    assert batch["next"]["a"]["b"].tolist() == [0, 1]
    assert to_rows(columns)[1] == {"obs": 1, "next": {"obs": 1, "a": {"b": 1}}}
    assert type(to_rows(columns)[1]["next"]) is dict


# -- ragged ------------------------------------------------------------------------------------


def ragged() -> Ragged:
    return Ragged.of([[1, 2], [], [3, 4, 5]], np.dtype("int32"))


def test_ragged_is_jagged_over_its_own_memory() -> None:
    column = ragged()
    tensor = to_batch({"x": column})["x"]
    assert tensor.layout is torch.jagged
    assert [row.tolist() for row in tensor.unbind()] == [[1, 2], [], [3, 4, 5]]
    assert tensor.values().data_ptr() == column.values.ctypes.data
    assert tensor.offsets().data_ptr() == column.offsets.ctypes.data
    assert to_batch({"x": column[:0]})["x"].shape[0] == 0


def test_ragged_as_a_list_and_padded() -> None:
    column = ragged()
    listed = to_batch({"x": column}, "list")["x"]
    assert [row.tolist() for row in listed] == [[1, 2], [], [3, 4, 5]]
    assert listed[0].data_ptr() == column.values.ctypes.data
    padded = to_batch({"x": column}, "padded")["x"]
    assert padded.tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]
    assert [row["x"].tolist() for row in to_rows({"x": column})] == [[1, 2], [], [3, 4, 5]]


def test_ragged_of_several_axes_is_a_list() -> None:
    items = [np.ones((2, 3), "float32"), np.zeros((0, 4), "float32"), np.full((1, 1), 7, "float32")]
    column = Ragged.of(items, np.dtype("float32"), 2)
    listed = to_batch({"x": column})["x"]
    assert [tuple(row.shape) for row in listed] == [(2, 3), (0, 4), (1, 1)]
    assert listed[2].item() == 7
    assert to_batch({"x": column}, "padded")["x"].shape == (3, 2, 4)


def test_ragged_small_floats() -> None:
    column = Ragged.of([[1.0], [2.0, 3.0]], np.dtype(ml_dtypes.bfloat16))
    tensor = to_batch({"x": column})["x"]
    assert tensor.dtype is torch.bfloat16
    assert [row.tolist() for row in tensor.unbind()] == [[1.0], [2.0, 3.0]]


# -- what a source presents --------------------------------------------------------------------


def test_shown_makes_tensors_of_what_a_transform_answers() -> None:
    class Other(dict[str, Any]):
        pass

    array, other = np.arange(3), Other(a=np.arange(2))
    assert torch.equal(to_tensors(array), torch.arange(3))
    assert isinstance(to_tensors({"a": {"b": array}})["a"], Batch)
    assert [row.tolist() for row in to_tensors([array, array[:1]])] == [[0, 1, 2], [0]]
    assert isinstance(to_tensors((array, "x"))[0], torch.Tensor)
    assert to_tensors((array, "x"))[1] == "x"
    assert to_tensors({"x": ragged()})["x"].layout is torch.jagged
    assert to_tensors({"x": ["a", "b"]}) == {"x": ["a", "b"]}
    assert to_tensors(other) is other
    tensor = torch.zeros(2)
    assert to_tensors(tensor) is tensor


# -- the batch itself --------------------------------------------------------------------------


def batch() -> Batch:
    columns = {"x": np.arange(4.0), "next/x": np.arange(4), "tokens": ragged(), "text": ["a"] * 4}
    made = to_batch(columns)
    made["list"] = [torch.zeros(2), torch.ones(3)]
    return made


def same(one: Batch, other: Batch) -> None:
    assert type(one) is type(other) is Batch
    assert type(other["next"]) is Batch
    assert torch.equal(one["x"], other["x"])
    assert torch.equal(one["next"]["x"], other["next"]["x"])
    assert [r.tolist() for r in one["tokens"].unbind()] == [
        r.tolist() for r in other["tokens"].unbind()
    ]
    assert other["text"] == one["text"]
    assert torch.equal(other["list"][1], one["list"][1])


def test_to_moves_everything_within() -> None:
    made = batch()
    same(made, made.to("cpu"))
    assert made.to("cpu")["x"] is made["x"]
    del made["tokens"]  # nested tensors have no meta device
    away = made.to("meta")
    found = [away["x"], away["next"]["x"], *away["list"]]
    assert {tensor.device.type for tensor in found} == {"meta"}
    assert away["text"] == made["text"]


def test_pinning_reaches_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []

    def pin(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    made = batch()
    same(made, made.pin_memory())
    assert len(pinned) == 5
    same(made, pin_memory(made))  # as DataLoader's thread does it
    assert len(pinned) == 10


def test_a_batch_survives_conversion_copies_and_pickles() -> None:
    made = batch()
    same(made, default_convert(made))
    same(made, copy.copy(made))
    same(made, copy.deepcopy(made))
    same(made, pickle.loads(pickle.dumps(made)))


class Batches(Dataset[Batch]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Batch:
        return batch()


@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_a_batch_comes_through_a_loader(method: str | None) -> None:
    loader = DataLoader(
        Batches(), batch_size=None, num_workers=method is not None, multiprocessing_context=method
    )
    for found in loader:
        same(batch(), found)


def test_rows_collate_into_the_columns_they_came_from() -> None:
    x = np.arange(12.0).reshape(4, 3)
    columns = {"x": x, "next/x": np.arange(4), "text": ["a", "b", "c", "d"]}
    collated = default_collate(to_rows(columns))
    assert torch.equal(collated["x"], torch.from_numpy(x))
    assert torch.equal(collated["next"]["x"], torch.arange(4))
    assert collated["text"] == ["a", "b", "c", "d"]
