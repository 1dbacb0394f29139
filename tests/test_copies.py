"""Consolidated metadata above what is changed: whoever reads by it sees what there is."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorstash as stash
from tensorstash.driver import Driver
from tensorstash.drivers.file import FileDriver
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import AlreadyExists, Conflict, Invalid, NotFound, StashError
from tensorstash.formats import trailer
from tensorstash.formats.consolidated import without_copy
from tensorstash.testing.counting import Call, CountingDriver, FailingDriver, Fault
from tests.every_place import KINDS, place
from tests.races import TRIALS, fork, in_threads

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")

OLD, NEW = np.array([1, 2, 3, 4], "i4"), np.array([1, 2, 3, 4], "f4")


def made(at: Any, zarr_format: Any, *copied: str) -> stash.Group:
    """A group with an array at each depth; ``copied``: the groups that are consolidated."""
    group = stash.create_group(at, {"title": "t"}, zarr_format=zarr_format)
    for name in ("x", "a/x", "a/b/x"):
        group.create(name, (4,), "i4", chunks=(2,), codecs=None)[:] = OLD
    group.create_group("a/empty")
    consolidate(group, copied)
    return group


def consolidate(group: stash.Group, names: Any) -> None:
    for name in sorted(names, key=len, reverse=True):
        inner = group[name] if name else group
        assert isinstance(inner, stash.Group)
        inner.consolidate()


def shown(group: stash.Group, prefix: str = "") -> dict[str, Any]:
    """All that a group shows of itself and what lies below."""
    found: dict[str, Any] = {prefix: dict(group.attrs)}
    for name, member in group._each():
        path = f"{prefix}/{name}"
        if isinstance(member, StashError):
            found[path] = type(member).__name__
        elif isinstance(member, stash.Group):
            found |= shown(member, path)
        else:
            found[path] = member.dtype, member.shape, dict(member.attrs), member[...].tolist()
    return found


def copied(at: Any, name: str = "") -> bool:
    group = stash.open_group(at)
    inner = group[name] if name else group
    assert isinstance(inner, stash.Group)
    return inner.document.consolidated is not None


def check(at: Any) -> dict[str, Any]:
    """What is read by the copies, from every group on, is what there is."""
    plain = shown(stash.open_group(at, "r+"))
    assert shown(stash.open_group(at)) == plain
    for path, value in plain.items():
        if path and isinstance(value, dict):
            inner = stash.open_group(at, "r+")[path]
            assert isinstance(inner, stash.Group)
            root = stash.Group(inner.driver, inner.path, stash.open_group(at).settings)
            assert shown(root, path) == {
                k: v for k, v in plain.items() if f"{k}/".startswith(f"{path}/")
            }
    return plain


# -- every change ------------------------------------------------------------------------------

Change = Callable[[stash.Group, str], Any]


def appended(group: stash.Group, name: str) -> None:
    with array(group, name).writer() as writer:
        writer.append(OLD)


def array(group: stash.Group, name: str) -> stash.Array:
    found = group[name]
    assert isinstance(found, stash.Array)
    return found


def attribute_of_group(group: stash.Group, name: str) -> None:
    above = name.rpartition("/")[0]
    (group[above] if above else group).attrs["more"] = [1]


CHANGES: dict[str, Change] = {
    "replace": lambda g, n: g.create(n, (4,), "f4", codecs=None, overwrite=True).__setitem__(
        ..., NEW
    ),
    "replace by a group": lambda g, n: g.create_group(n, {"now": 1}, overwrite=True),
    "delete": lambda g, n: g.__delitem__(n),
    "append": lambda g, n: array(g, n).append(OLD),
    "append by a writer": appended,
    "grow": lambda g, n: array(g, n).resize((7,)),
    "shrink": lambda g, n: array(g, n).resize((1,)),
    "attribute": lambda g, n: array(g, n).attrs.update(unit="K"),
    "attribute of its group": attribute_of_group,
    "new array": lambda g, n: g.create(n + "2", (2,), "i2", attributes={"new": True}),
    "new array below new groups": lambda g, n: g.create(n[:-1] + "p/q/x", (2,), "i2"),
    "new group": lambda g, n: g.create_group(n + "2"),
    "required group": lambda g, n: g.require_group(n + "2"),
}
DEPTHS = {"x": ("",), "a/x": ("", "a"), "a/b/x": ("", "a", "a/b")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_on_every_driver(
    kind: str, zarr_format: Any, tmp_path: Path, request: Any
) -> None:
    for change in CHANGES.values():
        with place(kind, tmp_path, request.getfixturevalue) as driver:
            if not driver.capabilities.locks and "append" in str(change):
                continue
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


# -- kills and faults --------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_a_fault_at_every_request(zarr_format: Any, change: str) -> None:
    for number in range(200):
        inner = MemoryDriver({})
        made(inner, zarr_format, "", "a")
        ended = []

        def when(call: Call, number: int = number, ended: list[int] = ended) -> Fault | None:
            if call.number >= number:  # it is dead from then on
                ended.append(call.number)
                return "error"
            return None

        group = stash.Group(FailingDriver(inner, when), "", stash.open_group(inner, "r+").settings)
        with suppress(StashError):
            CHANGES[change](group, "a/b/x")
        check(inner)
        if not ended:
            return
    raise AssertionError("the change never ends")


class Dying(FailingDriver):
    """Ends its process at a call."""

    def __init__(self, driver: Driver, number: int) -> None:
        def when(call: Call) -> None:
            if call.number == number:
                os._exit(9)

        super().__init__(driver, when)


def change_and_die(path: Path, change: str, number: int) -> None:
    group = stash.open_group(Dying(FileDriver(path), number), "r+")
    CHANGES[change](group, "a/b/x")


@pytest.mark.skipif(os.name != "posix", reason="fork")
@pytest.mark.parametrize("change", ["append", "replace", "delete", "attribute"])
def test_a_kill_between_any_two_steps(zarr_format: Any, change: str, tmp_path: Path) -> None:
    for number in range(200):
        path = tmp_path / str(number)
        made(path, zarr_format, "", "a")
        process = fork.Process(target=change_and_die, args=(path, change, number))
        process.start()
        process.join(60)
        assert process.exitcode in (0, 9)
        check(path)
        if process.exitcode == 0:
            return
    raise AssertionError("the change never ends")


# -- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", range(TRIALS))
def test_writers_and_who_consolidates_at_once(zarr_format: Any, tmp_path: Path, trial: int) -> None:
    path = tmp_path / "g"
    made(path, zarr_format, "", "a")
    done = threading.Event()
    left = [4]

    def work(k: int) -> None:
        group = stash.open_group(path, "r+")
        if k == 4:
            while not done.is_set():
                with suppress(StashError):  # of who finds no moment of rest, or half a member
                    group.consolidate()
            return
        try:
            for n in range(12):
                if k == 0:
                    array(group, "a/b/x").append(OLD)
                elif k == 1:
                    array(group, "a/x").attrs[f"n{n}"] = n
                elif k == 2:
                    group.create(f"a/new{n}", (n + 1,), "i4")
                else:
                    group.create("x", (n + 1,), "f4" if n % 2 else "i4", overwrite=True)
        finally:
            left[0] -= 1
            if not left[0]:
                done.set()

    in_threads(5, work)
    plain = check(path)
    assert plain["/a/b/x"][1] == (4 + 12 * 4,)
    assert plain["/a/x"][2] == {f"n{n}": n for n in range(12)}


def test_no_change_of_the_group_is_lost_with_its_copy(zarr_format: Any, tmp_path: Path) -> None:
    """Who drops a copy writes the group's document, which others are changing."""
    path = tmp_path / "g"
    made(path, zarr_format, "")

    def work(k: int) -> None:
        group = stash.open_group(path, "r+")
        for n in range(15):
            if k == 0:
                group.attrs[f"n{n}"] = n
            elif k == 1:
                array(group, "a/x").append(OLD)
            else:
                with suppress(Conflict):
                    group.consolidate()

    in_threads(3, work)
    assert check(path)[""] == {"title": "t", **{f"n{n}": n for n in range(15)}}


