"""Reading part of a chunk gives what reading all of it gives."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.codec import BytesCodec
from tensorstash.codecs.blosc import Blosc
from tensorstash.codecs.gzip import Gzip
from tensorstash.codecs.zstd import Zstd
from tensorstash.engine.native import library as native
from tensorstash.errors import Corrupt
from tensorstash.testing import CountingDriver

pytestmark = pytest.mark.usefixtures("both_paths")

CODECS: list[BytesCodec] = [
    Blosc("lz4", 5, "shuffle", 2, 0),
    Blosc("lz4", 5, "shuffle", 4, 4096),
    Blosc("lz4", 1, "bitshuffle", 1, 32768),
    Blosc("zstd", 3, "noshuffle", 8, 10000),
    Blosc("blosclz", 9, "shuffle", 2, 512),
    Zstd(1),
    Zstd(3, checksum=True),
    Gzip(1),
]


def content(size: int, seed: int, noisy: bool) -> bytes:
    rng = np.random.default_rng(seed)
    if noisy:
        return rng.bytes(size)
    return bytes(np.repeat(rng.integers(0, 255, size // 7 + 1, dtype="u1"), 7)[:size])


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_span_equals_the_whole(codec: BytesCodec, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 100, 32768, 32769, 200_000, 600_000]))
    raw = content(size, data.draw(st.integers(0, 5)), data.draw(st.booleans()))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, min(size, start + data.draw(st.integers(1, size)))))
    encoded = codec.encode(raw)
    out = memoryview(bytearray(b"\xaa" * size))
    if codec.decode_span(encoded, size, start, stop, out):
        assert out[start:stop] == raw[start:stop]
    else:
        assert out == b"\xaa" * size


@pytest.mark.parametrize("codec", [CODECS[1], CODECS[2], CODECS[5]], ids=repr)
def test_small_spans_of_large_chunks_are_decoded_alone(codec: BytesCodec) -> None:
    raw = content(600_000, 0, noisy=False)
    out = memoryview(bytearray(len(raw)))
    assert codec.decode_span(codec.encode(raw), len(raw), 1000, 1100, out)
    assert out[1000:1100] == raw[1000:1100]
    assert out[-1000:] == bytes(1000)  # the rest was left alone


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damage_never_gives_a_wrong_size_or_a_crash(codec: BytesCodec, data: st.DataObject) -> None:
    raw = content(300_000, 1, noisy=False)
    encoded = bytearray(codec.encode(raw))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(encoded), len(encoded) - 1, 20, 3]))
    out = memoryview(bytearray(len(raw)))
    start = data.draw(st.integers(0, len(raw) - 1))
    with suppress(ValueError):
        codec.decode_span(bytes(encoded[:cut]), len(raw), start, start + 1, out)
    assert len(out) == len(raw)


CHAINS: list[Any] = [
    None,
    "auto",
    [Blosc("lz4", 5, "shuffle", 2, 0)],
    [Zstd(1)],
    "zstd",
    "gzip",
    ["transpose-me"],
]


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_parts_of_large_chunks_equal_numpy(chain: Any, data: st.DataObject) -> None:
    numbers = (np.arange(40 * 60 * 90) // 3).astype("u2").reshape(40, 60, 90)
    how: dict[str, Any] = {"codecs": chain}
    if chain == ["transpose-me"]:
        how = {"codecs": None, "order": "F"}
    store: dict[str, bytes] = {}
    a = stash.create(store, numbers.shape, "u2", chunks=(20, 60, 50), **how)
    a[...] = numbers
    items = []
    for n in numbers.shape:
        index = st.integers(-n, n - 1)
        items.append(
            data.draw(st.one_of(index, st.slices(n), st.lists(index, min_size=1, max_size=4)))
        )
    selection = tuple(items[: data.draw(st.integers(1, 3))])
    try:
        wanted = numbers[selection]
    except IndexError:
        with pytest.raises(IndexError):
            a[selection]
        return
    np.testing.assert_array_equal(a[selection], wanted)


def test_an_element_of_a_raw_chunk_costs_its_bytes(tmp_path: Any) -> None:
    stash.create(tmp_path / "a", (100, 100, 100), "u2", chunks=(100, 100, 100), codecs=None)[
        ...
    ] = 7
    driver = CountingDriver(stash.open(tmp_path / "a").driver)
    a = stash.open(driver)
    driver.reset()
    assert a[3, 4, 5] == 7
    assert sum(count.nbytes for count in driver.counts.values()) == 2
    driver.reset()
    assert (a[3] == 7).all()
    assert sum(count.nbytes for count in driver.counts.values()) == 100 * 100 * 2


def test_a_raw_chunk_too_short_for_the_span_is_noticed(tmp_path: Any) -> None:
    stash.create(tmp_path / "a", (100, 100, 100), "u2", chunks=(100, 100, 100), codecs=None)[
        ...
    ] = 7
    chunk = tmp_path / "a" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:1000])
    with pytest.raises(stash.Corrupt, match="1000 bytes"):
        stash.open(tmp_path / "a")[50, 0, 0]


RAW: list[Any] = [
    None,
    [{"name": "bytes", "configuration": {"endian": "big"}}],
    [{"name": "transpose", "configuration": {"order": [1, 0]}}, "bytes"],
]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("chain", RAW, ids=["raw", "big-endian", "transposed"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_rows_far_apart_in_raw_files_equal_numpy(
    chain: Any, sharded: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Few rows of a large chunk are read one by one: sorted or not, repeated, by steps."""
    numbers = np.arange(700 * 300, dtype="u4").reshape(700, 300)
    layout: dict[str, Any] = {"chunks": (320, 300), "codecs": chain}
    if sharded:
        layout["shards"] = (640, 300)
    place = tmp_path_factory.mktemp("far-apart") / "a"
    a = stash.save(place, numbers, **layout)
    row = st.integers(-700, 699)
    step = data.draw(st.integers(20, 400)) * data.draw(st.sampled_from([1, -1]))
    rows = data.draw(st.one_of(st.lists(row, max_size=9), st.just(slice(None, None, step))))
    columns = data.draw(st.sampled_from([slice(None), slice(5, 9), slice(280, 2, -3), [7, 7, 0]]))
    if isinstance(rows, list) and isinstance(columns, list):
        columns = 4
    selection = rows if data.draw(st.booleans()) else (rows, columns)
    if isinstance(selection, list) and not selection:
        selection = np.array([], int)
    np.testing.assert_array_equal(a[selection], numbers[selection])


def test_rows_far_apart_in_a_raw_file_cost_their_bytes(tmp_path: Any) -> None:
    numbers = np.arange(4096 * 512, dtype="u4").reshape(4096, 512)
    a = stash.save(tmp_path / "a", numbers, chunks=(2048, 512), codecs=None)
    before = read_so_far()
    np.testing.assert_array_equal(a[[2040, 3, 3000]], numbers[[2040, 3, 3000]])
    moved = read_so_far() - before
    assert moved >= 3 * 2048
    if native.enabled:
        assert moved < 100_000


def read_so_far() -> int:
    """Bytes that this process has read by system calls."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_raw_chunk_of_another_size_is_noticed(change: int, tmp_path: Path) -> None:
    numbers = np.arange(700 * 300, dtype="u4").reshape(700, 300)
    a = stash.save(tmp_path / "a", numbers, chunks=(700, 300), codecs=None)
    file = tmp_path / "a" / "c" / "0" / "0"
    data = file.read_bytes()
    file.write_bytes(data[:change] if change < 0 else data + b"0")
    with pytest.raises(Corrupt):
        a[[0, 690, 3]]
