"""Damaged and hostile archives: right bytes or an error of ours, in little memory, and no put
that loses what was there."""

from __future__ import annotations

import os
import random
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.driver import Request, Span
from tensorstash.drivers.posix.descriptor import Descriptor
from tensorstash.drivers.zip import ZipDriver, recover
from tensorstash.errors import Corrupt, Invalid, StashError
from tests.support import zips
from tests.support.zips import MAKES, VALUES, content, read

MIB = 1 << 20


# -- streamed archives ----------------------------------------------------------------


def java(path: Path) -> None:
    """As Java's streams write: deflated, descriptors with a signature."""
    source = path.with_name("Z.java")
    source.write_text(
        """
import java.io.*; import java.util.zip.*;
public class Z { public static void main(String[] a) throws Exception {
  ZipOutputStream z = new ZipOutputStream(new FileOutputStream(a[0]));
  for (int i = 0; i < 5; i++) { z.putNextEntry(new ZipEntry("c/" + i));
    byte[] b = new byte[300 + i]; java.util.Arrays.fill(b, (byte) (65 + i));
    z.write(b); z.closeEntry(); }
  z.close(); } }
"""
    )
    subprocess.run(["java", str(source), str(path)], check=True, capture_output=True)


def piped(path: Path, level: str) -> None:
    """As ``zip -`` writes to a pipe."""
    folder = path.with_name("in")
    (folder / "c").mkdir(parents=True)
    for key, value in VALUES.items():
        (folder / key).write_bytes(value)
    command = f"zip -q{level}D - {' '.join(VALUES)} | cat > {path}"
    subprocess.run(command, shell=True, cwd=folder, check=True)


def rewritten(path: Path, sign: bool, wide: bool) -> None:
    """Descriptors without signature, or with long numbers."""
    zips.streamed(path)
    data, made, entries = path.read_bytes(), b"", []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            begin = info.header_offset + 30 + len(info.filename)
            local = data[info.header_offset : begin + info.compress_size]
            numbers = (info.CRC, info.compress_size, info.file_size)
            entries.append((info, len(made)))
            made += local + b"PK\7\x08" * sign + struct.pack("<LQQ" if wide else "<3L", *numbers)
    start = len(made)
    for info, offset in entries:
        name = info.filename.encode()
        numbers = (info.CRC, info.compress_size, info.file_size, len(name))
        head = (b"PK\1\2", 0x314, 20, 8, 8, 0, 33, *numbers, 0, 0, 0, 0, 0, offset)
        made += struct.pack("<4s6H3L5H2L", *head) + name
    made += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 5, 5, len(made) - start, start, 0)
    path.write_bytes(made)


STREAMS: dict[str, Callable[[Path], None]] = {
    "python": zips.streamed,
    "python stored": zips.streamed_stored,
    "zip": lambda path: piped(path, ""),
    "zip stored": lambda path: piped(path, "0"),
    "plain": lambda path: rewritten(path, False, False),
    "wide": lambda path: rewritten(path, True, True),
    "plain wide": lambda path: rewritten(path, False, True),
    "java": java,
}


@pytest.mark.parametrize("make", STREAMS)
def test_a_streamed_archive_that_was_cut(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x.zip"
    STREAMS[make](path)
    whole = path.read_bytes()
    assert content(path) == read(path) == VALUES
    start = whole.index(b"PK\1\2")
    ends = [*(i for i in range(1, start) if whole[i : i + 4] == b"PK\3\4"), start]
    for size in [*range(1, len(whole), 13), *ends, start + 4, len(whole) - 1]:
        path.write_bytes(whole[:size])
        driver = ZipDriver(path)
        there = sum(end <= size for end in ends)
        for i, (key, value) in enumerate(VALUES.items()):
            if i < there:
                assert driver.get(key) == value
            else:
                with pytest.raises((Corrupt, StashError), match=r"x\.zip"):
                    driver.get(key)
        if size >= start + 4:
            assert driver.get("c/9") is None
            driver.put("new", b"1")
            assert content(path) == {**VALUES, "new": b"1"}
        else:
            for use in (
                lambda d: d.get("c/9"),
                lambda d: [*d.list()],
                lambda d: d.put("c/9", b"1"),
                lambda d: d.put("c/1", b"1"),
                lambda d: d.delete("c/1"),
                lambda d: d.delete("c/9"),
            ):
                with pytest.raises(StashError, match=r"x\.zip"):
                    use(driver)
            assert path.read_bytes() == whole[:size]


def test_what_was_deleted_stays_so_where_the_end_is_cut(tmp_path: Path) -> None:
    driver = ZipDriver(tmp_path / "x.zip")
    for i in range(6):
        driver.put(f"k{i}", b"%d" % i)
    driver.delete("k2")
    driver.put("k1", b"new")
    whole = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole[:-1])
    driver = ZipDriver(tmp_path / "x.zip")
    assert driver.get("k2") is None
    assert driver.get("k1") == b"new"
    driver.put("z", b"1")
    assert sorted(content(tmp_path / "x.zip")) == ["k0", "k1", "k3", "k4", "k5", "z"]


