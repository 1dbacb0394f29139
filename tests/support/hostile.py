"""Places with hostile contents, and a process of little memory to read them in."""

from __future__ import annotations

import gzip
import inspect
import json
import lzma
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import zstandard

import tensorstash as stash
from tensorstash.errors import StashError
from tests.support.project import ROOT

Store = dict[str, Any]

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ONE = {"name": "bytes"}
V3: dict[str, Any] = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [4],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
    "chunk_key_encoding": {"name": "default"},
    "fill_value": 0,
    "codecs": [ONE],
}
V2: dict[str, Any] = {
    "zarr_format": 2,
    "shape": [4],
    "chunks": [4],
    "dtype": "|u1",
    "fill_value": 0,
    "order": "C",
    "filters": None,
    "compressor": None,
}


def v3(chunk: bytes | None = None, **changes: Any) -> Store:
    store = {"zarr.json": json.dumps({**V3, **changes}).encode()}
    return store if chunk is None else {**store, "c/0": chunk}


def v2(chunk: bytes | None = None, **changes: Any) -> Store:
    store = {".zarray": json.dumps({**V2, **changes}).encode()}
    return store if chunk is None else {**store, "0": chunk}


def regular(n: int) -> dict[str, Any]:
    return {
        "shape": [n],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [n]}},
    }


def rectilinear(*axes: Any) -> dict[str, Any]:
    return {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [*axes]}}


def sharded(index_codecs: list[Any], inner: list[Any] | None = None) -> list[Any]:
    options = {"chunk_shape": [1], "codecs": inner or [ONE], "index_codecs": index_codecs}
    return [{"name": "sharding_indexed", "configuration": options}]


def nested(depth: int) -> list[Any]:
    chain: list[Any] = [ONE]
    for _ in range(depth):
        chain = sharded([BYTES], chain)
    return chain


def text(codec: str, data: bytes, kind: str = "string") -> Store:
    serializer = "vlen-utf8" if kind == "string" else "vlen-bytes"
    options = {"level": 1} if codec in ("zstd", "gzip") else {}
    chain = [{"name": serializer}, {"name": codec, "configuration": options}]
    return v3(data, data_type=kind, fill_value="", codecs=chain)


def objects(identifier: str, data: bytes, *more: str) -> Store:
    chain = [{"id": identifier}, *({"id": name} for name in more)]
    zipped = zlib.compress(data, 9)
    return v2(
        zipped, dtype="|O", fill_value="", filters=chain, compressor={"id": "zlib", "level": 1}
    )


