"""Whole chunks that the compiled kernel puts as files are those that Python puts."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.file.driver import FileDriver
from tensorstash.drivers.posix import partial
from tensorstash.engine import native
from tensorstash.engine.native import encode, library
from tests.engine.native.test_kernel import CHAINS
from tests.support.native import needs_kernel, turned
from tests.support.oracle import same

DATA = np.random.default_rng(0).integers(0, 50, (70, 64), "i4")
WHOLE = 64  # chunks of 8 x 8, of which those at the edge are merged


def files(root: Path) -> dict[str, bytes]:
    """All that lies below ``root``, but for documents: those hold a mark of their own."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith((".z", "zarr.json"))
    }


def put_by_kernel(array: stash.Array, values: Any = DATA) -> int:
    """Assign ``values``; how many chunks the kernel puts meanwhile."""
    before = native.counts().get("put tasks", 0)
    array[...] = values
    return int(native.counts().get("put tasks", 0)) - before


def made(place: Any, **options: Any) -> stash.Array:
    return stash.create(place, DATA.shape, "i4", chunks=(8, 8), **options)


@needs_kernel
@pytest.mark.parametrize(
    ("chain", "form"),
    [*((name, 3) for name in sorted(set(CHAINS) - {"two", "bz2"})), ("raw", 2), ("auto", 2)],
)
def test_files_are_the_same(chain: str, form: int, tmp_path: Path) -> None:
    found = []
    for on in (True, False):
        root = tmp_path / str(on)
        with turned(on):
            array = made(root, codecs=CHAINS[chain], zarr_format=form)
            for values in (DATA, DATA[::-1], DATA.T.copy().T):  # new, and in the place of others
                count = put_by_kernel(array, values)
                assert count == (WHOLE if on else 0)
                same(stash.open(root)[...], values)
        found.append(files(root))
    assert found[0] == found[1]


@needs_kernel
def test_fill_is_not_stored_and_what_was_there_goes(tmp_path: Path) -> None:
    array = made(tmp_path / "a", fill_value=7)
    array[...] = DATA
    values = DATA.copy()
    values[:32] = 7
    assert put_by_kernel(array, values) == WHOLE // 2
    same(array[...], values)
    assert not [name for name in files(tmp_path / "a") if name.startswith("c/0/")]
    array = made(tmp_path / "b", fill_value=7, write_fill=True)
    assert put_by_kernel(array, values) == WHOLE


@needs_kernel
def test_a_call_that_ends_early_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode.Files.__new__, "__defaults__", (1,))
    array = made(tmp_path / "a")
    assert put_by_kernel(array) == WHOLE
    same(array[...], DATA)


@needs_kernel
def test_each_version_has_a_time_of_its_own(tmp_path: Path) -> None:
    array = made(tmp_path / "a")
    seen: set[int] = set()
    begun = time.time_ns()
    for _ in range(3):
        array[...] = DATA
        array[:1] = DATA[:1]  # Python's, between
        seen |= {path.stat().st_mtime_ns for path in (tmp_path / "a/c").rglob("[0-9]/[0-9]")}
    assert len(seen) >= 3 * (WHOLE - 8)
    assert begun < min(seen)
    assert max(seen) < time.time_ns() + 10**9


@needs_kernel
def test_who_writes_in_another_way_is_asked(tmp_path: Path) -> None:
    class Other(FileDriver):
        def put(self, key: str, value: Any, **options: Any) -> Any:
            return super().put(key, value, **options)

    assert put_by_kernel(made(Other(tmp_path / "a"))) == 0
    assert put_by_kernel(made(FileDriver(tmp_path / "b", fsync=True))) == 0
    assert put_by_kernel(made(FileDriver(tmp_path / "d"))) == WHOLE


