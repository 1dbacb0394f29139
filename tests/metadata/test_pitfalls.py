"""The twenty points that Zarr implementations get wrong, one test each."""

from __future__ import annotations

import gzip
import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

import tensorstash as stash
from tensorstash.driver import Span
from tensorstash.errors import AlreadyExists, Unsupported
from tensorstash.metadata import zarr2, zarr3
from tensorstash.metadata.document import GroupDocument
from tensorstash.registry import connect, make_codec
from tests.support.peers import (
    CRC,
    FLIP,
    LITTLE,
    document,
    in_tensorstore,
    in_zarr,
    named,
    rewrite,
    shard,
)


def by_zarr(path: Path) -> np.ndarray:
    return np.asarray(in_zarr(path)[...])


def by_tensorstore(path: Path, version: int = 3) -> np.ndarray:
    return np.asarray(in_tensorstore(path, version).read().result())


def chunks_of(path: Path) -> set[str]:
    names = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    return {n for n in names if not n.endswith("zarr.json") and not n.startswith(".z")}


# zarr-python warns of numcodecs in v3 and of codecs outside shards, which is what we test.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

DATA = np.arange(35, dtype="float32").reshape(5, 7)


def make(path: Path, data: np.ndarray = DATA, **options: Any) -> Any:
    fields = {
        "shape": data.shape,
        "dtype": data.dtype,
        "chunks": tuple(max(1, n // 2) for n in data.shape),
    }
    array = stash.create(str(path), **{**fields, **options})
    array[...] = data
    return array


def test_pitfall_01_fill_value_equality_is_bitwise(tmp_path: Path) -> None:
    array = stash.create(str(tmp_path / "a"), shape=(8,), dtype="f4", chunks=(2,), fill_value=0.0)
    array[0:2] = -0.0
    array[2:4] = 0.0
    assert np.signbit(array[...]).tolist() == [True, True] + [False] * 6
    assert np.signbit(by_zarr(tmp_path / "a")).tolist() == [True, True] + [False] * 6

    odd = np.array([0x7FC00001, 0xFFC00000], "u4").view("f4")
    array = stash.create(
        str(tmp_path / "b"), shape=(8,), dtype="f4", chunks=(2,), fill_value=odd[0]
    )
    array[0:2] = np.nan
    array[2:4] = odd[1]
    array[4:6] = odd[0]
    bits = stash.open(str(tmp_path / "b"))[...].view("u4")
    assert [hex(b) for b in bits] == ["0x7fc00000"] * 2 + ["0xffc00000"] * 2 + ["0x7fc00001"] * 4
    assert document(tmp_path / "b")["fill_value"] == "0x7fc00001"


def test_pitfall_02_unknown_keys_fail_unless_optional(tmp_path: Path) -> None:
    make(tmp_path / "a")
    rewrite(tmp_path / "a", extra={"must_understand": False, "x": 1})
    array = stash.open(str(tmp_path / "a"), mode="r+")
    np.testing.assert_array_equal(array[...], DATA)
    array.attrs["note"] = "kept"
    assert document(tmp_path / "a")["extra"] == {"must_understand": False, "x": 1}
    for value in (1, {"x": 1}, {"must_understand": True}, None):
        rewrite(tmp_path / "a", extra=value)
        with pytest.raises(Unsupported, match="extra"):
            stash.open(str(tmp_path / "a"))
    # zarr-python before 3.1.4 wrote a null here: read, never written.
    old = b'{"zarr_format": 3, "node_type": "group", "consolidated_metadata": null}'
    kind, group = zarr3.parse(old)
    assert kind == "group" and isinstance(group, GroupDocument)
    assert "consolidated_metadata" not in zarr3.group_document(group)


@pytest.mark.parametrize(
    "changes",
    [
        {"codecs": ["bytes", "zstd"]},
        {"codecs": [{"name": "bytes"}, {"name": "zstd"}]},
        {"data_type": {"name": "float32"}},
        {"data_type": {"name": "float32", "configuration": {}}},
        {"chunk_key_encoding": "default"},
        {"chunk_key_encoding": {"name": "default"}},
    ],
)
def test_pitfall_03_configuration_is_optional(tmp_path: Path, changes: dict[str, Any]) -> None:
    make(tmp_path / "a", codecs=["bytes", "zstd"])
    rewrite(tmp_path / "a", **changes)
    np.testing.assert_array_equal(stash.open(str(tmp_path / "a"))[...], DATA)


def test_pitfall_04_a_missing_endian_is_little_and_never_written(tmp_path: Path) -> None:
    make(tmp_path / "a", codecs=[LITTLE])
    assert document(tmp_path / "a")["codecs"] == [LITTLE]
    rewrite(tmp_path / "a", codecs=[{"name": "bytes"}])
    np.testing.assert_array_equal(stash.open(str(tmp_path / "a"))[...], DATA)
    np.testing.assert_array_equal(by_zarr(tmp_path / "a"), DATA)
    make(tmp_path / "b", codecs=["bytes"])
    assert document(tmp_path / "b")["codecs"][0]["configuration"] == {"endian": "little"}


def test_pitfall_05_null_names_and_must_understand_inside_a_codec(tmp_path: Path) -> None:
    make(tmp_path / "a", codecs=["bytes", "zstd"])
    assert "dimension_names" not in document(tmp_path / "a")
    assert not any("must_understand" in codec for codec in document(tmp_path / "a")["codecs"])
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "a"), DATA)
    codecs = [{**codec, "must_understand": True} for codec in document(tmp_path / "a")["codecs"]]
    rewrite(tmp_path / "a", dimension_names=None, codecs=codecs)
    array = stash.open(str(tmp_path / "a"), mode="r+")
    np.testing.assert_array_equal(array[...], DATA)
    array.attrs["x"] = 1
    assert "dimension_names" not in document(tmp_path / "a")


