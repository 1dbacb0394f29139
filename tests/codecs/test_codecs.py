"""Every codec keeps the contract, alone and in a chain."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pkgutil
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tensorstash.codec import ChunkSpec, Codec, Pipeline
from tensorstash.codecs import zstd
from tensorstash.codecs.blosc import Blosc
from tensorstash.codecs.bytes import Bytes
from tensorstash.codecs.crc32c import Crc32c
from tensorstash.codecs.gzip import Gzip
from tensorstash.codecs.transpose import Transpose
from tensorstash.codecs.vlen_bytes import VlenBytes
from tensorstash.codecs.vlen_utf8 import VlenUtf8
from tensorstash.codecs.zstd import Zstd
from tensorstash.errors import Corrupt, Unsupported
from tensorstash.registry import make_codec
from tensorstash.testing import CodecContract
from tensorstash.testing.codec import SPECS, spec

STRING = np.dtypes.StringDType()
TEXTS = ["", "a", "Zürich", "\0", "日本語", "x\0", "🙂" * 50, "end"]
SMALL_FLOATS = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)
ML_SPECS = (
    *(spec((4, 3), kind) for kind in SMALL_FLOATS),
    spec((3,), [("a", "u1"), ("b", ml_dtypes.bfloat16, (2,))]),
)


class TestBytesLittle(CodecContract):
    codec = Bytes("little")
    specs = (*SPECS, *ML_SPECS)


class TestBytesBig(CodecContract):
    codec = Bytes("big")
    specs = (*SPECS, *ML_SPECS)


class TestBytesUnstated(CodecContract):
    codec = Bytes(None)


class TestTranspose(CodecContract):
    codec = Transpose((1, 0))
    specs = tuple(s for s in SPECS if len(s.shape) == 2)


class TestTransposeThree(CodecContract):
    codec = Transpose((2, 0, 1))
    specs = (spec((2, 3, 4), "u2"), spec((0, 2, 1), "f4"), spec((5, 1, 3), [("a", "i2")]))


class TestTransposeF(CodecContract):
    codec = Transpose("F")


class TestGzip(CodecContract):
    codec = Gzip(level=6)


class TestZstd(CodecContract):
    codec = Zstd(level=3)


class TestZstdChecksum(CodecContract):
    codec = Zstd(level=-5, checksum=True)


class TestBlosc(CodecContract):
    codec = Blosc(cname="lz4", clevel=5, shuffle="shuffle")


class TestBloscZstd(CodecContract):
    codec = Blosc(cname="zstd", clevel=1)


class TestBloscBits(CodecContract):
    codec = Blosc(cname="blosclz", clevel=9, shuffle="bitshuffle", blocksize=4096)


class TestBloscStored(CodecContract):
    codec = Blosc(cname="zlib", clevel=0, shuffle="noshuffle")


class TestCrc32c(CodecContract):
    codec = Crc32c()
    checks = True


class _Objects(CodecContract):
    items: ClassVar[list[Any]]

    def values(self, spec: ChunkSpec, seed: int = 0) -> NDArray[Any]:
        picked = np.random.default_rng(seed).integers(len(self.items), size=spec.count)
        values = np.empty(spec.count, object)
        for index, choice in enumerate(picked):
            values[index] = self.items[choice]
        return values.reshape(spec.shape).astype(spec.dtype)


class TestVlenUtf8(_Objects):
    codec = VlenUtf8()
    items = TEXTS
    specs = tuple(spec(shape, STRING, "") for shape in ((3, 4), (), (0,), (2, 1, 5), (3000,)))


class TestVlenUtf8Objects(_Objects):
    codec = VlenUtf8()
    items = TEXTS
    specs = (spec((3, 4), object, ""), spec((), object, ""))


class TestVlenBytes(_Objects):
    codec = VlenBytes()
    items: ClassVar = [b"", b"\0", b"abc", b"\xff" * 300]
    specs = tuple(spec(shape, object, b"") for shape in ((3, 4), (), (0,), (2, 1, 5), (3000,)))


FLOATS = (spec((3, 5), "f4"), spec((40, 50), "f8"), spec((), "f4"))


class _Numbers(CodecContract):
    def values(self, spec: ChunkSpec, seed: int = 0) -> NDArray[Any]:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 100, spec.shape).astype(spec.dtype)


def numcodec(name: str, **configuration: Any) -> Codec:
    return make_codec(f"numcodecs.{name}", configuration)


class TestNumcodecsZlib(CodecContract):
    codec = numcodec("zlib", level=4)


class TestNumcodecsBz2(CodecContract):
    codec = numcodec("bz2", level=1)
    specs = SPECS[:-1]


class TestNumcodecsLzma(CodecContract):
    codec = numcodec("lzma", preset=1)
    specs = SPECS[:-1]


class TestNumcodecsLz4(CodecContract):
    codec = numcodec("lz4", acceleration=1)


class TestNumcodecsBlosc(CodecContract):
    codec = numcodec("blosc", cname="lz4", clevel=5, shuffle=1, blocksize=0)


class TestNumcodecsZstd(CodecContract):
    codec = numcodec("zstd", level=2)


class TestNumcodecsGzip(CodecContract):
    codec = numcodec("gzip", level=2)


class TestNumcodecsShuffle(CodecContract):
    codec = numcodec("shuffle")


class TestNumcodecsCrc32(CodecContract):
    codec = numcodec("crc32")
    checks = True


class TestNumcodecsCrc32c(CodecContract):
    codec = numcodec("crc32c", location="start")
    checks = True


class TestNumcodecsAdler32(CodecContract):
    codec = numcodec("adler32")
    checks = True


class TestNumcodecsFletcher32(CodecContract):
    codec = numcodec("fletcher32")
    checks = True


class TestNumcodecsJenkins(CodecContract):
    codec = numcodec("jenkins_lookup3")
    checks = True


class TestNumcodecsBase64(CodecContract):
    codec = numcodec("base64")


class TestNumcodecsDelta(_Numbers):
    codec = numcodec("delta", dtype="<i4", astype="<i8")
    specs = (spec((3, 5), "i4"), spec((), "i4"), spec((0, 2), "i4"))


class TestNumcodecsScale(_Numbers):
    codec = numcodec("fixedscaleoffset", offset=0, scale=2, astype="u2")
    specs = FLOATS


class TestNumcodecsQuantize(_Numbers):
    codec = numcodec("quantize", digits=2)
    specs = FLOATS


class TestNumcodecsBitround(_Numbers):
    codec = numcodec("bitround", keepbits=20)
    specs = FLOATS


class TestNumcodecsAstype(_Numbers):
    codec = numcodec("astype", encode_dtype="u1")
    specs = (*FLOATS, spec((2, 2), "i8"))


class TestNumcodecsPackbits(CodecContract):
    codec = numcodec("packbits")
    specs = (spec((3, 5), "?"), spec((8,), "?"), spec((), "?"), spec((0, 2), "?"))


class TestNumcodecsPcodec(_Numbers):
    specs = (*FLOATS, spec((3, 4), "u2"), spec((0, 2), "i8"))
    notices_extra = False  # pcodec ends at its end mark and does not say where that was

    @pytest.fixture(autouse=True)
    def _made(self) -> None:
        pytest.importorskip("pcodec")
        type(self).codec = numcodec("pcodec")


class TestNumcodecsZfpy(_Numbers):
    specs = (spec((3, 5), "f4"), spec((40, 50), "f8"), spec((9,), "f4"))
    notices_cut = False  # zfp has no end mark
    notices_extra = False

    def same(self, before: NDArray[Any], after: NDArray[Any]) -> bool:
        return np.allclose(before, after, atol=1e-5)

    @pytest.fixture(autouse=True)
    def _made(self) -> None:
        pytest.importorskip("zfpy")
        type(self).codec = numcodec("zfpy", mode=4, tolerance=1e-6)


def contracts(kind: type = CodecContract) -> Iterator[type[CodecContract]]:
    for child in kind.__subclasses__():
        yield child
        yield from contracts(child)


def test_every_leaf_keeps_the_contract() -> None:
    folder = importlib.import_module("tensorstash.codecs").__path__
    modules = {info.name for info in pkgutil.iter_modules(folder)}
    leaves = {
        name
        for name in modules
        if hasattr(importlib.import_module(f"tensorstash.codecs.{name}"), "make")
    }
    importlib.import_module("tests.codecs.test_codecs_registered")
    tested = {c.codec.name.replace("-", "_") for c in contracts() if hasattr(c, "codec")}
    assert len(leaves) >= 8
    assert leaves <= tested, f"no contract test for {leaves - tested}"


def test_modules_that_are_no_codec_make_none() -> None:
    for name in ("streams", "vlen", "foreign", "filters", "numcodec", "zarr-codec", "nonsense"):
        with pytest.raises(Unsupported, match="no codec"):
            make_codec(name)


CHAINS: dict[str, list[Codec]] = {
    "raw": [Bytes()],
    "big": [Bytes("big")],
    "zstd": [Bytes(), Zstd(1)],
    "zstd+crc": [Bytes(), Zstd(1), Crc32c()],
    "crc+zstd": [Bytes(), Crc32c(), Zstd(1)],
    "blosc+crc": [Bytes(), Blosc(), Crc32c()],
    "gzip": [Bytes(), Gzip(1)],
    "transposed": [Transpose((1, 0)), Bytes(), Zstd(1), Crc32c()],
    "transposed-big": [Transpose((1, 0)), Bytes("big"), Blosc()],
    "delta": [numcodec("delta", dtype="<i8"), Transpose((1, 0)), Bytes(), numcodec("zlib")],
    "three": [Bytes(), Zstd(1), Gzip(0), Crc32c()],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("shape", [(4, 6), (0, 3), (300, 200)])
def test_direct_and_generic_decoding_agree(chain: list[Codec], shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 1000, shape)
    pipeline = Pipeline(chain, spec(shape, "<i8"))
    data = pipeline.encode(values)
    into = np.full(pipeline.stored.shape, -1, pipeline.stored.dtype)
    direct = pipeline.decode(data, into, memoryview(into.reshape(-1).view(np.uint8)))
    assert direct.tolist() == pipeline.decode(data).tolist() == values.tolist()
    if pipeline.direct and len(chain) > 1 and values.size and chain is not CHAINS["delta"]:
        assert np.shares_memory(direct, into)
    assert Pipeline(pipeline.codecs, spec(shape, "<i8")).codecs == pipeline.codecs


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_damage_names_a_codec(chain: list[Codec]) -> None:
    pipeline = Pipeline(chain, spec((4, 6), "<i8"))
    data = bytes(pipeline.encode(np.arange(24).reshape(4, 6)))
    into = np.zeros(pipeline.stored.shape, pipeline.stored.dtype)
    for bad in (b"", data[:-1], data + b"\0"):
        for target in (None, into):
            view = None if target is None else memoryview(target.reshape(-1).view(np.uint8))
            with pytest.raises(Corrupt) as caught:
                pipeline.decode(bad, target, view)
            assert caught.value.codec in {codec.name for codec in chain}
            assert str(len(bad)) in str(caught.value) or "\n" not in str(caught.value)


def _round_trip(_: int = 0) -> None:
    plain = bytes(range(256)) * 10
    for codec in (Zstd(1), Blosc(), Gzip(1)):
        assert bytes(codec.decode(codec.encode(plain), len(plain))) == plain


def _round_trip_and_exit() -> None:
    dropped = zstd._contexts.decompressor is None and zstd._contexts.compressor is None
    _round_trip()
    os._exit(7 if dropped else 8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_drops_the_contexts_of_its_parent() -> None:
    _round_trip()
    assert zstd._contexts.decompressor is not None
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            _round_trip()
            stop.wait(0.001)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        child = multiprocessing.get_context("fork").Process(target=_round_trip_and_exit)
        child.start()
        child.join(30)
    finally:
        stop.set()
        thread.join()
    assert child.exitcode == 7
    assert zstd._contexts.decompressor is not None