# -- flipped, cut, extended -----------------------------------------------------------


def damaged(path: Path, data: bytes, once: bool = True) -> None:
    """What must hold of any damage: see the head of this file. Of archives that were damaged in
    several places (a member's name, and the directory) values are whole, under whatever name."""
    path.write_bytes(data)
    driver = ZipDriver(path)
    right: dict[str, bytes] = {}
    for key, value in VALUES.items():
        try:
            found = driver.get(key)
        except StashError as error:
            assert "\n" not in str(error)
        else:
            assert found == value or (not once and found in (None, *VALUES.values()))
            if found is not None:
                right[key] = bytes(found)
    for use in (
        lambda: driver.get("c/9"),
        lambda: driver.get_into("c/0", memoryview(bytearray(400))),
        lambda: driver.get("c/0", Span(1, 5)),
        lambda: driver.tag("c/9"),
        lambda: [*driver.list()],
        lambda: [*driver.sizes()],
        lambda: driver.list_dir("c/"),
    ):
        with suppress(StashError):
            use()
    try:
        driver.put("new", b"1")
    except StashError:
        assert path.read_bytes() == data
    else:
        after = ZipDriver(path)
        assert {key: after.get(key) for key in right} == right
        assert after.get("new") == b"1"


def test_an_entry_that_swallows_others_deletes_none(tmp_path: Path) -> None:
    MAKES["deflated"](tmp_path / "x.zip")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    first = data.index(b"PK\1\2")
    second, third = (data.index(b"PK\1\2", first + 49 * k + 4) for k in (0, 1))
    assert third - second == second - first == 46 + 3
    data[first + 28 : first + 30] = (3 + 2 * 49).to_bytes(2, "little")  # the length of its name
    (tmp_path / "x.zip").write_bytes(data)
    driver = ZipDriver(tmp_path / "x.zip")
    for key, value in VALUES.items():
        try:
            assert driver.get(key) == value
        except Corrupt:
            assert key == "c/0"
    with pytest.raises(StashError):
        driver.get("c/9")
    damaged(tmp_path / "x.zip", bytes(data))


def test_each_bit_of_a_directory(tmp_path: Path) -> None:
    zips.ours(tmp_path / "whole.zip")
    whole = (tmp_path / "whole.zip").read_bytes()
    start = whole.index(b"PK\1\2")
    for at in range(start, len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            damaged(tmp_path / "x.zip", bytes(data))


def test_each_bit_of_another_spelling_of_a_name(tmp_path: Path) -> None:
    zips.spelled(tmp_path / "whole.zip")
    whole = (tmp_path / "whole.zip").read_bytes()
    assert read(tmp_path / "whole.zip") == VALUES
    start = whole.index(b"PK\1\2")
    entry = whole.index(b"PK\1\2", start + 4) - start
    for at in range(start, start + 2 * entry):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            damaged(tmp_path / "x.zip", bytes(data))


def test_another_spelling_of_a_name_is_found_without_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zips.spelled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"PK\1\2") + 4])
    driver = ZipDriver(path)
    assert {key: driver.get(key) for key in VALUES} == VALUES
    driver.put("new", b"1")
    assert read(path) == {**VALUES, "new": b"1"}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("seed", range(4))
def test_damage_of_any_kind(tmp_path: Path, make: str, seed: int) -> None:
    MAKES[make](tmp_path / "whole.zip")
    fuzz(tmp_path, (tmp_path / "whole.zip").read_bytes(), seed, 150)


@pytest.mark.long
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("seed", range(4, 12))
def test_damage_of_any_kind_at_length(tmp_path: Path, make: str, seed: int) -> None:
    MAKES[make](tmp_path / "whole.zip")
    fuzz(tmp_path, (tmp_path / "whole.zip").read_bytes(), seed, 2000)


