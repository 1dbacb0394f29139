"""Metadata documents that are made to take memory or time, also of whoever replaces or deletes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tensorstash as stash
from tensorstash import limits
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.errors import AlreadyExists, Corrupt
from tensorstash.metadata import trailer
from tensorstash.metadata.document import MAX_DEPTH, MAX_NDIM, decode
from tensorstash.metadata.trailer import Trailer
from tensorstash.testing.counting import CountingDriver
from tests.support.hostile import in_little_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on memory")


@linux
def test_blanks_behind_a_document_take_no_memory() -> None:
    code = """
        store = v3(b"abcd")
        store["zarr.json"] += b" \\t\\n\\r" * (4 << 20)
        small(100)
        print(stash.open(store)[0])
    """
    assert in_little_memory(code, 100) == "97\n"


@linux
def test_backslashes_in_a_document_take_no_memory() -> None:
    code = """
        store = v3(attributes={"deep": [[]] * 1000, "text": ""})
        text = b'"' + b"\\\\\\\\" * (8 << 20) + b'"'
        store["zarr.json"] = store["zarr.json"].replace(b'""', text)
        small(200)
        print(len(stash.open(store).attrs["text"]) >> 20)
    """
    assert in_little_memory(code, 200) == "8\n"


def test_escapes_across_blocks_hide_no_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b"[" * (MAX_DEPTH + 5) + b"]" * (MAX_DEPTH + 5)
    for block in (7, 8, 1 << 16):
        monkeypatch.setattr("tensorstash.metadata.document._BLOCK", block)
        for count in range(12):
            for more in (b"", b'\\"'):
                text = b'"' + b"\\\\" * count + more
                with pytest.raises(Corrupt, match="nests deeper"):
                    decode(b'{"a": ' + text + b'", "b": ' + deep + b"}", "zarr.json")
                assert decode(b'{"a": ' + text + deep + b'"}', "zarr.json")


def test_the_longest_trailer_is_read() -> None:
    most = Trailer(b"saltsalt", True, True, tuple(range(MAX_NDIM)))
    assert trailer.decode(b"{}" + trailer.encode(most)) == most
    assert trailer.decode(b"{}" + b" " * 4 + trailer.encode(most)) == trailer.NONE
    for data in (b"", b" ", b"{}\n", b"{}\n\n\n\n", b"\n" * 5000):
        assert trailer.decode(data) == trailer.NONE


REPLACE: dict[str, Callable[[Driver], Any]] = {
    "create": lambda driver: stash.create(driver, (3,), "u1", overwrite=True),
    "create_group": lambda driver: stash.create_group(driver, overwrite=True),
    "save": lambda driver: stash.save(driver, [1, 2]),
}


@pytest.mark.parametrize("name", REPLACE)
def test_who_replaces_reads_no_more_of_a_document_than_who_opens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "metadata_limit", 5000)
    stash.create(tmp_path, (3,), "u1", attributes={"a": "x" * 100_000})[...] = 1
    counted = CountingDriver(FileDriver(tmp_path))
    with pytest.raises(Corrupt):
        stash.open(counted)
    REPLACE[name](counted)
    assert counted.reads.nbytes < 40_000
    stash.open_group(counted) if name == "create_group" else stash.open(counted)


def test_who_deletes_makes_no_more_values_than_who_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = stash.create_group(tmp_path)
    for name in ("a", "b"):
        member = group.create(name, (3,), "u1", attributes={"a": [[]] * 3000})
        member[...] = 1
    (tmp_path / "b/c/0.txt").write_text("somebody's")
    monkeypatch.setattr(limits, "NODES", 1000)
    made: list[int] = []

    def counted(text: Any, **how: Any) -> Any:
        made.append(limits.values_in(text if isinstance(text, bytes) else text.encode()))
        return loads(text, **how)

    loads = json.loads
    monkeypatch.setattr(json, "loads", counted)
    with pytest.raises(Corrupt):
        stash.open(tmp_path / "a")
    del group["a"]  # what is damaged explains the keys that are usual
    assert "a" not in group and not (tmp_path / "a").exists()
    with pytest.raises(AlreadyExists):
        del group["b"]
    assert max(made, default=0) <= 1000
