"""Documents of codecs, what binding fills in, and how elements become bytes."""

from __future__ import annotations

import json
import pickle
from typing import Any

import ml_dtypes
import numcodecs
import numpy as np
import pytest

import tensorstash as stash
from tensorstash.codec import ChunkSpec, Codec, Pipeline, Serializer
from tensorstash.codecs import foreign
from tensorstash.codecs.blosc import Blosc
from tensorstash.codecs.bytes import Bytes
from tensorstash.codecs.crc32c import Crc32c
from tensorstash.codecs.gzip import Gzip
from tensorstash.codecs.transpose import Transpose
from tensorstash.codecs.vlen_bytes import VlenBytes
from tensorstash.codecs.vlen_utf8 import VlenUtf8
from tensorstash.codecs.zstd import Zstd
from tensorstash.errors import Invalid, Unsupported
from tensorstash.registry import make_codec
from tensorstash.testing.codec import spec

STRING = np.dtypes.StringDType()


def numcodec(name: str, **configuration: Any) -> Codec:
    return make_codec(f"numcodecs.{name}", configuration)


@pytest.mark.parametrize(
    ("codec", "document"),
    [
        (Bytes("big"), {"name": "bytes", "configuration": {"endian": "big"}}),
        (Bytes(None), {"name": "bytes"}),
        (Gzip(), {"name": "gzip", "configuration": {"level": 5}}),
        (Zstd(1), {"name": "zstd", "configuration": {"level": 1}}),
        (
            Zstd(1, checksum=True),
            {"name": "zstd", "configuration": {"level": 1, "checksum": True}},
        ),
        (Crc32c(), {"name": "crc32c"}),
        (VlenUtf8(), {"name": "vlen-utf8"}),
        (VlenBytes(), {"name": "vlen-bytes"}),
        (Transpose((1, 0)), {"name": "transpose", "configuration": {"order": [1, 0]}}),
        (numcodec("fletcher32"), {"name": "numcodecs.fletcher32", "configuration": {}}),
    ],
    ids=repr,
)
def test_documents(codec: Codec, document: dict[str, Any]) -> None:
    assert codec.document() == document


def test_binding_fills_in_what_is_missing() -> None:
    four, one, wide = spec((2,), "i4"), spec((2,), "u1"), spec((2,), "V300")
    assert Bytes(None).bind(four) == Bytes("little")
    assert Bytes("big").bind(one) == Bytes(None)
    assert Bytes("big").bind(spec((2,), "S4")) == Bytes(None)
    assert Blosc().bind(four) == Blosc(shuffle="shuffle", typesize=4)
    assert Blosc().bind(one) == Blosc(shuffle="bitshuffle", typesize=1)
    assert Blosc(shuffle=-1).bind(one).shuffle == "bitshuffle"
    assert Blosc(shuffle="noshuffle").bind(four) == Blosc(shuffle="noshuffle", typesize=4)
    assert Blosc().bind(wide).typesize == 1
    assert Blosc().bind(spec((2,), STRING, "")).typesize == 1
    assert Blosc(shuffle=2) == Blosc(shuffle="bitshuffle")
    assert Transpose("F").bind(spec((2, 3, 4), "u1")) == Transpose((2, 1, 0))
    assert numcodec("shuffle").bind(four).configuration() == {"elementsize": 4}
    assert numcodec("quantize", digits=1).bind(spec((1,), "f4")).configuration()["dtype"] == "<f4"


