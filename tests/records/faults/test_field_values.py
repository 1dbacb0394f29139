"""What is assigned to a field of records is checked like the rows themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.errors import Invalid, Unsupported

_LOST = {
    "n": [np.int64(300), 300, np.float64("nan"), 1.5, np.array([300, 1]), np.array([1.0, 2.0])],
    "f": [1e40, np.array([1e40, 1.0]), np.complex64(1j)],
    "t": [np.timedelta64(1, "s"), np.datetime64("2020-01-01T00:00:00.5")],
}


def _records(place: Any = None) -> Any:
    fields = {"n": "i1", "f": "f4", "t": "M8[s]", "s": str, "b": bytes, "r": stash.ragged("i1")}
    return stash.create_records({} if place is None else place, fields, 2)


@pytest.mark.parametrize("name, value", [(name, v) for name in _LOST for v in _LOST[name]])
def test_a_field_refuses_what_its_rows_refuse(name: str, value: Any) -> None:
    records = _records()
    field, view = records[name], records.select(name)
    with pytest.raises(Invalid):
        view[:] = {name: value}
    with pytest.raises(Invalid):
        field[:] = value
    with pytest.raises(Invalid):
        field.lazy[:] = value
    with pytest.raises(Invalid), field.writer() as writer:
        writer[:] = value
    if np.ndim(value) == 0:
        with pytest.raises(Invalid):
            field.setter()(1, value)
        with pytest.raises(Invalid):
            field[1] = value
    assert field[:].tolist() == _records()[name][:].tolist()


def test_a_field_takes_what_fits() -> None:
    records = _records()
    records["n"][:] = np.array([100, -100])
    records["f"][0] = 4
    records["t"][1] = np.datetime64("2020-01-01")
    records["s"][:] = ["a", "b"]
    records["b"][0] = b"x"
    assert records["n"][:].tolist() == [100, -100]
    assert records[0]["f"] == 4 and records[1]["t"] == np.datetime64("2020-01-01")
    assert records["s"][:].tolist() == ["a", "b"] and records["b"][0] == b"x"


def test_masked_elements_are_refused_by_records() -> None:
    records = stash.create_records({}, {"n": "i4", "r": stash.ragged("i4"), "j": dict}, 1)
    masked = np.ma.array([1, 2], "i4", mask=[True, False])
    row = {"n": 1, "r": [1], "j": {}}
    said = "1 of 2 values are masked; store values.filled"
    with pytest.raises(Invalid, match=said):
        stash.save_records({}, {"n": masked})
    with pytest.raises(Invalid, match=said):
        records.extend({"n": masked, "r": [[1], [2]], "j": [{}, {}]})
    with pytest.raises(Invalid, match=said):
        records.extend({"n": [1, 2], "r": [masked, masked], "j": [{}, {}]})
    for bad in ({"n": np.ma.masked}, {"n": masked[0]}, {"r": masked}):
        for store in (records.append, lambda v: records.extend([v]), lambda v: put(v)):

            def put(given: Any) -> None:
                records[0] = given

            with pytest.raises(Invalid, match="masked"):
                store({**row, **bad})
    with pytest.raises(Invalid, match=said):
        records.select("n")[:] = {"n": masked}
    with pytest.raises(Invalid, match=said):
        records["n"][:] = masked
    records.append({**row, "n": masked[1], "r": masked[1:]})
    assert len(records) == 2 and records[1]["n"] == 2 and records[1]["r"].tolist() == [2]


def test_rows_of_masked_elements_are_refused() -> None:
    table = np.ma.array([(1, 2), (3, 4)], dtype=[("a", "i4"), ("b", "i4")], mask=[(0, 1), (0, 0)])
    with pytest.raises(Invalid, match="masked"):
        stash.save_records({}, table)
    assert stash.save_records({}, table[1:])[0]["b"] == 4


def test_a_field_alone_says_how_rows_are_added() -> None:
    place: Any = {}
    _records(place)
    field = stash.open({k[2:]: v for k, v in place.items() if k.startswith("n/")}, "r+")
    for change in (lambda: field.resize(3), lambda: field.append([1])):
        with pytest.raises(Unsupported, match=r"append\(\) or extend\(\) of the records"):
            change()
