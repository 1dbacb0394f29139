"""Random codecs, documents and stored bytes: what comes of them is a value or one of our errors.

Run in a process of little memory (``tests/faults/test_leaf_fuzz.py``), where taking much is
noticed."""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorstash as stash
from tensorstash.codec import ChunkSpec, Pipeline
from tensorstash.errors import NoMemory, StashError
from tensorstash.registry import make_codec
from tests.support.hostile import BYTES, ONE, V2, V3, rectilinear, sharded

LARGE = 32 << 20
"""Bytes of a chunk, by its metadata, for which there may be no memory."""

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 9, 10, 22, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63),
    *(-(2**63), 10**30, -(10**30), 1.5, float("nan"), float("inf"), -0.0, 1e308, "", "x", "little"),
    *("<f4", "|O", "<u2", "i1", "f8", "V0", "S0", "U0", "M8[ns]", "m8", "?", "{'a':1}", "(2,)f4"),
    *(",", [], [1], [[1, 0]], [1, 0], [0], {}, {"a": 1}, {"id": 33}, [{"id": 33}], [{"id": 4}]),
    [{"id": 33, "dict_size": 2**32 - 1}],
    *([None], "shuffle", "lz4", "zstd", "snappy", "zlib", [2**70], "x" * 5000, [[[[]]]], "bytes"),
    *(
        [-1],
        [[0]],
        [[0, 1]],
        [2, -1],
        [2, 2, 2],
        "int8",
        "uint8",
        "float16",
        "int4",
        "wrap",
        "clamp",
    ),
    *("nearest-away", {"encode": [[1, 2]]}, {"decode": [["NaN", 0]]}, "reversible", "fixed_rate"),
    *("first_byte", "last_byte", "none", "fixed_precision", "fixed_accuracy", "NaN", "Infinity", 4),
    *("end", "start", "utf-8", "utf-7", "idna", "zlib_codec", "rot13", "\ud800", "\0"),
]
OPTIONS: dict[str, tuple[str, ...]] = {
    "zstd": ("level", "checksum"),
    "gzip": ("level",),
    "blosc": ("cname", "clevel", "shuffle", "typesize", "blocksize"),
    "bytes": ("endian",),
    "transpose": ("order",),
    "crc32c": (),
    "vlen-utf8": (),
    "vlen-bytes": (),
    "sharding_indexed": ("chunk_shape", "codecs", "index_codecs", "index_location"),
    "numcodecs.zlib": ("level",),
    "numcodecs.bz2": ("level",),
    "numcodecs.lzma": ("preset", "format", "check", "filters"),
    "numcodecs.lz4": ("acceleration",),
    "numcodecs.shuffle": ("elementsize",),
    "numcodecs.zstd": ("level", "checksum"),
    "numcodecs.gzip": ("level",),
    "numcodecs.blosc": ("cname", "clevel", "shuffle", "blocksize"),
    "numcodecs.crc32": ("location",),
    "numcodecs.crc32c": ("location",),
    "numcodecs.adler32": ("location",),
    "numcodecs.fletcher32": (),
    "numcodecs.jenkins_lookup3": ("initval", "prefix"),
    "numcodecs.base64": (),
    "numcodecs.delta": ("dtype", "astype"),
    "numcodecs.fixedscaleoffset": ("offset", "scale", "dtype", "astype"),
    "numcodecs.quantize": ("digits", "dtype", "astype"),
    "numcodecs.bitround": ("keepbits",),
    "numcodecs.packbits": (),
    "numcodecs.astype": ("encode_dtype", "decode_dtype"),
    "numcodecs.pcodec": ("level", "mode_spec", "delta_spec", "paging_spec"),
    "reshape": ("shape",),
    "bitround": ("keepbits",),
    "packbits": ("padding_encoding", "first_bit", "last_bit"),
    "cast_value": ("data_type", "rounding", "out_of_range", "scalar_map"),
    "scale_offset": ("offset", "scale"),
    "zfp": ("mode", "tolerance", "rate", "precision", "minbits"),
    "numcodecs.nothing": ("level",),
    "nothing": (),
}
ARRAYS = (
    *("delta", "fixedscaleoffset", "quantize", "bitround", "astype"),
    *("numcodecs.packbits", "transpose", "reshape", "cast_value", "scale_offset"),
)
SERIALIZERS = (
    *("bytes", "vlen-utf8", "vlen-bytes", "sharding_indexed", "numcodecs.pcodec"),
    *("packbits", "zfp"),
)
FILTERS: dict[str, tuple[str, ...]] = {
    **{name.removeprefix("numcodecs."): options for name, options in OPTIONS.items()},
    "categorize": ("labels", "dtype", "astype"),
    "json2": ("encoding", "allow_nan", "indent", "separators", "strict"),
    "msgpack2": ("use_single_float", "use_bin_type", "raw"),
    "vlen-array": ("dtype",),
    "pickle": ("protocol",),
}
KINDS = [("u2", (8,)), ("f8", (2, 4)), ("?", (8,)), ("i4", ()), ("M8[s]", (3,)), ("string", (3,))]
KINDS += [("bytes", (3,)), ("f4", (0, 3)), ("U3", (4,)), ("int4", (2, 3)), ("uint2", (9,))]