def test_pitfall_06_an_integer_fill_written_as_a_float(tmp_path: Path) -> None:
    make(tmp_path / "a", DATA.astype("int16"))
    rewrite(tmp_path / "a", fill_value=0.0)
    array = stash.open(str(tmp_path / "a"), mode="r+")
    np.testing.assert_array_equal(array[...], DATA.astype("int16"))
    array.attrs["x"] = 1
    written = document(tmp_path / "a")["fill_value"]
    assert written == 0 and type(written) is int


def test_pitfall_07_v2_filters_are_null_not_empty(tmp_path: Path) -> None:
    make(tmp_path / "a", zarr_format=2)
    assert document(tmp_path / "a", ".zarray")["filters"] is None
    rewrite(tmp_path / "a", ".zarray", filters=[])
    array = stash.open(str(tmp_path / "a"), mode="r+")
    np.testing.assert_array_equal(array[...], DATA)
    array.resize((6, 7))
    assert document(tmp_path / "a", ".zarray")["filters"] is None


def test_pitfall_08_v2_zstd_without_checksum_and_blosc_shuffle_of_tensorstore(
    tmp_path: Path,
) -> None:
    make(tmp_path / "a", zarr_format=2, codecs="zstd")
    assert "checksum" not in document(tmp_path / "a", ".zarray")["compressor"]
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "a", 2), DATA)
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{tmp_path / 'b'}/"},
        "metadata": {"compressor": {"id": "blosc"}, "shape": [5, 7], "dtype": "<f4"},
        "create": True,
    }
    tensorstore.open(spec).result().write(DATA).result()
    assert document(tmp_path / "b", ".zarray")["compressor"]["shuffle"] == -1
    np.testing.assert_array_equal(stash.open(str(tmp_path / "b"))[...], DATA)


def test_pitfall_09_each_codec_sees_what_the_one_before_made(tmp_path: Path) -> None:
    codecs = [
        FLIP,
        {
            "name": "numcodecs.fixedscaleoffset",
            "configuration": {"offset": 0, "scale": 2, "dtype": "<f4", "astype": "<i2"},
        },
        LITTLE,
        {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "shuffle"}},
    ]
    array = make(tmp_path / "a", codecs=codecs, fill_value=3.0)
    written = document(tmp_path / "a")["codecs"]
    assert written[3]["configuration"]["typesize"] == 2, "blosc sees int16, not float32"
    np.testing.assert_array_equal(array[...], DATA)
    np.testing.assert_array_equal(by_zarr(tmp_path / "a"), DATA)
    array[0, 0] = 9
    assert by_zarr(tmp_path / "a")[0, 0] == 9
    # zarr-python 3.1.6 swaps the bytes of its own big-endian int16 here; the file is right.
    codecs[2] = {"name": "bytes", "configuration": {"endian": "big"}}
    array = make(tmp_path / "b", codecs=codecs[1:3], chunks=(5, 7))
    np.testing.assert_array_equal(array[...], DATA)
    stored = np.frombuffer((tmp_path / "b" / "c" / "0" / "0").read_bytes(), ">i2")
    np.testing.assert_array_equal(stored.reshape(5, 7), DATA * 2)


SHARD = shard((2, 2), LITTLE)
OUTER = [
    [SHARD],
    [SHARD, named("gzip", level=1)],
    [FLIP, SHARD],
    [FLIP, SHARD, CRC],
]


