"""What numcodecs and zarr-python write we read, and the reverse, byte by byte."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip as stdlib_gzip
import importlib
import json
import lzma
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numcodecs
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tensorstash.codec import UNSIZED_LIMIT, BytesCodec, ChunkSpec, Codec, Pipeline, Serializer
from tensorstash.codecs import zstd
from tensorstash.codecs.blosc import Blosc
from tensorstash.codecs.bytes import Bytes
from tensorstash.codecs.crc32c import Crc32c
from tensorstash.codecs.foreign import wrap
from tensorstash.codecs.gzip import Gzip
from tensorstash.codecs.transpose import Transpose
from tensorstash.codecs.vlen_bytes import VlenBytes
from tensorstash.codecs.vlen_utf8 import VlenUtf8
from tensorstash.codecs.zstd import Zstd
from tensorstash.errors import Corrupt
from tensorstash.registry import make_codec
from tensorstash.testing.codec import spec

STRING = np.dtypes.StringDType()
TEXTS = ["", "a", "Zürich", "\0", "日本語", "x\0", "🙂" * 50, "end"]


def numcodec(name: str, **configuration: Any) -> Codec:
    return make_codec(f"numcodecs.{name}", configuration)


def raw(value: Any) -> bytes:
    return value.tobytes() if isinstance(value, np.ndarray) else bytes(value)


PLAIN = {
    "empty": b"",
    "one": b"\x07",
    "text": b"tensorstash " * 400,
    "numbers": np.arange(30_000, dtype="<u4").tobytes(),
    "noise": np.random.default_rng(1).bytes(5_000),
    "large": np.arange(200_000, dtype="<u4").tobytes(),
}


@pytest.mark.parametrize("plain", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Zstd(1), {"id": "zstd", "level": 1}),
        (Zstd(-7, checksum=True), {"id": "zstd", "level": -7, "checksum": True}),
        (Gzip(3), {"id": "gzip", "level": 3}),
        (Blosc("lz4", 5, "shuffle", 4), {"id": "blosc", "cname": "lz4"}),
        (Blosc("zstd", 3, "bitshuffle", 4), {"id": "blosc", "cname": "zstd", "shuffle": 2}),
        (Blosc("zlib", 1, 0, 1), {"id": "blosc", "cname": "zlib", "shuffle": 0}),
        *(
            (wrap(config), config)
            for config in (
                {"id": "zlib", "level": 2},
                {"id": "bz2", "level": 2},
                {"id": "lzma", "preset": 1},
                {"id": "lzma", "format": 3, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 1}]},
                {"id": "lz4"},
                {"id": "shuffle", "elementsize": 1},
                {"id": "crc32", "location": "end"},
                {"id": "adler32"},
                {"id": "fletcher32"},
                {"id": "base64"},
                {"id": "blosc", "cname": "lz4hc", "shuffle": -1},
                {"id": "zstd"},
                {"id": "gzip"},
            )
        ),
    ],
    ids=lambda value: value.get("id") if isinstance(value, Mapping) else type(value).__name__,
)
def test_numcodecs_reads_ours_and_we_read_theirs(
    ours: BytesCodec, theirs: dict[str, Any], plain: bytes
) -> None:
    codec = numcodecs.get_codec(theirs)
    data = ours.encode(plain)
    # numcodecs 0.16 cannot decode nothing with these.
    if plain or theirs["id"] not in ("zstd", "blosc", "lz4", "fletcher32"):
        assert raw(codec.decode(data)) == plain
    if plain or theirs["id"] != "fletcher32":
        assert bytes(ours.decode(bytes(codec.encode(plain)), len(plain))) == plain


ZARR = {
    "bytes-little": (Bytes("little"), "i4"),
    "bytes-big": (Bytes("big"), "f8"),
    "bytes-one": (Bytes(None), "u1"),
    "bytes-utf32": (Bytes("big"), "U3"),
    "bytes-time": (Bytes("big"), "M8[s]"),
    "transpose": (Transpose((1, 0)), "i4"),
    "gzip": (Gzip(4), "i4"),
    "zstd": (Zstd(2), "i4"),
    "blosc": (Blosc("zstd", 3), "i4"),
    "blosc-one": (Blosc("lz4", 3), "u1"),
    "crc32c": (Crc32c(), "i4"),
    "delta": (numcodec("delta", dtype="<i4", astype="<i4"), "i4"),
    "scale": (numcodec("fixedscaleoffset", offset=1, scale=4, astype="<i2"), "f8"),
    "quantize": (numcodec("quantize", digits=1), "f8"),
    "bitround": (numcodec("bitround", keepbits=5), "f4"),
    "packbits": (numcodec("packbits"), "?"),
    "astype": (numcodec("astype", encode_dtype="<i2"), "i4"),
    "zlib": (numcodec("zlib", level=1), "i4"),
    "bz2": (numcodec("bz2", level=1), "i4"),
    "lz4": (numcodec("lz4"), "i4"),
    "shuffle": (numcodec("shuffle"), "i4"),
    "fletcher32": (numcodec("fletcher32"), "i4"),
    "adler32": (numcodec("adler32"), "i4"),
    "numcodecs-blosc": (numcodec("blosc", cname="lz4", clevel=5, shuffle=1), "i4"),
    "vlen-utf8": (VlenUtf8(), STRING),
}


@pytest.mark.parametrize(("codec", "kind"), ZARR.values(), ids=ZARR)
def test_zarr_python_reads_ours_and_we_read_its_chunks(
    codec: Codec, kind: Any, tmp_path: Any
) -> None:
    zarr = pytest.importorskip("zarr")
    shape = (6, 5)
    if kind is STRING:
        values = np.resize(np.array(TEXTS, dtype=STRING), shape)
    else:
        values = np.arange(30).reshape(shape).astype(kind)
    chunk = ChunkSpec(shape, values.dtype, np.zeros((), values.dtype))
    chain = [codec] if isinstance(codec, Serializer) else [Bytes(), codec]
    chain = chain if not hasattr(codec, "encoded") else [codec, Bytes()]
    pipeline = Pipeline(chain, chunk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            tmp_path / "a",
            shape=shape,
            chunks=shape,
            dtype=values.dtype,
            compressors=None,
            fill_value="" if kind is STRING else None,
        )
        path = tmp_path / "a" / "zarr.json"
        document = json.loads(path.read_text())
        document["codecs"] = [bound.document() for bound in pipeline.codecs]
        path.write_text(json.dumps(document))
        array = zarr.open_array(tmp_path / "a", mode="r+")
        stored = tmp_path / "a" / "c" / "0" / "0"
        array[:] = values
        theirs = stored.read_bytes()
        expected = np.asarray(array[:])
        np.testing.assert_array_equal(pipeline.decode(theirs), expected)
        stored.write_bytes(pipeline.encode(values))
        np.testing.assert_array_equal(np.asarray(array[:]), expected)
    # zarr-python's gzip carries the time; its numcodecs.blosc does not know the element size.
    if codec.name not in ("gzip", "numcodecs.blosc"):
        assert bytes(pipeline.encode(values)) == theirs


def test_gzip_is_read_by_the_standard_library_and_has_no_time() -> None:
    data = bytes(Gzip(5).encode(b"abc" * 99))
    assert stdlib_gzip.decompress(data) == b"abc" * 99
    assert data[4:8] == bytes(4)


def test_several_members_and_frames_are_one_value() -> None:
    for codec, one in (
        (Gzip(), stdlib_gzip.compress),
        (Zstd(), zstandard.compress),
        (wrap({"id": "bz2"}), bz2.compress),
        (wrap({"id": "lzma"}), lzma.compress),
    ):
        data = one(b"abc") + one(b"") + one(b"defg" * 100_000)
        plain = b"abc" + b"defg" * 100_000
        assert bytes(codec.decode(data, len(plain))) == plain
        out = memoryview(bytearray(len(plain)))
        assert codec.decode(data, len(plain), out) is out
        assert bytes(out) == plain
        for limit in (3, len(plain) - 1):
            with pytest.raises(ValueError, match=r"expected|possible"):
                codec.decode(data, limit)


@pytest.mark.parametrize("size", [0, 1, 1000, zstd.SMALL, zstd.SMALL + 1, 500_000])
def test_zstd_bindings_agree(size: int) -> None:
    plain = np.random.default_rng(size).integers(0, 9, size, np.uint8).tobytes()
    codec = Zstd(2)
    streamed = zstandard.ZstdCompressor(level=2).compressobj()  # does not state the size
    frames = [
        zstandard.ZstdCompressor(level=2).compress(plain),
        bytes(numcodecs.Zstd(2).encode(plain)),
        streamed.compress(plain) + streamed.flush(),
        bytes(codec.encode(plain)),
    ]
    for frame in frames:
        assert bytes(codec.decode(frame, size)) == plain
        out = memoryview(bytearray(size))
        codec.decode(frame, size, out)
        assert bytes(out) == plain
        if size:
            for cut in (frame[:-1], frame[: len(frame) // 2], frame + b"\0"):
                with pytest.raises(ValueError, match=r"\w"):
                    codec.decode(cut, UNSIZED_LIMIT)
            with pytest.raises(ValueError, match=r"\w"):
                codec.decode(frame, size - 1)


def test_levels_and_checksums_reach_the_library() -> None:
    for size in (10_000, 4 * zstd.SMALL):
        plain = np.random.default_rng(size).integers(0, 5, size, np.uint8).tobytes()
        assert len(Gzip(0).encode(plain)) > size > len(Gzip(9).encode(plain))
        assert len(Zstd(-100).encode(plain)) > len(Zstd(15).encode(plain))
        for checksum in (False, True):
            frame = zstandard.get_frame_parameters(Zstd(1, checksum).encode(plain))
            assert frame.has_checksum is checksum
            assert frame.content_size == size


def test_nothing_may_follow_a_zlib_stream() -> None:
    data = zlib.compress(b"abc")
    with pytest.raises(ValueError, match=r"follow"):
        wrap({"id": "zlib"}).decode(data + data, UNSIZED_LIMIT)


def test_bombs_are_stopped_early() -> None:
    zeros = bytes(64 << 20)
    streamed = zstandard.ZstdCompressor().compressobj()
    bombs: list[tuple[BytesCodec, bytes]] = [
        (Gzip(), stdlib_gzip.compress(zeros)),
        (Zstd(), streamed.compress(zeros) + streamed.flush()),
        (Zstd(), zstandard.compress(b"x") + zstandard.compress(zeros)),
        (wrap({"id": "zlib"}), zlib.compress(zeros)),
        (wrap({"id": "bz2"}), bz2.compress(zeros)),
        (wrap({"id": "lzma"}), lzma.compress(zeros, preset=0)),
        (wrap({"id": "lz4"}), bytes(numcodecs.LZ4().encode(zeros))),
        (Blosc(), bytes(numcodecs.Blosc().encode(zeros))),
    ]
    del zeros
    tracemalloc.start()
    try:
        for codec, bomb in bombs:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            for out in (None, memoryview(bytearray(1000))):
                with pytest.raises(ValueError, match=r"\w"):
                    codec.decode(bomb, 1000, out)
            taken = tracemalloc.get_traced_memory()[1] - before
            assert taken < 24 << 20, (codec, taken)
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300))
def test_no_bytes_crash_a_decoder(data: bytes) -> None:
    for codec in (Gzip(), Zstd(), Blosc(), Crc32c(), wrap({"id": "lz4"}), wrap({"id": "lzma"})):
        with contextlib.suppress(ValueError):
            assert len(codec.decode(data, 64)) <= 64
    for serializer, kind in ((Bytes("big"), "i4"), (VlenUtf8(), STRING), (VlenBytes(), object)):
        chunk = spec((2, 2), kind)
        with contextlib.suppress(ValueError):
            assert serializer.decode(data, chunk).shape == (2, 2)


FUZZ = """
import numpy as np
from tensorstash.codecs.blosc import Blosc
from tensorstash.codecs.foreign import wrap
rng = np.random.default_rng(int(__import__("sys").argv[1]))
plain = np.arange(3000, dtype="u4").tobytes()
codecs = [Blosc(c, 5, s, 4, b) for c in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
          for s in (0, 1, 2) for b in (0, 512)] + [wrap({"id": "lz4"})]
