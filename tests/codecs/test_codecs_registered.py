"""The registered codecs that need nothing but NumPy: reshape, bitround, packbits, scale_offset,
cast_value, and zfp where its package is. The contract, and what the specifications' words are
taken to mean."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import tensorstash as stash
from tensorstash import dtype as dtypes
from tensorstash.codec import ChunkSpec, Pipeline
from tensorstash.codecs.bitround import Bitround
from tensorstash.codecs.cast_value import CastValue
from tensorstash.codecs.packbits import Packbits
from tensorstash.codecs.reshape import Reshape
from tensorstash.codecs.scale_offset import ScaleOffset
from tensorstash.codecs.zfp import Zfp
from tensorstash.dtype import int_range
from tensorstash.dtype import parse as dtype
from tensorstash.errors import Corrupt, Invalid, StashError
from tensorstash.registry import make_codec
from tensorstash.testing import CodecContract
from tensorstash.testing.codec import SPECS, spec

INTS = ("int2", "int4", "uint2", "uint4")
PACKED = (
    *(s for s in SPECS if s.dtype.kind in "biufcmM"),
    *(spec((3, 5), dtype(name)) for name in (*INTS, "bfloat16", "float8_e5m2")),
)


def canonical(values: NDArray[Any]) -> NDArray[Any]:
    """With the bits that an int2 or int4 has no use for at zero, as arithmetic leaves them."""
    if values.dtype.name not in INTS:
        return values
    keep = np.uint8((1 << int(values.dtype.name[-1])) - 1)
    return (values.view(np.uint8) & keep).view(values.dtype)


class TestReshape(CodecContract):
    codec = Reshape((-1,))


class TestReshapeAxes(CodecContract):
    codec = Reshape(([0, 1], 2, -1, [3]))
    specs = (spec((2, 3, 8, 5), "u2"), spec((1, 1, 4, 1), "f4"), spec((5, 1, 2, 3), [("a", "i2")]))


class Packing(CodecContract):
    specs = PACKED

    def values(self, spec: ChunkSpec, seed: int = 0) -> NDArray[Any]:
        return canonical(super().values(spec, seed))


class TestPackbits(Packing):
    codec = Packbits()


class TestPackbitsFirst(Packing):
    codec = Packbits("first_byte")


class TestPackbitsLast(Packing):
    codec = Packbits("last_byte")


class Lossy(CodecContract):
    def same(self, before: NDArray[Any], after: NDArray[Any]) -> bool:
        return before.shape == after.shape


class TestPackbitsPart(Lossy):
    codec = Packbits("last_byte", 1, 6)
    specs = tuple(s for s in PACKED if s.dtype != np.bool_ and s.dtype.name not in INTS)


class TestBitround(Lossy):
    codec = Bitround(3)
    specs = (
        *(s for s in SPECS if s.dtype.kind in "iufcmM"),
        spec((3, 5), dtype("bfloat16")),
    )


class TestScaleOffset(CodecContract):
    codec = ScaleOffset(-3, 1)
    specs = tuple(spec((3, 5), kind) for kind in ("i1", "i2", "i4", "i8", "f2", "f4", "f8"))

    def values(self, spec: ChunkSpec, seed: int = 0) -> NDArray[Any]:
        return np.random.default_rng(seed).integers(-120, 120, spec.shape).astype(spec.dtype)


class TestCastValue(CodecContract):
    codec = CastValue("int16", scalar_map={"encode": [[0, 0]], "decode": []})
    specs = tuple(spec((3, 5), kind) for kind in ("i4", "i8", "u2", "f4", "f8"))

    def values(self, spec: ChunkSpec, seed: int = 0) -> NDArray[Any]:
        return np.random.default_rng(seed).integers(0, 120, spec.shape).astype(spec.dtype)


class TestZfp(CodecContract):
    codec = Zfp("reversible")
    specs = tuple(
        s
        for s in SPECS
        if s.dtype.kind in "iufmM" and s.dtype.name not in ("uint32", "uint64") and s.count
    )
    notices_cut = notices_extra = False

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("zfpy")


# --- reshape ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ([-1], (24,)),
        ([24], (24,)),
        ([[0, 1, 2]], (24,)),
        ([[0], [1, 2]], (2, 12)),
        ([[0, 1], 4], (6, 4)),
        ([[0], 3, 1, 4], (2, 3, 1, 4)),
        ([4, -1], (4, 6)),
        ([[], [0], -1], (1, 2, 12)),
    ],
)
def test_shapes(shape: list[Any], made: tuple[int, ...]) -> None:
    chunk = np.arange(24, dtype="i2").reshape(2, 3, 4)
    chain = Pipeline([Reshape(shape), make_codec("bytes")], spec((2, 3, 4), "i2"))
    assert chain.stored.shape == made
    assert bytes(chain.encode(np.asfortranarray(chunk))) == chunk.astype("<i2").tobytes()


@pytest.mark.parametrize(
    "shape",
    [
        *([7], [-1, 7], [-1, -1], [0], [-2], [True], ["a"], [None], [2.0], [1 << 70], [[3]]),
        *([[1], [0]], [[0, 0]], [[1, 0], 4], [[0, 2], 3], [3, [0], 4], [[0], [2], 3], [[-1]]),
        *("24", 24, [[0, 1, 2], 2], [1] * 100, [[0.5]], [[[0]]], {}, None, [[0], -1, [1]]),
    ],
    ids=str,
)
def test_shapes_that_cannot_be(shape: Any) -> None:
    place: dict[str, Any] = {}
    chain = [{"name": "reshape", "configuration": {"shape": shape}}, "bytes"]
    with pytest.raises(Invalid):
        stash.create(place, (4, 6, 8), "i2", chunks=(2, 3, 4), codecs=chain)
    assert not place


# --- bitround -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        # The sample data of the specification.
        ("u1", [0, 1, 10, 11, 100, 123, 200, 208, 209], [0, 1, 10, 12, 96, 128, 192, 192, 224]),
        ("u1", [255], [224]),
        ("f4", [0, 0.1, 1.2, 12.3], [0, 0.1015625, 1.25, 12]),
        ("f4", [123.4, 1234.5, np.nan, np.inf, -np.inf], [120, 1280, np.nan, np.inf, -np.inf]),
        # What it leaves open: signs are kept, and nothing leaves its type.
        ("i1", [-1, -11, -128, 127, -127, -100], [-1, -12, -128, 112, -112, -96]),
        ("i8", [-(2**63), 2**63 - 1], [-(2**63), 7 << 60]),
        ("m8[s]", [-11, "NaT"], [-12, "NaT"]),
        ("c8", [0.1 + 1.2j], [0.1015625 + 1.25j]),
    ],
)
def test_bits_are_rounded(kind: str, before: list[Any], after: list[Any]) -> None:
    made = Bitround(3).encode(np.array(before, kind))
    np.testing.assert_array_equal(made, np.array(after, kind))


@given(st.lists(st.floats(width=32), min_size=1), st.integers(1, 22))
def test_finite_floats_round_as_numcodecs(values: list[float], keep: int) -> None:
    from numcodecs.bitround import BitRound

    array = np.array(values, "f4")
    theirs = BitRound(keep).decode(BitRound(keep).encode(array)).view("f4")
    ours = Bitround(keep).encode(array)
    finite = np.isfinite(array)
    np.testing.assert_array_equal(ours[finite], theirs[finite])
    assert ours[~finite].tobytes() == array[~finite].tobytes()


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2"])
@pytest.mark.parametrize("keep", [1, 2, 5, 8, 16, 64])
def test_integers_round_as_stated(kind: str, keep: int) -> None:
    low, high = int_range(np.dtype(kind))
    values = np.arange(low, high + 1).astype(kind)

    def rounded(value: int) -> int:
        size = abs(value)
        drop = max(size.bit_length() - keep, 0)
        step = 1 << drop
        up = round(size / step) * step  # ties to even
        made = size // step * step if up > high else up
        return -made if value < 0 else made

    assert Bitround(keep).encode(values).tolist() == [rounded(v) for v in values.tolist()]


def test_a_nan_stays_one() -> None:
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], "u4")
    assert Bitround(1).encode(bits.view("f4")).view("u4").tolist() == bits.tolist()


@pytest.mark.parametrize("keep", [0, -1, 65, "3", None, 1.5, True, 10**400])
def test_bits_to_keep_out_of_range(keep: Any) -> None:
    chain = [{"name": "bitround", "configuration": {"keepbits": keep}}, "bytes"]
    place: dict[str, Any] = {}
    with pytest.raises(Invalid, match="keepbits"):
        stash.create(place, (4,), "f4", chunks=(4,), codecs=chain)
    assert not place
    array = stash.create(place, (4,), "f4", chunks=(4,), codecs=["bytes"])
    array[...] = [1, 2, 3, 4]
    document = json.loads(place["zarr.json"])
    document["codecs"] = [chain[0], {"name": "bytes", "configuration": {"endian": "little"}}]
    place["zarr.json"] = json.dumps(document).encode()
    read = stash.open(place, "r+")  # reading needs it for nothing
    assert read[...].tolist() == [1, 2, 3, 4]
    with pytest.raises(Invalid, match="keepbits"):
        read[0] = 1


# --- packbits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values", "configuration", "stored"),
    [
        # Worked out by hand: bit 0 of the first element is bit 0 of the first byte.
        ("bool", [1, 0, 0, 1, 0, 0, 0, 0, 1, 1], {}, "0903"),
        ("int4", [1, -1, 3], {}, "f103"),
        ("uint4", [1, 15, 3], {}, "f103"),
        ("int2", [1, -1, 0, -2, 1], {}, "8d01"),
        ("int4", [1, -1, 3], {"padding_encoding": "first_byte"}, "04f103"),
        ("int4", [1, -1, 3], {"padding_encoding": "last_byte"}, "f10304"),
        ("int4", [1, -1, 3], {"padding_encoding": "none", "first_bit": None}, "f103"),
        ("int8", [1, -1, 3], {"last_bit": 2}, "f900"),
        ("uint16", [0x0ABC, 0x0123], {"first_bit": 4, "last_bit": 11}, "ab12"),
        ("uint16", [0x0102], {}, "0201"),
        ("uint16", [], {"padding_encoding": "last_byte"}, "00"),
    ],
)
def test_what_is_packed(kind: str, values: list[int], configuration: Any, stored: str) -> None:
    target = np.dtype(dtype(kind))
    chain = Pipeline([make_codec("packbits", configuration)], spec((len(values),), target))
    chunk = np.array(values).astype(target)
    assert bytes(chain.encode(chunk)).hex() == stored
    back = chain.decode(bytes.fromhex(stored))
    if not {"first_bit", "last_bit"} & {k for k, v in configuration.items() if v is not None}:
        assert back.tolist() == chunk.tolist()


@given(
    st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint64", *INTS]),
    st.data(),
)
def test_bits_that_are_kept(kind: str, data: st.DataObject) -> None:
    target = dtype(kind)
    own = int(kind.lstrip("uint"))
    first = data.draw(st.integers(0, own - 1))
    last = data.draw(st.integers(first, own - 1))
    low, high = int_range(target)
    values = data.draw(st.lists(st.integers(low, high), max_size=40))
    codec = Packbits(data.draw(st.sampled_from(["none", "first_byte", "last_byte"])), first, last)
    chain = Pipeline([codec], spec((len(values),), target))
    chunk = np.array(values, "u8" if low == 0 else "i8").astype(target)
    back = chain.decode(chain.encode(chunk)).tolist()

    def kept(value: int) -> int:
        bits = (value >> first) & ((1 << last - first + 1) - 1)
        bits <<= first
        return bits - (1 << last + 1) if low < 0 and bits >> last else bits

    assert back == [kept(value) for value in values]


@pytest.mark.parametrize(
    "configuration",
    [
        *({"first_bit": 3}, {"last_bit": 4}, {"first_bit": 2, "last_bit": 1}, {"first_bit": -1}),
        *({"last_bit": 1 << 70}, {"first_bit": True}, {"first_bit": "0"}, {"last_bit": 1.0}),
        *({"padding_encoding": "middle"}, {"padding_encoding": None}, {"bits": 3}),
    ],
    ids=str,
)
def test_bits_that_there_are_not(configuration: Any) -> None:
    place: dict[str, Any] = {}
    chain = [{"name": "packbits", "configuration": configuration}]
    with pytest.raises(Invalid):
        stash.create(place, (4,), "uint2", chunks=(4,), codecs=chain)
    assert not place


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x02\x03", b"\x09\x01\x02\x03" * 1000])
def test_a_wrong_number_of_packed_bytes_is_damage(data: bytes) -> None:
    place: dict[str, Any] = {}
    stash.create(place, (4,), "int4", chunks=(4,), codecs=["packbits"])
    place["c/0"] = data
    with pytest.raises(Corrupt):
        stash.open(place)[...]


def test_a_wrong_count_of_bits_left_over_is_damage() -> None:
    chain = Pipeline([Packbits("last_byte")], spec((3,), dtype("int4")))
    with pytest.raises(Corrupt, match="left over"):
        chain.decode(bytes.fromhex("f10305"))


# --- what no codec of these takes ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["bitround", "packbits", "cast_value", "scale_offset", "zfp"])
@pytest.mark.parametrize("kind", ["string", "bytes", "U3", "S3", "V3", [("a", "i4")]])
def test_elements_that_are_no_numbers_are_refused(name: str, kind: Any) -> None:
    configuration: dict[str, Any] = {
        "bitround": {"keepbits": 3},
        "cast_value": {"data_type": "int8"},
        "zfp": {"mode": "reversible"},
    }.get(name, {})
    chain: list[Any] = [{"name": name, "configuration": configuration}]
    if name not in ("packbits", "zfp"):
        chain.append("bytes")
    place: dict[str, Any] = {}
    with pytest.raises(StashError):
        stash.create(place, (4,), kind, chunks=(4,), codecs=chain)
    assert not place


# --- zfp ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "configuration",
    [
        *({}, {"mode": "fast"}, {"mode": "fixed_rate"}, {"mode": "fixed_rate", "rate": 0}),
        *({"mode": "fixed_rate", "rate": 1e9}, {"mode": "reversible", "rate": 3}),
        *({"mode": "fixed_rate", "rate": float("nan")}, {"mode": "fixed_precision"}),
        *({"mode": "fixed_precision", "precision": 0}, {"mode": "fixed_accuracy", "rate": 3}),
        *({"mode": "fixed_precision", "precision": 1 << 70}, {"mode": "expert"}),
        *({"mode": "fixed_accuracy", "tolerance": -1}, {"mode": "reversible", "minbits": 1}),
        {"mode": "fixed_accuracy", "tolerance": float("inf")},
    ],
    ids=str,
)
def test_modes_that_there_are_not(configuration: Any) -> None:
    chain: list[Any] = [{"name": "zfp", "configuration": configuration}]
    place: dict[str, Any] = {}
    with pytest.raises(StashError):
        stash.create(place, (4,), "f4", chunks=(4,), codecs=chain)
    assert not place


@pytest.mark.parametrize(
    ("configuration", "most"),
    [
        ({"mode": "fixed_accuracy", "tolerance": 0.5}, 0.5),
        ({"mode": "fixed_rate", "rate": 16}, 0.1),
        ({"mode": "fixed_precision", "precision": 20}, 0.1),
        ({"mode": "reversible"}, 0),
    ],
)
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_zfp_errs_by_no_more_than_it_may(configuration: Any, most: float, kind: str) -> None:
    pytest.importorskip("zfpy")
    place: dict[str, Any] = {}
    array = stash.create(
        place, (9, 7), kind, chunks=(5, 4), codecs=[{"name": "zfp", "configuration": configuration}]
    )
    values = np.linspace(-40, 60, 63).reshape(9, 7).astype(kind)
    array[...] = values
    assert np.abs(array[...].astype(float) - values.astype(float)).max() <= most
    for key in [key for key in place if key.startswith("c/")]:
        place[key] = place[key][:1]
    stash.open(place)[...]  # cut short it reads as something, and never beyond


def test_zfp_holds_no_unsigned_numbers_above_the_signed() -> None:
    pytest.importorskip("zfpy")
    array = stash.create(
        {},
        (4,),
        "u4",
        chunks=(4,),
        codecs=[{"name": "zfp", "configuration": {"mode": "reversible"}}],
    )
    array[...] = [0, 1, 2**31 - 1, 5]
    assert array[...].tolist() == [0, 1, 2**31 - 1, 5]
    with pytest.raises(Invalid, match="above"):
        array[0] = 2**31
    with pytest.raises(Invalid, match="fixed_accuracy"):
        stash.create(
            {},
            (4,),
            "i4",
            codecs=[
                {"name": "zfp", "configuration": {"mode": "fixed_accuracy", "tolerance": 1}},
            ],
        )


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_that_asks_zfp_to_read_beyond_the_end(version: int) -> None:
    """Of numcodecs' zfpy, whose chunks name their own rate: 2,000 bits an element, in 40 bytes."""
    zfpy = pytest.importorskip("zfpy")
    data = zfpy.compress_numpy(np.arange(1 << 20, dtype="f4"), rate=2000.0)[:40]
    place: dict[str, Any] = {}
    name: Any = {"id": "zfpy", "mode": 2, "rate": 8.0}
    options: dict[str, Any] = {"zarr_format": 2, "codecs": name}
    if version == 3:
        options = {
            "codecs": [{"name": "numcodecs.zfpy", "configuration": {"mode": 2, "rate": 8.0}}]
        }
    stash.create(place, (1 << 20,), "f4", chunks=(1 << 20,), **options)
    place["0" if version == 2 else "c/0"] = data
    with pytest.raises(Corrupt, match="cannot hold blocks"):
        stash.open(place)[...]


