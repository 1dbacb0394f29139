"""Values that NumPy refuses, or that a mask hides, are refused: by every way of assigning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Invalid

_SCALARS = {
    "nan": np.float64("nan"),
    "inf": np.float32("inf"),
    "large": np.float64(1e10),
    "integer": np.int64(300),
    "negative": np.int16(-1),
    "fraction": np.float64(1.5),
    "NaT": np.datetime64("NaT"),
    "date": np.datetime64("2020-01-01"),
    "span": np.timedelta64(3, "s"),
    "complex": np.complex64(1 + 2j),
    "text": np.str_("5"),
    "bytes": np.bytes_(b"5"),
    "bool": np.True_,
    "raw": np.void(b"abcd"),
    "record": np.array((1, 2.0), "i4,f8")[()],
}
_DTYPES = ["i1", "i4", "u8", "f2", "f4", "?", "c8", "M8[s]", "m8[s]", "S3", "U3", "i4,f8", "int4"]


def _by_index(array: Any, value: Any) -> None:
    array[0] = value


def _by_slice(array: Any, value: Any) -> None:
    array[:1] = value


def _by_view(array: Any, value: Any) -> None:
    array.lazy[0:1][0] = value


def _by_writer(array: Any, value: Any) -> None:
    with array.writer() as writer:
        writer[0] = value


def _by_setter(array: Any, value: Any) -> None:
    array.setter()(0, value)


_WAYS = [_by_index, _by_slice, _by_view, _by_writer, _by_setter]


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("name", _SCALARS)
@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_scalar_of_numpys_is_stored_as_numpy_stores_it(
    dtype: str, name: str, way: Callable[[Any, Any], None]
) -> None:
    value = _SCALARS[name]
    array = stash.create({}, 2, dtype)
    # NumPy's assignment to int4 wraps; we go by the next wider type, and by the range.
    model = np.zeros(2, "i1" if dtype == "int4" else array.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model[0] = value
            if dtype == "int4" and not -8 <= model[0] <= 7:
                raise OverflowError
        except (TypeError, ValueError, OverflowError):
            with pytest.raises(Invalid):
                way(array, value)
            assert np.array_equal(array[:], np.zeros(2, array.dtype))
            return
        way(array, value)
    assert array[:].tobytes() == model.astype(array.dtype).tobytes()


@pytest.mark.parametrize("way", _WAYS)
def test_a_field_named_in_a_selection_takes_scalars_as_numpy_does(way: Any) -> None:
    array = stash.create({}, 2, [("x", "i4"), ("y", "f4")])
    with pytest.raises(Invalid):
        array["x", 0] = np.float64("nan")
    array["y", 0] = np.float64(1.5)
    assert array[0].tolist() == (0, 1.5)


def _masked(dtype: str = "i4") -> Any:
    return np.ma.array([1, 2, 3], dtype, mask=[False, True, False])


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("dtype", ["i4", "f4", "M8[s]"])
def test_masked_is_no_value(dtype: str, way: Callable[[Any, Any], None]) -> None:
    array = stash.create({}, 2, dtype)
    for value in (np.ma.masked, _masked(dtype)[1:2], [np.ma.masked] if dtype == "i4" else None):
        if value is not None:
            with pytest.raises(Invalid, match=r"mask"):
                way(array, value)
    way(array, _masked(dtype)[2:])
    assert array[0] == np.array(3, dtype)


def test_masked_elements_are_counted_and_refused() -> None:
    said = r"^1 of 3 values are masked; store values\.filled\(x\)$"
    place: Any = {}
    for dtype in (None, "i4", "f8", str, bytes):
        with pytest.raises(Invalid, match=said):
            stash.save(place, _masked() if dtype is not bytes else _masked("S1"), dtype=dtype)
    assert not place
    array = stash.create(place, 3, "i4")
    for store in (array.append, lambda v: array.writer().append(v)):
        with pytest.raises(Invalid, match=said):
            store(_masked())
    with pytest.raises(Invalid, match=said):
        array.oindex[[0, 1, 2]] = _masked()
    rows = stash.create({}, (2, 3), "i4")
    for given in ([_masked(), _masked()], (_masked(), [1, 2, 3])):
        with pytest.raises(Invalid, match="1 of 3 values are masked"):
            rows[:] = given
        with pytest.raises(Invalid, match="1 of 3 values are masked"):
            stash.save({}, given)


def test_a_mask_of_fields_is_counted_by_field() -> None:
    records = np.ma.array([(1, 2.0), (3, 4.0)], dtype="i4,f8", mask=[(0, 1), (0, 0)])
    with pytest.raises(Invalid, match="1 of 4 values are masked"):
        stash.save({}, records)
    assert stash.save({}, records[1:])[0].tolist() == (3, 4.0)


def test_a_masked_array_with_nothing_masked_is_its_data() -> None:
    whole = np.ma.array([[1, 2], [3, 4]], "i4")
    array = stash.save({}, whole)
    array[:] = whole
    array.append(whole)
    with array.writer() as writer:
        writer.append(np.ma.array(whole, mask=np.zeros((2, 2), bool)))
    assert array[:].tolist() == whole.tolist() * 3 and type(array[:]) is np.ndarray
