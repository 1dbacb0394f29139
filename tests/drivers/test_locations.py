"""What a text or path names: URLs, ``file:`` URIs by RFC 8089, and what is none of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.drivers.file import FileDriver
from tensorstash.errors import Invalid
from tensorstash.location import resolve
from tensorstash.urls import file_path, file_url

HALF = [
    Path("s3://bucket/x.zarr"),
    Path("memory://run"),
    Path("zip:///x.zip"),
    Path("gs://bucket/x"),
    Path("https://host/x"),
    Path("redis://h:6379/0/p"),
    "s3:/bucket/x.zarr",
    "s3:bucket/x.zarr",
    "redis:/h",
    "redis:h",
    "memory:run",
    "zip:x.zip",
    "http:/host/x",
    "ftp:/host/x",
    "file:x/y",
    "zip://inner::s3:/bucket/x.zip",
    "my_s3://bucket/x",
    "://bucket/x",
    " s3://bucket/x",
    "file://data/x",
    "file://x",
    "file://",
]


@pytest.mark.parametrize("location", HALF, ids=str)
def test_half_written_urls_become_no_folder(
    location: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for act in stash.open, stash.open_group, lambda where: stash.create(where, (2,), "int8"):
        with pytest.raises(Invalid, match=r"write|names"):
            act(location)
    assert not os.listdir(tmp_path)


def test_the_advice_leads_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Invalid, match=r"'memory://run/x'"):
        resolve("memory:run/x")
    with pytest.raises(Invalid, match=r"'s3://bucket/x'"):
        resolve(Path("s3://bucket/x"))
    stash.create("./s3:/bucket/x", (2,), "int8")
    assert os.listdir("s3:") == ["bucket"]


def test_names_with_a_colon_that_are_no_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "data:2024.zarr", "run:1", "C:/x", "12:30.zarr", "a/s3:/b", "a/b://c":
        stash.create(name, (2,), "int8")
        assert isinstance(stash.open(name).driver.url, str)
        assert (tmp_path / name / "zarr.json").exists()


@pytest.mark.parametrize(
    "name", ["a b", "Gr\u00f6\u00dfe", "100%", "50%25", "q?x#y", "a%20b", "\u65e5"]
)
def test_uris_of_paths(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    stash.save(str(folder), np.arange(3))
    for location in (
        folder.as_uri(),
        folder.as_uri().replace("file://", "file://localhost"),
        folder.as_uri().replace("file://", "file:"),
        folder.as_uri().replace("file:", "FILE:"),
        stash.open(str(folder)).driver.url,
        folder,
    ):
        assert stash.load(location).tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == [name]


def test_raw_names_behind_file(tmp_path: Path) -> None:
    """As users write ``f"file://{folder}/x"``, without quoting anything."""
    for name in "a b", "Gr\u00f6\u00dfe", "100%", "q?x#y":
        stash.save(f"file://{tmp_path}/{name}", np.arange(3))
        assert (tmp_path / name / "zarr.json").exists()


def test_a_zip_at_a_uri(tmp_path: Path) -> None:
    stash.save(f"zip://{tmp_path}/a b.zip", np.arange(3))
    uri = (tmp_path / "a b.zip").as_uri()
    assert stash.load(f"zip://::{uri}").tolist() == [0, 1, 2]


def test_schemes_in_capitals() -> None:
    stash.save("memory://capitals", np.arange(3))
    assert stash.load("MEMORY://capitals").tolist() == [0, 1, 2]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_urls_of_files_turn_back(path: str) -> None:
    assert file_path(file_url("/" + path).removeprefix("file://")) == "/" + path


@given(st.binary().filter(lambda name: b"\0" not in name))
def test_as_uri_turns_back(name: bytes) -> None:
    path = Path("/" + os.fsdecode(name).strip("/"))
    if str(path).startswith("//"):
        return
    assert Path(file_path(path.as_uri().removeprefix("file://"))) == path


def test_a_driver_takes_the_path_as_it_is(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path / "a%20b")
    driver.put("k", b"1")
    assert os.listdir(tmp_path) == ["a%20b"]
    assert resolve(driver.url).get("k") == b"1"