@pytest.mark.parametrize("codecs", OUTER, ids=["none", "gzip", "transpose", "both"])
def test_pitfall_10_codecs_outside_a_shard_hold_on_every_path(
    tmp_path: Path, codecs: list[Any]
) -> None:
    data = np.arange(12 * 16, dtype="int32").reshape(12, 16)
    array = make(tmp_path / "a", data, chunks=(6, 8), codecs=codecs)
    fresh = stash.open(str(tmp_path / "a"), mode="r+")
    for selection in (np.s_[3, 5], np.s_[2:11:3, 1:9], np.s_[::-1, ::-3], np.s_[:, 7]):
        np.testing.assert_array_equal(fresh[selection], data[selection])
    rows, columns = [11, 0, 3, 3], [15, 0, 2, 2]
    np.testing.assert_array_equal(fresh[rows], data[rows])
    np.testing.assert_array_equal(fresh[rows, columns], data[rows, columns])
    fresh[5:7, 3:12] = -1
    data[5:7, 3:12] = -1
    fresh[[0, 9], [4, 4]] = 77
    data[[0, 9], [4, 4]] = 77
    np.testing.assert_array_equal(array[...], data)
    np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)


@pytest.mark.parametrize("case", ["text", "bytes", "delta", "packbits", "records"])
def test_pitfall_11_memory_order_of_the_input_does_not_matter(tmp_path: Path, case: str) -> None:
    plain = np.arange(24).reshape(4, 6)
    options: dict[str, Any] = {"chunks": (4, 6)}
    if case == "text":
        data = plain.astype(str).astype(np.dtypes.StringDType())
    elif case == "bytes":
        data = np.vectorize(lambda n: b"x" * n, otypes=[object])(plain)
        options["dtype"] = bytes
    elif case == "delta":
        data = plain.astype("int32")
        delta = {"name": "numcodecs.delta", "configuration": {"dtype": "<i4"}}
        options["codecs"] = [delta, "bytes"]
    elif case == "packbits":
        data = plain % 3 == 0
        options["codecs"] = [{"name": "numcodecs.packbits"}, "bytes"]
    else:
        data = np.empty((4, 6), [("a", ">i4"), ("b", ">f8")])
        data["a"], data["b"] = plain, plain / 2
        options["codecs"] = [{"name": "bytes", "configuration": {"endian": "big"}}]
    for name, turned in (("c", data), ("f", np.asfortranarray(data)), ("r", data[::-1][::-1])):
        make(tmp_path / name, turned, **options)
        back = stash.open(str(tmp_path / name))[...]
        assert back.tolist() == data.tolist(), name
    if case in ("text", "bytes", "delta"):
        assert by_zarr(tmp_path / "f").tolist() == data.tolist()
    if case == "records":
        stored = (tmp_path / "f" / "c" / "0" / "0").read_bytes()
        assert stored == data.tobytes(), "every field of the records is big-endian"


def test_pitfall_12_a_partial_last_shard_has_a_full_index(tmp_path: Path) -> None:
    data = np.arange(10, dtype="u1") + 1
    make(tmp_path / "a", data, chunks=(2,), shards=(8,), codecs=["bytes"])
    last = (tmp_path / "a" / "c" / "1").read_bytes()
    index = np.frombuffer(last[-(16 * 4 + 4) : -4], "<u8").reshape(4, 2)
    assert index[0].tolist() == [0, 2]
    assert (index[1:] == 2**64 - 1).all()
    np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "a"), data)
    np.testing.assert_array_equal(stash.open(str(tmp_path / "a"))[...], data)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("shape", "chunks"), [((), ()), ((0,), (4,)), ((3, 0, 2), (2, 1, 2)), ((3,), (100,))]
)
def test_pitfall_13_no_axes_no_elements_and_large_chunks(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], version: int
) -> None:
    data = np.arange(np.prod(shape, dtype=int), dtype="i4").reshape(shape) + 5
    make(tmp_path / "a", data, chunks=chunks, zarr_format=version)
    np.testing.assert_array_equal(stash.open(str(tmp_path / "a"))[...], data, strict=True)
    np.testing.assert_array_equal(by_zarr(tmp_path / "a"), data)
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "a", version), data)
    if shape == ():
        assert chunks_of(tmp_path / "a") == {"c" if version == 3 else "0"}
    if 0 in shape:
        assert chunks_of(tmp_path / "a") == set()