@pytest.mark.parametrize(
    ("name", "configuration", "says"),
    [
        ("gzip", {"level": 10}, "0 to 9"),
        ("gzip", {"level": True}, "level"),
        ("gzip", {"speed": 1}, "no option 'speed'"),
        ("zstd", {"level": 23}, "up to 22"),
        ("zstd", {"level": 1.5}, "level"),
        ("zstd", {"checksum": 1}, "checksum"),
        ("bytes", {"endian": "middle"}, "middle"),
        ("transpose", {}, "order"),
        ("transpose", {"order": [0, 0]}, "permutation"),
        ("transpose", {"order": [0, True]}, "permutation"),
        ("transpose", {"order": "K"}, "permutation"),
        ("blosc", {"cname": "brotli"}, "brotli"),
        ("blosc", {"clevel": 10}, "0 to 9"),
        ("blosc", {"shuffle": 3}, "shuffle"),
        ("blosc", {"shuffle": "bytes"}, "shuffle"),
        ("blosc", {"typesize": 0}, "typesize"),
        ("blosc", {"blocksize": -1}, "blocksize"),
        ("crc32c", {"seed": 1}, "no option"),
        ("numcodecs.zlib", {"speed": 1}, "speed"),
        ("numcodecs.crc32", {"location": "middle"}, "middle"),
    ],
)
def test_wrong_options_are_named(name: str, configuration: dict[str, Any], says: str) -> None:
    """And such a chain is not made; what only encoding needs is looked at no sooner."""
    chain = [{"name": name, "configuration": configuration}]
    chain = chain if name == "bytes" else [*chain, "bytes"] if name == "transpose" else chain
    place: dict[str, Any] = {}
    with pytest.raises(Invalid, match=says):
        stash.create(place, (4,), "uint8", codecs=chain if "bytes" in chain else ["bytes", *chain])
    assert not place


@pytest.mark.parametrize(
    ("name", "configuration", "version"),
    [
        ("gzip", {"level": 10}, 3),
        ("gzip", {"level": "9"}, 3),
        ("zstd", {"level": 23}, 3),
        ("zstd", {"checksum": 1}, 3),
        ("blosc", {"cname": "brotli"}, 3),
        ("blosc", {"cname": "snappy"}, 3),
        ("blosc", {"clevel": 10}, 3),
        ("blosc", {"shuffle": "bytes", "typesize": 0, "blocksize": -1}, 3),
        ("numcodecs.zlib", {"level": 77}, 3),
        ("numcodecs.bz2", {"level": 0}, 3),
        ("numcodecs.lz4", {"acceleration": "fast"}, 3),
        ("numcodecs.lzma", {"preset": 255}, 3),
        ("numcodecs.gzip", {"level": 10}, 3),
        ("gzip", {"level": 10}, 2),
        ("blosc", {"clevel": -1, "cname": "lz4"}, 2),
        ("zlib", {"level": 2**70}, 2),
        ("lzma", {"preset": 99}, 2),
    ],
)
def test_what_only_encoding_needs_never_stops_reading(
    name: str, configuration: dict[str, Any], version: Any
) -> None:
    data = np.arange(64, dtype="i4")
    place: dict[str, Any] = {}
    if version == 3:
        plain = [{"name": "bytes"}, name]
        stash.create(place, (64,), "i4", chunks=(16,), codecs=plain)[:48] = data[:48]
        document = json.loads(bytes(place["zarr.json"]))
        document["codecs"][1] = {"name": name, "configuration": configuration}
        place["zarr.json"] = json.dumps(document).encode()
    else:
        plain = {"id": name}
        stash.create(place, (64,), "i4", chunks=(16,), codecs=plain, zarr_format=2)[:48] = data[:48]
        document = json.loads(bytes(place[".zarray"]))
        document["compressor"] = {"id": name, **configuration}
        place[".zarray"] = json.dumps(document).encode()
    expected = np.where(data < 48, data, 0)
    array = stash.open(place, mode="r+")
    assert pickle.loads(pickle.dumps(array.spec)).codecs[-1].unfit == array.spec.codecs[-1].unfit
    assert np.array_equal(array[:], expected) and np.array_equal(array[3:40:5], expected[3:40:5])
    before = dict(place)
    with pytest.raises(Invalid, match="codec"):
        array[3] = 1
    with pytest.raises(Invalid, match="codec"):
        array[:] = 1
    assert place == before
    array.attrs["unit"] = "K"  # and the document stays as it was given
    again = json.loads(bytes(place["zarr.json" if version == 3 else ".zarray"]))
    assert again.get("codecs") == document.get("codecs")
    assert again.get("compressor") == document.get("compressor")
    assert np.array_equal(stash.copy(array, {}, codecs="zstd")[:], expected)


