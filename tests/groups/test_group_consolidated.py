"""Consolidated metadata, and groups between zarr-python and us."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import tensorstash as stash
from tensorstash.drivers.memory import MemoryDriver
from tensorstash.errors import NotFound
from tensorstash.testing.counting import Count, CountingDriver
from tests.support.groups import populated

# zarr-python warns that consolidated metadata is not in the v3 specification.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")


# -- consolidated metadata ---------------------------------------------------------------------


def test_a_consolidated_group_is_one_read(zarr_format: Any) -> None:
    driver = CountingDriver(MemoryDriver())
    populated(driver, zarr_format).consolidate()
    driver.reset()
    group = stash.open_group(driver)
    opened = driver.reads
    assert opened.calls <= (1 if zarr_format == 3 else 5)
    driver.reset()
    assert list(group) == ["empty", "raw", "time"]
    assert group.tree().count("\n") == 5
    assert "raw/image" in group
    assert "raw/nope" not in group
    image = group["raw"]["image"]
    assert (image.shape, image.chunks, image.attrs["unit"]) == ((4, 6), (2, 3), "K")
    assert group["empty"].attrs["note"] == "nothing yet"
    with pytest.raises(NotFound):
        group["raw/nope"]
    assert driver.counts == {}
    assert (image[...] == 7).all()
    # The chunks, and once the array's own document: is it what the copy says, still?
    own = 1 if zarr_format == 3 else 3
    assert driver.reads.keys == 4 + own
    assert driver.counts["tag"] == Count()
    assert driver.counts["list_dir"] == Count()
    driver.reset()
    assert (image[...] == 7).all()
    assert driver.reads.keys == 4
    assert driver.counts["tag"].calls == 1


def test_a_writer_sees_past_consolidated_metadata(zarr_format: Any) -> None:
    group = populated({}, zarr_format)
    group.consolidate()
    group.create("later", (2,), "i4")
    del group["raw"]
    group["time"].append([4])
    assert list(group) == ["empty", "later", "time"]
    assert group["time"].shape == (5,)
    assert list(stash.open_group(group.driver)) == ["empty", "later", "time"]  # the copy is gone
    group.consolidate()
    group.attrs["more"] = 1
    kept = stash.open_group(group.driver).document.consolidated is not None
    assert kept == (zarr_format == 3)  # v2's holds the group's own attributes too
    group.consolidate()
    again = stash.open_group(group.driver)
    assert list(again) == ["empty", "later", "time"]
    assert again["time"].shape == (5,)
    assert again.attrs["more"] == 1


@pytest.mark.parametrize("consolidated", [False, True])
def test_zarr_reads_our_groups(tmp_path: Path, zarr_format: Any, consolidated: bool) -> None:
    group = populated(tmp_path / "g", zarr_format)
    if consolidated:
        group.consolidate()
    theirs = zarr.open_group(
        str(tmp_path / "g"), mode="r", zarr_format=zarr_format, use_consolidated=consolidated
    )
    assert dict(theirs.attrs) == {"title": "run"}
    assert sorted(theirs.keys()) == ["empty", "raw", "time"]
    np.testing.assert_array_equal(theirs["raw/image"][...], np.full((4, 6), 7))
    assert dict(theirs["raw/image"].attrs) == {"unit": "K"}
    assert dict(theirs["empty"].attrs) == {"note": "nothing yet"}
    assert theirs["time"][...].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("consolidated", [False, True])
def test_we_read_zarrs_groups(tmp_path: Path, zarr_format: Any, consolidated: bool) -> None:
    theirs = zarr.create_group(str(tmp_path / "g"), zarr_format=zarr_format, attributes={"a": 1})
    image = theirs.create_array("raw/image", shape=(4, 6), chunks=(2, 3), dtype="u2")
    image[...] = 7
    image.attrs["unit"] = "K"
    theirs.create_group("empty")
    if consolidated:
        zarr.consolidate_metadata(str(tmp_path / "g"), zarr_format=zarr_format)
    for mode in ("r", "r+"):
        group = stash.open_group(tmp_path / "g", mode)  # type: ignore[arg-type]
        assert dict(group.attrs) == {"a": 1}
        assert [name for name, _ in group.walk()] == ["empty", "raw", "raw/image"]
        assert (group["raw/image"][...] == 7).all()
        assert dict(group["raw"]["image"].attrs) == {"unit": "K"}


# -- many members, deep members ----------------------------------------------------------------

GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}


def array_document() -> dict[str, Any]:
    place: dict[str, bytes] = {}
    stash.create(place, (10,), "f8", chunks=(5,), attributes={"unit": "K"})
    return json.loads(place["zarr.json"])  # type: ignore[no-any-return]


def flat(n: int) -> dict[str, Any]:
    return {f"m{k:06d}": GROUP for k in range(n)}


def arrays(n: int) -> dict[str, Any]:
    return dict.fromkeys(flat(n), array_document())


def pairs(n: int) -> dict[str, Any]:
    names = [f"g{k:05d}" for k in range(n // 2)]
    return {path: GROUP for name in names for path in (name, f"{name}/below")}


def chain(n: int) -> dict[str, Any]:
    return {"/".join("a" * k): GROUP for k in range(1, n + 1)}


def consolidated(members: dict[str, Any], version: Any, indent: int | None = 2) -> dict[str, bytes]:
    """A group whose consolidated metadata says so; nothing else is stored."""
    if version == 3:
        inline = {"kind": "inline", "must_understand": False, "metadata": members}
        return {"zarr.json": json.dumps({**GROUP, "consolidated_metadata": inline}).encode()}
    found: dict[str, Any] = {}
    place: dict[str, bytes] = {}
    stash.create(place, (10,), "f8", chunks=(5,), zarr_format=2)
    array = json.loads(place[".zarray"])
    for path, document in members.items():
        if document["node_type"] == "group":
            found[f"{path}/.zgroup"] = {"zarr_format": 2}
        else:
            found[f"{path}/.zarray"] = array
        found[f"{path}/.zattrs"] = document["attributes"]
    whole = {"zarr_consolidated_format": 1, "metadata": found}
    data = json.dumps(whole, indent=indent).encode()
    return {".zgroup": b'{"zarr_format": 2}', ".zmetadata": data}


def every_use(place: dict[str, bytes], some: str) -> int:
    """How many calls, of Python's functions and C's, opening a group and going through it takes."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        group: Any = stash.open_group(place)
        names = group.keys()
        assert [name for name, _ in group.items()] == names
        walked = sum(1 for _ in group.walk())
        assert group.tree().count("\n") == walked
        assert len(group) == len(names)
        assert all(name in group for name in names[::7])
        for name in names[::7]:
            member = group[name]  # of which nothing is stored, so an array cannot be read
            assert isinstance(member, stash.Array) or list(member) is not None
        assert group[some] is not None
        with pytest.raises(NotFound):
            group["nothing/of/that/name"]
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("make", [flat, pairs, arrays])
def test_the_work_grows_with_the_members_not_their_square(
    make: Any, zarr_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorstash.metadata.consolidated._LARGE", 0)
    few, many = make(400), make(4_000)
    every_use(consolidated(few, zarr_format), next(iter(few)))  # what is made once
    one = every_use(consolidated(few, zarr_format), next(iter(few)))
    ten = every_use(consolidated(many, zarr_format), next(iter(many)))
    assert ten < 13 * one, (one, ten)


@pytest.mark.parametrize("make", [flat, pairs, arrays])
def test_members_take_little_more_memory_than_their_document(make: Any, zarr_format: Any) -> None:
    count = 6_000 if make is arrays else 30_000
    place = consolidated(make(count), zarr_format)
    nbytes = sum(map(len, place.values()))
    stash.open_group(place)["m000000" if make is not pairs else "g00000"]
    tracemalloc.start()
    try:
        group = stash.open_group(place)
        assert len(group) <= sum(1 for _ in group.walk()) == count
        assert next(reversed(group.keys())) in group
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * nbytes, peak / nbytes


@pytest.mark.parametrize("depth", [1_200, 3_000])
def test_deep_trees_are_walked(zarr_format: Any, depth: int) -> None:
    members = chain(depth)
    place = consolidated(members, zarr_format)
    group: Any = stash.open_group(place)
    tracemalloc.start()
    try:
        walked = [len(path) for path, _ in group.walk()]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert walked == [2 * k - 1 for k in range(1, depth + 1)]
    assert peak < 3 << 20
    drawn = group.tree().splitlines()
    assert len(drawn) == depth + 1
    assert drawn[-1] == "    " * (depth - 1) + "└── a"
    deepest = max(members, key=len)
    assert deepest in group
    assert group[deepest].keys() == []
    inner: Any = group
    for _ in range(depth):
        [(name, inner)] = inner.items()
        assert name == "a"
    assert list(inner.items()) == []


def test_deep_trees_that_are_not_consolidated_are_walked(zarr_format: Any) -> None:
    depth = 1_200
    document = ("zarr.json", GROUP) if zarr_format == 3 else (".zgroup", {"zarr_format": 2})
    data = json.dumps(document[1]).encode()
    place = {document[0]: data}
    place |= {f"{path}/{document[0]}": data for path in chain(depth)}
    group = stash.open_group(place, "r+")
    assert [path.count("/") for path, _ in group.walk()] == list(range(depth))
    assert group.tree().count("\n") == depth


def seen_of(place: dict[str, bytes]) -> Any:
    """What a group shows of itself."""
    group: Any = stash.open_group(place)
    walked = [(path, dict(member.attrs), type(member).__name__) for path, member in group.walk()]
    return group.keys(), walked, group.tree(), dict(group.attrs), [*group["b"].keys()]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_large_document_is_read_as_a_small_one(
    zarr_format: Any, ascii_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read member by member is what is read whole, whatever text and spaces it has."""
    place: dict[str, bytes] = {}
    root = stash.create_group(place, {"title": 'é "x" \\" {[', "n": [1, {"a": None}]})
    root = root if zarr_format == 3 else stash.create_group({}, dict(root.attrs), zarr_format=2)
    root.create("b/Ünï/x", (3,), "f4", attributes={"µ": "€ \U0001f600", "q": '\\"}]'})
    root.create("b/z y", (3,), str, attributes={"esc": "\u2028\\u0041"})
    root.create_group("b-c", {"deep": [[[[{}]]]]})
    root.create("a.b", (), "i4")
    root.consolidate()
    held: dict[str, bytes] = {k: bytes(root.driver.get(k) or b"") for k in root.driver.list()}
    key = "zarr.json" if zarr_format == 3 else ".zmetadata"
    whole = json.loads(held[key])
    seen = []
    for large in (False, True):
        monkeypatch.setattr("tensorstash.metadata.consolidated._LARGE", 0 if large else 1 << 30)
        for spaces in ({}, {"indent": 3}, {"separators": (" ,\n\t", "\r : ")}):
            text = json.dumps(whole, ensure_ascii=ascii_only, **spaces)  # type: ignore[arg-type]
            seen.append(seen_of({**held, key: f" \n{text}\r\n ".encode()}))
    assert all(one == seen[0] for one in seen)
    assert seen[0][0] == ["a.b", "b", "b-c"]
    assert [path for path, _, _ in seen[0][1]] == ["a.b", "b", "b/z y", "b/Ünï", "b/Ünï/x", "b-c"]


def test_attributes_keep_a_large_document(
    zarr_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorstash.metadata.consolidated._LARGE", 0)
    group = populated({}, zarr_format)
    group.consolidate()
    walked = [path for path, _ in stash.open_group(group.driver).walk()]
    group.attrs["more"] = 1
    group.attrs["most"] = 2
    after = stash.open_group(group.driver)
    assert [path for path, _ in after.walk()] == walked
    assert after.attrs["more"] == 1
