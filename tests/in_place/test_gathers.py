"""Rows copied out of maps, those of all fields in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.file import links
from tensorstash.engine.in_place import reading
from tensorstash.engine.native import library
from tensorstash.errors import Closed, Conflict, Corrupt, InvalidSelection, NotFound, StashError
from tests.support.oracle import same
from tests.support.races import fork, in_processes, in_threads

ROWS, WIDE = 50, 3000  # of fewer numbers more rows share a chunk


@pytest.fixture(autouse=True)
def _built() -> None:
    if library.library.kernel is None:
        pytest.skip("the kernel is not built")


def made(place: Path, rows: int = ROWS, written: int = ROWS) -> tuple[stash.Records, Any]:
    """Records of chunks of some rows, and what is in them."""
    fields = {"x": ((WIDE,), "i4"), "deep": {"y": "f8"}, "when": "datetime64[s]"}
    r = stash.create_records(place, fields, rows, in_place=True, rows_per_chunk=7)
    assert r["x"].chunks == (7, WIDE)
    model = {
        "x": np.repeat(np.arange(rows, dtype="i4")[:, None], WIDE, 1),
        "deep": {"y": np.arange(rows) / 4},
        "when": np.arange(rows).astype("datetime64[s]"),
    }
    model["x"][written:], model["deep"]["y"][written:] = 0, 0
    model["when"][written:] = np.datetime64(0, "s")
    if written:
        r[:written] = {n: v[:written] for n, v in model.items() if n != "deep"} | {
            "deep": {"y": model["deep"]["y"][:written]}
        }
    return r, model


class Calls:
    """How the kernel was called, and what came of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[bool] = []
        gather = reading.gather_mapped

        def noted(*args: Any) -> bool:
            self.done.append(gather(*args))
            return self.done[-1]

        monkeypatch.setattr("tensorstash.records.table.gather_mapped", noted)
        monkeypatch.setattr(reading, "gather_mapped", noted)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def check(r: stash.Records, model: Any, rows: Any) -> None:
    found = r[rows]
    same(found["x"], model["x"][rows])
    same(found["deep"]["y"], model["deep"]["y"][rows])
    same(found["when"], model["when"][rows])


@pytest.mark.parametrize("dtype", ["i8", "i4", "i1"])
@pytest.mark.parametrize("missing", ["fill", "raise"])
def test_rows_are_numpys(dtype: str, missing: Any, tmp_path: Path, calls: Calls) -> None:
    _, model = made(tmp_path / "r")
    r = stash.open_records(tmp_path / "r", "r+", missing=missing)
    rng = np.random.default_rng(0)
    for _ in range(5):
        check(r, model, rng.integers(-ROWS, ROWS, 20).astype(dtype))
    check(r, model, np.array([3, 3, 49, -50], dtype))
    check(r, model, np.arange(ROWS, dtype=dtype)[::-2])
    assert calls.done == [True] * 7
    view = r.select("x")
    same(view[np.array([4, 2])]["x"], model["x"][[4, 2]])
    same(r["x"][np.array([4, 2])], model["x"][[4, 2]])
    assert all(calls.done) and len(calls.done) == 9
    check(r, model, np.array([], dtype))
    for wrong in ([ROWS], [0, -ROWS - 1]):
        with pytest.raises(InvalidSelection):
            r[np.array(wrong, dtype)]
    r[np.array([1], dtype)[0]] = {"x": [7] * WIDE, "deep": {"y": 5.0}, "when": 3}
    assert r[np.array([1], dtype)]["x"].tolist() == [[7] * WIDE]
    assert r.with_format("torch")[np.array([1, 0], dtype)]["x"][0, 5] == 7
    assert r.with_transform(lambda b: b["x"] + 1)[np.array([1, 0])][0, 5] == 8
    check(r, r[:], np.array([1, 0]))


