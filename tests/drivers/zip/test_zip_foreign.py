"""What others made: files that are no zip are left alone, and archives keep what is theirs."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.zip import ZipDriver, compact
from tensorstash.errors import (
    Conflict,
    Corrupt,
    DriverError,
    Invalid,
    StashError,
    TimedOut,
    Unsupported,
)
from tensorstash.registry import connect
from tests.support import zips
from tests.support.zips import MAKES, VALUES, content, files, read


def tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return data.getvalue()


NO_ZIPS = {
    "text": b"my only copy\n" * 1000,
    "one byte": b"x",
    "zeros": bytes(200_000),
    "tar": tar(),
    "end record in it": b"a text of PK\5\6 and more" * 10,
    "png": b"\x89PNG\r\n\x1a\n" + os.urandom(3000),
    "a part of an end": b"PK\5\6" + bytes(10),
    "a part of a header": b"PK\3\4" + bytes(10),
    "large": os.urandom(1 << 20).replace(b"PK", b"pk"),
    "almost ours": b"PK\0\0tensorstash\n" + os.urandom(100),
}
USES: dict[str, Callable[[str, ZipDriver], Any]] = {
    "save": lambda url, d: stash.save(url, np.arange(3)),
    "overwrite": lambda url, d: stash.save(url, np.arange(3), overwrite=True),
    "below": lambda url, d: stash.save(f"{url.replace('zip://', 'zip://in::')}", np.arange(3)),
    "open a": lambda url, d: stash.open(url, "a", shape=(3,), dtype="i4"),
    "open w": lambda url, d: stash.open(url, "w", shape=(3,), dtype="i4"),
    "open r": lambda url, d: stash.open(url),
    "group": lambda url, d: stash.create_group(url),
    "put": lambda url, d: d.put("k", b"v"),
    "put if absent": lambda url, d: d.put("k", b"v", if_absent=True),
    "put many": lambda url, d: d.put_many([("k", b"v")]),
    "delete": lambda url, d: d.delete("k"),
    "delete many": lambda url, d: d.delete_many(["k"]),
    "delete prefix": lambda url, d: d.delete_prefix(""),
    "get": lambda url, d: d.get("k"),
    "get into": lambda url, d: d.get_into("k", memoryview(bytearray(3))),
    "tag": lambda url, d: d.tag("k"),
    "list": lambda url, d: [*d.list()],
    "list dir": lambda url, d: d.list_dir(),
    "sizes": lambda url, d: [*d.sizes()],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", NO_ZIPS)
def test_what_is_no_zip_is_left_alone(tmp_path: Path, kind: str, use: str) -> None:
    path = tmp_path / "thesis"
    path.write_bytes(NO_ZIPS[kind])
    with pytest.raises((Invalid, Corrupt), match="thesis") as caught:
        USES[use](f"zip://{path}", ZipDriver(path))
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == NO_ZIPS[kind]
    assert files(tmp_path) == ["thesis"]


@pytest.mark.parametrize("use", USES)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, use: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mkdir(tmp_path / "folder")
    for name in ("fifo", "folder"):
        path = tmp_path / name
        with pytest.raises((Invalid, DriverError), match=name):
            USES[use](f"zip://{path}", ZipDriver(path))


def test_a_link_to_an_archive_is_the_archive(tmp_path: Path) -> None:
    real, link = tmp_path / "real.zip", tmp_path / "link.zip"
    os.symlink("real.zip", link)
    (tmp_path / "elsewhere").mkdir()
    os.symlink("../link.zip", tmp_path / "elsewhere/other.zip")
    stash.save(f"zip://{link}", np.arange(200_000), codecs=None, chunks=100_000)
    for i, path in enumerate((link, real, tmp_path / "elsewhere/other.zip")):
        a = stash.open(f"zip://{path}", "r+")
        for value in range(6):  # more than once written anew
            a[...] = value + i
        a.append(np.arange(3))
        with a.driver.lock("zarr.json"), pytest.raises(TimedOut):
            stash.open(f"zip://{real}", "r+", lock_timeout=0.05).append([1])
        assert stash.open(f"zip://{real}")[0] == 5 + i
    assert link.is_symlink()
    assert files(tmp_path) == ["elsewhere", "link.zip", "real.zip"]
    assert files(tmp_path / "elsewhere") == ["other.zip"]
    assert len(stash.open(f"zip://{link}")) == 200_009


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.zip").touch()
    stash.save(f"zip://{tmp_path}/x.zip", np.arange(3))
    assert list(stash.open(f"zip://{tmp_path}/x.zip")[...]) == [0, 1, 2]


# -- what is theirs stays -------------------------------------------------------------


@pytest.mark.parametrize("make", [*MAKES, "info-zip"])
def test_every_make_is_read_and_written_to(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x.zip"
    (zips.info_zip if make == "info-zip" else MAKES[make])(path)
    assert read(path) == VALUES
    driver = ZipDriver(path)
    assert driver.get("c/9") is None
    driver.put("new", b"1" * 1000)
    driver.put("c/1", b"2")
    driver.delete("c/2")
    after = {**VALUES, "new": b"1" * 1000, "c/1": b"2"}
    del after["c/2"]
    assert read(path) == content(path) == after
    assert subprocess.run(["unzip", "-tqq", path], capture_output=True).returncode < 2


def described(path: Path) -> dict[str, tuple[Any, ...]]:
    with zipfile.ZipFile(path) as archive:
        return {
            i.filename: (i.comment, i.extra, i.external_attr, i.date_time, i.create_system)
            for i in archive.infolist()
        }


def theirs(path: Path) -> None:
    """Everything that a zip can say of its members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"about all"
        for i, key in enumerate([*VALUES, "folder/", "folder/link"]):
            info = zipfile.ZipInfo(key, (1999, 12, 31, 23, 59, 58))
            info.external_attr = (0o100755 if i % 2 else 0o120777) << 16
            info.comment = b"about %d" % i
            info.extra = struct.pack("<2H4s", 0x5354, 4, b"ours")
            archive.writestr(info, VALUES.get(key, b""))
    path.write_bytes(b"#!/bin/sh\nexec unzip $0\n" + path.read_bytes())


