"""Files when writers are killed and disks fail: old or new, never torn, nothing left."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tensorstash.driver import Request, Span
from tensorstash.drivers.file import FileDriver, reading, writing
from tensorstash.errors import Conflict, DriverError, NoSpace, Unsupported
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


# -- killed ---------------------------------------------------------------------------


def write_for_ever(driver: FileDriver, pipe: Any) -> None:
    pipe.send("started")
    turn = 0
    while True:
        turn += 1
        for i in range(3):
            value = bytes([turn % 256]) * (100_000 + turn % 7)
            driver.put(f"c/{i}", value)
            driver.put(f"c/{i}", value[::-1], if_tag=driver.tag(f"c/{i}"))
        driver.put(f"new/{os.getpid()}-{turn}", b"v" * 5000, if_absent=True)
        with driver.lock("zarr.json"):
            driver.put("zarr.json", b"%d" % turn * 1000)


def test_a_killed_writer_leaves_whole_values(driver: FileDriver) -> None:
    for i in range(3):
        driver.put(f"c/{i}", b"\0" * 100_000)
    for kill in range(20):
        mine, theirs = _fork.Pipe()
        writer = _fork.Process(target=write_for_ever, args=(driver, theirs))
        writer.start()
        mine.recv()
        time.sleep(0.001 + 0.0007 * kill)
        writer.kill()
        writer.join()
        mine.close()
        theirs.close()
        for i in range(3):
            value = bytes(driver.get(f"c/{i}") or b"")
            assert 100_000 <= len(value) < 100_007
            assert len({*value}) == 1
        with driver.lock("zarr.json", timeout=5):
            driver.put("c/0", b"\0" * 100_000, if_tag=driver.tag("c/0"))
    keys = sorted(driver.list())
    assert all(driver.get(key) == b"v" * 5000 for key in keys if key.startswith("new/"))
    assert files_below(driver) == keys


@contextmanager
def killed_at(module: Any, call: str, when: Callable[..., bool]) -> Iterator[None]:
    """In a forked child only: die in place of the matching call."""
    true = getattr(module, call)

    def fatal(*args: Any, **options: Any) -> Any:
        if when(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return true(*args, **options)

    setattr(module, call, fatal)
    yield


def put_until_killed(driver: FileDriver, module: Any, call: str, key: str) -> None:
    with killed_at(module, call, lambda *args: True):
        driver.put(key, b"new" * 1000)


@pytest.mark.parametrize(
    ("module", "call", "key"),
    [(os, c, k) for c in ("write", "utime", "fsync") for k in ("old", "d/fresh")]
    + [(os, "rename", "old"), (fcntl, "flock", "old"), (os, "link", "d/fresh")],
)
def test_killed_at_each_step(driver: FileDriver, module: Any, call: str, key: str) -> None:
    driver.fsync = True
    driver.put("old", b"old")
    child = _fork.Process(target=put_until_killed, args=(driver, module, call, key))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert driver.get("old") == b"old"
    assert driver.get("d/fresh") is None
    # A value without a name vanishes by itself; one with a name is swept by whoever lists.
    assert len(files_below(driver)) == (2 if key == "old" else 1)
    assert driver.list_dir("")[0] == ["old"]
    assert files_below(driver) == ["old"]


def test_a_swept_temporary_is_written_again(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two machines can look like one; then a temporary of a living writer may go.
    tag = driver.put("k", b"old")
    true = fcntl.flock
    swept = []

    def flock(fd: int, mode: int) -> None:
        true(fd, mode)
        if mode != fcntl.LOCK_UN and len(swept) < 3:
            swept.extend(name for name in os.listdir(driver.root) if name.endswith(".partial"))
            os.unlink(Path(driver.root, swept[-1]))

    monkeypatch.setattr(fcntl, "flock", flock)
    driver.put("k", b"new", if_tag=tag)
    assert len(swept) == 3
    assert driver.get("k") == b"new"
    assert files_below(driver) == ["k"]


# -- failing disks --------------------------------------------------------------------


def fill_the_disk(driver: FileDriver, code: int) -> None:
    for key in ("old", "fresh/k"):
        for condition in ({}, {"if_absent": True}) if key != "old" else ({},):
            with pytest.raises(NoSpace) as caught:
                driver.put(key, os.urandom(3 << 20), **condition)
            assert caught.value.errno == code
            assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(DriverError):
        driver.put("old", bytes(3 << 20), if_tag=driver.tag("old"))
    assert driver.get("old") == b"old"
    assert driver.get("fresh/k") is None
    assert files_below(driver) == ["old"]
    driver.put("old", b"fits")
    assert driver.get("old") == b"fits"


def fill_up_to_a_limit(driver: FileDriver) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    fill_the_disk(driver, errno.EFBIG)


def test_file_size_limit(driver: FileDriver) -> None:
    driver.put("old", b"old")
    run_in_processes(_fork, 1, fill_up_to_a_limit, driver)


def test_full_disk(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small file system")
    try:
        driver = FileDriver(tmp_path / "root")
        driver.put("old", b"old")
        fill_the_disk(driver, errno.ENOSPC)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        for call in (lambda: driver.put("k", b""), lambda: driver.delete("old")):
            with pytest.raises(DriverError, match="open it with mode 'r'") as caught:
                call()
            assert caught.value.errno == errno.EROFS
        assert sorted(driver.list()) == ["old"]
        assert driver.get("old") == b"fits"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def run_out_of_descriptors(driver: FileDriver) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, 1))
    for call in (
        lambda: driver.get("old"),
        lambda: driver.put("old", b"new"),
        lambda: [*driver.list()],
        lambda: driver.list_dir(""),
    ):
        with pytest.raises(DriverError, match="ulimit -n") as caught:
            call()
        assert caught.value.errno == errno.EMFILE


def test_out_of_descriptors(driver: FileDriver) -> None:
    driver.put("old", b"old")
    run_in_processes(_fork, 1, run_out_of_descriptors, driver)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOSPC, errno.ENOMEM])
@pytest.mark.parametrize("call", ["open", "write", "utime", "fsync", "rename", "close"])
def test_failures_while_writing(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    driver.fsync = True
    driver.put("d/old", b"old")
    true_close = os.close

    def fail(*args: Any, **options: Any) -> Any:
        if call == "close":
            true_close(args[0])
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(DriverError) as caught:
            driver.put("d/old", b"new")
    error = caught.value
    assert error.errno == code
    assert (error.key, error.driver) == ("d/old", "file")
    assert f"{driver.root}/d/old" in str(error)
    assert os.strerror(code) in str(error)
    assert "\n" not in str(error)
    assert driver.get("d/old") == b"old"
    assert files_below(driver) == ["d/old"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ELOOP])
@pytest.mark.parametrize("call", ["open", "fstat", "readv", "pread", "stat", "scandir"])
def test_failures_while_reading_are_not_absence(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    driver.put("k", b"value")

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    verbs: list[Callable[[], Any]] = {
        "open": [lambda: driver.get_into("k", memoryview(bytearray(9)))],
        "fstat": [lambda: driver.get_tagged("k"), lambda: driver.get_ranges("k", [Span(0, 1)])],
        "readv": [
            lambda: driver.get_into("k", memoryview(bytearray(9))),
            lambda: [*driver.get_many([Request("k")])],
        ],
        "pread": [lambda: driver.get("k"), lambda: driver.get("k", Span(1, 2))],
        "stat": [lambda: driver.tag("k")],
        "scandir": [lambda: [*driver.list()], lambda: driver.list_dir()],
    }[call]
    for verb in verbs:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(DriverError) as caught:
                verb()
        assert caught.value.errno == code


def test_short_reads_and_writes_are_continued(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = os.urandom(10_000)
    write, readv = os.write, os.readv
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, memoryview(data)[:999]))
    for _ in range(2):
        driver.put("k", value)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "readv", lambda fd, parts: readv(fd, [parts[0][:999]]))
    monkeypatch.setattr(reading, "_CAP", 999)
    for room in (10_000, 20_000):
        out = memoryview(bytearray(room))
        assert driver.get_into("k", out) == 10_000
        assert out[:10_000] == value
    assert driver.get("k") == value
    assert driver.get("k", Span(1, 9_000)) == value[1:9_000]


def test_a_bad_sector_is_no_end_of_file(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.put("k", bytes(10_000))
    readv = os.readv
    reads = []

    def failing(fd: int, parts: Any) -> int:
        reads.append(fd)
        if len(reads) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return readv(fd, [parts[0][:4096]])

    monkeypatch.setattr(os, "readv", failing)
    with pytest.raises(DriverError, match="the disk failed"):
        driver.get_into("k", memoryview(bytearray(20_000)))


def test_a_system_without_nameless_files(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_NAMELESS", 0)
    driver.put("d/k", b"1", if_absent=True)
    with pytest.raises(Conflict):
        driver.put("d/k", b"2", if_absent=True)
    driver.put("d/k", b"3")
    driver.put("d/fresh", b"4")
    assert driver.get("d/k") == b"3"
    assert files_below(driver) == ["d/fresh", "d/k"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_flock(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def flock(fd: int, mode: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    driver.put("k", b"1", if_absent=True)
    with pytest.raises(Conflict):
        driver.put("k", b"2", if_absent=True)
    tag = driver.put("k", b"3")
    for call in (lambda: driver.put("k", b"4", if_tag=tag), lambda: driver.lock("k").__enter__()):
        with pytest.raises(Unsupported, match="without flock"):
            call()
    assert driver.get("k") == b"3"
    driver.delete("k")
    driver.delete_prefix("")
    assert [*driver.list()] == []


def test_fsync_comes_before_the_name_and_after(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where each name was when it was made durable, as told by what the descriptor is.
    driver.fsync = True
    steps: list[str] = []

    def spy(call: str) -> None:
        true = getattr(os, call)

        def wrapped(*args: Any, **options: Any) -> Any:
            kind = ""
            if call == "fsync":
                kind = " folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else " file"
            steps.append(call + kind)
            return true(*args, **options)

        monkeypatch.setattr(os, call, wrapped)

    for call in ("fsync", "rename", "link", "mkdir"):
        spy(call)
    driver.put("d/k", b"1")
    assert steps == ["mkdir", "fsync folder"] * 2 + ["fsync file", "link", "fsync folder"]
    steps.clear()
    driver.put("d/k", b"2")
    assert steps == ["fsync file", "rename", "fsync folder"]
