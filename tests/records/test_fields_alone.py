"""A field of records that is opened by its own location: what reads and writes it in place, and
what would have the records read something else as theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.errors import AlreadyExists, Unsupported
from tests.support.remote import remote


@pytest.fixture(params=["file", "redis", "s3fs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any]:
    if request.param == "file":
        return str(tmp_path / "r"), None
    found = remote(request.param, request.getfixturevalue)
    return found.fresh(), found.options


def made(place: tuple[str, Any]) -> stash.Records:
    rows = {
        "x": np.arange(4, dtype="i4"),
        "t": [np.arange(n) for n in range(4)],
        "in": {"y": [5] * 4},
    }
    return stash.save_records(place[0], rows, rows_per_chunk=4, options=place[1])


FIELDS = ("x", "in/y", "t/values", "t/offsets")


def test_it_is_read_and_written_in_place(place: tuple[str, Any]) -> None:
    records = made(place)
    alone = stash.open(f"{place[0]}/x", "r+", options=place[1])
    alone[1] = 9
    alone.attrs["unit"] = "m"
    assert records["x"][:].tolist() == alone[:].tolist() == [0, 9, 2, 3]
    records.append({"x": 4, "t": [7], "in": {"y": 6}})
    assert alone.refresh().shape == (5,) and alone.attrs["unit"] == "m"
    if place[1] is None:
        assert zarr.open_array(f"{place[0]}/x")[:].tolist() == [0, 9, 2, 3, 4]


@pytest.mark.parametrize("field", FIELDS)
def test_it_does_not_change_its_length(place: tuple[str, Any], field: str) -> None:
    records = made(place)
    alone = stash.open(f"{place[0]}/{field}", "r+", options=place[1])
    for _ in range(2):  # also after the records have changed its document
        rows = np.zeros((1, *alone.shape[1:]), alone.dtype)
        with pytest.raises(Unsupported, match=r"is a field of records.*open_records"):
            alone.append(rows)
        with pytest.raises(Unsupported, match="is a field of records"):
            alone.resize((1, *alone.shape[1:]))
        with pytest.raises(Unsupported, match="is a field of records"), alone.writer() as writer:
            writer.append(rows)
        records.append({"x": 4, "t": [7], "in": {"y": 6}})
        records.add_field("late", "int8")
        alone = stash.open(f"{place[0]}/{field}", "r+", options=place[1])
        records.drop_field("late")
    with pytest.raises(Unsupported, match="is a field of records"):
        records.add_field("late", "int8")
        stash.open(f"{place[0]}/late", "r+", options=place[1]).append([1])
    assert records["x"][:].tolist() == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("field", [*FIELDS, "t", "in"])
def test_nothing_is_put_in_its_place(place: tuple[str, Any], field: str) -> None:
    records = made(place)
    where = f"{place[0]}/{field}"
    source = stash.save({}, np.arange(4.0))
    calls = (
        lambda: stash.save(where, np.arange(4, dtype="f4") + 1, chunks=4, options=place[1]),
        lambda: stash.create(where, (4,), "f4", overwrite=True, options=place[1]),
        lambda: stash.open(where, "w", shape=(4,), dtype="f4", options=place[1]),
        lambda: stash.copy(source, where, overwrite=True, options=place[1]),
        lambda: stash.create_group(where, overwrite=True, options=place[1]),
        lambda: stash.save_records(where, {"z": [1]}, options=place[1]),
    )
    for call in calls:
        with pytest.raises(AlreadyExists, match="field of records"):
            call()
    assert records["x"][:].tolist() == [0, 1, 2, 3]
    assert [row.tolist() for row in records["t"][:]] == [[*range(n)] for n in range(4)]


def test_records_and_their_fields_are_replaced_as_ever(place: tuple[str, Any]) -> None:
    records = made(place)
    records.drop_field("x")
    stash.save(f"{place[0]}/x", np.arange(3), options=place[1])  # a field no more
    again = made((f"{place[0]}-2", place[1]))
    assert len(again) == 4
    stash.copy(stash.open(f"{place[0]}-2/x", options=place[1]), f"{place[0]}-3", options=place[1])
    assert stash.open(f"{place[0]}-3", "r+", options=place[1]).append([7]) == 4
    stash.save(f"{place[0]}-2", np.arange(3), options=place[1])  # all of the records
    assert stash.load(f"{place[0]}-2", options=place[1]).tolist() == [0, 1, 2]