def test_chunks_that_are_not_there_are_fill_until_they_are(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    r, model = made(tmp_path / "r", 10 * ROWS, written=10)
    check(r, model, np.array([2, 490]))  # too far apart: not in one step
    assert calls.done.pop(0) is False
    calls.done.clear()
    rows = np.array([20, 9, 400, 2])
    check(r, model, rows)
    other = stash.open_records(tmp_path / "r", "r+")
    other[20] = {"x": [6] * WIDE, "deep": {"y": 9.0}, "when": 5}
    model["x"][20], model["deep"]["y"][20], model["when"][20] = 6, 9.0, 5
    check(r, model, rows)
    check(other, model, rows)
    assert calls.done == [True, True, True]
    folder = tmp_path / "r" / "x" / "c" / "57"
    assert not folder.exists()
    folder.symlink_to("nowhere")
    monkeypatch.setattr(links, "_KEPT_SECONDS", -1.0)
    with pytest.raises(StashError):
        r[rows]
    folder.unlink()
    check(r, model, rows)
    with pytest.raises(NotFound):
        stash.open_records(tmp_path / "r", missing="raise")[np.array([300])]


def test_files_that_are_replaced_deleted_or_cut(tmp_path: Path, calls: Calls) -> None:
    r, model = made(tmp_path / "r")
    rows = np.array([1, 0, 40])
    check(r, model, rows)
    file = tmp_path / "r" / "x" / "c" / "0" / "0"
    other = np.frombuffer(file.read_bytes(), "i4").copy()
    other[: 2 * WIDE] = -1
    aside = tmp_path / "aside"
    aside.write_bytes(other.tobytes())
    os.replace(aside, file)
    model["x"][:2] = -1
    check(r, model, rows)
    assert all(calls.done)
    file.unlink()
    model["x"][:7] = 0
    check(r, model, rows)
    file.symlink_to(tmp_path / "nowhere")  # no file, and no absent chunk either
    with pytest.raises(StashError):
        r[rows]
    file.unlink()
    file.write_bytes(other.tobytes()[:-4])
    with pytest.raises(Corrupt):
        r[rows]
    file.write_bytes(other.tobytes())
    model["x"][:7] = other.reshape(-1, WIDE)
    check(r, model, rows)


def test_records_that_are_others_by_now(tmp_path: Path, calls: Calls) -> None:
    r, model = made(tmp_path / "r")
    rows = np.array([1, 0, 40])
    check(r, model, rows)
    other = stash.open_records(tmp_path / "r", "r+")
    other.append({"x": [1] * WIDE, "deep": {"y": 1.0}, "when": 1})
    check(r, model, rows)  # it has as many rows as it knew
    with pytest.raises(InvalidSelection):
        r[np.array([ROWS])]
    assert r.refresh()[np.array([ROWS])]["x"].tolist() == [[1] * WIDE]
    other.drop_field("when")
    with pytest.raises(NotFound):
        r[rows]
    frozen = stash.open_records(tmp_path / "r", immutable=True)
    shutil.rmtree(tmp_path / "r")
    made(tmp_path / "r", written=0)
    with pytest.raises((Conflict, NotFound)):
        other[rows]
    assert frozen[rows]["x"].any() == 0
    frozen.close()
    with pytest.raises(Closed):
        frozen[rows]


def test_only_so_many_files_stay_open(tmp_path: Path) -> None:
    """Those that the driver lets go are held by nobody."""
    stash.create_group(tmp_path)
    fields = {"x": ((WIDE,), "i4")}
    r = stash.create_records(tmp_path / "r", fields, 600, in_place=True, rows_per_chunk=3)
    r[:] = {"x": np.repeat(np.arange(600, dtype="i4")[:, None], WIDE, 1)}
    for start in range(0, 600, 60):
        rows = np.arange(start, start + 60)[::-1].copy()
        assert r[rows]["x"][:, 7].tolist() == rows.tolist()
    maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
    assert maps <= 128
    rows = np.array([0, 1])
    r[rows]
    del stash.open_group(tmp_path, "r+")["r"]
    gone = [line for line in Path("/proc/self/maps").read_text().splitlines() if "r/x/c" in line]
    assert not [line for line in gone if str(tmp_path) in line]


def read_them(barrier: Any, r: stash.Records, rows: Any) -> None:
    barrier.wait()
    for _ in range(50):
        assert r[rows]["x"][:, 0].tolist() == [1, 0, 40]


def test_forked_children_and_threads(tmp_path: Path) -> None:
    r, model = made(tmp_path / "r")
    rows = np.array([1, 0, 40])
    check(r, model, rows)
    in_processes(fork, read_them, (r, rows), (r, rows))

    file = tmp_path / "r" / "x" / "c" / "1" / "0"

    def work(k: int) -> None:
        rng = np.random.default_rng(k)
        for _ in range(100):
            check(r, model, rng.integers(0, ROWS, 5))
            if k == 0:  # another file is put there under the others
                aside = tmp_path / "aside"
                shutil.copy(file, aside)
                os.replace(aside, file)

    in_threads(3, work)


def test_the_kernel_copies_no_rows_that_are_not_there(tmp_path: Path) -> None:
    kernel = library.library.kernel
    file = tmp_path / "x"
    file.write_bytes(bytes(range(8)))  # two rows of four bytes each
    status = file.stat()
    memory = file.read_bytes()
    one = (os.fsencode(file), -1, status.st_ino, status.st_dev, 8, memory)
    chunks: dict[int, Any] = {5: one, 6: b"/nowhere/x"}
    out = bytearray(12)

    def gather(rows: Any, known: Any = chunks, fill: Any = b"\7", count: int = 20) -> Any:
        return kernel.gather(None, [(known, 2, 4, fill, out)], rows, count)

    assert gather(np.array([11, 10, 12])) is True
    assert out == bytes([4, 5, 6, 7, 0, 1, 2, 3, 7, 7, 7, 7])
    assert gather(np.array([-9, -10, 10])) is True
    assert out == bytes([4, 5, 6, 7, 0, 1, 2, 3, 0, 1, 2, 3])
    assert gather(np.array([14, 10, 18])) == [(0, 7), (0, 9)]
    assert gather(np.array([10, 10, 10]), {5: os.fsencode(file)}) == [(0, 5)]
    assert gather(np.array([12, 12, 12]), {6: (b"/nowhere/x", *one[1:])}) == [(0, 6)]
    for k, other in ((2, 1), (3, 1)):
        moved = (*one[:k], one[k] + other, *one[k + 1 :])
        assert gather(np.array([10, 10, 10]), {5: moved}) == [(0, 5)]
    for rows in ([20, 10, 10], [-21, 10, 10], [1 << 62, 10, 10], [-(1 << 62), 10, 10]):
        assert gather(np.array(rows)) is False
    assert gather(np.array([0, 10, 1 << 50]), count=1 << 60) is False  # far apart
    assert gather(np.array([10, 12, 10]), fill=None) is False
    assert gather(np.array([10, 10, 10]), {5: (*one[:4], 7, memory[:7])}) is False
    assert gather(np.array([10, 10, 10]), {5: (*one[:5], memory[:7])}) is False
    look = (os.fsencode(file), status.st_ino, status.st_mtime_ns, 8)
    field, rows = (chunks, 2, 4, b"\7", out), np.array([10, 10, 10])
    assert kernel.gather(look, [field], rows, 20) is True
    assert kernel.gather((*look[:2], look[2] + 1, 8), [field], rows, 20) is False
    assert kernel.gather(None, [field, field], rows, 20) is True
    assert kernel.gather(None, [], rows, 20) is True
    for wrong in (
        (chunks, 0, 4, b"\7", out),
        (chunks, 2, -4, b"\7", out),
        (chunks, 1 << 62, 4, b"\7", out),
        (chunks, 2, 4, b"123", out),
        (chunks, 2, 4, b"", out),
        (chunks, 2, 4, b"\7", bytearray(11)),
    ):
        with pytest.raises(ValueError, match="no such rows"):
            kernel.gather(None, [wrong], rows, 20)
    with pytest.raises(ValueError, match="no such rows"):
        kernel.gather(None, [field], b"123", 20)
    with pytest.raises(ValueError, match="too many"):
        kernel.gather(None, [field] * 5000, rows, 20)
    odd: Any
    for odd in (1, (1, 2), ([], 2, 4, None, out), (chunks, 2, 4, None, b"123456789012")):
        with pytest.raises((TypeError, BufferError)):
            kernel.gather(None, [odd], rows, 20)
    for odd in (1, (b"a", 1), (*one[:5], 1.5)):
        with pytest.raises(TypeError):
            gather(rows, {5: odd})
    with pytest.raises(TypeError):
        kernel.gather(1, [field], rows, 20)


def test_of_two_chunks_that_fail_the_first_is_told_of(tmp_path: Path) -> None:
    made(tmp_path / "r")
    x = stash.open(tmp_path / "r" / "x", missing="raise")
    chunks = tmp_path / "r" / "x" / "c"
    (chunks / "0" / "0").unlink()
    (chunks / "2" / "0").unlink()
    (chunks / "2" / "0").mkdir()
    with pytest.raises(NotFound, match="c/0/0"):
        x[np.array([20, 15, 0])]
