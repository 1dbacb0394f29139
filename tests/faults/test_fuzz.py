"""Whatever is stored, a reader gets right data or one of our errors, in bounded memory.

``HYPOTHESIS_PROFILE=long`` looks for much longer.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.codec import ChunkSpec, Pipeline
from tensorstash.errors import Corrupt, StashError
from tensorstash.metadata.defaults import chain

# zarr-python warns of codecs that it is asked for by a fuzzed name.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

BOUND = 64 << 20


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fails when the block allocates absurdly; what it raises passes."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < BOUND, f"{peak >> 20} MiB at once"


# -- bytes -----------------------------------------------------------------------------------

CHAINS: dict[str, Any] = {
    **{name: [name] for name in ("crc32c", "blosc", "zstd", "gzip")},
    **{
        name: [f"numcodecs.{name}"]
        for name in (
            *("lz4", "zlib", "bz2", "lzma", "base64", "shuffle"),
            *("crc32", "adler32", "fletcher32", "jenkins_lookup3"),
        )
    },
    "auto": "auto",
    "raw": None,
    "transposed": [{"name": "transpose", "configuration": {"order": [1, 0]}}, "gzip"],
    "delta": [{"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}, "zstd"],
    "several": ["gzip", "blosc", "crc32c"],
    "shards": [
        {
            "name": "sharding_indexed",
            "configuration": {"chunk_shape": [2, 3], "codecs": ["bytes", "zstd"]},
        }
    ],
}
DTYPES = ["uint16", "float64", "bool", "S5", "M8[s]", "string", "bytes"]


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    plain = np.arange(np.prod(shape)).reshape(shape) % 50
    if dtype == "bytes":
        found = np.empty(plain.size, object)
        found[:] = [b"x" * (int(n) % 5) for n in plain.flat]
        return found.reshape(shape)
    if dtype == "string":
        return plain.astype(np.dtypes.StringDType())
    return (plain % 2 == 0) if dtype == "bool" else plain.astype("i8").astype(dtype)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` with a few of its bytes changed, cut, doubled or exchanged; or something else."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    bad = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(bad)))
        piece = draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from(
                    [b"\0" * 8, b"\xff" * 4, b"\xff" * 8, b"\x80", b"\x7f\xff\xff\xff"]
                ),
            )
        )
        kind = draw(st.sampled_from(["flip", "over", "in", "cut", "end"]))
        if kind == "flip" and at < len(bad):
            bad[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "over":
            bad[at : at + len(piece)] = piece
        elif kind == "in":
            bad[at:at] = piece
        elif kind == "cut":
            del bad[at : at + draw(st.integers(1, 20))]
        else:
            del bad[at:]
    return bytes(bad)


@pytest.mark.parametrize("name", CHAINS)
@given(data=st.data())
def test_chunks(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES if name not in ("delta", "shuffle") else DTYPES[:1]))
    if name == "shards" and dtype in ("string", "bytes"):
        dtype = "uint16"  # its inner codecs are for elements of one size
    made = np.dtypes.StringDType() if dtype == "string" else np.dtype(dtype.replace("bytes", "O"))
    chunk = values(dtype, (4, 6))
    fill = np.zeros((), made)
    pipeline = Pipeline(chain(CHAINS[name], made), ChunkSpec(chunk.shape, made, fill))
    bad = data.draw(mutated(bytes(pipeline.encode(chunk))))
    with bounded():
        try:
            found = pipeline.decode(bad)
        except Corrupt as error:
            assert "\n" not in str(error)
            return
    assert (found.shape, found.dtype) == (chunk.shape, made)


STORES: dict[str, dict[str, Any]] = {}
for _name, _options in {
    "v3": {"codecs": ["zstd"]},
    "shards": {"chunks": (2, 2), "shards": (4, 4)},
    "shards, raw": {"chunks": (2, 2), "shards": (4, 4), "codecs": None},
    "nested": {
        "chunks": (4, 4),
        "shards": (8, 8),
        "codecs": {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [2, 2],
                "codecs": ["bytes"],
                "index_codecs": ["bytes"],
                "index_location": "start",
            },
        },
    },
    "strings": {"dtype": "string", "codecs": "zstd", "attributes": {"a": [1, {"b": None}]}},
    "records": {"dtype": [("a", "i4"), ("b", "f8")], "dimension_names": ("y", None)},
    "times": {"dtype": "M8[ms]", "fill_value": np.datetime64("NaT", "ms"), "order": "F"},
    "v2": {"zarr_format": 2, "filters": [{"id": "delta", "dtype": "<u2"}], "codecs": "zlib"},
    "v2, strings": {"zarr_format": 2, "dtype": "string", "order": "F"},
    "v2, records": {"zarr_format": 2, "dtype": [("a", "i4"), ("b", "S3", (2,))]},
}.items():
    STORES[_name] = {}
    _array = stash.create(
        STORES[_name], (8, 8), **{"dtype": "uint16", "chunks": (4, 4), **_options}
    )
    _plain = np.arange(64).reshape(8, 8)
    if _array.dtype.names:
        _array[...] = np.array((7, 5), [("a", "i4"), ("b", "i4")]).astype(_array.dtype)
    else:
        _array[...] = _plain.astype("i8").astype(_array.dtype)
GROUP: dict[str, Any] = {}
_group = stash.create_group(GROUP, {"a": 1})
_group.create("x/y", (4,), "u1")[...] = 7
_group.consolidate()
GROUP2: dict[str, Any] = {}
_group = stash.create_group(GROUP2, {"a": 1}, zarr_format=2)
_group.create("x/y", (4,), "u1")[...] = 7
_group.consolidate()


def walk(found: Any) -> None:
    """What a reader does with a handle; small reads only, for the shape may be anything."""
    if isinstance(found, stash.Group):
        for _, member in found.walk():
            walk(member)
        _ = repr(found), found.tree(), dict(found.attrs)
        return
    _ = repr(found), found.info(), dict(found.attrs), found.chunks, found.shards, found.fill_value
    corner = tuple(slice(0, 2) for _ in found.shape)
    # A reader of an array with huge chunks needs room for one: see test_bombs.
    if math.prod(found.chunks or (1,)) * found.dtype.itemsize < 1 << 20:
        expected = tuple(min(n, 2) for n in found.shape)
        assert found[corner].shape == expected
        found.explain(corner)


@pytest.mark.parametrize("name", STORES)
@given(data=st.data())
def test_stored_chunks_and_shards(name: str, data: st.DataObject) -> None:
    store = dict(STORES[name])
    key = data.draw(st.sampled_from(sorted(k for k in store if "z" not in k)))
    store[key] = data.draw(mutated(store[key]))
    for cache in (0, "1MiB"):
        with bounded(), contextlib.suppress(StashError):
            walk(stash.open(store, cache=cache))
            assert stash.open(store, cache=cache)[...].shape == (8, 8)
    with bounded(), contextlib.suppress(StashError):
        stash.open(store, "r+")[1:7, 3] = stash.open(store).fill_value


# -- metadata --------------------------------------------------------------------------------

NAMES = [
    *("v3", "array", "group", "regular", "default", "v2", "bytes", "blosc", "zstd", "gzip"),
    *("transpose", "crc32c", "sharding_indexed", "vlen-utf8", "numcodecs.delta", "string", "r16"),
    *("uint8", "bfloat16", "float64", "struct", "numpy.datetime64", "inline", "NaN", "Infinity"),
    *("0x7ff0", "AAAA", "C", "F", ".", "/", "little", "|O", "<M8[ns]", "<U5", "|V4", "zlib"),
    *("pickle", "json2", "categorize", "vlen-array", "fixedscaleoffset", "packbits", "streams"),
    *("", "\0", "é", "../..", "a" * 100, "\ud800"),
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10),
    st.sampled_from([2**31, 2**40, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]),
    st.sampled_from([0.5, 1e308, float("nan"), float("inf"), -0.0]),
    st.sampled_from(NAMES),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from([*NAMES, "name", "configuration", "id"]), inner, max_size=3
        ),
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


@st.composite
def rewritten(draw: st.DrawFn, document: Any) -> Any:
    """``document`` with a few of its values replaced, dropped, exchanged or joined by others."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([p for p in places(document) if p] or [("x",)]))
        parent = document
        for key in above:
            parent = parent[key]
        kind = draw(st.sampled_from(["new", "new", "drop", "add", "double"]))
        if kind == "drop":
            del parent[last]
        elif kind == "new" or not isinstance(parent, (dict, list)):
            parent[last] = draw(JSON)
        elif isinstance(parent, list):
            parent.insert(0, parent[last] if kind == "double" else draw(JSON))
        else:
            parent[draw(st.sampled_from(NAMES))] = parent[last] if kind == "double" else draw(JSON)
        if not document:
            break
    return document


