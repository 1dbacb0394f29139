"""``save``, ``load`` and ``copy``: values and everything that is not asked to change survive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Corrupt, DriverError, Invalid
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver
from tests.support.project import ROOT

DATA = np.arange(63, dtype="float32").reshape(9, 7)
DATA[3, 3], DATA[8, 6] = np.nan, -0.0


def same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype.kind in "TO":
        return bool(one.tolist() == other.tolist())
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


VALUES: dict[str, Any] = {
    "floats": DATA,
    "big endian": DATA.astype(">f8"),
    "strided": DATA[::2, ::-3],
    "Fortran": np.asfortranarray(DATA),
    "empty": np.zeros((0, 5), "i2"),
    "no axes": np.array(5.5),
    "bool": DATA > 3,
    "complex": DATA * 1j,
    "times": np.array(["2020-01-01", "NaT"], "M8[ns]"),
    "records": np.array([(1, 2.5), (3, -0.0)], [("a", ">i4"), ("b", "f8")]),
    "fixed bytes": np.array([b"ab", b"c"]),
    "text": np.array(["é", "", "abc"]),
    "any text": np.array(["é", "", "abc"], np.dtypes.StringDType()),
    "raw": np.frombuffer(bytes(range(12)), "V3"),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_is_saved_is_loaded(name: str, zarr_format: Any, tmp_path: Path) -> None:
    value = VALUES[name]
    array = stash.save(tmp_path / "a", value, zarr_format=zarr_format)
    expected = value.astype(np.dtypes.StringDType()) if value.dtype.kind == "U" else value
    if expected.dtype.kind != "T":
        expected = expected.astype(expected.dtype.newbyteorder("="))
    assert same(stash.load(tmp_path / "a"), expected)
    assert same(array[...], expected)
    assert array.writable


def test_lists_and_numbers_are_saved_as_numpy_takes_them() -> None:
    assert stash.save({}, [[1, 2], [3, 4]]).dtype == np.asarray([1]).dtype
    assert stash.save({}, 2.5)[()] == 2.5
    assert stash.save({}, ["a", "bc"])[...].tolist() == ["a", "bc"]
    assert stash.save({}, [1, 2], dtype="float32").dtype == np.float32
    assert stash.save({}, stash.save({}, DATA).lazy[::2, 1])[...].shape == (5,)
    assert same(stash.save({}, stash.save({}, DATA)), DATA)


def test_save_takes_what_create_takes_and_replaces() -> None:
    store: dict[str, Any] = {}
    stash.save(store, DATA, chunks=(4, 4), attributes={"unit": "K"}, codecs="zstd")
    array = stash.save(store, DATA[:2], chunks=2, dimension_names=("y", "x"))
    assert array.shape == (2, 7)
    assert dict(array.attrs) == {}
    assert array.dimension_names == ("y", "x")
    with pytest.raises(AlreadyExists):
        stash.save(store, DATA, overwrite=False)
    assert same(stash.load(store), DATA[:2])


# -- copy ----------------------------------------------------------------------------------

SOURCES: dict[str, dict[str, Any]] = {
    "v3": {},
    "v3, dots": {"separator": "."},
    "v3, v2 keys": {"key_encoding": "v2"},
    "v3, shards": {"shards": (4, 6), "chunks": (2, 3)},
    "v3, order F": {"order": "F", "codecs": "gzip"},
    "v2": {"zarr_format": 2},
    "v2, order F": {"zarr_format": 2, "order": "F", "codecs": "zlib", "separator": "/"},
    "v2, filters": {"zarr_format": 2, "filters": [{"id": "shuffle", "elementsize": 4}]},
}
CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "chunks": {"chunks": (3, 3)},
    "codecs": {"codecs": "zstd"},
    "attributes": {"attributes": {"new": 1}},
    "fill value": {"fill_value": 7},
}


def source(**options: Any) -> stash.Array:
    array = stash.create(
        {},
        DATA.shape,
        DATA.dtype,
        **{"chunks": (4, 3), **options},
        fill_value=-1,
        attributes={"unit": "K"},
        dimension_names=("y", "x"),
    )
    array[:5] = DATA[:5]
    array[7:] = DATA[7:]
    return array


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", SOURCES)
def test_a_copy_keeps_what_is_not_changed(kind: str, change: str, tmp_path: Path) -> None:
    origin, changes = source(**SOURCES[kind]), CHANGES[change]
    stash.copy(origin, tmp_path / "b", **changes)
    made = stash.open(tmp_path / "b")
    assert same(made[...], origin[...])
    assert made.dimension_names == ("y", "x")
    assert made.spec.zarr_format == origin.spec.zarr_format
    assert made.spec.keys == origin.spec.keys
    kept = {
        "fill_value": (made.fill_value, origin.fill_value),
        "attributes": (
            {k: v for k, v in made.attrs.items() if k[0] != "_"},
            {k: v for k, v in origin.attrs.items() if k[0] != "_"},
        ),
        "chunks": (made.chunks, origin.chunks),
        "codecs": (made.codecs, origin.codecs),
    }
    for name, (ours, theirs) in kept.items():
        if name in changes:
            assert ours != theirs
        elif name != "codecs" or change != "chunks" or "shards" not in SOURCES[kind]:
            assert ours == theirs, name
    if change in ("nothing", "attributes", "fill value"):
        assert made.shards == origin.shards


@pytest.mark.parametrize("kind", SOURCES)
def test_a_copy_to_the_other_format(kind: str) -> None:
    origin = source(**SOURCES[kind])
    other = 5 - origin.spec.zarr_format
    made = stash.copy(origin, {}, zarr_format=other)
    assert made.spec.zarr_format == other
    assert same(made[...], origin[...])
    assert made.dimension_names == ("y", "x")
    assert made.attrs["unit"] == "K"


def test_a_copy_of_another_dtype() -> None:
    origin = source()
    with np.errstate(invalid="ignore"):
        for dtype in ("float64", "bfloat16", "complex64"):
            made = stash.copy(origin, {}, dtype=dtype)
            assert made.dtype.name == dtype
            assert same(made[...], origin[...].astype(made.dtype))
            assert made.fill_value == -1
    whole = stash.save({}, np.arange(10) + 0.5, chunks=4, fill_value=0.5)
    rounded = stash.copy(whole, {}, dtype="uint8")
    assert rounded[...].tolist() == list(range(10))  # 0.5 is no fill value of uint8
    words = stash.copy(stash.save({}, [1, 2, 3]), {}, dtype=str)
    assert words[...].tolist() == ["1", "2", "3"]


def test_shards_come_and_go() -> None:
    origin = source()
    sharded = stash.copy(origin, {}, chunks=(2, 3), shards=(4, 6), codecs="gzip")
    assert (sharded.chunks, sharded.shards) == ((2, 3), (4, 6))
    assert same(sharded[...], origin[...])
    plain = stash.copy(sharded, {}, chunks=(4, 3))
    assert plain.shards is None
    assert same(plain[...], origin[...])


def test_a_copy_reads_each_chunk_once_and_absent_ones_stay_absent() -> None:
    driver = CountingDriver(MemoryDriver())
    origin = stash.create(driver, (100, 10), "f8", chunks=(10, 10), fill_value=-1)
    origin[:30] = 1.5
    store: dict[str, Any] = {}
    driver.reset()
    stash.copy(origin, store)
    assert driver.reads.keys == 10
    assert len([key for key in store if key.startswith("c/")]) == 3


@pytest.mark.parametrize("route", ["file to memory", "memory to file", "file to file"])
def test_a_copy_between_drivers(route: str, tmp_path: Path) -> None:
    memory: dict[str, Any] = {}
    first, _, second = route.partition(" to ")
    origin = tmp_path / "a" if first == "file" else memory
    target = {} if second == "memory" else tmp_path / "b"
    stash.save(origin, DATA, chunks=4, attributes={"unit": "K"})
    made = stash.copy(origin, target)
    assert same(made[...], DATA)
    assert same(stash.load(target), DATA)
    assert dict(made.attrs) == {"unit": "K"}
    with pytest.raises(AlreadyExists):
        stash.copy(origin, target)
    stash.copy(
        origin, target, overwrite=True, options={} if second == "memory" else {"fsync": True}
    )


def test_a_member_of_a_group_is_copied(tmp_path: Path) -> None:
    group = stash.create_group(tmp_path / "g")
    group.create("x", DATA.shape, "f4", chunks=4)[...] = DATA
    assert same(stash.copy(group["x"], tmp_path / "x")[...], DATA)
    with pytest.raises(Invalid, match="over itself"):
        stash.copy(group["x"], tmp_path / "g", overwrite=True)
    assert same(stash.copy(group["x"], tmp_path / "g" / "y")[...], DATA)
    assert sorted(stash.open_group(tmp_path / "g")) == ["x", "y"]


def test_a_copy_shows_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    made = stash.copy(source(), {}, chunks=2, progress=True)
    assert same(made[...], source()[...])
    printed = capsys.readouterr().err
    assert "copy" in printed
    assert "100%" in printed


def test_progress_without_tqdm_says_so_before_anything_is_stored() -> None:
    code = """
import sys
sys.modules["tqdm"] = None
import tensorstash as stash
store = {}
try:
    stash.copy(stash.save({}, [1, 2]), store, progress=True)
except stash.Invalid as error:
    assert "pip install tqdm" in str(error)
    assert not store
else:
    raise SystemExit("no error")
"""
    root = ROOT
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_an_interrupted_copy_can_be_done_again() -> None:
    origin = source()
    before = dict(origin.driver._mapping)  # type: ignore[attr-defined]
    inner = MemoryDriver()

    def when(call: Call) -> Any:
        return "error" if call.verb == "put" and call.key == "c/1/1" else None

    with pytest.raises(DriverError, match="copy again with overwrite=True"):
        stash.copy(origin, FailingDriver(inner, when))
    assert origin.driver._mapping == before  # type: ignore[attr-defined]
    assert inner.get("c/0/0") is not None
    with pytest.raises(Corrupt, match="copy again with overwrite=True"):
        stash.open(inner)
    with pytest.raises(AlreadyExists):
        stash.copy(origin, inner)
    assert same(stash.copy(origin, inner, overwrite=True)[...], origin[...])
