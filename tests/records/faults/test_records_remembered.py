"""A handle that appends goes by what it stored the last time only while that is what is stored."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine import chunks as chunks_module
from tensorstash.errors import Conflict, NotFound, StashError
from tensorstash.metadata.document import _ANY
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver

SCHEMA: dict[str, Any] = {"x": ((3,), "f4"), "in": {"y": "int64"}, "s": str}


def row(i: int) -> dict[str, Any]:
    return {"x": [i, i, i], "in": {"y": i}, "s": f"row {i}"}


def appended(place: Any, rows: int = 4, **how: Any) -> stash.Records:
    """A handle that has stored rows, and remembers."""
    records = stash.create_records(place, SCHEMA, rows_per_chunk=3, **how)
    for i in range(rows):
        records.append(row(i))
    return records


def holds_numbers(place: Any, rows: int) -> None:
    """Whoever opens the records, or one field alone, sees so many rows, each its number."""
    found = stash.open_records(place)[:]
    assert found["in"]["y"].tolist() == found["x"][:, 1].tolist() == [*range(rows)]
    assert found["s"].tolist() == [f"row {i}" for i in range(rows)]
    driver = stash.open_records(place).driver
    for field in ("x", "in/y", "s"):
        own = json.loads(bytes(driver.get(f"{field}/zarr.json") or b""))
        assert own["shape"][0] == rows


@pytest.fixture(params=["file", "shm", "zip", "memory"])
def place(request: Any, tmp_path: Path) -> Any:
    names = {"file": f"{tmp_path}/r", "zip": f"zip://{tmp_path}/r.zip", "memory": {}}
    return names.get(request.param, f"shm://remembered-{os.getpid()}")


def test_handles_that_take_turns_see_each_others_rows(place: Any) -> None:
    mine = appended(place)
    theirs = stash.open_records(mine.driver, "r+")
    for i in range(4, 24):
        handle = (mine, mine, theirs)[i % 3] if i < 14 else (mine, theirs)[i % 2]
        assert handle.append(row(i)) == i
    holds_numbers(mine.driver, 24)


def test_what_others_change_in_the_documents_stays(place: Any) -> None:
    mine = appended(place)
    driver = mine.driver
    stash.open_records(driver, "r+").attrs["note"] = "theirs"
    document = json.loads(bytes(driver.get("x/zarr.json") or b""))
    driver.put("x/zarr.json", json.dumps({**document, "attributes": {"unit": "m"}}).encode())
    group = json.loads(bytes(driver.get("in/zarr.json") or b""))
    copy = {"kind": "inline", "must_understand": False, "metadata": {}}
    driver.put("in/zarr.json", json.dumps({**group, "consolidated_metadata": copy}).encode())
    for i in range(4, 8):
        assert mine.append(row(i)) == i
        assert stash.open_records(driver).attrs["note"] == "theirs"
        assert b'"unit": "m"' in bytes(driver.get("x/zarr.json") or b"")
        assert b"consolidated" not in bytes(driver.get("in/zarr.json") or b"")
    holds_numbers(driver, 8)
    mine.attrs["more"] = 1
    mine.append(row(8))
    assert dict(stash.open_records(driver).attrs) == {"note": "theirs", "more": 1}


def replaced(place: str) -> None:
    stash.create_records(place, SCHEMA, rows_per_chunk=3, overwrite=True)


def put_back(place: str) -> None:
    other = stash.open_records(place, "r+")
    other.drop_field("s")
    other.add_field("s", str, ["like, but another"] * 4)


def moved(place: str) -> None:
    appended(f"{place}-new", 4)
    shutil.rmtree(place)
    os.rename(f"{place}-new", place)


def deleted(place: str) -> None:
    shutil.rmtree(place)


@pytest.mark.parametrize("change", [replaced, put_back, moved, deleted])
def test_it_is_noticed_that_others_are_there(tmp_path: Path, change: Callable[[str], None]) -> None:
    place = str(tmp_path / "r")
    mine = appended(place)
    change(place)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for _ in range(2):
        with pytest.raises((Conflict, NotFound)):
            mine.append(row(4))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_document_that_is_put_back_is_read_again(tmp_path: Path) -> None:
    # As by a backup: the rows of before, and what the handle stored since is beyond the edge.
    place = tmp_path / "r"
    mine = appended(str(place), 2)
    shutil.copytree(place, tmp_path / "backup")
    mine.append(row(2))
    mine.append(row(3))
    for file in (tmp_path / "backup").rglob("*"):
        if file.is_file():
            shutil.copy2(file, place / file.relative_to(tmp_path / "backup"))
    assert mine.append(row(2)) == 2
    holds_numbers(str(place), 3)


def test_the_digits_that_stand_for_any_length_may_be_a_users() -> None:
    mine = stash.create_records({}, SCHEMA, attributes={"n": _ANY, str(_ANY): [f"{_ANY} rows"]})
    for i in range(5):
        mine.append(row(i))
    assert dict(stash.open_records(mine.driver).attrs) == {"n": _ANY, str(_ANY): [f"{_ANY} rows"]}
    holds_numbers(mine.driver, 5)


def test_it_is_stored_as_by_a_fresh_handle() -> None:
    """Byte for byte, but for identities and trailers."""
    texts = []
    for fresh in (False, True):
        records = appended({}, 1)
        for i in range(1, 12):
            records = stash.open_records(records.driver, "r+") if fresh else records
            records.append(row(i))
        mapping = records.driver._mapping  # type: ignore[attr-defined]
        found = {k: bytes(v).rstrip() for k, v in mapping.items()}
        group = json.loads(found.pop("zarr.json"))
        del group["attributes"]["tensorstash"]["identities"]
        texts.append((found, json.dumps(group)))
    assert texts[0] == texts[1]


def test_ragged_fields_grow_beside(tmp_path: Path) -> None:
    mine = stash.create_records(str(tmp_path / "r"), {"t": stash.ragged("i4"), "n": "i8"})
    for i in range(9):
        mine.append({"t": [i] * i, "n": i})
        if i == 4:
            mine[2] = {"t": [7] * 50, "n": 2}
    found = stash.open_records(str(tmp_path / "r"))
    assert [len(t) for t in found[:]["t"]] == [0, 1, 50, 3, 4, 5, 6, 7, 8]
    group = zarr.open_group(str(tmp_path / "r"), mode="r")
    assert group["n"][:].tolist() == [*range(9)]
    assert zarr.open_array(str(tmp_path / "r" / "n")).shape == (9,)


def test_a_field_whose_document_could_not_be_stored_catches_up(tmp_path: Path) -> None:
    place = str(tmp_path / "r")
    mine = appended(place)
    os.remove(f"{place}/x/zarr.json")
    os.mkdir(f"{place}/x/zarr.json")  # nothing can be put there
    mine.append(row(4))
    os.rmdir(f"{place}/x/zarr.json")
    mine.append(row(5))
    holds_numbers(place, 6)


def test_nothing_is_remembered_where_looking_is_a_round_trip() -> None:
    driver = CountingDriver(MemoryDriver())
    driver.capabilities = replace(driver.capabilities, local=False)
    mine = appended(driver, 3)
    driver.reset()
    mine.append(row(3))
    assert driver.reads.keys >= 1 + 4  # the records' document, the members'
    holds_numbers(driver, 4)


def test_an_error_of_every_kind_is_one_of_ours(tmp_path: Path) -> None:
    place = str(tmp_path / "r")
    mine = appended(place)
    Path(place, "zarr.json").write_bytes(b"{")
    with pytest.raises(StashError):
        mine.append(row(4))


def test_threads_through_one_handle(tmp_path: Path) -> None:
    mine = appended(str(tmp_path / "r"), 0)
    with ThreadPoolExecutor(4) as pool:
        starts = [*pool.map(lambda i: mine.append(row(i)), range(40))]
    assert sorted(starts) == [*range(40)]
    found = stash.open_records(str(tmp_path / "r"))[:]
    assert found["in"]["y"][starts].tolist() == [*range(40)]
    assert np.array_equal(found["x"][:, 0], found["in"]["y"])


@pytest.mark.parametrize("codecs", [None, "auto"])
@pytest.mark.parametrize("seed", range(2))
def test_rows_of_many_handles_are_those_of_numpy(tmp_path: Path, seed: int, codecs: Any) -> None:
    """Each keeps the chunk that it changed last; others, and zarr, change it too."""
    place, rng = str(tmp_path / "r"), np.random.default_rng(seed)
    schema = {"x": ((2,), "i4"), "y": "f8", "z": "u1"}
    how: dict[str, Any] = {} if codecs else {"codecs": None}
    stash.create_records(place, schema, 5, rows_per_chunk={"x": 4, "y": 3, "z": 1}, **how)
    handles = [stash.open_records(place, "r+") for _ in range(3)]
    x, y, z = np.zeros((5, 2), "i4"), np.zeros(5), np.zeros(5, "u1")
    for step in range(40):
        handle = handles[rng.integers(3)] if step % 3 else handles[0]
        value, at = int(rng.integers(1, 200)), int(rng.integers(len(handle)))
        kind = rng.integers(6)
        if kind < 2:
            handle.append({"x": [value, -value], "y": value / 2, "z": value})
            x = np.concatenate([x, [[value, -value]]])
            y, z = np.append(y, value / 2), np.append(z, value)
        elif kind < 4:
            handle[at] = {"x": [value, value], "y": value, "z": value}
            x[at], y[at], z[at] = value, value, value
        elif kind == 4:
            handle["x"][at : at + 3, 1] = value
            x[: len(handle)][at : at + 3, 1] = value
            handle["y"][at] = value
            y[at] = value
        else:
            other = zarr.open_group(place, mode="r+", use_consolidated=False)
            other["y"][at], other["x"][at] = -value, value
            y[at], x[at] = -value, value
        found = (handle if rng.integers(2) else stash.open_records(place))[:]
        n = len(found["y"])
        assert np.array_equal(found["x"], x[:n])
        assert np.array_equal(found["y"], y[:n]) and np.array_equal(found["z"], z[:n])
    assert len(stash.open_records(place)) == len(y)


def test_a_change_that_failed_is_not_kept(tmp_path: Path) -> None:
    fails = [False]
    inner = stash.create_records(str(tmp_path / "r"), {"x": "i4"}, 6).driver
    driver = FailingDriver(inner, lambda call: "error" if fails[0] and call.verb == "put" else None)
    records = stash.open_records(driver, "r+")
    records[0] = records[1] = {"x": 1}
    fails[0] = True
    with pytest.raises(StashError):
        records[2] = {"x": 7}
    fails[0] = False
    records[3] = {"x": 4}
    assert records["x"][:].tolist() == [1, 1, 0, 4, 0, 0]


def test_what_a_failed_append_left_is_not_seen_by_the_next(tmp_path: Path) -> None:
    fails: list[str] = []
    place = str(tmp_path / "r")
    stash.create_records(place, {"x": "i4", "y": "i4"}, rows_per_chunk=8, fill_value=-1)
    inner = stash.open_records(place).driver
    driver = FailingDriver(
        inner, lambda call: "error" if call.verb == "put" and call.key in fails else None
    )
    records = stash.open_records(driver, "r+")
    for i in range(3):
        records.append({"x": i, "y": i})
    for broken in ("y/c/0", "zarr.json"):
        fails[:] = [broken]
        for _ in range(2):
            with pytest.raises(StashError):
                records.extend({"x": [70, 71, 72], "y": [80, 81, 82]})
        fails.clear()
        n = len(records)
        records.append({"x": n, "y": n})
        again = stash.open_records(place, "r+")
        assert again["x"][:].tolist() == again["y"][:].tolist() == [*range(n + 1)]
        beyond = zarr.open_array(f"{place}/x", mode="r+")
        beyond.resize((8,))
        assert beyond[n + 1 :].tolist() == [-1] * (8 - n - 1)
        beyond.resize((n + 1,))


def test_attributes_that_are_changed_just_before_the_put_stay(tmp_path: Path) -> None:
    """The put is refused then, and done again on what is there; so is the next one."""
    change: list[Callable[[], None]] = []

    def when(call: Call) -> None:
        if call.verb == "put" and call.key.endswith("zarr.json") and change:
            change.pop()()

    for kind in ("records", "array"):
        place = str(tmp_path / kind)
        if kind == "records":
            stash.create_records(place, {"x": "i4"})
        else:
            stash.create(place, (0,), "i4")
        opened = stash.open_records if kind == "records" else stash.open
        driver = FailingDriver(opened(place).driver, when)
        mine: Any = opened(driver, "r+")
        for step in range(9):
            if step in (3, 4, 7):
                value = step
                change.append(lambda: opened(place, "r+").attrs.update(n=value))  # noqa: B023
            mine.append({"x": step} if kind == "records" else [step])
            assert not change
            assert dict(opened(place).attrs).get("n") == {3: 3, 4: 4, 5: 4, 6: 4}.get(
                step, 7 if step > 6 else None
            )
        assert len(opened(place)) == 9


def test_nothing_is_remembered_where_times_are_coarse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that keeps seconds, and uses numbers of inodes again, gives a version's tag to
    a later one."""
    utime = os.utime

    def coarse(file: int, times: Any = None, *, ns: Any = None) -> None:
        second = 1_700_000_000 * 10**9
        utime(file, ns=(second, second)) if ns else utime(file, times)

    mine = appended(str(tmp_path / "r"), 10)
    array = stash.create(str(tmp_path / "a"), (0,), "i4", chunks=64)
    driver = mine.driver
    assert driver.is_lasting(driver.tag("zarr.json"))
    monkeypatch.setattr(os, "utime", coarse)
    theirs = stash.open_records(str(tmp_path / "r"), "r+")
    other = stash.open(str(tmp_path / "a"), "r+")
    for i in range(10, 50):
        assert (mine, theirs, theirs)[i % 3].append(row(i)) == i
        assert (array, other, other)[i % 3].append([i]) == i - 10
    assert not driver.is_lasting(driver.tag("zarr.json"))
    holds_numbers(str(tmp_path / "r"), 50)
    assert stash.load(str(tmp_path / "a")).tolist() == [*range(10, 50)]


def test_few_chunks_are_kept_of_many_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "_KEPT_IN_ALL", 5 * 4096)
    arrays = [stash.create({}, (64, 64), "u1", chunks=64) for _ in range(12)]
    records = [
        stash.create_records({}, {"x": ((64,), "u1")}, 64, rows_per_chunk={"x": 64})
        for _ in range(12)
    ]
    for turn in range(3):
        for i, (array, rows) in enumerate(zip(arrays, records, strict=True)):
            array.append(np.full((1, 64), i + 1, "u1"))
            rows[turn] = {"x": np.full(64, i + 1)}
            kept = sum(nbytes for *_, nbytes in chunks_module._kept.values())
            assert 0 < kept <= 5 * 4096
    for i, (array, rows) in enumerate(zip(arrays, records, strict=True)):
        assert array[64:].tolist() == rows["x"][:3].tolist() == [[i + 1] * 64] * 3
    del arrays, records, array, rows
    assert not chunks_module._kept
