"""What is no regular file in a value's place: an error that names it, at once; never absence, and
never more memory than a value can take."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Buffer, Request, Span, Tag, get_at_most
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine import update as merge
from tensorstash.errors import Conflict, Corrupt, DriverError, StashError

HERE = np.arange(12.0).reshape(4, 3)
KINDS = [
    "FIFO",
    "FIFO with a writer",
    "FIFO with bytes",
    "socket",
    "character device",
    "empty folder",
]


@contextmanager
def standing(kind: str, path: Path) -> Iterator[str]:
    """Something of ``kind`` at ``path``; yields what an error says of it."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.startswith("FIFO"):
        os.mkfifo(path)
        writer = None
        if kind != "FIFO":
            writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
            if kind.endswith("bytes"):
                os.write(writer, b"x" * 100)
        yield r"It is a FIFO"
        if writer is not None:
            os.close(writer)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            there = os.getcwd()
            os.chdir(path.parent)  # a socket's path may have 107 bytes only
            try:
                server.bind(path.name)
            finally:
                os.chdir(there)
            yield r"No such device or address|It is a socket"
    elif kind == "character device":
        try:
            os.mknod(path, 0o20666, os.makedev(1, 5))  # as /dev/zero
        except PermissionError:
            pytest.skip("only root makes devices")
        yield r"It is a character device"
    else:
        path.mkdir()
        yield r"Is a directory; a directory is in the way"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_never_read_as_absent(tmp_path: Path, kind: str) -> None:
    driver = FileDriver(tmp_path / "root")
    with standing(kind, tmp_path / "root/d/k") as says:
        reads: dict[str, Callable[[], Any]] = {
            "get": lambda: driver.get("d/k"),
            "get span": lambda: driver.get("d/k", Span(0, 1)),
            "get_tagged": lambda: driver.get_tagged("d/k"),
            "get_ranges": lambda: driver.get_ranges("d/k", [Span(0, 1)]),
            "get_into": lambda: driver.get_into("d/k", memoryview(bytearray(50))),
            "get_into more": lambda: driver.get_into("d/k", memoryview(bytearray(500))),
            "get_into nothing": lambda: driver.get_into("d/k", memoryview(bytearray(0))),
            "get_many": lambda: [*driver.get_many([Request("d/k")])],
            "get_many_tagged": lambda: [*driver.get_many_tagged([Request("d/k", most=9)])],
            "tag": lambda: driver.tag("d/k"),
            "map": lambda: driver.map("d/k"),
            "get_at_most": lambda: get_at_most(driver, "d/k", 10),
        }
        for read in reads.values():
            with pytest.raises(DriverError, match=says) as caught:
                read()
            assert caught.value.key == "d/k"
            assert "root/d/k" in str(caught.value)
        assert [*driver.list()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_never_written_over(tmp_path: Path, kind: str) -> None:
    driver = FileDriver(tmp_path / "root")
    with standing(kind, tmp_path / "root/d/k") as says:
        before = os.lstat(tmp_path / "root/d/k")
        for how in ({}, {"if_absent": True}, {"if_tag": (1, 2, 3)}):
            with pytest.raises(
                DriverError, match=says.replace("No such device or address", "It is")
            ):
                driver.put("d/k", b"new", **how)
        assert os.path.samestat(before, os.lstat(tmp_path / "root/d/k"))
        assert os.listdir(tmp_path / "root/d") == ["k"]


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_it_is_never_removed(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    array = stash.create(root, (4, 3), "f8", chunks=(2, 3), fill_value=0)
    array[...] = HERE
    with standing(kind, root / "c/0/0"):
        before = os.lstat(root / "c/0/0")
        with pytest.raises(DriverError, match=r"0/0.*It is a "):
            array.driver.delete("c/0/0")
        with pytest.raises(DriverError, match=r"0/0.*It is a "):
            array[:2] = 0  # a chunk of nothing but fill is deleted
        array.driver.delete_prefix("c/")
        assert os.path.samestat(before, os.lstat(root / "c/0/0"))
        assert not (root / "c/1").exists()


class Turns:
    """How often a merge was tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(merge.time, "sleep", self)

    def __call__(self, seconds: float) -> None:
        self.count += 1


@pytest.mark.parametrize("codecs", [None, "auto"], ids=["raw", "encoded"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_names_it_at_once(
    tmp_path: Path, kind: str, codecs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3), codecs=codecs)
    turns = Turns(monkeypatch)
    with standing(kind, tmp_path / "a/c/0/0") as says:
        for use in (
            lambda: a[...],
            lambda: a[0, 0],
            lambda: a.__setitem__((0, 0), 1),
            lambda: a.__setitem__((slice(0, 2), slice(None)), 1),
        ):
            with pytest.raises(DriverError, match=f"c/0/0': ({says}|It is)"):
                use()
        assert np.array_equal(a[2:], HERE[2:])
    assert turns.count == 0


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_of_no_regular_file(tmp_path: Path, kind: str) -> None:
    g = stash.create_group(str(tmp_path / "g"))
    g.create("a", (3,), "f8")
    with standing(kind, tmp_path / "g/a/zarr.json") as says:
        for use in (
            lambda: g["a"],
            lambda: stash.open(str(tmp_path / "g/a")),
            lambda: g.create("a", (3,), "f8"),
            lambda: stash.save(str(tmp_path / "g/a"), HERE),
        ):
            with pytest.raises(DriverError, match=says):
                use()


def test_a_folder_of_other_keys_is_no_value_and_is_not_written_over(tmp_path: Path) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3))
    (tmp_path / "a/c/0/0").unlink()
    a.driver.put("c/0/0/below", b"1")
    assert a.driver.get("c/0/0") is None  # as in every place where keys have no folders
    for value in (np.s_[0, 0], np.s_[:2]):
        with pytest.raises(DriverError, match="a directory is in the way"):
            a[value] = 1
    assert a.driver.get("c/0/0/below") == b"1"


class Lying(MemoryDriver):
    """Says that nothing is there, and refuses to put what needs that."""

    puts = 0

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[Buffer, Tag] | None:
        return None if key.startswith("c/") else super().get_tagged(key, span)

    def put(self, key: str, value: Buffer, **how: Any) -> Tag:
        if key.startswith("c/"):
            self.puts += 1
            raise Conflict("it is there", key=key)
        return super().put(key, value, **how)


def test_a_contradiction_is_named_and_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(monkeypatch)
    driver = Lying({})
    a = stash.create(driver, (4, 3), "f8", chunks=(2, 3))
    with pytest.raises(Conflict, match=r"nothing is read at key 'c/0/0' .* yet a put finds"):
        a[0, 0] = 1
    assert driver.puts == merge._CONTRADICTIONS == turns.count + 1


# -- how much is read -----------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that each read call took."""
    taken: list[int] = []
    true = {name: getattr(os, name) for name in ("readv", "pread")}

    def readv(fd: int, parts: Any) -> int:
        taken.append(true["readv"](fd, parts))
        return taken[-1]

    def pread(fd: int, size: int, start: int) -> bytes:
        value: bytes = true["pread"](fd, size, start)
        taken.append(len(value))
        return value

    monkeypatch.setattr(os, "readv", readv)
    monkeypatch.setattr(os, "pread", pread)
    return taken


def test_a_limit_is_known_before_anything_is_read(tmp_path: Path, reads: list[int]) -> None:
    driver = FileDriver(tmp_path)
    with open(tmp_path / "k", "wb") as file:
        file.truncate(1 << 40)  # a hole of 1 TiB
    for read in (
        lambda: [*driver.get_many([Request("k", most=1000)])],
        lambda: [*driver.get_many_tagged([Request("k", most=1000)])],
        lambda: get_at_most(driver, "k", 1000),
    ):
        with pytest.raises(Corrupt, match="more than the 1000 it can have"):
            read()
    assert driver.get_into("k", memoryview(bytearray(100))) == 1 << 40
    assert sum(reads) <= 1001 + 101


def test_a_file_that_grows_is_read_as_long_as_it_was_at_some_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FileDriver(tmp_path)
    path = tmp_path / "k"
    grown = 0

    def grow(true: Callable[..., Any]) -> Callable[..., Any]:
        def growing(*args: Any) -> Any:
            nonlocal grown
            grown += 1
            assert grown < 50
            with open(path, "ab") as file:
                file.write(b"y" * 200_000)
            return true(*args)

        return growing

    monkeypatch.setattr(os, "readv", grow(os.readv))
    monkeypatch.setattr(os, "pread", grow(os.pread))
    for size in (0, 10, 70_000, 200_000):
        for read in (
            lambda: bytes(driver.get("k") or b""),
            lambda: bytes(next(driver.get_many([Request("k")]))[1] or b""),
            lambda: bytes(next(driver.get_many_tagged([Request("k")]))[1][0]),  # type: ignore[index]
        ):
            path.write_bytes(b"x" * size)
            value = read()
            assert value[:size] == b"x" * size
            assert len(value) <= size + 3 * 200_000
    path.write_bytes(b"x" * 10)
    out = memoryview(bytearray(1000))
    size = driver.get_into("k", out) or 0
    assert size > 1000 or bytes(out[:10]) == b"x" * 10


@pytest.mark.parametrize("path", ["/proc/self/maps", "/proc/self/mem", "/proc/self/pagemap"])
def test_files_that_do_not_know_their_size(tmp_path: Path, path: str, reads: list[int]) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3))
    (tmp_path / "a/c/0/0").unlink()
    os.symlink(path, tmp_path / "a/c/0/0")
    with pytest.raises(StashError):
        a[0, 0]
    with pytest.raises(StashError):
        a[0, 0] = 1
    assert sum(reads) < 10_000


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3))
    with standing("FIFO", tmp_path / "a/c/0/0"):
        failed: list[BaseException] = []

        def read() -> None:
            try:
                a[0, 0]
            except DriverError as error:
                failed.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(120)  # a guard; it takes no time
        assert len(failed) == 1