@cache
def zstd(size: int, known: bool = True) -> bytes:
    """``size`` zeros, in a frame that says how many or does not."""
    piece = bytes(1 << 24)
    stream = zstandard.ZstdCompressor(level=1).compressobj(size=size if known else -1)
    found = [stream.compress(piece) for _ in range(size // len(piece))]
    return b"".join([*found, stream.flush()])


def packed(filters: list[Any], dtype: str = "|b1", chunk: bytes = bytes(61)) -> Store:
    return v2(chunk, dtype=dtype, filters=filters, fill_value="" if dtype == "|O" else 0)


def shards(index_codec: dict[str, Any]) -> Store:
    return v3(bytes(100), **regular(1 << 22), codecs=sharded([BYTES, index_codec]))


_PACK = {"id": "packbits"}
_ASTYPE = {"id": "astype", "encode_dtype": "|i1", "decode_dtype": "<c16"}
_DELTA = {"id": "delta", "dtype": "<f8", "astype": "|i1"}
_JSON = {"id": "json2"}
_RAW_XZ = {"format": 3, "filters": [{"id": lzma.FILTER_LZMA2, "dict_size": 2**32 - 1}]}
G2 = 2 << 30

PLACES: dict[str, Callable[[], Store]] = {
    # H7 a: each filter would multiply by what it packs
    **{f"{n} packbits": (lambda n=n: packed([_PACK] * n)) for n in (1, 2, 9, 30, 300)},
    **{f"{n} packbits, objects": (lambda n=n: packed([_JSON] + [_PACK] * n, "|O")) for n in (5, 9)},
    "packbits of a chunk that is large": lambda: packed([_PACK] * 9, "|b1", bytes(1 << 20)),
    "astype": lambda: packed([_ASTYPE] * 9, "<c16", bytes(6100)),
    "delta": lambda: packed([_DELTA] * 9, "<f8", bytes(6100)),
    "packbits between": lambda: packed([_DELTA, _PACK, _ASTYPE, _PACK, _PACK] * 4, "<f8"),
    "pcodec": lambda: packed([{"id": "pcodec"}], "<f8"),
    # H7 b: run lengths
    "64 axes of runs": lambda: v3(
        shape=[1 << 22] * 64, chunk_grid=rectilinear(*[[[1, 1 << 22]]] * 64)
    ),
    "64 axes of fewer": lambda: v3(
        shape=[60000] * 64, chunk_grid=rectilinear(*[[[1, 60000]]] * 64)
    ),
    "an axis of runs": lambda: v3(shape=[1 << 22], chunk_grid=rectilinear([[1, 1 << 22]])),
    "an axis of 2^62 chunks": lambda: v3(shape=[1 << 62], chunk_grid=rectilinear([[1, 1 << 62]])),
    # H7 c: the index of a shard
    "index in lzma": lambda: shards({"name": "numcodecs.lzma", "configuration": {"preset": 9}}),
    "index in bz2": lambda: shards({"name": "numcodecs.bz2"}),
    "index in zstd": lambda: shards({"name": "zstd"}),
    "index in gzip": lambda: shards({"name": "gzip"}),
    "index in base64": lambda: shards({"name": "numcodecs.base64"}),
    "index in blosc": lambda: shards({"name": "blosc"}),
    "index in a shard": lambda: v3(bytes(100), codecs=sharded(sharded([BYTES]))),
    "50 nested shards": lambda: v3(bytes(100), codecs=nested(50)),
    "200 nested shards": lambda: v3(bytes(100), codecs=nested(200)),
    # M4: elements of any length
    **{
        f"{kind} in {name}": (lambda kind=kind, make=make: text(*make(), kind))
        for kind in ("string", "bytes")
        for name, make in {
            "zstd": lambda: ("zstd", zstd(G2)),
            "zstd without size": lambda: ("zstd", zstd(G2, known=False)),
            "zstd frames": lambda: ("zstd", zstd(1 << 25) * 60),
            "gzip": lambda: ("gzip", gzip.compress(bytes(3 << 27), 1)),
            "zlib": lambda: ("numcodecs.zlib", zlib.compress(bytes(3 << 27), 1)),
        }.items()
    },
    "text in shards": lambda: v3(
        struct.pack("<2Q", 16, 65536) + zstd(G2, known=False),
        **regular(1),
        data_type="string",
        fill_value="",
        codecs=[
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1],
                    "codecs": [
                        {"name": "vlen-utf8"},
                        {"name": "zstd", "configuration": {"level": 1}},
                    ],
                    "index_codecs": [BYTES],
                    "index_location": "start",
                },
            }
        ],
    ),
    "many lists in json": lambda: objects("json2", b"[" + b"[]," * (8 << 20) + b"1]"),
    "many lists in msgpack": lambda: objects(
        "msgpack2", b"\xdd" + struct.pack(">I", 16 << 20) + b"\x90" * (16 << 20)
    ),
    "lists that claim elements": lambda: objects(
        "msgpack2", (b"\xdd" + struct.pack(">I", 60000)) * 500 + bytes(60000)
    ),
    "many empty arrays": lambda: objects("vlen-array", struct.pack("<I", 1 << 24) + bytes(1 << 26)),
    # the rest of its kind
    "a dictionary of 4 GiB": lambda: v3(
        bytes(10), codecs=[BYTES, {"name": "numcodecs.lzma", "configuration": _RAW_XZ}]
    ),
    "a dictionary of 4 GiB in a header": lambda: v3(
        b"\x5d" + struct.pack("<I", 2**32 - 1) + b"\xff" * 8 + bytes(20),
        codecs=[BYTES, {"name": "numcodecs.lzma", "configuration": {"format": 2}}],
    ),
    "a document of lists": lambda: {
        "zarr.json": b'{"zarr_format":3,"node_type":"array","attributes":{"a":['
        + b"[]," * (24 << 20)
        + b"[]]}}"
    },
    "a long data type": lambda: v3(data_type="x" * 10**7),
    "a long typestr": lambda: v2(dtype="<f" + "4" * 10**7),
    "a long codec name": lambda: v3(codecs=[{"name": "x" * 10**7}]),
    "a long key": lambda: v3(**{"x" * 10**7: 1}),
    "a long fill value": lambda: v3(fill_value="1" * 10**7),
    "a long number": lambda: {"zarr.json": json.dumps(V3).encode()[:-1] + b',"n":' + b"1" * 10**7},
    "10^6 axes": lambda: v3(shape=[1] * 10**6),
    "10^6 names": lambda: v3(dimension_names=["x"] * 10**6),
    "1,000 records within records": lambda: {
        "zarr.json": json.dumps({**V3, "data_type": 0})
        .encode()
        .replace(
            b'"data_type": 0',
            b'"data_type": '
            + b'{"name":"struct","configuration":{"fields":[{"name":"a","data_type":' * 1000
            + b'"int32"'
            + b"}]}}" * 1000,
        )
    },
    "codecs nested 10^4 deep": lambda: {
        "zarr.json": json.dumps({**V3, "codecs": 0})
        .encode()
        .replace(
            b'"codecs": 0',
            b'"codecs": '
            + b'[{"name":"sharding_indexed","configuration":{"chunk_shape":[1],"codecs":' * 10**4
            + b'["bytes"]'
            + b"}}]" * 10**4,
        )
    },
    "codecs nested 300 deep": lambda: v3(codecs=nested(300)),
    "a chunk of 2^34": lambda: v3(b"x" * 9, **regular(1 << 34)),
    "a chunk of 2^34 in zstd": lambda: v3(
        zstd(1 << 24),
        **regular(1 << 34),
        codecs=[BYTES, {"name": "zstd", "configuration": {"level": 1}}],
    ),
    "a chunk of 2^61": lambda: v3(b"x" * 9, **regular(1 << 61)),
    "an absent chunk of 2^40": lambda: v3(**regular(1 << 40)),
}


