"""The compiled kernel reads what Python reads, bit for bit, and leaves to it what it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.engine import native
from tensorstash.engine.native import library
from tensorstash.errors import Corrupt, NotFound
from tensorstash.threads import alone, cores
from tests.support.native import needs_kernel, outcome, same_outcome, turned
from tests.support.oracle import advanced_index, numpy_index, same, shapes
from tests.support.project import ROOT

BIG = {"name": "bytes", "configuration": {"endian": "big"}}
CHAINS: dict[str, Any] = {
    "auto": "auto",
    "raw": None,
    "blosc": ["blosc"],
    "zstd": ["zstd"],
    "gzip": ["gzip"],
    "lz4": ["numcodecs.lz4"],
    "zlib": ["numcodecs.zlib"],
    "blosc of numcodecs": ["numcodecs.blosc"],
    "crc32c": "crc32c",
    "checked within": ["crc32c", "zstd"],
    "checked twice": ["crc32c", "gzip", "crc32c"],
    "big endian": [BIG],
    "big endian, zstd": [BIG, "zstd", "crc32c"],
    # Those that the kernel does not know.
    "two": ["gzip", "blosc"],
    "bz2": ["numcodecs.bz2"],
}
KINDS = {
    "auto": {"blosc", "crc32c"},
    "blosc of numcodecs": {"blosc"},
    "checked within": {"zstd", "crc32c"},
    "checked twice": {"gzip", "crc32c"},
    "big endian": {"swap"},
    "big endian, zstd": {"swap", "zstd", "crc32c"},
}
"""What chunks of a chain go through, where that is not its name."""

DTYPES: list[Any] = [
    *("b1", "u1", "i2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "M8[ns]", "U3", "S5", "V7"),
    "bfloat16",
    np.dtype([("a", "u1"), ("b", "<f4")]),
]


def random_of(dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if dtype.kind == "U":
        picked = np.array(["", "a", "\u00e9x", "\u6f22\u5b57c"])[rng.integers(0, 4, count)]
        return picked.astype(dtype).reshape(shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    few = rng.integers(0, 3, count * dtype.itemsize).astype("u1")
    return few.view(dtype).reshape(shape).copy()


@st.composite
def arrays(draw: Any) -> tuple[np.ndarray, dict[str, Any], Any]:
    """Data, how it is stored, and an index array of which chunks are stored at all."""
    shape = draw(shapes(max_dims=3, max_side=9))
    dtype = stash.dtype.parse(draw(st.sampled_from(DTYPES)))
    chain = draw(st.sampled_from(sorted(CHAINS)))
    how: dict[str, Any] = {"chunks": tuple(draw(st.integers(1, 9)) for _ in shape)}
    how["codecs"] = CHAINS[chain]
    if dtype.itemsize == 1 or dtype.kind in "SV":
        how["codecs"] = (
            "auto" if isinstance(how["codecs"], list) and BIG in how["codecs"] else how["codecs"]
        )
    kind = draw(st.sampled_from(["chunks", "chunks", "transposed", "shards", "v2"]))
    if kind == "transposed":
        how["order"] = "F"
        if isinstance(how["codecs"], list):
            how["codecs"] = "auto"
    elif kind == "v2":
        how["zarr_format"] = 2
        how["codecs"] = draw(st.sampled_from(["auto", "zstd", "gzip", "lz4", None]))
        how["order"] = draw(st.sampled_from(["C", "F"]))
    elif kind == "shards":
        how["shards"] = tuple(n * draw(st.integers(1, 3)) for n in how["chunks"])
    data = random_of(dtype, shape, draw(st.integers(0, 99)))
    some = tuple(draw(st.integers(0, n)) for n in shape) if draw(st.booleans()) else shape
    return data, how, some


def stored(location: Any, case: tuple[np.ndarray, dict[str, Any], Any]) -> np.ndarray:
    """What a read returns of a case that is stored at ``location``."""
    data, how, some = case
    array = stash.create(location, data.shape, data.dtype, overwrite=True, **how)
    part = tuple(slice(0, n) for n in some)
    array[part] = data[(*part, ...)]
    return array[...]


@needs_kernel
@settings(max_examples=2 * settings.default.max_examples)
@given(st.data(), st.booleans(), st.sampled_from([1, 2]))
def test_what_is_read_is_the_same(data: st.DataObject, files: bool, threads: int) -> None:
    case = data.draw(arrays())
    with tempfile.TemporaryDirectory() as folder:
        location: Any = Path(folder) / "a" if files else {}
        with turned(False):
            wanted = stored(location, case)
        index = data.draw(st.one_of(numpy_index(wanted.shape), advanced_index(wanted.shape)))
        found = []
        for on in (True, False):
            with turned(on):
                array = stash.open(location, threads=threads)
                found.append((outcome(lambda: array[index]), array.stats))  # noqa: B023
        (one, stats), (other, others) = found
        if isinstance(other, tuple):
            assert one == other
            return
        same(one, other)
        assert (stats.chunks, stats.encoded_bytes) == (others.chunks, others.encoded_bytes)
        if 0 not in wanted.shape:
            step = data.draw(st.integers(1, 3))
            out = np.empty([n * step for n in wanted.shape], wanted.dtype)
            view = out[(*(slice(None, None, -step) for _ in wanted.shape), ...)]
            with turned(True):
                stash.open(location).read(..., out=view)
            same(view.copy(), wanted)


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "nothing left": lambda value, at: b"",
    "cut": lambda value, at: value[: at % max(len(value), 1)],
    "longer": lambda value, at: value + b"\0" * (1 + at % 9),
    "one bit": lambda value, at: flipped(value, at),
    "other numbers in front": lambda value, at: (
        bytes([at % 256] * min(16, len(value))) + value[16:]
    ),
    "twice": lambda value, at: value + value,
}


def flipped(value: bytes, at: int) -> bytes:
    changed = bytearray(value)
    if changed:
        changed[at // 8 % len(changed)] ^= 1 << at % 8
    return bytes(changed)


@needs_kernel
@settings(max_examples=4 * settings.default.max_examples)
@given(st.data(), st.sampled_from(sorted(DAMAGES)), st.integers(0, 1 << 16))
def test_what_is_damaged_is_told_in_the_same_words(
    data: st.DataObject, damage: str, at: int
) -> None:
    case = data.draw(arrays())
    store: dict[str, Any] = {}
    with turned(False):
        wanted = stored(store, case)
    keys = sorted(key for key in store if not key.endswith((".json", ".zarray", ".zattrs")))
    if not keys:
        return
    key = keys[at % len(keys)]
    store[key] = DAMAGES[damage](bytes(store[key]), at)
    index = data.draw(st.one_of(st.just(...), numpy_index(wanted.shape)))
    found = []
    for on in (True, False):
        with turned(on):
            array = stash.open(store, threads=1)
            found.append(outcome(lambda: array[index]))  # noqa: B023
    same_outcome(*found)


@needs_kernel
@pytest.mark.parametrize("place", ["files", "memory", "shm"])
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("chain", sorted(set(CHAINS) - {"two", "bz2"}))
def test_the_kernel_does_the_work(chain: str, sharded: bool, place: str, tmp_path: Path) -> None:
    data = np.arange(4096, dtype="i4").reshape(64, 64)
    name = f"shm://native-{os.getpid()}-{tmp_path.name}"
    location: Any = {"files": tmp_path / "a", "memory": {}, "shm": name}[place]
    layout = {"chunks": (8, 8), "shards": (32, 32)} if sharded else {"chunks": (8, 8)}
    array = stash.save(location, data, codecs=CHAINS[chain], **layout)
    before = native.counts()
    same(stash.open(location)[...], data)
    after = native.counts()
    done = {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}
    assert done.pop("tasks") == 64
    assert done.pop("indices", 0) == (4 if sharded and place != "memory" else 0)
    assert set(done.values()) == {64}
    assert set(done) == KINDS.get(chain, {chain})
    del array


@needs_kernel
def test_parts_of_large_chunks(tmp_path: Path) -> None:
    """Only the blocks that are wanted are decoded, whichever they are."""
    rng = np.random.default_rng(0)
    data = np.cumsum(rng.integers(0, 3, (1500, 700)), axis=1).astype("u4")
    for chain in ("blosc", "zstd", "raw", "auto", "big endian"):
        stash.save(tmp_path / "a", data, chunks=(512, 700), codecs=CHAINS[chain], overwrite=True)
        picked = rng.integers(0, 1500, 9)
        for index in (np.s_[3:1400:700], np.s_[:, 5], picked, (picked, picked % 700), np.s_[1400:]):
            found = []
            for on in (True, False):
                with turned(on):
                    array = stash.open(tmp_path / "a")
                    found.append(array[index])
                    found.append(array.stats.encoded_bytes)
            same(found[0], found[2])
            same(found[0], data[index])
            if chain in ("raw", "big endian") and len(found[0]) == 9:  # Python reads all of it
                assert found[1] == found[0].nbytes
            else:
                assert found[1] == found[3], (chain, index)


@needs_kernel
def test_absent_chunks(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (40, 40), "i2", chunks=(4, 4), fill_value=7)
    array[8:20, 8:20] = 1
    before = native.counts().get("tasks", 0)
    found = array[...]
    assert native.counts()["tasks"] - before == 9
    assert (found == 7).sum() == 1600 - 144
    for on in (True, False):
        with turned(on), pytest.raises(NotFound, match=r"chunk \(0, 0\) is not stored"):
            stash.open(tmp_path / "a", missing="raise")[...]
    # A folder that a link leads to nowhere holds nobody knows what.
    os.symlink(tmp_path / "nowhere", tmp_path / "a" / "c" / "9")
    told = []
    for on in (True, False):
        with turned(on):
            told.append(outcome(lambda: stash.open(tmp_path / "a")[...]))
    assert told[0] == told[1]
    assert "leads nowhere" in told[0][1]


@needs_kernel
def test_a_shard_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    layout = {"chunks": (4, 4), "shards": (16, 16)}
    data = np.arange(1024, dtype="i4").reshape(32, 32)
    stash.save(tmp_path / "a", data, **layout)
    reader = stash.open(tmp_path / "a")
    same(reader[...], data)
    stash.open(tmp_path / "a", "r+")[...] = data + 5
    same(reader[...], data + 5)
    shutil.rmtree(tmp_path / "a" / "c" / "1")
    same(reader[...], np.concatenate([data[:16] + 5, np.zeros((16, 32), "i4")]))


@needs_kernel
def test_files_that_are_no_values(tmp_path: Path) -> None:
    data = np.arange(64, dtype="i4").reshape(8, 8)
    stash.save(tmp_path / "a", data, chunks=(2, 2))
    chunk = tmp_path / "a" / "c" / "1" / "1"
    shutil.move(chunk, tmp_path / "aside")
    os.symlink(tmp_path / "aside", chunk)
    same(stash.open(tmp_path / "a")[...], data)
    chunk.unlink()
    os.mkfifo(chunk)
    told = []
    for on in (True, False):
        with turned(on):
            told.append(outcome(lambda: stash.open(tmp_path / "a")[...]))
    assert told[0] == told[1]
    assert isinstance(told[0], tuple)


@needs_kernel
def test_threads_are_limited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = np.zeros((64, 1 << 16), "i4")
    stash.save(tmp_path / "a", data, chunks=(4, 1 << 16), write_fill=True)
    seen: list[int] = []
    run = library.Library.run

    def noted(self: Any, *rest: Any, **options: Any) -> Any:
        seen.append(options["threads"])
        return run(self, *rest, **options)

    monkeypatch.setattr(library.Library, "run", noted)
    stash.open(tmp_path / "a", threads=1)[...]
    stash.open(tmp_path / "a", threads=3)[...]
    stash.open(tmp_path / "a")[...]
    alone(lambda: stash.open(tmp_path / "a", threads=3)[...])
    assert seen == [1, 3, min(16, cores()), 1]


@needs_kernel
def test_a_child_forked_beside_a_read_reads(tmp_path: Path) -> None:
    data = np.arange(1 << 16, dtype="i4").reshape(256, 256)
    stash.save(tmp_path / "a", data, chunks=(16, 16))
    array = stash.open(tmp_path / "a", threads=2)
    array[...]
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            array[...]

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if not pid:
                os._exit(0 if np.array_equal(array[...], data) else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        ended.set()
        thread.join()


@needs_kernel
def test_a_decoder_that_decodes_wrongly_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = library._TRIALS[library.ZSTD]
    monkeypatch.setitem(library._TRIALS, library.ZSTD, lambda plain: right(plain[::-1]))
    monkeypatch.setattr(library, "library", library.Library())
    assert library.ZSTD not in library.library.kinds
    assert library.BLOSC in library.library.kinds
    store: dict[str, Any] = {}
    data = np.arange(100, dtype="i4")
    before = native.counts()
    stash.save(store, data, chunks=(7,), codecs=["zstd"])
    same(stash.open(store)[...], data)
    assert native.counts() == before


@pytest.mark.parametrize("value", ["0", "1"])
def test_it_can_be_turned_off(value: str, tmp_path: Path) -> None:
    code = (
        "import numpy, tensorstash\n"
        "from tensorstash.engine import native\n"
        "tensorstash.save('a', numpy.arange(100), chunks=(10,))\n"
        "assert (tensorstash.open('a')[...] == numpy.arange(100)).all()\n"
        "print(native.available(), native.counts().get('tasks', 0), native.status())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TENSORSTASH_NATIVE": value}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    if value == "0":
        assert out.stdout == "False 0 python: TENSORSTASH_NATIVE=0 turns the kernel off\n"
    elif library.library.kernel is not None:
        assert out.stdout.startswith("True 10 native: crc32c, blosc, zstd,")
    else:
        assert out.stdout.startswith("False 0 python: the kernel is not built")


def test_without_the_kernel_python_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    without = library.Library()
    without.__dict__["kernel"] = None
    monkeypatch.setattr(library, "library", without)
    monkeypatch.setattr(library, "enabled", True)
    assert native.status().startswith("python: the kernel is not built")
    store: dict[str, Any] = {}
    stash.save(store, np.arange(100), chunks=(7,))
    same(stash.open(store)[...], np.arange(100))


def call(**changes: Any) -> tuple[bytes, int]:
    """Eight bytes copied by the kernel, but for ``changes``."""
    row = [8, 0, 1, 0, 1, -1, -1]
    use: dict[str, Any] = {
        "chain": ((), 8, 8, 1),
        "groups": (((0,), np.zeros(1, np.int64), np.array(row, np.int64), None),),
        "jobs": [(b"", None, None, [b"abcdefgh"], (0,), (1,))],
        "out": bytearray(8),
        "fill": None,
        "status": bytearray(1),
        "ratios": (1,),
        "strides": (0,),
    } | changes
    library.library.run(**use)
    return bytes(use["out"]), use["status"][0]


def group(row: list[int], lists: Any = None, chunk: int = 0) -> tuple[Any, ...]:
    listed = None if lists is None else np.array(lists, np.int64)
    return (((0,), np.array([chunk], np.int64), np.array(row, np.int64), listed),)


WRONG: dict[str, dict[str, Any]] = {
    "beyond the chunk": {"groups": group([9, 0, 1, 0, 0, -1, -1])},
    "before the chunk": {"groups": group([8, -1, 1, 0, 1, -1, -1])},
    "beyond the output": {"groups": group([8, 0, 1, 1, 1, -1, -1])},
    "before the output": {"groups": group([2, 0, 1, 0, -1, -1, -1])},
    "too far": {"groups": group([1 << 62, 0, 1 << 60, 0, 1, -1, -1])},
    "no elements": {"groups": group([0, 0, 1, 0, 1, -1, -1])},
    "no list": {"groups": group([8, 0, 1, 0, 1, 0, -1])},
    "a short list": {"groups": group([3, 0, 1, 0, 1, 0, -1], [0, 1, 0, 1])},
    "a list beyond": {"groups": group([2, 0, 1, 0, 1, 0, -1], [0, 8, 0, 1])},
    "rows that are not there": {"jobs": [(b"", None, None, [b""], (0,), (2,))]},
    "more tasks": {"status": bytearray(2)},
    "a later task": {"first": 1},
    "a chunk before": {"groups": group([8, 0, 1, 0, 1, -1, -1], chunk=-1)},
    "an axis": {"ratios": (), "strides": ()},
    "no such step": {"chain": (((99, 0),), 8, 8, 1)},
    "no size": {"chain": ((), 8, 8, 0)},
    "a number of no size": {"chain": (((library.SWAP, 0),), 8, 8, 1)},
    "another element": {"chain": ((), 8, 8, 2)},
    "another fill value": {"fill": b"ab"},
    "a path of two": {"jobs": [(b"a\0b", None, None, None, (0,), (1,))]},
    "a path too long": {"jobs": [(b"a" * 5000, None, None, None, (0,), (1,))]},
    "a picked task that is not there": {"picked": np.array([1], np.int64)},
    "a picked task before the first": {"picked": np.array([-1], np.int64)},
    "two picked tasks": {"picked": np.zeros(2, np.int64)},
    "tasks of two jobs, picked backwards": {
        "picked": np.array([1, 0], np.int64),
        "status": bytearray(2),
        "jobs": [(b"", None, None, [b"abcdefgh"], (0,), (1,))] * 2,
    },
    "a task of two jobs, picked twice": {
        "picked": np.zeros(2, np.int64),
        "status": bytearray(2),
        "jobs": [(b"", None, None, [b"abcdefgh"], (0,), (1,))] * 2,
    },
    "versions of more tasks": {"versions": np.zeros(6, np.int64)},
    "memory of another size": {"keeps": [bytearray(9)]},
    "memory for two": {"keeps": [bytearray(8), bytearray(8)]},
    "memory that is not a list": {"keeps": (bytearray(8),)},
    "two values for a shard": {
        "jobs": [(b"", np.zeros(2, np.int64), None, [b"", b""], (0,), (1,))]
    },
}


@needs_kernel
def test_a_call_that_is_right() -> None:
    assert call() == (b"abcdefgh", library.DONE)
    assert call(groups=group([3, 6, -2, 5, -1, -1, -1]))[0] == b"\0\0\0ceg\0\0"
    assert call(groups=group([3, 0, 0, 0, 0, 0, 0], [7, 0, 7, 1, 0, 5]))[0] == b"ah\0\0\0h\0\0"
    assert call(fill=b"x", jobs=[(b"", None, None, [None], (0,), (1,))]) == (
        b"x" * 8,
        library.ABSENT,
    )
    kept = bytearray(8)
    picked = np.zeros(1, np.int64)
    part = group([2, 1, 1, 0, 1, -1, -1])
    assert call(groups=part, keeps=[kept], picked=picked)[0] == b"bc\0\0\0\0\0\0"
    assert kept == b"abcdefgh"
    assert call(keeps=[None])[0] == b"abcdefgh"
    entries = np.array([3, 8], np.int64)
    shard = [(b"", entries, None, [b"...abcdefgh"], (0,), (1,))]
    assert call(jobs=shard) == (b"abcdefgh", library.DONE)


@needs_kernel
@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_call_that_is_wrong_is_refused(what: str) -> None:
    with pytest.raises(ValueError):
        call(**WRONG[what])


@needs_kernel
@pytest.mark.parametrize(
    "index", [(4, 8), (0, 9), (-5, 8), (1 << 62, 8), (0, 7), (0, 1 << 62), (12, 0)]
)
def test_an_index_that_points_elsewhere_is_left_to_python(index: tuple[int, int]) -> None:
    job = (b"", np.array(index, np.int64), None, [b"...abcdefgh"], (0,), (1,))
    assert call(jobs=[job])[1] not in (library.DONE, library.ABSENT)


# -- with the compiler's sanitizers ------------------------------------------------------


def hostile(module: str, rounds: int, seed: int) -> None:
    """In a process of its own: damaged and whole chunks of every chain through the kernel that was
    built into ``module``, which allocates to the byte."""
    import importlib.util

    name = "tensorstash.engine.native._kernel"
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    library.library = library.Library()  # the one before may have found the installed kernel
    assert library.library.kernel is not None
    assert library.library.kernel.run is sys.modules[name].run
    library.enabled = True
    assert len(library.library.kinds) == len(library.NAMES), library.library.kinds
    rng = np.random.default_rng(seed)
    data = np.cumsum(rng.integers(0, 3, (37, 41)), axis=1).astype("u2")
    for sharded in (False, True):
        for chain in sorted(CHAINS):
            layout: dict[str, Any] = {"chunks": (10, 9)}
            if sharded:
                layout["shards"] = (20, 18)
            with tempfile.TemporaryDirectory() as folder:
                for location in ({}, folder + "/a"):
                    stash.save(location, data, codecs=CHAINS[chain], **layout)
                    store = stash.open(location).driver
                    keys = [key for key in store.list() if key[0] == "c"]
                    whole = {key: bytes(store.get(key)) for key in keys}
                    for _ in range(rounds):
                        key = keys[rng.integers(len(keys))]
                        damage = sorted(DAMAGES)[rng.integers(len(DAMAGES))]
                        store.put(key, DAMAGES[damage](whole[key], int(rng.integers(1 << 16))))
                        picked = rng.integers(0, 37, 5)
                        for index in (..., np.s_[::-3, 2:40:5], picked, (picked, picked)):
                            with suppress(Corrupt):
                                stash.open(location, threads=2)[index]
                        opened = stash.open(location)
                        for small in (np.s_[2:33, 7], (5, 6), (5, 7), np.s_[30:, 30:], np.s_[-1]):
                            with suppress(Corrupt):
                                opened[small]
                        store.put(key, whole[key])
                    assert (stash.open(location)[...] == data).all()
    large(rng)
    print("done", native.counts()["tasks"])


def large(rng: np.random.Generator) -> None:
    """Chunks of which some blocks, or the beginning, are decoded alone, on two threads."""
    data = np.cumsum(rng.integers(0, 3, (600, 900)), axis=1).astype("u4")
    indices: list[Any] = [..., np.s_[290:310], np.s_[:, 7], [5, 250, 251]]
    for chain in ("auto", "blosc", "zstd", "lz4"):
        store: dict[str, Any] = {}
        stash.save(store, data, chunks=(300, 900), codecs=CHAINS[chain])
        for damage in (None, "one bit", "cut"):
            whole = dict(store)
            if damage is not None:
                store["c/0/0"] = DAMAGES[damage](bytes(store["c/0/0"]), int(rng.integers(1 << 22)))
            for index in indices:
                with suppress(Corrupt):
                    found = stash.open(store, threads=2)[index]
                    assert damage is not None or (found == data[index]).all()
            store.update(whole)


def sanitized(folder: Path) -> tuple[str, dict[str, str]] | None:
    """The kernel, built with sanitizers, and the environment that it needs; ``None`` where the
    compiler has none."""
    gcc, target = shutil.which("gcc"), folder / "_kernel.so"
    if gcc is None or sys.platform != "linux":
        return None
    sources = sorted((ROOT / "tensorstash/engine/native").glob("*.c"))
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DTENSORSTASH_EXACT"]
    built = subprocess.run(
        [
            *(gcc, "-shared", "-fPIC", "-std=gnu11", "-O1", "-g", "-pthread", *flags),
            *("-DPy_LIMITED_API=0x030B0000", f"-I{sysconfig.get_path('include')}"),
            *(*map(str, sources), "-o", str(target), "-ldl"),
        ],
        capture_output=True,
        text=True,
    )
    runtime = subprocess.run(
        [gcc, "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout.strip()
    if built.returncode or not os.path.isabs(runtime):
        return None
    return str(target), {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
    }


def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    found = sanitized(tmp_path)
    if found is None:
        pytest.skip("no gcc with -fsanitize=address,undefined")
    module, env = found
    code = (
        "from tests.engine.native import test_kernel\n"
        f"test_kernel.hostile({module!r}, 3, 0)\n"
        "from tests.engine.native import test_native_writes\n"
        "test_native_writes.hostile(0)\n"
        "from tests.engine.native import hostile_files\n"
        "hostile_files.hostile(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("done ") == 3
