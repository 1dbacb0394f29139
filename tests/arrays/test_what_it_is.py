"""Errors that say what a thing is, and whose advice works."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

import tensorstash as stash
from tensorstash.errors import Invalid, NotFound
from tensorstash.registry import connect


@pytest.mark.parametrize("act", [stash.open, stash.open_group, lambda where: stash.copy(where, {})])
def test_a_zip(act: object, tmp_path: Path) -> None:
    path = str(tmp_path / "a b.zip")
    stash.save(f"zip://{path}", [1, 2])
    with pytest.raises(NotFound, match="is a zip file") as caught:
        act(path)  # type: ignore[operator]
    [advice] = re.findall(r"zip://.*$", str(caught.value))
    assert stash.load(advice).tolist() == [1, 2]


def test_other_files(tmp_path: Path) -> None:
    for name, head, words in (
        ("run.h5", b"\x89HDF\r\n\x1a\n", "HDF5 file"),
        ("x.npy", b"\x93NUMPY", "NumPy"),
        ("x.bin", b"", "is a file"),
    ):
        (tmp_path / name).write_bytes(head)
        with pytest.raises(NotFound, match=words):
            stash.open(str(tmp_path / name))
    zipfile.ZipFile(tmp_path / "e.zip", "w").close()
    with pytest.raises(NotFound, match="empty zip"):
        stash.open(str(tmp_path / "e.zip"))


def test_of_a_group_arrays_are_stored_otherwise_as_the_error_says(tmp_path: Path) -> None:
    g = stash.create_group(str(tmp_path / "g"))
    g.create("a/b", (2,), "int8")[:] = 5
    for source in g, str(tmp_path / "g"):
        with pytest.raises(Invalid, match=r"copy its arrays one by one"):
            stash.copy(source, {}, dtype="int16")
    target = str(tmp_path / "h")
    for path, member in g.walk():
        if isinstance(member, stash.Array):
            stash.copy(member, f"{target}/{path}", dtype="int16")
    assert stash.open(f"{target}/a/b")[0] == 5


def test_redis_on_this_host() -> None:
    assert connect("redis:///0/name", {}).url == connect("redis://localhost:6379/0/name", {}).url


def test_records_are_told_from_groups_and_what_creates_is_named(tmp_path: Path) -> None:
    stash.create_records(tmp_path / "r", {"x": "int32"})
    with pytest.raises(Invalid, match=r"is a group; open it with open_records\(\)$"):
        stash.open(tmp_path / "r")
    with pytest.raises(Invalid, match="is a group or records, copied as it is"):
        stash.copy(tmp_path / "r", tmp_path / "copy", chunks=2)
    for open_it in (stash.open, stash.open_group, stash.open_records):
        with pytest.raises(NotFound, match=r"create\(\), create_group\(\), create_records\(\)"):
            open_it(tmp_path / "nothing")