def fuzz(folder: Path, whole: bytes, seed: int, rounds: int) -> None:
    dice = random.Random(seed)
    headers = [i for i in range(len(whole) - 3) if whole[i : i + 2] == b"PK"]
    for _ in range(rounds):
        data = bytearray(whole)
        times = dice.choice((1, 1, 1, 2, 5))
        for _ in range(times):
            at = dice.randrange(len(data))
            if dice.random() < 0.7:  # near a header, where it tells
                at = min(dice.choice(headers) + dice.randrange(60), len(data) - 1)
            kind = dice.randrange(7)
            if kind < 2:
                data[at] ^= 1 << dice.randrange(8)
            elif kind == 2:
                data[at : at + 4] = dice.choice((b"\xff" * 4, bytes(4), dice.randbytes(4)))
            elif kind == 3:
                del data[at:]
            elif kind == 4:
                data += dice.choice((dice.randbytes(dice.randrange(1, 60)), whole[at:]))
            elif kind == 5:
                del data[at : at + dice.randrange(1, 40)]
            else:
                data[at:at] = dice.randbytes(dice.randrange(1, 40))
            if not data:
                data = bytearray(b"x")
        damaged(folder / "x.zip", bytes(data), times == 1)


def test_a_flipped_name_is_no_hole_in_an_array(tmp_path: Path) -> None:
    url = f"zip://{tmp_path}/x.zip"
    stash.save(url, np.arange(1, 41), chunks=(5,), codecs=None)
    path = tmp_path / "x.zip"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[data.rindex(b"c/2") + 2] ^= 0x40
    path.write_bytes(data)
    array = stash.open(url, "r+")
    with pytest.raises(Corrupt, match="at the member"):
        array[...]
    with pytest.raises(Corrupt):
        array[12] = 1
    assert list(array[20:25]) == [21, 22, 23, 24, 25]
    assert path.read_bytes() == data


# -- how much memory ------------------------------------------------------------------


def entry(path: Path, at: int, form: str, *values: int) -> None:
    """Overwrite numbers of the last entry of the directory and of its member's header."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.rindex(b"PK\1\2") + at, *values)
    struct.pack_into(form, data, data.rindex(b"PK\3\4") + at - 2, *values)
    path.write_bytes(data)


def bomb(path: Path, full: int, crc: int = 0) -> None:
    """A deflated member of that many MiB of zeros, of about a thousandth in the file."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = block * full + packer.flush()
    name = b"zarr.json"
    numbers = (crc, len(data), min(full * MIB, 0xFFFFFFFF), len(name), 0)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, *numbers) + name + data
    central = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 33, *numbers, 0, 0, 0, 0, 0)
    central += name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)


def in_little_memory(use: Callable[[], Any], most: int = 16 * MIB) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            use()
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [2**31, 2**40, 2**62, 2**63, 2**64 - 1])
def test_sizes_that_no_file_has(tmp_path: Path, value: int) -> None:
    path = tmp_path / "x.zip"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        for which in range(3):
            with zipfile.ZipFile(path, "w", method) as archive:
                archive.writestr("k", b"v" * 100)
            data = path.read_bytes()
            start = data.index(b"PK\1\2")
            head = bytearray(data[start : start + 47])
            struct.pack_into("<L", head, (24, 20, 42)[which], 0xFFFFFFFF)
            struct.pack_into("<H", head, 30, 12)
            size = 47 + 12
            end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size, start, 0)
            path.write_bytes(data[:start] + head + struct.pack("<2HQ", 1, 8, value) + end)
            driver = ZipDriver(path)
            in_little_memory(lambda d=driver: d.get("k"))
            in_little_memory(lambda d=driver: d.get("k", Span(5, 9)))
            in_little_memory(lambda d=driver: d.get_into("k", memoryview(bytearray(100))))
            in_little_memory(lambda d=driver: d.put("l", b""))


def test_a_megabyte_does_not_become_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    bomb(path, 3 << 10)
    driver = ZipDriver(path)
    in_little_memory(lambda: driver.get("zarr.json"))
    in_little_memory(lambda: stash.open(f"zip://{path}"))
    in_little_memory(lambda: [*driver.get_many([Request("zarr.json", most=MIB)])])
    in_little_memory(lambda: [*driver.get_many_tagged([Request("zarr.json", most=MIB)])])
    assert (driver.get_into("zarr.json", memoryview(bytearray(10))) or 0) > 10
    # The size that is told is a lie: no more than that is unpacked.
    entry(path, 24, "<L", 100)
    in_little_memory(lambda: driver.get("zarr.json"))


