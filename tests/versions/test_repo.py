"""What a repository does for who uses it: versions, names, what its errors say."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    ReadOnly,
    StashError,
    Unsupported,
)
from tests.support.every_place import KINDS, place

VALUES = np.arange(60, dtype="int32").reshape(6, 10)


def fill(t: Any) -> None:
    """Arrays of every layout, and records."""
    t.create("plain", (6, 10), "int32", chunks=(2, 3))[...] = VALUES
    t.create("shards", (6, 10), "int32", chunks=(1, 5), shards=(2, 10))[...] = VALUES
    t.create("dots", (6, 10), "int32", chunks=(2, 3), separator=".")[...] = VALUES
    t.create("v2 keys", (6, 10), "int32", chunks=(2, 3), key_encoding="v2")[...] = VALUES
    t.create("none", (), "float64")[...] = 2.5
    t.create("deep/er/ü", 4, str)[:] = ["a", "", "ü", "dd"]
    t.create("part", 1 << 40, "int8", chunks=1 << 10)[1 << 39 : (1 << 39) + 3] = 7
    r = t.create_records("runs", {"x": ((2,), "float32"), "text": str, "r": stash.ragged("int16")})
    for k in range(5):
        r.append({"x": [k, 1], "text": f"row {k}", "r": [k] * k})


def check_filled(group: stash.Group, driver: Any) -> None:
    for name in ("plain", "shards", "dots", "v2 keys"):
        np.testing.assert_array_equal(group[name][...], VALUES)
    assert group["none"][()] == 2.5
    assert group["deep/er/ü"][:].tolist() == ["a", "", "ü", "dd"]
    assert group["part"][(1 << 39) - 1 : (1 << 39) + 4].tolist() == [0, 7, 7, 7, 0]
    r = stash.open_records(driver, path="runs")
    assert r["text"][:].tolist() == [f"row {k}" for k in range(5)]
    assert [each.tolist() for each in r["r"][:]] == [[k] * k for k in range(5)]


@pytest.mark.parametrize("kind", KINDS)
def test_versions_stay_what_they_are(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with place(kind, tmp_path, request.getfixturevalue) as driver:
        repo = stash.create_repo(driver)
        with repo.change(message="all", author="Ada", metadata={"run": 3}) as t:
            fill(t)
            check_filled(t.group, t.driver)
            assert stash.open_repo(driver).at().number == 0, "nobody sees it yet"
        repo.tag("v1")
        before = repo.at("v1")
        with repo.change() as t:
            t["plain"][...] = 0
            t["shards"][1, 2] = -1
            t["part"].resize(1 << 41)
            del t["dots"]
            t.records("runs").append({"x": [9, 9], "text": "last", "r": []})
            t.records("runs")[0] = {"x": [8, 8], "text": "first", "r": [1, 2]}
            t["deep"].attrs["unit"] = "K"
        check_filled(before.open_group(), before.driver)
        check_filled(stash.open_group(driver, version="v1"), repo.at("v1").driver)
        now = stash.open_group(driver, version="main")
        assert not now["plain"][...].any()
        assert now["shards"][1, 2] == -1
        assert now["shards"][1, 3] == VALUES[1, 3]
        assert now["part"].shape == (1 << 41,)
        assert now["part"][1 << 39] == 7
        assert "dots" not in now
        assert now["deep"].attrs["unit"] == "K"
        rows = stash.open_records(driver, path="runs", version="main")
        assert rows["text"][:].tolist() == ["first", *(f"row {k}" for k in range(1, 5)), "last"]
        assert rows[0]["r"].tolist() == [1, 2]
        assert [each.message for each in repo.log()] == ["", "all", "created"]
        assert (before.author, before.metadata) == ("Ada", {"run": 3})
        found = repo.diff("v1", "main")
        assert found.deleted == ("dots",)
        assert "part" in found.changed
        assert found.arrays["plain"].boxes == ((slice(0, 6), slice(0, 10)),)
        assert found.arrays["shards"].boxes == ((slice(0, 2), slice(0, 10)),)
        assert repo.check() == []
        store = stash.zarr_store(driver, version="v1")
        np.testing.assert_array_equal(zarr.open_group(store, mode="r")["plain"][...], VALUES)
        assert repo.info().concurrent == driver.capabilities.conditional_put


def test_consolidated_metadata() -> None:
    repo = stash.create_repo({})
    with repo.change() as t:
        t.create("g/a", 2, "int8")[:] = 1
        t.group.consolidate()
    assert repo.at().open_group().keys() == ["g"]
    with repo.change() as t:
        t.create("b", 2, "int8")
    assert repo.at().open_group().keys() == ["b", "g"]


def test_a_tree_of_zarr_v2() -> None:
    repo = stash.create_repo({})
    with repo.change() as t:
        # As other programs store it, key by key.
        place: dict[str, bytes] = {}
        old = stash.create_group(place, zarr_format=2)
        old.create("a", (4, 4), "int16", chunks=(2, 2))[...] = 3
        old.attrs["k"] = 1
        for key in sorted(place):
            t.driver.put(f"old/{key}", place[key])
    with repo.change() as t:
        t["old/a"][0, 0] = 5
    group = repo.at().open_group()
    assert group["old/a"][0, :2].tolist() == [5, 3]
    assert sorted(repo.at().driver.list("old/")) == [
        "old/.zattrs", "old/.zgroup", "old/a/.zarray",
        *(f"old/a/{i}.{j}" for i in range(2) for j in range(2)),
    ]  # fmt: skip


def test_an_array_that_is_replaced_has_nothing_of_the_old() -> None:
    repo = stash.create_repo({})
    with repo.change() as t:
        t.create("u", (4, 4), "int8", chunks=(1, 1))[...] = 1
    with repo.change() as t:
        t.create("u", (4, 4), "int8", chunks=(1, 1), overwrite=True)[0, 0] = 2
        t.create("w", (4, 4), "int8", chunks=(1, 1))[...] = 1
    with repo.change() as t:
        t.create("w", 9, "int8", chunks=3, overwrite=True)[8] = 4
    assert repo.at().open("u")[...].sum() == 2
    assert repo.at().open("w")[...].tolist() == [0] * 8 + [4]
    assert repo.check() == []
    assert [*repo.at().driver.list("w/c/")] == ["w/c/2"]


def test_names_and_times_of_versions() -> None:
    repo = stash.create_repo({})
    first = repo.at().commit
    with repo.change(message="second") as t:
        t.attrs["k"] = 1
    for name in ("v1", "a/b", "with space", "ünï", "x" * 100, "%2F", ".hidden", "1.0~rc"):
        repo.tag(name, at=first)
        assert repo.at(name).commit == repo.at(f"tag:{name}").commit == first
    assert {*repo.tags()} >= {"a/b", "with space", "%2F", ".hidden"}
    repo.branch("line/1", at="v1")
    with repo.change("line/1") as t:
        t.attrs["k"] = 2
    assert repo.at("line/1").open_group().attrs["k"] == 2
    assert repo.at("main").open_group().attrs["k"] == 1
    now = datetime.now(UTC)
    assert repo.at(now).commit == repo.at().commit
    assert repo.at(f"time:{now.isoformat()}@line/1").commit == repo.at("line/1").commit
    assert repo.at(repo.at(first).time).commit == first
    assert repo.at(f"commit:{first}").commit == repo.at(first).commit == first
    repo.delete_tag("v1")
    with pytest.raises(NotFound, match="no tag 'v1'"):
        repo.delete_tag("v1")
    with pytest.raises(NotFound, match="did you mean"):
        repo.at("mian")
    with pytest.raises(NotFound, match="no version of"):
        repo.at(now - timedelta(days=9))
    with pytest.raises(AlreadyExists, match="has a branch 'main'"):
        repo.tag("main")
    with pytest.raises(AlreadyExists, match="has a tag 'a/b'"):
        repo.branch("a/b")
    with pytest.raises(AlreadyExists, match="already"):
        repo.tag("a/b")
    for name in ("", "..", " a", "a\n", "x" * 101, "tag:x", first, "ü" * 100, 3, "\ud800"):
        with pytest.raises(Invalid, match=r"name|tag"):
            repo.tag(name)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="every repository has"):
        repo.delete_branch("main")
    with pytest.raises(Conflict, match="somebody committed"):
        repo.reset("main", to=first, expect=first)
    with pytest.raises(NotFound, match="no commit"):
        repo.at("0" * 20)


def test_what_is_no_repository_and_what_is() -> None:
    with pytest.raises(NotFound, match="create_repo"):
        stash.open_repo({})
    taken: dict[str, bytes] = {}
    stash.create(taken, 3, "int8")
    with pytest.raises(AlreadyExists, match="empty place"):
        stash.create_repo(taken)
    repo_place: dict[str, bytes] = {}
    repo = stash.create_repo(repo_place)
    with pytest.raises(AlreadyExists, match="open_repo"):
        stash.create_repo(repo_place)
    for opened in (stash.open, stash.open_group, stash.open_records):
        with pytest.raises(NotFound, match=r"path=.*version="):
            opened(repo_place)
    with pytest.raises(ReadOnly, match="never changes"):
        stash.open(repo_place, "r+", path="u", version="main")
    with pytest.raises(ReadOnly):
        stash.create_group(repo.at().driver, path="x")
    with pytest.raises(Invalid, match="neither a metadata"), repo.change() as t:
        t.driver.put("notes.txt", b"x")


def made() -> tuple[dict[str, bytes], stash.Repo]:
    stored: dict[str, bytes] = {}
    repo = stash.create_repo(stored)
    with repo.change() as t:
        t.create("u", 500, "int16", chunks=1)[...] = np.arange(500)
    return stored, repo


def test_damage_is_named() -> None:
    stored, _ = made()
    for key in [*stored]:
        if key.startswith("chunk/") and not key.endswith("/7"):
            continue
        for damage in (lambda data: data[: len(data) // 2], lambda _: None, lambda d: b"x" + d[1:]):
            broken = {k: bytes(v) for k, v in stored.items()}
            new = damage(broken.pop(key))
            if new is not None:
                broken[key] = new
            try:
                again = stash.open_repo(broken)
                found = [each.key for each in again.check()]
                values = again.at().open("u")[...]
            except StashError as error:
                named = key in str(error) or "main" in str(error)
                # Of a chunk of the right size, its own checksum tells.
                assert named or "chunk (8,) at key 'u/c/8'" in str(error), (key, str(error))
            else:
                # What an older version needs alone, or who looks at what was changed.
                assert found or np.array_equal(values, np.arange(500)), key


def test_documents_of_other_repositories_and_of_newer_formats() -> None:
    stored, repo = made()
    other, _ = made()
    commit = next(key for key in other if key.startswith("commit/"))
    stored[commit] = other[commit]
    with pytest.raises(Conflict, match="belongs to repository"):
        repo.at(commit.removeprefix("commit/"))
    document = json.loads(stored["tensorstash-repo.json"])
    stored["tensorstash-repo.json"] = json.dumps({**document, "format": 9}).encode()
    with pytest.raises(Unsupported, match="format 9"):
        stash.open_repo(stored)
    stored["tag/v1"] = b'{"repo": 3}'
    with pytest.raises(Corrupt, match="tag/v1"):
        repo.at("v1")
    stored["tag/v2"] = json.dumps({"repo": repo.id, "commit": "0" * 20, "number": 3}).encode()
    with pytest.raises(Corrupt, match="tag 'v2' names commit 0000"):
        repo.at("v2")


def test_arrays_that_are_written_in_place_are_refused() -> None:
    with (
        pytest.raises(Unsupported),
        stash.create_repo(MemoryDriver({})).change() as t,
    ):
        t.create("u", 8, "int32", in_place=True)


def test_what_pickles(tmp_path: Path) -> None:
    repo = stash.create_repo(tmp_path / "r")
    with repo.change() as t:
        t.create("u", 3, "int8")[:] = [1, 2, 3]
    for each in (repo, repo.at(), repo.at().open("u")):
        assert len(pickle.dumps(each)) < 2048
    again = pickle.loads(pickle.dumps(repo.at().open("u")))
    assert again[:].tolist() == [1, 2, 3]
    assert pickle.loads(pickle.dumps(repo)).at().open("u")[2] == 3


def test_a_version_whose_chunk_is_gone_says_so_rather_than_fill() -> None:
    stored, repo = made()
    for key in [key for key in stored if key.startswith("chunk/")]:
        del stored[key]
    with pytest.raises(Corrupt, match=r"chunk/.* is missing"):
        repo.at().open("u")[...]
    with pytest.raises(Corrupt, match=r"chunk/.* is missing"):
        repo.at().open("u")[3]
