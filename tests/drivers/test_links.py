"""Symbolic links below a store: read through, and never written or deleted through."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.file import FileDriver, links
from tensorstash.errors import AlreadyExists, Denied, DriverError, Invalid, StashError
from tests.support.native import turned

HERE = np.arange(12.0).reshape(4, 3)
THERE = HERE + 100


def fingerprint(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Every entry below ``folder``: what it is and holds, which inode, when it was changed."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = os.lstat(path)
        if path.is_symlink():
            held = os.readlink(path)
        elif path.is_dir():
            held = str(sorted(os.listdir(path)))
        else:
            held = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (held, status.st_ino, status.st_mtime_ns)
    return found


@pytest.fixture
def target(tmp_path: Path, zarr_format: Any) -> Path:
    """A group with an array, elsewhere, that must stay as it is."""
    there = stash.create_group(str(tmp_path / "there"), zarr_format=zarr_format)
    there.create("array", (4, 3), "f8", chunks=(2, 3), codecs=None)[...] = THERE
    (tmp_path / "there/notes.txt").write_text("precious")
    return tmp_path / "there"


@pytest.fixture
def group(tmp_path: Path, target: Path, zarr_format: Any) -> stash.Group:
    """A group with an array of its own, and links to the other array and group."""
    here = stash.create_group(str(tmp_path / "here"), zarr_format=zarr_format)
    here.create("own", (4, 3), "f8", chunks=(2, 3), codecs=None)[...] = HERE
    os.symlink("../there/array", tmp_path / "here/array")
    os.symlink(target, tmp_path / "here/group")
    return here


def test_they_are_read_and_listed_through(group: stash.Group, tmp_path: Path) -> None:
    assert group.keys() == ["array", "group", "own"]
    assert np.array_equal(group["array"][...], THERE)
    assert np.array_equal(group["group/array"][...], THERE)
    copied = stash.copy(group["array"], str(tmp_path / "copy"))
    assert np.array_equal(copied[...], THERE)
    assert not (tmp_path / "copy").is_symlink()


CHANGES: dict[str, Callable[[stash.Group], Any]] = {
    "whole chunks": lambda g: g["array"].__setitem__(..., 1),
    "part of a chunk": lambda g: g["array"].__setitem__((0, 0), 1),
    "fill": lambda g: g["array"].__setitem__(..., 0),
    "append": lambda g: g["array"].append(THERE),
    "grow": lambda g: g["array"].resize((9, 3)),
    "shrink": lambda g: g["array"].resize((1, 3)),
    "attributes": lambda g: g["array"].attrs.update(a=1),
    "attributes of a group": lambda g: g["group"].attrs.update(a=1),
    "consolidate": lambda g: g["group"].consolidate(),
    "create below": lambda g: g.create("group/new", (3,), "f8"),
    "create deep below": lambda g: g.create("group/a/b/new", (3,), "f8"),
    "create a group below": lambda g: g["group"].create_group("new"),
    "replace below": lambda g: g.create("group/array", (3,), "f8", overwrite=True),
    "delete below": lambda g: g.__delitem__("group/array"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_written_through_them(group: stash.Group, target: Path, change: str) -> None:
    before = fingerprint(target)
    with pytest.raises(Denied, match=r"'\S+/here/(array|group)' is a symbolic link"):
        CHANGES[change](group)
    assert fingerprint(target) == before
    assert np.array_equal(group["array"][...], THERE)


REMOVALS: dict[str, Callable[[stash.Group], Any]] = {
    "del": lambda g: (g.__delitem__("array"), g.__delitem__("group")),
    "replace": lambda g: (
        g.create("array", (2,), "i2", overwrite=True),
        g.create_group("group", overwrite=True),
    ),
    "replace by save": lambda g: (
        stash.create_group(g.driver, overwrite=True, zarr_format=g.zarr_format),
    ),
    "the parent's delete_prefix": lambda g: g.driver.delete_prefix(""),
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_only_the_link_is_removed(group: stash.Group, target: Path, removal: str) -> None:
    before = fingerprint(target)
    REMOVALS[removal](group)
    assert fingerprint(target) == before
    assert not Path(group.driver.root, "array").is_symlink()  # type: ignore[attr-defined]
    assert not Path(group.driver.root, "group").is_symlink()  # type: ignore[attr-defined]


def test_a_deleted_group_takes_its_links_with_it(tmp_path: Path, target: Path) -> None:
    top = stash.create_group(str(tmp_path / "top"))
    inner = top.create_group("a/b")
    inner.create("own", (3,), "f8")[...] = 1
    os.symlink(target, tmp_path / "top/a/b/link")
    before = fingerprint(target)
    del top["a"]
    assert fingerprint(target) == before
    assert not (tmp_path / "top/a").exists()


@pytest.mark.parametrize("folder", ["c", "c/0"])
def test_a_linked_folder_of_chunks(tmp_path: Path, folder: str) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3), codecs=None)
    elsewhere = tmp_path / "elsewhere"
    os.rename(tmp_path / "a" / folder, elsewhere)
    os.symlink(elsewhere, tmp_path / "a" / folder)
    before = fingerprint(elsewhere)
    a = stash.open(str(tmp_path / "a"), "r+")
    assert np.array_equal(a[...], HERE)
    for value in (7, 0):
        for where in (np.s_[:2], np.s_[0, 0], np.s_[...]):
            if value == 0 and where == np.s_[0, 0]:
                continue  # it is 0 already
            with pytest.raises(Denied, match="is a symbolic link"):
                a[where] = value
    with pytest.raises(Denied):
        a.driver.delete_many(["c/0/0"])
    with pytest.raises(Denied):
        a.driver.delete("c/0/0")
    a.driver.prune("")
    assert fingerprint(elsewhere) == before
    assert np.array_equal(a[...][:2], HERE[:2])
    a.driver.delete_prefix("c/")
    assert fingerprint(elsewhere) == before
    assert not (tmp_path / "a/c").exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda a: a.__setitem__(np.s_[:2], 7),
        lambda a: a.__setitem__((0, 0), 7),
        lambda a: a.__setitem__(np.s_[:2], 0),
    ],
    ids=["whole", "part", "fill"],
)
def test_a_linked_chunk_is_replaced(tmp_path: Path, write: Callable[[Any], None]) -> None:
    a = stash.save(str(tmp_path / "a"), HERE + 1, chunks=(2, 3), codecs=None)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.rename(tmp_path / "a/c/0/0", elsewhere / "chunk")
    os.symlink("chunk", elsewhere / "again")
    os.symlink("../../../elsewhere/again", tmp_path / "a/c/0/0")  # relative, and a chain
    before = fingerprint(elsewhere)
    expected = a[...]
    assert np.array_equal(expected, HERE + 1)
    write(a)
    write(expected)
    assert np.array_equal(a[...], expected)
    assert fingerprint(elsewhere) == before
    assert not (tmp_path / "a/c/0/0").is_symlink()


def test_linked_documents_are_replaced(tmp_path: Path) -> None:
    g = stash.create_group(str(tmp_path / "g"))
    a = g.create("a", (4, 3), "f8", chunks=(2, 3))
    elsewhere = tmp_path / "zarr.json"
    os.rename(tmp_path / "g/a/zarr.json", elsewhere)
    os.symlink(elsewhere, tmp_path / "g/a/zarr.json")
    before = elsewhere.read_bytes()
    a = g["a"]
    a.attrs["x"] = 1
    assert a.append(HERE) == 4
    assert elsewhere.read_bytes() == before
    assert g["a"].shape == (8, 3)
    assert g["a"].attrs["x"] == 1


def test_the_place_that_was_named_may_be_a_link(tmp_path: Path, target: Path) -> None:
    os.symlink(target, tmp_path / "name")
    g = stash.open_group(str(tmp_path / "name"), "r+")
    g["array"][...] = 5
    g["array"].append(THERE)
    g.create("new", (3,), "f8")
    assert np.array_equal(stash.open(str(target / "array"))[:4], np.full((4, 3), 5.0))
    assert stash.open_group(str(target)).keys() == ["array", "new"]
    inside = stash.open(str(tmp_path / "name/array"), options={"links": "inside"})
    assert inside.shape == (8, 3)
    del g["new"]
    assert (tmp_path / "name").is_symlink()
    assert (target / "notes.txt").read_text() == "precious"


def test_the_zip_that_was_named_may_be_a_link(tmp_path: Path) -> None:
    there, link = tmp_path / "there.zip", tmp_path / "link.zip"
    link.symlink_to(there)
    a = stash.create(f"zip://{link}", (3,), "i4")
    a.append([1])
    assert link.is_symlink()
    assert stash.open(f"zip://{there}")[:].tolist() == [0, 0, 0, 1]
    assert sorted(os.listdir(tmp_path)) == ["link.zip", "there.zip"]


def test_links_that_lead_nowhere_are_no_absence(group: stash.Group, tmp_path: Path) -> None:
    own = group["own"]
    chunk = next(
        path
        for path in (tmp_path / "here/own").rglob("*")
        if path.is_file() and path.name in ("0", "0.0")
    )
    chunk.unlink()
    os.symlink("/annex/object/not/fetched", chunk)
    for read in (lambda: own[...], lambda: own[0, 0]):
        with pytest.raises(DriverError, match="leads nowhere; bring back what it leads to"):
            read()
    with pytest.raises(DriverError, match="leads nowhere"):
        own[0, 0] = 1  # part of a chunk that is not known
    own[...] = 1
    assert not chunk.is_symlink()

    os.symlink(tmp_path / "unmounted", tmp_path / "here/gone")
    assert group.keys() == ["array", "group", "own"]
    for call in (
        lambda: group["gone"],
        lambda: group.create("gone", (3,), "f8"),
        lambda: group.create("gone/below", (3,), "f8"),
    ):
        with pytest.raises(DriverError, match=r"here/gone' (leads nowhere|is a symbolic link)"):
            call()
    assert not (tmp_path / "unmounted").exists()
    group.create("gone", (3,), "f8", overwrite=True)
    assert group["gone"].shape == (3,)
    assert not (tmp_path / "unmounted").exists()


def test_links_that_loop(group: stash.Group, tmp_path: Path) -> None:
    os.symlink("b", tmp_path / "here/a")
    os.symlink("a", tmp_path / "here/b")
    os.symlink("..", tmp_path / "here/own/up")
    assert group.keys() == ["array", "group", "own"]
    for call in (lambda: group["a"], lambda: group.create("a", (3,), "f8")):
        with pytest.raises(DriverError, match="form a loop"):
            call()
    group.create("a", (3,), "f8", overwrite=True)
    del group["own"]
    assert group.keys() == ["a", "array", "b", "group"]  # b leads to what a is now


@pytest.mark.parametrize(
    "leads", ["/dev/zero", "/dev/urandom", "/dev/tty", "fifo", "/proc/self/mem"]
)
def test_links_to_what_is_no_file(tmp_path: Path, leads: str) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3))
    os.mkfifo(tmp_path / "fifo")
    chunk = tmp_path / "a/c/0/0"
    chunk.unlink()
    os.symlink(tmp_path / leads, chunk)
    for read in (
        lambda: a[...],
        lambda: a[0, 0],
        lambda: a.driver.get("c/0/0"),
        lambda: dict(a.driver.get_many_tagged([stash.driver.Request("c/0/0")])),
    ):
        if leads != "/proc/self/mem":
            with pytest.raises(DriverError, match=r"It is a|No such device"):
                read()
    with pytest.raises(StashError):
        a[0, 0]
    with pytest.raises(StashError):
        a[0, 0] = 1
    a[...] = HERE  # whole chunks replace the link
    assert np.array_equal(a[...], HERE)
    assert not chunk.is_symlink()


# -- links="inside" -------------------------------------------------------------------------------


def test_inside_refuses_links_that_lead_out(group: stash.Group, tmp_path: Path) -> None:
    os.symlink("own", tmp_path / "here/within")
    os.symlink("../here/own", tmp_path / "here/around")
    options = {"links": "inside"}
    inside = stash.open_group(str(tmp_path / "here"), options=options)
    for name in ("own", "within", "around"):
        assert np.array_equal(inside[name][...], HERE)
    for name in ("array", "group", "group/array"):
        with pytest.raises(Denied, match=r"leads out of '\S+/here', which links='inside' refuses"):
            inside[name]
    with pytest.raises(Denied):
        [*inside.driver.list()]


def test_inside_refuses_chunks_and_chains_that_lead_out(tmp_path: Path) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3))
    b = stash.save(str(tmp_path / "b"), THERE, chunks=(2, 3))
    options = {"links": "inside"}
    chunk = tmp_path / "a/c/0/0"
    for chain in (["b/c/0/0"], ["a/hop", "b/c/0/0"]):
        chunk.unlink()
        for start, end in zip(["a/c/0/0", *chain], chain, strict=False):
            os.symlink(tmp_path / end, tmp_path / start)
        assert np.array_equal(a[:2], b[:2])
        inside = stash.open(str(tmp_path / "a"), options=options)
        for read in (
            lambda inside=inside: inside[...],
            lambda inside=inside: inside.driver.get("c/0/0"),
            lambda inside=inside: inside.driver.tag("c/0/0"),
            lambda inside=inside: inside.driver.map("c/0/0"),
        ):
            with pytest.raises(Denied, match="leads out"):
                read()
    os.rename(tmp_path / "a/c", tmp_path / "c")
    os.symlink("../c", tmp_path / "a/c")
    inside = stash.open(str(tmp_path / "a"), options=options)
    with pytest.raises(Denied, match="leads out"):
        inside[2:]


def test_the_option_travels_and_is_checked(tmp_path: Path) -> None:
    a = stash.save(str(tmp_path / "a"), HERE)
    (tmp_path / "a/c/0/0").rename(tmp_path / "chunk")
    os.symlink("../../../chunk", tmp_path / "a/c/0/0")
    inside = stash.open(str(tmp_path / "a"), options={"links": "inside"})
    again = pickle.loads(pickle.dumps(inside))
    with pytest.raises(Denied):
        again[...]
    assert np.array_equal(pickle.loads(pickle.dumps(a))[...], HERE)
    with pytest.raises(Invalid, match="links is 'anywhere' or 'inside', not 'outside'"):
        stash.open(str(tmp_path / "a"), options={"links": "outside"})


# -- links that come later ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["put", "replace", "delete", "delete_many", "delete_prefix"])
def test_a_folder_that_becomes_a_link_under_a_handle(tmp_path: Path, verb: str) -> None:
    driver = FileDriver(tmp_path / "root")
    for key in ("c/0", "d/c/0"):
        driver.put(key, b"mine")  # so that the folders were judged
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0").write_bytes(b"theirs")
    os.rename(tmp_path / "root/d/c", tmp_path / "old")
    os.symlink(elsewhere, tmp_path / "root/d/c")
    before = fingerprint(elsewhere)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: driver.put("d/c/1", b"new"),
        "replace": lambda: driver.put("d/c/0", b"new"),
        "delete": lambda: driver.delete("d/c/0"),
        "delete_many": lambda: driver.delete_many(["d/c/0", "c/0"]),
        "delete_prefix": lambda: driver.delete_prefix("d/"),
    }
    if verb == "delete_prefix":
        calls[verb]()
        assert not (tmp_path / "root/d").exists()
    else:
        with pytest.raises(Denied, match="is a symbolic link"):
            calls[verb]()
    assert fingerprint(elsewhere) == before


@pytest.mark.parametrize("depth", [1, 2])
def test_deletes_never_trust_an_old_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(links, "_KEPT_SECONDS", 1e9)
    root = tmp_path / "root"
    driver = FileDriver(root)
    driver.put("a/b/c/0", b"mine")
    driver.put("a/b/c/0", b"mine")
    swapped = root / "/".join("ab"[:depth])
    elsewhere = tmp_path / "elsewhere"
    os.rename(swapped, elsewhere)
    os.symlink(elsewhere, swapped)
    before = fingerprint(elsewhere)
    for call in (
        lambda: driver.delete("a/b/c/0"),
        lambda: driver.delete_many(["a/b/c/0"]),
        lambda: driver.delete_prefix("a/b/c/"),
        lambda: driver.remove_link("a/b/c/"),
    ):
        with pytest.raises(Denied):
            call()
    driver.prune("")
    assert fingerprint(elsewhere) == before


def test_a_link_that_was_taken_away_is_refused_no_more(
    group: stash.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_KEPT_SECONDS", 1e9)
    inside = stash.open_group(str(tmp_path / "here"), options={"links": "inside"})
    with pytest.raises(Denied):
        group["group"].create_group("new")
    with pytest.raises(Denied):
        inside["group"]
    os.unlink(tmp_path / "here/group")
    group.create_group("group").create_group("new")
    assert inside["group"].keys() == ["new"]


def test_folders_are_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_KEPT_SECONDS", 1e9)
    a = stash.create(str(tmp_path / "a"), (8, 8), "f8", chunks=(1, 1), codecs=None)
    a[...] = 1
    looked: list[str] = []
    look = links.Links._look

    def counted(self: links.Links, folder: str, above: links.Verdict) -> links.Verdict:
        looked.append(folder)
        return look(self, folder, above)

    monkeypatch.setattr(links.Links, "_look", counted)
    for options in ({}, {"links": "inside"}):
        a = stash.open(str(tmp_path / "a"), "r+", options=options)
        for value in (2, 3, 4):
            a[...] = value
            assert np.array_equal(a[...], np.full((8, 8), value))
        assert len(looked) == len({*looked}) <= 9
        looked.clear()


def test_reading_a_chunk_looks_at_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = stash.save(str(tmp_path / "a"), HERE, chunks=(2, 3), codecs=None)
    a[...]
    calls: list[str] = []

    def count(name: str, true: Callable[..., Any]) -> None:
        def counted(*args: Any, **how: Any) -> Any:
            calls.append(name)
            return true(*args, **how)

        monkeypatch.setattr(os, name, counted)

    for name in ("open", "stat", "lstat", "fstat", "readv", "pread", "close", "readlink"):
        count(name, getattr(os, name))
    with turned(False):  # the kernel makes its calls itself
        a[:2]
    # It is closed by its owner (descriptor.py), and the document is still of the same version.
    assert calls == ["open", "readv", "stat"]


def test_what_exists_behind_a_link_is_not_created_anew(group: stash.Group, target: Path) -> None:
    before = fingerprint(target)
    with pytest.raises(AlreadyExists):
        group.create("array", (3,), "f8")
    assert fingerprint(target) == before


def test_shared_memory_has_links_too() -> None:
    name = f"links-{os.getpid()}"
    g = stash.create_group(f"shm://{name}/g")
    g.create("a", (4, 3), "f8")[...] = HERE
    root = g.driver.root  # type: ignore[attr-defined]
    os.symlink("a", f"{root}/link")
    assert np.array_equal(g["link"][...], HERE)
    with pytest.raises(Denied, match="is a symbolic link"):
        g["link"][...] = 1
    del g["link"]
    assert g.keys() == ["a"]
    assert np.array_equal(g["a"][...], HERE)
