"""Whole chunks and shards that the compiled kernel encodes are stored as Python stores them, to the
bit, wherever they go."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.engine import native
from tensorstash.engine.native import encode, library
from tensorstash.registry import make_codec
from tensorstash.threads import alone, cores
from tests.engine.native.test_kernel import BIG, CHAINS, DTYPES, KINDS, group, random_of
from tests.support import every_place
from tests.support.far import FarDriver
from tests.support.native import needs_kernel, outcome, turned
from tests.support.oracle import same, shapes

MORE: dict[str, Any] = {
    name: [{"name": name.partition(" ")[0], "configuration": configuration}, *rest]
    for name, configuration, *rest in [
        ("zstd 1", {"level": 1, "checksum": True}),
        ("zstd -3", {"level": -3}, "crc32c"),
        ("gzip 9", {"level": 9}),
        ("gzip 0", {"level": 0}),
        ("blosc zstd", {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 64}),
        ("blosc lz4hc", {"cname": "lz4hc", "clevel": 9, "shuffle": "noshuffle"}),
        ("blosc zlib", {"cname": "zlib", "clevel": 1, "shuffle": "shuffle", "typesize": 3}),
        ("blosc blosclz", {"cname": "blosclz", "clevel": 0}),
        ("numcodecs.lz4 7", {"acceleration": 7}),
        ("numcodecs.zlib 6", {"level": 6}),
    ]
}
ALL: dict[str, Any] = CHAINS | MORE


@pytest.fixture(autouse=True, scope="module")
def however_few() -> Iterator[None]:
    """Few chunks are enough, here."""
    few = encode._FEWEST, encode._FEWEST_INNER
    encode._FEWEST, encode._FEWEST_INNER = 2, 1
    yield
    encode._FEWEST, encode._FEWEST_INNER = few


def held(driver: Any) -> dict[str, bytes]:
    """What is stored, but for documents."""
    return {
        key: bytes(driver.get(key))
        for key in driver.list()
        if "/." not in f"/{key}" and "json" not in key
    }


def index_first(driver: Any) -> None:
    """Let the shards of an array have their index in front."""
    document = json.loads(bytes(driver.get("zarr.json")))
    document["codecs"][0]["configuration"]["index_location"] = "start"
    driver.put("zarr.json", json.dumps(document).encode())


@st.composite
def sources(draw: Any, dtype: np.dtype[Any], shape: tuple[int, ...], fill: Any) -> np.ndarray:
    """An array of ``shape`` in memory of any layout, some of it nothing but fill."""
    steps = [draw(st.sampled_from([1, 1, -1, 2, -3])) for _ in shape]
    kind = draw(st.sampled_from(["C", "F", "any", "repeated"]))
    seed = draw(st.integers(0, 99))
    if kind == "repeated":
        some = tuple(draw(st.sampled_from([1, n])) for n in shape)
        return np.broadcast_to(random_of(dtype, some, seed), shape)
    base = random_of(dtype, tuple(n * abs(s) for n, s in zip(shape, steps, strict=True)), seed)
    if kind == "any":
        order = draw(st.permutations(range(len(shape))))
        base = np.ascontiguousarray(base.transpose(order)).transpose(np.argsort(order))
    array = np.asarray(base[(*(slice(None, None, s) for s in steps), ...)])
    if kind != "any":
        array = np.array(array, order=kind)
    part = tuple(slice(draw(st.integers(0, n)), draw(st.integers(0, n))) for n in shape)
    array[(*part, ...)] = fill
    return array


@needs_kernel
@settings(max_examples=2 * settings.default.max_examples)
@given(st.data(), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_what_is_stored_is_the_same(
    data: st.DataObject, far: bool, write_fill: bool, threads: int
) -> None:
    shape = data.draw(shapes(max_dims=3, max_side=9, min_dims=1))
    dtype = stash.dtype.parse(data.draw(st.sampled_from(DTYPES)))
    codecs = ALL[data.draw(st.sampled_from(sorted(ALL)))]
    how: dict[str, Any] = {"chunks": tuple(data.draw(st.integers(1, 5)) for _ in shape)}
    if (dtype.itemsize == 1 or dtype.kind in "SV") and isinstance(codecs, list) and BIG in codecs:
        codecs = "auto"
    kind = data.draw(st.sampled_from(["chunks", "transposed", "shards", "index first", "v2"]))
    if kind == "transposed":
        how["order"] = "F"
        codecs = "auto" if isinstance(codecs, list) else codecs
    elif kind == "v2":
        how["zarr_format"] = 2
        codecs = data.draw(st.sampled_from(["auto", "zstd", "gzip", "lz4", None]))
        how["order"] = data.draw(st.sampled_from(["C", "F"]))
    elif kind in ("shards", "index first"):
        how["shards"] = tuple(n * data.draw(st.integers(1, 3)) for n in how["chunks"])
    how["codecs"] = codecs
    values = random_of(dtype, (1,) * (1 + len(shape)), data.draw(st.integers(0, 3)))
    how["fill_value"] = values.reshape(-1)[0] if dtype.kind != "V" else None
    fill = np.zeros((), dtype) if how["fill_value"] is None else how["fill_value"]
    steps = tuple(data.draw(st.sampled_from([1, 1, -1])) for _ in shape)
    part = tuple(slice(None, None, step) for step in steps)
    if data.draw(st.booleans()):
        part = tuple(slice(data.draw(st.integers(0, n)), n, 1) for n in shape)
    taken = np.empty(shape, "?")[(*part, ...)].shape
    before = random_of(dtype, shape, 5) if data.draw(st.booleans()) else None
    value = data.draw(sources(dtype, taken, fill))
    stored = []
    for on in (True, False):
        place = FarDriver() if far else MemoryDriver()
        array = stash.create(place, shape, dtype, write_fill=write_fill, **how)
        if kind == "index first":
            index_first(place)
            array = stash.open(place, "r+")
        with turned(False):
            if before is not None:
                array[...] = before
        array = stash.open(place, "r+", threads=threads, write_fill=write_fill)
        with turned(on):
            array[(*part, ...)] = value
        stored.append(held(place))
        wanted = np.full(shape, fill, dtype) if before is None else before.copy()
        wanted[(*part, ...)] = value
        same(stash.open(place)[...], wanted)
    assert stored[0] == stored[1]


@needs_kernel
@settings(max_examples=settings.default.max_examples // 2)
@given(st.data(), st.sampled_from(["auto", None, ["zstd"], [BIG, "gzip"]]), st.booleans())
def test_what_is_appended_is_the_same(data: st.DataObject, codecs: Any, sharded: bool) -> None:
    how: dict[str, Any] = {"chunks": (3, 2), "fill_value": 7, "codecs": codecs}
    if sharded:
        how["shards"] = (6, 4)
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    parts = [
        rng.integers(6, 9, (n, 5)) for n in data.draw(st.lists(st.integers(1, 14), max_size=4))
    ]
    stored = []
    for on in (True, False):
        store: dict[str, bytes] = {}
        with turned(on):
            array = stash.create(store, (2, 5), "i4", **how)
            for part in parts:
                array.append(part.astype("i4")[:, ::-1])
            with array.writer() as writer:
                for part in parts:
                    writer.append(part)
            with array.writer() as writer:
                for k, part in enumerate(parts):
                    writer[k : len(part) + k] = part
        stored.append(held(array.driver))
    assert stored[0] == stored[1]


@needs_kernel
@pytest.mark.parametrize("place", ["files", "memory", "far", "shm"])
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("chain", sorted(set(CHAINS) - {"two", "bz2"}))
def test_the_kernel_encodes(chain: str, sharded: bool, place: str, tmp_path: Path) -> None:
    data = np.arange(4096, dtype="i4").reshape(64, 64)
    name = f"shm://written-{os.getpid()}-{tmp_path.name}"
    places = {"files": tmp_path / "a", "memory": {}, "far": FarDriver(), "shm": name}
    location: Any = places[place]
    layout = {"chunks": (8, 8), "shards": (32, 32)} if sharded else {"chunks": (8, 8)}
    array = stash.create(location, data.shape, data.dtype, codecs=CHAINS[chain], **layout)
    done = encoded(lambda: array.__setitem__(..., data))
    same(stash.open(location)[...], data)
    assert done.pop("encoded tasks") == 64
    assert done == {f"encoded {name}": 64 for name in KINDS.get(chain, {chain})}


def encoded(call: Callable[[], Any]) -> dict[str, int]:
    """What the kernel counts of what ``call`` encodes."""
    before = native.counts()
    call()
    rest = Counter(native.counts()) - Counter(before)
    return {name: n for name, n in rest.items() if name.startswith("encoded")}


@needs_kernel
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
@pytest.mark.parametrize("kind", ["s3fs", "redis"])
def test_it_encodes_for_servers(kind: str, sharded: bool, tmp_path: Path, request: Any) -> None:
    layout = {"chunks": (8, 8), "shards": (32, 32)} if sharded else {"chunks": (8, 8)}
    data = np.arange(4096, dtype="i4").reshape(64, 64)
    with every_place.place(kind, tmp_path, request.getfixturevalue) as driver:
        array = stash.create(driver, data.shape, "i4", **layout)
        done = encoded(lambda: array.__setitem__(..., data))
        same(stash.open(driver)[...], data)
        assert done == {"encoded tasks": 64, "encoded blosc": 64, "encoded crc32c": 64}
        done = encoded(lambda: array.append(data[:32]))  # under a lease
        assert done == {"encoded tasks": 32, "encoded blosc": 32, "encoded crc32c": 32}
        same(stash.open(driver)[64:], data[:32])
        found = []
        for on in (True, False):
            with turned(on):
                array.append(np.zeros_like(data[:32]))  # chunks of fill are stored too
            at = len(array) - 32
            edge = 32 if sharded else 8
            found.append(
                [
                    bytes(driver.get(f"c/{k}/0") or b"")
                    for k in range(at // edge, len(array) // edge)
                ]
            )
        assert found[0] == found[1]
        assert all(found[0])


@needs_kernel
def test_a_shard_that_a_writer_has_filled_is_encoded() -> None:
    data = np.arange(4096, dtype="i4").reshape(64, 64)
    array = stash.create({}, (50, 64), "i4", chunks=(8, 8), shards=(32, 32), codecs="zstd")
    with array.writer() as writer:
        done = encoded(lambda: writer.__setitem__(np.s_[:32], data[:32]))
    assert done == {"encoded tasks": 32, "encoded zstd": 32, "encoded crc32c": 32}
    same(array[:32], data[:32])
    same(array[32:], np.zeros((18, 64), "i4"))


@needs_kernel
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_fill_is_told_by_its_bits(sharded: bool) -> None:
    layout = {"chunks": (4,), "shards": (8,)} if sharded else {"chunks": (4,)}
    quiet, other = np.array([0x7FC00000, 0x7FC00001], "u4").view("f4")
    for fill, values in ((0.0, [0.0, -0.0]), (-0.0, [-0.0, 0.0]), (quiet, [quiet, other])):
        data = np.repeat(np.array(values, "f4"), 8)
        found = []
        for on in (True, False):
            with turned(on):
                array = stash.create({}, (16,), "f4", fill_value=fill, codecs=None, **layout)
                array[...] = data
                found.append(held(array.driver))
        assert found[0] == found[1]
        assert sorted(found[0]) == (["c/1"] if sharded else ["c/2", "c/3"])


@needs_kernel
def test_a_chunk_of_fill_goes_as_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stored is deleted, but where it must stay."""
    sent = []
    for on in (True, False):
        driver = FarDriver()
        array = stash.create(driver, (12,), "i4", chunks=(3,))
        array[...] = np.arange(1, 13)
        driver.reset()
        with turned(on):
            array[...] = np.array([0] * 6 + [1] * 6)
        sent.append(sorted(driver.sent))
        assert sorted(held(driver)) == ["c/2", "c/3"]
    assert sent[0] == sent[1]