class Fuzz:
    """One campaign, from a seed. ``seen`` counts what came of each case."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()

    def attempt(self, case: Any, call: Callable[[], Any], allowed: int = 0) -> Any:
        """What ``call`` gives, or ``None`` where it raises one of ours; :class:`NoMemory` only
        where ``allowed`` bytes are many."""
        try:
            result = call()
        except StashError as error:
            self.seen[type(error).__name__] += 1
            text, of = str(error), repr(case)[:1500]
            assert "\n" not in text, (of, text)
            assert len(text) < 2000, (of, text[:300])
            assert allowed > LARGE or not isinstance(error, NoMemory), (of, text)
            return None
        except BaseException as error:
            name = type(error).__name__
            raise AssertionError(f"{name}: {error} came of {case!r}"[:1500]) from error
        self.seen["fine"] += 1
        return result

    def options(self, known: tuple[str, ...]) -> dict[str, Any]:
        found = {name: self.value() for name in known if self.random.random() < 0.6}
        if self.random.random() < 0.05:
            found["unknown"] = self.value()
        return found

    def value(self) -> Any:
        return copy.deepcopy(self.random.choice(VALUES))

    def damaged(self, data: bytes) -> bytes:
        """``data`` cut, longer, with bytes changed, or other bytes altogether."""
        chance = self.random
        found = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            what = chance.choice(["flip", "cut", "add", "set", "ff", "copy", "random"])
            at = chance.randrange(len(found) + 1)
            if what == "cut":
                del found[at:]
            elif what == "add":
                found[at:at] = chance.randbytes(chance.choice([1, 4, 8, 100]))
            elif what == "random":
                found = bytearray(chance.randbytes(chance.choice([0, 1, 4, 12, 40, 300])))
            elif what == "copy":
                found += found[:at]
            elif found and what == "flip":
                found[at - 1] ^= 1 << chance.randrange(8)
            elif found and what == "set":
                found[at - 1] = chance.randrange(256)
            elif what == "ff":
                width = chance.choice([1, 2, 4, 8])
                found[at : at + width] = b"\xff" * width
        return bytes(found)

    # -- codecs ---------------------------------------------------------------------------------

    def made(self) -> None:
        """A codec of random options, through an array's life."""
        name = self.random.choice(list(OPTIONS))
        dtype, shape = self.random.choice(KINDS)
        codec = {"name": name, "configuration": self.options(OPTIONS[name])}
        chain: list[Any] = [codec]
        short = name.removeprefix("numcodecs.")
        if name in ARRAYS or (short != "packbits" and short in ARRAYS):
            chain = [codec, "bytes"]
        elif name not in SERIALIZERS:
            chain = [{"string": "vlen-utf8", "bytes": "vlen-bytes"}.get(dtype, "bytes"), codec]
        store: dict[str, Any] = {}
        value = {"string": "a", "bytes": b"b", "U3": "c", "M8[s]": np.datetime64(3, "s")}.get(dtype)

        def life() -> None:
            array = stash.create(store, shape, dtype, chunks=shape or None, codecs=chain)
            array[...] = 1 if value is None else value
            again = stash.open(store)
            again[...], repr(again.codecs), again.info()

        # liblzma takes up to 674 MB to compress a byte, by its preset.
        self.attempt((dtype, chain), life, 1 << 40 if short == "lzma" else 0)

    def filtered(self) -> None:
        """A v2 array with random filters and compressor, over random bytes."""
        chance = self.random
        name = chance.choice(list(FILTERS))
        config = {"id": name, **self.options(FILTERS[name])}
        more = [{"id": chance.choice(list(FILTERS))} for _ in range(chance.choice([0, 0, 1, 3]))]
        document = {
            **V2,
            "dtype": chance.choice(["<u2", ">f8", "|b1", "|O", "<M8[s]", "<U3", "|S2"]),
            "fill_value": chance.choice([0, None, ""]),
            "order": chance.choice("CF"),
            "filters": [config, *more] if chance.random() < 0.8 else None,
            "compressor": config if chance.random() < 0.3 else None,
        }
        store: dict[str, Any] = {".zarray": json.dumps(document).encode()}
        if chance.random() < 0.7:
            store["0"] = chance.randbytes(chance.choice([0, 1, 4, 8, 40]))
        case = (document, store.get("0"))
        writing = 1 << 40 if "lzma" in repr(document) else 0  # see `made`
        array = self.attempt(case, lambda: stash.open(store, "r+"))
        if array is None:
            return
        self.attempt(case, lambda: array[...])
        values = np.array(["a"] * 4) if array.dtype.kind in "USTO" else np.zeros(4, "u1")
        self.attempt(case, lambda: array.__setitem__(slice(0, 4), values), writing)
        self.attempt(case, lambda: array[1:3])
        self.attempt(case, lambda: repr(array.codecs))

    def decoded(self) -> None:
        """Damaged bytes, through every chain."""
        dtype, chain = self.random.choice(CHAINS)
        spec = ChunkSpec((4, 3), np.dtype(dtype), np.zeros((), dtype))
        pipeline = Pipeline([make_codec(*each) for each in chain], spec)
        if spec.sized:
            values = np.arange(12).reshape(4, 3) % 2
        else:
            values = np.array([["a", "bb", ""]] * 4, spec.dtype)
            values = values if dtype == "T" else np.array([[b"a", b"b", b""]] * 4, object)
        data = self.damaged(bytes(pipeline.encode(values.astype(spec.dtype))))
        chunk = self.attempt((dtype, chain, data), lambda: pipeline.decode(data))
        if chunk is not None:
            assert (chunk.shape, chunk.dtype) == (spec.shape, spec.dtype)

    # -- places ---------------------------------------------------------------------------------

    def documents(self) -> None:
        """A place whose metadata is changed somewhere, read in full, written and grown."""
        store = dict(self.random.choice(places()))
        key = self.random.choice([key for key in store if is_document(key)])
        if self.random.random() < 0.3:
            store[key] = self.damaged(store[key])
        else:
            store[key] = json.dumps(self.mutated(json.loads(store[key]))).encode()
        self.used(store, store[key])

    def chunks(self) -> None:
        """A place of which a stored chunk or shard is damaged, read in full."""
        store = dict(self.random.choice(places()))
        key = self.random.choice([key for key in store if not is_document(key)])
        store[key] = self.damaged(store[key])
        self.used(store, (key, store[key]))

    def used(self, store: dict[str, Any], case: Any) -> None:
        for opened in (stash.open, stash.open_group, stash.open_records):
            handle = self.attempt(case, lambda opened=opened: opened(store, "r+"))
            if handle is None:
                continue
            self.attempt(case, lambda handle=handle: repr(handle.attrs))
            if not isinstance(handle, stash.Array):
                self.attempt(case, lambda handle=handle: list(handle), 1 << 40)
                if isinstance(handle, stash.Group):
                    self.attempt(case, handle.tree, 1 << 40)
                    read = stash.open_group(store)
                    self.attempt(case, lambda read=read: [*read.walk()], 1 << 40)
                continue
            self.used_array(handle, case)

    def used_array(self, array: stash.Array, case: Any) -> None:
        size = self.attempt(case, lambda: weight(array))
        if size is None:
            return
        if size <= LARGE:
            self.attempt(case, lambda: array[...])
        first = tuple(slice(0, 2) for _ in array.shape)
        self.attempt(case, lambda: array[first], size)
        self.attempt(case, lambda: repr((array.codecs, array.fill_value)))
        self.attempt(case, lambda: array.__setitem__(first, array.fill_value), size)
        self.attempt(case, lambda: array.attrs.update(a=1))

    def mutated(self, document: Any) -> Any:
        chance = self.random
        for _ in range(chance.randint(1, 2)):
            where = chance.choice(paths(document))
            if not where:
                continue
            parent = document
            for step in where[:-1]:
                parent = parent[step]
            what = chance.choice(["replace", "replace", "delete", "add", "wrap", "repeat"])
            if what == "delete":
                del parent[where[-1]]
            elif what == "add" and isinstance(parent, dict):
                parent[chance.choice(["a", "name", "configuration", "id"])] = self.value()
            elif what == "wrap":
                parent[where[-1]] = chance.choice([[parent[where[-1]]], {"a": parent[where[-1]]}])
            elif what == "repeat" and isinstance(parent[where[-1]], list):
                parent[where[-1]] = parent[where[-1]] * chance.choice([2, 9, 70])
            else:
                parent[where[-1]] = self.value()
        return document