@pytest.mark.parametrize(
    ("config", "written"),
    [({"id": "gzip", "level": -1}, 6), ({"id": "zstd", "level": 100}, 22)],
)
def test_levels_of_numcodecs_are_written_with(config: dict[str, Any], written: int) -> None:
    place: dict[str, Any] = {}
    stash.create(place, (64,), "i4", chunks=(64,), zarr_format=2, codecs={**config, "level": 1})
    document = {**json.loads(bytes(place[".zarray"])), "compressor": config}
    place[".zarray"] = json.dumps(document).encode()
    array = stash.open(place, mode="r+")
    array[:] = np.arange(64)
    assert bytes(numcodecs.get_codec(config).decode(place["0"])) == array[:].tobytes()
    array.append(np.arange(3, dtype="i4"))
    assert json.loads(bytes(place[".zarray"]))["compressor"] == config
    made = stash.create({}, (4,), "i4", zarr_format=2, codecs=config)
    assert made.spec.codecs[-1].level == written


@pytest.mark.parametrize(
    ("codec", "chunk"),
    [
        (Bytes(), spec((1,), object)),
        (Bytes(), spec((1,), STRING, "")),
        (Bytes(), spec((1,), [("a", object)])),
        (Transpose((1, 0)), spec((1,), "u1")),
        (VlenUtf8(), spec((1,), "U3")),
        (VlenBytes(), spec((1,), STRING, "")),
        (numcodec("delta", dtype="i8"), spec((1,), "i4")),
        (numcodec("delta", dtype=">i4"), spec((1,), "i4")),
        (numcodec("astype", encode_dtype="O"), spec((1,), "i4")),
        (numcodec("astype", encode_dtype="U9999999"), spec((1,), "i4")),
        (numcodec("bitround", keepbits=3), spec((1,), "i4")),
        (numcodec("packbits"), spec((1,), "i4")),
        (numcodec("delta", dtype="nonsense"), spec((1,), "i4")),
    ],
    ids=repr,
)
def test_chunks_a_codec_cannot_hold_are_refused(codec: Codec, chunk: ChunkSpec) -> None:
    with pytest.raises(Invalid, match=codec.name):
        codec.bind(chunk)


def test_what_this_build_lacks_is_named() -> None:
    assert "snappy" in str(Blosc("snappy").unfit)
    with pytest.raises(Invalid, match="snappy"):
        stash.create({}, (1,), "u1", codecs=[Blosc("snappy")])
    chunk = bytearray(Blosc("zlib", 9).encode(bytes(10_000)))
    chunk[2] = chunk[2] & 0x1F | 2 << 5
    with pytest.raises(Unsupported, match="snappy"):
        Blosc("snappy").decode(bytes(chunk), 10_000)
    with pytest.raises(ValueError, match="snappy"):  # damage, that is
        Blosc("zlib").decode(bytes(chunk), 10_000)
    with pytest.raises(Unsupported, match=r"no codec 'numcodecs\.nonsense'"):
        make_codec("numcodecs.nonsense")
    with pytest.raises(Unsupported, match="pickle"):
        make_codec("numcodecs.pickle")
    assert foreign.find("nonsense") is None


def test_native_bytes_are_a_view_and_the_wrong_count_is_named() -> None:
    data = np.arange(6, dtype="<i4").tobytes()
    chunk = Bytes("little").decode(data, spec((2, 3), "<i4"))
    assert np.shares_memory(chunk, np.frombuffer(data, np.uint8))
    assert not chunk.flags.writeable
    with pytest.raises(ValueError, match=r"23 bytes where shape .* takes 24"):
        Bytes("little").decode(data[:-1], spec((2, 3), "<i4"))


