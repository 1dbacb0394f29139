"""A disk cache whose files are damaged, or whose disk refuses, costs requests, never errors."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorstash.driver import Request, Span, Tag
from tensorstash.drivers.diskcache.driver import DiskCache
from tensorstash.drivers.file import FileDriver
from tensorstash.testing.counting import CountingDriver

LIMIT = 64 << 20


@pytest.fixture
def remote(tmp_path: Path) -> CountingDriver:
    return CountingDriver(FileDriver(tmp_path / "remote"))


MakeCache = Callable[..., DiskCache]


@pytest.fixture
def cache(remote: CountingDriver, tmp_path: Path) -> MakeCache:
    def make(limit: int = LIMIT, immutable: bool = False) -> DiskCache:
        return DiskCache(remote, tmp_path / "cache", limit, immutable)

    return make


# -- damage -----------------------------------------------------------------------------

SIZES = [0, 1, 5000, (256 << 10), (256 << 10) + 1, 700_001]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*"))


def flip(at: float) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        bad = bytearray(data)
        bad[min(int(at * len(bad)), len(bad) - 1)] ^= 4
        return bytes(bad)

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"flip at {at}": flip(at) for at in (0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 1.0)},
    "empty": lambda data: b"",
    "short head": lambda data: data[:20],
    "half": lambda data: data[: len(data) // 2],
    "less one": lambda data: data[:-1],
    "one more": lambda data: data + b"x",
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"not a cache file, but long enough to be taken for the head of one",
}


@pytest.mark.parametrize("immutable", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_replaced(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path, damage: str, immutable: bool
) -> None:
    values = {f"c/{size}": os.urandom(size) for size in SIZES}
    remote.put_many(values.items())
    for key in values:
        cache().get(key)
    for path in files(tmp_path / "cache"):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    mine = cache(immutable=immutable)
    requests = [Request(key) for key in values]
    found = {i: pair and bytes(pair[0]) for i, pair in mine.get_many_tagged(requests)}
    assert found == dict(enumerate(values.values()))
    assert mine.counts.damaged == len(SIZES) and mine.counts.hits == 0
    remote.reset()
    assert all(mine.get(key) == value for key, value in values.items())
    assert remote.reads.nbytes == 0  # what was fetched again is whole


def test_any_flipped_bit_of_a_small_file_is_noticed(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path
) -> None:
    remote.put("k", b"0123456789")
    cache().get("k")
    [path] = files(tmp_path / "cache")
    good = path.read_bytes()
    mine = cache(immutable=True)
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        assert mine.get("k") == b"0123456789"
        assert mine.counts.damaged == bit + 1
    for size in range(len(good)):
        path.write_bytes(good[:size])
        assert mine.get("k", Span(2, 4)) == b"23"
        for path_of_span in files(tmp_path / "cache"):
            path_of_span.unlink()
        assert mine.counts.damaged == bit + 1 + size + 1


def test_damage_outside_a_part_does_not_matter_to_it(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path
) -> None:
    value = os.urandom(1 << 20)
    remote.put("k", value)
    cache().get("k")
    [path] = files(tmp_path / "cache")
    path.write_bytes(flip(0.9)(path.read_bytes()))
    mine = cache(immutable=True)
    remote.reset()
    assert mine.get("k", Span(100, 300_000)) == value[100:300_000]
    assert remote.counts == {} and mine.counts.damaged == 0
    assert mine.get("k", Span(-300_000)) == value[-300_000:]
    assert remote.reads.nbytes == 300_000 and mine.counts.damaged == 1


def test_another_values_file_is_not_believed(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path
) -> None:
    remote.put_many([("a", b"of a"), ("b", b"of b")])
    cache().get("a")
    [first] = files(tmp_path / "cache")
    cache().get("b")
    [second] = {*files(tmp_path / "cache")} - {first}
    second.write_bytes(first.read_bytes())
    mine = cache(immutable=True)
    assert mine.get("b") == b"of b" and mine.counts.damaged == 1


def test_what_is_no_file_does_no_harm(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path
) -> None:
    remote.put("k", b"value")
    cache().get("k")
    [path] = files(tmp_path / "cache")
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        path.unlink() if not path.is_dir() else path.rmdir()
        make(path)
        assert cache(immutable=True).get("k") == b"value"


# -- a disk that refuses ------------------------------------------------------------------


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def test_a_folder_that_cannot_be_made(
    remote: CountingDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote.put_many((f"c/{i}", b"value") for i in range(5))
    (tmp_path / "file").write_bytes(b"in the way")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        caplog.clear()
        mine = DiskCache(remote, folder, LIMIT)
        for _ in range(2):
            for i in range(5):
                assert mine.get(f"c/{i}") == b"value"
        mine.put("c/0", b"other")
        assert mine.get("c/0") == b"other"
        mine.delete_prefix("d/")
        remote.put("c/0", b"value")
        assert len(warnings(caplog)) == 1 and str(folder) in warnings(caplog)[0]


@pytest.mark.parametrize("call", ["open", "write", "rename", "makedirs", "fstat"])
def test_any_call_may_fail(
    cache: MakeCache,
    remote: CountingDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    """Each use of the call in turn says that the disk is full; a write stores half before."""
    real = getattr(os, call)
    countdown = 0

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal countdown
        ours = call in ("write", "fstat") or str(tmp_path / "cache") in str(args[0])
        countdown -= ours
        if ours and countdown == 0:
            if call == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    value = os.urandom(300_000)
    tag = FileDriver(tmp_path / "remote").put("k", value)
    for count in range(1, 9):
        countdown = 0
        subprocess.run(["rm", "-rf", tmp_path / "cache"], check=True)
        within = _Canned(value, tag)
        mine = DiskCache(within, tmp_path / "cache", LIMIT)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            countdown = count
            for _ in range(3):
                assert mine.get("k") == value
        assert [*(tmp_path / "cache").glob(".tensorstash-partial/*")] == []
        assert cache(immutable=True).get("k") == value
        assert mine.counts.damaged <= 1
    assert len(warnings(caplog)) >= (call != "fstat")


class _Canned(FileDriver):
    """A remote value that costs no system call."""

    def __init__(self, value: bytes, tag: Tag) -> None:
        super().__init__("/nowhere")
        self._found = value, tag

    def get_many_tagged(self, requests: Any) -> Iterator[tuple[int, tuple[bytes, Tag]]]:
        for i, (_, _, unless, _) in enumerate(requests):
            yield i, (b"", unless) if unless == self._found[1] else self._found

    def get_tagged(self, key: str, span: Span | None = None) -> tuple[bytes, Tag]:
        return self._found


def test_it_is_tried_again_after_a_minute(
    cache: MakeCache, remote: CountingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.put("k", b"value")
    (tmp_path / "cache").write_bytes(b"in the way")
    mine = cache()
    mine.get("k")
    (tmp_path / "cache").unlink()
    mine.get("k")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("tensorstash.drivers.diskcache.folder._PAUSE", 0.0)
    mine._folder._resume = 0.0
    mine.get("k")
    assert len(files(tmp_path / "cache")) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_then_read_only(
    remote: CountingDriver, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {f"c/{i}": os.urandom(90_000) for i in range(20)}
    remote.put_many(values.items())
    mine = DiskCache(remote, small_disk / "cache", LIMIT)
    for _ in range(2):
        assert all(mine.get(key) == value for key, value in values.items())
    assert mine.counts.hits >= 9 and len(warnings(caplog)) == 1
    assert "No space left" in warnings(caplog)[0]
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    caplog.clear()
    mine = DiskCache(remote, small_disk / "cache", LIMIT)
    assert all(mine.get(key) == value for key, value in values.items())
    assert mine.counts.hits >= 9 and len(warnings(caplog)) == 1
    assert "Read-only" in warnings(caplog)[0]
    mine.put("c/0", b"new")
    assert mine.get("c/0") == b"new"
