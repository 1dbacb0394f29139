"""Records whose document or chunks were damaged or tampered with: named, and never followed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import (
    Conflict,
    Corrupt,
    DriverError,
    Invalid,
    NotFound,
    StashError,
    Unsupported,
)
from tensorstash.testing.counting import Call, FailingDriver, Fault
from tests.support.records_model import Model, holds

SCHEMA: dict[str, Any] = {
    "a": ((2,), "int32"),
    "t": stash.ragged("int32"),
    "p": stash.ragged("int32", 2),
    "s": str,
    "b": bytes,
    "j": stash.json,
    "h": "bfloat16",
    "in": {"x": "int8"},
}
Document = dict[str, Any]


def made(rows: int = 6) -> tuple[dict[str, bytes], Model]:
    place: dict[str, bytes] = {}
    records, model = stash.create_records(place, SCHEMA, rows_per_chunk=2), Model(SCHEMA)
    block = model.block(np.random.default_rng(3), rows)
    records.extend(block)
    model.extend(block)
    return place, model


def tampered(change: Callable[[Document, Document, Document], Any]) -> dict[str, bytes]:
    """``change(document, mark, members)`` is done to the stored document."""
    place, _ = made()
    document = json.loads(place["zarr.json"])
    mark = document["attributes"]["tensorstash"]
    members = document["consolidated_metadata"]["metadata"]
    change(document, mark, members)
    place["zarr.json"] = json.dumps(document).encode()
    return place


def each(target: Document, **values: Any) -> None:
    target.update(values)


DAMAGE: dict[str, tuple[Callable[..., Any], type[StashError], str]] = {
    "no version": (lambda d, m, x: m.pop("records"), Invalid, "holds no records"),
    "newer": (lambda d, m, x: each(m, records=2), Unsupported, "version 2; 1 is what we know"),
    "odd version": (lambda d, m, x: each(m, records=True), Unsupported, "version True"),
    "no rows": (lambda d, m, x: m.pop("rows"), Corrupt, "None rows"),
    "rows as text": (lambda d, m, x: each(m, rows="6"), Corrupt, "'6' rows"),
    "fewer than none": (lambda d, m, x: each(m, rows=-1), Corrupt, "-1 rows"),
    "more rows": (lambda d, m, x: each(m, rows=7), Corrupt, "7 rows, but its field 'a' 6"),
    "huge": (lambda d, m, x: each(m, rows=1 << 62), Corrupt, "rows, but its field 'a' 6"),
    "no fields": (lambda d, m, x: m.pop("fields"), Invalid, "holds no records"),
    "fields as a list": (lambda d, m, x: each(m, fields=["a"]), Invalid, "holds no records"),
    "empty": (lambda d, m, x: each(m, fields={}), Corrupt, "names no field"),
    "kind": (lambda d, m, x: each(m["fields"], a="cubic"), Unsupported, "'a' is of kind 'cubic'"),
    "kind as list": (lambda d, m, x: each(m["fields"], a=["fixed"]), Unsupported, "'a'"),
    "no kind": (lambda d, m, x: each(m["fields"], a=None), Unsupported, "kind None"),
    "absent field": (lambda d, m, x: each(m["fields"], z="fixed"), Corrupt, "'z' but has no meta"),
    "numbers as text": (lambda d, m, x: each(m["fields"], a="text"), Corrupt, "'a' is not text"),
    "text as numbers": (lambda d, m, x: each(m["fields"], s="fixed"), Corrupt, "'s' is fixed but"),
    "text as bytes": (lambda d, m, x: each(m["fields"], s="bytes"), Corrupt, "'s' is not bytes"),
    "bytes as json": (lambda d, m, x: each(m["fields"], b="json"), Corrupt, "'b' is not json"),
    "text as object": (lambda d, m, x: each(m["fields"], s="object"), Corrupt, "'s' is not object"),
    "ragged as fixed": (lambda d, m, x: each(m["fields"], t="fixed"), Corrupt, "'t'"),
    "fixed as ragged": (lambda d, m, x: each(m["fields"], a="ragged"), Corrupt, "'a/values'"),
    "climbing": (lambda d, m, x: each(m["fields"], **{"../up": "fixed"}), Corrupt, "cannot name"),
    "rooted": (lambda d, m, x: each(m["fields"], **{"/a": "fixed"}), Corrupt, "'/a'"),
    "nameless": (lambda d, m, x: each(m["fields"], **{"": "fixed"}), Corrupt, "cannot name"),
    "within": (lambda d, m, x: each(m["fields"], **{"a/b": "fixed"}), Corrupt, "cannot hold"),
    "member gone": (lambda d, m, x: x.pop("a"), Corrupt, "'a' but has no metadata"),
    "member odd": (lambda d, m, x: each(x, a={"zarr_format": 3, "node_type": "group"}), Corrupt,
                   "'a' is not an array"),
    "member false": (lambda d, m, x: each(x["a"], data_type="int31"), Unsupported, "'a'.*int31"),
    "member scalar": (
        lambda d, m, x: each(x["in/x"], shape=[], chunk_grid={
            "name": "regular", "configuration": {"chunk_shape": []}}), Corrupt, "is not an array"
    ),
    "members odd": (lambda d, m, x: each(m, members={"h": 5}), Corrupt, "as metadata of members"),
    "members a list": (lambda d, m, x: each(m, members=[1]), Corrupt, "as metadata of members"),
    "not consolidated": (lambda d, m, x: d.pop("consolidated_metadata"), Corrupt, "'a' but has no"),
    "offsets of floats": (
        lambda d, m, x: each(x["t/offsets"], data_type="float64", fill_value=0.0), Corrupt, "'t'"
    ),
    "offsets too many": (
        lambda d, m, x: each(x["t/offsets"], shape=[6, 3], chunk_grid={
            "name": "regular", "configuration": {"chunk_shape": [2, 3]}}), Corrupt, "do not fit"
    ),
    "values of two axes": (
        lambda d, m, x: each(x["t/values"], shape=[6, 3], chunk_grid={
            "name": "regular", "configuration": {"chunk_shape": [2, 3]}}), Corrupt, "do not fit"
    ),
    "attributes": (lambda d, m, x: each(d, attributes=[1]), Invalid, "attributes"),
    "version of zarr": (lambda d, m, x: each(d, zarr_format=9), Unsupported, "zarr_format"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_documents_that_were_tampered_with(what: str) -> None:
    change, error, match = DAMAGE[what]
    place = tampered(change)
    before = dict(place)
    good = stash.open_records(made()[0])
    # To who knew them as they were, those of another kind are not what was opened.
    known = error if issubclass(error, Corrupt) else Conflict
    for call, kind in (
        (lambda: stash.open_records(place), error),
        (lambda: stash.open_records(place, "r+"), error),
        (lambda: on_top(place), known),
    ):
        with pytest.raises(kind, match=match) as caught:
            call()
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)
        assert place == before
    assert len(good) == 6


def on_top(place: dict[str, bytes]) -> None:
    """What a handle that knows the records from before sees."""
    whole, model = made()
    records = stash.open_records(whole, "r+")
    block = model.block(np.random.default_rng(3), 2)
    whole["zarr.json"] = place["zarr.json"]
    chunks = {key: value for key, value in whole.items() if "/c/" in key}
    try:
        records.refresh()
    finally:
        with pytest.raises(StashError):
            records.select("a").source.table.change(lambda catalog, check: catalog)
        assert {key: value for key, value in whole.items() if "/c/" in key} == chunks
        assert block


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b"[" * 9999])
def test_documents_that_are_none(data: bytes) -> None:
    place, _ = made()
    place["zarr.json"] = data
    with pytest.raises((Corrupt, Invalid, Unsupported)) as caught:
        stash.open_records(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "s", "b", "j", "h", "in/x", "t/offsets", "t/values"])
@pytest.mark.parametrize("how", ["truncate", "flip"])
def test_damaged_chunks_are_named(name: str, how: Any) -> None:
    place, model = made()
    key = next(key for key in place if key.startswith(f"{name}/c/0"))

    def when(call: Call) -> Fault | None:
        return how if call.key == key else None  # type: ignore[no-any-return]

    field = name.removesuffix("/offsets").removesuffix("/values")
    records = stash.open_records(FailingDriver(MemoryDriver(place), when))
    for call in (lambda: records[0], lambda: records[:], lambda: records[[1, 0]],
                 lambda: list(records), lambda: records.select(field)[0]):  # fmt: skip
        with pytest.raises(Corrupt, match=name) as caught:
            call()
        assert caught.value.key == key
        assert caught.value.chunk is not None
        assert "\n" not in str(caught.value)
    others = [path for path in model.fields if path != field]
    assert records.select(*others)[0]


def test_failures_are_never_taken_for_absence() -> None:
    place, _ = made()

    def when(call: Call) -> Fault | None:
        return "error" if "/c/" in call.key else None

    records = stash.open_records(FailingDriver(MemoryDriver(place), when), "r+")
    row = {"a": [1, 2], "t": [1], "p": [[1]], "s": "", "b": b"", "j": 1, "h": 1, "in": {"x": 1}}
    before = dict(place)
    for call in (
        lambda: records[0],
        lambda: records["s"][0],
        lambda: records.lengths("t"),
        lambda: records.__setitem__(0, row),
        lambda: records.append(row),
    ):
        with pytest.raises(DriverError):
            call()
    assert {k: v for k, v in place.items() if "zarr.json" not in k} == {
        k: v for k, v in before.items() if "zarr.json" not in k
    }
    assert len(stash.open_records(place)) == 6


def test_absent_chunks_may_be_an_error() -> None:
    place, model = made()
    reader = stash.open_records(place, missing="raise")
    holds(reader, model)
    for name in ("a/c/0/0", "s/c/0", "t/offsets/c/0/0"):
        value = place.pop(name)
        with pytest.raises(NotFound, match=name):
            reader[2]
        place[name] = value
    empty = stash.create_records({}, SCHEMA, 4)
    with pytest.raises(NotFound):
        stash.open_records(empty.driver, missing="raise")[0]
    assert stash.open_records(empty.driver)[0]["j"] is None


# -- rows that are wrong -----------------------------------------------------------------------

GOOD: dict[str, Any] = {"a": 1, "t": [1], "s": "x", "in": {"x": 2}}


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({}, "no value for 'a', 't', 's', 'in/x'; the fields are 'a', 't', 's', 'in/x'"),
        ({**GOOD, "in": {}}, "no value for 'in/x'"),
        ({**GOOD, "b": 1, "in": {"x": 1, "y": 2}}, "no field 'in/y', 'b'"),
        ({"a": 1, "t": [], "S": "x", "in": {"x": 1}}, "no value for 's' and no field 'S'"),
        ({**GOOD, "in/x": 3}, "'in/x' is there twice"),
        ({**GOOD, 5: 3}, "named by text"),
        ({**GOOD, "in": 3}, "'in/x'|'in'"),
        ({**GOOD, "a": {"b": 1}}, "'a/b'|'a'"),
        (None, "a row is"),
        (5, "a row is"),
        ("row", "a row is"),
        ([1, 2], "a row is"),
        ([], "a row is"),
    ],
    ids=repr,
)
def test_rows_with_other_fields(row: Any, match: str) -> None:
    place: dict[str, bytes] = {}
    schema = {"a": "i4", "t": stash.ragged("i4"), "s": str, "in": {"x": "i4"}}
    records = stash.create_records(place, schema, 3)
    before = dict(place)
    for call in (lambda: records.append(row), lambda: records.__setitem__(1, row),
                 lambda: records.writer().append(row)):  # fmt: skip
        with pytest.raises(Invalid, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(Invalid):
        records.extend([GOOD, row])
    assert place == before


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({}, "no value for 'a', 's'"),
        ({"a": [1, 2]}, "no value for 's'"),
        ({"a": [1], "s": ["x", "y"]}, "different lengths"),
        ({"a": 1, "s": "x"}, "one value where a column is needed"),
        ({"a": [1], "s": "x"}, "one value where a column is needed"),
        ([{"a": 1, "s": "x"}, {"a": 1}], "row 1"),
        ([{"a": 1, "s": "x"}, 5], "row 1"),
        (5, "rows come as"),
        ("ab", "rows come as"),
        (np.arange(3), "rows come as"),
        (None, "rows come as"),
    ],
    ids=repr,
)
def test_columns_that_do_not_fit(columns: Any, match: str) -> None:
    place: dict[str, bytes] = {}
    records = stash.create_records(place, {"a": "i4", "s": str}, 3)
    before = dict(place)
    for call in (lambda: records.extend(columns), lambda: records.writer().extend(columns)):
        with pytest.raises(Invalid, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert place == before


def test_assignments_that_do_not_fit() -> None:
    place: dict[str, bytes] = {}
    records = stash.create_records(place, {"a": ((2,), "i4"), "s": str}, 4)
    before = dict(place)
    for rows, value, match in [
        (slice(0, 2), {"a": np.zeros((3, 2), int), "s": ["", ""]}, "field 'a'"),
        (slice(0, 2), {"a": [1, 2], "s": ["x"]}, "field 's': 1 value for 2 rows"),
        ([0, 9], {"a": [1, 2], "s": "x"}, "out of bounds"),
        ("a", [1], r"assign to rows, r\[i\] = {...}, or to a field: r\['a'\]\[rows\] = ..."),
        (("a", "b"), 1, "assign to rows"),
        (0, {"a": [1, 2]}, "no value for 's'"),
        (slice(0, 2), {"a": [1, 2]}, "no value for 's'"),
        (slice(0, 2), 5, "rows come as"),
        (None, {}, "rows are chosen along one axis"),
        (4, {"a": [1, 2], "s": ""}, "out of bounds"),
    ]:
        with pytest.raises(Invalid, match=match) as caught:
            records[rows] = value
        assert "\n" not in str(caught.value)
    assert place == before


def test_a_field_whose_document_lost_its_shape_gets_it_back_with_the_next_rows(
    tmp_path: Path,
) -> None:
    records = stash.create_records(tmp_path, {"a": "i4", "b": "f4"})
    records.append({"a": 1, "b": 1})
    document = json.loads((tmp_path / "b/zarr.json").read_bytes())
    del document["shape"]
    (tmp_path / "b/zarr.json").write_text(json.dumps(document))
    records = stash.open_records(tmp_path, mode="r+")
    records.append({"a": 2, "b": 2})
    assert len(stash.open_records(tmp_path)) == 2
    assert stash.open(tmp_path / "b")[:].tolist() == [1, 2]
