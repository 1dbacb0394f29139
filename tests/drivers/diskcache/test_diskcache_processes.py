"""Processes that share a disk cache, and die in the midst of using it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tensorstash.driver import Request, Span
from tensorstash.drivers.diskcache.driver import DiskCache
from tensorstash.drivers.file import FileDriver
from tensorstash.testing.counting import CountingDriver

KEYS = [f"c/{i}" for i in range(24)]
LIMIT = 1_000_000
BLOCK = 4096


def value(key: str, version: int) -> bytes:
    """Tells which version it is, all through; of 9 to 90 kB, the versions differ in size."""
    line = b"%s=%08d;" % (key.encode(), version)
    return line * (700 + 97 * (hash_of(key) + version) % 6000)


def hash_of(key: str) -> int:
    return int(key[2:]) * 31


def version_of(key: str, data: bytes) -> int:
    """The version that ``data`` is, which must be right to the last byte."""
    version = int(data[len(key) + 1 : len(key) + 9])
    assert data == value(key, version), key
    return version


def write(root: Path, mine: list[str], seed: int) -> None:
    """Put newer and newer versions, half of them through a cache."""
    cache = DiskCache(FileDriver(root / "remote"), root / "cache", LIMIT)
    rng = random.Random(seed)
    while True:
        key = rng.choice(mine)
        found = cache.get(key)
        driver = rng.choice([cache, cache.driver])
        driver.put(key, value(key, 1 + (0 if found is None else version_of(key, bytes(found)))))


def read(root: Path, seed: int, failed: Any) -> None:
    """Never see damage, nor a version before one seen."""
    try:
        cache = DiskCache(FileDriver(root / "remote"), root / "cache", LIMIT)
        rng = random.Random(seed)
        seen = dict.fromkeys(KEYS, -1)
        while True:
            keys = [*{rng.choice(KEYS) for _ in range(12)}]
            for i, found in cache.get_many_tagged(Request(key) for key in keys):
                if found is not None:
                    version = version_of(keys[i], bytes(found[0]))
                    assert version >= seen[keys[i]]
                    seen[keys[i]] = version
            key = keys[0]
            head = cache.get(key, Span(0, 20))
            if head is not None:
                assert bytes(head).startswith(key.encode() + b"=")
                assert int(bytes(head)[len(key) + 1 : len(key) + 9]) >= seen[key]
    except BaseException as error:
        failed.put(repr(error)[:300])
        raise


def on_disk(folder: Path) -> tuple[int, int]:
    """Blocks of files in place, and of those that are being written or were left."""
    placed = partial = 0
    for path in folder.rglob("*"):
        try:
            blocks = -(-path.stat().st_size // BLOCK) * BLOCK if path.is_file() else 0
        except FileNotFoundError:
            continue
        if path.parent.name == ".tensorstash-partial":
            partial += blocks
        else:
            placed += blocks
    return placed, partial


def test_kill_9_of_anyone_at_any_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failed = context.Queue()
    rng = random.Random(7)
    largest = max(len(value(key, n)) for key in KEYS for n in range(100))
    most = 0
    for turn in range(12):
        halves = KEYS[:12], KEYS[12:]
        jobs = [(write, (tmp_path, half, turn)) for half in halves]
        jobs += [(read, (tmp_path, seed, failed)) for seed in (turn, -turn)]
        processes = [context.Process(target=target, args=args) for target, args in jobs]
        for process in processes:
            process.start()
        rng.shuffle(processes)
        for process in processes:
            time.sleep(rng.uniform(0.02, 0.12))
            most = max(most, on_disk(tmp_path / "cache")[0])
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join()
        assert failed.empty(), failed.get()
        cache = DiskCache(FileDriver(tmp_path / "remote"), tmp_path / "cache", LIMIT)
        for key in KEYS:
            stored = cache.driver.get(key)
            assert cache.get(key) == stored
        assert cache.counts.damaged == 0
    # The count of what was written lies beside, in a block; four processes write.
    assert LIMIT // 3 < most <= LIMIT + BLOCK + 4 * (largest + BLOCK)


def test_what_killed_writers_left_goes(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path / "remote")
    for key in KEYS:
        driver.put(key, value(key, 1))
    context = multiprocessing.get_context("fork")
    process = context.Process(target=die_while_writing, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [left] = (tmp_path / "cache/.tensorstash-partial").iterdir()
    assert [*(tmp_path / "cache").glob("??/*")] == []
    DiskCache(driver, tmp_path / "cache", LIMIT).get("c/1")
    assert left.exists()  # its writer may be at work still
    os.utime(left, (time.time() - 400,) * 2)
    DiskCache(driver, tmp_path / "cache", LIMIT).get("c/2")
    assert not left.exists()


def die_while_writing(root: Path) -> None:
    real = os.write

    def half(fd: int, data: Any) -> int:
        if len(data) > 5000:
            real(fd, data[:5000])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(fd, data)

    os.write = half
    DiskCache(FileDriver(root / "remote"), root / "cache", LIMIT).get("c/0")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_share_what_one_of_them_read(tmp_path: Path, method: str) -> None:
    remote = CountingDriver(FileDriver(tmp_path / "remote"))
    remote.put_many((key, value(key, 1)) for key in KEYS)
    cache = DiskCache(remote, tmp_path / "cache", 64 << 20)
    context = multiprocessing.get_context(method)
    for expected in (len(KEYS), 0):
        missed = context.Queue()
        workers = [context.Process(target=read_part, args=(cache, w, missed)) for w in range(2)]
        for worker in workers:
            worker.start()
        assert sum(missed.get(timeout=60) for _ in workers) == expected
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
    assert cache.counts.misses == 0


def read_part(cache: DiskCache, worker: int, missed: Any) -> None:
    keys = KEYS[worker::2]
    for i, found in cache.get_many_tagged(Request(key) for key in keys):
        assert found is not None and bytes(found[0]) == value(keys[i], 1)
    missed.put(cache.counts.misses)