def test_big_endian_reaches_every_field() -> None:
    kind = np.dtype([("a", "<i2"), ("b", [("c", "<f4", (2,)), ("d", "u1")]), ("e", "<U2")])
    values = np.zeros(2, kind)
    values["a"], values["b"]["c"], values["b"]["d"], values["e"] = 258, 1.5, 7, "hé"
    swapped = np.dtype([("a", ">i2"), ("b", [("c", ">f4", (2,)), ("d", "u1")]), ("e", ">U2")])
    assert bytes(Bytes("big").encode(values)) == values.astype(swapped).tobytes()


def test_padding_in_memory_is_not_stored() -> None:
    aligned = np.dtype([("a", "u1"), ("b", "<i4")], align=True)
    values = np.array([(1, 2), (3, 4)], aligned)
    chain = Pipeline([Bytes()], ChunkSpec((2,), aligned, np.zeros((), aligned)))
    assert chain.nbytes == 10
    assert not chain.direct
    assert chain.decode(chain.encode(values)).tolist() == values.tolist()


def test_bfloat16_big_endian_is_swapped() -> None:
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    assert bytes(Bytes("big").encode(values)) == values.view("u2").astype(">u2").tobytes()


def test_crc32c_shows_both_sums() -> None:
    data = bytearray(Crc32c().encode(b"123456789"))
    assert data[-4:] == (0xE3069283).to_bytes(4, "little")  # the check value of CRC-32C
    data[0] ^= 1
    with pytest.raises(ValueError, match=r"stored checksum 0xe3069283, computed 0x[0-9a-f]{8}"):
        Crc32c().decode(bytes(data), 9)


def test_strings_of_every_sort_are_encoded_alike() -> None:
    codec = VlenUtf8().bind(spec((3,), STRING, "gone"))
    expected = bytes(codec.encode(np.array(["a", "gone", "ü"], STRING)))
    for values in (
        np.array(["a", "gone", "ü"]),
        np.array(["a", None, "ü"], object),
        np.array(["a", float("nan"), np.str_("ü")], object),
    ):
        assert bytes(codec.encode(values)) == expected
    assert expected == bytes(numcodecs.VLenUTF8().encode(np.array(["a", "gone", "ü"], object)))
    for wrong in (0, b"a", ["a"]):
        chunk = np.empty(1, object)
        chunk[0] = wrong
        with pytest.raises(Invalid, match=f"not {type(wrong).__name__}"):
            codec.encode(chunk)
    with pytest.raises(Invalid, match="cannot encode"):
        codec.encode(np.array(["\ud800"], object))


def test_vlen_claims_are_checked() -> None:
    good = bytes(VlenUtf8().encode(np.array(["ab", "c"], object)))
    chunk = spec((2,), STRING, "")
    for bad in (
        good[:3],
        b"\x03" + good[1:],
        b"\xff\xff\xff\xff" + good[4:],
        good[:4] + b"\xff\xff\xff\xff" + good[8:],
        good + b"\0",
        good[:-1] + b"\xff",
    ):
        with pytest.raises(ValueError, match=r"\w"):
            VlenUtf8().decode(bad, chunk)
    assert VlenUtf8().decode(good, chunk).tolist() == ["ab", "c"]


def test_fortran_chunks_are_not_stored_transposed() -> None:
    values = np.arange(6).reshape(2, 3)
    for codec, chunk in (
        (numcodec("delta", dtype="<i8"), values),
        (numcodec("packbits"), values % 2 == 0),
        (VlenUtf8(), values.astype(str).astype(object)),
    ):
        chain = [codec] if isinstance(codec, Serializer) else [codec, Bytes()]
        pipeline = Pipeline(chain, ChunkSpec((2, 3), chunk.dtype, np.zeros((), chunk.dtype)))
        data = bytes(pipeline.encode(np.asfortranarray(chunk)))
        assert data == bytes(pipeline.encode(chunk))
        assert pipeline.decode(data).tolist() == chunk.tolist()
