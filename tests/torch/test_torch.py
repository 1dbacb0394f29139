"""Arrays as torch tensors: over the one buffer that is read, every dtype, in and out."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid, InvalidSelection, StashError, Unsupported
from tensorstash.testing.counting import CountingDriver
from tensorstash.torch import ArrayDataset, to_numpy, to_tensor
from tests.support.project import ROOT

PLAIN = [
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
SMALL = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
SMALL += ["float8_e8m0fnu"] if hasattr(torch, "float8_e8m0fnu") else []


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def values(dtype: str, shape: tuple[int, ...] = (6, 5)) -> np.ndarray:
    made = np.dtype(getattr(ml_dtypes, dtype)) if dtype in SMALL else np.dtype(dtype)
    plain = np.arange(np.prod(shape)).reshape(shape) - 3
    return (plain % 2 == 0) if dtype == "bool" else plain.astype("i8").astype(made)


@pytest.mark.parametrize("dtype", [*PLAIN, *SMALL])
def test_every_dtype_arrives_as_itself(dtype: str) -> None:
    data = values(dtype)
    array = stash.create({}, data.shape, dtype, chunks=(4, 3))
    array[...] = data
    for selection in (..., 2, np.s_[1:5, ::-2], np.s_[[3, 0, 3]], (2, 3), np.s_[2:2]):
        tensor = array.torch[selection]
        assert tensor.dtype == getattr(torch, dtype)
        assert tuple(tensor.shape) == np.shape(data[selection])
        assert bits(tensor) == np.ascontiguousarray(data[selection]).tobytes()
        assert tensor.is_contiguous()


@pytest.mark.parametrize("dtype", [*PLAIN, *SMALL])
def test_every_dtype_is_stored_from_a_tensor(dtype: str) -> None:
    data = values(dtype)
    tensor = to_tensor(data)
    array = stash.create({}, data.shape, getattr(torch, dtype), chunks=(4, 3))
    array[...] = tensor
    assert array[...].tobytes() == data.tobytes()
    array.torch[1] = tensor[2]
    array.torch.oindex[[3], [0, 1]] = tensor[:1, :2]
    array[4, :2] = tensor[0, 1::2]
    array[:, 4] = tensor.t()[0]
    expected = data.copy()
    expected[1], expected[3, :2], expected[4, :2] = data[2], data[0, :2], data[0, 1::2]
    expected[:, 4] = data[:, 0]
    assert array[...].tobytes() == expected.tobytes()
    array.append(tensor[:2])
    assert array[6:].tobytes() == data[:2].tobytes()
    assert bits(stash.save({}, tensor).torch[...]) == bits(tensor)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "bfloat16"])
def test_every_bit_pattern_of_small_floats_survives(name: str) -> None:
    patterns = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
    assert bits(stash.save({}, patterns).torch[...]) == bytes(range(256))


def test_every_bit_pattern_of_bfloat16_survives() -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    tensor = patterns.view(torch.bfloat16)
    assert bits(stash.save({}, tensor).torch[...]) == bits(tensor)
    assert torch.equal(to_tensor(to_numpy(tensor)).view(torch.int16), patterns)


def test_float32_is_rounded_to_bfloat16_as_torch_does() -> None:
    numbers = torch.linspace(-3, 3, 1001)
    array = stash.create({}, 1001, "bfloat16")
    array[...] = numbers
    assert torch.equal(array.torch[...], numbers.bfloat16())


def test_times_are_counts_of_their_unit() -> None:
    data = np.array(["2020-01-01", "NaT", "1969-12-31"], "M8[D]")
    days = stash.save({}, data).torch[...]
    assert days.dtype == torch.int64
    assert days.tolist() == [18262, -(2**63), -1]
    assert stash.save({}, np.array([5, -5], "m8[ms]")).torch[...].tolist() == [5, -5]


@pytest.mark.parametrize("dtype", [str, bytes, "U4", "S4", "V3", [("a", "i4")], "float8_e3m4"])
def test_what_torch_has_not_is_unsupported(dtype: Any) -> None:
    array = stash.create({}, (3,), dtype)
    with pytest.raises(Unsupported, match="no torch counterpart"):
        array.torch[...]
    assert len(array[...]) == 3


def test_the_tensor_is_the_one_buffer_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    array = stash.create({}, (64, 64), "bfloat16", chunks=(16, 64))
    array[...] = 1
    made = []

    def spy(*how: Any) -> Any:
        made.append(stash.Array.read_transform(array, *how))
        return made[-1]

    monkeypatch.setattr(array, "read_transform", spy)
    tensor = array.torch[10:20]
    assert len(made) == 1
    assert tensor.data_ptr() == made[0].ctypes.data
    tensor += 1
    assert (made[0] == 2).all()
    assert (array[...] == 1).all()  # it is yours: the stored array does not change


def test_tensors_share_memory_with_arrays_both_ways() -> None:
    for dtype in (*PLAIN, *SMALL):
        data = values(dtype)
        tensor = to_tensor(data)
        assert tensor.data_ptr() == data.ctypes.data
        assert to_numpy(tensor).ctypes.data == data.ctypes.data
        assert to_numpy(tensor).dtype == data.dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint16"])
@pytest.mark.parametrize("chain", ["auto", None])
def test_reading_into_a_tensor(dtype: str, chain: Any) -> None:
    data = values(dtype, (40, 6))
    array = stash.create({}, data.shape, dtype, chunks=(8, 6), codecs=chain)
    array[...] = data
    buffer = torch.zeros(40, 12, dtype=getattr(torch, dtype))
    whole, strided = buffer[:, :6].clone(), buffer[:, ::2]
    for out in (whole, strided):
        answer = array.read(out=out)
        assert answer.ctypes.data == out.data_ptr()
        assert bits(out) == data.tobytes()
    assert not buffer[:, 1::2].float().any()
    array.read(np.s_[5:15], out=whole[:10])
    assert bits(whole[:10]) == data[5:15].tobytes()
    array.lazy[::-1].read(out=whole)
    assert bits(whole) == data[::-1].tobytes()


Wrong = Callable[[stash.Array], Any]
WRONG: dict[str, tuple[Wrong, type[StashError]]] = {
    "out on another device": (lambda a: a.read(out=torch.empty(4, 4, device="meta")), Invalid),
    "out sparse": (lambda a: a.read(out=torch.eye(4).to_sparse()), Invalid),
    "out's dtype": (lambda a: a.read(out=torch.empty(4, 4, dtype=torch.float64)), Invalid),
    "out's shape": (lambda a: a.read(out=torch.empty(4)), Invalid),
    "value sparse": (lambda a: a.__setitem__(..., torch.eye(4).to_sparse()), Invalid),
    "value without memory": (lambda a: a.__setitem__(0, torch.ones(4, device="meta")), Invalid),
    "value's shape": (lambda a: a.__setitem__(0, torch.ones(3)), Invalid),
    "value of half complex": (
        lambda a: a.__setitem__(0, torch.ones(4, dtype=torch.complex32)),
        Unsupported,
    ),
    "index": (lambda a: a.torch[4], InvalidSelection),
}


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors(name: str) -> None:
    call, kind = WRONG[name]
    array = stash.create({}, (4, 4), "f4")
    with pytest.raises(kind) as caught:
        call(array)
    assert "\n" not in str(caught.value)
    assert (array[...] == 0).all()


def test_odd_tensors_are_stored_as_what_they_show() -> None:
    turned = torch.tensor([1 + 2j, 3 - 4j]).conj()
    assert stash.save({}, turned)[...].tolist() == [1 - 2j, 3 + 4j]
    assert stash.save({}, turned.imag)[...].tolist() == [-2, 4]
    learned = torch.ones(3, requires_grad=True) * 2
    assert stash.save({}, learned)[...].tolist() == [2, 2, 2]
    assert stash.save({}, torch.nn.Parameter(torch.ones(2)))[...].tolist() == [1, 1]
    assert stash.save({}, torch.tensor(7))[...] == 7
    assert stash.save({}, torch.ones(2).expand(3, 2))[...].shape == (3, 2)


def test_tensors_as_indices() -> None:
    data = values("int32", (8, 5))
    array = stash.save({}, data, chunks=(3, 2))
    assert np.array_equal(array[torch.tensor([5, 1, -1])], data[[5, 1, -1]])
    assert np.array_equal(array[torch.from_numpy(data % 2 == 0)], data[data % 2 == 0])
    assert np.array_equal(array.torch.vindex[torch.tensor([1, 2]), [0, 4]], data[[1, 2], [0, 4]])
    assert np.array_equal(array[torch.tensor(3)], data[3])


# -- the dataset ---------------------------------------------------------------------------


def test_rows_of_one_array_and_of_several() -> None:
    images, labels = values("float32", (10, 4)), np.arange(10)
    one = ArrayDataset(stash.save({}, images, chunks=(3, 4)))
    assert len(one) == 10
    assert torch.equal(one[3], torch.from_numpy(images[3]))
    assert torch.equal(one[-1], torch.from_numpy(images[9]))
    assert torch.equal(one[np.int64(2)], one[torch.tensor(2)])
    several = ArrayDataset(stash.save({}, images), stash.save({}, labels))
    row, label = several[4]
    assert torch.equal(row, torch.from_numpy(images[4]))
    assert label.shape == ()
    assert label == 4
    assert [int(label) for _, label in several] == list(range(10))  # iteration ends
    mapped = ArrayDataset(one.arrays[0], several.arrays[1], transform=lambda x, y: x.sum() + y)
    assert float(mapped[4]) == images[4].sum() + 4


@pytest.mark.parametrize("index", [10, -11, 2**40])
def test_rows_out_of_range(index: int) -> None:
    dataset = ArrayDataset(stash.save({}, np.arange(10)))
    with pytest.raises(IndexError, match="10 rows"):
        dataset[index]
    with pytest.raises(InvalidSelection):
        dataset.__getitems__([0, index])


def test_rows_by_what_is_no_integer() -> None:
    dataset = ArrayDataset(stash.save({}, np.arange(10)))
    for index in ("x", 1.5, None, slice(3)):
        with pytest.raises(InvalidSelection, match="integer"):
            dataset[index]  # type: ignore[index]


def test_a_batch_is_one_plan() -> None:
    driver = CountingDriver(MemoryDriver())
    data = values("float32", (100, 4))
    stash.create(driver, data.shape, "f4", chunks=(10, 4))[...] = data
    array = stash.open(driver)
    rows = [99, 3, 3, -1, 55, 50, 0, 99, 7]
    for column in (array, array.lazy[:]):
        dataset = ArrayDataset(column)
        driver.reset()
        batch = dataset.__getitems__(rows)
        assert driver.reads.keys == len({row % 100 // 10 for row in rows})
        assert torch.equal(torch.stack(batch), torch.from_numpy(data[rows]))
    driver.reset()
    assert dataset.__getitems__([]) == []
    assert driver.reads.keys == 0


def test_columns_of_every_kind() -> None:
    stored = stash.save({}, values("float32", (10, 4)), chunks=(3, 4))
    names = stash.save({}, [f"row {k}" for k in range(10)])
    dataset = ArrayDataset(
        stored, stored.lazy[::-1, 1:3], np.arange(10), torch.arange(10) * 2, names
    )
    row, backwards, number, double, name = dataset[3]
    assert torch.equal(backwards, torch.from_numpy(stored[6, 1:3]))
    assert (row[0], int(number), int(double), name) == (stored[3, 0], 3, 6, "row 3")
    batch = dataset.__getitems__([9, 0])
    assert [item[4] for item in batch] == ["row 9", "row 0"]


def test_wrong_datasets() -> None:
    array = stash.save({}, np.arange(10))
    group = stash.create_group({})
    for columns in ((), (5,), ([1, 2],), (group,), (stash.create({}, (), "i4"),)):
        with pytest.raises(Invalid):
            ArrayDataset(*columns)
    with pytest.raises(Invalid, match=r"\[10, 4\]"):
        ArrayDataset(array, array.lazy[:4])


def test_a_dataset_pickles_small_whatever_it_has_read(tmp_path: Path) -> None:
    attributes = {"notes": "x" * 100_000}
    array = stash.save(tmp_path / "a", values("float32", (100, 40)), attributes=attributes)
    array = stash.open(tmp_path / "a", cache="1GiB")
    dataset = ArrayDataset(array, array.lazy[::-1, 3])
    dataset.__getitems__(range(100))
    data = pickle.dumps(dataset)
    assert len(data) < 2048
    again = pickle.loads(data)
    assert all(torch.equal(a, b) for a, b in zip(again[7], dataset[7], strict=True))


def test_torch_is_imported_only_when_asked_for() -> None:
    code = """
import sys
import numpy as np
import tensorstash as stash
a = stash.save({}, np.arange(3)); a[...] = [1, 2, 3]; a[...]; a.read(out=np.empty(3, "i8"))
assert "torch" not in sys.modules
a.torch[...]
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