# --- what zarrs wrote ---------------------------------------------------------------------------


SNAPSHOTS = os.environ.get("ZARRS_SNAPSHOTS")
LOSSLESS = ("reshape(flatten)", "packbits", "zfp(reversible)", "bitround(keepbits10)")


@pytest.mark.skipif(
    SNAPSHOTS is None, reason="ZARRS_SNAPSHOTS names no copy of zarrs_snapshot_data"
)
@pytest.mark.parametrize("codec", LOSSLESS)
def test_snapshots_of_zarrs(codec: str) -> None:
    """Where ``ZARRS_SNAPSHOTS`` names a checkout of zarrs/zarrs_snapshot_data (seen at 4f17fff):
    each array there of these codecs holds what one in plain bytes holds."""
    if "zfp" in codec:
        pytest.importorskip("zfpy")
    seen = 0
    for folder in sorted(Path(str(SNAPSHOTS), "supported/regular").glob(f"*/*/{codec}/*")):
        try:
            dtypes.from_v3(json.loads((folder / "zarr.json").read_text())["data_type"])
        except StashError:
            continue
        read = stash.open(folder)[...]
        alike = [
            made
            for plain in folder.parents[2].glob("a2b/[bv][yl][te]*/*")
            if (made := _opened(plain)) is not None and made.shape == read.shape
        ]
        assert any(made.tolist() == read.tolist() or _same(made, read) for made in alike), folder
        seen += 1
    assert seen >= 14


def _opened(folder: Path) -> NDArray[Any] | None:
    try:
        return np.asarray(stash.open(folder)[...])
    except StashError:
        return None


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype.kind != "T" and one.tobytes() == other.tobytes()
