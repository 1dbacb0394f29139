"""What cannot be written in place is refused, by the error that fits, before anything is stored."""

from __future__ import annotations

import errno
import os
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.shm import ShmDriver
from tensorstash.errors import (
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NoSpace,
    NotFound,
    Unsupported,
)


@pytest.mark.parametrize(
    "how",
    [
        {"codecs": "zstd"},
        {"codecs": "crc32c"},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"order": "F"},
        {"shards": (4, 4), "chunks": (2, 2)},
        {"zarr_format": 2},
        {"dtype": str},
        {"dtype": bytes},
        {"attributes": {"tensorstash_in_place": True}},
    ],
    ids=str,
)
def test_layouts_that_are_no_plain_memory(how: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        stash.create(tmp_path / "a", (4, 4), **{"dtype": "i4", "in_place": True, **how})
    assert not (tmp_path / "a").exists()


def test_places_that_cannot(tmp_path: Path) -> None:
    for place in ({}, f"zip://{tmp_path}/a.zip"):
        with pytest.raises(Unsupported, match="writes nothing in place; leave in_place out"):
            stash.create(place, 4, "i4", in_place=True)
        with pytest.raises(Unsupported, match="writes nothing in place"):
            stash.create_records(place, {"x": "i4"}, in_place=True)
        with pytest.raises(NotFound):
            stash.open(place)
        group = stash.create_group(place)
        with pytest.raises(Unsupported):
            group.create("x", 3, "i4", in_place=True)
        r = stash.create_records(place, {"x": "i4"}, 3, overwrite=True)
        with pytest.raises(Unsupported):
            r.add_field("y", "i4", in_place=True)
        assert r.names == ("x",)
    with pytest.raises(Unsupported):
        stash.copy(stash.create(tmp_path / "a", 3, "i4", in_place=True), {}, in_place=True)


def test_fields_of_any_length(tmp_path: Path) -> None:
    for field in (str, bytes, stash.json, stash.ragged("i4")):
        with pytest.raises(Invalid, match=r"'t' is .*: its rows vary in size"):
            stash.create_records(tmp_path / "r", {"x": "i4", "t": field}, in_place=True)
    with pytest.raises(Invalid, match="leave shards out"):
        stash.create_records(tmp_path / "r", {"x": "i4"}, in_place=True, rows_per_shard=4)
    with pytest.raises(Invalid, match=r"'x'.*cannot be written in place.*zstd"):
        stash.create_records(tmp_path / "r", {"x": "i4"}, in_place=True, codecs="zstd")
    r = stash.create_records(tmp_path / "r", {"x": "i4"}, 3, in_place=True)
    r.add_field("t", str, ["a", "b", "c"])
    r[1] = {"x": 4, "t": "d"}
    assert r[1]["t"] == "d" and r["x"].in_place
    r.drop_field("t")
    r.add_field("s", "i4", [1, 2, 3], rows_per_shard=4)
    r.add_field("z", "i4", [1, 2, 3], codecs="zstd")
    assert not r["s"].in_place and not r["z"].in_place
    r.setter()(1, {"x": 5, "s": 6, "z": 7})
    assert r[1]["s"] == 6 and r["x"][1] == 5


def test_what_says_how_chunks_are_written_is_no_attribute_of_the_user(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", 3, "i4", codecs=None)
    b = stash.create(tmp_path / "b", 3, "i4", in_place=True)
    for array in (a, b):
        with pytest.raises(Invalid, match="says how chunks are written"):
            array.attrs["tensorstash_in_place"] = True
        with pytest.raises(Invalid):
            array.attrs.update(tensorstash_in_place=False)
    a.attrs["x"] = b.attrs["x"] = 1
    assert not stash.open(tmp_path / "a").in_place and stash.open(tmp_path / "b").in_place
    # On chunks that cannot be, it says nothing.
    theirs = zarr.create_array(tmp_path / "c", shape=3, dtype="i4", chunks=3)
    theirs.attrs["tensorstash_in_place"] = True
    c = stash.open(tmp_path / "c", "r+")
    c[1] = 5
    assert not c.in_place and c[...].tolist() == [0, 5, 0]


def test_a_handle_notices_that_an_array_is_in_place_no_more(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", 3, "i4", in_place=True)
    a[0] = 1
    theirs = zarr.open_array(tmp_path / "a", mode="r+")
    theirs.attrs.put({})
    with pytest.raises(Conflict, match="chunks are replaced now"):
        a[1] = 2
    again = stash.open(tmp_path / "a", "r+")
    again[1] = 2
    assert not again.in_place and again[...].tolist() == [1, 2, 0]


def test_a_file_of_several_links(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (3, 2), "i4", chunks=(4, 2), in_place=True)
    put = a.setter()
    put(1, [1, 2])
    os.link(tmp_path / "a/c/0/0", tmp_path / "snapshot")
    before = (tmp_path / "snapshot").read_bytes()
    for write in (lambda: put(1, [3, 4]), lambda: a.__setitem__(0, 1), lambda: a.append([[1, 2]])):
        with pytest.raises(Denied, match="has 2 links, and every other would change too"):
            write()
    assert (tmp_path / "snapshot").read_bytes() == before
    assert a[1].tolist() == [1, 2]
    (tmp_path / "snapshot").unlink()
    put(1, [3, 4])
    assert a[1].tolist() == [3, 4]


def test_a_symbolic_link_is_read_and_not_written_through(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (4, 2), "i4", in_place=True)
    a[1] = 5
    file = tmp_path / "a/c/0/0"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert a[1].tolist() == [5, 5]
    with pytest.raises(Denied, match="symbolic link"):
        a[1] = 6
    assert a[1].tolist() == [5, 5]


def test_a_file_of_another_size_is_damage(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (4, 2), "i4", chunks=(2, 2), in_place=True)
    a[...] = 1
    file = tmp_path / "a/c/1/0"
    for size in (0, 9, 17):
        file.unlink()
        file.write_bytes(bytes(size))
        for use in (lambda: a[3], lambda: a[[0, 3]], lambda: a.__setitem__(3, 1)):
            with pytest.raises(Corrupt, match=re.escape("chunk (1, 0)")) as caught:
                use()
            assert caught.value.chunk == (1, 0)
        assert a[1].tolist() == [1, 1]
        a[2:] = 7  # all of it: repaired
        assert a[3].tolist() == [7, 7]


def test_a_file_cut_short_under_an_open_map(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (4, 2), "i4", in_place=True)
    a[...] = 1
    assert a[[0, 1]].sum() == 4
    os.truncate(tmp_path / "a/c/0/0", 5)
    for use in (lambda: a[3], lambda: a[[0, 3]], lambda: a.__setitem__(3, 1)):
        with pytest.raises(Corrupt):
            use()


def test_a_full_disk_leaves_no_short_file(tmp_path: Path, monkeypatch: Any) -> None:
    def full(fd: int, start: int, nbytes: int) -> None:
        os.pwrite(fd, b"half", start)
        raise OSError(errno.ENOSPC, "full")

    a = stash.create(tmp_path / "a", (4, 2), "i4", in_place=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(NoSpace):
            a[1] = 5
    assert [f.name for f in (tmp_path / "a").rglob("*") if f.is_file()] == ["zarr.json"]
    a[1] = 5
    assert a[...].sum() == 10


def test_systems_that_cannot_reserve_room(tmp_path: Path, monkeypatch: Any) -> None:
    def unknown(fd: int, start: int, nbytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    a = stash.create(tmp_path / "a", (400_000, 2), "i4", chunks=(300_000, 2), in_place=True)
    a[399_999] = 5
    assert (tmp_path / "a/c/1/0").stat().st_size == 2_400_000
    monkeypatch.delattr(os, "posix_fallocate")
    a[1] = 5
    assert a[...].sum() == 20


def test_shrinking_while_mapped(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (8, 2), "i4", chunks=(4, 2), in_place=True)
    a[...] = 1
    view = a.mmap(slice(4, 8))[1:]
    other = stash.open(tmp_path / "a", "r+")
    for handle in (a, other):
        with pytest.raises(Unsupported, match="mapped by this process"):
            handle.resize((3, 2))
    a.resize((9, 2))
    assert view.sum() == 6
    del view
    other.resize((3, 2))
    a.refresh().resize((8, 2))
    assert a[...].sum() == 6


def test_flush(tmp_path: Path, monkeypatch: Any) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1]
    )
    a = stash.create(tmp_path / "g/a", (8, 2), "i4", chunks=(4, 2), in_place=True)
    b = stash.create(tmp_path / "b", (8, 2), "i4", chunks=(4, 2), in_place=True)
    a[1] = b[1] = 1
    a.flush()
    names = {os.path.relpath(path, tmp_path) for path in synced}
    assert {"g/a/c/0/0", "g/a/c/0", "g/a/c", "g/a", "g/a/zarr.json"} <= names
    assert not any(name.startswith("b/") for name in names)
    synced.clear()
    a.flush()
    assert "g/a/c/0/0" not in {os.path.relpath(path, tmp_path) for path in synced}
    a[7] = 1
    monkeypatch.setattr(os, "fsync", _broken)
    with pytest.raises(stash.errors.DriverError, match="cannot flush"):
        a.flush()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    a.flush()
    assert str(tmp_path / "g/a/c/1/0") in synced
    synced.clear()
    durable = stash.open(tmp_path / "g/a", "r+", options={"fsync": True})
    durable[1] = 3
    assert synced == [str(tmp_path / "g/a/c/0/0")]
    with pytest.raises(Unsupported, match="not written in place"):
        stash.create({}, 3, "i4").flush()
    with pytest.raises(Unsupported, match="no field that is written in place"):
        stash.create_records({}, {"x": "i4"}).flush()


def _broken(fd: int) -> None:
    raise OSError(errno.EIO, "broken")


def test_what_is_deleted_is_not_kept_open(tmp_path: Path) -> None:
    stash.create_group(tmp_path)
    a = stash.create(tmp_path / "a", (8, 2), "i4", chunks=(4, 2), in_place=True)
    a[...] = 1
    assert a[[1, 5]].sum() == 4
    assert sum("/a/c/" in path for path in open_files()) >= 2
    del stash.open_group(tmp_path, "r+")["a"]
    assert not [path for path in open_files() if str(tmp_path) in path]


def test_shared_memory_is_given_back() -> None:
    driver = ShmDriver(f"test-{uuid.uuid4().hex}")
    name = driver.name
    a = stash.create(driver, (8, 2), "i4", chunks=(4, 2), in_place=True)
    put = a.setter()
    put(1, 5)
    assert a[[1, 5]].sum() == 10 and [path for path in open_files() if name in path]
    a.close()
    driver.close()
    del a, put, driver
    assert not [path for path in open_files() if name in path]


def open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return found


def test_only_so_many_files_stay_open(tmp_path: Path) -> None:
    a = stash.create(tmp_path / "a", (600, 2), "i4", chunks=(1, 2), in_place=True)
    a[...] = np.arange(1200).reshape(600, 2)
    before = len(open_files())
    rows = np.random.default_rng(0).permutation(600)
    assert np.array_equal(a[rows], np.arange(1200).reshape(600, 2)[rows])
    put = a.setter()
    for row in rows.tolist():
        put(row, row)
    assert np.array_equal(a[rows, 1], rows)
    # 128 files of the driver, 32 of the setter, each twice: a map has a descriptor of its own.
    assert len(open_files()) <= before + 2 * (128 + 32)
    assert FileDriver(tmp_path).get("a/c/9/0") is not None


@pytest.mark.parametrize("how", ["other fill", "compressed"])
def test_a_setter_of_records_that_were_replaced_leaves_nothing(how: str, tmp_path: Path) -> None:
    schema = {"x": ((4,), "f4")}
    place = {"rows_per_chunk": 8, "overwrite": True}
    old = stash.create_records(tmp_path / "r", schema, 100, in_place=True, **place)
    put = old.setter()
    put(0, {"x": np.ones(4, "f4")})
    more = {"in_place": True, "fill_value": 7} if how == "other fill" else {"fill_value": 7}
    new = stash.create_records(tmp_path / "r", schema, 100, **place, **more)
    with pytest.raises(Conflict):
        put(50, {"x": np.ones(4, "f4")})
    assert (new["x"][...] == 7).all()


def test_a_setter_of_one_axis_takes_numbers(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (9,), "i4", chunks=(4,), in_place=True)
    put = array.setter()
    for row, value in enumerate([5, np.int64(6), np.array(7), 8.0]):
        put(row, value)
    assert array[:4].tolist() == [5, 6, 7, 8]


def test_a_file_with_holes_is_written_without_a_map(tmp_path: Path) -> None:
    array = stash.create(tmp_path / "a", (1 << 16, 8), "u1", chunks=(1 << 16, 8), in_place=True)
    array[0] = 1
    file = tmp_path / "a" / "c" / "0" / "0"
    os.truncate(file, 0)
    os.truncate(file, 1 << 19)
    put = array.setter()
    put(9, np.full(8, 3, "u1"))
    assert array[9].tolist() == [3] * 8
    (held,) = put._slot._files.values()
    assert held[0].memory is None