@needs_kernel
@pytest.mark.parametrize("shards", [None, (32, 32)])
@pytest.mark.parametrize("near", [True, False], ids=["files", "memory"])
def test_under_a_limit_it_encodes_and_puts_too(
    near: bool, shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stash.create({}, 64, "i4", chunks=1)[...] = 1  # what is tried before a first one
    held: list[int] = []
    encodes = library.Library.encode

    def noted(self: Any, *args: Any, **options: Any) -> int:
        held.append(args[5].nbytes)
        return encodes(self, *args, **options)

    monkeypatch.setattr(library.Library, "encode", noted)
    each = 8 * 8 * 4 * (1 if shards is None else 16)
    counts = []
    for chunks in (1, 2, 9, 40, 4000):
        held.clear()
        place: Any = tmp_path / str(chunks) if near else {}
        array = stash.create(
            *(place, (64, 64), "i4"), chunks=(8, 8), shards=shards, memory_limit=chunks * each
        )
        before = native.counts()
        array[...] = DATA[:64]
        now = native.counts()
        with turned(False):
            same(stash.open(place)[...], DATA[:64])
        names = "put tasks", "encoded tasks"
        counts.append([now.get(name, 0) - before.get(name, 0) for name in names])
        assert max(held, default=0) <= max(chunks, 2) * each
        assert array.settings.memory.use()["in_flight"] == 0
    puts = WHOLE if near and shards is None else 0
    assert counts[0][0] == 0, "one and no more goes through"
    assert counts[3:] == [[puts, WHOLE], [puts, WHOLE]]


@needs_kernel
def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    array = made(tmp_path / "a")
    (tmp_path / "a/c").mkdir()
    (tmp_path / "a/c/3").symlink_to(tmp_path / "other")
    with pytest.raises(stash.errors.Denied, match="symbolic link"):
        array[...] = DATA
    assert not [*(tmp_path / "other").iterdir()]
    array = made(tmp_path / "b")
    (tmp_path / "b/c/2").mkdir(parents=True)
    (tmp_path / "b/c/2/2").symlink_to(tmp_path / "value")
    (tmp_path / "value").write_bytes(b"mine")
    array[...] = DATA  # a link in the place of a chunk goes
    assert (tmp_path / "value").read_bytes() == b"mine"
    assert not (tmp_path / "b/c/2/2").is_symlink()
    same(array[...], DATA)
    (tmp_path / "root").symlink_to(tmp_path / "b")  # the root itself is the user's word
    assert put_by_kernel(stash.open(tmp_path / "root", "r+")) == WHOLE


@needs_kernel
def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    array = made(tmp_path / "a")
    (tmp_path / "a/c/2/2").mkdir(parents=True)
    with pytest.raises(stash.errors.StashError, match="c/2/2"):
        array[...] = DATA


@needs_kernel
def test_it_waits_for_who_compares_and_renames(tmp_path: Path) -> None:
    array = made(tmp_path / "a")
    array[...] = DATA
    folder = os.open(tmp_path / "a/c/4", os.O_RDONLY)
    before = (tmp_path / "a/c/4/4").stat().st_mtime_ns
    fcntl.flock(folder, fcntl.LOCK_EX)
    thread = threading.Thread(target=lambda: array.__setitem__(..., DATA + 1))
    thread.start()
    time.sleep(0.3)
    assert (tmp_path / "a/c/4/4").stat().st_mtime_ns == before
    os.close(folder)
    thread.join()
    same(array[...], DATA + 1)
    assert not [name for name in files(tmp_path / "a") if name.endswith(".partial")]


@needs_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_keeps_no_lock(tmp_path: Path) -> None:
    code = """
import os, fcntl, sys, threading, numpy as np, tensorstash as stash
array = stash.open(sys.argv[1], "r+")
data = array[...]
ended = threading.Event()
def write():
    while not ended.is_set():
        array[...] = data
thread = threading.Thread(target=write)
thread.start()
children = []
for _ in range(20):
    child = os.fork()
    if not child:
        import time; time.sleep(60); os._exit(0)
    children.append(child)
ended.set()
thread.join()
for name in os.listdir(sys.argv[1] + "/c"):
    fcntl.flock(os.open(sys.argv[1] + "/c/" + name, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
for child in children:
    os.kill(child, 9); os.waitpid(child, 0)
"""
    put_by_kernel(made(tmp_path / "a"))
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "a")], check=True, timeout=120
    )


@needs_kernel
def test_a_kill_leaves_whole_chunks(tmp_path: Path) -> None:
    code = """
import sys, numpy as np, tensorstash as stash
array = stash.open(sys.argv[1], "r+")
print(flush=True)
for k in range(10**9):
    array[...] = np.full(array.shape, k, "i4")
"""
    for codecs in (None, "zstd"):
        array = made(tmp_path / str(codecs), codecs=codecs)
        for seconds in (0.05, 0.2, 0.3):
            words = [sys.executable, "-c", code, str(tmp_path / str(codecs))]
            with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(seconds)
                process.send_signal(signal.SIGKILL)
            values = np.asarray(array[:64])
            blocks = values.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)
            assert (blocks == blocks[:, :1]).all()
        left = [path for path in files(tmp_path / str(codecs)) if path.endswith(".partial")]
        assert all(partial.is_ours(os.path.basename(path)) for path in left)


@needs_kernel
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, signal, sys, numpy as np, tensorstash as stash
array = stash.open(sys.argv[1], "r+")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    array[...] = np.random.default_rng(1).integers(0, 1 << 30, array.shape, "i4")
except stash.errors.StashError as error:
    print(error)
"""
    array = made(tmp_path / "a", codecs=None)
    array[...] = DATA
    before = files(tmp_path / "a")
    words = [sys.executable, "-c", code, str(tmp_path / "a")]
    found = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    assert "cannot write" in found.stdout
    assert files(tmp_path / "a") == before


@needs_kernel
def test_it_is_interrupted_between_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_by_kernel(made(tmp_path / "b"))  # trials are over
    monkeypatch.setattr(encode.Files.__new__, "__defaults__", (1,))
    real = library.Library.encode
    calls: list[int] = []

    def noted(self: Any, *args: Any, **options: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(library.Library, "encode", noted)
    array = made(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        array[...] = DATA
    found = np.asarray(stash.open(tmp_path / "a")[...])
    assert ((found == DATA) | (found == 0)).all()
    assert 0 < len([name for name in files(tmp_path / "a") if name.startswith("c/")]) < WHOLE


WRONG: dict[str, Any] = {
    "no folder": ([], [b"x"], b"w", 1, 1),
    "names": ([b"/tmp"], [], b"w", 1, 1),
    "a path": ([b"/tmp"], [b"a/b"], b"w", 1, 1),
    "empty": ([b"/tmp"], [b""], b"w", 1, 1),
    "before time": ([b"/tmp"], [b"x"], b"w", -1, 1),
    "text": ([b"/tmp"], ["x"], b"w", 1, 1),
    "nul": ([b"/tmp"], [b"x\0y"], b"w", 1, 1),
}


@needs_kernel
@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_calls_that_are_wrong(wrong: str) -> None:
    row = np.array([8, 0, 1, 0, 1, -1, -1])
    with pytest.raises((ValueError, TypeError)):
        library.library.encode(
            *(((), 8, 8, 1), (((0,), np.zeros(1, np.int64), row, None),)),
            *(np.zeros((1, 2), np.int64), np.frombuffer(b"abcdefgh", "V1"), b"x", bytearray(0)),
            np.zeros(1, np.int64),
            axes=1,
            keep=True,
            puts=WRONG[wrong],
        )
