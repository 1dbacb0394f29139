"""Cross-reading, both ways, with zarr-python and TensorStore.

Every case is a row that says who can read it: ``Z`` zarr-python, ``T`` TensorStore, ``t``
TensorStore one field at a time, ``c`` TensorStore opens it as characters on an axis of their
own, which its Python package cannot show. A peer that is *not* named must fail to open the
array: when a new version learns to read it, the row is out of date and the test says so. Where
versions in use differ, the row says since which (``since``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import xarray
import zarr

import tensorstash as stash
from tests.support.peers import (
    BIG,
    CHUNKS,
    CRC,
    DEEP,
    FLIP,
    LITTLE,
    RECORD,
    SHAPE,
    Case,
    equal,
    in_tensorstore,
    in_zarr,
    named,
    refused,
    shard,
    since,
    store,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # zarr warns of drafts, we do not care here


def check(case: Case, tmp_path: Path) -> None:
    """We write, peers read; peers write into our array, we read."""
    data, path, version = case.data(), tmp_path / "ours", case.options.get("zarr_format", 3)
    store(path, case, data)
    assert equal(stash.open(str(path))[...], data)
    if "Z" in case.readers:
        assert equal(in_zarr(path)[...], data)
        theirs = tmp_path / "zarr"
        store(theirs, case)
        in_zarr(theirs, "r+")[...] = data.astype(object) if data.dtype.kind == "T" else data
        assert equal(stash.open(str(theirs))[...], data)
    else:
        assert refused(lambda: in_zarr(path)[...]), "zarr-python reads it now: update the row"
    if "T" in case.readers:
        assert equal(in_tensorstore(path, version).read().result(), data)
        theirs = tmp_path / "tensorstore"
        store(theirs, case)
        in_tensorstore(theirs, version).write(data).result()
        assert equal(stash.open(str(theirs))[...], data)
    elif "t" in case.readers:
        for name in data.dtype.names:
            assert equal(in_tensorstore(path, version, name).read().result(), data[name])
    elif "c" in case.readers:
        characters = in_tensorstore(path, version)
        assert characters.dtype == tensorstore.dtype("char")
        assert characters.shape == (*SHAPE, data.itemsize)
    else:
        assert refused(lambda: in_tensorstore(path, version).read().result()), (
            "TensorStore reads it now: update the row"
        )


def run(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


# --- data types ---------------------------------------------------------------------------------


@run(
    [
        *(
            Case(name, "ZT", name)
            for name in (
                *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
                *("uint64", "float16", "float32", "float64", "complex64", "complex128"),
            )
        ),
        Case("bfloat16", "T", ml_dtypes.bfloat16),
        Case("float8_e4m3fn", "T", ml_dtypes.float8_e4m3fn),
        Case("float8_e5m2", "T", ml_dtypes.float8_e5m2),
        Case("float8_e4m3", "", ml_dtypes.float8_e4m3),
        Case("int2", "T", ml_dtypes.int2),
        Case("int4", "T", ml_dtypes.int4),
        Case("uint2", "", ml_dtypes.uint2),
        Case("uint4", "", ml_dtypes.uint4),
        Case("raw16", "", "V2"),
        Case("raw24", "", "V3"),
        Case("string", "Z", str),
        Case("bytes", "Z", bytes),
        Case("datetime64", "Z", "M8[ns]"),
        Case("datetime64-scaled", "Z", "M8[10s]"),
        Case("timedelta64", "Z", "m8[us]"),
        Case("utf32", "Z", "<U4"),
        Case("bytes-fixed", "Z", "S4"),
        Case("struct", since("3.2") + "t", RECORD),
        Case("struct-nested", since("3.2"), DEEP),
    ]
)
def test_data_types(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# --- codecs -------------------------------------------------------------------------------------


def other(name: str, **configuration: Any) -> dict[str, Any]:
    return named(f"numcodecs.{name}", **configuration)


def codecs(name: str, readers: str, *chain: Any, dtype: Any = "float32") -> Case:
    return Case(name, readers, dtype, {"codecs": list(chain)})


@run(
    [
        Case("default", "ZT"),
        codecs("bytes", "ZT", LITTLE),
        codecs("big-endian", "ZT", BIG),
        codecs("gzip", "ZT", LITTLE, named("gzip", level=5)),
        codecs("zstd", "ZT", LITTLE, named("zstd", level=3)),
        codecs("zstd-negative", "ZT", LITTLE, named("zstd", level=-5)),
        codecs("zstd-checksum", "ZT", LITTLE, named("zstd", level=1, checksum=True)),
        codecs("crc32c", "ZT", LITTLE, CRC),
        codecs("transpose", "ZT", FLIP, LITTLE),
        codecs("all", "ZT", FLIP, BIG, named("zstd", level=1), CRC, named("gzip", level=1)),
        *(
            codecs(
                f"blosc-{cname}-{shuffle}",
                "ZT",
                LITTLE,
                named("blosc", cname=cname, clevel=5, shuffle=shuffle, typesize=4, blocksize=0),
            )
            for cname in ("lz4", "lz4hc", "blosclz", "zlib", "zstd")
            for shuffle in ("noshuffle", "shuffle", "bitshuffle")
        ),
        codecs("zlib", "Z", LITTLE, other("zlib", level=1)),
        codecs("lz4", "Z", LITTLE, other("lz4", acceleration=1)),
        codecs("lzma", "Z", LITTLE, other("lzma")),
        codecs("bz2", "Z", LITTLE, other("bz2", level=1)),
        codecs("shuffle", "Z", LITTLE, other("shuffle", elementsize=4), CRC),
        codecs("delta", "Z", other("delta", dtype="<i4"), LITTLE, dtype="int32"),
        codecs("packbits", "Z", other("packbits"), named("bytes"), dtype="bool"),
        codecs("adler32", "Z", LITTLE, other("adler32")),
        codecs("crc32", "Z", LITTLE, other("crc32")),
        codecs("fletcher32", "Z", LITTLE, other("fletcher32")),
        codecs(
            "astype",
            "Z",
            other("astype", encode_dtype="<i2", decode_dtype="<i4"),
            LITTLE,
            dtype="int32",
        ),
        codecs(
            "fixedscaleoffset",
            "Z",
            other("fixedscaleoffset", offset=1, scale=2, dtype="<i4", astype="<i2"),
            LITTLE,
            dtype="int32",
        ),
    ]
)
def test_codecs(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# --- shards -------------------------------------------------------------------------------------


def sharded(name: str, readers: str, *chain: Any, chunks: Any = (8, 12)) -> Case:
    return Case(name, readers, "float32", {"codecs": list(chain), "chunks": chunks})


ZSTD = named("zstd", level=1)


@run(
    [
        Case("shards-argument", "ZT", options={"chunks": (2, 3), "shards": (4, 6)}),
        sharded("end", "ZT", shard((4, 3), LITTLE)),
        sharded("start", "ZT", shard((4, 3), LITTLE, ZSTD, location="start")),
        sharded("checked", "ZT", shard((4, 3), LITTLE, ZSTD, CRC)),
        sharded("index-plain", "ZT", shard((4, 3), LITTLE, index=[LITTLE])),
        sharded("index-big", "ZT", shard((4, 3), LITTLE, index=[BIG, CRC])),
        sharded("whole", "ZT", shard((8, 12), LITTLE)),
        sharded("inner-transpose", "ZT", shard((4, 3), FLIP, BIG, ZSTD)),
        sharded("nested", since("3.1.6") + "T", shard((4, 6), shard((2, 3), LITTLE, ZSTD))),
        sharded(
            "nested-start",
            since("3.1.6") + "T",
            shard((4, 6), shard((2, 3), LITTLE, location="start")),
        ),
        # TensorStore refuses codecs after a sharding codec.
        sharded("nested-crc32c", "Z", shard((4, 6), shard((2, 3), LITTLE, ZSTD), CRC)),
        sharded("outer-gzip", "Z", shard((4, 3), LITTLE), named("gzip", level=1)),
        sharded("outer-crc32c", "Z", shard((4, 3), LITTLE, ZSTD), CRC),
        sharded("outer-transpose", "ZT", FLIP, shard((4, 2), LITTLE)),
        # zarr-python compares inner chunks with the shard before it is transposed.
        sharded("outer-transpose-only", "T", FLIP, shard((3, 4), LITTLE)),
        sharded("larger-than-array", "ZT", shard((5, 5), LITTLE), chunks=(20, 15)),
    ]
)
def test_shards(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


# --- keys, fill values, names -------------------------------------------------------------------


@run(
    [
        Case(f"{name}{separator}", "ZT", options={"key_encoding": name, "separator": separator})
        for name in ("default", "v2")
        for separator in ("/", ".")
    ]
)
def test_key_encodings(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


BITS = np.array([0x7FC00001, 0xFFC00000], "u4").view("f4")


@run(
    [
        Case("nan", "ZT", "float32", fill=np.nan),
        Case("nan-payload", "ZT", "float32", fill=BITS[0]),
        Case("nan-negative", "ZT", "float32", fill=BITS[1]),
        Case("negative-zero", "ZT", "float64", fill=-0.0),
        Case("infinity", "ZT", "float64", fill=np.inf),
        Case("half", "ZT", "float16", fill=-np.inf),
        Case("third", "ZT", "float32", fill=1 / 3),
        Case("complex", "ZT", "complex64", fill=complex(np.nan, -0.0)),
        Case("int64-least", "ZT", "int64", fill=-(2**63)),
        Case("uint64-most", "ZT", "uint64", fill=2**64 - 1),
        Case("true", "ZT", "bool", fill=True),
        Case("text", "Z", str, fill="añ"),
        Case("raw", "Z", bytes, fill=b"\xff\0"),
        Case("date", "Z", "M8[s]", fill=np.datetime64("2020-01-02T03:04:05")),
        Case("not-a-time", "Z", "m8[s]", fill=np.timedelta64("NaT", "s")),
        Case("utf32", "Z", "<U4", fill="ab"),
        Case("fixed", "Z", "S4", fill=b"ab"),
        Case("record", "t", RECORD, fill=(1, -0.0, 2)),
    ]
)
def test_fill_values_of_absent_chunks(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "a"
    ours = store(path, case)
    assert not [p for p in path.rglob("*") if p.is_file() and p.name != "zarr.json"]
    whole = ours[...]
    expected = np.empty(SHAPE, whole.dtype)
    expected[...] = case.fill
    if case.dtype == "float32" and isinstance(case.fill, np.float32):
        assert set(whole.view("u4").ravel().tolist()) == {int(case.fill.view("u4"))}
    assert equal(whole, expected)
    assert equal(stash.open(str(path))[...], expected)
    if "Z" in case.readers:
        assert equal(in_zarr(path)[...], expected)
    if "T" in case.readers:
        assert equal(in_tensorstore(path).read().result(), expected)
    if "t" in case.readers:
        for name in expected.dtype.names:
            assert equal(in_tensorstore(path, 3, name).read().result(), expected[name])


def test_names_and_attributes(tmp_path: Path) -> None:
    attributes = {"unit": "K", "deep": {"list": [1, 2.5, None, True, "é"]}}
    for version in (2, 3):
        path = tmp_path / str(version)
        stash.create(
            str(path),
            shape=SHAPE,
            dtype="f4",
            chunks=CHUNKS,
            attributes=attributes,
            dimension_names=("y", "x"),
            zarr_format=version,
        )
        theirs = in_zarr(path)
        assert {k: theirs.attrs[k] for k in attributes} == attributes
        assert stash.open(str(path)).dimension_names == ("y", "x")
        if version == 3:
            assert theirs.metadata.dimension_names == ("y", "x")
            assert in_tensorstore(path).domain.labels == ("y", "x")


@pytest.mark.parametrize("version", [2, 3])
def test_attributes_that_are_not_finite(version: Any, tmp_path: Path) -> None:
    """Bare tokens: zarr-python and xarray write and read these and nothing else, so the values
    stay what they are. TensorStore reads them in v2 (it looks at no ``.zattrs``), not in v3."""
    attributes = {"a": np.nan, "b": [np.inf, -np.inf], "missing_value": np.float32("nan")}
    ours, theirs, xarrays = (tmp_path / name for name in ("ours", "zarr", "xarray"))
    options = {"shape": SHAPE, "dtype": "f4", "chunks": CHUNKS, "zarr_format": version}
    stash.create(ours, attributes=attributes, dimension_names=("y", "x"), **options)
    zarr.create_array(
        theirs, attributes={k: attributes[k] for k in "ab"}, compressors=None, **options
    )
    data = xarray.DataArray(np.ones(SHAPE, "f4"), dims=("y", "x"), attrs=attributes)
    data.to_dataset(name="t").to_zarr(xarrays, zarr_format=version, consolidated=False)
    for path in (ours, theirs, xarrays / "t"):
        for found in (stash.open(path).attrs, in_zarr(path).attrs):
            assert np.isnan(found["a"]) and found["b"] == [np.inf, -np.inf]
        if version == 2:
            continue
        assert refused(lambda path=path: in_tensorstore(path)), "update the row, and formats.md"
    if version == 2:
        assert in_tensorstore(ours, 2).shape == SHAPE
    stash.create_group(tmp_path / "g", zarr_format=version).create(
        "t", **{**options, "attributes": attributes, "dimension_names": ("y", "x")}
    )
    there = xarray.open_zarr(tmp_path / "g", consolidated=False, mask_and_scale=False).t.attrs
    assert np.isnan(there["a"]) and np.isnan(there["missing_value"])
    # As text they are read by all, and are text to all.
    stash.create(tmp_path / "text", attributes={"a": "NaN"}, **options)
    assert in_zarr(tmp_path / "text").attrs["a"] == "NaN"
    assert in_tensorstore(tmp_path / "text", version).shape == SHAPE


# --- Zarr v2 ------------------------------------------------------------------------------------


def old(name: str, readers: str, dtype: Any = "<f4", fill: Any = None, **options: Any) -> Case:
    return Case(name, readers, dtype, {"zarr_format": 2, **options}, fill)


SUBARRAY = np.dtype([("a", "<i4"), ("b", "<f4", (2, 3))])


@run(
    [
        old("plain", "ZT", codecs=None),
        *(old(name, "ZT", name, codecs="zstd") for name in ("|b1", "|u1", "<i8", "<f2", "<c8")),
        old("gzip", "ZT", codecs="gzip"),
        old("blosc", "ZT", codecs="blosc"),
        old("zlib", "ZT", codecs={"id": "zlib", "level": 1}),
        old("bz2", "ZT", codecs={"id": "bz2", "level": 1}),
        old("lz4", "Z", codecs=["bytes", other("lz4", acceleration=1)]),
        old("lzma", "Z", codecs={"id": "lzma"}),
        old("big-endian", "ZT", codecs=[BIG]),
        old("order-F", "ZT", order="F", codecs="zstd"),
        old("slash", "ZT", separator="/", codecs=None),
        old("nan", "ZT", fill=np.nan, codecs=None),
        old("filter-delta", "Z", "<i4", filters=[{"id": "delta", "dtype": "<i4"}], codecs=None),
        old(
            "filter-shuffle",
            "Z",
            filters=[{"id": "shuffle", "elementsize": 4}],
            codecs="zstd",
            order="F",
        ),
        old("text", "Z", str, codecs="zstd"),
        old("bytes", "Z", bytes, codecs="zstd"),
        old("utf32", "Z", "<U4", codecs="zstd"),
        old("fixed", "Zc", "S4", codecs="zstd"),
        old("datetime", "Z", "<M8[ns]", codecs="zstd"),
        old("record", "Zt", RECORD, codecs="zstd"),
        old("record-F", "Zt", RECORD, codecs="zstd", order="F"),
        old("record-subarray", "t", SUBARRAY, codecs="zstd"),
    ]
)
def test_v2(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