def test_pitfall_13_a_sharded_array_without_axes(tmp_path: Path) -> None:
    array = stash.create(str(tmp_path / "a"), shape=(), dtype="i4", chunks=(), shards=())
    array[...] = 7
    assert array[...] == 7
    assert stash.open(str(tmp_path / "a"))[()] == 7
    assert by_tensorstore(tmp_path / "a") == 7


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_pitfall_14_a_suffix_longer_than_the_value_is_the_value(
    tmp_path: Path, scheme: str
) -> None:
    url = f"file://{tmp_path}" if scheme == "file" else "memory://pitfall-14"
    driver = connect(url, {})
    driver.put("k", b"12345")
    assert bytes(driver.get("k", Span(-100)) or b"") == b"12345"
    assert bytes(driver.get("k", Span(-2)) or b"") == b"45"
    assert bytes(driver.get("k", Span(5)) or b"") == b""
    assert driver.get("k", Span(2, 2)) is not None, "empty, not absent"
    assert driver.get("absent", Span(-2)) is None


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_pitfall_15_prefixes_are_whole_path_segments(tmp_path: Path, scheme: str) -> None:
    url = f"file://{tmp_path}" if scheme == "file" else "memory://pitfall-15"
    driver = connect(url, {})
    for key in ("foo/a", "foo/b/c", "foobar/a", "foo.txt"):
        driver.put(key, b"x")
    if scheme == "file":
        (tmp_path / "foo" / "empty").mkdir()
    keys, prefixes = driver.list_dir("foo/")
    assert sorted(keys) == ["a"]
    assert "b" in {prefix.rstrip("/") for prefix in prefixes}
    driver.delete_prefix("foo/")
    assert sorted(driver.list()) == ["foo.txt", "foobar/a"]


def test_pitfall_16_gzip_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = make_codec("gzip", {"level": 5})
    first = bytes(codec.encode(b"abc" * 1000))
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert bytes(codec.encode(b"abc" * 1000)) == first
    assert first[4:8] == bytes(4), "no time in the header"
    assert gzip.decompress(first) == b"abc" * 1000


def test_pitfall_17_crc32c_is_castagnoli() -> None:
    codec = make_codec("crc32c")
    encoded = bytes(codec.encode(b"123456789"))
    assert encoded == b"123456789" + struct.pack("<I", 0xE3069283)
    assert bytes(codec.decode(encoded, 9)) == b"123456789"
    with pytest.raises(ValueError):
        codec.decode(encoded[:-1] + b"\0", 9)


@pytest.mark.parametrize(("version", "shards"), [(2, None), (3, None), (3, (10,))])
def test_pitfall_18_shrink_then_grow_shows_fill(
    tmp_path: Path, version: int, shards: tuple[int, ...] | None
) -> None:
    array = make(
        tmp_path / "a",
        np.arange(1, 16),
        chunks=(5,),
        shards=shards,
        zarr_format=version,
        fill_value=-1,
    )
    array.resize((12,))
    array.resize((15,))
    expected = [*range(1, 13), -1, -1, -1]
    assert array[...].tolist() == expected
    assert stash.open(str(tmp_path / "a"))[...].tolist() == expected
    assert by_zarr(tmp_path / "a").tolist() == expected
    array.resize((3,))
    array.resize((15,))
    assert by_zarr(tmp_path / "a").tolist() == [1, 2, 3] + [-1] * 12


def test_pitfall_19_names_that_differ_in_case_stay_apart(tmp_path: Path) -> None:
    stores: list[Any] = [{}, str(tmp_path / "g")]
    for store in stores:
        group = stash.open_group(store, mode="a")
        upper = group.create("A", shape=(1,), dtype="i4")
        upper[0] = 1
        try:
            lower = group.create("a", shape=(1,), dtype="i4")
        except AlreadyExists:
            assert (tmp_path / "G").exists(), "only where the file system folds case"
            continue
        lower[0] = 2
        assert (group["A"][0], group["a"][0]) == (1, 2)


def test_pitfall_20_not_a_number_in_attributes(tmp_path: Path) -> None:
    attributes = {"a": float("nan"), "b": [float("inf"), -float("inf")]}
    zarr.create_array(str(tmp_path / "a"), shape=(1,), dtype="i4", attributes=attributes)
    assert b"NaN" in (tmp_path / "a" / "zarr.json").read_bytes()
    read = stash.open(str(tmp_path / "a")).attrs
    assert np.isnan(read["a"]) and list(read["b"]) == [np.inf, -np.inf]
    for version in (2, 3):
        path = tmp_path / str(version)
        stash.create(str(path), shape=(1,), dtype="i4", attributes=attributes, zarr_format=version)
        theirs = zarr.open_array(str(path), mode="r").attrs
        assert np.isnan(theirs["a"]) and theirs["b"] == [np.inf, -np.inf]
    assert json.loads(zarr2.encode(attributes))["b"] == attributes["b"]