@pytest.mark.parametrize("anew", [False, True])
def test_what_others_say_of_their_members_stays(
    tmp_path: Path, anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    theirs(path)
    os.chmod(path, 0o750)
    before, prefix = described(path), path.read_bytes()[:24]
    if anew:
        monkeypatch.setattr(compact, "_WASTE", 1000)
    driver = ZipDriver(path)
    for i in range(20):
        driver.put("k", bytes([i]) * 1000)
    assert (path.stat().st_size < 10_000) is anew
    after = described(path)
    assert after.pop("k")
    assert after == before
    assert path.read_bytes()[:24] == prefix
    assert path.stat().st_mode & 0o777 == 0o750
    with zipfile.ZipFile(path) as archive:
        assert archive.comment == b"about all"
    found = content(path)
    assert found.pop("k") == bytes([19]) * 1000
    assert found == {**VALUES, "folder/link": b""}


def test_bytes_between_members_are_not_ours_to_drop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the signing block of Android packages, between the last member and the directory.
    path = tmp_path / "x.zip"
    zips.plain(path)
    data = path.read_bytes()
    at = data.index(b"PK\1\2")
    block = b"signed by nobody" * 1000
    end = data[-22:-6] + struct.pack("<LH", at + len(block), 0)
    path.write_bytes(data[:at] + block + data[at:-22] + end)
    assert content(path) == VALUES
    monkeypatch.setattr(compact, "_WASTE", 1000)
    driver = ZipDriver(path)
    for i in range(60):
        driver.put("k", bytes([i]) * 1000)
        assert path.read_bytes()[at:].startswith(block)
    assert content(path) == {**VALUES, "k": bytes([59]) * 1000}


@pytest.mark.parametrize("make", MAKES)
def test_dead_bytes_go_from_every_make(
    tmp_path: Path, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    MAKES[make](path)
    size = path.stat().st_size
    monkeypatch.setattr(compact, "_WASTE", 1000)
    driver = ZipDriver(path)
    for i in range(100):
        driver.put("k", bytes([i]) * 1000)
    assert path.stat().st_size < 2 * (size + 2000)
    assert content(path) == read(path) == {**VALUES, "k": bytes([99]) * 1000}


def test_a_hard_link_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    zips.ours(path)
    os.link(path, tmp_path / "other.zip")
    monkeypatch.setattr(compact, "_WASTE", 1000)
    for i in range(20):
        ZipDriver(path).put("k", bytes([i]) * 1000)
    assert read(tmp_path / "other.zip")["k"] == bytes([19]) * 1000


def test_where_there_is_no_room_for_two_it_is_not_tried_at_each_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    zips.ours(path)
    tries = 0

    def copied(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compact, "_WASTE", 1000)
    monkeypatch.setattr(compact, "_copied", copied)
    driver = ZipDriver(path)
    for i in range(100):
        driver.put("k", bytes([i]) * 1000)
    assert 0 < tries < 12
    assert read(path)["k"] == bytes([99]) * 1000
    monkeypatch.undo()
    monkeypatch.setattr(compact, "_WASTE", 1000)
    for _ in range(120):
        driver.put("k", b"1" * 1000)
    assert path.stat().st_size < 100_000


def test_members_of_others_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for value in (b"old", b"new"):
            archive.writestr("k", value)
            archive.writestr("other", value)
    driver = ZipDriver(path)
    assert (driver.get("k"), [*driver.list()]) == (b"new", ["k", "other"])
    driver.put("z", b"1")
    with zipfile.ZipFile(path) as archive:
        assert archive.read("k") == b"new"
        assert len(archive.infolist()) == 5
    driver.delete("k")
    assert ZipDriver(path).get("k") is None
    driver.put("other", b"newest")
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["other", "z"]


# -- names ----------------------------------------------------------------------------


def renamed(path: Path, names: list[tuple[bytes, bytes]], flags: int = 0) -> None:
    """Other bytes of the same length for names, at the members and in the directory."""
    data = path.read_bytes()
    for old, new in names:
        assert len(old) == len(new)
        assert data.count(old) == 2
        data = data.replace(old, new)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", [b"\\c\\0", b"/c/0", b"./c/0", b"c//0", b"c\\0", b"c/./0", b"//c/0", b"/c\\./0"]
)
def test_other_spellings_of_a_key(tmp_path: Path, name: bytes) -> None:
    path, stand_in = tmp_path / "x.zip", "~" * len(name)
    ZipDriver(path).put(stand_in, b"value")
    ZipDriver(path).put("k", b"1")
    renamed(path, [(stand_in.encode(), name)])
    driver = ZipDriver(path)
    assert driver.get("c/0") == b"value"
    assert sorted(driver.list()) == ["c/0", "k"]
    assert driver.list_dir() == (["k"], ["c"])
    with pytest.raises(Conflict):
        driver.put("c/0", b"2", if_absent=True)
    driver.put("c/0", b"new")
    assert content(path) == {"k": b"1", "c/0": b"new"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"../c/0", r"'\.\.'"),
        (b"c/0\0x", "NUL"),
        (b"c/0/", "folder"),
        (b"c/../0", r"'\.\.'"),
    ],
)
def test_names_that_are_no_keys(tmp_path: Path, name: bytes, why: str) -> None:
    path, stand_in = tmp_path / "x.zip", "~" * len(name)
    ZipDriver(path).put(stand_in, b"value")
    ZipDriver(path).put("k", b"1")
    renamed(path, [(stand_in.encode(), name)])
    driver = ZipDriver(path)
    for use in (lambda: driver.get("c/0"), lambda: driver.tag("c/0"), lambda: driver.delete("c/0")):
        with pytest.raises(Corrupt, match=why):
            use()
    with pytest.raises(Corrupt, match=why):
        driver.put("c/0", b"2")
    assert driver.get("c/1") is None
    assert driver.get("k") == b"1"
    assert sorted(driver.list()) == ["c/0", "k"]  # what cannot be read is not hidden
    driver.put("l", b"2")
    assert name in path.read_bytes()
    assert ZipDriver(path).get("l") == b"2"