def test_who_consolidates_sees_what_came_meanwhile(zarr_format: Any) -> None:
    """A change between reading the members and storing their copy."""
    inner = MemoryDriver({})
    made(inner, zarr_format)
    other = stash.open_group(inner, "r+")
    copy = "zarr.json" if zarr_format == 3 else ".zmetadata"
    steps = iter([lambda: array(other, "a/x").append(OLD), lambda: other.__delitem__("x")])

    def when(call: Call) -> None:
        if call.verb == "put" and call.key == copy:
            next(steps, lambda: None)()

    stash.open_group(FailingDriver(inner, when), "r+").consolidate()
    assert copied(inner)
    assert "/x" not in check(inner)


def test_without_a_break_there_is_no_copy(zarr_format: Any) -> None:
    inner = MemoryDriver({})
    made(inner, zarr_format)
    other = array(stash.open_group(inner, "r+"), "a/x")
    copy = "zarr.json" if zarr_format == 3 else ".zmetadata"

    def when(call: Call) -> None:
        if call.verb == "put" and call.key == copy:
            other.append(OLD)

    with pytest.raises(Conflict, match="without a break"):
        stash.open_group(FailingDriver(inner, when), "r+").consolidate()
    assert not copied(inner)
    check(inner)


# -- peers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["zarr", "xarray", "stash"])
@pytest.mark.parametrize("change", ["append", "replace", "delete", "attribute", "new array"])
def test_peers_read_what_there_is(tmp_path: Path, zarr_format: Any, who: str, change: str) -> None:
    url = str(tmp_path / "g")
    if who == "xarray":
        xarray = pytest.importorskip("xarray")
        data = xarray.Dataset({"x": ("t", OLD), "y": ("t", OLD)})
        data.to_zarr(url, zarr_format=zarr_format, consolidated=True)
        data.to_zarr(url, group="a", zarr_format=zarr_format, mode="w", consolidated=True)
        zarr.consolidate_metadata(url, zarr_format=zarr_format)
    else:
        group = made(url, zarr_format)
        if who == "zarr":
            zarr.consolidate_metadata(url, zarr_format=zarr_format)
        else:
            group.consolidate()
    assert copied(url)
    CHANGES[change](stash.open_group(url, "r+"), "a/x")
    ours = check(url)
    theirs = zarr.open_group(url, mode="r", zarr_format=zarr_format)
    found = {
        f"/{name}": (member.dtype, member.shape, member[...].tolist())
        for name, member in theirs.members(max_depth=None)
        if isinstance(member, zarr.Array)
    }
    assert found == {
        path: (value[0], value[1], value[3])
        for path, value in ours.items()
        if isinstance(value, tuple)
    }
    if who == "xarray" and change in ("append", "attribute", "delete"):
        if change == "append":  # along the dimension, which is that of both
            array(stash.open_group(url, "r+"), "a/y").append(OLD)
        with pytest.warns(RuntimeWarning, match="consolidated"):
            seen = xarray.open_zarr(url, group="a", zarr_format=zarr_format, chunks=None)
        if change == "delete":
            assert [*seen.variables] == ["y"]
        elif change == "attribute":
            assert seen["x"].attrs["unit"] == "K"
        else:
            assert seen["x"].values.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    if change != "delete":
        tensorstore = pytest.importorskip("tensorstore")
        where = {"driver": "file", "path": f"{url}/a/x"}
        driver = "zarr3" if zarr_format == 3 else "zarr"
        spec = {"driver": driver, "kvstore": where}
        stored = tensorstore.open(spec, open=True).result()
        assert stored.read().result().tolist() == found["/a/x"][2]