def weight(array: stash.Array) -> int:
    """Bytes of a chunk and of the whole array, as the metadata has it, whichever is more."""
    shape = array.spec.grid.chunk_shape((0,) * array.ndim)
    return max(math.prod(shape), math.prod(array.shape)) * max(16, array.dtype.itemsize)


def paths(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [where]
    if isinstance(value, dict):
        for key, item in value.items():
            found += paths(item, (*where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:20]):
            found += paths(item, (*where, index))
    return found


def is_document(key: str) -> bool:
    return key.rpartition("/")[2] in ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


_LITTLE = ("bytes", {"endian": "little"})
_TAILS = ["zstd", "gzip", "blosc", "crc32c", "numcodecs.zlib", "numcodecs.bz2", "numcodecs.lzma"]
_TAILS += ["numcodecs.lz4", "numcodecs.base64", "numcodecs.shuffle", "numcodecs.crc32"]
_TAILS += ["numcodecs.fletcher32", "numcodecs.jenkins_lookup3", "numcodecs.adler32"]
_SHARD = sharded([BYTES, {"name": "crc32c"}])[0]["configuration"] | {"chunk_shape": [2, 3]}
CHAINS: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = [
    *(("<u2", [_LITTLE, (name, {})]) for name in _TAILS),
    *(("T", [("vlen-utf8", {}), (name, {})]) for name in _TAILS),
    *(("O", [("vlen-bytes", {}), (name, {})]) for name in _TAILS[:4]),
    ("<u2", [_LITTLE]),
    ("T", [("vlen-utf8", {})]),
    ("O", [("vlen-bytes", {})]),
    ("<f8", [("numcodecs.pcodec", {})]),
    ("<f8", [("numcodecs.delta", {"dtype": "<f8", "astype": "<f4"}), _LITTLE, ("zstd", {})]),
    ("?", [("numcodecs.packbits", {}), ("bytes", {}), ("numcodecs.zlib", {})]),
    ("<i2", [("reshape", {"shape": [-1]}), ("packbits", {"last_bit": 3})]),
    ("<i2", [("bitround", {"keepbits": 3}), ("packbits", {"padding_encoding": "last_byte"})]),
    ("<f8", [("scale_offset", {"scale": 2}), ("cast_value", {"data_type": "uint8"}), _LITTLE]),
    ("<i4", [("scale_offset", {"scale": 2}), ("cast_value", {"data_type": "float32"}), _LITTLE]),
    ("|u1", [("sharding_indexed", _SHARD)]),
    ("|u1", [("sharding_indexed", {**_SHARD, "codecs": [ONE, "zstd"]}), ("gzip", {})]),
    ("<u2", [_LITTLE, ("zstd", {}), ("gzip", {}), ("crc32c", {})]),
]
_PLACES: list[dict[str, Any]] = []


def places() -> list[dict[str, Any]]:
    """Stores of every form, made once."""
    if _PLACES:
        return _PLACES

    def plain(store: dict[str, Any]) -> None:
        _PLACES.append({key: bytes(value) for key, value in store.items()})

    numbers = np.arange(30).reshape(6, 5)
    for how in (
        {"codecs": "auto"},
        {"codecs": "zstd"},
        {"codecs": None},
        {"chunks": (2, 2), "shards": (4, 4)},
        {"zarr_format": 2},
        {"zarr_format": 2, "filters": [{"id": "delta", "dtype": "<i8"}], "codecs": "zstd"},
        {"zarr_format": 2, "order": "F", "codecs": {"id": "lzma"}},
        {"dimension_names": ["a", "b"], "attributes": {"x": [1, {"y": 2}]}, "order": "F"},
    ):
        store: dict[str, Any] = {}
        stash.create(store, (6, 5), "int64", **{"chunks": (4, 4), **how})[...] = numbers  # type: ignore[arg-type]
        plain(store)
    for dtype, how in (("string", {}), ("bytes", {}), ("string", {"zarr_format": 2})):
        store = {}
        array = stash.create(store, (5,), dtype, chunks=(3,), **how)
        array[...] = (
            ["a", "bb", "", "d", "e"] if dtype == "string" else [b"a", b"b", b"", b"d", b"e"]
        )
        plain(store)
    store = {}
    record = [("a", "i4"), ("b", "f8")]
    stash.create(store, (4,), record, chunks=(2,))[...] = np.ones(4, record)
    plain(store)
    store = {
        "zarr.json": json.dumps({**V3, "chunk_grid": rectilinear([[1, 2], 2])}).encode(),
        "c/0": b"\1",
    }
    plain(store)
    items = json.dumps(["a", {"b": [1]}, None, "d", "|O", [4]]).encode()
    document = {**V2, "dtype": "|O", "filters": [{"id": "json2"}], "fill_value": None}
    plain({".zarray": json.dumps(document).encode(), "0": items})
    for zarr_format in (2, 3):
        store = {}
        group = stash.create_group(store, {"note": 1}, zarr_format=zarr_format)  # type: ignore[arg-type]
        group.create("a", (4,), "u1")[...] = 5
        group.create("b/c", (4,), str)[...] = "x"
        group.consolidate()
        plain(store)
    store = {}
    schema = {"x": ((2,), "f4"), "t": str, "r": stash.ragged("int32")}
    rows = stash.create_records(store, schema)
    rows.extend({"x": np.ones((3, 2)), "t": ["a", "b", "c"], "r": [[1], [], [2, 3]]})
    plain(store)
    return _PLACES


def run(campaign: str, seed: int, cases: int) -> None:
    """Print what came of ``cases`` of one campaign; raises at the first that is wrong."""
    fuzz = Fuzz(seed)
    one = getattr(fuzz, campaign)
    for number in range(cases):
        try:
            one()
        except AssertionError as error:
            raise AssertionError(f"{campaign} {seed}, case {number}: {error}") from error
    print(json.dumps(fuzz.seen))
