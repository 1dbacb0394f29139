"""Writers of one chunk in several processes: no row is lost, and a kill harms none but its own."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.engine.native import library
from tensorstash.errors import Conflict
from tests.support.races import finish, fork, in_processes, in_threads, spawn

ROWS, WIDTH = 400, 300


def write(barrier: Any, folder: Path, k: int, count: int, how: str) -> None:
    a = stash.open(folder, "r+")
    put = a.setter()
    barrier.wait()
    rows = np.arange(k, ROWS, count)
    if how == "list":
        for some in np.array_split(rows, 10):
            a[some] = np.repeat(some[:, None], WIDTH, 1)
        return
    for row in rows.tolist():
        if how == "put":
            put(row, row)
        else:
            a[row] = row


@pytest.mark.parametrize("how", ["put", "row", "list"])
def test_rows_of_one_chunk_by_several_processes(how: str, tmp_path: Path) -> None:
    """The file is there for none of them: each may be the one who makes it."""
    for trial in range(3):
        folder = tmp_path / str(trial)
        a = stash.create(folder, (ROWS, WIDTH), "i4", chunks=(ROWS, WIDTH), in_place=True)
        in_processes(fork, write, *((folder, k, 3, how) for k in range(3)))
        assert np.array_equal(a[...], np.repeat(np.arange(ROWS)[:, None], WIDTH, 1))


def test_rows_of_one_chunk_by_several_threads(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (ROWS, WIDTH), "i4", chunks=(7, WIDTH), in_place=True)

    def work(k: int) -> None:
        put = a.setter()
        for row in range(k, ROWS, 4):
            put(row, row) if row % 3 else a.__setitem__(row, row)
            assert a[row, 5] == row

    in_threads(4, work)
    assert np.array_equal(a[...], np.repeat(np.arange(ROWS)[:, None], WIDTH, 1))


def append(barrier: Any, folder: Path, k: int) -> None:
    r = stash.open_records(folder, "r+")
    barrier.wait()
    for i in range(10):
        r.extend({"id": [k * 100 + i] * 3, "x": np.full((3, 2), k)})
        r["x"][0] = k


def test_appends_by_several_processes_all_land(tmp_path: Path) -> None:
    r = stash.create_records(tmp_path, {"id": "i4", "x": ((2,), "i4")}, 1, in_place=True)
    in_processes(fork, append, (tmp_path, 1), (tmp_path, 2))
    r.refresh()
    ids = r["id"][1:].tolist()
    assert sorted(ids) == sorted([k * 100 + i for k in (1, 2) for i in range(10)] * 3)
    assert ids[::3] == ids[1::3] == ids[2::3]
    assert np.array_equal(r["x"][1:, 1], np.array(ids) // 100)


def write_until_killed(folder: Path, ready: Any) -> None:
    a = stash.open(folder, "r+")
    put = a.setter()
    k = 0
    while True:
        k += 1
        for row in range(1, ROWS, 2):
            put(row, k)
        ready.set()


def test_a_kill_tears_at_most_the_row_that_was_being_written(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (ROWS, WIDTH), "i4", in_place=True)
    a[::2] = -1
    for _ in range(3):
        ready = fork.Event()
        child = fork.Process(target=write_until_killed, args=(tmp_path / "a", ready))
        child.start()
        assert ready.wait(60)
        a[::2] = -1  # beside it
        os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        found = a[...]
        assert (found[::2] == -1).all()
        torn = [row for row in range(1, ROWS, 2) if len(np.unique(found[row])) > 1]
        assert len(torn) <= 1
        whole = [found[row, 0] for row in range(1, ROWS, 2) if row not in torn]
        assert max(whole) - min(whole) <= 1
        assert sorted(whole, reverse=True) == whole


def die_in_append(folder: Path) -> None:
    a = stash.open(folder, "r+")
    real = a.driver.put

    def put(key: str, *args: Any, **how: Any) -> Any:
        if key.endswith("zarr.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(key, *args, **how)

    a.driver.put = put  # type: ignore[method-assign]
    a.append(np.full((5, 2), 9))


def test_an_append_that_was_killed_never_shows(tmp_path: Path) -> None:
    a = stash.create(tmp_path, (2, 2), "i4", chunks=(4, 2), fill_value=7, in_place=True)
    child = fork.Process(target=die_in_append, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert stash.open(tmp_path).shape == (2, 2)
    assert a.append([[1, 2]]) == 2
    assert a[...].tolist() == [[7, 7], [7, 7], [1, 2]]
    a.resize((9, 2))
    assert a[3:].tolist() == [[7, 7]] * 6


def test_a_forked_child_writes_to_the_same_files(tmp_path: Path) -> None:
    a = stash.create(tmp_path, (8, 2), "i4", in_place=True)
    put = a.setter()
    put(0, 1)
    assert a[0, 0] == 1  # open, and mapped
    stop = threading.Event()

    def beside() -> None:
        while not stop.is_set():
            put(7, 3)

    thread = threading.Thread(target=beside)
    thread.start()
    try:
        children = [fork.Process(target=lambda k=k: put(k, k)) for k in range(1, 7)]
        for child in children:
            child.start()
        finish(*children)
    finally:
        stop.set()
        thread.join()
    assert a[:, 1].tolist() == [1, 1, 2, 3, 4, 5, 6, 3]


def put_pickled(data: bytes) -> None:
    a, r = pickle.loads(data)
    assert a.in_place
    a[3] = 5
    a.setter()(4, 6)
    r[1] = {"x": 7}


def test_handles_travel(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (8, 2), "i4", in_place=True)
    r = stash.create_records(tmp_path / "r", {"x": "i4"}, 2, in_place=True)
    child = spawn.Process(target=put_pickled, args=(pickle.dumps((a, r)),))
    child.start()
    finish(child)
    assert a[3:5, 0].tolist() == [5, 6] and r["x"][1] == 7


def replace(file: Path) -> None:
    """Another program's way to change row 3."""
    other = np.fromfile(file, "i4").reshape(4, 2)
    other[3] += 8
    other.tofile(file.parent / "new")
    os.replace(file.parent / "new", file)