def test_what_a_caller_allows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    bomb(path, 257, zlib.crc32(bytes(257 * MIB)))
    [(_, value)] = ZipDriver(path).get_many([Request("zarr.json", most=257 * MIB)])
    assert value is not None
    assert len(value) == 257 * MIB


def test_a_part_of_a_deflated_value_takes_no_more_than_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    whole = os.urandom(MIB) + bytes(60 * MIB)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("k", whole)
    driver = ZipDriver(path)
    tracemalloc.start()
    try:
        found = driver.get_ranges("k", [Span(MIB - 4, MIB + 4), Span(-8), Span(7, 9)])
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()
    assert found is not None
    assert found[0] == [whole[MIB - 4 : MIB + 4], bytes(8), whole[7:9]]


def test_recovery_unpacks_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    bomb(path, 3 << 10)
    data = bytearray(path.read_bytes())
    data[6] |= 8  # streamed: where it ends is told by unpacking it
    path.write_bytes(data[: data.rindex(b"PK\1\2")])
    driver = ZipDriver(path)
    in_little_memory(lambda: driver.get("zarr.json"))
    in_little_memory(lambda: driver.get("other"))
    in_little_memory(lambda: driver.put("other", b""))
    data[6] ^= 8
    path.write_bytes(data[: data.rindex(b"PK\1\2")])
    in_little_memory(lambda: driver.get("zarr.json"))
    in_little_memory(lambda: driver.get("other"))


def test_a_file_that_gets_shorter_while_it_is_walked(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    piped(path, "9")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"PK\7\x08") - 2])
    with Descriptor(str(path), os.O_RDONLY) as file:
        assert recover.walk(file.fileno(), path.stat().st_size + 100).cut == {
            "c/0": "was cut, or is not whole"
        }


def test_a_terabyte_of_nothing_takes_little_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    path.touch()
    os.truncate(path, 1 << 40)
    nbytes = 0

    def pread(fd: int, count: int, at: int) -> bytes:
        nonlocal nbytes
        nbytes += count
        return true(fd, count, at)

    true = os.pread
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(Invalid, match="is not a zip"):
        ZipDriver(path).get("k")
    assert nbytes < 10 * MIB


def test_a_directory_that_claims_to_be_huge(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    zips.plain(path)
    whole = path.read_bytes()
    with open(path, "r+b") as file:
        file.truncate(300 << 20)  # a hole
        file.seek(0, 2)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 5, 5, 299 << 20, 1 << 20, 0))
    assert len(whole) < MIB
    in_little_memory(lambda: ZipDriver(path).get("c/1"), 2 * MIB)


LIMITED = """
import resource, sys
import tensorstash as stash
from tensorstash.drivers.zip import ZipDriver
from tensorstash.errors import StashError
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
for use in (lambda d: d.get("zarr.json"), lambda d: stash.open(d), lambda d: d.put("k", b"1"),
            lambda d: d.get("absent")):
    try:
        use(ZipDriver(sys.argv[1]))
    except StashError as error:
        print(type(error).__name__)
    else:
        print("right")
"""


def test_hostile_archives_under_a_limit_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    bomb(path, 3 << 10)
    whole = path.read_bytes()
    for data, words in (
        (whole, ["Corrupt", "Corrupt", "right", "right"]),
        (whole[: whole.rindex(b"PK\1\2")], ["Corrupt"] * 4),
    ):
        path.write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == words
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_hundred_thousand_members_are_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.zip"
    ZipDriver(path).put_many((f"k{i}", b"") for i in range(100_000))
    reads: list[int] = []
    true = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: (reads.append(args[2]), true(*args))[1])
    driver = ZipDriver(path)
    tracemalloc.start()
    try:
        assert driver.get("k99999") == b""
        assert tracemalloc.get_traced_memory()[1] < 120 * MIB
    finally:
        tracemalloc.stop()
    assert 100_000 < len(reads) < 100_020
    ZipDriver(path).put("new", b"1")
    reads.clear()
    assert driver.get("new") == b"1"
    assert len(reads) < 30  # what was compared before is not compared again