for codec in codecs:
    good = bytes(codec.encode(plain))
    for turn in range(150):
        bad = bytearray(good)
        for _ in range(1 + turn % 4):
            at = rng.integers(len(bad) if turn % 2 else min(len(bad), 80))
            bad[at] = rng.integers(256)
        out = memoryview(bytearray(len(plain)))
        try:
            codec.decode(bytes(bad), len(plain), out)
        except ValueError:
            pass
print("alive")
"""


def test_damaged_blosc_and_lz4_do_not_crash_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "alive", (done.returncode, done.stderr[-500:])


def _register() -> None:
    zarr_abc = pytest.importorskip("zarr.abc.codec")
    registry = importlib.import_module("zarr.registry")

    @dataclass(frozen=True)
    class Xor(zarr_abc.BytesBytesCodec):  # type: ignore[misc, name-defined]
        key: int = 1
        is_fixed_size = True

        @classmethod
        def from_dict(cls, data: dict[str, Any]) -> Any:
            return cls(**data.get("configuration", {}))

        def to_dict(self) -> dict[str, Any]:
            return {"name": "test.xor", "configuration": {"key": self.key}}

        def compute_encoded_size(self, size: int, _: Any) -> int:
            return size

        async def _encode_single(self, data: Any, spec: Any) -> Any:
            await asyncio.sleep(0)  # needs a running loop
            return spec.prototype.buffer.from_bytes(bytes(b ^ self.key for b in data.to_bytes()))

        _decode_single = _encode_single

    @dataclass(frozen=True)
    class Negate(zarr_abc.ArrayArrayCodec):  # type: ignore[misc, name-defined]
        is_fixed_size = True

        @classmethod
        def from_dict(cls, data: dict[str, Any]) -> Any:
            return cls()

        def to_dict(self) -> dict[str, Any]:
            return {"name": "test.negate"}

        async def _encode_single(self, chunk: Any, spec: Any) -> Any:
            return spec.prototype.nd_buffer.from_numpy_array(-chunk.as_numpy_array())

        _decode_single = _encode_single

    registry.register_codec("test.xor", Xor)
    registry.register_codec("test.negate", Negate)

    class Renamed(importlib.import_module("zarr.codecs").BytesCodec):  # type: ignore[misc]
        @classmethod
        def from_dict(cls, data: dict[str, Any]) -> Any:
            return cls(**data["configuration"])

    registry.register_codec("test.bytes", Renamed)


def test_codecs_registered_with_zarr_work() -> None:
    _register()
    values = np.arange(12, dtype="<i4").reshape(3, 4)
    chunk = spec((3, 4), "<i4")
    xor = make_codec("test.xor", {"key": 255})
    assert xor.document() == {"name": "test.xor", "configuration": {"key": 255}}
    pipeline = Pipeline([make_codec("test.negate"), Bytes(), xor], chunk)
    data = pipeline.encode(values)
    assert bytes(data) == bytes(255 ^ b for b in (-values).tobytes())
    assert pipeline.decode(data).tolist() == values.tolist()
    into = np.zeros((3, 4), "<i4")
    pipeline.decode(data, into, memoryview(into.reshape(-1).view(np.uint8)))
    assert (-into).tolist() == values.tolist()
    with pytest.raises(Corrupt, match="bytes") as caught:
        pipeline.decode(bytes(data)[:-1])
    assert caught.value.codec
    foreign_bytes = Pipeline([make_codec("test.bytes", {"endian": "big"})], chunk)
    assert bytes(foreign_bytes.encode(values)) == values.astype(">i4").tobytes()
    assert foreign_bytes.decode(foreign_bytes.encode(values)).tolist() == values.tolist()
    with pytest.raises(Corrupt):
        foreign_bytes.decode(b"123")