def test_after_another_consolidates_again(tmp_path: Path, zarr_format: Any) -> None:
    url = str(tmp_path / "g")
    group = made(url, zarr_format)
    one = array(group, "a/x")
    for _ in range(3):
        zarr.consolidate_metadata(url, zarr_format=zarr_format)
        one.append(OLD)
        check(url)
        assert zarr.open_group(url, mode="r")["a/x"].shape == one.shape


# -- records -----------------------------------------------------------------------------------


def records_below(path: Path) -> stash.Records:
    group = stash.create_group(path)
    group.create("x", (4,), "i4")[:] = OLD
    fields = {"id": "int64", "meta/score": "float32", "meta/words": stash.ragged("int32")}
    records = stash.create_records(path / "r", fields)
    more(records)
    return records


def more(records: stash.Records) -> None:
    n = len(records)
    rows = {
        "id": np.arange(n, n + 3),
        "meta/score": np.arange(3),
        "meta/words": [np.arange(k) for k in range(3)],
    }
    records.extend({name: rows[name] for name in records.fields})


def test_records_keep_what_publishes_them(tmp_path: Path) -> None:
    """A member of records may be changed alone; their document stays, and one above goes."""
    records = records_below(tmp_path / "g")
    group = stash.open_group(tmp_path / "g", "r+")
    group.consolidate()
    array(group, "r/id").attrs["unit"] = "1"
    group.create("r/beside", (2,), "i4")
    assert not copied(tmp_path / "g")
    assert records.refresh()["id"][...].tolist() == [0, 1, 2]
    more(records)
    group.create("r/beside", (3,), "i4", overwrite=True)
    del group["r/beside"]
    assert stash.open_records(tmp_path / "g" / "r")["id"][...].tolist() == [0, 1, 2, 0 + 3, 4, 5]


