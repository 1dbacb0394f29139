"""What the file driver removes beside values: its own leftovers, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.posix import partial
from tensorstash.errors import Invalid

_DAY = 86_400


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def leftover(of: str = "zarr.json", *, pid: int | None = None, host: str = "", age: int = 0) -> str:
    """The name of a value that ``pid`` began to write ``age`` seconds ago."""
    stamp = time.time_ns() - age * 10**9
    mine = partial.name(of, stamp).replace(f"-{os.getpid()}-", f"-{pid or dead_pid()}-")
    return mine.replace(partial._host(), host or partial._host())


FOREIGN = [
    *(".conda.lock", "poetry.lock", ".x.lock", ".~lock.report.odt#", ".lock", ".zarr.lock"),
    *(".zarr.json.lock.bak", ".partial", ".a.partial", ".video.mp4.partial", ".zarr.json.LOCK"),
    *(".k.0123abcd-1-1.partial", ".k.0123abcd-01-18eca2f7da5b32d3.partial"),
    *(".k.0123ABCD-1-18eca2f7da5b32d3.partial", ".a.0123abcd-1-18eca2f7da5b32d3.partial~"),
    f".{'n' * 33}.0123abcd-1-18eca2f7da5b32d3.partial",
]
"""Names of other programs, some of them much like ours."""


def listings(driver: Driver) -> None:
    [*driver.list()]
    [*driver.sizes()]
    driver.list_dir()


@pytest.mark.parametrize("content", [b"", b"pinned"], ids=["empty", "full"])
@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_are_values_like_any(tmp_path: Path, name: str, content: bytes) -> None:
    g = stash.create_group(str(tmp_path / "g"))
    path = tmp_path / "g" / name
    path.write_bytes(content)
    os.utime(path, (0, 0))
    for mode in ("r", "r+"):
        handle = stash.open_group(str(tmp_path / "g"), mode)
        assert handle.keys() == []
        listings(handle.driver)
        assert name in handle.driver.list_dir()[0]
    g.create("a", (3,), "f8")[...] = 1
    g["a"].append([1.0])
    listings(g.driver)
    g.driver.prune("")
    assert path.read_bytes() == content
    assert g.driver.get(name) == content
    g.driver.put(name, b"mine now")
    assert g.driver.get(name) == b"mine now"


@pytest.mark.parametrize("name", FOREIGN)
def test_members_may_have_such_names(tmp_path: Path, name: str) -> None:
    g = stash.create_group(str(tmp_path / "g"))
    g.create(name, (3,), "f8")[...] = 1
    for kept in (leftover(), ".zarr.json.lock"):
        with pytest.raises(stash.errors.Invalid, match="keeps names"):
            g.create(kept, (3,), "f8")
    assert g.keys() == [name]
    del g[name]
    assert os.listdir(tmp_path / "g") == ["zarr.json"]


@pytest.mark.parametrize("of", [*partial.LOCKED, "k", "c"])
def test_a_lock_of_ours_is_swept_when_empty_and_nobodys(tmp_path: Path, of: str) -> None:
    driver = FileDriver(tmp_path)
    driver.put("d/k", b"1")
    path = tmp_path / "d" / partial.lock_name(of)
    path.write_bytes(b"who made this?")
    listings(driver)
    driver.list_dir("d/")
    assert path.read_bytes() == b"who made this?"
    path.write_bytes(b"")
    assert [*FileDriver(tmp_path).list()] == ["d/k"]
    assert path.exists()  # by then, it had only read
    with driver.lock(f"d/{of}"):
        assert [*driver.list()] == ["d/k"]
        driver.prune("")
        driver.delete_prefix("d/")
        assert path.exists()
    assert not path.exists()
    path.touch()
    assert [*driver.list()] == []
    assert not path.exists()


def make(kind: str, path: Path, tmp_path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "precious").write_bytes(b"")
        os.symlink(tmp_path / "precious", path)
    else:
        path.write_bytes(b"torn")
        stamps = {"long before": 0, "long after": time.time() + 3 * _DAY}
        if kind in stamps:
            os.utime(path, (0, stamps[kind]))
        if kind == "another user's" and os.geteuid() == 0:
            os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    "kind", ["folder", "FIFO", "link", "long before", "long after", "another user's"]
)
def test_what_only_has_the_name_of_a_leftover_stays(tmp_path: Path, kind: str) -> None:
    if kind == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    driver = FileDriver(tmp_path / "root")
    driver.put("k", b"1")
    names = (
        [leftover()] if kind not in ("folder", "FIFO", "link") else [leftover(), ".zarr.json.lock"]
    )
    for name in names:
        make(kind, tmp_path / "root" / name, tmp_path)
        tmp_path.joinpath("precious").unlink(missing_ok=True)
        listings(driver)
        assert os.path.lexists(tmp_path / "root" / name)
        if kind != "folder":
            driver.prune("")
            assert os.path.lexists(tmp_path / "root" / name)


CASES: dict[str, tuple[Callable[[], str], bool]] = {
    "dead": (leftover, True),
    "alive": (lambda: leftover(pid=os.getpid()), False),
    "of another host": (lambda: leftover(host="0123abcd"), False),
    "of another host, days old": (lambda: leftover(host="0123abcd", age=2 * _DAY), True),
    "alive, days old": (lambda: leftover(pid=os.getpid(), age=2 * _DAY), True),
}


@pytest.mark.parametrize("case", CASES)
def test_who_reads_removes_nothing_and_who_writes_only_the_dead(tmp_path: Path, case: str) -> None:
    name, goes = CASES[case][0](), CASES[case][1]
    g = stash.create_group(str(tmp_path / "g"))
    a = g.create("a", (8,), "f8", chunks=(2,), codecs=None)
    a[...] = 1
    paths = [tmp_path / "g" / folder / name for folder in ("", "a", "a/c")]
    stamp = int(name.split("-")[-1].split(".")[0], 16)
    for path in paths:
        path.write_bytes(b"torn")
        os.utime(path, ns=(0, stamp))
    for mode in ("r", "r+"):
        reads = stash.open_group(str(tmp_path / "g"), mode)
        assert reads.keys() == ["a"]
        reads.tree()
        assert not any(".partial" in key for key in reads.driver.list())
        listings(reads.driver)
        np.testing.assert_array_equal(reads["a"][...], 1)
        assert all(path.exists() for path in paths)
    writes = stash.open_group(str(tmp_path / "g"), "r+")
    writes["a"][:2] = 2
    assert writes.keys() == ["a"]
    writes["a"].resize((4,))
    [*writes.driver.list()]
    assert [path.exists() for path in paths] == [not goes] * 3


def test_sweeps_do_not_go_through_links(tmp_path: Path) -> None:
    stash.save(str(tmp_path / "there"), np.arange(4.0))
    left = [tmp_path / "there" / leftover(), tmp_path / "there/.zarr.json.lock"]
    for path in left:
        path.touch()
    g = stash.create_group(str(tmp_path / "g"))
    os.symlink(tmp_path / "there", tmp_path / "g/link")
    assert g.keys() == ["link"]
    assert sorted(g.driver.list()) == ["link/c/0", "link/zarr.json", "zarr.json"]
    g.driver.list_dir("link/")
    g.driver.prune("")
    assert all(path.exists() for path in left)
    del g["link"]
    assert all(path.exists() for path in left)


def test_prune_takes_empty_folders_and_leftovers_only(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path / "root")
    driver.put("a/b/c/0", b"1")
    driver.put("a/d/0", b"1")
    driver.put("e/0", b"1")
    driver.delete_many(["a/b/c/0", "e/0"])
    (tmp_path / "root/a/b" / leftover()).write_bytes(b"torn")
    (tmp_path / "elsewhere/empty").mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", tmp_path / "root/a/link")
    driver.prune("a/")
    assert sorted(os.listdir(tmp_path / "root")) == ["a", "e"]
    assert sorted(os.listdir(tmp_path / "root/a")) == ["d", "link"]
    assert os.listdir(tmp_path / "elsewhere") == ["empty"]
    driver.prune("a/link/")
    driver.prune("never/was/")
    assert os.listdir(tmp_path / "elsewhere") == ["empty"]
    driver.prune("")
    assert sorted(os.listdir(tmp_path / "root")) == ["a"]
    driver.delete_prefix("")
    driver.prune("")
    assert os.path.isdir(tmp_path / "root")


_KILLED = """
import os, signal, sys
import tensorstash as stash
a = stash.open(sys.argv[1], "r+")
rename = os.rename
os.rename = lambda *args, **how: os.kill(os.getpid(), signal.SIGKILL)
a[0] = 5
"""


def test_a_killed_writer_leaves_nothing_for_ever(tmp_path: Path) -> None:
    a = stash.save(str(tmp_path / "a"), np.arange(4.0), chunks=(2,))
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "a")], check=False)
        assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "a/c")) == 2 + 3
    assert sorted(stash.open(str(tmp_path / "a")).driver.list("c/")) == ["c/0", "c/1"]
    assert len(os.listdir(tmp_path / "a/c")) == 2 + 3
    a[0] = 1
    assert sorted(a.driver.list("c/")) == ["c/0", "c/1"]
    assert sorted(os.listdir(tmp_path / "a/c")) == ["0", "1"]


@pytest.mark.parametrize("key", ["partial", "d/.zarr.json.lock", "d/.k.tensorstash-lock"])
def test_names_of_ours_are_no_keys(tmp_path: Path, key: str) -> None:
    driver = FileDriver(tmp_path)
    key = leftover() if key == "partial" else key
    calls: list[Callable[[], Any]] = [
        lambda: driver.put(key, b""),
        lambda: driver.delete(key),
        lambda: driver.delete_many([key]),
        lambda: driver.lock(key).__enter__(),
    ]
    for call in calls:
        with pytest.raises(Invalid, match="keeps for itself"):
            call()


def test_a_file_of_others_in_the_place_of_a_lock_is_locked_and_stays(tmp_path: Path) -> None:
    a = stash.create(str(tmp_path / "a"), (0,), "i4", chunks=(4,))
    theirs = tmp_path / "a" / ".zarr.json.lock"
    theirs.write_text("who made this?")
    assert a.append([1, 2, 3]) == 0 and a.append([4]) == 3
    assert theirs.read_text() == "who made this?"
    theirs.unlink()
    assert a.append([5]) == 4 and not theirs.exists()