def read(store: Store) -> str:
    """What comes of opening a place and reading it: of its first element at least."""
    try:
        array = stash.open(store)
        array[(0,) * array.ndim]
        array[tuple(slice(0, 1) for _ in array.shape)]
    except StashError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1500
        return type(error).__name__
    return "read"


def in_little_memory(code: str, megabytes: int) -> str:
    """What ``code`` prints, run by a process that may take ``megabytes`` more than it has once
    everything is imported: to take more is a ``MemoryError`` there."""
    head = """
        import resource, sys
        import numpy as np
        import tensorstash as stash, tensorstash.records, tensorstash.codecs.foreign
        from tensorstash.registry import make_codec
        from tests.support import hostile
        from tests.support.hostile import *
        for name in ("zstd", "gzip", "blosc", "bytes", "crc32c", "vlen-utf8", "vlen-bytes",
                     "numcodecs.zlib", "numcodecs.pcodec", "sharding_indexed"):
            try:
                make_codec(name, {})
            except stash.StashError:
                pass
        import msgpack, pcodec.standalone

        def small(megabytes):
            pages = int(open("/proc/self/statm").read().split()[0])
            limit = pages * resource.getpagesize() + (megabytes << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    """
    head = inspect.cleandoc(head) + f"\nMEGABYTES = {megabytes}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