@pytest.mark.parametrize("name", [*STORES, "group", "v2 group"])
@given(data=st.data())
def test_documents(name: str, data: st.DataObject) -> None:
    store = dict({**STORES, "group": GROUP, "v2 group": GROUP2}[name])
    key = data.draw(st.sampled_from(sorted(k for k in store if "z" in k)))
    document = data.draw(rewritten(json.loads(store[key])))
    store[key] = json.dumps(document).encode()
    for open_ in (stash.open, stash.open_group):
        with bounded():
            try:
                walk(open_(store))
            except StashError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 1000


FOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "a list for a unit": (
        "times",
        {"data_type": {"name": "numpy.datetime64", "configuration": {"unit": []}}},
    ),
    "a chunk beyond 63 bits": ("v2, records", {"chunks": [2**63 - 1, 4]}),
}


@pytest.mark.parametrize("name", FOUND)
def test_documents_that_once_raised_something_else(name: str) -> None:
    kind, changes = FOUND[name]
    store = dict(STORES[kind])
    key = "zarr.json" if "zarr.json" in store else ".zarray"
    store[key] = json.dumps({**json.loads(store[key]), **changes}).encode()
    with pytest.raises(StashError):
        stash.open(store)[...]


@given(
    st.one_of(st.binary(max_size=50), st.text(max_size=50).map(str.encode), JSON.map(json.dumps))
)
def test_documents_that_are_anything(data: Any) -> None:
    found = data if isinstance(data, bytes) else data.encode()
    for key in ("zarr.json", ".zarray", ".zgroup"):
        for open_ in (stash.open, stash.open_group):
            with bounded(), contextlib.suppress(StashError):
                walk(open_({key: found}))