def test_two_names_for_one_key(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    driver = ZipDriver(path)
    driver.put("c/0", b"1")
    driver.put("c~0", b"2")
    renamed(path, [(b"c~0", b"c\\0")])
    with pytest.raises(Corrupt, match="two names"):
        driver.get("c/0")
    assert driver.get("c/1") is None


def test_names_that_are_not_ascii(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("größe", b"1")  # as UTF-8, which is said
        archive.writestr("x" * 6, b"2")  # as UTF-8, unsaid
        archive.writestr("y" * 5, b"3")  # as code page 437
        info = zipfile.ZipInfo("z" * 5)  # by the extra field
        field = b"\1" + struct.pack("<L", zlib.crc32(b"z" * 5)) + "ünï".encode()
        info.extra = struct.pack("<2H", 0x7075, len(field)) + field
        archive.writestr(info, b"4")
    renamed(path, [(b"x" * 6, "ö/ä!".encode()), (b"y" * 5, "naïve".encode("cp437"))])
    driver = ZipDriver(path)
    assert {key: driver.get(key) for key in driver.list()} == {
        "größe": b"1",
        "ö/ä!": b"2",
        "naïve": b"3",
        "ünï": b"4",
    }


@pytest.mark.parametrize("key", ["k" * 70_000, "ä" * 40_000, "\ud800", "a/" * 40_000 + "b"])
def test_names_that_a_zip_cannot_hold(tmp_path: Path, key: str) -> None:
    driver = ZipDriver(tmp_path / "x.zip")
    driver.put("k", b"1")
    before = (tmp_path / "x.zip").read_bytes()
    for use in (
        lambda: driver.put(key, b""),
        lambda: driver.put_many([("l", b""), (key, b"")]),
        lambda: driver.get(key),
        lambda: driver.get_into(key, memoryview(bytearray(1))),
        lambda: driver.tag(key),
        lambda: driver.delete(key),
        lambda: driver.lock(key).__enter__(),
    ):
        with pytest.raises(Invalid) as caught:
            use()
        assert len(str(caught.value)) < 500
    assert (tmp_path / "x.zip").read_bytes() == before
    driver.put("k" * 65_535, b"long")
    assert ZipDriver(tmp_path / "x.zip").get("k" * 65_535) == b"long"


# -- refused by name ------------------------------------------------------------------


def refused(path: Path, error: type[StashError], match: str) -> None:
    before = path.read_bytes()
    for change in (
        lambda d: d.put("c/1", b""),
        lambda d: d.put("new", b""),
        lambda d: d.put_many([("new", b"")]),
        lambda d: d.delete("c/1"),
        lambda d: d.delete_prefix("c/"),
    ):
        with pytest.raises(error, match=match):
            change(ZipDriver(path))
    assert path.read_bytes() == before


def test_one_part_of_several(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zips.plain(path)
    data = path.read_bytes()
    path.write_bytes(data[:-18] + struct.pack("<2H", 1, 1) + data[-14:])
    refused(path, Unsupported, "in several")
    with pytest.raises(Unsupported, match="in several"):
        ZipDriver(path).get("c/1")


def test_an_encrypted_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zips.plain(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 9] |= 0x20
    path.write_bytes(data)
    refused(path, Unsupported, "encrypted")
    with pytest.raises(Unsupported, match="encrypted"):
        ZipDriver(path).get("c/1")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_and_passwords_concern_their_members_only(
    tmp_path: Path, method: int
) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("k", b"1" * 100, method)
        archive.writestr("l", b"2")
        archive.writestr("m", b"3")
    data = bytearray(path.read_bytes())
    for sign, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.rindex(sign) + at] |= 1
    path.write_bytes(data)
    driver = ZipDriver(path)
    for key in "km":
        for span in (None, stash.driver.Span(0, 1)):
            with pytest.raises(Unsupported, match="encrypted or compressed"):
                driver.get(key, span)
    assert driver.get("l") == b"2"
    driver.put("n", b"4")
    assert sorted(ZipDriver(path).list()) == ["k", "l", "m", "n"]


@pytest.mark.parametrize("tail", [b"a text", os.urandom(5000), b"PK\3\4 and so on"])
def test_what_follows_an_archive_stays(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "x.zip"
    zips.extracting(path)
    path.write_bytes(path.read_bytes() + tail)
    driver = ZipDriver(path)
    assert driver.get("c/1") == VALUES["c/1"]
    with pytest.raises(Corrupt, match="follow its directory"):
        driver.get("c/9")
    refused(path, Corrupt, "follow its directory")


def test_a_padded_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zips.plain(path)
    path.write_bytes(path.read_bytes() + bytes(1024))
    assert read(path) == VALUES
    assert ZipDriver(path).get("c/9") is None
    refused(path, Corrupt, "1024 bytes follow")


def test_a_zip_within_a_tar(tmp_path: Path) -> None:
    zips.plain(tmp_path / "x.zip")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x.zip", "x.zip")
    refused(tmp_path / "x.tar", Corrupt, "follow its directory")


def test_a_zip_within_a_zip_is_not_taken_for_it(tmp_path: Path) -> None:
    inner, path = tmp_path / "inner.zip", tmp_path / "x.zip"
    ZipDriver(inner).put("zarr.json", b"of the inner one")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("zarr.json", b"of the outer one")
        archive.write(inner, "inner.zip")
        archive.writestr("last", b"1")
    assert ZipDriver(path).get("zarr.json") == b"of the outer one"
    whole = path.read_bytes()
    stop = whole.index(inner.read_bytes()) + len(inner.read_bytes())
    for size in [*range(stop - 30, stop + 40), *range(len(whole) - 60, len(whole))]:
        path.write_bytes(whole[:size])
        try:
            assert ZipDriver(path).get("zarr.json") == b"of the outer one"
        except Corrupt as error:
            assert "x.zip" in str(error)
        try:
            ZipDriver(path).put("new", b"1")
        except Corrupt:
            assert path.read_bytes() == whole[:size]
        else:
            assert size > whole.rindex(b"PK\1\2") - 100
            assert content(path)["zarr.json"] == b"of the outer one"


def test_two_zips_one_behind_the_other(tmp_path: Path) -> None:
    zips.plain(tmp_path / "a.zip")
    ZipDriver(tmp_path / "b.zip").put("c/1", b"of b")
    path = tmp_path / "x.zip"
    path.write_bytes((tmp_path / "a.zip").read_bytes() + (tmp_path / "b.zip").read_bytes())
    with pytest.raises(Corrupt, match="take them apart"):
        ZipDriver(path).get("c/1")
    refused(path, Corrupt, "take them apart")


# -- an archive that is not a local file ----------------------------------------------


@pytest.mark.parametrize("kind", ["text", "tar", "large"])
def test_what_is_no_zip_elsewhere(kind: str) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/far/x.zip", NO_ZIPS[kind])
    try:
        for use in (
            lambda d: d.get("k"),
            lambda d: d.tag("k"),
            lambda d: [*d.list()],
            lambda d: d.list_dir(),
        ):
            with pytest.raises(StashError, match=r"x\.zip"):
                use(connect("zip://::memory://far/x.zip", {}))
        with pytest.raises(StashError, match=r"x\.zip"):
            stash.open("zip://::memory://far/x.zip")
        with pytest.raises(StashError):
            stash.save("zip://::memory://far/x.zip", np.arange(3))
        assert fs.cat_file("/far/x.zip") == NO_ZIPS[kind]
    finally:
        fs.rm("/far", recursive=True)