def test_a_copy_within_records_goes_as_they_change(tmp_path: Path) -> None:
    records = records_below(tmp_path / "g")
    inner = tmp_path / "g" / "r" / "meta"
    changes: list[Callable[[], Any]] = [
        lambda: more(records),
        lambda: records.add_field("meta/late", "int8", np.zeros(6, "i1")),
        lambda: records.rename_field("meta/late", "meta/later"),
        lambda: records.drop_field("meta/later"),
    ]
    for change in changes:
        zarr.consolidate_metadata(str(inner))
        assert copied(inner)
        change()
        records = stash.open_records(tmp_path / "g" / "r", "r+")
        plain = zarr.open_group(str(inner), mode="r", use_consolidated=False)
        whole = zarr.open_group(str(inner), mode="r")
        assert sorted(whole.keys()) == sorted(plain.keys())
        assert whole["score"].shape == plain["score"].shape == (len(records),)


def test_a_field_of_records_is_not_deleted_by_a_group(tmp_path: Path) -> None:
    records = records_below(tmp_path / "g")
    for at, prefix in ((tmp_path / "g", "r/"), (tmp_path / "g" / "r", "")):
        group = stash.open_group(at, "r+")
        for name in ("id", "meta", "meta/score", "meta/words", "meta/words/offsets"):
            with pytest.raises(Invalid, match="drop_field"):
                del group[prefix + name]
            with pytest.raises(Invalid, match="drop_field"):
                group.create(prefix + name, (2,), "i4", overwrite=True)
            with pytest.raises(Invalid, match="drop_field"):
                group.create_group(prefix + name, overwrite=True)
    assert records.refresh()["id"][...].tolist() == [0, 1, 2]
    del stash.open_group(tmp_path / "g", "r+")["r"]


def test_records_whose_fields_lag_are_read_as_a_group(tmp_path: Path) -> None:
    records = records_below(tmp_path / "g")
    for path in (tmp_path / "g" / "r").rglob("zarr.json"):
        if path.parent.name != "r":
            path.unlink()
    group = stash.open_group(tmp_path / "g" / "r")
    assert array(group, "id")[...].tolist() == [0, 1, 2]
    assert array(group, "meta/score")[...].tolist() == [0, 1, 2]
    meta = group["meta"]
    assert isinstance(meta, stash.Group)
    assert array(meta, "score")[...].tolist() == [0, 1, 2]
    assert len(records) == 3


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


# -- any changes -------------------------------------------------------------------------------

NAMES = st.sampled_from(["x", "y", "a", "a/x", "a/b", "a/b/x", "a/b/y", "c/x"])
GROUPS = st.sampled_from(["", "a", "a/b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), NAMES, st.sampled_from(["i4", "f4"]), st.booleans()),
        st.tuples(st.just("group"), NAMES, st.booleans()),
        st.tuples(st.just("delete"), NAMES),
        st.tuples(st.just("append"), NAMES),
        st.tuples(st.just("resize"), NAMES, st.integers(0, 6)),
        st.tuples(st.just("attribute"), NAMES, st.integers(0, 3)),
        st.tuples(st.just("consolidate"), GROUPS, st.booleans()),
        st.tuples(st.just("consolidate"), GROUPS, st.booleans()),
    ),
    max_size=14,
)


def run(handles: list[stash.Group], which: int, step: Any, url: str, zarr_format: Any) -> None:
    group = handles[which]
    verb, name, *rest = step
    if verb == "create":
        made = group.create(name, (3,), rest[0], codecs=None, overwrite=rest[1])
        made[...] = [1, 2, 3]
    elif verb == "group":
        group.create_group(name, {"g": 1}, overwrite=rest[0])
    elif verb == "delete":
        del group[name]
    elif verb == "append":
        array(group, name).append([5])
    elif verb == "resize":
        array(group, name).resize((rest[0],))
    elif verb == "attribute":
        group[name].attrs["k"] = rest[0]
    elif name and not isinstance(group[name], stash.Group):
        return
    elif rest[0]:
        consolidate(group, [name])
    else:
        zarr.consolidate_metadata(url, path=name or None, zarr_format=zarr_format)


@settings(max_examples=40)
@given(steps=st.lists(st.tuples(st.integers(0, 1), STEPS.map(tuple)), max_size=4))
@pytest.mark.parametrize("version", [3, 2])
def test_any_changes(tmp_path_factory: Any, version: Any, steps: Any) -> None:
    """Two handles take turns; what is read by copies is what a fresh look without them finds."""
    url = str(tmp_path_factory.mktemp("any") / "g")
    made(url, version)
    handles = [stash.open_group(url, "r+") for _ in range(2)]
    for which, some in steps:
        for step in some:
            with suppress(StashError, AssertionError):
                run(handles, which, step, url, version)
            check(url)
