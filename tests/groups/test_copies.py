"""Consolidated metadata above what is changed: whoever reads by it sees what there is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Conflict, Invalid, NotFound, StashError
from tensorstash.metadata import trailer
from tensorstash.metadata.consolidated import without_copy
from tensorstash.testing.counting import CountingDriver
from tests.support.copied import CHANGES, DEPTHS, NEW, OLD, array, check, consolidate, copied, made
from tests.support.every_place import KINDS, place

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_on_every_driver(
    kind: str, zarr_format: Any, tmp_path: Path, request: Any
) -> None:
    for name in ("replace", "delete", "append", "shrink", "attribute of its group", "new array"):
        change = CHANGES[name]
        with place(kind, tmp_path, request.getfixturevalue) as driver:
            group = made(driver, zarr_format, "", "a")
            try:
                change(group, "a/b/x")
            except StashError as error:  # where one may not append
                assert not driver.capabilities.locks, error
                continue
            check(driver)


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_at_every_depth(zarr_format: Any, change: str, name: str) -> None:
    for above in ((DEPTHS[name]), ("",), DEPTHS[name][-1:]):
        driver = MemoryDriver({})
        group = made(driver, zarr_format, *above)
        before = check(driver)
        CHANGES[change](group, name)
        assert check(driver) != before
        # Another handle, opened while there is a copy.
        driver = MemoryDriver({})
        made(driver, zarr_format, *above)
        CHANGES[change](stash.open_group(driver, "r+"), name)
        assert check(driver) != before


def test_members_of_a_handle_and_the_groups_between(zarr_format: Any) -> None:
    """A copy that was made after a handle looked is seen before its next change."""
    driver = MemoryDriver({})
    group = made(driver, zarr_format)
    deep = array(group, "a/b/x")
    for k in range(3):
        deep.append(OLD)
        made_anew = stash.open_group(driver, "r+")
        consolidate(made_anew, ["", "a", "a/b"][: k + 1])
        deep.attrs["k"] = k
        check(driver)


def test_what_is_not_above_keeps_its_copy(zarr_format: Any) -> None:
    driver = MemoryDriver({})
    group = made(driver, zarr_format, "", "a", "a/b")
    array(group, "a/x").append(OLD)
    assert not copied(driver)
    assert not copied(driver, "a")
    assert copied(driver, "a/b")
    consolidate(group, [""])
    array(group, "x")[1:3] = 9  # chunks are not metadata
    assert copied(driver)
    consolidate(group, ["a"])
    assert copied(driver)
    check(driver)


def test_a_failed_change_leaves_the_copy(zarr_format: Any) -> None:
    driver = MemoryDriver({})
    group = made(driver, zarr_format, "")
    with pytest.raises(AlreadyExists):
        group.create("x", (2,), "i4")
    with pytest.raises(NotFound):
        del group["nope"]
    with pytest.raises(Invalid):
        array(group, "x").append(np.zeros((2, 2), "i4"))
    driver.put("a/mine.txt", b"not a node's")
    with pytest.raises(AlreadyExists):
        del group["a"]
    assert copied(driver)


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("change", ["delete", "replace"])
def test_links_that_are_members(zarr_format: Any, change: str, tmp_path: Path) -> None:
    group = made(tmp_path / "g", zarr_format)
    stash.save(tmp_path / "far", OLD, zarr_format=zarr_format)
    os.symlink(tmp_path / "far", tmp_path / "g" / "a" / "link")
    consolidate(group, ["", "a"])
    CHANGES[change](group, "a/link")
    check(tmp_path / "g")
    assert stash.open(tmp_path / "far")[...].tolist() == OLD.tolist()


def test_a_copy_that_outlived_its_group() -> None:
    held: dict[str, bytes] = {}
    made(held, 2, "")
    left = {".zmetadata": held[".zmetadata"]}
    stash.create_group(left, zarr_format=2)
    assert check(left) == {"": {}}


# -- what it costs -----------------------------------------------------------------------------


def test_one_look_before_metadata_and_none_for_chunks(zarr_format: Any) -> None:
    alone, driver = CountingDriver(MemoryDriver({})), CountingDriver(MemoryDriver({}))
    top = stash.create(alone, (4,), "i4", chunks=(2,), codecs=None, zarr_format=zarr_format)
    deep = array(made(driver, zarr_format), "a/b/x")
    changes: list[tuple[int, Callable[[stash.Array], Any]]] = [
        (0, lambda a: a.__setitem__(..., 5)),
        (0, lambda a: a.__setitem__(slice(1, 2), 6)),
        (1, lambda a: a.append(OLD)),
        (1, lambda a: a.resize(5)),
        (1, lambda a: a.attrs.update(k=1)),
        (1, lambda a: a.attrs.update(k=2)),
    ]
    groups = 3
    for looks, change in changes:
        counts = []
        for one, at in ((top, alone), (deep, driver)):
            at.reset()
            change(one)
            counts.append((at.reads + at.counts["tag"], at.writes))
        (reads, writes), (more, same) = counts
        assert same.calls == writes.calls
        # All groups above, in one request; CountingDriver counts a key each.
        assert more.keys == reads.keys + groups * looks
        assert more.calls == reads.calls + looks
    # A document that was read is not read again while it stays.
    plain = top.attrs
    alone.reset()
    driver.reset()
    plain["again"] = deep.attrs["again"] = 3
    own = sum(len(bytes(driver.get(f"a/b/x/{k}") or b"")) for k in ("zarr.json", ".zattrs"))
    assert driver.reads.nbytes - alone.reads.nbytes < own + 200


def test_a_member_of_a_copy_is_looked_at_once(zarr_format: Any) -> None:
    driver = CountingDriver(MemoryDriver({}))
    made(driver, zarr_format, "")
    member = array(stash.open_group(driver), "a/x")
    other = array(stash.open_group(driver, "r+"), "a/x")
    reads = []
    for one in (member, other, member):
        driver.reset()
        assert one[...].tolist() == OLD.tolist()
        reads.append(driver.reads.keys)
    assert reads[0] > reads[1] == reads[2]


# -- readers that have a copy ------------------------------------------------------------------


def by_others(driver: MemoryDriver, change: str, zarr_format: Any) -> None:
    """A change by a program that leaves the copy as it is: a handle rooted at the array."""
    held: dict[str, bytes] = {}
    if change == "delete":
        for key in [*driver.list("a/x/")]:
            driver.delete(key)
        return
    how = {"zarr_format": zarr_format, "codecs": None}
    if change == "replace":
        stash.create(held, (4,), "f4", chunks=(2,), **how)[...] = NEW
    elif change == "replace by a group":
        stash.create_group(held, zarr_format=zarr_format)
    else:
        length = {"grow": 6, "shrink": 2}[change]
        stash.create(held, (length,), "i4", chunks=(2,), **how)[...] = np.arange(1, length + 1)
    for key in [*driver.list("a/x/")]:
        driver.delete(key)
    for key, value in held.items():
        driver.put(f"a/x/{key}", value)


READS: dict[str, Callable[[stash.Array], Any]] = {
    "[...]": lambda a: a[...],
    "read": lambda a: a.read(),
    "element": lambda a: a[1],
    "oindex": lambda a: a.oindex[[0, 1]],
    "vindex": lambda a: a.vindex[[0, 1]],
    "blocks": lambda a: a.blocks[0],
    "lazy": lambda a: a.lazy[0:2].read(),
    "iter": lambda a: [*a],
    "iter_blocks": lambda a: [*a.iter_blocks()],
    "array": np.asarray,
    "mmap": lambda a: a.mmap(slice(0, 2)),
    "info": lambda a: a.info(),
    "torch": lambda a: a.torch[0:2],
}


@pytest.mark.parametrize("read", READS)
def test_no_reader_takes_a_deleted_or_replaced_array_for_fill(zarr_format: Any, read: str) -> None:
    if read == "torch":
        pytest.importorskip("torch")
    kinds = {
        "delete": NotFound,
        "replace": Conflict,
        "replace by a group": Conflict,
        "shrink": Conflict,
    }
    for change, error in kinds.items():
        driver = MemoryDriver({})
        made(driver, zarr_format, "", "a")
        early = array(stash.open_group(driver), "a/x")
        by_others(driver, change, zarr_format)
        for member in (early, array(stash.open_group(driver), "a/x")):
            for _ in range(2):  # and not once only
                with pytest.raises(error, match="not what the consolidated metadata"):
                    READS[read](member)
    driver = MemoryDriver({})
    made(driver, zarr_format, "")
    by_others(driver, "grow", zarr_format)
    member = array(stash.open_group(driver), "a/x")
    assert member.shape == (4,)
    READS[read](member)
    assert member.shape == (6,)
    assert member[...].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_view_from_before_does_not_read_fill(zarr_format: Any) -> None:
    driver = MemoryDriver({})
    made(driver, zarr_format, "")
    member = array(stash.open_group(driver), "a/x")
    twin = array(stash.open_group(driver), "a/x")
    view = twin.lazy[2:4]
    by_others(driver, "shrink", zarr_format)
    with pytest.raises(Conflict):
        member[0]
    member.refresh()  # by the reader's own will
    assert member[...].tolist() == [1, 2]
    assert view.shape == (2,)


# -- the document without its copy -------------------------------------------------------------


@pytest.mark.parametrize("place", ["first", "middle", "last", "only", "twice"])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_rest_stays_byte_for_byte(place: str, indent: int | None) -> None:
    copy = {"kind": "inline", "must_understand": False, "metadata": {"é/x": {"a": "}\\"}}}
    rest: list[tuple[str, Any]] = [
        ("zarr_format", 3),
        ("node_type", "group"),
        ("attributes", {"consolidated_metadata": "µ", "n": float("nan"), "big": 10**30}),
    ]
    key = ("consolidated_metadata", copy)
    entries = {
        "first": [key, *rest],
        "middle": [rest[0], key, *rest[1:]],
        "last": [*rest, key],
        "only": [key],
        "twice": [key, rest[0], key, *rest[1:], key],
    }[place]
    blanks = trailer.encode(trailer.NONE.next(open=True, reach=(7,)))

    def text(items: list[tuple[str, Any]]) -> bytes:
        parts = [
            f"{json.dumps(k)}: {json.dumps(v, indent=indent, ensure_ascii=False)}" for k, v in items
        ]
        return b"{" + ", ".join(parts).encode() + b"}" + blanks

    wanted = text([item for item in entries if item is not key])
    found = without_copy(text(entries))
    assert found is not None
    assert found.replace(b"{ ", b"{") == wanted
    assert without_copy(wanted) is None
    assert without_copy(found) is None
    assert trailer.decode(found) == trailer.decode(blanks)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"consolidated_metadata"',
        b'{"consolidated_metadata": null, "zarr_format": 3}',
        b'{"consolidated_metadata": {"metadata": {}}',
        b'{"consolidated_metadata": {}} x',
        b'\xff{"consolidated_metadata": {}}',
        b'{"attributes": {"consolidated_metadata": {}}}',
        b'{"consolidated_metadata": {}, "tensorstash_unfinished": {}}',
        b'{"consolidated_metadata": {}, "attributes": {"tensorstash": {"records": 1}}}',
        b'{"consolidated_metadata": ' + b"[" * 100_000,
    ],
)
def test_there_is_nothing_to_take_out(data: bytes) -> None:
    assert without_copy(data) is None


def test_escaped_names_are_the_same_name() -> None:
    assert without_copy(b'{"\\u0063onsolidated_metadata": {}, "a": 1}') == b'{ "a": 1}'