@needs_kernel
def test_what_python_refuses_it_refuses_in_the_same_words() -> None:
    """What is stored of noise is more than may be: then all of it is left to Python."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 70000), "u1")
    told = []
    for on in (True, False):
        array = stash.create({}, noise.shape, "u1", chunks=(1, 70000), codecs=["zstd"])
        pipeline = array._write.chunks.pipeline
        assert pipeline is not None
        pipeline.most = 1000
        with turned(on):
            told.append(outcome(lambda: array.__setitem__(..., noise)))  # noqa: B023
    assert told[0] == told[1]
    assert "the most that is read is 1000" in told[0][1]


@needs_kernel
def test_few_chunks_are_left_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_FEWEST", 32)
    monkeypatch.setattr(encode, "_FEWEST_INNER", 12)
    data = np.arange(1024, dtype="i4")
    for how, count, tasks in (
        ({"chunks": 32}, 32, 32),
        ({"chunks": 32}, 31, 0),
        ({"chunks": 32, "shards": 352}, 11, 0),
        ({"chunks": 32, "shards": 384}, 12, 12),
    ):
        array = stash.create({}, (1024,), "i4", **how)  # type: ignore[call-overload]
        done = encoded(lambda: array.__setitem__(slice(0, 32 * count), data[: 32 * count]))  # noqa: B023
        assert done.get("encoded tasks", 0) == tasks


@needs_kernel
def test_no_call_encodes_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_BATCH_BYTES", 64)
    monkeypatch.setattr(encode, "_SECONDS", 60)
    seen: list[tuple[int, int]] = []
    made = encode.Encoder.encode

    def noted(self: Any, tables: Any, tasks: Any, out: Any, *rest: Any) -> Any:
        seen.append((len(tasks), out.nbytes))
        return made(self, tables, tasks, out, *rest)

    monkeypatch.setattr(encode.Encoder, "encode", noted)
    data = np.arange(256, dtype="u2")
    store: dict[str, bytes] = {}
    stash.create(store, (256,), "u2", chunks=(4,), codecs=None)[...] = data
    assert [count for count, _ in seen] == [4, 8, 8, 8, 8, 8, 8, 8, 4]
    assert max(size for _, size in seen) <= 8 * 64
    seen.clear()
    stash.create(store, (256,), "u2", chunks=(4,), shards=(128,), overwrite=True)[...] = data
    assert max(count for count, _ in seen) == 8
    assert sum(count for count, _ in seen) == 64
    same(stash.open(store)[...], data)


@needs_kernel
def test_threads_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    made = encode.spread

    def noted(blocks: Any, work: Any, threads: int, **options: Any) -> Any:
        seen.append(threads)
        return made(blocks, work, threads, **options)

    data = np.random.default_rng(0).integers(0, 3, (8, 1 << 18), "i4")
    store: dict[str, bytes] = {}
    stash.create(store, data.shape, "i4", chunks=(1, 1 << 17))  # trials are over
    monkeypatch.setattr(encode, "spread", noted)
    for threads in (1, 3, None):
        seen.clear()
        stash.open(store, "r+", threads=threads)[...] = data
        assert set(seen) == {min(4, cores()) if threads is None else threads}
    seen.clear()
    alone(lambda: stash.open(store, "r+", threads=3).__setitem__(..., data))
    assert set(seen) == {1}


@needs_kernel
def test_writes_side_by_side_and_in_a_forked_child(tmp_path: Path) -> None:
    data = np.arange(1 << 16, dtype="i4").reshape(256, 256)
    arrays = [
        stash.create(tmp_path / name, data.shape, "i4", chunks=(16, 16), codecs=codecs, threads=2)
        for name, codecs in (("a", ["zstd"]), ("b", "auto"), ("c", ["gzip"]))
    ]
    ended = threading.Event()

    def go_on(array: stash.Array) -> None:
        while not ended.is_set():
            array[...] = data

    threads = [threading.Thread(target=go_on, args=(array,)) for array in arrays[:2]]
    for thread in threads:
        thread.start()
    try:
        for k in range(4):
            pid = os.fork()
            if not pid:
                arrays[2][...] = data + k
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            same(arrays[2][...], data + k)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    for array in arrays[:2]:
        same(array[...], data)


@needs_kernel
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_where_there_is_no_memory_python_encodes(
    sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*rest: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(encode.Encoder, "encode", none)
    layout = {"chunks": (8,), "shards": (32,)} if sharded else {"chunks": (8,)}
    data = np.arange(256, dtype="u2")
    array = stash.create({}, (256,), "u2", **layout)
    assert not encoded(lambda: array.__setitem__(..., data))
    same(array[...], data)


@needs_kernel
def test_an_encoder_of_other_bytes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library", library.Library())
    codec = make_codec("zstd", {"level": 5})
    kind = library.ZSTD
    assert library.library.encodes(codec, kind, codec.step_options(100))
    assert library.library.encodes(codec, kind, codec.step_options(100000))
    other = make_codec("zstd", {"level": 19})
    monkeypatch.setattr(type(other), "encode", lambda self, data: bytes(data))
    assert not library.library.encodes(other, kind, other.step_options(100))
    blosc = make_codec("blosc", {"shuffle": "shuffle", "typesize": 2})
    monkeypatch.setattr(library, "_encoder", lambda *rest: (0, [b"/nowhere.so"], None))
    missing = library.Library()
    monkeypatch.setattr(missing, "_find_encoder", lambda *rest: False)
    assert not missing.encodes(blosc, library.BLOSC, blosc.step_options(100))


@needs_kernel
def test_an_encoder_is_of_the_version_that_python_has() -> None:
    kernel = library.library.kernel
    assert kernel is not None
    _, places, version = library._encoder(library.ZSTD, (3, 0, 1))
    assert version
    assert [kernel.encoder(2, place, "0.0.1") for place in places] in (
        [None] * len(places),
        [version] * len(places),  # it was found before, and stays
    )
    assert kernel.encoder(0, b"/nowhere.so", None) in (None, *map(str, ["1.21.6", "1.21.7.dev"]))


# -- calls ---------------------------------------------------------------------------------


def call(**changes: Any) -> tuple[bytes, int]:
    """Eight bytes encoded by the kernel, but for ``changes``."""
    use: dict[str, Any] = {
        "chain": ((), 8, 8, 1),
        "groups": group([8, 0, 1, 0, 1, -1, -1]),
        "tasks": np.zeros((1, 2), np.int64),
        "source": np.frombuffer(b"abcdefgh", "V1"),
        "fill": b"x",
        "out": bytearray(8),
        "sizes": np.zeros(1, np.int64),
        "axes": 1,
        "keep": False,
    } | changes
    library.library.encode(**use)
    return bytes(use["out"]), int(use["sizes"][0])


def task(*numbers: int) -> Any:
    return np.array([numbers], np.int64)


@needs_kernel
def test_a_call_that_is_right() -> None:
    assert call() == (b"abcdefgh", 8)
    assert call(groups=group([3, 1, 1, 6, -2, -1, -1])) == (b"xgecxxxx", 8)
    assert call(groups=group([3, 0, 0, 0, 0, 0, 0], [7, 0, 7, 1, 0, 5])) == (b"axxxxxxf", 8)
    assert call(fill=b"a", source=np.frombuffer(b"aaaaaaaa", "V1"))[1] == -1
    assert call(fill=b"a", source=np.frombuffer(b"aaaaaaaa", "V1"), keep=True)[1] == 8
    assert call(out=bytearray(10), tasks=task(2, 0)) == (b"\0\0abcdefgh", 8)
    assert call(chain=((), 8, 7, 1))[1] == -2


WRONG: dict[str, dict[str, Any]] = {
    "beyond the chunk": {"groups": group([9, 0, 1, 0, 0, -1, -1])},
    "beyond the array": {"groups": group([8, 0, 1, 1, 1, -1, -1])},
    "before the array": {"groups": group([2, 0, 1, 0, -1, -1, -1])},
    "no elements": {"groups": group([0, 0, 1, 0, 1, -1, -1])},
    "a short list": {"groups": group([3, 0, 1, 0, 1, 0, -1], [0, 1, 0, 1])},
    "no such row": {"tasks": task(0, 1)},
    "a row before": {"tasks": task(0, -1)},
    "half a task": {"tasks": np.zeros(3, np.int64)},
    "beyond the buffer": {"tasks": task(1, 0)},
    "before the buffer": {"tasks": task(-1, 0)},
    "no room for a checksum": {"chain": (((library.CRC32C, 0),), 8, 99, 1)},
    "no room for a header": {"chain": (((library.LZ4, 8, 1),), 8, 99, 1)},
    "more sizes": {"sizes": np.zeros(2, np.int64)},
    "another fill value": {"fill": b"ab"},
    "another element": {"chain": ((), 8, 8, 2), "fill": b"ab"},
    "an axis": {"axes": 0},
    "no such step": {"chain": (((99, 0),), 8, 8, 1)},
    "no such level": {"chain": (((library.GZIP, 8, 10),), 8, 8, 1), "out": bytearray(999)},
    "a level that stores": {"chain": (((library.ZLIB, 8, 0),), 8, 8, 1), "out": bytearray(999)},
    "no such compressor": {
        "chain": (((library.BLOSC, 8, 6, 5, 1, 0, 1),), 8, 99, 1),
        "out": bytearray(999),
    },
    "two compressors": {
        "chain": (((library.LZ4, 8, 1), (library.LZ4, 8, 1)), 8, 99, 1),
        "out": bytearray(999),
    },
    "swapped at last": {"chain": (((library.CRC32C, 0), (library.SWAP, 1)), 8, 99, 1)},
}


@needs_kernel
@pytest.mark.parametrize("what", sorted(WRONG))
def test_a_call_that_is_wrong_is_refused(what: str) -> None:
    for codec in (make_codec("gzip"), make_codec("numcodecs.lz4")):  # they are found on first use
        kind = library.NAMES.index(codec.step or "")
        assert library.library.encodes(codec, kind, codec.step_options(8))
    with pytest.raises(ValueError):
        call(**WRONG[what])


@needs_kernel
def test_chunks_are_moved_together() -> None:
    kernel = library.library.kernel
    assert kernel is not None
    body = bytearray(b"..ab..c.....defg!")
    assert kernel.pack(body, np.array([2, 1, 0, -1, 4][:3], np.int64), 2, 4) == 5
    assert body[:5] == b"..abc"
    for sizes, start, slot in (
        ([5], 0, 4),
        ([1] * 5, 0, 4),
        ([1], 14, 4),
        ([1], -1, 4),
        ([1], 0, 0),
    ):
        with pytest.raises(ValueError):
            kernel.pack(body, np.array(sizes, np.int64), start, slot)


# -- with the compiler's sanitizers ----------------------------------------------------------


def hostile(seed: int) -> None:
    """In a process of its own, with the kernel that :func:`.test_kernel.hostile` loads: arrays of
    every chain, in chunks small and large, on one thread and more."""
    encode._FEWEST, encode._FEWEST_INNER = 2, 1
    rng = np.random.default_rng(seed)
    small = np.cumsum(rng.integers(0, 3, (37, 41)), axis=1).astype("u2")
    large = np.cumsum(rng.integers(0, 3, (700, 900)), axis=1).astype("u4")
    for k, chain in enumerate(sorted(ALL)):
        for sharded in (False, True):
            for data, chunks in ((small, (10, 9)), (large, (350, 450))):
                if data is large and sharded == bool(k % 2):
                    continue
                how: dict[str, Any] = {"chunks": chunks, "codecs": ALL[chain]}
                if sharded:
                    how["shards"] = tuple(2 * n for n in chunks)
                layouts = (data, data.T.copy().T[::-1], np.broadcast_to(data[:1], data.shape))
                some = layouts[(k + sharded) % 3]
                array = stash.create({}, data.shape, data.dtype, threads=2, **how)
                array[...] = some
                if data is small:
                    array.append(some)
                assert np.array_equal(array[: len(data)], some)
    print("done", native.counts()["encoded tasks"])
