"""Mode ``"a"``: what is there already is what is asked for, or says that it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import Invalid
from tests.support.every_place import stored

ROWS: dict[str, Any] = {"shape": (0, 6), "dtype": "int32", "chunks": (4, 3)}


def test_a_program_that_is_run_again_appends(tmp_path: Path) -> None:
    for run in range(1, 4):
        array = stash.open(tmp_path, "a", path="log/rows", **ROWS)
        array.append(np.full((2, 6), run))
        assert array.shape == (2 * run, 6)
    assert stash.load(tmp_path, path="log/rows")[:, 0].tolist() == [1, 1, 2, 2, 3, 3]


DTYPES = ("int32", "int64", ">i4", "uint32", "float32", "bfloat16", "bool", "str", "bytes", "M8[s]")


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_dtype_is_refused(dtype: str, zarr_format: Any) -> None:
    if dtype == "bfloat16" and zarr_format == 2:
        return
    driver = MemoryDriver({})
    stash.create(driver, (5, 6), dtype, zarr_format=zarr_format)
    before = stored(driver)
    for other in DTYPES:
        alike = {other, dtype} <= {"int32", ">i4"} or other == dtype
        if alike:
            assert stash.open(driver, "a", shape=(0, 6), dtype=other).shape == (5, 6)
            continue
        with pytest.raises(Invalid, match=r"memory:// is stored with dtype .*, not "):
            stash.open(driver, "a", shape=(5, 6), dtype=other)
    assert stored(driver) == before


lengths = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@given(lengths, lengths)
@example((5, 6), (9, 6))
@example((5, 6), (5, 0))
@example((), ())
@example((), (0,))
def test_another_shape_is_refused(there: Any, asked: Any) -> None:
    driver = MemoryDriver({})
    stash.create(driver, there, "int8")
    fits = len(there) == len(asked) and all(
        k == 0 or n in (0, there[k]) for k, n in enumerate(asked)
    )
    try:
        found = stash.open(driver, "a", shape=asked, dtype="int8")
    except Invalid as error:
        assert not fits
        assert f"shape {there}, not {asked}" in str(error)
    else:
        assert fits and found.shape == there


def test_what_values_mean_is_compared_and_how_they_are_stored_is_not() -> None:
    driver = MemoryDriver({})
    how: dict[str, Any] = {"shape": (4, 6), "dtype": "float32"}
    stash.create(driver, **how, fill_value=np.nan, dimension_names=["y", "x"], chunks=2)
    for options in (
        {"chunks": 3},
        {"shards": 4, "chunks": 2},
        {"codecs": None},
        {"zarr_format": 2},
        {"key_encoding": "v2", "separator": "."},
        {"order": "F"},
        {"in_place": True},
        {"attributes": {"k": 1}},
        {"fill_value": float("nan")},
        {"dimension_names": ("y", "x")},
        {"dtype": None, "shape": None},
    ):
        found = stash.open(driver, "a", **{**how, **options})
        assert (found.chunks, found.spec.zarr_format, dict(found.attrs)) == ((2, 2), 3, {})
    for options, said in (
        ({"fill_value": 0}, "fill value nan, not 0.0"),
        ({"dimension_names": ["x", "y"]}, r"dimension names \('y', 'x'\), not \('x', 'y'\)"),
        ({"dtype": "int8", "shape": 3}, r"dtype float32, not int8, and shape \(4, 6\), not \(3,\)"),
    ):
        with pytest.raises(Invalid, match=said):
            stash.open(driver, "a", **{**how, **options})


@pytest.mark.parametrize(
    ("dtype", "fill", "same", "other"),
    [
        ("float32", 0, (-0.0, 0), (1,)),
        ("bfloat16", np.nan, (np.nan,), (0,)),
        ("str", "a", ("a",), ("", "b")),
        ("bytes", b"a", (b"a",), (b"", b"b")),
        ("M8[s]", "NaT", ("NaT",), (0,)),
        ("complex64", complex(0, np.nan), (complex(0, np.nan),), (0,)),
        ([("a", "i4"), ("b", "f4")], (1, np.nan), ((1, np.nan),), ((2, np.nan), (1, 0))),
    ],
)
def test_fill_values_are_compared_as_values(dtype: Any, fill: Any, same: Any, other: Any) -> None:
    driver = MemoryDriver({})
    stash.create(driver, 3, dtype, fill_value=fill)
    for given_ in same:
        assert stash.open(driver, "a", shape=3, dtype=dtype, fill_value=given_).shape == (3,)
    for given_ in other:
        with pytest.raises(Invalid, match="fill value"):
            stash.open(driver, "a", shape=3, dtype=dtype, fill_value=given_)


def test_what_is_wrong_is_told_though_an_array_is_there() -> None:
    place: dict[str, Any] = {}
    stash.create(place, (4, 6), "int8")
    with pytest.raises(Invalid, match="did you mean 'chunks'"):
        stash.open(place, "a", shape=(4, 6), dtype="int8", chunk=2)  # type: ignore[call-arg]
    with pytest.raises(Invalid, match="is not a dtype"):
        stash.open(place, "a", shape=(4, 6), dtype="int9")
    with pytest.raises(Invalid, match="shape cannot be"):
        stash.open(place, "a", shape="4, 6", dtype="int8")  # type: ignore[arg-type]
    for shape in ((-1, 6), (4, -6), (1 << 70, 6)):
        with pytest.raises(Invalid, match=r"shape has -?[0-9.]+.*at least 0"):
            stash.open(place, "a", shape=shape, dtype="int8")
    with pytest.raises(Invalid, match="is a group"):
        stash.create_group(place, overwrite=True)
        stash.open(place, "a", shape=(4, 6), dtype="int8")


def test_who_is_second_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another creates it between the look and the creation."""
    place: dict[str, Any] = {}
    refresh = stash.Array.refresh

    def meanwhile(array: stash.Array) -> stash.Array:
        monkeypatch.setattr(stash.Array, "refresh", refresh)
        try:
            return refresh(array)
        finally:
            stash.create(place, (4, 6), "int8")

    monkeypatch.setattr(stash.Array, "refresh", meanwhile)
    with pytest.raises(Invalid, match="dtype int8, not int32"):
        stash.open(place, "a", **ROWS)