@pytest.mark.parametrize("native", [True, False])
def test_a_file_that_another_puts_in_its_place_gets_the_row(
    native: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(library, "enabled", native)
    a = stash.create(tmp_path / "a", (4, 2), "i4", in_place=True)
    put = a.setter()
    put(1, 1)
    replace(tmp_path / "a/c/0/0")
    put(2, 5)
    replace(tmp_path / "a/c/0/0")
    a[0] = 9
    assert a[:, 0].tolist() == [9, 1, 5, 16]
    os.unlink(tmp_path / "a/c/0/0")
    put(2, 6)
    assert a[:, 0].tolist() == [0, 0, 6, 0]
    os.rename(tmp_path / "a", tmp_path / "b")
    stash.copy(tmp_path / "b", tmp_path / "a")
    with pytest.raises(Conflict):
        put(0, 3)
    assert stash.open(tmp_path / "b")[0, 0] == 0


def test_also_between_the_look_at_it_and_the_write(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(library, "enabled", False)
    a = stash.create(tmp_path / "a", (4, 2), "i4", in_place=True)
    put = a.setter()
    put(1, 1)
    real, times = os.pwrite, 0

    def replaced(fd: int, data: Any, start: int) -> int:
        nonlocal times
        times += 1
        if times == 1:
            replace(tmp_path / "a/c/0/0")
        return real(fd, data, start)

    monkeypatch.setattr(os, "pwrite", replaced)
    put(2, 5)
    assert times == 2 and a[:, 0].tolist() == [0, 1, 5, 8]


def test_the_kernel_writes_only_to_the_file_that_it_was_given(tmp_path: Path) -> None:
    kernel = library.library.kernel
    if kernel is None:
        pytest.skip("the kernel is not built")
    file = tmp_path / "x"
    file.write_bytes(bytes(8))
    with file.open("r+b") as opened:
        status = os.fstat(opened.fileno())
        place = (os.fsencode(file), opened.fileno(), status.st_ino, status.st_dev, 8, None)
        look = (os.fsencode(file), status.st_ino, status.st_mtime_ns, 8)
        assert kernel.patch(None, [(place, 1, b"ab"), (place, 6, b"yz")]) == 2
        assert file.read_bytes() == b"\0ab\0\0\0yz"
        assert kernel.patch(look, [(place, 0, b"q")]) == -1  # written to since
        for at in (-1, 7, 8, 1 << 62, -(1 << 62)):
            assert kernel.patch(None, [(place, 0, b"k"), (place, at, b"no")]) == 1
        for k, other in enumerate((0, 0, 1, 1, 1)):
            wrong = (*place[:k], place[k] + other, *place[k + 1 :]) if other else place
            wrong = (b"/nowhere", *place[1:]) if k == 0 else wrong
            wrong = (place[0], -1, *place[2:]) if k == 1 else wrong
            assert kernel.patch(None, [(wrong, 0, b"no")]) == 0
        os.link(file, tmp_path / "y")
        assert kernel.patch(None, [(place, 0, b"no")]) == 0
        for jobs in (
            [1],
            [(place, 0)],
            [(place, 0, 1.5)],
            [((1, 2), 0, b"")],
            [((*place[:5], 3), 0, b"")],
            [(place, "a", b"")],
        ):
            with pytest.raises(TypeError):
                kernel.patch(None, jobs)
        for odd in ((1, 2), (b"a", 1, 2), 5):
            with pytest.raises(TypeError):
                kernel.patch(odd, [])
        with pytest.raises(ValueError, match="too many"):
            kernel.patch(None, [(place, 0, b"")] * 5000)
        assert kernel.patch(None, []) == 0
    assert file.read_bytes() == b"kab\0\0\0yz"
