"""What only files can do wrong: links, odd names, what others put beside them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tensorstash.driver import Request, Span
from tensorstash.drivers.file import FileDriver, connect
from tensorstash.drivers.posix import flock, partial
from tensorstash.drivers.posix.descriptor import Descriptor
from tensorstash.errors import Conflict, DriverError, Invalid, TimedOut
from tensorstash.testing.driver_races import run_in_processes

_fork = multiprocessing.get_context("fork")


@pytest.fixture
def driver(tmp_path: Path) -> FileDriver:
    return FileDriver(tmp_path / "root")


def files_below(driver: FileDriver) -> list[str]:
    """Every file there is, values or not."""
    found = [
        os.path.relpath(os.path.join(folder, name), driver.root)
        for folder, _, names in os.walk(driver.root)
        for name in names
    ]
    return sorted(found)


# -- leftovers and locks --------------------------------------------------------------


def test_leftovers_are_swept_only_when_dead(driver: FileDriver) -> None:
    driver.put("d/k", b"1")
    now = time.time_ns()
    alive = partial.name("k", now)
    foreign = f".k.00000000-1-{now:016x}.partial"
    stale = f".k.00000000-1-{now - 86_500 * 10**9:016x}.partial"
    mine = ".k.partial"  # a key like any other
    child = _fork.Process(target=int)
    child.start()
    child.join()
    dead = alive.replace(f"-{os.getpid()}-", f"-{child.pid}-")
    for name in (alive, foreign, stale, dead, mine):
        Path(driver.root, "d", name).write_bytes(b"torn")
    Path(driver.root, "d/.zarr.json.lock").touch()
    os.utime(Path(driver.root, "d", stale), (0, time.time() - 86_500))
    assert sorted(driver.list()) == ["d/.k.partial", "d/k"]
    assert files_below(driver) == sorted(f"d/{n}" for n in ("k", alive, foreign, mine))
    driver.delete_prefix("d/")
    assert files_below(driver) == sorted(f"d/{n}" for n in (alive, foreign))


def test_lock_files(driver: FileDriver) -> None:
    with driver.lock("a/zarr.json"):
        assert files_below(driver) == ["a/.zarr.json.lock"]
        assert driver.list_dir("a/") == ([], [])
        driver.delete_prefix("")
        assert files_below(driver) == ["a/.zarr.json.lock"]  # held, and so not swept
        with pytest.raises(TimedOut), driver.lock("a/zarr.json", timeout=0):
            pass
    assert files_below(driver) == []
    driver.put("a/zarr.json", b"1")
    Path(driver.root, "a/.zarr.json.lock").touch()  # of a killed holder
    with driver.lock("a/zarr.json", timeout=0):
        pass
    assert files_below(driver) == ["a/zarr.json"]


def test_names_of_its_own_are_refused(driver: FileDriver) -> None:
    for key in (partial.name("k", 7), "d/.zarr.json.lock", ".k.tensorstash-lock"):
        for call in (lambda: driver.put(key, b""), lambda: driver.delete(key)):  # noqa: B023
            with pytest.raises(Invalid, match="keeps for itself"):
                call()


def leave_the_lock(driver: FileDriver) -> None:
    """Fork while the lock is held; the child leaves the block first."""
    with driver.lock("k"):
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            assert files_below(driver) == [".k.tensorstash-lock"]
            with pytest.raises(TimedOut), driver.lock("k", timeout=0):
                pass
    if child == 0:
        os._exit(0)


def test_a_forked_child_that_leaves_the_block_releases_nothing(driver: FileDriver) -> None:
    run_in_processes(_fork, 1, leave_the_lock, driver)


def test_a_copy_of_the_descriptor_keeps_no_lock(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a child has that was forked by C code, behind Python's back, amid a put.
    tag = driver.put("k", b"old")
    copies: list[int] = []
    true = os.rename

    def rename(*args: Any, **options: Any) -> None:
        copies.extend(os.dup(file.fileno()) for file in flock._held)
        true(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        driver.put("k", b"new", if_tag=tag)
    with Descriptor(driver.root, os.O_RDONLY) as home:
        assert flock.take(home, exclusive=True, wait=False)
        flock.drop(home)
    for fd in copies:
        os.close(fd)
    assert len(copies) == 1


@pytest.mark.parametrize("verb", ["put", "delete", "delete_prefix", "put if_tag"])
def test_nothing_changes_under_a_compare_and_swap(driver: FileDriver, verb: str) -> None:
    tag = driver.put("d/k", b"old")
    calls = {
        "put": lambda: driver.put("d/k", b"new"),
        "delete": lambda: driver.delete("d/k"),
        "delete_prefix": lambda: driver.delete_prefix("d/"),
        "put if_tag": lambda: driver.put("d/k", b"new", if_tag=tag),
    }
    home = Descriptor(f"{driver.root}/d", os.O_RDONLY)
    assert flock.take(home, exclusive=True)
    thread = threading.Thread(target=calls[verb])
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert driver.get("d/k") == b"old"  # reads go on
    driver.put("d/fresh", b"1")  # and so does what cannot overwrite
    flock.drop(home)
    home.close()
    thread.join()
    assert driver.get("d/k") == (None if verb.startswith("delete") else b"new")


def test_files_that_vanish_while_deleted(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        driver.put(f"d/{i}", b"1")
    true = flock.take

    def take(fd: Descriptor, *, exclusive: bool) -> bool:
        for i in (0, 2):
            Path(driver.root, f"d/{i}").unlink(missing_ok=True)
        return true(fd, exclusive=exclusive)

    monkeypatch.setattr(flock, "take", take)
    driver.delete_prefix("d/")
    assert os.listdir(driver.root) == []


# -- what else may lie in a directory -------------------------------------------------


def test_links_are_followed_but_their_targets_kept(driver: FileDriver, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "c").mkdir(parents=True)
    (elsewhere / "c/0").write_bytes(b"there")
    driver.put("zarr.json", b"1")
    root = Path(driver.root)
    (root / "c").symlink_to(elsewhere / "c")
    (root / "one").symlink_to(elsewhere / "c/0")
    (root / "dangling").symlink_to("nowhere")
    assert sorted(driver.list()) == ["c/0", "one", "zarr.json"]
    assert driver.get("c/0") == driver.get("one") == b"there"
    with pytest.raises(DriverError, match=r"link '\S+/dangling' leads nowhere"):
        driver.get("dangling")  # what it led to may be back tomorrow
    for key in ("one", "dangling"):
        driver.put(key, b"here")
        assert driver.get(key) == b"here"
    assert (elsewhere / "c/0").read_bytes() == b"there"
    assert not (root / "nowhere").exists()
    driver.delete_prefix("c/")
    driver.delete_prefix("")
    assert (elsewhere / "c/0").read_bytes() == b"there"
    assert [*root.iterdir()] == []


def test_loops_of_links_end(driver: FileDriver) -> None:
    driver.put("a/k", b"1")
    driver.put("b/k", b"2")
    root = Path(driver.root)
    (root / "a/up").symlink_to("..")
    (root / "a/self").symlink_to(".")
    (root / "a/other").symlink_to("../b")
    (root / "b/other").symlink_to("../a")
    (root / "round").symlink_to("round")
    keys = ["a/k", "a/other/k", "b/k", "b/other/k"]
    assert sorted(driver.list()) == keys
    assert driver.list_dir("a/") == (["k"], ["other"])
    with pytest.raises(DriverError, match="form a loop"):
        driver.get("round")
    driver.delete_prefix("")
    assert [*root.iterdir()] == []


def test_a_folder_of_keys_is_no_value(driver: FileDriver) -> None:
    driver.put("folder/k", b"1")
    assert driver.get("folder") is None
    assert driver.get_into("folder", memoryview(bytearray(9))) is None
    assert driver.tag("folder") is None
    assert [*driver.get_many([Request("folder")])] == [(0, None)]
    assert [*driver.list()] == ["folder/k"]
    for condition in ({}, {"if_absent": True}):
        with pytest.raises(DriverError, match="a directory is in the way"):
            driver.put("folder", b"1", **condition)
    assert files_below(driver) == ["folder/k"]


def test_a_file_where_a_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"not a directory")
    driver = FileDriver(tmp_path / "root")
    assert driver.get("k") is None
    assert driver.tag("k") is None
    assert [*driver.list()] == []
    assert driver.list_dir() == ([], [])
    driver.delete("k")
    driver.delete_prefix("")
    for key in ("k", "d/k"):
        for call in (lambda: driver.put(key, b""), lambda: driver.lock(key).__enter__()):  # noqa: B023
            with pytest.raises(DriverError, match="a part of this path is a file"):
                call()
    assert (tmp_path / "root").read_bytes() == b"not a directory"


def test_names_too_long(driver: FileDriver) -> None:
    for name in ("n" * 255, "😀" * 63):
        for value in (b"1", b"2"):
            driver.put(name, value)
            assert driver.get(name) == value
    for call in (
        lambda: driver.put("n" * 256, b""),
        lambda: driver.get("n" * 256),
        lambda: driver.tag("d/" * 3000 + "k"),
    ):
        with pytest.raises(DriverError, match="use shorter names") as caught:
            call()
        assert caught.value.errno == errno.ENAMETOOLONG


def test_half_a_surrogate_pair_is_no_name(driver: FileDriver) -> None:
    driver.put("k", b"1")
    for call in (
        lambda: driver.put("\ud800", b""),
        lambda: driver.get("\ud800"),
        lambda: driver.tag("\ud800"),
        lambda: driver.delete("\ud800"),
        lambda: driver.list_dir("\ud800/"),
        lambda: driver.lock("\ud800").__enter__(),
    ):
        with pytest.raises(Invalid, match="surrogate"):
            call()


def test_keys_that_others_made(driver: FileDriver) -> None:
    # Names that are no text, or that no key may hold.
    driver.put("k", b"1")
    root = os.fsencode(driver.root)
    for name in (b"\xff\xfe", b"back\\slash"):
        Path(os.fsdecode(os.path.join(root, name))).write_bytes(b"2")
    keys = sorted(driver.list())
    assert keys == ["k", os.fsdecode(b"\xff\xfe")]
    assert [driver.get(key) for key in keys] == [b"1", b"2"]
    driver.delete_prefix("")
    assert files_below(driver) == []


def test_a_change_by_hand_is_another_version(driver: FileDriver) -> None:
    tag = driver.put("k", b"12345")
    time.sleep(0.02)  # others leave the time to the kernel, which ticks every few ms
    Path(driver.root, "k").write_bytes(b"54321")
    with pytest.raises(Conflict):
        driver.put("k", b"new", if_tag=tag)


def test_tags_differ_when_the_clock_stands_still_or_goes_back(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([*[10**18] * 50, *range(10**18, 10**18 - 100, -1)])
    monkeypatch.setattr(partial, "_last", 0)
    monkeypatch.setattr(time, "time_ns", lambda: next(now, 10**18))
    tags = [driver.put("k", b"same") for _ in range(100)]
    assert len({*tags}) == 100
    # The kernel's own time ticks too slowly on most kernels, if perhaps not on this one.
    assert os.stat(f"{driver.root}/k").st_mtime_ns == partial._last


# -- handles --------------------------------------------------------------------------


def test_files_get_the_usual_permissions(driver: FileDriver) -> None:
    before = os.umask(0o027)
    try:
        for _ in range(2):
            driver.put("d/k", b"1")
            assert stat.S_IMODE(os.stat(f"{driver.root}/d/k").st_mode) == 0o640
    finally:
        os.umask(before)


def test_a_relative_root_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    driver = FileDriver("data")
    driver.put("k", b"1")
    monkeypatch.chdir("/")
    assert driver.get("k") == b"1"
    assert pickle.loads(pickle.dumps(driver)).root == str(tmp_path / "data")


def test_options_travel(tmp_path: Path) -> None:
    again = pickle.loads(pickle.dumps(connect(str(tmp_path), fsync=True)))
    assert again.fsync
    assert again.url == f"file://{tmp_path}"


@pytest.mark.parametrize("root", ["", "a\0b"])
def test_roots_that_are_none(root: str) -> None:
    with pytest.raises(Invalid, match="names no directory"):
        FileDriver(root)


def test_reading_creates_nothing(driver: FileDriver) -> None:
    assert driver.get("k") is None
    assert [*driver.list()] == []
    driver.delete("k")
    driver.delete_prefix("")
    assert not os.path.exists(driver.root)


def test_many_files(driver: FileDriver) -> None:
    keys = {f"c/{i % 7}/{i}" for i in range(5000)}
    for key in keys:
        path = Path(driver.root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    assert {*driver.list()} == keys
    driver.delete_prefix("c/")
    assert [*driver.list()] == []
    assert os.listdir(driver.root) == []


def test_no_descriptor_leaks(driver: FileDriver) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for i in range(20):
        tag = driver.put("d/k", b"%d" % i)
        for call in (
            lambda: driver.put("d/k", b"x", if_absent=True),
            lambda: driver.put("d/k", b"x", if_tag=(0, 0, 0)),
            lambda: driver.put("d", b"x"),
            lambda: driver.put("d/k/below", b"x"),
        ):
            with pytest.raises((Conflict, DriverError)):
                call()
        driver.put("d/k", b"y", if_tag=tag)
        driver.get("d")
        driver.get_into("d", memoryview(bytearray(1)))
        [*driver.get_many([Request("d/k"), Request("d/k", Span(0, 1)), Request("no")])]
        with driver.lock("d/k"):
            pass
        with pytest.raises(TimedOut), driver.lock("x"), driver.lock("x", timeout=0):
            pass
        driver.delete_prefix("")
    assert len(os.listdir("/proc/self/fd")) == before
