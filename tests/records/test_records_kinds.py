"""Kinds of fields: what goes in comes out, of every type, or is refused by name."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tensordict import TensorDict

import tensorstash as stash
from tensorstash.errors import Corrupt, Invalid, StashError, Unsupported
from tensorstash.testing.counting import CountingDriver
from tests.support.oracle import same
from tests.support.records_model import EVERY, RECORD, Model, holds


def made(schema: Any, length: int = 0, **how: Any) -> stash.Records:
    return stash.create_records({}, schema, length, **how)


def refused(call: Any, match: str, error: type[StashError] = Invalid) -> None:
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_every_kind_survives_reopening(tmp_path: Path) -> None:
    model = Model(EVERY)
    rng = np.random.default_rng(0)
    records = stash.create_records(tmp_path / "r", EVERY, rows_per_chunk=4)
    for count in (1, 6, 2):
        block = model.block(rng, count)
        assert records.extend(block) == model.rows
        model.extend(block)
    again = stash.open_records(tmp_path / "r")
    holds(again, model)
    assert again.schema == records.schema
    assert stash.create_records({}, again.schema).schema == again.schema


# -- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("bool", [True, False]),
        ("uint8", [0, 255]),
        ("int8", [-128, 127]),
        ("uint64", [0, 2**64 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("float16", [-0.0, 1.5]),
        ("float32", [float("nan"), float("-inf")]),
        ("float64", [-0.0, 5e-324]),
        ("complex64", [1 + 2j, -0.0j]),
        ("bfloat16", [1.5, -0.0]),
        ("float8_e4m3fn", [1.5, 0.0]),
        ("datetime64[ns]", ["2026-01-01", "NaT"]),
        ("timedelta64[s]", [5, -5]),
        ("U3", ["é", "abc"]),
        ("S3", [b"a", b"abc"]),
        ("r16", [b"ab", b"\0\1"]),
        (RECORD, [(1, 2.5), (-1, -0.0)]),
    ],
    ids=str,
)
def test_types(tmp_path: Path, dtype: Any, values: list[Any]) -> None:
    kind = stash.records.schema.parse({"v": dtype})["v"].dtype
    wanted = np.array(values, "V2" if dtype == "r16" else kind)
    records = stash.create_records(tmp_path / "r", {"v": dtype, "w": ((2,), dtype)}, 1)
    records.append({"v": wanted[0], "w": wanted})
    records.extend({"v": wanted, "w": np.stack([wanted, wanted])})
    again = stash.open_records(tmp_path / "r")
    same(again["v"][...], np.concatenate([np.zeros(1, kind), wanted[:1], wanted]))
    same(again[1]["w"], wanted)
    same(again[1]["v"], wanted[0])
    same(again[:]["w"][2:], np.stack([wanted, wanted]))
    assert again.fields["v"].dtype == kind


def test_other_byte_orders_and_strides() -> None:
    records = made({"a": ((2,), "int32"), "t": stash.ragged("int32", 2)})
    given = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::-2]
    records.extend({"a": given, "t": [given.T, given[:1], given]})
    records.append({"a": given[0], "t": given[::-1]})
    records[0] = {"a": given[2], "t": np.asfortranarray(given)}
    same(records["a"][1], given[1].astype("i4"))
    same(records["a"][3], given[0].astype("i4"))
    same(records["a"][0], given[2].astype("i4"))
    for i, wanted in enumerate([given, given[:1], given, given[::-1]]):
        same(records["t"][i], np.ascontiguousarray(wanted, "i4"))


def test_tensors_of_every_sort() -> None:
    records = made({"x": ((2,), "float32"), "h": ((2,), "bfloat16"), "t": stash.ragged("int64")})
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    grown = torch.ones(2, requires_grad=True)
    records.append({"x": grown, "h": half, "t": torch.tensor([1, 2, 3])})
    records.append({"x": half, "h": half, "t": torch.arange(6)[::2]})
    records.extend({"x": grown[None], "h": half[None], "t": [torch.tensor([7])]})
    records.extend({"x": [grown, half], "h": [half, half], "t": [torch.tensor([8]), [9]]})
    records[0] = {"x": half, "h": half, "t": torch.tensor([], dtype=torch.int64)}
    records["x"][1] = grown
    wanted = half.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    same(records["h"][...], np.stack([wanted] * 5))
    assert records["x"][...].tolist() == [[1.5, -2], [1, 1], [1, 1], [1, 1], [1.5, -2]]
    assert [t.tolist() for t in records["t"]] == [[], [0, 2, 4], [7], [8], [9]]


@pytest.mark.parametrize(
    ("dtype", "value", "match"),
    [
        ("uint8", 256, "256 is out of range"),
        ("uint8", -1, "-1 is out of range"),
        ("int8", np.int64(-129), "-129 is out of range"),
        ("int64", np.uint64(2**63), "out of range"),
        ("int64", 2**70, "int64"),
        ("int32", 1.0, "lose"),
        ("int32", np.float32(2), "lose"),
        ("int32", np.ones((), ml_dtypes.bfloat16), "lose"),
        ("int32", torch.tensor(1.5), "lose"),
        ("int32", torch.tensor(1.5, dtype=torch.bfloat16), "lose"),
        ("bool", 2, "lose"),
        ("bool", 0.5, "lose"),
        ("float32", 1j, "lose"),
        ("bfloat16", 1j, "lose"),
        ("int32", "12", "lose"),
        ("float32", b"1", "lose"),
        ("int32", None, "NoneType"),
        ("int32", [1, 2], "shape"),
        ("int32", [[1], [2, 3]], "inhomogeneous"),
        ("int32", {1}, "set"),
        ("int64", np.datetime64("2020", "s"), "lose"),
        ("datetime64[s]", np.datetime64("2020-01-01T00:00:00.5"), "fit"),
        ("datetime64[s]", 1.5, "lose"),
        ("datetime64[s]", "no date", "date"),
        ("timedelta64[s]", np.datetime64("2020", "s"), "lose"),
        ("U2", "abc", "fit"),
        ("S2", b"abc", "fit"),
        ("S2", "é", "S2"),
        ("S2", 12, "lose"),
        (RECORD, (1, 2, 3), "record|tuple|size"),
        (RECORD, np.array((1.0, 2), [("b", "f4"), ("a", "i4")])[()], "its fields"),
        (RECORD, np.array((2**40, 2), [("a", "i8"), ("b", "f4")])[()], "out of range"),
    ],
    ids=str,
)
def test_what_a_field_cannot_hold(dtype: Any, value: Any, match: str) -> None:
    records = made({"ok": "int8", "v": dtype}, 2)
    before = dict(records.driver._mapping)  # type: ignore[attr-defined]
    for call in (
        lambda: records.append({"ok": 1, "v": value}),
        lambda: records.extend([{"ok": 1, "v": value}]),
        lambda: records.__setitem__(0, {"ok": 1, "v": value}),
        lambda: records.where([0, 1])["v"].__setitem__(0, value),
    ):
        refused(call, match)
    assert dict(records.driver._mapping) == before  # type: ignore[attr-defined]
    with pytest.raises(Invalid, match="field 'v'"):
        records.append({"ok": 1, "v": value})


def test_wrong_shapes_name_the_field() -> None:
    records = made({"x": ((2, 3), "float32"), "n": "int8"}, 4)
    row = {"x": np.zeros((2, 3)), "n": 1}
    for x in (np.zeros((3, 2)), np.zeros(6), 0, np.zeros((1, 2, 3)), []):
        for call in (
            lambda: records.append({**row, "x": x}),  # noqa: B023
            lambda: records.__setitem__(1, {**row, "x": x}),  # noqa: B023
        ):
            refused(call, r"field 'x': shape .* where \(1, 2, 3\) is needed")
    refused(lambda: records.extend({"x": np.zeros((2, 2, 2)), "n": [1, 2]}), "field 'x'")
    refused(lambda: records.extend({"x": np.zeros((2, 2, 3)), "n": [1]}), "different lengths")
    refused(lambda: records.extend({"x": 0, "n": [1]}), "'x'")
    refused(lambda: records.__setitem__(slice(0, 3), {**row, "n": [1, 2]}), "field 'n'")


def test_rounding_is_no_loss() -> None:
    records = made({"f": "float32", "h": "bfloat16", "c": "complex64", "b": "float32"})
    records.append({"f": 0.1, "h": 0.1, "c": 1, "b": True})
    records.append({"f": 2**40, "h": np.float64(3), "c": 0.1, "b": np.int8(1)})
    assert records["f"][...].tolist() == [np.float32(0.1), 2**40]
    assert records["h"][...].astype(float).tolist() == [0.10009765625, 3]


# -- text, bytes, JSON -------------------------------------------------------------------------


def test_text_and_bytes() -> None:
    records = made({"t": str, "b": bytes}, 1)
    texts = ["", "é", "\0", "a\0\0", "🙂" * 1000, np.str_("np")]
    records.extend({"t": texts, "b": [t.encode() for t in texts]})
    records.extend({"t": np.array(["u", "vw"]), "b": np.array([b"u", b"vw"])})
    records.append({"t": "one", "b": bytearray(b"one")})
    records.append({"t": np.array("zero-d")[()], "b": memoryview(b"abcd")[::2]})
    wanted = ["", *map(str, texts), "u", "vw", "one", "zero-d"]
    assert records["t"][...].tolist() == wanted
    assert records["b"][...].tolist() == [b"", *[t.encode() for t in wanted[1:10]], b"ac"]
    assert [type(row["t"]) for row in records] == [str] * 11
    assert type(records[3]["t"]) is type(records.where([3])["t"][0]) is str
    assert records[:]["t"].dtype == np.dtypes.StringDType()


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("t", b"bytes", "is not text"),
        ("t", 5, "is not text"),
        ("t", None, "is not text"),
        ("t", ["a"], "is not text"),
        ("t", "\ud800", "no UTF-8"),
        ("b", "text", "is not bytes"),
        ("b", 5, "is not bytes"),
        ("j", float("nan"), "no JSON"),
        ("j", [np.float32("inf")], "no JSON"),
        ("j", np.array([np.nan]), "no JSON"),
        ("j", {1, 2}, "no JSON"),
        ("j", range, "no JSON"),
        ("j", {(1, 2): 3}, "no JSON"),
        ("j", b"bytes", "no JSON"),
    ],
    ids=repr,
)
def test_what_is_no_such_value(name: str, value: Any, match: str) -> None:
    records = made({"t": str, "b": bytes, "j": stash.json}, 2)
    row = {"t": "", "b": b"", "j": 0, name: value}
    before = dict(records.driver._mapping)  # type: ignore[attr-defined]
    for call in (
        lambda: records.append(row),
        lambda: records.extend([row]),
        lambda: records.__setitem__(1, row),
        lambda: records.where([0, 1])[name].__setitem__(1, value),
    ):
        refused(call, f"field '{name}'.*{match}")
    assert dict(records.driver._mapping) == before  # type: ignore[attr-defined]
    for column in (5, "ab", ["a"], None):
        series = records.where([0, 1])[name]
        if name == "j" or (name == "t" and column == "ab"):
            continue  # one value for all rows
        refused(lambda: series.__setitem__(slice(0, 2), column), "field")  # noqa: B023


def test_json_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    refused(lambda: made({"j": stash.json}).append({"j": value}), "field 'j'.*no JSON")


def test_json() -> None:
    records = made({"j": stash.json}, 1)
    values = [None, True, 0, -1.5, 2**70, "", "é\ud800", [], {}, {"a": [{"b": None}]}, "\0", [[]]]
    for value in values:
        records.append({"j": value})
    records.extend({"j": values})
    given = [np.int64(1), np.float32(0.5), np.bool_(True), np.arange(3), torch.tensor([1, 2])]
    records.extend({"j": given})
    records.append({"j": {"n": np.arange(2)}})
    found = records[:]["j"]
    assert found == [None, *values, *values, 1, 0.5, True, [0, 1, 2], [1, 2], {"n": [0, 1]}]
    assert [type(v) for v in found[1:13]] == [type(v) for v in values]
    records[0:3] = {"j": {"one": "for all"}}
    assert records["j"][0] == records["j"][2] == {"one": "for all"}
    records["j"][[0, 1]] = [[1], [2]]
    assert records["j"][0:2] == [[1], [2]]


def test_json_written_by_others() -> None:
    records = made({"j": stash.json}, 2)
    records.source.table.columns["j"].arrays[0][1] = "{no json"
    refused(lambda: records[1], "field 'j'.*not JSON", Corrupt)
    assert records[0] == {"j": None}


# -- objects -----------------------------------------------------------------------------------


@dataclass
class Point:
    x: int


class Trap:
    sprung = False

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> None:
    Trap.sprung = True


def test_objects_are_pickled_where_both_sides_ask() -> None:
    for call in (
        lambda: made({"o": object}),
        lambda: made({"a": "i4"}, 2).add_field("o", object),
        lambda: stash.save_records({}, {"o": [1]}, {"o": object}),
    ):
        refused(call, "field 'o'.*allow_pickle=True")
    records = made({"o": object, "n": "i4"}, 1, allow_pickle=True)
    values = [None, Point(3), {1, 2}, [1, "a"], (1, 2), np.arange(3), lambda_free]
    for value in values:
        records.append({"o": value, "n": 1})
    records.extend({"o": values, "n": [1] * 7})
    found = records[:]["o"]
    assert found[0] is None
    for a, b in zip(found[1:], values + values, strict=True):
        assert type(a) is type(b)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
    records[0] = {"o": Trap(), "n": 2}
    refused(lambda: records.append({"o": (i for i in ()), "n": 1}), "field 'o'.*pickled")


def lambda_free() -> None:
    """A function that pickles by name."""


def test_objects_are_not_loaded_by_who_did_not_ask() -> None:
    driver = CountingDriver(stash.create_records({}, {"o": object}, allow_pickle=True).driver)
    stash.open_records(driver, "r+", allow_pickle=True).append({"o": Trap()})
    for mode in ("r", "r+"):
        reader = stash.open_records(driver, mode)
        driver.reset()
        for call in (
            lambda: reader[0],  # noqa: B023
            lambda: reader[:],  # noqa: B023
            lambda: reader["o"][0],  # noqa: B023
            lambda: list(reader),  # noqa: B023
        ):
            refused(call, "field 'o'.*allow_pickle=True", Unsupported)
        assert driver.reads.calls == 0  # chunks; what is asked is whether they are the same records
    refused(lambda: reader.append({"o": 1}), "allow_pickle", Unsupported)
    assert not Trap.sprung
    stash.open_records(driver, allow_pickle=True)[0]
    assert Trap.sprung
    Trap.sprung = False


def test_pickles_that_cannot_be_read() -> None:
    records = made({"o": object}, 3, allow_pickle=True)
    raw = records.source.table.columns["o"].arrays[0]
    raw[0] = b"rubbish"
    raw[1] = b"cno_such_module\nThing\n."
    refused(lambda: records[0], "field 'o'.*pickle", Corrupt)
    refused(lambda: records[1], "field 'o'.*no_such_module", Unsupported)
    assert records[2] == {"o": None}


# -- rows of every form ------------------------------------------------------------------------


def test_structured_rows() -> None:
    records = made({"r": RECORD, "rs": ((2,), RECORD)}, 3)
    given = np.array([(1, 0.5), (2, 1.5)], RECORD)
    records[0] = {"r": given[0], "rs": given}
    records[1] = {"r": (3, 2.5), "rs": [(4, 0), (5, 1)]}
    records.append({"r": {"a": 1, "b": 2}, "rs": given})
    records.extend({"r": [(6, 7), (8, 9)], "rs": [given, given]})
    assert records["r"][...].tolist() == [(1, 0.5), (3, 2.5), (0, 0), (1, 2), (6, 7), (8, 9)]
    assert records["rs"][1].tolist() == [(4, 0), (5, 1)]
    same(records[0]["r"], given[0])
    inner = made({"r": np.dtype([("p", [("x", "i4"), ("y", "U2")]), ("n", "i8")])})
    inner.append({"r": ((1, "ab"), 2)})
    inner.extend({"r": [((3, ""), 4), ((5, "é"), 6)]})
    assert inner["r"][...].tolist() == [((1, "ab"), 2), ((3, ""), 4), ((5, "é"), 6)]


def test_a_tensordict_of_several_rows_or_of_one() -> None:
    records = made({"a": "float32", "b": {"c": ((2,), "int32")}}, 3)
    some = TensorDict({"a": torch.ones(2), "b": {"c": torch.ones(2, 2, dtype=torch.int32)}}, [2])
    records[1:] = some
    records.extend(some)
    records.append(some[0])
    records[0] = some[1]
    records[[0, 1]] = some[0] * 2
    assert records["a"][...].tolist() == [2, 2, 1, 1, 1, 1]
    assert records["b/c"][...].tolist() == [[2, 2], [2, 2], [1, 1], [1, 1], [1, 1], [1, 1]]


def test_times_of_python() -> None:
    records = made({"t": "datetime64[us]"})
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    records.append({"t": when})
    records.extend({"t": [when, when]})
    same(records["t"][...], np.array([when] * 3, "M8[us]"))


@pytest.mark.parametrize(
    ("dtype", "most"),
    [("float32", 3e38), ("float16", 6e4), ("complex64", 3e38), ("bfloat16", 3e38)],
)
def test_numbers_that_would_overflow_are_refused(dtype: str, most: float) -> None:
    records = stash.create_records({}, {"x": dtype, "r": stash.ragged(dtype)})
    records.append({"x": most, "r": [most, np.inf, np.nan]})  # what is infinite stays so
    large = [10 * most, np.array(10 * most), -10 * most]
    if dtype != "complex64":
        large.append(int(10 * most))
    for value in large:
        for call in (
            lambda v=value: records.append({"x": v, "r": [0]}),
            lambda v=value: records.extend({"x": [v], "r": [[0]]}),
            lambda v=value: records.append({"x": 0, "r": [v]}),
            lambda v=value: records.__setitem__(0, {"x": v, "r": [0]}),
        ):
            with pytest.raises(Invalid):
                call()
    assert len(records) == 1 and np.isfinite(complex(records["x"][0]))
