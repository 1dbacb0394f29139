"""How new arrays are laid out: chosen chunk shapes, and every way to name codecs and chunks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import example, given
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.metadata.defaults import CHUNK_BYTES, INNER_BYTES, auto_chunks, chain, inner_chunks
from tensorstash.registry import make_codec

# zarr-python warns of codecs and dtypes that no specification holds yet.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

SHAPES = st.lists(
    st.one_of(st.integers(0, 20), st.integers(0, 10**6), st.integers(0, 2**62)), max_size=6
)
ITEMS = st.one_of(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 1 << 22))
F4 = np.dtype("float32")


@given(SHAPES, ITEMS, st.sampled_from([INNER_BYTES, CHUNK_BYTES, 1]))
@example([2**62] * 6, 1, CHUNK_BYTES)
@example([0, 0, 0], 4, CHUNK_BYTES)
@example([3, 10**6, 3], 2, CHUNK_BYTES)
def test_chosen_chunks_fit(shape: list[int], itemsize: int, target: int) -> None:
    chunks = auto_chunks(shape, itemsize, target)
    assert len(chunks) == len(shape)
    assert all(type(edge) is int for edge in chunks)
    assert all(1 <= edge <= max(n, 1) or n == 0 for edge, n in zip(chunks, shape, strict=True))
    nbytes = math.prod(chunks) * itemsize
    assert nbytes <= max(1.5 * target, itemsize)
    # Nor are they needlessly small: doubling the shortest edge that can grow is too much.
    grown = [edge for edge, n in zip(chunks, shape, strict=True) if edge < n or n == 0]
    if grown:
        assert nbytes * 2 ** len(grown) * 1.1 > target


@given(st.integers(1, 10**6), st.integers(1, 4), st.sampled_from([1, 2, 4, 8]))
def test_chosen_chunks_are_nearly_cubes(edge: int, ndim: int, itemsize: int) -> None:
    chunks = auto_chunks((edge,) * ndim, itemsize)
    assert max(chunks) <= 5 * min(chunks)  # whole axes up to 1.5 times, others powers of two


@given(st.lists(st.integers(1, 10**4), min_size=1, max_size=4), st.sampled_from([1, 2, 4, 8]))
def test_chosen_inner_chunks_divide_the_shard(shards: list[int], itemsize: int) -> None:
    inner = inner_chunks(shards, itemsize)
    assert all(n % edge == 0 for edge, n in zip(inner, shards, strict=True))
    assert math.prod(inner) * itemsize <= 1.5 * INNER_BYTES


def test_a_growing_axis_gets_chunks_to_grow_into() -> None:
    assert auto_chunks((0,), 4)[0] >= 1 << 16
    rows, columns = auto_chunks((0, 100), 4)
    assert columns == 100
    assert rows >= 512
    assert stash.create({}, (0, 100), "f4").chunks == (rows, columns)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (None, (16, 8)),
        ("auto", (16, 8)),
        (5, (5, 5)),
        (np.int64(5), (5, 5)),
        (-1, (16, 8)),
        ((5, 3), (5, 3)),
        ([5, -1], (5, 8)),
        ((None, 3), (16, 3)),
        (np.array([4, 4]), (4, 4)),
        ((100, 100), (100, 100)),  # larger than the array: it may grow
    ],
    ids=repr,
)
def test_chunks_as_given(given_: Any, expected: tuple[int, ...]) -> None:
    array = stash.create({}, (16, 8), "f4", chunks=given_)
    assert array.chunks == expected
    assert array.shards is None


def test_shards_as_given() -> None:
    array = stash.create({}, (64, 64), "f4", chunks=(8, 4), shards=(16, 16))
    assert (array.chunks, array.shards) == ((8, 4), (16, 16))
    assert stash.create({}, (64, 64), "f4", chunks=8, shards=-1).shards == (64, 64)
    chosen = stash.create({}, (4096, 4096), "f4", shards=(1000, 1000))
    assert chosen.shards == (1000, 1000)
    assert chosen.chunks is not None
    assert math.prod(chosen.chunks) * 4 <= 1.5 * INNER_BYTES
    assert stash.create({}, (), "f4", chunks=()).chunks == ()
    assert stash.create({}, 7, "f4").shape == (7,)


BLOSC = {"cname": "lz4", "shuffle": "shuffle", "typesize": 4}
CODECS: list[tuple[Any, list[str]]] = [
    ("auto", ["bytes", "blosc", "crc32c"]),
    ("blosc", ["bytes", "blosc", "crc32c"]),
    ("lz4", ["bytes", "blosc", "crc32c"]),
    ("lz4hc", ["bytes", "blosc", "crc32c"]),
    ("zstd", ["bytes", "zstd", "crc32c"]),
    ("gzip", ["bytes", "gzip", "crc32c"]),
    ("crc32c", ["bytes", "crc32c"]),
    ("numcodecs.zlib", ["bytes", "numcodecs.zlib", "crc32c"]),
    ("bytes", ["bytes"]),
    ("raw", ["bytes"]),
    (None, ["bytes"]),
    ([], ["bytes"]),
    (["zstd"], ["bytes", "zstd"]),
    (["bytes", "zstd", "crc32c"], ["bytes", "zstd", "crc32c"]),
    (("gzip", "crc32c"), ["bytes", "gzip", "crc32c"]),
    ({"name": "zstd", "configuration": {"level": 9}}, ["bytes", "zstd"]),
    ([{"name": "bytes", "configuration": {"endian": "big"}}, "zstd"], ["bytes", "zstd"]),
    (make_codec("zstd", {"level": 1}), ["bytes", "zstd"]),
    ([make_codec("transpose", {"order": [1, 0]}), "gzip"], ["transpose", "bytes", "gzip"]),
]


@pytest.mark.parametrize(("given_", "names"), CODECS, ids=lambda value: repr(value)[:40])
def test_codecs_as_given(given_: Any, names: list[str]) -> None:
    assert [codec.name for codec in chain(given_, F4)] == names
    store: dict[str, Any] = {}
    data = np.random.default_rng(0).normal(size=(8, 8)).astype("f4")
    array = stash.create(store, data.shape, "f4", chunks=4, codecs=given_)
    array[...] = data
    assert [codec["name"] for codec in json.loads(store["zarr.json"])["codecs"]] == names
    assert np.array_equal(stash.open(store)[...], data)
    sharded = stash.create({}, data.shape, "f4", chunks=2, shards=4, codecs=given_)
    sharded[...] = data
    assert np.array_equal(sharded[...], data)
    assert [codec.name for codec in sharded.codecs] == ["sharding_indexed"]


def test_codec_options_reach_the_document() -> None:
    store: dict[str, Any] = {}
    stash.create(store, (4,), "f4", codecs={"name": "zstd", "configuration": {"level": 9}})
    assert json.loads(store["zarr.json"])["codecs"][1]["configuration"]["level"] == 9
    stash.create(store, (4,), "f4", overwrite=True)
    configuration = json.loads(store["zarr.json"])["codecs"][1]["configuration"]
    assert {key: configuration[key] for key in BLOSC} == BLOSC


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float64", "complex128", "bool", str, bytes])
@pytest.mark.parametrize("sharded", [False, True], ids=["chunks", "shards"])
def test_peers_read_what_we_write_by_default(dtype: Any, sharded: bool, tmp_path: Path) -> None:
    data = np.arange(70).reshape(10, 7)
    if dtype is bytes:
        items = [b"%d" % n for n in range(70)]
        values = np.empty(70, object)
        values[:] = items
        data = values.reshape(10, 7)
    else:
        data = data.astype(np.dtypes.StringDType() if dtype is str else dtype)
    shards = {"shards": (10, 8), "chunks": (5, 4)} if sharded else {}
    stash.create(tmp_path / "a", data.shape, dtype, **shards)[...] = data
    document = json.loads((tmp_path / "a" / "zarr.json").read_text())
    codecs = document["codecs"]
    if sharded:
        codecs = codecs[0]["configuration"]["codecs"]
    assert codecs[-1]["name"] == "crc32c"
    theirs: Any = zarr.open_array(str(tmp_path / "a"), mode="r")[...]
    assert np.asarray(theirs).tolist() == data.tolist()
    if dtype not in (str, bytes):  # TensorStore has no strings in Zarr v3
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/a/"}}
        theirs = tensorstore.open(spec).result().read().result()
        assert np.asarray(theirs).tolist() == data.tolist()


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, ["c/0/0", "c/0/1"]),
        ({"separator": "."}, ["c.0.0", "c.0.1"]),
        ({"key_encoding": "v2"}, ["0.0", "0.1"]),
        ({"key_encoding": "v2", "separator": "/"}, ["0/0", "0/1"]),
        ({"zarr_format": 2}, ["0.0", "0.1"]),
        ({"zarr_format": 2, "separator": "/"}, ["0/0", "0/1"]),
    ],
    ids=repr,
)
def test_chunk_keys(options: dict[str, Any], keys: list[str]) -> None:
    store: dict[str, Any] = {}
    stash.create(store, (2, 4), "u1", chunks=2, **options)[...] = 7
    assert sorted(key for key in store if "z" not in key) == keys


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_order_f(zarr_format: Any, tmp_path: Path) -> None:
    data = np.arange(20, dtype="u2").reshape(4, 5)
    made = stash.save(tmp_path / "a", data, order="F", codecs=None, zarr_format=zarr_format)
    assert np.array_equal(made[...], data)
    assert np.array_equal(zarr.open_array(str(tmp_path / "a"), mode="r")[...], data)
    (chunk,) = [p for p in (tmp_path / "a").rglob("*") if p.is_file() and "z" not in p.name]
    assert chunk.read_bytes() == data.tobytes(order="F")


@pytest.mark.parametrize("codecs", ["auto", "blosc", "lz4hc", "zstd", "gzip", "zlib", "bz2", None])
def test_v2_compressors_by_name(codecs: Any, tmp_path: Path) -> None:
    data = np.arange(20, dtype="u2").reshape(4, 5)
    stash.save(tmp_path / "a", data, codecs=codecs, zarr_format=2)
    assert np.array_equal(zarr.open_array(str(tmp_path / "a"), mode="r")[...], data)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{tmp_path}/a/"}}
    assert np.array_equal(tensorstore.open(spec).result().read().result(), data)


def test_a_terabyte_costs_one_small_object() -> None:
    store: dict[str, Any] = {}
    array = stash.create(store, (1 << 20, 1 << 20), "u1")
    assert list(store) == ["zarr.json"]
    assert len(store["zarr.json"]) < 2000
    assert array.nbytes == 1 << 40
    assert array[-1, -1] == 0
