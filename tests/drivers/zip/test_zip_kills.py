"""A zip is whole at each instant: writers are killed, and disks full, at every call."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tensorstash.drivers.zip import ZipDriver, compact
from tensorstash.errors import NoSpace
from tests.support.zips import MAKES, VALUES, content, files, read

_fork = multiprocessing.get_context("fork")
_CALLS = ("pwrite", "ftruncate", "utime", "rename", "fsync", "fchmod", "fchown")
BIG = os.urandom(300_000)
CHANGES: dict[str, tuple[Callable[[ZipDriver], Any], dict[str, bytes | None]]] = {
    "new": (lambda d: d.put("new", b"n" * 50), {"new": b"n" * 50}),
    "replaced": (lambda d: d.put("c/1", b"N" * 70), {"c/1": b"N" * 70}),
    "large": (lambda d: d.put("c/1", BIG), {"c/1": BIG}),
    "many": (
        lambda d: d.put_many([("c/0", b"0" * 9), ("new", BIG), ("more", b"")]),
        {"c/0": b"0" * 9, "new": BIG, "more": b""},
    ),
    "deleted": (lambda d: d.delete("c/3"), {"c/3": None}),
    "all deleted": (lambda d: d.delete_prefix(""), dict.fromkeys(VALUES)),
}


def after(change: str) -> dict[str, bytes]:
    both: dict[str, bytes | None] = {**VALUES, **CHANGES[change][1]}
    return {key: value for key, value in both.items() if value is not None}


def at_call(number: int, deed: Callable[..., Any]) -> list[str]:
    """Do ``deed`` in place of the call with that number; returns the calls, as they come."""
    calls: list[str] = []

    def watch(name: str) -> None:
        true = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                return deed(name, true, *args)
            return true(*args, **options)

        setattr(os, name, call)

    for name in _CALLS:
        watch(name)
    return calls


def die(name: str, true: Callable[..., Any], *args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_midway(name: str, true: Callable[..., Any], *args: Any) -> None:
    if name == "pwrite":
        fd, data, at = args
        true(fd, memoryview(data)[: len(data) // 2], at)
    os.kill(os.getpid(), signal.SIGKILL)


def change_and_die(path: Path, change: str, number: int, deed: Callable[..., Any]) -> None:
    at_call(number, deed)
    CHANGES[change][0](ZipDriver(path))


def killed(path: Path, change: str, number: int, deed: Callable[..., Any]) -> bool:
    child = _fork.Process(target=change_and_die, args=(path, change, number, deed))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.mark.parametrize("deed", [die, die_midway])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", ["ours", "streamed", "commented", "extracting"])
def test_killed_at_each_call(
    tmp_path: Path, make: str, change: str, deed: Callable[..., Any]
) -> None:
    first = tmp_path / "first.zip"
    MAKES[make](first)
    number, outcomes = 0, set()
    while True:
        number += 1
        path = tmp_path / f"{number}.zip"
        path.write_bytes(first.read_bytes())
        if not killed(path, change, number, deed):
            break
        found = read(path)
        assert found in (VALUES, after(change))
        outcomes.add(found == VALUES)
        # Other programs find it too, but for half a copy that is behind a large gap.
        if deed is die or change not in ("large", "many"):
            assert content(path) == found
            tested = subprocess.run(["unzip", "-tqq", path], capture_output=True)
            assert not found or tested.returncode < 2  # 3: nothing in it
        driver = ZipDriver(path)
        driver.put("z", b"next")
        driver.delete("c/0")
        assert (
            read(path)
            == content(path)
            == {key: value for key, value in {**found, "z": b"next"}.items() if key != "c/0"}
        )
        assert b"tensorstash" not in path.read_bytes()
    assert number > 4
    assert outcomes == {True, False}
    assert read(path) == content(path) == after(change)


def test_killed_in_the_first_put(tmp_path: Path) -> None:
    for number in range(1, 7):
        path = tmp_path / f"{number}.zip"
        done = not killed(path, "new", number, die_midway if number != 1 else die)
        assert read(path) in ({}, {"new": b"n" * 50})
        ZipDriver(path).put("z", b"next")
        assert content(path) == read(path)
        assert read(path)["z"] == b"next"
    assert done


def test_killed_twice_and_again(tmp_path: Path) -> None:
    # Each leaves another copy behind the last: the one that counts is found every time.
    path = tmp_path / "x.zip"
    MAKES["ours"](path)
    for number in (2, 3, 1, 2, 3, 4, 2, 1, 3):
        for change in ("large", "new"):
            killed(path, change, number, die_midway)
            assert {key: read(path)[key] for key in VALUES} in (VALUES, {**VALUES, "c/1": BIG})
    ZipDriver(path).put("z", b"next")
    assert content(path) == read(path)


def fail_at(path: Path, change: str, number: int, half: bool, lasting: bool) -> None:
    def fail(name: str, true: Callable[..., Any], *args: Any) -> int:
        if half and name == "pwrite" and len(calls) == number:
            fd, data, at = args
            return int(true(fd, memoryview(data)[: len(data) // 2], at))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def later(name: str, true: Callable[..., Any], *args: Any) -> Any:
        if lasting and name == "pwrite":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(*args)

    calls = at_call(number, fail)
    inner = {name: getattr(os, name) for name in _CALLS}
    for name, call in inner.items():

        def outer(*args: Any, name: str = name, call: Any = call, **options: Any) -> Any:
            if len(calls) >= number:
                return later(name, lambda *a: call(*a, **options), *args)
            return call(*args, **options)

        setattr(os, name, outer)
    try:
        CHANGES[change][0](ZipDriver(path))
    except NoSpace as error:
        assert error.errno == errno.ENOSPC
        os._exit(7)
    os._exit(0 if len(calls) < number else 3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", ["ours", "streamed", "extracting"])
def test_full_disk_at_each_call(
    tmp_path: Path, make: str, change: str, lasting: bool, half: bool
) -> None:
    first = tmp_path / "first.zip"
    MAKES[make](first)
    number, codes = 0, set()
    while True:
        number += 1
        path = tmp_path / f"{number}.zip"
        path.write_bytes(first.read_bytes())
        child = _fork.Process(target=fail_at, args=(path, change, number, half, lasting))
        child.start()
        child.join()
        codes.add(child.exitcode)
        if child.exitcode == 0:
            break
        assert child.exitcode in (3, 7)
        found = read(path)
        assert content(path) == found
        assert found == (VALUES if child.exitcode == 7 else after(change))
        ZipDriver(path).put("z", b"next")
        assert content(path) == {**found, "z": b"next"}
    assert 7 in codes


def test_a_failed_put_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    MAKES["ours"](path)
    before, true = path.read_bytes(), os.pwrite

    def pwrite(fd: int, data: Any, at: int) -> int:
        if b"new value" in bytes(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(NoSpace, match="free some space"):
        ZipDriver(path).put("k", b"new value" * 1000)
    assert path.read_bytes() == before


# -- writing anew ---------------------------------------------------------------------


def waste(path: Path) -> None:
    driver = ZipDriver(path)
    for i in range(6):
        driver.put("c/1", bytes([i]) * 200_000)


def compact_and_die(path: Path, number: int) -> None:
    at_call(number, die_midway)
    compact._WASTE = 1 << 10
    ZipDriver(path).put("c/1", b"last")


def test_killed_while_written_anew(tmp_path: Path) -> None:
    first = tmp_path / "first.zip"
    MAKES["ours"](first)
    waste(first)
    number, left = 0, 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "x.zip"
        path.write_bytes(first.read_bytes())
        (folder / ".x.zip.notes.partial").write_text("mine")
        child = _fork.Process(target=compact_and_die, args=(path, number))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        found = read(path)
        assert found["c/1"] in (b"\5" * 200_000, b"last")
        assert {k: found[k] for k in VALUES if k != "c/1"} == {
            k: v for k, v in VALUES.items() if k != "c/1"
        }
        left += len(files(folder)) > 2
        ZipDriver(path).put("z", b"next")
        assert files(folder) == [".x.zip.notes.partial", "x.zip"]
    assert left > 2
    assert path.stat().st_size < 5000
    assert content(path) == {**VALUES, "c/1": b"last"}


def test_a_thousand_puts_take_no_more_than_twice_the_room(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    driver = ZipDriver(path)
    for i in range(1000):
        driver.put(f"k{i % 500}", bytes([i % 256]) * 2000)
    live = 500 * (30 + 46 + 8 + 2000)
    assert path.stat().st_size < 2 * live + (1 << 20) + 22
    written = 1000 * 2050
    assert path.stat().st_size < written + 500 * 80  # of directories nothing is left behind
    assert len(content(path)) == 500


def test_tags_outlive_that_an_archive_is_written_anew(tmp_path: Path) -> None:
    driver = ZipDriver(tmp_path / "x.zip")
    tag = driver.put("kept", b"kept")
    inode = os.stat(tmp_path / "x.zip").st_ino
    same = {driver.put("k", bytes(300_000)) for _ in range(5)}
    assert os.stat(tmp_path / "x.zip").st_ino != inode
    assert len(same) == 5
    assert ZipDriver(tmp_path / "x.zip").tag("kept") == tag
    assert driver.put("kept", b"new", if_tag=tag) != tag
    assert content(tmp_path / "x.zip") == {"kept": b"new", "k": bytes(300_000)}


def test_how_many_calls_a_put_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ZipDriver(tmp_path / "x.zip")
    driver.put("k", b"1")
    calls: list[str] = []
    for name in ("pread", "preadv", "pwrite", "ftruncate", "utime", "fsync", "open", "listdir"):
        true = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, _n=name, _t=true, **o: (calls.append(_n), _t(*a, **o))[1]
        )
    driver.put("k", b"2")
    assert calls == ["open", "pwrite", "pwrite", "ftruncate", "utime"]
    calls.clear()
    assert driver.get("k") == b"2"
    assert calls == ["open", "pread"]
